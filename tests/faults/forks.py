"""Runs in processes of their own, by way of ``driver.py``."""

from __future__ import annotations

import atexit
import json
import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from dipole.train import checkpoint

TRAIN_TESTS = Path(__file__).parent.parent / "train"
sys.path.append(str(TRAIN_TESTS))

from tiny_runs import rows, without_time, write_groups  # noqa: E402

__all__ = ["Ended", "fork", "options", "results", "rows", "valid_steps", "write_groups"]


@dataclass(frozen=True, slots=True)
class Ended:
    """How processes ended: exit statuses (negative: by a signal), what each said, and after how long."""

    statuses: list[int]
    said: list[str]
    seconds: float

    @property
    def status(self) -> int:
        """Of the only process."""
        (status,) = self.statuses
        return status


@cache
def _driver() -> subprocess.Popen[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, str(Path(__file__).with_name("driver.py"))]
    driver = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    atexit.register(driver.kill)
    return driver


def fork(config: dict[str, Any], **order: Any) -> Ended:
    """Trains in one or several forked processes; the order as ``driver.py`` takes it.

    Args:
        config: keywords of ``train_config``.
        order: ``ranks``, ``events``, ``kill_at_write``, ``kill_after`` seconds, ``record`` a file, ``poison`` groups,
            ``file_limit`` bytes, ``timeout`` seconds.
    """
    defaults: dict[str, Any] = {
        "ranks": 1,
        "events": [],
        "kill_at_write": 0,
        "kill_after": None,
        "record": None,
        "poison": [],
        "file_limit": 0,
        "timeout": 120,
    }
    folder = Path(config["output"]).parent
    whole = {"config": config, "folder": str(folder), "port": _free_port(), **defaults, **order}
    driver = _driver()
    assert driver.stdin is not None
    assert driver.stdout is not None
    driver.stdin.write(json.dumps(whole) + "\n")
    driver.stdin.flush()
    return Ended(**json.loads(driver.stdout.readline()))


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def options(model: Path, data: Path, output: Path, **more: Any) -> dict[str, Any]:
    """A configuration of four steps an epoch over ten groups, for two epochs, with a checkpoint after each step."""
    return {
        "model": str(model),
        "data": str(data),
        "output": str(output),
        "global_batch_size": 3,
        "num_epochs": 2,
        "num_samples": 0,
        "learning_rate": 1e-3,
        "max_length": 128,
        "dtype": "float32",
        "checkpoint_every": 1,
        **more,
    }


def results(output: Path) -> dict[str, Any]:
    """All that a run leaves behind, bit for bit, without what depends on the clock."""
    found: dict[str, Any] = {
        name: [without_time(row) for row in rows(output / name)]
        for name in ("metrics.jsonl", "samples.jsonl", "held_out.jsonl", "skipped.jsonl")
        if (output / name).exists()
    }
    for file in sorted((output / "final").glob("*.safetensors")):
        found[file.name] = {name: tensor.tolist() for name, tensor in load_file(file).items()}
    return found


def valid_steps(output: Path) -> list[int]:
    """The steps of the checkpoints that are whole, the newest first."""
    folders = sorted((output / "checkpoints").glob("step-*"), reverse=True)
    return [int(folder.name.removeprefix("step-")) for folder in folders if checkpoint._damage(folder) is None]
