"""The pairs of groups that could be asked about, as arrays, and what each is worth; the groups that hold selected ones.

Both the page and ``dipole active`` take their pairs from here.

Shapes: n pairs of T texts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import logit

from dipole.data.audit.intervals import Floats, Ints
from dipole.data.reduce import as_comparisons
from dipole.errors import DataError
from dipole.feedback.active import learner
from dipole.feedback.active.choose import Origin, Selection
from dipole.feedback.active.strategies import MODEL, TEXTS, Evidence, Strategy, worth
from dipole.feedback.judge import all_pairs
from dipole.group import Comparison, Group, Judgment, Rating, plain

FEW_LABELS = 20

PairKey = tuple[str, int, int]
"""A group's id and two positions, i < j."""


@dataclass(frozen=True, slots=True)
class Pool:
    """Every two different completions of every group.

    Args:
        groups: whose.
        texts: (T) of all completions.
        left: (n) position of completion i in ``texts``.
        right: (n) of completion j.
        group: (n) number of the group.
        first: (n) i.
        second: (n) j.
        wins: (n) weight of the judgments that prefer i, ties half.
        votes: (n) weight of all judgments.
        odds: (n) a model's log-odds of i ≻ j: those of the annotator whose judgments are predictions, or any that
            were put in their place; NaN where there are none.
    """

    groups: Sequence[Group]
    texts: list[str]
    left: Ints
    right: Ints
    group: Ints
    first: Ints
    second: Ints
    wins: Floats
    votes: Floats
    odds: Floats

    @property
    def keys(self) -> list[PairKey]:
        """(n) which pair each is."""
        columns = (self.group.tolist(), self.first.tolist(), self.second.tolist())
        return [(self.groups[number].id, i, j) for number, i, j in zip(*columns, strict=True)]

    @property
    def judged(self) -> NDArray[np.bool_]:
        """(n) whether anybody has judged the pair."""
        return self.votes > 0


def pool_of(groups: Sequence[Group], predictions: str | None = None) -> Pool:
    """The pairs of groups.

    Args:
        groups: with or without judgments.
        predictions: an annotator whose judgments are no labels but a model's predictions: probabilities, or ratings
            whose differences are log-odds, as those of implicit rewards are.

    Raises:
        DataError: there is no pair, or no judgment by that annotator.
    """
    texts: list[str] = []
    whole: list[tuple[int, int, int, int, int]] = []
    real: list[tuple[float, float, float]] = []
    for number, group in enumerate(groups):
        odds: dict[tuple[int, int], float] = {}
        people = group
        if predictions is not None:
            said = [judged for judged in group.judgments if judged.annotator == predictions]
            rest = tuple(judged for judged in group.judgments if judged.annotator != predictions)
            odds, people = _odds(group, said), replace(group, judgments=rest)
        sums = _sums(as_comparisons(people))
        for i, j in all_pairs(group):
            wins, votes = sums.get((i, j), (0.0, 0.0))
            whole.append((len(texts) + i, len(texts) + j, number, i, j))
            real.append((wins, votes, odds.get((i, j), float("nan"))))
        texts += [plain(item.text) for item in group.completions]
    if not whole:
        raise DataError("no group has two different answers, so there is nothing to compare")
    left, right, group_of, first, second = np.array(whole, dtype=np.int64).T
    wins_of, votes_of, odds_of = np.array(real).T
    if predictions is not None and not np.isfinite(odds_of).any():
        raise DataError(f"no pair has a judgment by '{predictions}'", remedy="Name the annotator as the file does.")
    return Pool(groups, texts, left, right, group_of, first, second, wins_of, votes_of, odds_of)


def _odds(group: Group, said: Sequence[Judgment]) -> dict[tuple[int, int], float]:
    """The log-odds of i ≻ j, i < j, of one who predicts. Probabilities are averaged, and so are ratings of one text."""
    values: dict[int, list[float]] = {}
    for judged in said:
        if isinstance(judged, Rating):
            values.setdefault(judged.i, []).append(judged.value)
    mean = {place: sum(given) / len(given) for place, given in sorted(values.items())}
    found = {(i, j): mean[i] - mean[j] for i, j in combinations(mean, 2)}
    explicit = tuple(judged for judged in said if not isinstance(judged, Rating))
    sums = _sums(as_comparisons(replace(group, judgments=explicit)))
    return found | {
        key: float(logit(np.clip(wins / times, 1e-9, 1 - 1e-9))) for key, (wins, times) in sums.items() if times
    }


def _sums(comparisons: Iterable[Comparison]) -> dict[tuple[int, int], tuple[float, float]]:
    """Weight of what prefers i, ties half, and of everything, of each pair i < j."""
    sums: dict[tuple[int, int], tuple[float, float]] = {}
    for said in comparisons:
        i, j, p = (said.i, said.j, said.p) if said.i < said.j else (said.j, said.i, 1 - said.p)
        wins, times = sums.get((i, j), (0.0, 0.0))
        sums[i, j] = (wins + said.weight * p, times + said.weight)
    return sums


