"""Which numbers of a step aren't finite, and which groups they came from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from dipole.data.batch import pack
from dipole.data.tokenize import TokenizedGroup
from dipole.policy.logprobs import sum_by_completion
from dipole.train.forward import evaluate_batch, joined_values, parts_of
from dipole.train.setup import Run


def not_finite(values: Mapping[str, float]) -> list[str]:
    """The names of what is infinite or not a number."""
    return [name for name, value in values.items() if not math.isfinite(value)]


def marked(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row for a file: what isn't finite is ``None``, since JSON has no word for it, and ``not_finite`` names it."""
    wrong = not_finite({name: value for name, value in row.items() if isinstance(value, float)})
    return {**row, **dict.fromkeys(wrong), "not_finite": wrong} if wrong else dict(row)


@torch.no_grad()
def offending_groups(run: Run, groups: Sequence[TokenizedGroup]) -> list[str]:
    """Ids of the groups that made a step's loss or gradient not finite.

    The step is computed once more, so that a step without a fault needn't look at every value. All processes have to
    take part.

    Args:
        run: as it was before the step.
        groups: of the step.

    Returns:
        The groups whose log-probabilities aren't finite, under policy or reference; if there are none, those whose loss
        isn't; else all of them, since the gradient is of the step.
    """
    parts = parts_of(run, groups)
    ordered = [group for part in parts for group in part]
    batch = pack(ordered).to(run.accelerator.device)
    tokens = joined_values(run, parts)
    sums = torch.stack([sum_by_completion(values.double(), batch) for values in tokens.values()])
    per_completion = sums.isfinite().all(0).tolist()
    owners = [group.id for group in ordered for _ in group.completion_ids]
    if not all(per_completion):
        return _where_not(per_completion, owners)
    losses = evaluate_batch(run, ordered, batch, tokens).outcome.losses
    owners = [group.id for group in ordered for _ in group.relations]
    return _where_not(losses.isfinite().tolist(), owners) or [group.id for group in ordered]


def _where_not(fine: Sequence[bool], owners: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(owner for owner, is_fine in zip(owners, fine, strict=True) if not is_fine))
