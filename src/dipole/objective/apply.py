"""How the training loop calls a loss, whatever the loss is.

For every row: ``check`` the data on the host, then ``evaluate`` each micro-batch. For a row with a coupling, before
that: add up ``batch_sums`` over the micro-batches and ranks of the step, and ``settle`` them into constants.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from dipole.errors import ConfigError
from dipole.objective.completions import Completions, ListIndex, PairIndex, Relations, UnaryIndex
from dipole.objective.row import INPUTS, Loss, Scalars, Settings

RELATION_NAMES = {PairIndex: "pair", UnaryIndex: "unary", ListIndex: "list"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a loss says of one micro-batch.

    Args:
        losses: (R,) one a relation, with graph, unreduced and unweighted. With no relations it is empty and its sum
            still has a graph.
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

    It reads shapes and never values, so it doesn't wait for the device; ``check`` looks at values. Called with the
    reference's log-probabilities as the policy's, it gives the loss that training has to start from.

    Args:
        row: from ``resolve``.
        settings: from ``row.settings``.
        completions: C of them. What the row needs has to be there; what it doesn't need is left alone. Half precision
            is made float32 before any arithmetic.
        relations: R of them, of the kind that the row takes.
        constants: from ``settle``, for a row with a coupling.

    Raises:
        ConfigError: the wrong kind of relation, or something is missing that the row needs.
    """
    require(row, completions, relations)
    missing = [name for name in (row.coupling.constants if row.coupling else ()) if name not in (constants or {})]
    if missing:
        problem = f"{row.name} depends on the whole batch and needs {', '.join(missing)}"
        raise ConfigError(problem, where="loss", remedy="Add up batch_sums over the batch and settle them first.")
    completions = _without_graph_of_the_given(completions.upcast())
    keywords = row.keywords({**settings, **(constants or {})})
    arguments = _gather(completions, relations)
    if isinstance(relations, PairIndex):
        prob = None if relations.prob is None else relations.prob.to(completions.logps.dtype)
        chosen, rejected = arguments
        losses = row.pair_losses(chosen, rejected, prob, keywords)
    else:
        losses = row.formula(*arguments, **keywords)
    with torch.no_grad():
        rewards = row.reward.of(completions, settings)
        logged = row.watch(*arguments, **keywords) if row.watch else {}
    return Outcome(losses=losses, rewards=rewards.detach(), logged=logged)


def _without_graph_of_the_given(completions: Completions) -> Completions:
    """No gradient reaches the reference, nor an input that a loss isn't differentiated by."""
    given = {name: tensor for name, tensor in completions.extras.items() if name in INPUTS}
    detached = {name: tensor.detach() for name, tensor in given.items() if not INPUTS[name].differentiable}
    ref_logps = None if completions.ref_logps is None else completions.ref_logps.detach()
    return replace(completions, ref_logps=ref_logps, extras={**completions.extras, **detached})


def _gather(completions: Completions, relations: Relations) -> tuple[Any, ...]:
    """What a formula is called with, besides its keywords."""
    if isinstance(relations, PairIndex):
        return completions.take(relations.i), completions.take(relations.j)
    if isinstance(relations, UnaryIndex):
        return completions.take(relations.i), relations.desirable
    listed = relations.order >= 0
    ranked = listed
    if relations.num_ranked is not None:
        places = torch.arange(relations.order.shape[1], device=relations.order.device)
        ranked = places < relations.num_ranked[:, None]
    return completions.take(relations.order.clamp(min=0)), listed, ranked


def require(row: Loss, completions: Completions, relations: Relations) -> None:
    """Raises a ``ConfigError`` unless the relations are of the row's kind and everything that it reads is there."""
    kind = RELATION_NAMES[type(relations)]
    if kind != row.relation:
        raise ConfigError(f"{row.name} takes {row.relation} relations, and these are {kind}", where="loss")
    if row.needs_reference and completions.ref_logps is None:
        raise ConfigError(f"{row.name} needs log-probabilities of the reference", where="loss")
    if row.needs_lengths and completions.lengths is None:
        raise ConfigError(f"{row.name} needs the lengths of the completions", where="loss")
    for name in row.inputs:
        if name not in completions.extras:
            item = INPUTS[name]
            problem = f"{row.name} needs '{name}' {item.shape} of the {item.maker}: {item.meaning}"
            raise ConfigError(problem, where="loss")


def initial_state(row: Loss, device: torch.device | str | None = None) -> Scalars:
    """The moving state at step 0, float32 scalars; empty for most losses. It belongs to the checkpoint."""
    if row.coupling is None:
        return {}
    return {name: torch.tensor(value, device=device) for name, value in row.coupling.initial.items()}


@torch.no_grad()
def batch_sums(row: Loss, settings: Settings, completions: Completions, relations: Relations) -> Scalars:
    """What this micro-batch adds to the sums that the row's coupling needs; empty for a row without one.

    Scalars, to be added over all micro-batches and ranks of the optimizer step. A rank without relations adds zeros.
    """
    require(row, completions, relations)
    return row.coupling.sums(completions.upcast(), relations, settings) if row.coupling else {}


@torch.no_grad()
def settle(
    row: Loss, settings: Settings, sums: Mapping[str, Tensor], state: Mapping[str, Tensor]
) -> tuple[Scalars, Scalars]:
    """From the sums over the whole batch and the moving state: the constants for ``evaluate``, and the next state."""
    return row.coupling.settle(sums, state, settings) if row.coupling else ({}, {})
