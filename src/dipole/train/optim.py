"""The optimizer and its schedule, the scale of losses in float16, and which settings are known to work."""

from __future__ import annotations

import importlib
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from dipole.config import TrainConfig
from dipole.errors import ConfigError

DEFAULT_RATE = {
    "none": 1e-6,
    "lora": 1e-4,
    "dora": 1e-4,
    "rslora": 1e-4,
    "ia3": 3e-3,
    "prefix_tuning": 1e-3,
    "prompt_tuning": 1e-2,
}
KNOWN_RATE = {
    "none": (1e-6, 1e-5),
    "lora": (1e-5, 5e-4),
    "dora": (1e-5, 5e-4),
    "rslora": (5e-6, 5e-4),
    "ia3": (1e-3, 1e-2),
    "prefix_tuning": (5e-5, 1e-2),
    "prompt_tuning": (1e-3, 3e-1),
}
"""By method of ``--peft``. For the last three from supervised training, in the papers and by PEFT's authors: nobody has
published rates for training them on preferences."""
KNOWN_COMPLETIONS = (64, 256)
KNOWN_BETA = (0.1, 0.5)


def learning_rate(config: TrainConfig) -> float:
    """The peak learning rate: the one asked for, or the method's default."""
    return DEFAULT_RATE[config.peft.method] if config.learning_rate is None else config.learning_rate


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """The optimizer over the trained parameters, with weight decay on matrices and none on biases and norms.

    Raises:
        ConfigError: it can't run here.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in trained if parameter.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [parameter for parameter in trained if parameter.ndim < 2], "weight_decay": 0.0},
    ]
    given: list[Any] = [group for group in groups if group["params"]]
    rate = learning_rate(config)
    match config.optimizer:
        case "adamw":
            return torch.optim.AdamW(given, lr=rate)
        case "adamw_fused":
            return torch.optim.AdamW(given, lr=rate, fused=True)
        case "adamw_8bit":
            made: torch.optim.Optimizer = _eight_bit(config)(given, lr=rate)
            return made
        case "rmsprop":
            return torch.optim.RMSprop(given, lr=rate)
        case "sgd":
            return torch.optim.SGD(given, lr=rate)


def _eight_bit(config: TrainConfig) -> Any:
    """AdamW with block-wise quantized state (Dettmers et al. 2021, arXiv 2110.02861), from bitsandbytes."""

    def refused(problem: str, remedy: str = "Use adamw_fused") -> ConfigError:
        return ConfigError(problem, where="--optimizer adamw_8bit", remedy=remedy)

    if not torch.cuda.is_available():
        raise refused("its kernels are for GPUs, and there is none here")
    if config.sharding != "none":
        raise refused("bitsandbytes can't quantize the state of weights that are divided over processes")
    try:
        return importlib.import_module("bitsandbytes").optim.AdamW8bit
    except ImportError as fault:
        raise refused("bitsandbytes isn't installed", "Install dipole[quant], or use adamw_fused") from fault


SAME_STATE = {"adamw_fused": "adamw"}
"""Optimizers whose state is another's, so that a run may go on with either."""


@dataclass(slots=True)
class LossScale:
    """What losses are multiplied by, so that small gradients stay within float16's range.

    Micikevicius et al. 2018, arXiv 1710.03740, section 3.2. A power of two, so that dividing by it again changes no
    digit.

    Args:
        value: now.
        good_steps: since it last changed.
    """

    value: float = 2.0**16
    good_steps: int = 0

    GROW_AFTER = 200
    """Good steps after which a larger one is tried; runs on preferences are short."""

    def lower(self) -> None:
        """After a gradient that overflowed."""
        self.value, self.good_steps = self.value / 2, 0

    def count(self) -> None:
        """After a step that was taken."""
        self.good_steps += 1
        if self.good_steps == self.GROW_AFTER:
            self.value, self.good_steps = self.value * 2, 0


def rate_at(step: int, total: int, config: TrainConfig) -> float:
    """The learning rate of optimizer step ``step`` (from 0) of ``total``: a linear warm-up, then the schedule.

    A function of the step and nothing else, so it has no state to save.
    """
    warmup = math.ceil(config.warmup_ratio * total)
    peak = learning_rate(config)
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(1, total - warmup)
    match config.schedule:
        case "cosine":
            return peak * 0.5 * (1 + math.cos(math.pi * done))
        case "linear":
            return peak * (1 - done)
        case "constant":
            return peak


def cautions(config: TrainConfig, beta: float | None, completions_per_step: float) -> list[str]:
    """Sentences about settings outside of the range that is known to work."""
    said = []
    low, high = KNOWN_RATE[config.peft.method]
    method = {"none": "training all weights", "lora": "LoRA"}.get(config.peft.method, config.peft.method)
    rate = learning_rate(config)
    if not low <= rate <= high:
        said.append(f"A learning rate of {rate:g} is outside of {low:g} to {high:g}, known to work for {method}.")
    if not KNOWN_COMPLETIONS[0] <= completions_per_step <= KNOWN_COMPLETIONS[1]:
        said.append(
            f"A step of {config.global_batch_size} groups has {completions_per_step:.0f} completions; known to work are"
            f" {KNOWN_COMPLETIONS[0]} to {KNOWN_COMPLETIONS[1]}, as in 32 to 128 pairs."
        )
    if config.loss.name in ("dpo", "sigmoid") and beta is not None and not KNOWN_BETA[0] <= beta <= KNOWN_BETA[1]:
        said.append(f"A beta of {beta:g} is outside of {KNOWN_BETA[0]:g} to {KNOWN_BETA[1]:g}, known to work for DPO.")
    return said
