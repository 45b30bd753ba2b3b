"""A real server and real models: ``transformers serve`` on a free port, and SmolLM2 as a judge in this process."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from judging import GROUPS

from dipole.data.formats import load_groups, save_groups
from dipole.data.reduce import pair_labels
from dipole.errors import TrainingFault
from dipole.feedback.client import ChatClient
from dipole.policy.embedded import embedded_model

Command = Callable[..., tuple[int, str, str]]

pytestmark = [pytest.mark.real_model, pytest.mark.slow]

SERVE = "import sys; from transformers.cli.transformers import main; sys.argv[0] = 'transformers'; main()"


@pytest.fixture(scope="module")
def model_folder() -> Path:
    try:
        return embedded_model()
    except TrainingFault as fault:
        pytest.skip(f"the model can't be had here: {fault}")


@pytest.fixture(scope="module")
def served(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of ``transformers serve``, which listens on this machine alone and looks nothing up."""
    pytest.importorskip("fastapi", reason="transformers[serving] isn't installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("served") / "log"
    command = [sys.executable, "-c", SERVE, "serve", str(model_folder), "--host", "127.0.0.1", "--port", str(port)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with (
        log.open("wb") as said,
        subprocess.Popen([*command, "--device", "cpu"], stdout=said, stderr=said, env=environment) as process,
    ):
        try:
            wait_until_healthy(f"http://127.0.0.1:{port}/health", process, log)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.kill()


def wait_until_healthy(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + 180
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    pytest.fail(f"it isn't ready: {log.read_text()}")


def test_a_served_model_answers_and_is_counted(served: str, model_folder: Path) -> None:
    client = ChatClient(served, str(model_folder))
    chat = ({"role": "user", "content": "Say hello."},)
    reply = client.complete(chat, max_tokens=8, temperature=0.0)
    assert reply.text
    assert reply.prompt_tokens is not None
    assert 5 < reply.prompt_tokens < 100
    assert 0 < (reply.completion_tokens or 0) <= 8
    assert client.budget.spent().tokens == reply.prompt_tokens + (reply.completion_tokens or 0)
    assert client.complete(chat, max_tokens=8, temperature=0.0) == reply
    assert client.budget.spent().calls == 1


def test_a_served_model_judges(command: Command, served: str, model_folder: Path, tmp_path: Path) -> None:
    save_groups(GROUPS[:1], tmp_path / "groups.jsonl")
    status, said, errors = command(
        "judge",
        *("--data", tmp_path / "groups.jsonl", "--output", tmp_path / "judged.jsonl", "--threads", "2"),
        *("--judge", f"server:{served}#{model_folder}?max_tokens=8&name=smol", "--max_invalid", "1"),
    )
    assert status == 0, errors
    judged = load_groups(tmp_path / "judged.jsonl")
    verdicts = [judgment.meta["verdict"] for item in judged for judgment in item.judgments]
    assert len(verdicts) == 1
    assert set(verdicts) <= {"first", "second", "tie", "both bad", "invalid"}
    assert "calls" in said


def test_a_small_model_tells_praise_from_blame_by_its_logits(
    command: Command, model_folder: Path, tmp_path: Path
) -> None:
    save_groups(GROUPS[:6], tmp_path / "groups.jsonl")
    judge = f"model:{model_folder}?rubric=The review likes the film.&ask=each&name=smol"
    status, _, errors = command(
        "judge", "--data", tmp_path / "groups.jsonl", "--output", tmp_path / "judged.jsonl", "--judge", judge
    )
    assert status == 0, errors
    labels = [label for item in load_groups(tmp_path / "judged.jsonl") for label in pair_labels(item)]
    assert [(label.i, label.p) for label in labels] == [(0, 1.0)] * 6
