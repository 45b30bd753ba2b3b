"""Aggregation against other people's code where that is right, and against simulated truth."""

from __future__ import annotations

import warnings

import choix
import evalica
import numpy as np
import pandas as pd
import pytest
from crowdkit.aggregation import OneCoinDawidSkene
from crowds import UNEQUAL, Crowd, crowd, group, vote
from scipy.special import logit

from dipole.feedback.aggregate import aggregate, bradley_terry, majority, one_coin
from dipole.feedback.aggregate.ballots import Ballot
from dipole.feedback.aggregate.skills import OneCoinPriors
from dipole.feedback.aggregate.strengths import STRENGTH, fit_strengths
from dipole.group import Ranking

pytestmark = pytest.mark.filterwarnings("ignore::pandas.errors.Pandas4Warning")

PENALTY = 0.5 / STRENGTH[1] ** 2
"""choix adds α ‖θ‖² where a normal prior has ½ ‖θ‖² / σ²."""


def wins(true: np.ndarray, count: int, seed: int) -> list[tuple[int, int]]:
    random = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        i, j = random.choice(len(true), size=2, replace=False).tolist()
        found.append((i, j) if random.random() < 1 / (1 + np.exp(true[j] - true[i])) else (j, i))
    return found


def as_ballots(data: list[tuple[int, ...]]) -> list[Ballot]:
    return [Ballot(tuple((item,) for item in order), 1.0, cluster) for cluster, order in enumerate(data)]


def test_bradley_terry_equals_choix() -> None:
    data = wins(np.linspace(0, 2.5, 6), 400, seed=1)
    found = fit_strengths(as_ballots(data), 6).strength
    expected = choix.opt_pairwise(6, data, alpha=PENALTY, tol=1e-12)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_plackett_luce_equals_choix() -> None:
    random = np.random.default_rng(2)
    true = np.linspace(0, 2, 5)
    data = [tuple(np.argsort(-(true + random.gumbel(size=5)))[: random.integers(2, 6)].tolist()) for _ in range(60)]
    found = fit_strengths(as_ballots(data), 5).strength
    # choix takes a partial ranking for the best of its own items, as here.
    expected = choix.opt_rankings(5, data, alpha=PENALTY, tol=1e-12)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_bradley_terry_equals_evalica_where_the_prior_hardly_counts() -> None:
    true = np.linspace(0, 2.5, 6)
    data = wins(true, 20_000, seed=3)
    names = [(str(i), str(j)) for i, j in data]
    scores = evalica.bradley_terry(
        [i for i, _ in names], [j for _, j in names], [evalica.Winner.X] * len(names), tolerance=1e-12, limit=10_000
    ).scores
    expected = np.log(np.array([scores[str(k)] for k in range(6)]))
    found = fit_strengths(as_ballots(data), 6).strength
    np.testing.assert_allclose(found - found.mean(), expected - expected.mean(), atol=2e-3)


def test_an_undefeated_item_collapses_in_evalica_and_raises_in_choix_but_not_here() -> None:
    """Should either change, the reason for a fit of our own in ``choice`` has to be looked at again."""
    data = [(0, 1)] * 5 + [(1, 2)] * 3 + [(2, 1)] * 2 + [(0, 2)] * 4
    scores = evalica.bradley_terry(
        [str(i) for i, _ in data], [str(j) for _, j in data], [evalica.Winner.X] * len(data), limit=10_000
    ).scores
    assert scores.max() < 1e-3
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises((RuntimeError, ValueError)):
            choix.ilsr_pairwise(3, data, alpha=0.0, max_iter=100)
    found = fit_strengths(as_ballots(data), 3)
    assert np.isfinite(found.strength).all()
    assert found.strength[0] > found.strength[1] > found.strength[2]


