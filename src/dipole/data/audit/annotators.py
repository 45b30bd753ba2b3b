"""The people (and judges) behind the judgments: how far they agree, and who stands apart from the rest."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from dipole.data.audit.agreement import VotePairs, agreement, vote_pairs
from dipole.data.audit.columns import Columns
from dipole.data.audit.consistency import pair_of_vote
from dipole.data.audit.finding import Bar, BarChart, Finding, Result, first, severity
from dipole.data.audit.intervals import Floats, Interval, Ints, cluster_means, wilson_interval

ALPHA_LIMITS = (0.2, 0.05)
"""Krippendorff's α below the first of which people hardly agree, and below the second might as well toss coins."""

FAMILY = 0.005
"""Chance that any annotator is named though none differs from the rest, over all annotators of a file."""

GAP_LIMITS = (0.0, 0.15)
"""By how much an annotator agrees less than the rest do, beyond chance."""

BIAS_LIMITS = (0.10, 0.25)
"""How far from ½ the share of answers taken because they stand first lies, beyond chance."""

HASTE = 1 / 3
"""Share of the others' median time below which an annotator can hardly have read the answers."""

MIN_JUDGMENTS = 20

MOST_ANNOTATORS = 200
"""How many are looked at one by one, those with the most judgments."""


def check_annotators(columns: Columns) -> Iterator[Result]:
    """Agreement, and each annotator's agreement with the rest, bias and speed."""
    if len(columns.annotators) < 2:
        return
    known = np.flatnonzero(columns.annotator >= 0)
    units, votes = pair_of_vote(columns)
    pairs = vote_pairs(units[known], columns.annotator[known], votes[known])
    if len(pairs.agree):
        cluster_of = dict(zip(units[known].tolist(), columns.cluster[columns.group[columns.left[known]]], strict=True))
        clusters = np.array([cluster_of[unit] for unit in pairs.unit.tolist()])
        yield _overall(pairs, clusters)
        yield from _apart(columns, pairs, clusters)
    else:
        yield Finding(
            name="agreement",
            severity="info",
            message="no pair was judged by two annotators, so how far they agree can't be told",
            remedy="Have a tenth of the pairs judged twice.",
        )
    yield from _positions(columns, known)
    yield from _speed(columns, known)


def _overall(pairs: VotePairs, clusters: Ints) -> Finding:
    found = agreement(pairs, clusters)
    value = {
        name: number
        for name, number in (("alpha", found.alpha), ("kappa", found.kappa), ("raw", found.raw))
        if number is not None
    }
    parts = [f"{found.raw:.0%} of the votes of two annotators agree{_within(found.raw_interval)}"]
    for name, number, interval in (
        ("Krippendorff's α", found.alpha, found.alpha_interval),
        ("Cohen's κ", found.kappa, found.kappa_interval),
    ):
        if number is not None:
            parts.append(f"{name} {number:.2f}{_within(interval)}")
    best = found.alpha_interval[1] if found.alpha_interval else 1.0
    return Finding(
        name="agreement",
        severity="severe" if best < ALPHA_LIMITS[1] else "warning" if best < ALPHA_LIMITS[0] else "info",
        message=", ".join(parts),
        value=value,
        interval=found.alpha_interval,
        remedy="Clarify the guideline with examples, and train on soft labels: no model is clearer than its labels.",
    )


def _within(interval: Interval | None) -> str:
    return f" ({interval[0]:.2f} to {interval[1]:.2f})" if interval else ""


class _Gap(NamedTuple):
    """How much less an annotator agrees with the rest than those agree among themselves.

    Args:
        low: the least that the gap is, beyond the chance of ``FAMILY``.
        gap: the estimate.
        high: the most that it is.
        text: the annotator in words.
    """

    low: float
    gap: float
    high: float
    text: str


def _apart(columns: Columns, pairs: VotePairs, clusters: Ints) -> Iterator[Result]:
    """Annotators who agree with the rest less than the rest agree among themselves.

    The reach of each comparison is that of ``FAMILY`` split over all annotators (Bonferroni), its variance that of the
    mean over prompts.
    """
    from scipy.special import ndtri

    everyone, counts = np.unique(np.concatenate([pairs.first, pairs.second]), return_counts=True)
    busiest = np.argsort(-counts, kind="stable")[:MOST_ANNOTATORS]
    people = everyone[busiest[counts[busiest] >= MIN_JUDGMENTS]].tolist()
    if not people:
        return
    reach = -float(ndtri(FAMILY / len(people)))
    gaps, bars = [], []
    for person in people:
        own = (pairs.first == person) | (pairs.second == person)
        value, error = _mean(pairs.agree[own], clusters[own])
        name, around = columns.annotators[person], 1.96 * error
        bars.append(Bar(label=name, value=value, low=max(0.0, value - around), high=min(1.0, value + around)))
        if not own.all():
            rest, rest_error = _mean(pairs.agree[~own], clusters[~own])
            gap, margin = rest - value, reach * float(np.hypot(error, rest_error))
            gaps.append(_Gap(gap - margin, gap, gap + margin, f"{name}: {_compared(value, rest)}"))
    yield BarChart(
        name="annotators",
        title="Agreement of each annotator with the others",
        unit="share of votes on the same pair",
        bars=tuple(sorted(bars, key=lambda bar: bar.value)[:20]),
        level=float(pairs.agree.mean()),
    )
    if gaps:
        yield _farthest(sorted(gaps, reverse=True))


