"""The numbers behind aggregation: maxima, curvatures, variances, and what isn't identifiable."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from crowds import crowd
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from scipy.optimize import minimize

from dipole.feedback.aggregate import skills
from dipole.feedback.aggregate.ballots import Ballot, choices_of
from dipole.feedback.aggregate.choice import Choices, Prior, fit, log_posterior
from dipole.feedback.aggregate.connected import can_be_rated, parts, with_a_circle_of_wins
from dipole.feedback.aggregate.skills import OneCoinPriors, one_coin
from dipole.feedback.aggregate.spread import covariance, standard_errors
from dipole.feedback.aggregate.strengths import fit_strengths
from dipole.feedback.aggregate.votes import votes_of


def random_choices(seed: int) -> tuple[Choices, np.ndarray, Prior]:
    random = np.random.default_rng(seed)
    widths = random.integers(2, 5, size=12)
    design = sparse.csr_array(
        random.normal(size=(int(widths.sum()), 4)) * (random.random((int(widths.sum()), 4)) < 0.7)
    )
    chosen = random.random(int(widths.sum())) * 3
    return Choices(design, np.cumsum(widths) - widths), chosen, Prior(random.normal(size=4), random.random(4) + 0.2)


@pytest.mark.parametrize("seed", range(3))
def test_the_fit_is_the_maximum(seed: int) -> None:
    choices, chosen, prior = random_choices(seed)
    found = fit(choices, chosen, prior)
    best = minimize(lambda x: -log_posterior(choices, chosen, prior, x), np.zeros(4), method="BFGS", tol=1e-10)
    np.testing.assert_allclose(found, best.x, atol=1e-5)
    sparsely = fit(choices, chosen, prior, start=np.full(4, 5.0))
    np.testing.assert_allclose(sparsely, found, atol=1e-8)


def test_small_and_sparse_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    choices, chosen, prior = random_choices(7)
    dense = fit(choices, chosen, prior)
    monkeypatch.setattr("dipole.feedback.aggregate.choice.SMALL", 0)
    np.testing.assert_allclose(fit(choices, chosen, prior), dense, atol=1e-10)


def test_information_is_minus_the_second_derivative() -> None:
    choices, chosen, prior = random_choices(3)
    at = np.array([0.3, -0.2, 0.5, 0.1])
    information = choices.information(chosen, np.exp(choices.log_probabilities(at))).toarray() + np.diag(
        prior.precision
    )
    step = 1e-4
    for i in range(4):
        for j in range(4):
            a, b = np.eye(4)[i] * step, np.eye(4)[j] * step
            second = sum(
                sign * log_posterior(choices, chosen, prior, at + s * a + t * b)
                for sign, s, t in ((1, 1, 1), (-1, 1, -1), (-1, -1, 1), (1, -1, -1))
            ) / (4 * step**2)
            assert -second == pytest.approx(information[i, j], abs=1e-4)


@pytest.mark.parametrize("ties", [False, True])
def test_the_probabilities_of_all_rankings_sum_to_one(ties: bool) -> None:
    """Of three items, ties of two allowed or not: by the stages that ballots are made of."""
    strict = [tuple((item,) for item in order) for order in permutations(range(3))]
    tied = [((0, 1), (2,)), ((0, 2), (1,)), ((1, 2), (0,)), ((2,), (0, 1)), ((1,), (0, 2)), ((0,), (1, 2))]
    ranks = strict + (tied if ties else [])
    choices, clusters = choices_of([Ballot(order, 1.0, number) for number, order in enumerate(ranks)], 3)
    parameters = np.array([0.4, -0.3, 0.9, 0.0, *([0.2] if ties else [])])
    assert len(parameters) == choices.design.shape[1]
    each = clusters @ choices.log_probabilities(parameters)
    assert np.exp(each).sum() == pytest.approx(1.0)


def test_davidson_by_hand() -> None:
    """P(tie) : P(win) is ν √(α β) : α (Davidson 1970)."""
    ballots = [Ballot(((0,), (1,)), 1.0, 0), Ballot(((0, 1),), 1.0, 1)]
    choices, _ = choices_of(ballots, 2)
    p = np.exp(choices.log_probabilities(np.array([0.7, 0.1, 0.0, np.log(1.3)])))
    a, b = np.exp(0.7), np.exp(0.1)
    expected = np.array([a, b, 1.3 * np.sqrt(a * b)])
    np.testing.assert_allclose(p, expected / expected.sum())
    fitted = fit_strengths(ballots, 2)
    for d in (-3.0, 0.0, 2.0, 900.0):
        tied = np.exp(fitted.log_tie)
        up, down = np.exp(min(d, 600) / 2), np.exp(-min(d, 600) / 2)
        assert fitted.probability(np.array([d]))[0] == pytest.approx((up + tied / 2) / (up + down + tied))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), ties=st.sampled_from([0.0, 0.3]), sided=st.booleans())
def test_the_log_posterior_never_falls(seed: int, ties: float, sided: bool) -> None:
    random = np.random.default_rng(seed)
    people = tuple(random.uniform(0.2, 0.98, size=random.integers(1, 6)))
    biases = tuple(random.normal(size=len(people))) if sided else None
    data = crowd(people, pairs=int(random.integers(1, 30)), coverage=0.8, ties=ties, biases=biases, seed=seed)
    if not any(item.judgments for item in data.groups):
        return
    found = one_coin(data.groups)
    assert np.all(np.diff(found.objective) >= -1e-9 * (1 + np.abs(found.objective[:-1])))
    low, p, high = found.pairs.low, found.pairs.p, found.pairs.high
    assert np.all((p >= 0) & (p <= 1))
    assert np.all(np.isnan(low) | ((low <= p + 1e-12) & (p <= high + 1e-12)))
    assert not np.isnan(low).any() or any("two opposite" in note for note in found.notes)


def test_curvature_of_the_one_coin_model_is_that_of_its_objective() -> None:
    """Louis's formula against second differences of the log-posterior with the truths summed out."""
    data = crowd((0.9, 0.7, 0.6), pairs=25, ties=0.2, biases=(0.0, 0.7, -0.5), seed=3)
    votes = votes_of(data.groups)
    model = skills._model(votes, OneCoinPriors())
    state, _ = skills._climb(model, skills._first_guess(votes, model.truths))
    spread, gradient = skills._uncertainty(model, state)
    at, step = state.parameters, 1e-3

    def value(x: np.ndarray) -> float:
        return skills._expect(model, x, state.tied).objective

    size = len(at)
    second = np.empty((size, size))
    for i in range(size):
        for j in range(size):
            a, b = np.eye(size)[i] * step, np.eye(size)[j] * step
            second[i, j] = (value(at + a + b) - value(at + a - b) - value(at - a + b) + value(at - a - b)) / (
                4 * step**2
            )
    np.testing.assert_allclose(np.linalg.inv(spread.toarray()), -second, atol=2e-4)

    def p(x: np.ndarray) -> np.ndarray:
        values = np.array([skills.TRUTHS[z] for z in model.truths])
        return skills._expect(model, x, state.tied).truth @ values

    slope = np.stack([(p(at + e * step) - p(at - e * step)) / (2 * step) for e in np.eye(size)], axis=1)
    np.testing.assert_allclose(gradient.toarray(), slope, atol=1e-5)


