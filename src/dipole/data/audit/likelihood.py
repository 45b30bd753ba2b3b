"""What a reference model thinks of the pairs: how likely it finds their answers, from log-probabilities."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from dipole.data.audit.columns import text_key
from dipole.data.audit.finding import Finding, excerpt, first, severity
from dipole.data.audit.intervals import share
from dipole.group import Group

ABSURD = 4.0
"""Robust standard deviations below the median at which a pair is absurd to the reference."""

ABSURD_LIMITS = (0.02, 0.10)
"""Share of pairs that are absurd."""


class ScoredPair(NamedTuple):
    """A pair and what the reference makes of it.

    Args:
        group: that it is of.
        winner: position of the preferred completion.
        loser: of the other.
        chosen: log-probability of a token of the preferred completion, in nats, on average.
        rejected: the same of the other.
    """

    group: Group
    winner: int
    loser: int
    chosen: float
    rejected: float


def check_likelihood(pairs: Sequence[ScoredPair]) -> Iterator[Finding]:
    """How often the reference finds the rejected answer more likely, and pairs whose preferred answer it finds absurd.

    Absurd is relative to the data: the gap between the two answers, in nats a token, lies more than ``ABSURD`` robust
    standard deviations (1.48 times the median distance from the median) below the median.
    """
    if not pairs:
        return
    gaps = np.array([pair.chosen - pair.rejected for pair in pairs])
    prompts = np.array([text_key(pair.group.prompt) for pair in pairs])
    clusters = prompts if len(np.unique(prompts)) > 1 else np.arange(len(pairs))
    value, interval = share(gaps < 0, clusters)
    yield Finding(
        name="rejected_likelier",
        severity="info",
        message=f"to the reference, a token of the rejected answer is likelier in {value:.0%} of {len(pairs)} pairs",
        value=value,
        interval=interval,
    )
    middle = float(np.median(gaps))
    spread = 1.4826 * float(np.median(np.abs(gaps - middle)))
    absurd = gaps < middle - ABSURD * spread if spread > 0 else np.zeros(len(gaps), dtype=bool)
    value, interval = share(absurd, clusters)
    order = [n for n in np.argsort(gaps, kind="stable").tolist() if absurd[n]]
    yield Finding(
        name="absurd_pairs",
        severity=severity(interval[0], ABSURD_LIMITS),
        message=f"to the reference, the preferred answer is absurd beside the other in {len(order)} of "
        f"{len(pairs)} pairs",
        value=value,
        interval=interval,
        examples=first(
            f"{pairs[n].group.id}: {excerpt(pairs[n].group.completions[pairs[n].winner].text)} preferred to "
            f"{excerpt(pairs[n].group.completions[pairs[n].loser].text)} ({gaps[n]:+.1f} nats a token)"
            for n in order
        ),
        remedy="Read them: swapped labels, broken text or another language look like this.",
    )
