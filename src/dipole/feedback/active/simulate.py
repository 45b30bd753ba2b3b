"""What selection would have saved, and what soft labels bring: replayed on data whose judgments are all known.

A label is hidden until it is asked for: then one of the pair's judgments is drawn. So annotators disagree as much as
they really did, and a strategy that runs after doubtful pairs pays for their noise.

Shapes: n pairs of the pool, m held-out pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from dipole.data.audit.intervals import Floats, Ints
from dipole.data.files import is_held_out
from dipole.data.reduce import as_comparisons
from dipole.errors import DataError
from dipole.feedback.active import learner
from dipole.feedback.active.choose import choose
from dipole.feedback.active.strategies import TEXTS, Evidence, Strategy, worth
from dipole.group import Group, plain
from dipole.progress import Progress, Silent

COMMITTEE = 5
"""Learners on resampled labels whose disagreement ``disagreed`` goes by, since nobody has voted on a new pair."""

START = 50
"""Labels that every strategy begins with, drawn at random."""

GROWTH = 1.4
"""Each round has this many times the labels of the one before."""

MIN_PAIRS = 100

LabelForm = Literal["soft", "smoothed", "weighted", "majority"]
FORMS: tuple[LabelForm, ...] = ("soft", "smoothed", "weighted", "majority")


@dataclass(frozen=True, slots=True)
class Labelled:
    """Pairs with all of their judgments.

    Args:
        texts: (T) of completions.
        left: (N) position of completion i.
        right: (N) of completion j.
        votes: of each pair, P(i ≻ j) of each of its judgments.
        share: (N) their mean: the share of people who prefer i.
        group: (N) number of the group.
        held_out: (groups,) whether the file itself holds the group out.
    """

    texts: list[str]
    left: Ints
    right: Ints
    votes: list[Floats]
    share: Floats
    group: Ints
    held_out: np.ndarray[tuple[int], np.dtype[np.bool_]]


class CurvePoint(NamedTuple):
    """How good a learner was.

    Args:
        arm: the strategy, or the form of the labels.
        repeat: number of the repetition.
        num_labels: judgments paid for.
        accuracy: share of held-out pairs whose majority is predicted, near-ties among them.
        cross_entropy: to the share of people, in nats.
    """

    arm: str
    repeat: int
    num_labels: int
    accuracy: float
    cross_entropy: float


def labelled_of(groups: Sequence[Group]) -> Labelled:
    """The pairs that were judged, with their judgments.

    Raises:
        DataError: there are too few.
    """
    texts: list[str] = []
    places: list[tuple[int, int, int]] = []
    votes: list[Floats] = []
    for number, group in enumerate(groups):
        found: dict[tuple[int, int], list[float]] = {}
        for judged in as_comparisons(group):
            if judged.weight > 0:
                i, j, p = (judged.i, judged.j, judged.p) if judged.i < judged.j else (judged.j, judged.i, 1 - judged.p)
                found.setdefault((i, j), []).append(p)
        places += [(len(texts) + i, len(texts) + j, number) for i, j in found]
        votes += [np.array(said) for said in found.values()]
        texts += [plain(item.text) for item in group.completions]
    if len(votes) < MIN_PAIRS:
        raise DataError(f"{len(votes)} judged pairs are too few to simulate with; it takes {MIN_PAIRS}")
    left, right, group_of = np.array(places, dtype=np.int64).T
    share = np.array([said.mean() for said in votes])
    return Labelled(texts, left, right, votes, share, group_of, np.array([is_held_out(item.split) for item in groups]))


@dataclass(frozen=True, slots=True)
class _Trial:
    """One repetition: what can be asked, and what it is measured on.

    Args:
        data: everything.
        differences: (N, d) of all pairs.
        pool: (n) pairs that can be asked about.
        held_out: (m) pairs that can't.
        random: where chance comes from.
    """

    data: Labelled
    differences: Any
    pool: Ints
    held_out: Ints
    random: np.random.Generator

    def ask(self, place: int) -> float:
        """One judgment of a pair: 1, ½ or 0; one that is a probability is drawn from."""
        said = float(self.random.choice(self.data.votes[place]))
        return said if said in (0.0, 0.5, 1.0) else float(self.random.random() < said)

    def measure(self, coefficients: Floats) -> tuple[float, float]:
        """Accuracy and cross-entropy on what is held out."""
        share = self.data.share[self.held_out]
        p = np.clip(learner.predict(self.differences[self.held_out], coefficients), 1e-6, 1 - 1e-6)
        decided = share != 0.5
        right = np.where(p == 0.5, 0.5, (p > 0.5) == (share > 0.5))[decided]
        return float(right.mean()), float(-np.mean(share * np.log(p) + (1 - share) * np.log(1 - p)))


def _trials(data: Labelled, repeats: int, seed: int, vectors: learner.Vectors | None) -> Iterator[tuple[int, _Trial]]:
    """A held-out quarter each, unless the file has its own."""
    from scipy import sparse

    given = data.held_out[data.group]
    for repeat in range(repeats):
        chance = np.random.default_rng((seed, repeat))
        if given.any():
            out = given
        else:
            out = chance.random(len(data.held_out))[data.group] < 0.25
        pool = np.flatnonzero(~out)
        known = np.unique([data.left[pool], data.right[pool]])
        make = vectors or learner.word_vectors([data.texts[place] for place in known.tolist()])
        features = sparse.csr_array(make(data.texts))
        differences = features[data.left] - features[data.right]
        yield repeat, _Trial(data, differences, pool, np.flatnonzero(out), chance)


def sizes_of(count: int, start: int = START, growth: float = GROWTH) -> list[int]:
    """How many labels there are after each round: more by a constant factor, all of them in the end."""
    sizes = [min(start, count)]
    while sizes[-1] < count:
        sizes.append(min(count, int(np.ceil(sizes[-1] * growth))))
    return sizes


def learning_curves(
    groups: Sequence[Group],
    strategies: Sequence[Strategy],
    *,
    repeats: int = 20,
    random_share: float = 0.1,
    seed: int = 0,
    vectors: learner.Vectors | None = None,
    progress: Progress | None = None,
) -> list[CurvePoint]:
    """The accuracy of each strategy after each round, until every pair has a label.

    All strategies of a repetition begin with the same labels, and get the same label for the same pair.

    Args:
        groups: with all of their judgments.
        strategies: which.
        repeats: repetitions with other held-out pairs, first labels and judgments.
        random_share: of each batch.
        seed: of everything.
        vectors: features of texts; the words of the pool by default.
        progress: is told of each repetition.

    Raises:
        DataError: there are too few judged pairs.
    """
    progress = progress or Silent()
    data = labelled_of(groups)
    progress.stage("Replaying strategies", total=repeats * len(strategies))
    points: list[CurvePoint] = []
    for repeat, trial in _trials(data, repeats, seed, vectors):
        labels = np.array([trial.ask(place) for place in trial.pool.tolist()])
        first = trial.random.permutation(len(trial.pool))
        for strategy in strategies:
            points += _curve(trial, strategy, labels, first, repeat, random_share)
            progress.advance(note=strategy)
    return points


def _curve(
    trial: _Trial, strategy: Strategy, labels: Floats, first: Ints, repeat: int, random_share: float
) -> Iterator[CurvePoint]:
    sizes = sizes_of(len(labels))
    differences = trial.differences[trial.pool]
    known = first[: sizes[0]]
    for number, size in enumerate(sizes):
        coefficients = learner.fit(differences[known], labels[known])
        yield CurvePoint(strategy, repeat, size, *trial.measure(coefficients))
        if size < len(labels):
            left = np.setdiff1d(np.arange(len(labels)), known)
            seed = int(np.random.default_rng((repeat, number)).integers(2**31))
            count = sizes[number + 1] - size
            scores = _scores(strategy, differences, left, known, labels, coefficients, count, seed)
            batch = choose(scores, count, random_share=random_share, seed=seed)
            known = np.concatenate([known, left[batch.places]])


def _scores(
    strategy: Strategy,
    differences: Any,
    left: Ints,
    known: Ints,
    labels: Floats,
    coefficients: Floats,
    count: int,
    seed: int,
) -> Floats:
    """(left,) what a label of each pair would be worth; the labels of pairs that are left aren't looked at."""
    if strategy == "random":  # drawn here, apart from what ``choose`` draws for all: an order of its own
        return np.random.default_rng(seed).random(len(left))
    rows = differences[left]
    evidence = Evidence(
        count=len(left),
        odds=learner.log_odds(rows, coefficients),
        wins=_committee(rows, differences, known, labels, seed) if strategy == "disagreed" else None,
        votes=np.full(len(left), float(COMMITTEE)),
        differences=rows,
        labelled=differences[known] if strategy in TEXTS else None,
    )
    return worth(strategy, evidence, limit=count)