def crowdkit_labels(data: Crowd, rounds: int) -> np.ndarray:
    """(judged pairs) crowd-kit's probability that the first completion is the better one.

    It also estimates the shares of both classes. Every pair is there twice, once turned round, so that they are equal.
    """
    rows = [
        (number + turned * len(data.groups), judged.annotator, "first" if (judged.p == 1) != turned else "second")
        for turned in (False, True)
        for number, item in enumerate(data.groups)
        for judged in item.judgments
    ]
    model = OneCoinDawidSkene(n_iter=rounds, tol=1e-12)
    model.fit(pd.DataFrame(rows, columns=["task", "worker", "label"]))
    p = model.probas_.sort_index()["first"].to_numpy()
    return p[: len(p) // 2]


FLAT = OneCoinPriors(skill=(0.0, 1e3))
"""A prior that says nothing, as in the published model."""


def test_without_priors_it_is_crowdkits_one_coin_model() -> None:
    data = crowd(seed=4, pairs=60)
    found = one_coin(data.groups, priors=FLAT)
    np.testing.assert_allclose(found.pairs.p, crowdkit_labels(data, rounds=60), atol=1e-3)


def published_one_coin(data: Crowd, rounds: int = 1000) -> tuple[np.ndarray, np.ndarray]:
    """Dawid and Skene's model with one accuracy an annotator and equal classes, by its own formulas."""
    names = sorted({judged.annotator for item in data.groups for judged in item.judgments})
    says = np.zeros((len(data.groups), len(names)))
    for number, item in enumerate(data.groups):
        for judged in item.judgments:
            says[number, names.index(judged.annotator)] = 2 * judged.p - 1
    seen = says != 0
    p = np.array([row[row != 0].mean() / 2 + 0.5 if row.any() else 0.5 for row in says])
    for _ in range(rounds):
        right = (p[:, None] * (says > 0) + (1 - p)[:, None] * (says < 0)).sum(axis=0) / seen.sum(axis=0)
        odds = says @ np.log(right / (1 - right))
        p = 1 / (1 + np.exp(-odds))
    return p, right


def test_without_priors_it_is_the_published_model() -> None:
    data = crowd((0.9, 0.8, 0.7, 0.6), seed=5, pairs=250)
    found = one_coin(data.groups, priors=FLAT)
    p, right = published_one_coin(data)
    np.testing.assert_allclose(found.pairs.p, p[found.pairs.group], atol=2e-4)
    for person in found.annotators:
        assert person.reliability == pytest.approx(right[int(person.name[1:])], abs=2e-4)


def test_five_annotators_of_very_different_skill() -> None:
    """Within 0.01 of the best: majority, crowd-kit's model, and votes weighted by the true accuracies."""
    results: dict[str, list[float]] = {"here": [], "majority": [], "crowd-kit": [], "informed": []}
    for seed in range(4):
        data = crowd(seed=seed)
        mine = one_coin(data.groups).pairs
        results["here"].append(data.accuracy(mine.p, mine.group))
        share = majority(data.groups).pairs
        results["majority"].append(data.accuracy(share.p, share.group))
        order = np.array([number for number, item in enumerate(data.groups) if item.judgments])
        results["crowd-kit"].append(data.accuracy(crowdkit_labels(data, 25), order))
        weights = np.log(np.array(UNEQUAL) / (1 - np.array(UNEQUAL)))
        odds = [sum(weights[int(v.annotator[1:])] * (2 * v.p - 1) for v in item.judgments) for item in data.groups]
        results["informed"].append(data.accuracy(1 / (1 + np.exp(-np.array(odds)[order])), order))
    means = {name: float(np.mean(values)) for name, values in results.items()}
    assert means["here"] >= max(means["majority"], means["crowd-kit"]) - 0.01, means
    assert means["here"] >= means["informed"] - 0.01, means
    assert means["here"] >= means["majority"] + 0.04, means


def test_accuracies_and_biases_are_recovered_within_their_intervals() -> None:
    accuracies, biases = (0.92, 0.85, 0.7, 0.6), (0.0, 0.8, -0.6, 1.5)
    inside = total = 0
    for seed in range(6):
        data = crowd(accuracies, pairs=300, coverage=0.9, ties=0.1, biases=biases, seed=seed)
        for person in one_coin(data.groups).annotators:
            k = int(person.name[1:])
            for interval, true in (
                (person.reliability_interval, accuracies[k]),
                (person.side_bias_interval, 1 / (1 + np.exp(-biases[k]))),
            ):
                assert interval is not None
                inside += interval[0] <= true <= interval[1]
                total += 1
    assert inside / total >= 0.85, (inside, total)


def test_labels_are_calibrated() -> None:
    p, right = [], []
    for seed in range(6):
        data = crowd((0.85, 0.75, 0.7, 0.65), pairs=400, seed=50 + seed)
        found = one_coin(data.groups).pairs
        p.append(np.maximum(found.p, 1 - found.p))
        right.append((found.p > 0.5) == (data.better[found.group] == 0))
    p_all, right_all = np.concatenate(p), np.concatenate(right)
    for low, high in ((0.5, 0.7), (0.7, 0.85), (0.85, 0.95), (0.95, 1.0)):
        here = (p_all >= low) & (p_all < high)
        assert right_all[here].mean() == pytest.approx(p_all[here].mean(), abs=0.06)


def test_strengths_of_rankings_join_what_was_not_compared() -> None:
    groups = [group("g", 3, *[vote(1.0, f"a{k}") for k in range(8)], *[vote(1.0, f"b{k}", i=1, j=2) for k in range(8)])]
    pairs = bradley_terry(groups).pairs
    columns = (pairs.first, pairs.second, pairs.p, pairs.num_votes)
    p = {(i, j): (q, votes) for i, j, q, votes in zip(*(column.tolist() for column in columns), strict=True)}
    assert set(p) == {(0, 1), (0, 2), (1, 2)}
    assert p[0, 2][0] > max(p[0, 1][0], p[1, 2][0]) > 0.75
    assert p[0, 2][1] == 0


def test_rankings_whole_and_taken_apart_differ() -> None:
    """Taken apart into pairs, a ranking of four counts as six votes; whole, as the three choices that it is."""
    groups = [group("g", 4, *[Ranking(order=(0, 1, 2, 3), annotator=f"a{k}") for k in range(3)])]
    apart = aggregate(groups, "bradley_terry").aggregation.pairs
    whole = aggregate(groups, "plackett_luce").aggregation.pairs
    widths = [logit(found.high) - logit(found.low) for found in (apart, whole)]
    assert widths[1].mean() > widths[0].mean()
    assert np.all(whole.p[[0, 1, 2]] > 0.5)
