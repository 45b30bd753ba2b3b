"""From judgments to labels, and from labels to the relations that a loss consumes.

One rule runs through all of it: a relation's weight is the sum of the weights of the judgments behind it. So a loss
that is linear in the label, as cross-entropy is, has the value that it would have on the judgments one by one, and a
pair that five people judged counts as five that one person judged. ``weighting="prompt"`` undoes that, group by group.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations, pairwise
from typing import Any, Literal, get_args

from dipole.errors import ConfigError, DataError, nearest
from dipole.group import Approval, Comparison, Group, Judgment, Ranking, Rating

Kind = Literal["pair", "unary", "list", "scored"]
Policy = Literal["all_pairs", "best_worst", "adjacent", "margin"]
Weighting = Literal["pair", "prompt"]


@dataclass(frozen=True, slots=True)
class PairRelation:
    """Completion ``i`` is preferred to ``j`` with probability ``p`` ≥ ½; a tie keeps the order of first mention."""

    i: int
    j: int
    p: float = 1.0
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class UnaryRelation:
    """Completion ``i`` is desirable, or is not."""

    i: int
    desirable: bool
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class ListRelation:
    """Completions, best first, no two equal."""

    order: tuple[int, ...]
    weight: float = 1.0


Relation = PairRelation | UnaryRelation | ListRelation


@dataclass(frozen=True, slots=True)
class LabeledGroup:
    """A group with what a loss is to learn from it.

    Args:
        group: the group.
        relations: at least one, all of one kind.
        scores: the mean rating of each completion over all annotators, ``None`` unless all are rated.
        facts: further facts of each completion by name, see ``data.facts``.
    """

    group: Group
    relations: tuple[Relation, ...]
    scores: tuple[float, ...] | None = None
    facts: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)


def reduce_groups(
    groups: Sequence[Group],
    kind: Kind,
    *,
    policy: Policy = "all_pairs",
    min_margin: float = 0.0,
    min_agreement: float = 0.5,
    weighting: Weighting = "pair",
    soft: bool = True,
) -> tuple[list[LabeledGroup], dict[str, int]]:
    """Computes the relations of every group, and drops the groups that have none.

    Args:
        groups: what to reduce.
        kind: what the loss consumes.
            ``"pair"``: one relation for each pair of completions, see ``pair_labels``.
            ``"unary"``: approvals as they are; in a group without any, each side of each pair is desirable with the
            probability that it won and undesirable with the rest, ties left out. Wherever both weights of a completion
            are positive it has two relations.
            ``"list"``: each ranking; the ratings of each annotator who gave no ranking, in order, the first of equals
            alone; in a group with neither, the order that the comparisons agree on, if there is one.
            ``"scored"``: one list of all completions by mean rating, equals included; none where one is unrated.
        policy: which pairs. ``"all_pairs"``; ``"best_worst"``, the one whose sides differ most in expected wins (the
            mean probability of winning, over the pairs that a completion is in); ``"adjacent"``, neighbours in the
            order of expected wins; ``"margin"``, those whose sides differ by at least ``min_margin`` in rating. A
            policy only chooses among pairs that were judged.
        min_margin: for ``"margin"``, on the annotators' scale.
        min_agreement: pairs with a smaller ``p`` are dropped.
        weighting: ``"pair"`` leaves the weights as they are, ``"prompt"`` makes those of each group sum to 1.
        soft: ``False`` turns every label into the majority's and drops ties.

    Returns:
        The labeled groups, in order, and how much was dropped, by reason.

    Raises:
        ConfigError: an option is unknown or means nothing for this kind.
        DataError: no group has a relation of this kind.
    """
    _check_options(kind, policy, min_margin, min_agreement, weighting, soft)
    dropped: Counter[str] = Counter()
    labeled = []
    for group in groups:
        relations: Sequence[Relation]
        if kind == "pair":
            relations = _pairs(group, policy, min_margin, min_agreement, soft, dropped)
        elif kind == "unary":
            relations = _unaries(group, soft, dropped)
        elif kind == "scored":
            relations = _scored(group)
        else:
            relations = _lists(group, dropped)
        if relations:
            if weighting == "prompt":
                relations = _normalised(relations)
            labeled.append(LabeledGroup(group, tuple(relations), _mean_ratings(group)))
        else:
            dropped["groups_without_relations" if group.judgments else "groups_without_judgments"] += 1
    if groups and not labeled:
        reasons = ", ".join(f"{reason.replace('_', ' ')}: {count}" for reason, count in (+dropped).items())
        raise DataError(
            f"the judgments of the {len(groups)} groups make no {kind} relation ({reasons})",
            remedy="Use a loss that takes the kind of judgments that the data have, or drop less.",
        )
    return labeled, dict(+dropped)


def pair_labels(group: Group) -> tuple[PairRelation, ...]:
    """One label for each pair of completions that was judged, in the order of first mention.

    All comparisons of a pair are averaged by their weights into one probability. Comparisons are:

    - comparisons as they stand, and the K(K−1)/2 pairs of a ranking;
    - ratings, for each two completions that one annotator rated. Ratings of different annotators are never set against
      each other, since each has a scale of their own; those without an annotator count as one annotator's. Given
      several of one completion, the probability is that of a rating of ``i`` lying above one of ``j``, equal ones
      counting half, and the weight that of the side with less. Where an annotator compared or ranked a pair too, that
      alone counts;
    - approvals, only in a group with nothing else: what a majority approved of is preferred to what a majority
      disapproved of, with the weight of the side with less.
    """
    totals: dict[tuple[int, int], list[float]] = {}
    for judged in as_comparisons(group):
        i, j, p = judged.i, judged.j, judged.p
        if (j, i) in totals:
            i, j, p = j, i, 1 - p
        wins_losses = totals.setdefault((i, j), [0.0, 0.0])
        wins_losses[0] += judged.weight * p
        wins_losses[1] += judged.weight * (1 - p)
    labels = []
    for (i, j), (wins, losses) in totals.items():
        weight = wins + losses
        if wins >= losses and weight > 0:
            labels.append(PairRelation(i, j, wins / weight, weight))
        elif weight > 0:
            labels.append(PairRelation(j, i, losses / weight, weight))
    return tuple(labels)


def as_comparisons(group: Group) -> tuple[Comparison, ...]:
    """The judgments of a group as comparisons, not yet averaged; see ``pair_labels``."""
    explicit = [comparison for judgment in group.judgments for comparison in _explicit(judgment)]
    judged = {(comparison.annotator, frozenset(comparison.indices())) for comparison in explicit}
    rated = [
        comparison
        for comparison in _from_ratings(group)
        if (comparison.annotator, frozenset(comparison.indices())) not in judged
    ]
    return (*explicit, *rated) or tuple(_from_approvals(group))


def _explicit(judgment: Judgment) -> Iterator[Comparison]:
    if isinstance(judgment, Comparison):
        yield judgment
    elif isinstance(judgment, Ranking):
        for better, worse in combinations(judgment.order, 2):
            yield Comparison(i=better, j=worse, annotator=judgment.annotator, weight=judgment.weight)


def _ratings(group: Group) -> dict[str | None, dict[int, list[Rating]]]:
    """Annotator → completion → ratings, without those of no weight."""
    ratings: dict[str | None, dict[int, list[Rating]]] = {}
    for judgment in group.judgments:
        if isinstance(judgment, Rating) and judgment.weight > 0:
            ratings.setdefault(judgment.annotator, {}).setdefault(judgment.i, []).append(judgment)
    return ratings


def _from_ratings(group: Group) -> Iterator[Comparison]:
    for annotator, rated in _ratings(group).items():
        for i, j in combinations(rated, 2):
            weight_i, weight_j = _weight(rated[i]), _weight(rated[j])
            above = sum(
                a.weight * b.weight * (0.5 if a.value == b.value else a.value > b.value)
                for a in rated[i]
                for b in rated[j]
            )
            p = min(1.0, above / (weight_i * weight_j))  # rounding may lift it above 1
            yield Comparison(i=i, j=j, p=p, weight=min(weight_i, weight_j), annotator=annotator)


def _from_approvals(group: Group) -> Iterator[Comparison]:
    votes = _approval_votes(group)
    approved = [i for i, (yes, no) in votes.items() if yes > no]
    disapproved = [i for i, (yes, no) in votes.items() if no > yes]
    for i in approved:
        for j in disapproved:
            yield Comparison(i=i, j=j, weight=min(sum(votes[i]), sum(votes[j])))


def _approval_votes(group: Group) -> dict[int, list[float]]:
    """Completion → weights of approval and of disapproval."""
    votes: dict[int, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for judgment in group.judgments:
        if isinstance(judgment, Approval):
            votes[judgment.i][0 if judgment.value else 1] += judgment.weight
    return votes


def _weight(judgments: Sequence[Judgment]) -> float:
    return sum(judgment.weight for judgment in judgments)


def _mean(ratings: Sequence[Rating]) -> float:
    return sum(rating.weight * rating.value for rating in ratings) / _weight(ratings)


def _ratings_of_each(group: Group) -> dict[int, list[Rating]]:
    ratings: dict[int, list[Rating]] = defaultdict(list)
    for rated in _ratings(group).values():
        for i, given in rated.items():
            ratings[i] += given
    return ratings


def _mean_ratings(group: Group) -> tuple[float, ...] | None:
    ratings, count = _ratings_of_each(group), len(group.completions)
    return tuple(_mean(ratings[i]) for i in range(count)) if len(ratings) == count else None


def _pairs(
    group: Group, policy: Policy, min_margin: float, min_agreement: float, soft: bool, dropped: Counter[str]
) -> list[PairRelation]:
    labels = pair_labels(group)
    kept = [label for label in labels if label.p >= min_agreement]
    dropped["pairs_of_low_agreement"] += len(labels) - len(kept)
    if not soft:
        decided = [replace(label, p=1.0) for label in kept if label.p > 0.5]
        dropped["ties"] += len(kept) - len(decided)
        kept = decided
    if policy == "margin":
        chosen = [label for label in kept if _rating_gap(group, label) >= min_margin]
        dropped["pairs_below_margin_or_unrated"] += len(kept) - len(chosen)
    else:
        chosen = _CHOOSE[policy](kept, _expected_wins(labels))
        dropped[f"pairs_not_{policy}"] += len(kept) - len(chosen)
    return chosen


def _expected_wins(labels: Sequence[PairRelation]) -> dict[int, float]:
    """The mean probability with which each completion wins, over the pairs that it is in, by their weights."""
    wins: dict[int, float] = defaultdict(float)
    weights: dict[int, float] = defaultdict(float)
    for label in labels:
        for i, p in ((label.i, label.p), (label.j, 1 - label.p)):
            wins[i] += label.weight * p
            weights[i] += label.weight
    return {i: wins[i] / weights[i] for i in wins}


def _all_pairs(labels: list[PairRelation], wins: dict[int, float]) -> list[PairRelation]:
    return labels


def _best_worst(labels: list[PairRelation], wins: dict[int, float]) -> list[PairRelation]:
    return [max(labels, key=lambda label: wins[label.i] - wins[label.j])] if labels else []


def _adjacent(labels: list[PairRelation], wins: dict[int, float]) -> list[PairRelation]:
    order = sorted(wins, key=lambda i: (-wins[i], i))
    neighbours = {frozenset(pair) for pair in pairwise(order)}
    return [label for label in labels if {label.i, label.j} in neighbours]


_CHOOSE: dict[str, Callable[[list[PairRelation], dict[int, float]], list[PairRelation]]] = {
    "all_pairs": _all_pairs,
    "best_worst": _best_worst,
    "adjacent": _adjacent,
}


def _rating_gap(group: Group, label: PairRelation) -> float:
    """By how much ``i`` is rated above ``j``, averaged over who rated both; −∞ if nobody did."""
    gaps = [
        _mean(rated[label.i]) - _mean(rated[label.j])
        for rated in _ratings(group).values()
        if label.i in rated and label.j in rated
    ]
    return sum(gaps) / len(gaps) if gaps else float("-inf")


def _unaries(group: Group, soft: bool, dropped: Counter[str]) -> list[UnaryRelation]:
    votes = _approval_votes(group)
    if not votes:
        for label in pair_labels(group):
            if label.p == 0.5:
                dropped["ties"] += 1
                continue
            for i, p in ((label.i, label.p), (label.j, 1 - label.p)):
                votes[i][0] += label.weight * p
                votes[i][1] += label.weight * (1 - p)
    relations = []
    for i, (yes, no) in sorted(votes.items()):
        if soft:
            relations += [UnaryRelation(i, yes >= no, max(yes, no))] if max(yes, no) > 0 else []
            relations += [UnaryRelation(i, yes < no, min(yes, no))] if min(yes, no) > 0 else []
        elif yes != no:
            relations.append(UnaryRelation(i, yes > no, yes + no))
        else:
            dropped["completions_undecided"] += 1
    return relations


def _lists(group: Group, dropped: Counter[str]) -> list[ListRelation]:
    rankings = [judgment for judgment in group.judgments if isinstance(judgment, Ranking)]
    rankers = {ranking.annotator for ranking in rankings}
    orders = [ListRelation(ranking.order, ranking.weight) for ranking in rankings]
    for annotator, rated in _ratings(group).items():
        if annotator not in rankers:
            orders += _order_of_ratings(rated, dropped)
    if not orders:
        orders = _order_of_pairs(pair_labels(group), dropped)
    weights: dict[tuple[int, ...], float] = defaultdict(float)
    for relation in orders:
        weights[relation.order] += relation.weight
    return [ListRelation(order, weight) for order, weight in weights.items() if weight > 0]


def _scored(group: Group) -> list[ListRelation]:
    scores, ratings = _mean_ratings(group), _ratings_of_each(group)
    if scores is None or len(scores) < 2:
        return []
    order = sorted(ratings, key=lambda i: (-scores[i], i))
    return [ListRelation(tuple(order), min(sum(rating.weight for rating in given) for given in ratings.values()))]


def _order_of_ratings(rated: dict[int, list[Rating]], dropped: Counter[str]) -> list[ListRelation]:
    first: dict[float, int] = {}
    for i in sorted(rated):
        first.setdefault(_mean(rated[i]), i)
    dropped["completions_tied"] += len(rated) - len(first)
    order = tuple(first[value] for value in sorted(first, reverse=True))
    return [ListRelation(order, min(_weight(rated[i]) for i in order))] if len(order) > 1 else []


def _order_of_pairs(labels: Sequence[PairRelation], dropped: Counter[str]) -> list[ListRelation]:
    """The order that every pair agrees with, if each two completions were compared and none tie."""
    wins: Counter[int] = Counter()
    for label in labels:
        wins.update({label.i: 1, label.j: 0})
    order = tuple(sorted(wins, key=lambda i: -wins[i]))
    place = {i: position for position, i in enumerate(order)}
    agreed = all(label.p > 0.5 and place[label.i] < place[label.j] for label in labels)
    if labels and agreed and len(labels) == len(order) * (len(order) - 1) // 2:
        return [ListRelation(order, min(label.weight for label in labels))]
    dropped["groups_without_one_order"] += 1
    return []


def _normalised(relations: Sequence[Relation]) -> list[Relation]:
    total = sum(relation.weight for relation in relations)
    return [replace(relation, weight=relation.weight / total) for relation in relations]


def _check_options(
    kind: Kind, policy: Policy, min_margin: float, min_agreement: float, weighting: Weighting, soft: bool
) -> None:
    for name, value, known in (("kind", kind, Kind), ("policy", policy, Policy), ("weighting", weighting, Weighting)):
        if value not in get_args(known):
            raise ConfigError(f"'{value}' is unknown", where=name, remedy=nearest(value, get_args(known)))
    if not 0.5 <= min_agreement <= 1:
        raise ConfigError(f"{min_agreement} is outside of 0.5 to 1", where="min_agreement")
    if policy != "margin" and min_margin:
        raise ConfigError("means something for policy 'margin' alone", where="min_margin", remedy="Leave it out.")
    if kind != "pair" and (policy != "all_pairs" or min_agreement != 0.5):
        raise ConfigError(
            "policy, min_margin and min_agreement choose pairs", where="policy", remedy=f"Leave them out for '{kind}'."
        )
    if kind in ("list", "scored") and not soft:
        raise ConfigError("a list has no soft label to harden", where="soft", remedy=f"Leave it out for '{kind}'.")
