"""Annotators of different kinds, such as nurses and doctors: how far they differ, and labels in which each kind counts.

A majority that is large enough outvotes everyone else, and the mean hides that it did. So the difference is measured
before anything is averaged, and where kinds get weights of their own each is aggregated by itself, with a truth of its
own, before their probabilities are mixed.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import numpy as np

from dipole.data.audit.agreement import vote_pairs
from dipole.data.audit.intervals import Floats, Interval, Ints
from dipole.errors import ConfigError, DataError, nearest
from dipole.feedback.aggregate.result import Aggregation, PairLabels, interval
from dipole.feedback.aggregate.votes import UNNAMED, summed, votes_of
from dipole.group import Group

RESAMPLES = 1000

Method = Callable[[Sequence[Group]], Aggregation]


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """How far two kinds of annotators differ.

    Args:
        kinds: both names.
        within: share of the votes of two annotators of one kind that agree, the mean of both kinds.
        between: of one annotator of each kind.
        gap: within − between: how much of their disagreement is that of the kinds.
        gap_interval: 95 %, from resampled prompts.
        num_pairs: pairs that both kinds voted on.
        contrary: of those, the pairs on which most of one kind prefer what most of the other kind don't.
    """

    kinds: tuple[str, str]
    within: float | None
    between: float | None
    gap: float | None
    gap_interval: Interval | None
    num_pairs: int
    contrary: int

    @property
    def clear(self) -> bool:
        """Whether the gap is more than chance."""
        return self.gap_interval is not None and self.gap_interval[0] > 0


def read_kinds(file: str | Path) -> dict[str, str]:
    """The kind of each annotator, from a CSV file with the columns annotator and group, or a JSON object.

    Raises:
        DataError: the file can't be read, or an annotator has two kinds.
    """
    path = Path(file)
    try:
        text = path.read_text(encoding="utf-8-sig")
        rows = json.loads(text) if path.suffix == ".json" else list(csv.DictReader(text.splitlines()))
    except OSError as fault:
        raise DataError(f"can't be read: {fault.strerror}", where=str(path)) from fault
    except (ValueError, csv.Error) as fault:
        raise DataError(f"can't be read: {fault}", where=str(path)) from fault
    if isinstance(rows, dict) and all(isinstance(kind, str) for kind in rows.values()):
        return rows
    remedy = 'Write a line \'annotator,group\' and one a person after it, or a JSON object such as {"ann": "nurses"}.'
    kinds: dict[str, str] = {}
    for row in rows if isinstance(rows, list) else [None]:
        if not (isinstance(row, dict) and row.get("annotator") and row.get("group")):
            raise DataError("this isn't a table of annotators and their groups", where=str(path), remedy=remedy)
        if kinds.setdefault(row["annotator"], row["group"]) != row["group"]:
            raise DataError(f"'{row['annotator']}' is in two groups", where=str(path), remedy=remedy)
    return kinds


def parse_weights(text: str, kinds: Mapping[str, str]) -> dict[str, float]:
    """``"equal"``, or ``"nurses=2,doctors=1"``: what each kind counts on a pair, however many of it voted.

    Raises:
        ConfigError: a kind is unknown or missing, or a weight isn't a number above 0.
    """
    known = sorted(set(kinds.values()))
    if text == "equal":
        return dict.fromkeys(known, 1.0)
    weights: dict[str, float] = {}
    for part in text.split(","):
        name, _, number = (word.strip() for word in part.partition("="))
        if name not in known:
            raise ConfigError(f"there is no group '{name}'", where="--group_weights", remedy=nearest(name, known))
        try:
            weights[name] = float(number)
        except ValueError:
            weights[name] = math.nan
        if not (math.isfinite(weights[name]) and weights[name] > 0):
            raise ConfigError(f"'{number}' is no weight above 0", where="--group_weights")
    if missing := [name for name in known if name not in weights]:
        raise ConfigError(f"'{missing[0]}' has no weight", where="--group_weights", remedy="Give every group one")
    return weights


def of_kind(groups: Sequence[Group], kinds: Mapping[str, str], kind: str) -> list[Group]:
    """The groups with the judgments of one kind alone."""
    return [
        replace(group, judgments=tuple(item for item in group.judgments if kinds[item.annotator or UNNAMED] == kind))
        for group in groups
    ]


def check_kinds(groups: Sequence[Group], kinds: Mapping[str, str]) -> None:
    """Every annotator has a kind.

    Raises:
        DataError: one hasn't.
    """
    for group in groups:
        for judged in group.judgments:
            if (judged.annotator or UNNAMED) not in kinds:
                name = f"annotator '{judged.annotator}'" if judged.annotator else "a judgment without an annotator"
                raise DataError(f"{name} (group '{group.id}') is in no group", where="--annotator_groups")


def weighted(
    method: Method, groups: Sequence[Group], kinds: Mapping[str, str], weights: Mapping[str, float]
) -> Aggregation:
    """Each kind aggregated by itself, then mixed: p = Σ W p / Σ W over the kinds that have a label for the pair."""
    parts = {kind: method(of_kind(groups, kinds, kind)) for kind in weights if _has_votes(groups, kinds, kind)}
    sums: dict[tuple[int, int, int], Floats] = {}
    for kind, part in parts.items():
        labels, weight = part.pairs, weights[kind]
        reach = (labels.high - labels.low) / 2
        places = zip(labels.group.tolist(), labels.first.tolist(), labels.second.tolist(), strict=True)
        for row, place in enumerate(places):
            entry = (weight, weight * labels.p[row], (weight * reach[row]) ** 2, labels.num_votes[row])
            sums[place] = sums.get(place, np.zeros(4)) + np.array(entry)
    table = np.array(list(sums), dtype=np.int64).reshape(-1, 3)
    total, mixed, spread, num_votes = np.array(list(sums.values())).reshape(-1, 4).T
    p, around = mixed / total, np.sqrt(spread) / total
    low, high = np.clip(p - around, 0, 1), np.clip(p + around, 0, 1)
    labels = PairLabels(table[:, 0], table[:, 1], table[:, 2], p, low, high, num_votes.astype(np.int64))
    name = next(iter(parts.values())).method
    return Aggregation(
        method=name,
        pairs=labels,
        annotators=tuple(person for part in parts.values() for person in part.annotators),
        notes=tuple(f"{kind}: {note}" for kind, part in parts.items() for note in part.notes),
    )


def _has_votes(groups: Sequence[Group], kinds: Mapping[str, str], kind: str) -> bool:
    return any(kinds[item.annotator or UNNAMED] == kind for group in groups for item in group.judgments)


def differences(groups: Sequence[Group], kinds: Mapping[str, str], *, seed: int = 0) -> tuple[Difference, ...]:
    """Every two kinds, the widest gap first."""
    votes = votes_of(groups)
    names = sorted({kinds[name] for name in votes.annotators})
    kind_of = np.array([names.index(kinds[name]) for name in votes.annotators])
    rows = vote_pairs(votes.pair, votes.annotator, votes.p)
    first, second = kind_of[rows.first], kind_of[rows.second]
    prompt = votes.prompt[votes.group[rows.unit]]
    sums = {
        (a, b): _sums(rows.agree[here], prompt[here], int(votes.prompt.max(initial=0)) + 1)
        for a in range(len(names))
        for b in range(a, len(names))
        for here in [((first == a) & (second == b)) | ((first == b) & (second == a))]
    }
    leaning = _leaning(
        votes.pair, kind_of[votes.annotator], votes.weight * (2 * votes.p - 1), len(votes.group), len(names)
    )
    found = [
        _difference((names[a], names[b]), sums[a, a], sums[b, b], sums[a, b], leaning[:, [a, b]], seed)
        for a, b in combinations(range(len(names)), 2)
    ]
    return tuple(sorted(found, key=lambda item: (item.gap is None, -(item.gap or 0.0), item.kinds)))


def _sums(agree: Floats, prompt: Ints, count: int) -> Floats:
    """(2, prompts): pairs of votes of each prompt that agree, and all of them."""
    return np.stack([summed(agree, prompt, count), np.bincount(prompt, minlength=count)])


def _leaning(pair: Ints, kind: Ints, vote: Floats, pairs: int, kinds: int) -> Floats:
    """(pairs, kinds) the sum of the votes, NaN where there are none."""
    shape = (pairs, kinds)
    place = np.ravel_multi_index((pair, kind), shape)
    total = summed(vote, place, pairs * kinds)
    voted = np.bincount(place, minlength=pairs * kinds) > 0
    result: Floats = np.where(voted, total, np.nan).reshape(shape)
    return result


def _difference(
    kinds: tuple[str, str], own: Floats, other: Floats, across: Floats, leaning: Floats, seed: int
) -> Difference:
    both = leaning[np.isfinite(leaning).all(axis=1)]
    draws = np.random.default_rng(seed).multinomial(
        own.shape[1], np.full(own.shape[1], 1 / own.shape[1]), size=RESAMPLES
    )
    everything = np.vstack([np.ones(own.shape[1]), draws.astype(np.float64)])
    with np.errstate(invalid="ignore"):
        shares = [(everything @ agree) / (everything @ count) for agree, count in (own, other, across)]
    within, between = (shares[0] + shares[1]) / 2, shares[2]
    gaps = (within - between)[1:]
    known = gaps[np.isfinite(gaps)]
    low, high = np.quantile(known, (0.025, 0.975)) if len(known) > 0.9 * RESAMPLES and np.ptp(known) else (np.nan,) * 2
    return Difference(
        kinds=kinds,
        within=_number(within[0]),
        between=_number(between[0]),
        gap=_number(within[0] - between[0]),
        gap_interval=interval(low, high),
        num_pairs=len(both),
        contrary=int(np.sum(both[:, 0] * both[:, 1] < 0)),
    )


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
