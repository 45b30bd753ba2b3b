"""How far annotators agree, as numbers: raw agreement, Cohen's κ, Krippendorff's α.

Which of two answers is called the first is arbitrary, and files often put the preferred one there, which would make
agreement look like chance. So every vote enters twice, once from each side: first and second are then equally common,
and the coefficients don't depend on how the file was written.

Written by hand, since libraries have neither the two sides nor an interval from resampled prompts; tests hold them
against evalica and scikit-learn on data that was mirrored beforehand.

Shapes: every vote has a unit (the pair it is about), an annotator and a probability ½, above or below: a tie, the first
answer, the second.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dipole.data.audit.intervals import Floats, Interval, Ints

RESAMPLES = 1000
BINS = 2000


@dataclass(frozen=True, slots=True)
class VotePairs:
    """All pairs of votes of two annotators on one unit: each is a row.

    Args:
        unit: what was judged.
        first: the first annotator.
        second: the other one.
        agree: whether they said the same.
        first_tie: whether the first annotator's vote is a tie.
        second_tie: whether the other's is.
        votes: how many votes the unit has.
    """

    unit: Ints
    first: Ints
    second: Ints
    agree: Floats
    first_tie: Floats
    second_tie: Floats
    votes: Ints


def vote_pairs(units: Ints, annotators: Ints, votes: Floats) -> VotePairs:
    """Sets every vote against every other one on the same unit; the last vote of an annotator on a unit counts."""
    _, last = np.unique(np.stack([units, annotators], axis=1)[::-1], axis=0, return_index=True)
    kept = len(units) - 1 - last
    order = kept[np.lexsort((annotators[kept], units[kept]))]
    units, annotators, said = units[order], annotators[order], np.sign(votes[order] - 0.5)
    _, labels, counts = np.unique(units, return_inverse=True, return_counts=True)
    rows = [np.empty((0, 2), dtype=np.int64)]
    for distance in range(1, int(counts.max(initial=1))):
        left = np.flatnonzero(labels[:-distance] == labels[distance:])
        rows.append(np.stack([left, left + distance], axis=1))
    left, right = np.concatenate(rows).T
    return VotePairs(
        unit=units[left],
        first=annotators[left],
        second=annotators[right],
        agree=(said[left] == said[right]).astype(float),
        first_tie=(said[left] == 0).astype(float),
        second_tie=(said[right] == 0).astype(float),
        votes=counts[labels[left]],
    )


@dataclass(frozen=True, slots=True)
class Agreement:
    """Coefficients with their intervals; a coefficient is ``None`` where agreement by chance is certain."""

    raw: float
    raw_interval: Interval | None
    alpha: float | None
    alpha_interval: Interval | None
    kappa: float | None
    kappa_interval: Interval | None


def agreement(pairs: VotePairs, clusters: Ints, *, seed: int = 0) -> Agreement:
    """Agreement of all annotators, with bootstrap intervals from resampled clusters (prompts).

    Args:
        pairs: see ``vote_pairs``; at least one.
        clusters: (n) the cluster of each row.
        seed: of the resamples.
    """
    _, labels = np.unique(clusters, return_inverse=True)
    # A unit with m votes has m(m−1)/2 rows; in α it weighs as m votes, so a row weighs 2/(m−1).
    weight = 2.0 / (pairs.votes - 1)
    ones = np.ones(len(labels))
    ties = pairs.first_tie + pairs.second_tie
    columns = [ones, pairs.agree, pairs.first_tie, pairs.second_tie, weight, weight * pairs.agree, weight * ties]
    sums = np.stack([np.bincount(labels, weights=column) for column in columns], axis=1)
    total = _coefficients(sums.sum(axis=0)[None, :])[0]
    intervals: list[Interval | None] = [None] * 3
    if len(sums) > 1:
        random = np.random.default_rng(seed)
        if len(sums) > BINS:  # bins of clusters, drawn at random, are as independent and no larger in number
            bins = random.permutation(len(sums)) % BINS
            sums = np.stack([np.bincount(bins, weights=column) for column in sums.T], axis=1)
        drawn = random.multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=RESAMPLES)
        resampled = _coefficients(drawn.astype(np.float64) @ sums)
        intervals = [_quantiles(column) for column in resampled.T]
    values = [None if np.isnan(value) else float(value) for value in total]
    return Agreement(values[0] or 0.0, intervals[0], values[1], intervals[1], values[2], intervals[2])


def _coefficients(sums: Floats) -> Floats:
    """(resamples, 3): raw agreement, α and κ from the seven sums.

    With every vote mirrored, each side has half of what ties leave. κ sets against it the agreement by chance of two
    annotators with their own shares of ties (Cohen 1960; all pairs of annotators pooled), α that of any two votes drawn
    without replacement (Krippendorff 2011, nominal).
    """
    rows, agree, first_ties, second_ties, weighted, weighted_agree, tied = sums.T
    with np.errstate(divide="ignore", invalid="ignore"):
        raw = agree / rows
        one, other = first_ties / rows, second_ties / rows
        by_chance = (1 - one) * (1 - other) / 2 + one * other
        kappa = (raw - by_chance) / (1 - by_chance)
        votes = 2 * weighted  # since mirrored, as are the ties
        side = (votes - tied) / 2
        disagree_by_chance = 1 - (2 * side * (side - 1) + tied * (tied - 1)) / (votes * (votes - 1))
        alpha = 1 - (1 - weighted_agree / weighted) / disagree_by_chance
    return np.stack([raw, alpha, kappa], axis=1)


def _quantiles(values: Floats) -> Interval | None:
    known = values[np.isfinite(values)]
    if len(known) < 0.9 * len(values) or np.ptp(known) == 0:
        return None
    low, high = np.quantile(known, (0.025, 0.975))
    return float(low), float(high)
