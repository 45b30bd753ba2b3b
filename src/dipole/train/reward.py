"""Training a reward model: what differs from training a policy. Loop, checkpoints and signals are the same."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dipole.config import TrainConfig
from dipole.errors import ConfigError
from dipole.objective import Loss, resolve
from dipole.objective.constraints import Constraint
from dipole.objective.reward_model import resolve_reward_loss
from dipole.policy.adapters import add_adapter
from dipole.policy.load import fingerprint, load_tokenizer
from dipole.policy.locate import allowed_by
from dipole.policy.reward import RewardModel, load_scorer, separate_padding

MERGEABLE = ("none", "lora", "dora", "rslora", "ia3")
"""Adapters whose update can become part of the weights, as a saved reward model has it."""


def loss_of(config: TrainConfig) -> Loss:
    """The row of the configured loss, of a policy or of a reward model.

    Raises:
        ConfigError: the objective has no loss of that name.
    """
    resolved = resolve_reward_loss if config.objective == "reward_model" else resolve
    return resolved(config.loss.name)


def check_reward_options(config: TrainConfig, constraints: Sequence[Constraint]) -> None:
    """Raises a ``ConfigError`` for options that mean nothing for a reward model, or aren't done for it."""
    problems = {
        "constraints": ("constraints are functions of log-probabilities, and a score is none", bool(constraints)),
        "--peft.method": ("it can't become part of the saved weights", config.peft.method not in MERGEABLE),
        "--peft.start_from": ("that adapter belongs to a language model", config.peft.start_from is not None),
        "--peft.quantization": ("an update isn't added to weights of 4 bits", config.peft.quantization != "none"),
        "--sharding": ("reward models aren't divided over processes", config.sharding != "none"),
    }
    for where, (problem, holds) in problems.items():
        if holds:
            raise ConfigError(problem, where=where, remedy="Leave it out for --objective reward_model")


def load_reward_policy(config: TrainConfig, device: torch.device) -> tuple[RewardModel, str]:
    """The reward model in float32 on its device, and the fingerprint of what it starts from, its new head included."""
    allowed = allowed_by(config)
    pad_id = separate_padding(load_tokenizer(config.model, allowed))
    model = load_scorer(config.model, pad_id=pad_id, seed=config.seed, allowed=allowed)
    weights = fingerprint(model)
    return RewardModel(add_adapter(model, config.peft, seed=config.seed)).to(device).eval(), weights
