"""Two processes do what one does: the same metrics and weights, for every kind of data and loss."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from several_runs import main
from tiny_runs import rows, without_time, write_for, write_groups

from dipole.objective import LOSSES

RUNS: dict[str, dict[str, Any]] = {
    "pairs, all weights": {"loss": "dpo"},
    "pairs, lora": {"loss": "dpo", "peft": "lora"},
    "groups of 3, many micro-batches": {"loss": "dpo", "data": "groups", "max_tokens_per_microbatch": 40},
    "groups of 3, cached": {"loss": "dpo", "data": "groups", "reference": "cached"},
    "a step of a single group": {"loss": "dpo", "global_batch_size": 1, "max_steps": 3},
    "kto": {"loss": "kto", "data": "kto"},
    "ranks of a batch": {"loss": "aot"},
    "a running mean": {"loss": "bco_pair"},
    "a running mean of beta": {"loss": "beta_dpo"},
    "whole distributions": {"loss": "tdpo1"},
    "rankings": {"loss": "plackett_luce", "data": "plackett_luce"},
    "constraints": {"loss": "dpo", "constrained": True},
    "a moving reference": {"loss": "dpo", "sync_reference_every": 2},
    "layers that forget": {"loss": "dpo", "gradient_checkpointing": True},
}

Launch = Callable[..., subprocess.CompletedProcess[str]]


def launch(*command: str | Path, cache: Path) -> subprocess.CompletedProcess[str]:
    """Two processes on this machine."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "DIPOLE_CACHE": str(cache)}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    return subprocess.run(
        [*torchrun, *map(str, command)], capture_output=True, text=True, check=False, env=environment, timeout=500
    )


@pytest.fixture(scope="module")
def outputs(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs by one process and by two."""
    folder = tmp_path_factory.mktemp("processes")
    data = {
        "groups": write_groups(folder / "groups.jsonl", train=7, held_out=3),
        **{
            name: write_for(folder / f"{name}.jsonl", LOSSES[name], groups=5)
            for name in ("dpo", "kto", "plackett_luce")
        },
    }
    for count in (1, 2):
        lines = []
        for name, options in RUNS.items():
            config = {
                "model": str(tiny_folder),
                "output": str(folder / str(count) / name),
                "num_epochs": 2,
                "global_batch_size": 3,
                "num_samples": 2,
                "sample_tokens": 4,
                "learning_rate": 1e-3,
                "max_length": 128,
                "dtype": "float32",
                **options,
                "data": str(data[options.get("data", "dpo")]),
            }
            lines.append(json.dumps(config))
        (folder / f"{count}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIPOLE_CACHE", str(folder / "cache1"))
        main(str(folder / "1.jsonl"))
    done = launch(Path(__file__).with_name("several_runs.py"), folder / "2.jsonl", cache=folder / "cache2")
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_equal_one(outputs: Path, name: str) -> None:
    one, two = outputs / "1" / name, outputs / "2" / name
    for file in ("metrics.jsonl", "held_out.jsonl", "samples.jsonl"):
        if not (one / file).exists():
            assert not (two / file).exists()
            continue
        for left, right in zip(*([without_time(row) for row in rows(run / file)] for run in (one, two)), strict=True):
            assert left.keys() == right.keys()
            for column, value in left.items():
                expected = pytest.approx(value, rel=2e-4, abs=2e-5) if isinstance(value, float) else value
                assert right[column] == expected, column
    left, right = (load_file(next((run / "final").glob("*.safetensors"))) for run in (one, two))
    assert left.keys() == right.keys()
    for key, tensor in left.items():
        torch.testing.assert_close(right[key], tensor, rtol=1e-4, atol=2e-5)


def test_the_command_line_speaks_once(tiny_folder: Path, tmp_path: Path) -> None:
    data = write_for(tmp_path / "data.jsonl", LOSSES["dpo"])
    flags = ["--model", tiny_folder, "--data", data, "--output", tmp_path / "run", "--num_samples", "0"]
    done = launch("-m", "dipole", "train", *flags, cache=tmp_path / "cache")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("Report: ") == 1
    assert (tmp_path / "run" / "report.html").exists()
    assert (tmp_path / "run" / "final" / "model.safetensors").exists()
