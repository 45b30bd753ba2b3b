"""Whether kinds of preference, annotators and sources are balanced."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from dipole.data.audit.columns import Columns
from dipole.data.audit.finding import Bar, BarChart, Finding, Result, first, severity
from dipole.data.audit.intervals import Ints, share, wilson_interval

CATEGORY_LIMITS = (0.75, 0.95)
"""Share of the largest category, where there are several."""

ANNOTATOR_LIMITS = (0.60, 0.90)
"""Share of all judgments that one of at least three annotators gave."""

SOURCE_LIMITS = (0.75, 0.90)
"""Share of pairs with others that one source's answers win."""

MIN_WINS = 30


def check_balance(columns: Columns) -> Iterator[Result]:
    """Categories, annotators, source models."""
    yield from _categories(columns)
    yield from _annotators(columns)
    yield from _sources(columns)


def shares_chart(name: str, title: str, unit: str, names: Sequence[str], counts: Ints, total: int) -> BarChart:
    """The largest shares, each with Wilson's interval."""
    order = np.argsort(-counts, kind="stable")[:15]
    bars = []
    for place in order.tolist():
        low, high = wilson_interval(int(counts[place]), total)
        bars.append(Bar(label=names[place], value=float(counts[place] / total), low=low, high=high))
    return BarChart(name=name, title=title, unit=unit, bars=tuple(bars))


def _categories(columns: Columns) -> Iterator[Result]:
    known = columns.category >= 0
    if len(columns.categories) == 0:
        yield Finding(
            name="categories",
            severity="info",
            message="no group has a category (meta.category), so kinds of preference are told by topic alone",
        )
        return
    counts = np.bincount(columns.category[known], minlength=len(columns.categories))
    largest = int(np.argmax(counts))
    interval = wilson_interval(int(counts[largest]), int(counts.sum()))
    rare = np.argsort(counts, kind="stable")
    yield Finding(
        name="categories",
        severity="info" if len(columns.categories) < 2 else severity(interval[0], CATEGORY_LIMITS),
        message=f"{len(columns.categories)} categories, the largest ({columns.categories[largest]}) with "
        f"{counts[largest] / counts.sum():.0%} of the groups"
        + (f"; {int((~known).sum())} groups have none" if not known.all() else ""),
        value=float(counts[largest] / counts.sum()),
        interval=interval,
        examples=first(f"{columns.categories[n]}: {counts[n]} groups, the fewest" for n in rare[:1].tolist())
        if len(columns.categories) > 1
        else (),
        remedy="Collect more of the other kinds, or draw fewer of the largest.",
    )
    yield shares_chart(
        "categories", "Kinds of preference", "share of groups", columns.categories, counts, int(counts.sum())
    )


def _annotators(columns: Columns) -> Iterator[Result]:
    known = columns.annotator[columns.annotator >= 0]
    if not len(known):
        return
    counts = np.bincount(known, minlength=len(columns.annotators))
    order = np.argsort(-counts, kind="stable")
    value = float(counts[order[0]] / len(known))
    interval = wilson_interval(int(counts[order[0]]), len(known))
    yield Finding(
        name="annotator_share",
        severity=severity(interval[0], ANNOTATOR_LIMITS) if len(counts) >= 3 else "info",
        message=f"{len(counts)} annotators; {columns.annotators[order[0]]} gave {value:.0%} of the judgments",
        value=value,
        interval=interval,
        examples=first(f"{columns.annotators[n]}: {counts[n]} judgments" for n in order.tolist()),
        remedy="Share the work more evenly, or weigh judgments by annotator.",
    )


def _sources(columns: Columns) -> Iterator[Result]:
    """Each source's share of the answers, and how often its answers win against those of other sources."""
    known = columns.source >= 0
    if len(columns.sources) < 2:
        return
    counts = np.bincount(columns.source[known], minlength=len(columns.sources))
    decided = np.flatnonzero(columns.p > 0.5)
    winner, loser = columns.source[columns.winner[decided]], columns.source[columns.loser[decided]]
    groups = columns.group[columns.winner[decided]]
    mixed = (winner >= 0) & (loser >= 0) & (winner != loser)
    best: tuple[float, float, tuple[float, float], int] | None = None
    bars = []
    for source, name in enumerate(columns.sources[:100]):
        own = mixed & ((winner == source) | (loser == source))
        if own.sum() >= MIN_WINS:
            value, interval = share(winner[own] == source, columns.cluster[groups[own]])
            bars.append(Bar(label=name, value=value, low=interval[0], high=interval[1]))
            if best is None or interval[0] > best[0]:
                best = (interval[0], value, interval, source)
    yield shares_chart(
        "source_shares", "Who wrote the answers", "share of answers", columns.sources, counts, int(counts.sum())
    )
    largest = int(np.argmax(counts))
    most = counts[largest] / counts.sum()
    said = f"{len(columns.sources)} sources, most answers ({most:.0%}) by {columns.sources[largest]}"
    if best is None:
        yield Finding(name="sources", severity="info", message=said, value=float(most))
        return
    yield Finding(
        name="sources",
        severity=severity(best[0], SOURCE_LIMITS),
        message=f"{said}; those of {columns.sources[best[3]]} win {best[1]:.0%} of their pairs with others",
        value=best[1],
        interval=best[2],
        examples=first(f"{bar.label}: wins {bar.value:.0%}" for bar in sorted(bars, key=lambda bar: -bar.value)),
        remedy="Compare answers of one source too, or the habits of the one that wins are what is learned.",
    )
    yield BarChart(
        name="source_wins",
        title="How often each source's answers win against those of others",
        unit="share of pairs",
        bars=tuple(sorted(bars, key=lambda bar: -bar.value)[:15]),
        level=0.5,
    )
