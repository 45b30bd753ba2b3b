"""The learning rate by hand, weight decay, and the sentences about unusual settings."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from dipole.config import TrainConfig, train_config
from dipole.train.optim import cautions, learning_rate, make_optimizer, rate_at


def config(**options: Any) -> TrainConfig:
    return train_config(model="m", data="d", output="o", **options)


def rates(total: int, **options: Any) -> list[float]:
    return [rate_at(step, total, config(learning_rate=1.0, **options)) for step in range(total)]


def test_warm_up_rises_to_the_peak_and_then_the_schedule_begins() -> None:
    assert rates(8, schedule="constant", warmup_ratio=0.5) == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0]
    assert rates(8, schedule="linear", warmup_ratio=0.5) == [0.25, 0.5, 0.75, 1.0, 1.0, 0.75, 0.5, 0.25]
    root = math.sqrt(0.5)
    expected = [0.25, 0.5, 0.75, 1.0, 1.0, (1 + root) / 2, 0.5, (1 - root) / 2]
    assert rates(8, schedule="cosine", warmup_ratio=0.5) == pytest.approx(expected, abs=1e-15)


def test_the_share_of_warm_up_is_rounded_up() -> None:
    assert rates(5, schedule="constant", warmup_ratio=0.1) == [1.0] * 5
    assert rates(5, schedule="constant", warmup_ratio=0.3) == [0.5, 1.0, 1.0, 1.0, 1.0]
    assert rates(4, schedule="linear", warmup_ratio=0.0) == [1.0, 0.75, 0.5, 0.25]
    assert rates(2, schedule="cosine", warmup_ratio=1.0) == [0.5, 1.0]


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
@pytest.mark.parametrize("total", [1, 2, 3, 17])
def test_no_step_is_wasted_on_a_rate_of_zero(schedule: str, total: int) -> None:
    assert all(0 < rate <= 1 for rate in rates(total, schedule=schedule))


def test_the_default_rate_is_the_methods() -> None:
    assert learning_rate(config()) == 1e-6
    assert learning_rate(config(peft="lora")) == 1e-4
    assert learning_rate(config(learning_rate=3e-6)) == 3e-6
    assert rate_at(0, 1, config(peft="lora")) == 1e-4


def test_weight_decay_is_for_matrices_and_frozen_parameters_stay_out() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2), nn.Linear(2, 1))
    model[2].weight.requires_grad_(False)
    optimizer = make_optimizer(model, config(weight_decay=0.1))
    assert isinstance(optimizer, torch.optim.AdamW)
    decay = {id(p): part["weight_decay"] for part in optimizer.param_groups for p in part["params"]}
    assert decay == {
        id(model[0].weight): 0.1,
        id(model[0].bias): 0.0,
        id(model[1].weight): 0.0,
        id(model[1].bias): 0.0,
        id(model[2].bias): 0.0,
    }


@pytest.mark.parametrize(
    ("options", "beta", "completions", "words"),
    [
        ({}, 0.1, 64, []),
        ({"peft": "lora"}, 0.5, 256, []),
        ({"learning_rate": 1e-4}, 0.1, 64, ["learning rate of 0.0001", "all weights"]),
        ({"learning_rate": 1e-6, "peft": "lora"}, 0.1, 64, ["learning rate of 1e-06", "LoRA"]),
        ({"global_batch_size": 4}, 0.1, 8, ["4 groups has 8 completions"]),
        ({}, 0.01, 64, ["beta of 0.01"]),
        ({}, 2.0, 64, ["beta of 2"]),
        ({"loss": "simpo"}, 2.0, 64, []),
    ],
)
def test_settings_outside_of_what_is_known_to_work_are_named(
    options: dict[str, Any], beta: float, completions: float, words: list[str]
) -> None:
    said = cautions(config(**options), beta, completions)
    assert len(said) == bool(words)
    assert all(word in said[0] for word in words)
