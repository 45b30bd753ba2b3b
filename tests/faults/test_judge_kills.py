"""Judging that is killed again and again asks nothing twice, and its ledger holds every call.

Real processes against a server that counts. ``make faults`` kills more often.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dipole.data.formats import load_groups, save_groups
from dipole.feedback.cache import Cache
from dipole.group import Completion, Group

FEEDBACK_TESTS = Path(__file__).parent.parent / "feedback"
sys.path.append(str(FEEDBACK_TESTS))

from fake_server import Call, FakeServer, fake_server, say  # noqa: E402

LONG = os.environ.get("FAULTS") == "long"
KILLS = 40 if LONG else 4
PAIRS = 500 if LONG else 150
CALLS = 2 * PAIRS
THREADS = 4


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("data") / "groups.jsonl"
    texts = ((f"A good answer, {number}.", f"A bad answer, {number}.") for number in range(PAIRS))
    groups = [
        Group(id=f"g{number}", prompt="Answer.", completions=tuple(Completion(text=text) for text in both))
        for number, both in enumerate(texts)
    ]
    save_groups(groups, file)
    return file


def answer(call: Call) -> object:
    shown = call.asked.split("answer A, begin")[1].split("answer A, end")[0]
    return say(f"VERDICT: {'A' if 'good' in shown else 'B'}")


@contextmanager
def judging(server: FakeServer, data: Path, output: Path) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "dipole", "judge", "--data", str(data), "--output", str(output)]
    command += ["--judge", f"server:{server.url}#tiny", "--threads", str(THREADS)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for(server: FakeServer, count: int, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 120
    while len(server.calls) < count and process.poll() is None:
        assert time.monotonic() < end, "no calls come"
        time.sleep(0.001)


def kept(output: Path) -> int:
    """Replies on the disk, read by another process than the one that wrote them."""
    with Cache(f"{output}.replies.sqlite") as cache:
        (count,) = cache._run("SELECT COUNT(*) FROM replies").fetchone()
        return int(count)


def booked(output: Path) -> int:
    with Cache(f"{output}.replies.sqlite") as cache:
        return cache.spent().calls


def test_kill_minus_9_while_judging(data: Path, tmp_path: Path) -> None:
    draw, output = random.Random(9), tmp_path / "judged.jsonl"
    with fake_server() as server:
        server.answer = answer  # type: ignore[assignment]
        for number in range(1, KILLS + 1):
            already, before = kept(output), len(server.calls)
            with judging(server, data, output) as process:
                wait_for(server, before + draw.randrange(1, max(2, CALLS // (KILLS + 1))), process)
                process.send_signal(signal.SIGKILL)
                process.wait()
            time.sleep(0.1)  # what had been sent arrives
            asked = Counter(call.asked for call in server.calls)
            assert max(asked.values()) <= 1 + number, "a question is lost at most once a kill"
            assert len(server.calls) - kept(output) <= THREADS * number, "at most those on their way are lost"
            assert kept(output) >= already
            assert 0 <= booked(output) - len(server.calls) <= THREADS * number, "the ledger is written before the call"
            assert not output.exists()
        missing = CALLS - kept(output)
        before = len(server.calls)
        with judging(server, data, output) as process:
            assert process.wait(timeout=300) == 0, process.stderr and process.stderr.read().decode()
        assert len(server.calls) - before == missing, "the missing calls alone"
        with judging(server, data, output) as process:
            assert process.wait(timeout=300) == 0
        assert len(server.calls) - before == missing, "a run after that asks nothing"
    judged = load_groups(output)
    assert len(judged) == PAIRS
    assert all(judgment.meta["verdict"] == "first" for item in judged for judgment in item.judgments)
    assert missing > 0
