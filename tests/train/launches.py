"""Runs by one process and by two on this machine, and whether they did the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from several_runs import main
from tiny_runs import rows, without_time, write_for, write_groups

from dipole.objective import LOSSES

Runs = Mapping[str, Mapping[str, Any]]
"""Options by the name of a run. ``data`` names what ``write_data`` wrote; a pairwise loss's by default."""


def launch(*command: str | Path, cache: Path) -> subprocess.CompletedProcess[str]:
    """Two processes on this machine."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "DIPOLE_CACHE": str(cache)}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    return subprocess.run(
        [*torchrun, *map(str, command)], capture_output=True, text=True, check=False, env=environment, timeout=500
    )


def write_data(folder: Path) -> dict[str, Path]:
    """Files of groups, and for a few losses."""
    written = {
        name: write_for(folder / f"{name}.jsonl", LOSSES[name], groups=5) for name in ("dpo", "kto", "plackett_luce")
    }
    return written | {"groups": write_groups(folder / "groups.jsonl", train=7, held_out=3)}


def run_all(runs: Runs, model: Path, folder: Path, count: int) -> None:
    """Trains by every configuration, in this process or in two, into ``folder/count/name``."""
    data = write_data(folder)
    defaults = {
        "model": str(model),
        "num_epochs": 2,
        "global_batch_size": 3,
        "num_samples": 2,
        "sample_tokens": 4,
        "learning_rate": 1e-3,
        "max_length": 128,
        "dtype": "float32",
    }
    lines = [
        defaults | options | {"output": str(folder / str(count) / name), "data": str(data[options.get("data", "dpo")])}
        for name, options in runs.items()
    ]
    file, cache = folder / f"{count}.jsonl", folder / f"cache{count}"
    file.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    if count == 1:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("DIPOLE_CACHE", str(cache))
            main(str(file))
    else:
        done = launch(Path(__file__).with_name("several_runs.py"), file, cache=cache)
        assert done.returncode == 0, done.stderr[-3000:]


def assert_same(one: Path, two: Path, *, rel: float = 2e-4, atol: float = 2e-5) -> None:
    """The same rows of metrics, of held-out data and of samples, and the same final weights, up to rounding."""
    for file in ("metrics.jsonl", "held_out.jsonl", "samples.jsonl"):
        if not (one / file).exists():
            assert not (two / file).exists()
            continue
        for left, right in zip(*([without_time(row) for row in rows(run / file)] for run in (one, two)), strict=True):
            assert left.keys() == right.keys()
            for column, value in left.items():
                expected = pytest.approx(value, rel=rel, abs=atol) if isinstance(value, float) else value
                assert right[column] == expected, (file, left.get("step"), column)
    left, right = (load_file(next((run / "final").glob("*.safetensors"))) for run in (one, two))
    assert left.keys() == right.keys()
    for key, tensor in left.items():
        torch.testing.assert_close(right[key], tensor, rtol=rel / 2, atol=atol)
