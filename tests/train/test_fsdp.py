"""Two processes that divide the weights do what one does that has them all: for every kind of data and reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from launches import assert_same, run_all
from tiny_runs import rows

RUNS: dict[str, dict[str, Any]] = {
    "pairs, all weights": {},
    "pairs, lora": {"peft": "lora", "rank": 3},
    "pairs, lora beside a copy": {"peft": "lora", "rank": 3, "reference": "copy"},
    "groups of 3, many micro-batches": {"data": "groups", "max_tokens_per_microbatch": 40},
    "groups of 3, lora": {"data": "groups", "peft": "lora", "max_tokens_per_microbatch": 40},
    "groups of 3, cached": {"data": "groups", "reference": "cached", "max_tokens_per_microbatch": 60},
    "lora, cached": {"data": "groups", "reference": "cached", "peft": "lora"},
    "a step of a single group": {"global_batch_size": 1, "max_steps": 3},
    "kto": {"loss": "kto", "data": "kto"},
    "kto, lora": {"loss": "kto", "data": "kto", "peft": "lora"},
    "a running mean": {"loss": "bco_pair", "global_batch_size": 1},
    "whole distributions": {"loss": "tdpo1"},
    "whole distributions, lora": {"loss": "tdpo1", "peft": "lora"},
    "rankings": {"loss": "plackett_luce", "data": "plackett_luce"},
    "a moving reference": {"sync_reference_every": 2},
    "a moving adapter": {"sync_reference_every": 2, "peft": "lora", "reference": "copy"},
    "layers that forget": {"gradient_checkpointing": True},
    "an optimizer that isn't fused": {"optimizer": "adamw", "weight_decay": 0.1},
    "sgd, which feels the size of gradients": {"optimizer": "sgd", "learning_rate": 0.1},
}
NARROW: dict[str, dict[str, Any]] = {
    "bfloat16, all weights": {"dtype": "bfloat16", "data": "groups"},
    "bfloat16, lora": {"dtype": "bfloat16", "data": "groups", "peft": "lora"},
    "float16, all weights": {"dtype": "float16"},
}


@pytest.fixture(scope="module")
def outputs(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs by one process, and by two that divide the weights."""
    folder = tmp_path_factory.mktemp("divided")
    run_all(RUNS | NARROW, tiny_folder, folder, 1)
    divided = {name: {**options, "sharding": "fsdp"} for name, options in (RUNS | NARROW).items()}
    run_all(divided, tiny_folder, folder, 2)
    return folder


@pytest.mark.parametrize("name", RUNS)
def test_divided_weights_do_what_whole_ones_do(outputs: Path, name: str) -> None:
    assert_same(outputs / "1" / name, outputs / "2" / name)


@pytest.mark.parametrize("name", NARROW)
def test_narrow_products_differ_by_their_rounding(outputs: Path, name: str) -> None:
    """Divided layers have narrow norms too: weights of about 1, of which bfloat16 keeps 8 bits and float16 11."""
    for left, right in zip(*(rows(outputs / count / name / "metrics.jsonl") for count in ("1", "2")), strict=True):
        for column in ("loss", "eval/loss"):
            if column in left:
                assert right[column] == pytest.approx(left[column], abs=0.03)