def _committee(rows: Any, differences: Any, known: Ints, labels: Floats, seed: int) -> Floats:
    """(left,) how many of the committee prefer i."""
    chance = np.random.default_rng(seed)
    wins = np.zeros(rows.shape[0])
    for _ in range(COMMITTEE):
        drawn = known[chance.integers(len(known), size=len(known))]
        wins += learner.predict(rows, learner.fit(differences[drawn], labels[drawn])) > 0.5
    return wins


def compare_labels(
    groups: Sequence[Group],
    votes: Sequence[int] = (1, 3, 5, 9),
    *,
    budget: int | None = None,
    repeats: int = 20,
    seed: int = 0,
    vectors: learner.Vectors | None = None,
    progress: Progress | None = None,
) -> list[CurvePoint]:
    """What the form of the label is worth, several judgments a pair being drawn without replacement.

    ``soft`` trains on their share; ``smoothed`` on (Σ v + 1)/(n + 2); ``weighted`` on the majority with the weight
    |2p − 1|; ``majority`` on the majority, ties left out.

    Args:
        groups: with all of their judgments.
        votes: how many judgments a pair; fewer where there are fewer.
        budget: judgments in total, so that more a pair means fewer pairs; every pair of the pool otherwise.
        repeats: as in ``learning_curves``.
        seed: of everything.
        vectors: features of texts.
        progress: is told of each repetition.

    Returns:
        A point each, whose ``arm`` is such as ``"soft, 5 votes a pair"``.
    """
    progress = progress or Silent()
    data = labelled_of(groups)
    progress.stage("Comparing labels", total=repeats)
    points: list[CurvePoint] = []
    for repeat, trial in _trials(data, repeats, seed, vectors):
        order = trial.random.permutation(trial.pool)
        for count in votes:
            pairs = order if budget is None else order[: budget // count]
            drawn = [_drawn(trial, place, count) for place in pairs.tolist()]
            share = np.array([said.mean() for said in drawn])
            size = np.array([len(said) for said in drawn])
            for form in FORMS:
                p, weight = _form(form, share, size)
                kept = np.flatnonzero(weight > 0)
                coefficients = learner.fit(trial.differences[pairs[kept]], p[kept], weight[kept])
                arm = f"{form}, {count} vote{'s' if count > 1 else ''} a pair"
                points.append(CurvePoint(arm, repeat, int(size.sum()), *trial.measure(coefficients)))
        progress.advance()
    return points


def _drawn(trial: _Trial, place: int, count: int) -> Floats:
    said = trial.data.votes[place]
    drawn: Floats = trial.random.permutation(said)[:count]
    soft = ~np.isin(drawn, (0.0, 0.5, 1.0))
    result: Floats = np.where(soft, trial.random.random(len(drawn)) < drawn, drawn)
    return result


def _form(form: LabelForm, share: Floats, size: Ints) -> tuple[Floats, Floats]:
    """Label and weight of each pair."""
    one = np.ones(len(share))
    if form == "soft":
        return share, one
    if form == "smoothed":
        return (share * size + 1) / (size + 2), one
    decided = np.abs(2 * share - 1)
    return (share > 0.5).astype(np.float64), decided if form == "weighted" else (decided > 0).astype(np.float64)
