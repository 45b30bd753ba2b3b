"""An iteration that is killed with SIGKILL in every stage makes what one makes that nobody killed, and asks a judge
nothing twice: the server counts.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).parent.parent
sys.path += [str(TESTS / "feedback"), str(TESTS / "iterate")]

from fake_server import Call, FakeServer, fake_server, say  # noqa: E402
from tiny_rounds import results, write_prompts  # noqa: E402

THREADS = 8
"""Questions that may be on their way when a process is killed."""

KILLS: list[tuple[str, int, str]] = [
    ("dipole.iterate.stages.save_groups", 1, "before"),  # the split
    ("dipole.data.growing.GrowingGroups.append", 1, "after"),  # round 0 is sampled
    ("dipole.generating.save_groups", 1, "after"),  # all is there, and the growing file too
    ("dipole.iterate.evaluation.write_json", 1, "before"),
    ("dipole.data.growing.GrowingGroups.append", 2, "after"),  # round 1 is written
    ("dipole.feedback.client.ChatClient._send", 7, "after"),  # and judged
    ("dipole.feedback.cache.Cache.put", 3, "after"),
    ("dipole.iterate.stages.save_groups", 2, "after"),  # pairs are chosen, and what is trained on isn't there yet
    ("dipole.train.run.save_checkpoint", 1, "after"),
    ("dipole.train.run.save_final", 1, "after"),
    ("dipole.data.growing.GrowingGroups.append", 1, "after"),  # the evaluation is sampled
    ("dipole.feedback.client.ChatClient._send", 2, "before"),  # and judged
    ("dipole.iterate.evaluation.write_json", 1, "after"),
    ("dipole.feedback.client.ChatClient._send", 5, "after"),  # round 2
    ("dipole.train.run.save_checkpoint", 1, "after"),
]
"""In the order in which a chain of killed runs meets them: at which call of what, and when."""


def answer(call: Call) -> Any:
    """Prefers what is shown at greater length."""
    first, second = (call.asked.split(f"answer {name}, begin")[1].split(f"answer {name}, end")[0] for name in "AB")
    return say(f"VERDICT: {'A' if len(first) >= len(second) else 'B'}")


@pytest.fixture(scope="module")
def driver() -> Iterator[subprocess.Popen[str]]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, str(Path(__file__).with_name("iterate_driver.py"))]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        yield process
        process.kill()


class Rounds:
    """Iterations into one folder."""

    def __init__(self, driver: subprocess.Popen[str], server: FakeServer, model: Path, folder: Path) -> None:
        self.driver, self.folder = driver, folder
        options = {"judge": f"server:{server.url}#tiny", "held_out_judge": None}
        self.order = {"model": str(model), "folder": str(folder), "options": options, "said": str(folder / "said.txt")}

    def run(self, output: str, event: dict[str, Any] | None = None) -> int:
        assert self.driver.stdin is not None
        assert self.driver.stdout is not None
        self.driver.stdin.write(json.dumps(self.order | {"output": output, "event": event}) + "\n")
        self.driver.stdin.flush()
        return int(self.driver.stdout.readline())

    def said(self) -> str:
        return (self.folder / "said.txt").read_text(errors="replace")


def test_killed_in_every_stage(driver: subprocess.Popen[str], tiny_folder: Path, tmp_path: Path) -> None:
    write_prompts(tmp_path / "prompts.jsonl", count=8)
    with fake_server() as server:
        server.answer = answer
        rounds = Rounds(driver, server, tiny_folder, tmp_path)
        assert rounds.run("straight") == 0, rounds.said()
        expected, asked = results(tmp_path / "straight"), Counter(call.asked for call in server.calls)
        assert set(asked.values()) == {1}
        server.calls.clear()
        lost = 0
        for at, number, when in KILLS:
            before = len(server.calls)
            status = rounds.run("killed", {"at": at, "call": number, "when": when, "signals": [signal.SIGKILL]})
            assert status == -signal.SIGKILL, f"{at}, call {number}, {when}: {rounds.said()}"
            lost += THREADS if len(server.calls) > before else 0
        done = len(server.calls)
        assert rounds.run("killed") == 0, rounds.said()
        repeated = Counter(call.asked for call in server.calls) - asked
        assert repeated.total() <= lost, "only what was on its way when a run was killed is asked again"
        assert len(server.calls) == asked.total() + repeated.total()
        last = len(server.calls)
        assert 0 < last - done < asked.total()
        assert results(tmp_path / "killed") == expected
        assert not list((tmp_path / "killed").rglob("*.partial"))
        assert rounds.run("killed") == 0, rounds.said()
        assert len(server.calls) == last, "a run after that asks nothing"
