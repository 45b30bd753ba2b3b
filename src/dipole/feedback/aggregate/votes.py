"""The judgments of groups as columns of votes on pairs, which is what estimators read.

A vote's ``p`` is divided between its outcomes: 1 and 0 are a preference, ½ is a tie, and what lies between is partly
either, so that a "slightly better" of ¾ is half a preference and half a tie.

Shapes: V votes on U pairs by A annotators; N groups.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from dipole.data.audit.columns import text_key
from dipole.data.audit.intervals import Floats, Ints
from dipole.data.reduce import as_comparisons
from dipole.errors import DataError
from dipole.group import Comparison, Group

SHOWN_FIRST = "shown_first"
"""Note of a comparison: the completion that its annotator saw first (on the left, or first in a judge's prompt)."""

UNNAMED = "(no name)"
"""Whoever judged without a name: an unknown number of people, taken as equally reliable."""

AGGREGATED = "aggregate/"
"""How the annotator of an aggregated judgment begins; the method comes after it."""


@dataclass(frozen=True, slots=True)
class Votes:
    """Votes on pairs; the votes of one named annotator on one pair count as one.

    Args:
        pair: (V) number of the pair.
        annotator: (V) position in ``annotators``.
        p: (V) how far the pair's first completion is preferred: 1, ½ for a tie, 0, or between.
        weight: (V) above 0.
        side: (V) 1 where the pair's first completion was shown first, −1 where its second was, 0 where nobody noted it.
        group: (U) number of each pair's group.
        first: (U) its completion of the lower position.
        second: (U) the other.
        prompt: (N) number of each group's prompt, since groups with the same one aren't independent; of the group where
            all have the same.
        sizes: (N) completions of each group.
        annotators: names.
    """

    pair: Ints
    annotator: Ints
    p: Floats
    weight: Floats
    side: Ints
    group: Ints
    first: Ints
    second: Ints
    prompt: Ints
    sizes: Ints
    annotators: tuple[str, ...]

    @property
    def decided(self) -> Floats:
        """(V) the part of each vote that prefers one of the two; the rest of it is a tie."""
        result: Floats = np.abs(2 * self.p - 1)
        return result

    @property
    def with_ties(self) -> bool:
        """Whether any vote is a tie, wholly or in part."""
        return bool(np.any(self.decided < 1))

    @property
    def with_sides(self) -> bool:
        """Whether any vote says what was shown first."""
        return bool(np.any(self.side))

    def totals(self) -> tuple[Floats, Floats]:
        """(U) weight of each pair's votes, and the part of it that went to the first completion, ties half."""
        count = len(self.group)
        everything = summed(self.weight, self.pair, count)
        return everything, summed(self.weight * self.p, self.pair, count)

    def by_annotator(self) -> tuple[Ints, Floats]:
        """(A) how many pairs each annotator voted on, and which share of the votes are ties."""
        count = len(self.annotators)
        ties = summed(1 - self.decided, self.annotator, count)
        shares: Floats = ties / np.bincount(self.annotator, minlength=count)
        return np.bincount(self.one_each()[1], minlength=count), shares

    def taken(self, kept: Ints) -> Votes:
        """Some of the votes, on the same pairs."""
        columns = {name: getattr(self, name)[kept] for name in ("pair", "annotator", "p", "weight", "side")}
        return replace(self, **columns)

    def one_each(self) -> tuple[Ints, Ints]:
        """The pair and annotator of each vote, once where a named annotator voted several times."""
        count = len(self.annotators)
        key = self.pair * count + self.annotator
        ordered = np.sort(key)
        kept = ordered[np.diff(ordered, prepend=-1) > 0]  # np.unique takes ten times as long for a million
        if UNNAMED in self.annotators:
            unnamed = self.annotators.index(UNNAMED)
            kept = np.concatenate([kept[kept % count != unnamed], key[self.annotator == unnamed]])
        return kept // count, kept % count


def summed(values: Floats | Ints, by: Ints, count: int) -> Floats:
    """(count,) the sum of the values of each number.

    Args:
        values: (n)
        by: (n) a number below ``count`` for each.
        count: of the sums.
    """
    return np.bincount(by, weights=values, minlength=count).astype(np.float64)


def votes_of(groups: Sequence[Group]) -> Votes:
    """All judgments of all groups, as comparisons; see ``data.reduce.as_comparisons``.

    Raises:
        DataError: there are none, or they are aggregated already.
    """
    names: dict[str, int] = {}
    pairs: dict[tuple[int, int, int], int] = {}
    whole: list[tuple[int, int, int]] = []
    real: list[tuple[float, float, float]] = []
    for number, group in enumerate(groups):
        for vote in as_comparisons(group):
            if vote.weight == 0:
                continue
            name = vote.annotator or UNNAMED
            if name.startswith(AGGREGATED):
                raise DataError(
                    f"the judgments of group '{group.id}' are aggregated already",
                    remedy="Aggregate the votes themselves: what came of them has no annotators any more.",
                )
            turned = vote.i > vote.j
            i, j = sorted(vote.indices())
            pair = pairs.setdefault((number, i, j), len(pairs))
            who = names.setdefault(name, len(names))
            acts = acts_of(vote, group.id)
            for act in acts:
                whole.append((pair, who, -act.side if turned else act.side))
                real.append((1 - act.p if turned else act.p, act.weight, 1 / len(acts)))
    if not whole:
        raise DataError("there is no judgment of a pair", remedy="Aggregating needs comparisons, rankings or ratings.")
    pair_of, annotator, side = (np.array(column, dtype=np.int64) for column in zip(*whole, strict=True))
    p_of, weight, share = (np.array(column) for column in zip(*real, strict=True))
    place = np.array(list(pairs), dtype=np.int64)
    return Votes(
        pair_of,
        annotator,
        p_of,
        weight / _times(pair_of, annotator, share, list(names)),
        side,
        place[:, 0],
        place[:, 1],
        place[:, 2],
        prompt=_prompts(groups),
        sizes=np.array([len(group.completions) for group in groups], dtype=np.int64),
        annotators=tuple(names),
    )


def _prompts(groups: Sequence[Group]) -> Ints:
    numbers: dict[int, int] = {}
    prompt = [numbers.setdefault(text_key(group.prompt), len(numbers)) for group in groups]
    return np.array(prompt if len(numbers) > 1 else range(len(groups)), dtype=np.int64)


class Act(NamedTuple):
    """A comparison from one side: how far completion ``i`` is preferred, and whether it was shown first.

    Args:
        p: 1, ½ for a tie, 0, or between.
        weight: of the act.
        side: 1 where ``i`` was shown first, −1 where ``j`` was, 0 where nobody noted it.
    """

    p: float
    weight: float
    side: int


def acts_of(judged: Comparison, id: str) -> tuple[Act, ...]:
    """One act; or two, where a judge was asked in both orders and ``meta.orders`` has what it said in each.

    Args:
        judged: the comparison.
        id: of its group, for messages.

    Raises:
        DataError: the note of what was shown first names neither completion.
    """
    shown = judged.meta.get(SHOWN_FIRST)
    if shown is not None:
        if isinstance(shown, bool) or shown not in judged.indices():
            raise DataError(
                f"{SHOWN_FIRST} is {shown!r} in a judgment of completions {judged.i} and {judged.j} of group '{id}'",
                remedy="It is the position of the completion that was shown first.",
            )
        return (Act(judged.p, judged.weight, 1 if shown == judged.i else -1),)
    orders = _orders(judged)
    return tuple(Act(p, judged.weight / len(orders), side) for p, side in orders) or (Act(judged.p, judged.weight, 0),)


def _orders(judged: Comparison) -> list[tuple[float, int]]:
    """What a judge said when ``i`` was first and when ``j`` was, if its verdict is the mean of both."""
    noted = judged.meta.get("orders")
    if not isinstance(noted, Mapping):
        return []
    found: list[tuple[float, int]] = []
    for there_and_back in noted.values():
        if not (isinstance(there_and_back, Sequence) and len(there_and_back) == 2):
            return []
        for p, side in zip(there_and_back, (1, -1), strict=True):
            if isinstance(p, bool) or not isinstance(p, int | float) or not 0 <= p <= 1:
                return []
            found.append((float(p), side))
    is_mean = found and abs(sum(p for p, _ in found) / len(found) - judged.p) < 1e-6
    return found if is_mean else []


def _times(pair: Ints, annotator: Ints, share: Floats, names: list[str]) -> Floats:
    """(V) how often a named annotator judged the vote's pair: people who vote twice don't count twice.

    Args:
        pair: (V)
        annotator: (V)
        share: (V) which part of its judgment each vote is.
        names: of annotators.
    """
    same = np.unique(pair * len(names) + annotator, return_inverse=True)[1]
    times = summed(share, same, len(same))[same]
    if UNNAMED in names:
        times[annotator == names.index(UNNAMED)] = 1.0
    return times
