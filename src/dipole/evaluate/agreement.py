"""How well judges agree with people, and how well people agree with each other.

A judge is compared with every single vote of a person, which is what one more person would be compared with; so the
agreement of people among themselves is the ceiling that it has to be read against. Numbers come with and without ties:
with them, a tie agrees with a tie alone; without them, votes and opinions that are ties are left out and counted.

Shapes: V votes of people on U pairs; a vote is the probability that the pair's first completion is better.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dipole.data.audit.agreement import VotePairs, agreement, vote_pairs
from dipole.data.audit.intervals import Floats, Interval, Ints
from dipole.data.reduce import as_comparisons
from dipole.errors import DataError
from dipole.evaluate.opinion import Opinion
from dipole.evaluate.stats import Estimate, mean, share
from dipole.feedback.judge import Pair
from dipole.group import Group, plain

BINS = 10


@dataclass(frozen=True, slots=True)
class People:
    """What people said of pairs.

    Args:
        pairs: (U) the group's place and the pair.
        unit: (V) number of the pair.
        person: (V) number of the person; those without a name are all different ones.
        vote: (V) probability that the pair's first completion is better.
        cluster: (U) number of the pair's prompt; of its group, where all prompts are the same.
        category: (U) the group's ``meta["category"]``.
    """

    pairs: list[tuple[int, Pair]]
    unit: Ints
    person: Ints
    vote: Floats
    cluster: Ints
    category: list[str | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Coefficients:
    """Agreement of two sides, corrected for chance or not.

    Args:
        raw: share of comparisons in which both say the same.
        kappa: Cohen's κ.
        alpha: Krippendorff's α.
        left_out: comparisons that were left out since one side is a tie.
    """

    raw: Estimate
    kappa: Estimate
    alpha: Estimate
    left_out: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Bin:
    """Pairs whose probability, as the judge says, lies in one tenth of the scale.

    Args:
        said: mean of the judge's probabilities.
        found: share of people's votes for the completion, ties half.
    """

    said: float
    found: Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeAgreement:
    """A judge beside people.

    Args:
        judge: its name; ``people`` for the ceiling.
        pairs: how many pairs it has an opinion of.
        without_ties: see the module's docstring.
        with_ties: likewise.
        majority: share of pairs in which it sides with most people (of the others, for a person); a tie is half.
        by_category: ``majority`` for each category, where groups have any.
        consistent: share of pairs on which both orders have the same winner; ``None`` for people.
        brier: mean squared distance of its probability from people's votes; ``None`` for people.
        calibration: its probabilities against people's votes.
        invalid: pairs without a verdict.
    """

    judge: str
    pairs: int
    without_ties: Coefficients
    with_ties: Coefficients
    majority: Estimate
    by_category: Mapping[str, Estimate]
    consistent: Estimate | None = None
    brier: Estimate | None = None
    calibration: tuple[Bin, ...] = ()
    invalid: int = 0

    def to_json(self) -> dict[str, Any]:
        """As ``agreement.json`` holds it."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> JudgeAgreement:
        """The inverse of ``to_json``.

        Raises:
            DataError: an estimate of it is none.
        """
        single = {
            name: Estimate.from_json(fields[name]) for name in ("majority", "consistent", "brier") if fields[name]
        }
        coefficients = {name: _coefficients_of(fields[name]) for name in ("without_ties", "with_ties")}
        by_category = {name: Estimate.from_json(item) for name, item in fields["by_category"].items()}
        bins = tuple(Bin(said=item["said"], found=Estimate.from_json(item["found"])) for item in fields["calibration"])
        return cls(**{**fields, **single, **coefficients, "by_category": by_category, "calibration": bins})


def _coefficients_of(fields: Mapping[str, Any]) -> Coefficients:
    values = {name: Estimate.from_json(fields[name]) for name in ("raw", "kappa", "alpha")}
    return Coefficients(**values, left_out=fields["left_out"])


def people_of(groups: Sequence[Group]) -> People:
    """All judgments of these groups, as votes on pairs.

    Raises:
        DataError: there are none.
    """
    pairs: dict[tuple[int, Pair], int] = {}
    names: dict[object, int] = {}
    units, persons, votes = [], [], []
    for place, group in enumerate(groups):
        for vote in as_comparisons(group):
            if vote.weight == 0:
                continue
            i, j = sorted((vote.i, vote.j))
            units.append(pairs.setdefault((place, (i, j)), len(pairs)))
            persons.append(names.setdefault(vote.annotator or len(units), len(names)))
            votes.append(vote.p if vote.i == i else 1 - vote.p)
    if not units:
        raise DataError("nobody has judged anything", remedy="Give groups with judgments of people")
    prompts = [plain(group.prompt) for group in groups]
    named = prompts if len(set(prompts)) > 1 else [str(place) for place in range(len(groups))]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(named))}
    return People(
        pairs=list(pairs),
        unit=np.array(units),
        person=np.array(persons),
        vote=np.array(votes),
        cluster=np.array([numbers[named[place]] for place, _ in pairs]),
        category=[_category(groups[place]) for place, _ in pairs],
    )


def _category(group: Group) -> str | None:
    found = group.meta.get("category")
    return None if found is None else str(found)