def test_the_sandwich_by_hand() -> None:
    """One mean of clustered observations: A = n, J = C/(C−1) Σ (sum of a cluster's deviations)²."""
    information = sparse.csr_array(np.array([[4.0]]))
    scores = sparse.csr_array(np.array([[1.0], [-0.5], [-0.5]]))
    found = covariance(information, np.array([0]), scores)
    assert found.toarray()[0, 0] == pytest.approx(1.5 * 1.5 / 16)


def test_blocks_equal_the_whole_where_nothing_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    pieces = [random.normal(size=(5, size)) for size in (1, 2, 2, 3)]
    information = sparse.csr_array(sparse.block_diag([piece.T @ piece + np.eye(piece.shape[1]) for piece in pieces]))
    scores = sparse.csr_array(random.normal(size=(6, 8)))
    block = np.repeat([3, 0, 2, 1], [1, 2, 2, 3])
    whole = covariance(information, block)
    monkeypatch.setattr("dipole.feedback.aggregate.spread.WHOLE", 0)
    np.testing.assert_allclose(covariance(information, block).toarray(), whole.toarray(), atol=1e-12)
    small = covariance(information, block, scores).toarray()
    meat = (scores.T @ scores).toarray() * 6 / 5
    inside = block[:, None] == block[None, :]
    expected = np.linalg.inv(information.toarray()) @ (meat * inside) @ np.linalg.inv(information.toarray())
    np.testing.assert_allclose(small, expected * inside, atol=1e-12)


