"""Two processes do what one does: the same metrics and weights, for every kind of data and loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from launches import assert_same, launch, run_all
from tiny_runs import write_for

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


@pytest.fixture(scope="module")
def outputs(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs by one process and by two."""
    folder = tmp_path_factory.mktemp("processes")
    for count in (1, 2):
        run_all(RUNS, tiny_folder, folder, count)
    return folder


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_equal_one(outputs: Path, name: str) -> None:
    assert_same(outputs / "1" / name, outputs / "2" / name)


def test_the_command_line_speaks_once(tiny_folder: Path, tmp_path: Path) -> None:
    data = write_for(tmp_path / "data.jsonl", LOSSES["dpo"])
    flags = ["--model", tiny_folder, "--data", data, "--output", tmp_path / "run", "--num_samples", "0"]
    done = launch("-m", "dipole", "train", *flags, cache=tmp_path / "cache")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("Report: ") == 1
    assert (tmp_path / "run" / "report.html").exists()
    assert (tmp_path / "run" / "final" / "model.safetensors").exists()
