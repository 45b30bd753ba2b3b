"""How the training loop calls a loss: ``evaluate`` for a micro-batch, whatever the loss is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dipole.errors import ConfigError
from dipole.objective.completions import Completions, ListIndex, PairIndex, Relations, UnaryIndex
from dipole.objective.row import Loss, Settings

RELATION_NAMES = {PairIndex: "pair", UnaryIndex: "unary", ListIndex: "list"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a loss says of one micro-batch.

    Args:
        losses: (R,) one a relation, with graph, unreduced and unweighted.
        rewards: (C,) one a completion, detached, as the loss's row defines them.
        logged: further (R,) tensors worth logging, detached, by name.
    """

    losses: Tensor
    rewards: Tensor
    logged: Mapping[str, Tensor] = field(default_factory=dict)


def evaluate(
    row: Loss,
    settings: Settings,
    completions: Completions,
    relations: Relations,
    constants: Mapping[str, Tensor] | None = None,
) -> Outcome:
    """The loss of every relation and the reward of every completion.

    It reads shapes and never values, so it doesn't wait for the device; ``check`` looks at values.

    Args:
        row: from ``resolve``.
        settings: from ``row.settings``.
        completions: C of them. What the row needs has to be there; what it doesn't need is left alone.
        relations: R of them, of the kind that the row takes.
        constants: from ``settle``, for a row with a coupling.

    Raises:
        ConfigError: the wrong kind of relation, or something is missing that the row needs.
    """
    if RELATION_NAMES[type(relations)] != row.relation:
        raise ConfigError(f"{row.name} takes {row.relation} relations, not {RELATION_NAMES[type(relations)]}")
    completions = completions.upcast()
    keywords = {**settings, **(constants or {})}
    assert isinstance(relations, PairIndex)
    losses = _pair_losses(row, keywords, completions, relations)
    with torch.no_grad():
        rewards = row.reward.of(completions, settings)
    return Outcome(losses=losses, rewards=rewards)


def _pair_losses(row: Loss, keywords: Settings, completions: Completions, pairs: PairIndex) -> Tensor:
    chosen, rejected = completions.take(pairs.i), completions.take(pairs.j)
    losses = row.formula(chosen, rejected, **keywords)
    if pairs.prob is None:
        return losses
    return pairs.prob * losses + (1 - pairs.prob) * row.formula(rejected, chosen, **keywords)
