"""Shares of votes, smoothed; and how often each annotator says what most of the others say."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from scipy import special

from dipole.data.audit.intervals import Floats, Ints, wilson_interval
from dipole.feedback.aggregate.result import Aggregation, Annotator, PairLabels
from dipole.feedback.aggregate.votes import UNNAMED, Votes, summed, votes_of
from dipole.group import Group

SMOOTHING = 1.0


def majority(groups: Sequence[Group], *, smoothing: float = SMOOTHING) -> Aggregation:
    """P(i ≻ j) = (Σ w v + κ) / (Σ w + 2κ), v being 1, ½ or 0: the share of people who prefer i.

    The interval is that of the Beta posterior whose mean this is (Jeffreys' where κ < ½). Reliability is agreement with
    what most of the others say of a pair.

    Args:
        groups: with their judgments.
        smoothing: κ, votes for either side that everyone starts with; 0 gives bare shares.
    """
    votes = votes_of(groups)
    everything, wins = votes.totals()
    p = (wins + smoothing) / (everything + 2 * smoothing)
    prior = max(smoothing, 0.5)
    low, high = special.betaincinv(
        wins + prior, everything - wins + prior, np.broadcast_to([[0.025], [0.975]], (2, len(p)))
    )
    labels = PairLabels(
        votes.group, votes.first, votes.second, p, np.minimum(low, p), np.maximum(high, p), num_votes(votes)
    )
    return Aggregation(method="majority", pairs=labels, annotators=by_agreement(votes))


def num_votes(votes: Votes) -> Ints:
    """(U) votes on each pair, those of one named annotator counting as one."""
    return np.bincount(votes.one_each()[0], minlength=len(votes.group))


def by_agreement(votes: Votes) -> tuple[Annotator, ...]:
    """Annotators with their agreement with the others, and how often they take the side shown first."""
    agreed, compared = _with_the_others(votes)
    taken, decided = _first_shown(votes)
    cast, ties = votes.by_annotator()
    return busiest_first(
        Annotator(
            name=name,
            num_votes=int(cast[k]),
            reliability=float(agreed[k] / compared[k]) if compared[k] else None,
            reliability_interval=wilson_interval(agreed[k], compared[k]) if compared[k] else None,
            side_bias=float(taken[k] / decided[k]) if decided[k] else None,
            side_bias_interval=wilson_interval(taken[k], decided[k]) if decided[k] else None,
            tie_share=float(ties[k]),
            identified=bool(compared[k]),
        )
        for k, name in enumerate(votes.annotators)
    )


def busiest_first(annotators: Iterable[Annotator]) -> tuple[Annotator, ...]:
    """By the number of votes, then by name."""
    return tuple(sorted(annotators, key=lambda item: (-item.num_votes, item.name)))


def _with_the_others(votes: Votes) -> tuple[Floats, Floats]:
    """(A) how much of each annotator's decided votes agrees with most of the others', and how much could."""
    everything, wins = votes.totals()
    leaning = 2 * wins - everything
    own = votes.weight * (2 * votes.p - 1)
    same = np.unique(votes.pair * len(votes.annotators) + votes.annotator, return_inverse=True)[1]
    named = np.array([name != UNNAMED for name in votes.annotators])[votes.annotator]
    mine = np.where(named, summed(own, same, len(same))[same], own)
    others = leaning[votes.pair] - mine
    # Rounding: sums of the same weights in another order differ in the last bits.
    clear = (votes.decided > 0) & (np.abs(others) > 1e-9)
    share = votes.decided * clear
    agrees = share * (np.sign(others) == np.sign(own))
    count = len(votes.annotators)
    return (
        summed(agrees, votes.annotator, count),
        summed(share, votes.annotator, count),
    )


def _first_shown(votes: Votes) -> tuple[Floats, Floats]:
    """(A) how much of each annotator's decided votes took the side shown first, and how much of them has a side."""
    share = votes.decided * (votes.side != 0)
    took = share * (np.sign(2 * votes.p - 1) == votes.side)
    count = len(votes.annotators)
    return (
        summed(took, votes.annotator, count),
        summed(share, votes.annotator, count),
    )
