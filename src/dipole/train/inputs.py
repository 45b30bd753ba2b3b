"""What a loss is given: a batch's relations and log-probabilities in the objective's own terms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dipole.data.batch import Lists, PackedBatch, Pairs, Relations, Unaries, pack
from dipole.data.tokenize import TokenizedGroup
from dipole.errors import ConfigError
from dipole.objective import Completions, ListIndex, Loss, PairIndex, UnaryIndex
from dipole.objective.check import check

PROVIDED = frozenset({"scores"})
"""Inputs beyond log-probabilities and lengths that a batch has."""

CHUNK = 512  # groups that are checked at a time


def relation_index(relations: Relations) -> PairIndex | UnaryIndex | ListIndex:
    """A batch's relations as a loss takes them."""
    match relations:
        case Pairs():
            return PairIndex(i=relations.chosen, j=relations.rejected, prob=relations.prob)
        case Unaries():
            return UnaryIndex(i=relations.completion, desirable=relations.desirable)
        case Lists():
            return ListIndex(order=relations.order)


def completions_of(batch: PackedBatch, logps: Tensor, ref_logps: Tensor | None) -> Completions:
    """A batch's completions as a loss takes them, from summed log-probabilities (C,)."""
    return Completions(logps=logps, ref_logps=ref_logps, lengths=batch.num_targets, extras={"scores": batch.scores})


def check_trainable(loss: Loss) -> None:
    """Raises a ``ConfigError`` for a loss that the loop can't feed, before any data is read."""
    lacking = [name for name in loss.inputs if name not in PROVIDED]
    reasons = [f"needs {', '.join(lacking)}"] if lacking else []
    if loss.coupling is not None or loss.whole_batch:
        reasons.append("couples all relations of a step")
    if reasons:
        raise ConfigError(
            f"{loss.name} {' and '.join(reasons)}, which `dipole train` doesn't provide yet",
            where="--loss.name",
            remedy="Use another loss; as a function it is there: dipole.preference_loss",
        )


def check_relations(loss: Loss, hyper: Mapping[str, Any], groups: Sequence[TokenizedGroup]) -> None:
    """Checks every label against the loss, once, before the model is loaded.

    Raises:
        ConfigError, DataError: the loss isn't defined for a label, such as a probability, or lacks scores.
    """
    for start in range(0, len(groups), CHUNK):
        batch = pack(groups[start : start + CHUNK])
        zeros = torch.zeros(batch.num_completions)
        check(loss, hyper, completions_of(batch, zeros, zeros), relation_index(batch.relations))
