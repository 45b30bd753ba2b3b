"""The slope of margins against scikit-learn's logistic regression and in simulation; the Brier score by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit

from dipole.evaluate.calibration import brier, slope
from dipole.evaluate.stats import Estimate

SETS = 1000


def test_brier_by_hand() -> None:
    assert brier([0.0, 0.0, 1e9], [1.0, 0.75, 0.5]) == pytest.approx([0.25, 0.0625, 0.25])


def drawn(random: np.random.Generator, truth: float, groups: int = 60) -> Estimate:
    """Groups of four pairs with a common part in their margins; people follow σ(truth · margin)."""
    margins = random.normal(0, 1, groups).repeat(4) + random.normal(0, 1, 4 * groups)
    people = random.binomial(5, expit(truth * margins)) / 5
    return slope(margins.tolist(), people.tolist(), np.arange(groups).repeat(4).tolist())


def test_the_slope_is_that_of_a_logistic_regression_without_intercept() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    random = np.random.default_rng(0)
    margins = random.normal(0, 2, 300)
    wins = random.random(300) < expit(0.6 * margins)
    oracle = linear_model.LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10).fit(margins[:, None], wins)
    found = slope(margins.tolist(), wins.astype(float).tolist(), range(300))
    assert found.value == pytest.approx(float(oracle.coef_[0, 0]), rel=1e-5)


def test_margins_twice_as_large_as_they_should_be_have_half_the_slope() -> None:
    random = np.random.default_rng(1)
    margins = random.normal(0, 1, 500)
    exact = slope(margins.tolist(), expit(margins).tolist(), range(500))
    assert exact.value == pytest.approx(1)
    assert slope((2 * margins).tolist(), expit(margins).tolist(), range(500)).value == pytest.approx(0.5)
    assert slope((-margins).tolist(), expit(margins).tolist(), range(500)).value == pytest.approx(-1)


@pytest.mark.parametrize("truth", [0.3, 1.0])
def test_the_interval_of_the_slope_covers(truth: float) -> None:
    random = np.random.default_rng(2)
    found = [drawn(random, truth) for _ in range(SETS)]
    inside = [item.low <= truth <= item.high for item in found if item.low is not None and item.high is not None]
    assert len(inside) == SETS
    assert 0.93 <= np.mean(inside) <= 0.97


def test_what_has_no_slope_says_why() -> None:
    assert "every margin is 0" in slope([0.0, 0.0], [1.0, 0.5], "ab").method
    assert "decide every pair" in slope([1.0, 2.0], [1.0, 1.0], "ab").method
    one = slope([1.0, 2.0, -1.0], [1.0, 0.5, 1.0], "aaa")
    assert one.value is not None
    assert one.low is None
