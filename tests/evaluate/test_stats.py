"""Statistics against scipy, closed forms, and simulation."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy import stats as oracle

from dipole.errors import DataError
from dipole.evaluate import stats
from dipole.evaluate.stats import Estimate


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(7)


def interval(estimate: Estimate) -> tuple[float, float]:
    assert estimate.low is not None
    assert estimate.high is not None
    return estimate.low, estimate.high


def clustered(
    random: np.random.Generator, *, groups: int, size: int, between: float, within: float
) -> tuple[np.ndarray, list[int]]:
    """Values with a common part for each cluster; their mean is 0."""
    values = random.normal(0, between, (groups, 1)) + random.normal(0, within, (groups, size))
    return values.ravel(), np.repeat(np.arange(groups), size).tolist()


# --- the mean ---------------------------------------------------------------------------------------------------------


def test_mean_without_clusters_is_the_t_interval(random: np.random.Generator) -> None:
    x = random.exponential(size=23)
    found = stats.mean(x)
    low, high = oracle.t.interval(0.95, len(x) - 1, loc=x.mean(), scale=oracle.sem(x))
    assert found.value == pytest.approx(x.mean(), rel=1e-12)
    assert interval(found) == pytest.approx((low, high), rel=1e-10)
    assert (found.n, found.clusters) == (23, None)


def test_mean_of_equal_clusters_is_the_t_interval_of_the_cluster_means(random: np.random.Generator) -> None:
    x, clusters = clustered(random, groups=9, size=4, between=1, within=1)
    means = x.reshape(9, 4).mean(1)
    low, high = oracle.t.interval(0.9, 8, loc=means.mean(), scale=oracle.sem(means))
    found = stats.mean(x, clusters, confidence=0.9)
    assert interval(found) == pytest.approx((low, high), rel=1e-10)
    assert (found.n, found.clusters) == (36, 9)


def test_unequal_clusters_by_hand() -> None:
    # Deviations from the mean 3: cluster a sums to −3, cluster b to 3. SE² = 2/1 · (9 + 9) / 9 = 4.
    found = stats.mean([1.0, 2.0, 6.0], ["a", "a", "b"])
    reach = float(oracle.t.ppf(0.975, 1)) * 2
    assert interval(found) == pytest.approx((3 - reach, 3 + reach), rel=1e-10)


def test_repeating_every_value_in_its_cluster_adds_no_certainty(random: np.random.Generator) -> None:
    x = random.normal(size=12)
    once = stats.mean(x)
    repeated = stats.mean(np.repeat(x, 5), np.repeat(np.arange(12), 5).tolist())
    assert interval(repeated) == pytest.approx(interval(once), rel=1e-10)


@pytest.mark.parametrize(
    ("values", "clusters", "value", "reason"),
    [
        ([], None, None, "no values"),
        ([], [], None, "no values"),
        ([2.0], None, 2.0, "there is only one value"),
        ([2.0, 3.0], ["a", "a"], 2.5, "there is only one cluster"),
        ([0.1, 0.1, 0.1], None, 0.1, "every value is alike"),
        ([0.0, 1.0, 1.0, 0.0], ["a", "a", "b", "b"], 0.5, "every cluster is alike"),
    ],
)
@pytest.mark.parametrize("method", [stats.mean, stats.bootstrap])
def test_where_no_interval_can_be_had_the_method_says_why(method, values, clusters, value, reason) -> None:
    found = method(values, clusters)
    assert found.value == (None if value is None else pytest.approx(value))
    assert (found.low, found.high) == (None, None)
    expected = (
        reason if method is stats.mean else reason.replace("every value", "every").replace("every cluster", "every")
    )
    assert expected.split(" is alike")[0] in found.method
    assert ": none, " in found.method


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_a_value_that_is_not_finite_is_refused(wrong: float) -> None:
    with pytest.raises(DataError, match="value 1 is"):
        stats.mean([1.0, wrong])


def test_cluster_names_have_to_match_the_values() -> None:
    with pytest.raises(DataError, match="2 values have 3 cluster names"):
        stats.mean([1.0, 2.0], ["a", "b", "c"])


def test_paired_difference_is_the_paired_t_interval(random: np.random.Generator) -> None:
    before = random.normal(size=30)
    after = before + random.normal(0.3, 0.2, size=30)
    expected = oracle.ttest_rel(after, before).confidence_interval(0.95)
    assert interval(stats.paired_difference(after, before)) == pytest.approx((expected.low, expected.high), rel=1e-9)


def test_unpaired_lengths_are_refused() -> None:
    with pytest.raises(DataError, match="2 values can't be paired with 1"):
        stats.paired_difference([1.0, 2.0], [1.0])


# --- shares -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("wins", "n"), [(0, 10), (1, 1), (3, 10), (50, 100), (431, 431), (365, 431)])
def test_share_of_wins_and_losses_is_wilsons(wins: int, n: int) -> None:
    found = stats.share([1.0] * wins + [0.0] * (n - wins))
    expected = oracle.binomtest(wins, n).proportion_ci(0.95, method="wilson")
    assert found.value == pytest.approx(wins / n)
    assert interval(found) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_ties_count_half_and_narrow_the_interval() -> None:
    decided = stats.share([1.0] * 50 + [0.0] * 50)
    tied = stats.share([1.0] * 25 + [0.0] * 25 + [0.5] * 50)
    assert decided.value == tied.value == 0.5
    # Half the variance is worth twice the flips.
    doubled = oracle.binomtest(100, 200).proportion_ci(0.95, method="wilson")
    assert interval(tied) == pytest.approx((doubled.low, doubled.high), abs=1e-12)
    assert interval(tied)[1] < interval(decided)[1]


def test_copies_inside_a_cluster_add_no_certainty_to_a_share() -> None:
    outcomes = [1.0] * 30 + [0.0] * 20
    once = stats.share(outcomes)
    copied = stats.share(np.repeat(outcomes, 8), np.repeat(np.arange(50), 8).tolist())
    assert copied.clusters == 50
    assert copied.n == 400
    assert interval(copied)[0] <= interval(once)[0]
    assert interval(copied)[1] >= interval(once)[1]
    assert interval(copied)[1] - interval(copied)[0] < 1.1 * (interval(once)[1] - interval(once)[0])


def test_all_wins_in_clusters_count_the_clusters() -> None:
    found = stats.share([1.0] * 48, np.repeat(np.arange(12), 4).tolist())
    expected = oracle.binomtest(12, 12).proportion_ci(0.95, method="wilson")
    assert interval(found) == pytest.approx((expected.low, 1.0), abs=1e-12)


def test_shares_that_have_no_interval() -> None:
    assert stats.share([]).value is None
    assert "no outcomes" in stats.share([]).method
    one = stats.share([1.0, 0.0], ["a", "a"])
    assert (one.value, one.low) == (0.5, None)
    assert "only one cluster" in one.method


def test_all_ties_is_one_half_inside_the_unit_interval() -> None:
    low, high = interval(stats.share([0.5] * 20))
    assert 0 < low < 0.5 < high < 1


def test_an_outcome_outside_the_unit_interval_is_refused() -> None:
    with pytest.raises(DataError, match="outcome of -1"):
        stats.share([1.0, -1.0])


# --- the bootstrap ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "scipy_kind"), [("percentile", "percentile"), ("bca", "BCa")])
def test_bootstrap_agrees_with_scipys_at_the_widened_level(random: np.random.Generator, kind, scipy_kind) -> None:
    x = random.exponential(size=40)
    found = stats.bootstrap(x, kind=kind, resamples=20_000)
    tail = oracle.norm.cdf(-oracle.t.ppf(0.975, 39) * math.sqrt(40 / 39))
    expected = oracle.bootstrap(
        (x,), np.mean, confidence_level=1 - 2 * tail, n_resamples=20_000, method=scipy_kind, random_state=1
    ).confidence_interval
    # Both are random: the standard error of a 2 % quantile from 20,000 resamples is about 0.02 of the spread.
    assert interval(found) == pytest.approx((expected.low, expected.high), abs=0.08 * oracle.sem(x))


def test_a_draw_of_clusters_brings_all_their_rows() -> None:
    seen: list[list[float]] = []

    def record(rows: np.ndarray) -> float:
        seen.append(sorted(rows.tolist()))
        return float(rows.sum())

    stats.bootstrap([1.0, 20.0, 2.0, 300.0, 21.0], ["a", "b", "a", "c", "b"], statistic=record, resamples=200)
    blocks = {1.0: [1.0, 2.0], 20.0: [20.0, 21.0], 300.0: [300.0]}
    for rows in seen[1:]:
        drawn = [first for first in rows if first in blocks]
        assert len(drawn) == 3
        assert rows == sorted(value for first in drawn for value in blocks[first])
    assert len({tuple(rows) for rows in seen}) == 10


def test_bootstrap_draws_whole_clusters(random: np.random.Generator) -> None:
    x, clusters = clustered(random, groups=40, size=10, between=1, within=0.1)
    low, high = interval(stats.bootstrap(x, clusters))
    expected_low, expected_high = interval(stats.mean(x, clusters))
    assert high - low == pytest.approx(expected_high - expected_low, rel=0.12)
    naive_low, naive_high = interval(stats.bootstrap(x))
    assert high - low > 2.5 * (naive_high - naive_low)


def test_the_seed_decides(random: np.random.Generator) -> None:
    x = random.normal(size=20)
    assert stats.bootstrap(x, seed=3) == stats.bootstrap(x, seed=3)
    assert stats.bootstrap(x, seed=3) != stats.bootstrap(x, seed=4)


def test_bootstrap_of_a_statistic_of_two_columns(random: np.random.Generator) -> None:
    x = random.normal(size=(60, 1))
    rows = np.hstack([x, 2 * x + random.normal(0, 0.1, (60, 1))])
    found = stats.bootstrap(rows, statistic=lambda r: float(np.polyfit(r[:, 0], r[:, 1], 1)[0]), resamples=300)
    low, high = interval(found)
    assert low < 2 < high
    assert high - low < 0.15


def test_a_statistic_that_is_undefined_in_some_resamples_has_no_interval() -> None:
    def ratio(rows: np.ndarray) -> float:
        return float(rows.mean() / rows.sum()) if rows.sum() else math.nan

    found = stats.bootstrap([1.0, 0.0, 0.0], statistic=ratio, resamples=100)
    assert found.value == pytest.approx(1 / 3)
    assert found.low is None
    assert "undefined in" in found.method


# --- coverage ---------------------------------------------------------------------------------------------------------

SETS = 1000


def covered(sets, truth: float) -> float:
    found = [interval(estimate) for estimate in sets]
    assert len(found) == SETS
    return float(np.mean([low <= truth <= high for low, high in found]))


def test_coverage_of_the_clustered_mean(random: np.random.Generator) -> None:
    draws = (clustered(random, groups=25, size=6, between=0.7, within=1.0) for _ in range(SETS))
    assert 0.93 <= covered((stats.mean(*draw) for draw in draws), 0.0) <= 0.97


def test_ignoring_clusters_would_not_cover(random: np.random.Generator) -> None:
    draws = (clustered(random, groups=25, size=6, between=0.7, within=1.0) for _ in range(SETS))
    assert covered((stats.mean(values) for values, _ in draws), 0.0) < 0.85


@pytest.mark.parametrize("kind", ["percentile", "bca"])
def test_coverage_of_the_bootstrap(random: np.random.Generator, kind) -> None:
    draws = (clustered(random, groups=20, size=3, between=0.7, within=1.0) for _ in range(SETS))
    sets = (stats.bootstrap(*draw, kind=kind, resamples=99, seed=i) for i, draw in enumerate(draws))
    assert 0.93 <= covered(sets, 0.0) <= 0.97


@pytest.mark.parametrize("truth", [0.5, 0.85])
def test_coverage_of_a_share(random: np.random.Generator, truth: float) -> None:
    sets = (stats.share(random.random(200) < truth) for _ in range(SETS))
    assert 0.93 <= covered(sets, truth) <= 0.97


def test_coverage_of_a_clustered_share_with_ties(random: np.random.Generator) -> None:
    """Each prompt has its own win rate, drawn from Beta(3, 2); one judgment in five is a tie."""

    def draw() -> Estimate:
        rates = np.repeat(random.beta(3, 2, 60), 5)
        outcomes = np.where(random.random(300) < 0.2, 0.5, random.random(300) < rates)
        return stats.share(outcomes, np.repeat(np.arange(60), 5).tolist())

    truth = 0.2 * 0.5 + 0.8 * 0.6
    assert 0.93 <= covered((draw() for _ in range(SETS)), truth) <= 0.97


def test_coverage_of_both_kl_estimators(random: np.random.Generator) -> None:
    """Policy N(0.3, 1) against reference N(0, 1): KL is 0.3²/2."""

    def draw(estimator) -> Estimate:
        y = random.normal(0.3, 1, 200)
        return stats.kl(oracle.norm.logpdf(y, 0.3), oracle.norm.logpdf(y, 0), estimator=estimator)

    for estimator in ("k1", "k3"):
        assert 0.93 <= covered((draw(estimator) for _ in range(SETS)), 0.045) <= 0.97


# --- KL ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_kl_of_a_categorical_is_exact_in_expectation(estimator) -> None:
    policy, reference = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.3, 0.5])
    # A sample in which every outcome appears exactly as often as the policy would write it.
    outcomes = np.repeat([0, 1, 2], [5, 3, 2])
    found = stats.kl(np.log(policy[outcomes]), np.log(reference[outcomes]), estimator=estimator)
    assert found.value == pytest.approx(oracle.entropy(policy, reference), rel=1e-12)
    assert found.method.startswith(estimator)


def test_k3_is_never_negative_and_k1_can_be(random: np.random.Generator) -> None:
    logps, ref_logps = random.normal(-60, 1, 50), random.normal(-59, 1, 50)
    assert stats.kl(logps, ref_logps, estimator="k1").value < 0
    assert stats.kl(logps, ref_logps, estimator="k3").value > 0


def test_k3_keeps_its_precision_where_policy_and_reference_nearly_agree() -> None:
    # exp(−d) − 1 + d = d²/2 for small d; done naively, 1e-9² drowns in the rounding of exp.
    found = stats.kl([-50.0 + 1e-6], [-50.0], estimator="k3")
    assert found.value == pytest.approx(0.5e-12, rel=1e-3)


def test_k3_that_overflows_has_no_value() -> None:
    found = stats.kl([-900.0, -10.0], [-10.0, -10.0], estimator="k3")
    assert found.value is None
    assert "overflows" in found.method


def test_kl_of_the_policy_with_itself_is_zero() -> None:
    found = stats.kl([-3.0, -4.0], [-3.0, -4.0])
    assert (found.value, found.low) == (0.0, None)


def test_kl_of_nothing_is_none() -> None:
    assert stats.kl([], [], ["a"][:0], estimator="k3").value is None


# --- tests of no difference -------------------------------------------------------------------------------------------


def test_the_sign_test_is_the_binomial_test_of_the_discordant_pairs() -> None:
    after = [1.0] * 20 + [0.0] * 7 + [1.0] * 13
    before = [0.0] * 20 + [1.0] * 7 + [1.0] * 13
    found = stats.sign_test(after, before)
    assert found.p_value == pytest.approx(oracle.binomtest(20, 27).pvalue, rel=1e-10)
    assert found.n == 40
    assert "20 up, 7 down, 13 equal" in found.method


@pytest.mark.parametrize("test", [stats.sign_test, stats.permutation_test])
def test_tests_of_nothing_and_of_no_difference(test) -> None:
    assert test([], []).p_value is None
    assert test([1.0, 2.0], [1.0, 2.0]).p_value == 1.0


def test_the_exact_permutation_test_is_scipys(random: np.random.Generator) -> None:
    before = random.normal(size=10)
    after = before + random.normal(0.4, 0.6, size=10)
    expected = oracle.permutation_test(
        (after, before), lambda a, b: np.mean(a - b), permutation_type="samples", n_resamples=np.inf
    )
    found = stats.permutation_test(after, before)
    assert found.p_value == pytest.approx(expected.pvalue, rel=1e-12)
    assert "all sign patterns of 10 values" in found.method


def test_the_drawn_permutation_test_is_close_to_the_exact_one(random: np.random.Generator) -> None:
    d = random.normal(0.5, 1, size=12)
    exact = stats.permutation_test(d, np.zeros(12))
    drawn = stats.permutation_test(d, np.zeros(12), resamples=4000)
    assert drawn.p_value == pytest.approx(exact.p_value, abs=0.02)
    assert drawn == stats.permutation_test(d, np.zeros(12), resamples=4000)


def test_permutation_flips_whole_clusters() -> None:
    # Two clusters: only four patterns, of which two are as extreme as the observed one.
    found = stats.permutation_test([1.0] * 20, [0.0] * 20, ["a"] * 10 + ["b"] * 10)
    assert found.p_value == pytest.approx(0.5)


def test_the_permutation_test_keeps_its_level(random: np.random.Generator) -> None:
    rejected = [
        stats.permutation_test(random.standard_t(4, size=8), np.zeros(8), resamples=256).p_value <= 0.05
        for _ in range(SETS)
    ]
    assert 0.03 <= np.mean(rejected) <= 0.07


def test_holm_by_hand() -> None:
    # Sorted: .01·4, .02·3, .03·2, .8·1, each at least as large as the one before.
    assert stats.holm([0.03, 0.01, 0.8, 0.02]) == pytest.approx([0.06, 0.04, 0.8, 0.06])
    assert stats.holm([0.9, 0.8]) == pytest.approx([1.0, 1.0])
    assert stats.holm([]) == []


# --- verdicts and the file form ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "better", "expected"),
    [
        (0.1, 0.3, "higher", "better"),
        (0.1, 0.3, "lower", "worse"),
        (-0.3, -0.1, "higher", "worse"),
        (-0.3, -0.1, "lower", "better"),
        (-0.1, 0.3, "higher", "unclear"),
        (0.0, 0.3, "higher", "unclear"),
        (None, None, "higher", "unclear"),
    ],
)
def test_verdicts(low, high, better, expected) -> None:
    assert stats.verdict(Estimate(0.2, low, high, 10, "by hand"), better=better) == expected


def test_an_estimate_survives_its_file() -> None:
    estimate = stats.mean([1.0, 2.0, 4.0], ["a", "b", "b"])
    assert Estimate.from_json(json.loads(json.dumps(estimate.to_json(), allow_nan=False))) == estimate


@pytest.mark.parametrize(
    "fields",
    [
        {"value": "0.5", "low": None, "high": None, "n": 1, "method": ""},
        {"value": math.nan, "low": None, "high": None, "n": 1, "method": ""},
        {"value": 0.5, "low": None, "high": None, "n": 1},
        {"value": 0.5, "low": None, "high": None, "n": 1, "method": "", "median": 3},
    ],
)
def test_what_is_no_estimate_is_refused(fields) -> None:
    with pytest.raises(DataError, match=r"evaluation\.json"):
        Estimate.from_json(fields, where="evaluation.json")