def unjudged(pool: Pool, strategy: Strategy, *, has_odds: bool = False) -> Ints:
    """Positions of the pairs that nobody has judged; of all for ``disagreed``, which is about judgments.

    Args:
        pool: all pairs.
        strategy: one of ``MODEL`` leaves out pairs of which the pool's model says nothing.
        has_odds: the pool's ``odds`` are the model's; a learner, which has an opinion of every pair, otherwise.

    Raises:
        DataError: nothing is left to ask.
    """
    open_ = np.flatnonzero(~pool.judged if strategy != "disagreed" else np.ones(len(pool.left), dtype=bool))
    if has_odds and strategy in MODEL:
        open_ = open_[np.isfinite(pool.odds[open_])]
    if not len(open_):
        raise DataError("every pair is judged, or has no prediction: there is nothing left to ask")
    return open_


def scored(
    pool: Pool,
    strategy: Strategy,
    places: Ints,
    *,
    has_odds: bool = False,
    vectors: learner.Vectors | None = None,
) -> tuple[Floats, Floats]:
    """What a judgment of some pairs would be worth.

    Args:
        pool: all pairs; those judged that aren't among ``places`` are what ``diverse`` keeps away from.
        strategy: by which.
        places: (m,) positions of the pairs.
        has_odds: take ``pool.odds`` for the model's opinion; a learner is fitted to the judged pairs otherwise.
        vectors: features of texts; words of the pool's own by default.

    Returns:
        (m,) see ``strategies.worth``; (m,) the model's log-odds of i ≻ j, NaN where it has none or wasn't asked.

    Raises:
        DataError: there are too few judgments to learn from, or texts without a word in common.
    """
    asks_model = strategy in MODEL
    differences: Any = None
    if strategy in TEXTS or (asks_model and not has_odds):
        differences = _differences(pool, vectors)
    odds = np.full(len(places), np.nan)
    if asks_model:
        odds = pool.odds[places] if has_odds else _learned(pool, differences)[places]
    evidence = Evidence(
        count=len(places),
        odds=odds,
        wins=pool.wins[places],
        votes=pool.votes[places],
        differences=None if differences is None else differences[places],
        labelled=None if differences is None else differences[np.setdiff1d(np.flatnonzero(pool.judged), places)],
    )
    return worth(strategy, evidence), odds


def _differences(pool: Pool, vectors: learner.Vectors | None) -> Any:
    from scipy import sparse

    try:
        features = (vectors or learner.word_vectors(pool.texts))(pool.texts)
    except ValueError as fault:
        raise DataError("the completions have no words in common", remedy="Use --strategy random.") from fault
    rows = sparse.csr_array(features)
    return rows[pool.left] - rows[pool.right]


def _learned(pool: Pool, differences: Any) -> Floats:
    """(n,) log-odds of i ≻ j by a learner of the judged pairs."""
    known = np.flatnonzero(pool.judged)
    if len(known) < FEW_LABELS:
        raise DataError(
            f"{len(known)} judged pairs are too few to learn from",
            remedy=f"Begin with --strategy random or diverse, until {FEW_LABELS} are judged, or name --predictions.",
        )
    coefficients = learner.fit(differences[known], pool.wins[known] / pool.votes[known])
    return learner.log_odds(differences, coefficients)


def selected_groups(pool: Pool, places: Ints, selection: Selection, strategy: Strategy, scores: Floats) -> list[Group]:
    """A group of two completions for each selected pair, in random order, so that its place says nothing.

    A group that has two completions keeps its id; of a larger one the pair's is ``ID#i-j``. ``meta.active`` has where
    it came from, how and with what probability it was selected.

    Args:
        pool: all pairs.
        places: (m,) positions in the pool of those that could be asked about.
        selection: of them.
        strategy: by which.
        scores: (m,)
    """
    found = []
    columns = (selection.places, selection.at_random, selection.probability)
    for place, at_random, probability in zip(*(column.tolist() for column in columns), strict=True):
        arm = "random" if at_random else "strategy"
        origin = Origin(strategy=strategy, arm=arm, probability=probability, eligible=len(places))
        row = int(places[place])
        group = pool.groups[int(pool.group[row])]
        i, j = int(pool.first[row]), int(pool.second[row])
        meta = {"group": group.id, "i": i, "j": j, **origin.to_json(), "score": float(scores[place])}
        found.append(_pair_group(group, i, j, meta))
    order = np.random.default_rng(len(found)).permutation(len(found))
    return [found[place] for place in order]


def _pair_group(group: Group, i: int, j: int, meta: dict[str, Any]) -> Group:
    about = tuple(_moved(judged, i, j) for judged in as_comparisons(group) if set(judged.indices()) == {i, j})
    return replace(
        group,
        id=group.id if len(group.completions) == 2 else f"{group.id}#{i}-{j}",
        completions=(group.completions[i], group.completions[j]),
        judgments=about,
        meta={**group.meta, "active": meta},
    )


def _moved(judged: Comparison, i: int, j: int) -> Judgment:
    return replace(judged, i=int(judged.i == j), j=int(judged.j == j))
