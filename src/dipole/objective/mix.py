"""Weighted sums of losses, as a row like any other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dipole.errors import ConfigError
from dipole.objective.completions import Completions
from dipole.objective.row import HyperParameter, Loss, Settings

WEIGHTS = "weights"


def mix(name: str, parts: Sequence[tuple[float, Loss]], *, when: str, source: str = "", traps: str = "") -> Loss:
    """The row of Σ w_k loss_k.

    The weights are its hyper-parameter ``weights``. The parts' hyper-parameters are its own; parts that share a name
    share the value, whose default is the first part's, and which has to be in the range of each. It logs the first
    part's reward.

    Args:
        name: of the mix.
        parts: weights and rows of pairwise losses; at most one of them may depend on the rest of the batch.
        when: when to use it.
        source: who published it.
        traps: what goes wrong.

    Raises:
        ConfigError: no parts, parts that aren't pairwise or have weights of their own, or more than one that depends
            on the rest of the batch.
    """
    rows = [row for _, row in parts]
    where = f"mix {name}"
    if not rows:
        raise ConfigError("it has no parts", where=where)
    for row in rows:
        if row.relation != "pair" or row.whole_batch:
            raise ConfigError(f"{row.name} can't be mixed: it isn't a loss of single pairs", where=where)
        if WEIGHTS in row.all_hyper:
            raise ConfigError(f"{row.name} can't be mixed: it has weights of its own", where=where)
    coupled = [row for row in rows if row.coupling]
    if len(coupled) > 1:
        names = " and ".join(row.name for row in coupled)
        raise ConfigError(f"{names} depend on the rest of the batch, and a mix may have one such part", where=where)

    def formula(
        chosen: Completions,
        rejected: Completions,
        *,
        prob: Tensor | None = None,
        weights: tuple[float, ...],
        **given: Any,
    ) -> Tensor:
        total = torch.zeros_like(chosen.logps)
        for weight, row in zip(weights, rows, strict=True):
            total = total + weight * row.pair_losses(chosen, rejected, prob, row.keywords(given))
        return total

    def check_parts(completions: Completions, relations: Any, settings: Settings) -> None:
        for row in rows:
            row.settings(**{name: settings[name] for name in row.all_hyper})  # a shared value has to suit every part
            if row.check_values is not None:
                row.check_values(completions, relations, settings)

    def watch_parts(chosen: Completions, rejected: Completions, **given: Any) -> dict[str, Tensor]:
        seen: dict[str, Tensor] = {}
        for row in rows:
            seen |= row.watch(chosen, rejected, **row.keywords(given)) if row.watch else {}
        return seen

    refusals = [f"{row.name}: {row.why_not_soft}" for row in rows if row.soft == "refused"]
    formula.__doc__ = f"{' + '.join(f'{weight:g} · {row.name}' for weight, row in parts)}.\n\n{source}"
    weights = HyperParameter(WEIGHTS, tuple(weight for weight, _ in parts), "of the parts", low_open=False)
    first_named = {parameter.name: parameter for row in reversed(rows) for parameter in row.hyper}
    return Loss(
        name=name,
        formula=formula,
        hyper=(*first_named.values(), weights),
        reward=rows[0].reward,
        needs_reference=any(row.needs_reference for row in rows),
        tokens=rows[0].tokens,
        needs_lengths=any(row.needs_lengths for row in rows),
        inputs=tuple(dict.fromkeys(item for row in rows for item in row.inputs)),
        soft="refused" if refusals else "own",
        why_not_soft="; ".join(refusals),
        coupling=coupled[0].coupling if coupled else None,
        check_values=check_parts,
        watch=watch_parts if any(row.watch for row in rows) else None,
        when=when,
        traps=traps,
    )
