"""Judgments as ballots: ranks of items, best first, those of one rank tied; and the choices that ballots are made of.

A ballot is a row of choices among what is left. A choice may be of several at once, which is a tie: with strengths
α = exp(θ), the subset C is chosen with a weight of δ_|C| (Π_C α)^(1/|C|) (Turner, van Etten, Firth and Kosmidis 2020,
"Modelling rankings in R: the PlackettLuce package", eq. 3). On two items that is Davidson's model of ties (1970);
without ties it is Bradley–Terry and Plackett–Luce.

Shapes: M items; parameters are M strengths, a side bias, and one log δ for each size of tie from 2 on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, combinations
from math import comb
from typing import NamedTuple

import numpy as np
from scipy import sparse

from dipole.errors import DataError
from dipole.feedback.aggregate.choice import Choices, Sparse
from dipole.feedback.aggregate.votes import UNNAMED, Votes, acts_of
from dipole.group import Comparison, Group, Judgment, Ranking, Rating

MOST_SUBSETS = 2000
"""Of one choice. Ten items with ties of up to four have 385."""


class Ballot(NamedTuple):
    """One act of one annotator.

    Args:
        ranks: items, best first; those of one rank are tied.
        weight: how much it counts.
        cluster: ballots of one cluster go together, such as those of one annotator on one group.
        shown_first: the item that stood first, of two; ``None`` where nobody knows.
    """

    ranks: tuple[tuple[int, ...], ...]
    weight: float
    cluster: int
    shown_first: int | None = None


def from_votes(votes: Votes, left: Sequence[int], right: Sequence[int], clusters: Sequence[int]) -> Iterator[Ballot]:
    """Two items each; a vote that is partly a tie gives two ballots.

    Args:
        votes: V of them.
        left: (V) item of the pair's first completion.
        right: (V) of its second.
        clusters: (V)
    """
    columns = (votes.p.tolist(), votes.weight.tolist(), votes.side.tolist())
    for i, j, cluster, p, weight, side in zip(left, right, clusters, *columns, strict=True):
        yield from _compared(i, j, p, weight, cluster, side)


def _compared(i: int, j: int, p: float, weight: float, cluster: int, side: int) -> Iterator[Ballot]:
    decided, shown = abs(2 * p - 1), None if side == 0 else i if side > 0 else j
    if decided > 0:
        yield Ballot(((i,), (j,)) if p > 0.5 else ((j,), (i,)), weight * decided, cluster, shown)
    if decided < 1:
        yield Ballot(((i, j),), weight * (1 - decided), cluster, shown)


def from_rankings(groups: Sequence[Group], offsets: Sequence[int]) -> Iterator[Ballot]:
    """Rankings whole, comparisons as rankings of two, and the ratings of those who gave neither, equal ones tied.

    Args:
        groups: with their judgments.
        offsets: item of the first completion of each group.
    """
    cluster = 0
    for group, offset in zip(groups, offsets, strict=True):
        clusters: dict[str, int] = {}
        compared = {judged.annotator for judged in group.judgments if isinstance(judged, Comparison | Ranking)}
        for judged in group.judgments:
            if judged.weight == 0:
                continue
            cluster += 1
            own = cluster if judged.annotator is None else clusters.setdefault(judged.annotator, cluster)
            yield from _explicit(judged, offset, own, group.id)
        for annotator, ranks in _rated(group, offset).items():
            if annotator not in compared:
                cluster += 1
                yield Ballot(ranks, 1.0, clusters.get(annotator or UNNAMED, cluster))


def _explicit(judged: Judgment, offset: int, cluster: int, id: str) -> Iterator[Ballot]:
    if isinstance(judged, Ranking):
        yield Ballot(tuple((offset + i,) for i in judged.order), judged.weight, cluster)
    elif isinstance(judged, Comparison):
        for p, weight, side in acts_of(judged, id):
            yield from _compared(offset + judged.i, offset + judged.j, p, weight, cluster, side)


def _rated(group: Group, offset: int) -> dict[str | None, tuple[tuple[int, ...], ...]]:
    """Each annotator's ratings as ranks, of those who rated two completions or more."""
    given: dict[str | None, dict[int, list[float]]] = {}
    for judged in group.judgments:
        if isinstance(judged, Rating) and judged.weight > 0:
            given.setdefault(judged.annotator, {}).setdefault(judged.i, []).append(judged.value)
    found = {}
    for annotator, rated in given.items():
        ranks: dict[float, list[int]] = {}
        for i, values in rated.items():
            ranks.setdefault(sum(values) / len(values), []).append(offset + i)
        if len(rated) > 1:
            found[annotator] = tuple(tuple(ranks[value]) for value in sorted(ranks, reverse=True))
    return found


