"""A process that hangs, or that never comes: the others end with a fault, soon."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from forks import fork, options, valid_steps, write_groups


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_groups(tmp_path_factory.mktemp("data") / "data.jsonl")


@pytest.mark.parametrize("rank", [0, 1])
def test_when_one_of_two_hangs_the_other_ends_with_a_fault(
    tiny_folder: Path, data: Path, tmp_path: Path, rank: int
) -> None:
    """The process is stopped in a step, as one is that waits for a device or a disk."""
    event = {"at": "dipole.train.loop.clip", "call": 3, "when": "before", "signals": [signal.SIGSTOP], "rank": rank}
    config = options(tiny_folder, data, tmp_path / "run", num_epochs=1, process_timeout=4)
    ended = fork(config, ranks=2, events=[event], timeout=25)
    assert ended.statuses[rank] == -signal.SIGKILL  # by the test, at its end
    assert ended.statuses[1 - rank] == 4, ended.said
    said = ended.said[1 - rank].splitlines()[-1]
    assert said.startswith(f"error: process {1 - rank} of 2: another process of the run didn't answer in time")
    assert "--process_timeout" in said
    assert "--resume" in said
    assert valid_steps(tmp_path / "run")[0] >= 2
    assert fork(config | {"resume": True}).status == 0


ALONE = """
from dipole.config import train_config
from dipole.errors import TrainingFault
from dipole.train.devices import make_accelerator
try:
    make_accelerator(train_config(model="m", data="d", output="o", process_timeout=2))
except TrainingFault as fault:
    print(fault.exit_status, fault)
"""


def test_a_process_that_never_comes_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_PORT", str(port))
    done = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.startswith("4 process 0: not all 2 processes of the launch have come within 2 s"), done.stderr
    assert "MASTER_ADDR" in done.stdout