def _farthest(gaps: list[_Gap]) -> Finding:
    """The annotators who stand apart; gaps come with the widest first."""
    apart = [gap for gap in gaps if gap.low > GAP_LIMITS[0]]
    widest = gaps[0]
    return Finding(
        name="annotator_apart",
        severity="info" if not apart else severity(widest.low, GAP_LIMITS),
        message=f"{len(apart) or 'none'} of {len(gaps)} annotators agree with the others clearly less than those do"
        f" among themselves; the widest gap is {100 * widest.gap:.0f} points",
        value=widest.gap,
        interval=(widest.low, widest.high),
        examples=first(gap.text for gap in apart),
        remedy="Look at what they judged otherwise, talk to them, and weigh or leave out their judgments.",
    )


def _compared(value: float, rest: float) -> str:
    """If labels are flipped at a rate r, agreement falls from a to a(1 − r) + (1 − a)r; so the gap says what r is."""
    flipped = min(1.0, (rest - value) / (2 * rest - 1)) if rest > 0.5 else 1.0
    return f"agrees in {value:.0%}, the others in {rest:.0%} (as if {flipped:.0%} of the labels were flipped)"


def _mean(values: Floats, clusters: Ints) -> tuple[float, float]:
    """The mean over clusters, and its standard error."""
    means = cluster_means(values, clusters)
    spread = float(means.std(ddof=1)) if len(means) > 1 else 0.5
    return float(means.mean()), max(spread, 0.5 / len(means) ** 0.5) / len(means) ** 0.5


def _positions(columns: Columns, known: Ints) -> Iterator[Finding]:
    """How often each annotator takes the answer that stands first in its group.

    Where that is so in nearly all, the file puts the preferred answer first, and its order says nothing.
    """
    decided = known[columns.vote[known] != 0.5]
    takes_first = (columns.vote[decided] > 0.5) == (columns.left[decided] < columns.right[decided])
    if not len(decided) or takes_first.mean() > 0.98:
        return
    biased = []
    for person, own in _by_annotator(columns, decided):
        means = cluster_means(takes_first[own], columns.cluster[columns.group[columns.left[decided[own]]]])
        low, high = wilson_interval(float(means.sum()), len(means), z=3.9)
        away = max(low - 0.5, 0.5 - high)
        if away > BIAS_LIMITS[0]:
            name = columns.annotators[person]
            biased.append((away, f"{name}: takes the first answer in {means.mean():.0%} of {len(own)} judgments"))
    biased.sort(reverse=True)
    yield Finding(
        name="position_bias",
        severity="info" if not biased else "severe" if biased[0][0] > BIAS_LIMITS[1] else "warning",
        message=f"the answer that stands first is preferred in {takes_first.mean():.0%} of the judgments"
        + (f", by {len(biased)} annotators far more or less often than half of the time" if biased else ""),
        value=float(takes_first.mean()),
        interval=wilson_interval(float(takes_first.sum()), len(takes_first)),
        examples=first(text for _, text in biased),
        remedy="Show answers in random order, and have those annotators' pairs judged again.",
    )


def _speed(columns: Columns, known: Ints) -> Iterator[Finding]:
    """Median seconds a judgment of each annotator, where ``meta.seconds`` says them."""
    timed = known[np.isfinite(columns.seconds[known])]
    if len(timed) < MIN_JUDGMENTS:
        return
    seconds = columns.seconds[timed]
    medians = {person: float(np.median(seconds[own])) for person, own in _by_annotator(columns, timed)}
    usual = float(np.median(list(medians.values()))) if medians else float(np.median(seconds))
    hasty = sorted((median, person) for person, median in medians.items() if median < HASTE * usual)
    yield Finding(
        name="annotator_speed",
        severity="warning" if hasty else "info",
        message=f"a judgment takes {usual:.0f} seconds in the median of the annotators"
        + (f"; {len(hasty)} take less than a third of that" if hasty else ""),
        value=usual,
        examples=first(f"{columns.annotators[person]}: {median:.1f} seconds" for median, person in hasty),
        remedy="Compare their judgments with those of others before using them.",
    )


def _by_annotator(columns: Columns, votes: Ints) -> Iterator[tuple[int, Ints]]:
    """Each annotator of at least ``MIN_JUDGMENTS`` of the votes, with the places of theirs among them."""
    people = columns.annotator[votes]
    order = np.argsort(people, kind="stable")
    for own in np.split(order, np.flatnonzero(np.diff(people[order])) + 1):
        if len(own) >= MIN_JUDGMENTS:
            yield int(people[own[0]]), own