@dataclass(slots=True)
class _Stages:
    """Stages as they are collected; equal ones are one."""

    num_items: int
    starts: list[int] = field(default_factory=list)
    entries: tuple[list[int], list[int], list[float]] = field(default_factory=lambda: ([], [], []))
    known: dict[tuple[tuple[int, ...], int | None], dict[tuple[int, ...], int]] = field(default_factory=dict)
    num_rows: int = 0

    def rows(self, left: tuple[int, ...], shown: int | None, largest: int) -> dict[tuple[int, ...], int]:
        """The row of each subset that could be chosen of what is left."""
        found = self.known.get((left, shown))
        if found is None:
            self.starts.append(self.num_rows)
            found = {}
            for subset in _subsets(left, largest):
                self._add(subset, shown)
                found[subset] = self.num_rows
                self.num_rows += 1
            self.known[left, shown] = found
        return found

    def _add(self, subset: tuple[int, ...], shown: int | None) -> None:
        new = [(item, 1 / len(subset)) for item in subset]
        if len(subset) > 1:
            new.append((self.num_items + len(subset) - 1, 1.0))
        elif shown is not None:
            new.append((self.num_items, 0.5 if subset[0] == shown else -0.5))
        for column, value in new:
            rows, columns, values = self.entries
            rows.append(self.num_rows)
            columns.append(column)
            values.append(value)


def _subsets(left: tuple[int, ...], largest: int) -> Iterator[tuple[int, ...]]:
    return chain.from_iterable(combinations(left, size) for size in range(1, min(largest, len(left)) + 1))


def choices_of(ballots: Sequence[Ballot], num_items: int) -> tuple[Choices, Sparse]:
    """What was chosen from what.

    Returns:
        The choices, with M + 1 + (largest tie − 1) parameters; and (clusters, R) how much of each cluster's ballots
        chose each alternative.

    Raises:
        DataError: ties are so large that there are too many choices.
    """
    largest = max((len(rank) for ballot in ballots for rank in ballot.ranks), default=1)
    stages = _Stages(num_items)
    rows, clusters, weights = [], [], []
    for ballot in ballots:
        left = tuple(sorted(chain.from_iterable(ballot.ranks)))
        _refuse_too_many(len(left), largest)
        for rank in ballot.ranks:
            if len(left) == 1:
                break
            rows.append(stages.rows(left, ballot.shown_first, largest)[tuple(sorted(rank))])
            clusters.append(ballot.cluster)
            weights.append(ballot.weight)
            left = tuple(item for item in left if item not in rank)
    values, places = stages.entries[2], stages.entries[:2]
    design = sparse.coo_array((values, places), shape=(stages.num_rows, num_items + largest)).tocsr()
    numbers = np.unique(clusters, return_inverse=True)[1]
    shape = (int(numbers.max(initial=-1)) + 1, stages.num_rows)
    return Choices(design, np.array(stages.starts)), sparse.coo_array((weights, (numbers, rows)), shape=shape).tocsr()


def _refuse_too_many(count: int, largest: int) -> None:
    subsets = sum(comb(count, size) for size in range(1, largest + 1))
    if subsets > MOST_SUBSETS:
        raise DataError(
            f"a ranking of {count} completions with ties of up to {largest} has {subsets:,} ways to begin",
            remedy="Use the method 'bradley_terry', which takes two at a time.",
        )
