"""Makes what a run computes of chosen groups not finite, for files of ``write_groups``."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dipole.data.batch import PackedBatch
from dipole.policy.reference import FrozenCopy
from dipole.train import forward

COMPLETIONS = RELATIONS = 3
"""Of each group."""

Patch = Callable[[Any, str, Any], None]
"""As ``setattr``, or a monkeypatch's."""


def poison(ids: Iterable[str], what: str, patch: Patch) -> None:
    """From here on ``what`` of these groups isn't finite.

    Args:
        ids: of the groups.
        what: ``logps``, ``ref_logps``, ``loss``, or ``gradient`` alone.
        patch: puts a function in place of another.
    """
    bad = set(ids)
    policy_tokens, evaluate_batch, token_logps = forward.policy_tokens, forward.evaluate_batch, FrozenCopy.token_logps

    def tokens(run: Any, batch: PackedBatch, reference: Any) -> dict[str, Tensor]:
        values = policy_tokens(run, batch, reference)
        mask = _of(bad, batch, batch.owner // COMPLETIONS)
        if what == "gradient" and values["logps"].requires_grad:
            values["logps"].register_hook(lambda gradient: gradient.masked_fill(mask, math.inf))
        elif what == "logps":
            values["logps"] = values["logps"].masked_fill(mask, math.nan)
        return values

    def reference_tokens(self: FrozenCopy, batch: PackedBatch) -> Tensor:
        return token_logps(self, batch).masked_fill(_of(bad, batch, batch.owner // COMPLETIONS), -math.inf)

    def evaluated(run: Any, groups: Any, batch: PackedBatch, tokens: Any, **options: Any) -> Any:
        found = evaluate_batch(run, groups, batch, tokens, **options)
        losses = found.outcome.losses
        mask = _of(bad, batch, torch.arange(losses.numel()) // RELATIONS)
        return replace(found, outcome=replace(found.outcome, losses=losses.masked_fill(mask, math.nan)))

    if what in ("logps", "gradient"):
        for module in _users("policy_tokens"):
            patch(module, "policy_tokens", tokens)
    elif what == "ref_logps":
        patch(FrozenCopy, "token_logps", reference_tokens)
    else:
        for module in _users("evaluate_batch"):
            patch(module, "evaluate_batch", evaluated)


def _of(bad: set[str], batch: PackedBatch, group: Tensor) -> Tensor:
    is_bad = torch.tensor([id in bad for id in batch.group_ids])
    return is_bad[group]


def _users(name: str) -> list[Any]:
    from dipole.train import finite, loop

    return [module for module in (forward, loop, finite) if hasattr(module, name)]
