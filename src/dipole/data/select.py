"""Which completions and which pairs of a judged group are kept: best of N, rejection sampling, pairing policies.

All of it looks at one score a completion: its rating, or, where an annotator only compared, the share of its
comparisons that it won. What nothing can be learned from is dropped and counted: empty completions, which models do
write, and pairs of equal scores or of texts that are equal but for case, white space and the form of letters.
"""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Literal, get_args

from dipole.data.reduce import PairRelation, pair_labels
from dipole.data.validate import fold, is_blank
from dipole.errors import ConfigError, DataError, nearest
from dipole.group import Comparison, Group, Rating, with_completions

PolicyName = Literal["best_worst", "all_pairs", "gap", "rejection"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairing:
    """Which pairs of a group's completions are trained on.

    Args:
        policy: ``best_worst``, one pair a prompt (Tran, Glaze and Hancock 2023); ``all_pairs``; ``gap``, pairs whose
            scores differ by at least ``min_gap``; ``rejection``, pairs of completions that statistical rejection
            sampling accepts (Liu et al. 2023, arXiv 2309.06657).
        min_gap: for ``gap``, on the scale of the scores.
        accept: for ``rejection``, how many completions of a group are accepted.
        beta: for ``rejection``, how little scores decide: near 0 the best alone are accepted, with more than their
            spread all are alike.
        seed: of ``rejection``.

    Raises:
        ConfigError: an option is out of range, or means nothing for this policy.
    """

    policy: PolicyName = "best_worst"
    min_gap: float | None = None
    accept: int | None = None
    beta: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.policy not in get_args(PolicyName):
            raise ConfigError(
                f"'{self.policy}' is unknown", where="policy", remedy=nearest(self.policy, get_args(PolicyName))
            )
        owner = {"min_gap": "gap", "accept": "rejection", "beta": "rejection"}
        for name, policy in owner.items():
            value = getattr(self, name)
            if policy != self.policy and value is not None:
                raise ConfigError(f"means something for policy '{policy}' alone", where=name, remedy="Leave it out")
            if policy == self.policy and (value is None or not value > 0):
                raise ConfigError(f"policy '{policy}' needs a number above 0", where=name)
        if self.accept is not None and self.accept < 2:
            raise ConfigError("a pair needs two completions", where="accept", remedy="Accept at least 2")


@dataclass(frozen=True, slots=True)
class Selection:
    """Groups whose judgments are the chosen pairs alone, and counts: ``pairs``, and what was dropped, by reason."""

    groups: list[Group]
    counts: dict[str, int]


def select_pairs(groups: Iterable[Group], pairing: Pairing, *, annotator: str | None = None) -> Selection:
    """Turns judged groups into groups of chosen pairs.

    A pair's judgment is a comparison with the label that the judgments give it, p above ½. Empty completions and groups
    without a pair are left out; other completions stay in their order.

    Args:
        groups: judged.
        pairing: which pairs.
        annotator: whose judgments count; all of them where it is ``None``.

    Raises:
        DataError: several annotators rated, and none is named.
    """
    counts: Counter[str] = Counter()
    kept = []
    for group in groups:
        own = _not_empty(_judged_by(group, annotator), counts)
        values = scores(own)
        pairs = list(_informative(own, values, _candidates(own, values, pairing), counts))
        if pairs:
            counts["pairs"] += len(pairs)
            signed = annotator or _only_annotator(own)
            chosen = tuple(Comparison(i=label.i, j=label.j, p=label.p, annotator=signed) for label in pairs)
            kept.append(replace(own, judgments=chosen))
        else:
            counts["groups_without_pairs"] += 1
    return Selection(kept, {"pairs": 0, **counts})


def scores(group: Group) -> dict[int, float]:
    """A score of each completion that was judged: its mean rating; without ratings the share of its comparisons won.

    Raises:
        DataError: several annotators rated, each on a scale of their own.
    """
    ratings: dict[int, list[Rating]] = defaultdict(list)
    for judgment in group.judgments:
        if isinstance(judgment, Rating) and judgment.weight > 0:
            ratings[judgment.i].append(judgment)
    raters = {rating.annotator for given in ratings.values() for rating in given}
    if len(raters) > 1:
        raise DataError(
            f"it was rated by {len(raters)} annotators, each on a scale of their own",
            where=f"group '{group.id}'",
            remedy="Name the annotator whose ratings count",
        )
    if ratings:
        return {
            i: sum(rating.weight * rating.value for rating in given) / sum(rating.weight for rating in given)
            for i, given in sorted(ratings.items())
        }
    wins: dict[int, float] = defaultdict(float)
    weights: dict[int, float] = defaultdict(float)
    for label in pair_labels(group):
        for i, p in ((label.i, label.p), (label.j, 1 - label.p)):
            wins[i] += label.weight * p
            weights[i] += label.weight
    return {i: wins[i] / weights[i] for i in sorted(wins)}


def best_of(values: dict[int, float]) -> int:
    """The completion of the highest score, the first of equals.

    Raises:
        ValueError: there is none.
    """
    return max(values, key=lambda i: (values[i], -i))


def best_of_n(groups: Iterable[Group], *, annotator: str | None = None) -> list[Group]:
    """Groups of the best completion alone, without judgments; one that is empty is never it.

    Groups without a score are left out.
    """
    found = []
    for group in groups:
        own = _not_empty(_judged_by(group, annotator), Counter())
        if values := scores(own):
            found.append(replace(own, completions=(own.completions[best_of(values)],), judgments=()))
    return found


def accepted(values: dict[int, float], count: int, beta: float, draw: random.Random) -> list[int]:
    """Statistical rejection sampling (Liu et al. 2023, arXiv 2309.06657, algorithm 1): samples of π·exp(score/β).

    In each pass every completion that is left is accepted with the probability exp((score − best)/β), where the best is
    of those that were left when the pass began; what is accepted isn't drawn again.

    Args:
        values: score of each completion.
        count: how many to accept; all of them if there are no more.
        beta: of the exponent, above 0.
        draw: random numbers.

    Returns:
        Completions in the order in which they were accepted.
    """
    left = dict(values)
    taken: list[int] = []
    while left and len(taken) < count:
        best = max(left.values())
        for i, value in list(left.items()):
            if draw.random() < math.exp((value - best) / beta):
                taken.append(i)
                del left[i]
                if len(taken) == count:
                    break
    return taken


def _candidates(group: Group, values: dict[int, float], pairing: Pairing) -> list[tuple[int, int]]:
    """Pairs (better or equal, other) that the policy names."""
    order = sorted(values, key=lambda i: (-values[i], i))
    if len(order) < 2:
        return []
    if pairing.policy == "best_worst":
        return [(order[0], order[-1])]
    if pairing.policy == "all_pairs":
        return list(combinations(order, 2))
    if pairing.policy == "gap":
        assert pairing.min_gap is not None
        return [(i, j) for i, j in combinations(order, 2) if values[i] - values[j] >= pairing.min_gap]
    assert pairing.accept is not None
    assert pairing.beta is not None
    taken = accepted(values, pairing.accept, pairing.beta, random.Random(f"{pairing.seed}:{group.id}"))
    rounds = zip(taken[::2], taken[1::2], strict=False)  # the paper's first-round ranking: neighbours as they came
    return [(i, j) if values[i] >= values[j] else (j, i) for i, j in rounds]


def _informative(
    group: Group, values: dict[int, float], pairs: Sequence[tuple[int, int]], counts: Counter[str]
) -> Iterable[PairRelation]:
    """The labels of those pairs that say something; the others are counted."""
    labels = {frozenset((label.i, label.j)): label for label in pair_labels(group)}
    for i, j in pairs:
        label = labels.get(frozenset((i, j)))
        if fold(group.completions[i].text) == fold(group.completions[j].text):
            counts["pairs_of_equal_text"] += 1
        elif values[i] == values[j] or (label is not None and label.p == 0.5):
            counts["pairs_of_equal_score"] += 1
        elif label is None:
            counts["pairs_not_judged"] += 1
        else:
            yield label


def _not_empty(group: Group, counts: Counter[str]) -> Group:
    """Without completions in which nothing can be seen; they are counted."""
    kept = [number for number, completion in enumerate(group.completions) if not is_blank(completion.text)]
    if empty := len(group.completions) - len(kept):
        counts["empty_completions"] += empty
        return with_completions(group, kept)
    return group


def _judged_by(group: Group, annotator: str | None) -> Group:
    if annotator is None:
        return group
    own = tuple(judgment for judgment in group.judgments if judgment.annotator == annotator)
    return replace(group, judgments=own)


def _only_annotator(group: Group) -> str | None:
    names = {judgment.annotator for judgment in group.judgments}
    return next(iter(names)) if len(names) == 1 else None