def test_a_matrix_that_is_not_positive_has_no_errors() -> None:
    spread = covariance(sparse.csr_array(np.diag([1.0, -1.0])), np.array([0, 0]))
    assert np.isnan(standard_errors(sparse.eye_array(2, format="csr"), spread)).all()


def test_intervals_of_strengths_cover_the_truth() -> None:
    """Votes on one prompt go together here: without the sandwich two in three intervals would hold the truth."""
    true = np.array([-0.6, 0.0, 0.6])
    covered = narrow = total = 0
    for seed in range(60):
        random = np.random.default_rng(seed)
        ballots = []
        for prompt in range(40):
            here = true + random.normal(size=3) * 0.8
            i, j = random.permutation(3)[:2].tolist()
            for _ in range(6):
                first = random.random() < 1 / (1 + np.exp(here[j] - here[i]))
                ballots.append(Ballot(((i,), (j,)) if first else ((j,), (i,)), 1.0, prompt))
        found = fit_strengths(ballots, 3)
        contrast = sparse.csr_array(np.array([[1.0, -1.0, 0.0], [0.0, 1.0, -1.0]]))
        gap = contrast @ found.strength
        error, model = (
            found.errors(contrast),
            standard_errors(
                sparse.csr_array(np.hstack([contrast.toarray(), np.zeros((2, found.posterior.shape[0] - 3))])),
                found.posterior,
            ),
        )
        # A strength of the average prompt is smaller than that of its own, by √(1 + (16√3/15π)² · 2 · 0.64).
        marginal = -0.6 / np.sqrt(1 + 0.3458 * 2 * 0.64)
        covered += int(np.sum(np.abs(gap - marginal) <= 1.96 * error))
        narrow += int(np.sum(np.abs(gap - marginal) <= 1.96 * model))
        total += 2
    assert 0.9 <= covered / total <= 0.995, covered / total
    assert narrow / total < 0.85, narrow / total


def test_parts_and_circles() -> None:
    assert len(set(parts(5, np.array([0, 1]), np.array([1, 2])).tolist())) == 3
    circles = with_a_circle_of_wins(4, np.array([0, 1, 2, 0]), np.array([1, 2, 0, 3]))
    assert circles[0] == circles[1] == circles[2] != circles[3]


@pytest.mark.parametrize(
    ("votes", "expected"),
    [
        ([(0, 0)], [False]),
        ([(0, 0), (0, 1)], [False, False]),
        ([(0, 0), (0, 1), (0, 2)], [True, True, True]),
        ([(0, 0), (0, 1), (1, 1), (1, 2), (2, 2), (2, 0)], [True, True, True]),
        ([(0, 0), (0, 1), (1, 1), (1, 2), (2, 2), (2, 3), (3, 3), (3, 0)], [False] * 4),
        ([(0, 0), (0, 1), (0, 2), (1, 2), (1, 3), (2, 4)], [True, True, True, True, False]),
        ([(0, 0), (0, 0)], [True]),
    ],
    ids=["alone", "two", "three", "a circle of three", "a circle of four", "one hangs on, one alone", "a crowd"],
)
def test_whose_reliability_can_be_told(votes: list[tuple[int, int]], expected: list[bool]) -> None:
    unit, annotator = np.array(votes).T
    assert can_be_rated(len(expected), unit, annotator).tolist() == expected