def judge_agreement(people: People, judge: str, opinions: Sequence[Opinion], *, seed: int = 0) -> JudgeAgreement:
    """A judge beside people.

    Args:
        people: see ``people_of``.
        judge: its name.
        opinions: (U) of each pair.
        seed: of the bootstrap.
    """
    said = np.array([np.nan if opinion.p is None else opinion.p for opinion in opinions])
    known = np.flatnonzero(~np.isnan(said[people.unit]))
    unit, votes = people.unit[known], people.vote[known]
    rows = vote_pairs(
        np.tile(np.arange(len(known)), 2),
        np.repeat(np.array([0, 1]), len(known)),
        np.concatenate([said[unit], votes]),
    )
    clusters = people.cluster[unit[rows.unit]]
    total, for_first = _tallies(people)
    sides = _sides(said, np.divide(for_first, total))
    consistent = [
        (float(opinion.consistent), int(cluster))
        for opinion, cluster in zip(opinions, people.cluster, strict=True)
        if opinion.consistent is not None
    ]
    return JudgeAgreement(
        judge=judge,
        pairs=int((~np.isnan(said)).sum()),
        without_ties=_coefficients(rows, clusters, ties=False, seed=seed),
        with_ties=_coefficients(rows, clusters, ties=True, seed=seed),
        majority=_share(sides, people.cluster),
        by_category=_by_category(sides, people),
        consistent=share([value for value, _ in consistent], [c for _, c in consistent]),
        brier=mean((said[unit] - votes) ** 2, people.cluster[unit].tolist()),
        calibration=_calibration(said[unit], votes, people.cluster[unit]),
        invalid=int(np.isnan(said).sum()),
    )


def human_ceiling(people: People, *, seed: int = 0) -> JudgeAgreement | None:
    """People beside each other; ``None`` where no pair has two of them."""
    rows = vote_pairs(people.unit, people.person, people.vote)
    if not len(rows.unit):
        return None
    clusters = people.cluster[rows.unit]
    total, for_first = _tallies(people)
    others = total[people.unit] - 1
    with np.errstate(divide="ignore", invalid="ignore"):
        rest = np.where(others > 0, (for_first[people.unit] - people.vote) / others, np.nan)
    sides = _sides(people.vote, rest)
    by_vote = People(
        people.pairs,
        people.unit,
        people.person,
        people.vote,
        people.cluster[people.unit],
        [people.category[unit] for unit in people.unit],
    )
    return JudgeAgreement(
        judge="people",
        pairs=len(np.unique(rows.unit)),
        without_ties=_coefficients(rows, clusters, ties=False, seed=seed),
        with_ties=_coefficients(rows, clusters, ties=True, seed=seed),
        majority=_share(sides, by_vote.cluster),
        by_category=_by_category(sides, by_vote),
    )


def _tallies(people: People) -> tuple[Floats, Floats]:
    """(U) votes on each pair, and how many of them are for its first completion, ties half."""
    counts = np.bincount(people.unit, minlength=len(people.pairs)).astype(np.float64)
    decided: Floats = 0.5 + 0.5 * np.sign(people.vote - 0.5)
    for_first: Floats = np.bincount(people.unit, weights=decided, minlength=len(people.pairs)).astype(np.float64)
    return counts, for_first


def _sides(said: Floats, share_of_others: Floats) -> Floats:
    """1 where a probability sides with most of the others, 0 where against, ½ for a tie; NaN where they are tied."""
    majority = np.sign(share_of_others - 0.5)
    return np.where(majority == 0, np.nan, 0.5 + 0.5 * np.sign(said - 0.5) * majority)


def _share(sides: Floats, clusters: Ints) -> Estimate:
    known = ~np.isnan(sides)
    return share(sides[known], clusters[known].tolist())


def _by_category(sides: Floats, people: People) -> dict[str, Estimate]:
    names = sorted({name for name in people.category if name is not None})
    masks = {name: np.array([found == name for found in people.category]) for name in names}
    return {name: _share(sides[mask], people.cluster[mask]) for name, mask in masks.items()}


def _coefficients(rows: VotePairs, clusters: Ints, *, ties: bool, seed: int) -> Coefficients:
    kept = np.ones(len(rows.unit), dtype=bool) if ties else (rows.first_tie + rows.second_tie) == 0
    if not kept.any():
        none = Estimate(None, None, None, 0, "none, every comparison has a tie")
        return Coefficients(raw=none, kappa=none, alpha=none, left_out=len(kept))
    columns = {name: getattr(rows, name)[kept] for name in VotePairs.__slots__}
    found = agreement(VotePairs(**columns), clusters[kept], seed=seed)
    count, groups = int(kept.sum()), len(np.unique(clusters[kept]))

    def estimate(value: float | None, interval: Interval | None) -> Estimate:
        low, high = interval if value is not None and interval is not None else (None, None)
        return Estimate(value, low, high, count, "95% percentile bootstrap of clusters", groups)

    return Coefficients(
        raw=estimate(found.raw, found.raw_interval),
        kappa=estimate(found.kappa, found.kappa_interval),
        alpha=estimate(found.alpha, found.alpha_interval),
        left_out=int((~kept).sum()),
    )


def _calibration(said: Floats, votes: Floats, clusters: Ints) -> tuple[Bin, ...]:
    """By tenths of the judge's probability. Pairs are seen from both sides, for which one is the first is arbitrary."""
    both, found = np.concatenate([said, 1 - said]), np.concatenate([votes, 1 - votes])
    decided = 0.5 + 0.5 * np.sign(found - 0.5)
    place = np.minimum((both * BINS).astype(np.int64), BINS - 1)
    named = np.tile(clusters, 2)
    return tuple(
        Bin(said=float(both[mask].mean()), found=share(decided[mask], named[mask].tolist()))
        for number in range(BINS)
        if (mask := place == number).any()
    )
