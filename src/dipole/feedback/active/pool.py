"""The pairs of groups that could be asked about, as arrays; and the groups that hold the selected ones.

Shapes: n pairs of T texts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
from dipole.feedback.active.choose import Selection
from dipole.feedback.active.strategies import Strategy, certain, change, disagreed, diverse, random, uncertain
from dipole.group import Comparison, Group, Judgment, plain

DIVERSE = 2000
"""How many pairs ``diverse`` puts in order at most."""

FEW_LABELS = 20


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
        predicted: (n) P(i ≻ j) by the annotator whose judgments are predictions, NaN where there is none.
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
    predicted: Floats

    @property
    def judged(self) -> NDArray[np.bool_]:
        """(n) whether anybody has judged the pair."""
        return self.votes > 0


def pool_of(groups: Sequence[Group], predictions: str | None = None) -> Pool:
    """The pairs of groups.

    Args:
        groups: with or without judgments.
        predictions: an annotator whose judgments are no labels but a model's predictions.

    Raises:
        DataError: there is no pair, or no judgment by that annotator.
    """
    texts: list[str] = []
    whole: list[tuple[int, int, int, int, int]] = []
    real: list[tuple[float, float, float]] = []
    for number, group in enumerate(groups):
        words = [plain(item.text) for item in group.completions]
        sums: dict[tuple[int, int], list[float]] = {}
        for vote in as_comparisons(group):
            i, j, p = (vote.i, vote.j, vote.p) if vote.i < vote.j else (vote.j, vote.i, 1 - vote.p)
            place = 2 if vote.annotator is not None and vote.annotator == predictions else 0
            entry = sums.setdefault((i, j), [0.0] * 4)
            entry[place] += vote.weight * p
            entry[place + 1] += vote.weight
        for i, j in combinations(range(len(words)), 2):
            if words[i] != words[j]:
                wins, votes, predicted, times = sums.get((i, j), (0.0,) * 4)
                whole.append((len(texts) + i, len(texts) + j, number, i, j))
                real.append((wins, votes, predicted / times if times else float("nan")))
        texts += words
    if not whole:
        raise DataError("no group has two different completions, so there is nothing to ask")
    left, right, group_of, first, second = np.array(whole, dtype=np.int64).T
    wins_of, votes_of, predicted_of = np.array(real).T
    if predictions is not None and not np.isfinite(predicted_of).any():
        raise DataError(f"no pair has a judgment by '{predictions}'", remedy="Name the annotator as the file does.")
    return Pool(groups, texts, left, right, group_of, first, second, wins_of, votes_of, predicted_of)


def scored(
    pool: Pool,
    strategy: Strategy,
    *,
    predictions: bool = False,
    vectors: learner.Vectors | None = None,
    seed: int = 0,
) -> tuple[Ints, Floats, Floats]:
    """The pairs that could be asked about, and what their judgment would be worth.

    Pairs that somebody has judged aren't asked about again, except by ``disagreed``.

    Args:
        pool: all pairs.
        strategy: which.
        predictions: take ``pool.predicted`` for the model's opinion; a learner is fitted to the judged pairs otherwise.
        vectors: features of texts; words of the pool's own by default.
        seed: of ``random``.

    Returns:
        (m,) positions in the pool; (m,) scores; (m,) the model's log-odds of i ≻ j, NaN where no model was asked.

    Raises:
        DataError: nothing is left to ask, or there are too few judgments to learn from.
    """
    open_ = np.flatnonzero(~pool.judged if strategy != "disagreed" else np.ones(len(pool.left), dtype=bool))
    if predictions and strategy in ("uncertain", "certain", "change"):
        open_ = open_[np.isfinite(pool.predicted[open_])]
    if not len(open_):
        raise DataError("every pair is judged, or has no prediction: there is nothing left to ask")
    odds = np.full(len(open_), np.nan)
    if strategy == "random":
        return open_, random(len(open_), seed=seed), odds
    if strategy == "disagreed":
        return open_, disagreed(pool.wins[open_], pool.votes[open_]), odds
    needs_texts = not predictions or strategy in ("diverse", "change")
    differences: Any = _differences(pool, vectors) if needs_texts else None
    if strategy == "diverse":
        order = np.concatenate([open_, np.flatnonzero(pool.judged)])
        known = np.arange(len(open_), len(order))
        return open_, diverse(differences[order], known, limit=DIVERSE)[: len(open_)], odds
    p = pool.predicted[open_] if predictions else _learned(pool, differences)[open_]
    odds = logit(np.clip(p, 1e-9, 1 - 1e-9))
    if strategy == "change":
        sizes = np.sqrt(np.asarray(differences[open_].multiply(differences[open_]).sum(axis=1)).ravel())
        return open_, change(p, sizes), odds
    by_doubt: Callable[[Floats], Floats] = uncertain if strategy == "uncertain" else certain
    return open_, by_doubt(p), odds


def _differences(pool: Pool, vectors: learner.Vectors | None) -> Any:
    from scipy import sparse

    try:
        features = (vectors or learner.word_vectors(pool.texts))(pool.texts)
    except ValueError as fault:
        raise DataError("the completions have no words in common", remedy="Use --strategy random.") from fault
    rows = sparse.csr_array(features)
    return rows[pool.left] - rows[pool.right]


def _learned(pool: Pool, differences: Any) -> Floats:
    """(n,) P(i ≻ j) by a learner of the judged pairs."""
    known = np.flatnonzero(pool.judged)
    if len(known) < FEW_LABELS:
        raise DataError(
            f"{len(known)} judged pairs are too few to learn from",
            remedy=f"Begin with --strategy random or diverse, until {FEW_LABELS} are judged, or name --predictions.",
        )
    coefficients = learner.fit(differences[known], pool.wins[known] / pool.votes[known])
    return learner.predict(differences, coefficients)


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
        row = int(places[place])
        group = pool.groups[int(pool.group[row])]
        i, j = int(pool.first[row]), int(pool.second[row])
        meta = {
            "group": group.id,
            "i": i,
            "j": j,
            "strategy": strategy,
            "arm": "random" if at_random else "strategy",
            "probability": probability,
            "eligible": len(places),
            "score": float(scores[place]),
        }
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
