"""Statistics for reported numbers: every one comes with its n, and with an interval wherever one can be had.

Samples of one prompt resemble each other, so what counts is the number of prompts, not of samples. ``clusters`` names
the prompt of each value; values without clusters are independent. Where no interval (or no value) can be had, the
field is ``None`` and ``method`` says why: a result is never NaN.

Shapes: every sequence is (n,); n values fall into G clusters.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from dipole.errors import DataError

Floats = NDArray[np.float64]
Clusters = Sequence[Hashable] | None
Verdict = Literal["better", "worse", "unclear"]

_ROUNDING = 1e-12
"""A standard error below this share of the largest value is rounding, not spread."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with its interval.

    Args:
        value: the estimate, ``None`` when there is nothing to estimate from.
        low: lower end of the interval, ``None`` when there is no interval.
        high: upper end, likewise.
        n: how many values it was computed from.
        method: how, and where a field is ``None``, why.
        clusters: how many independent clusters the values fall into, ``None`` when they weren't clustered.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int
    method: str
    clusters: int | None = None

    def to_json(self) -> dict[str, Any]:
        """The fields by name, as ``evaluation.json`` holds them."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any], *, where: str | None = None) -> Estimate:
        """The inverse of ``to_json``.

        Raises:
            DataError: fields are missing, unknown, or not numbers.
        """
        for name in ("value", "low", "high"):
            number = fields.get(name)
            if number is not None and (isinstance(number, bool | str) or not np.isfinite(number)):
                raise DataError(f"{name} of an estimate is {number!r}, not a number or null", where=where)
        try:
            return cls(**fields)
        except TypeError as error:
            raise DataError(
                f"this is not an estimate ({sorted(fields)})",
                where=where,
                remedy="It has the fields value, low, high, n, method and clusters.",
            ) from error


def mean(values: ArrayLike, clusters: Clusters = None, *, confidence: float = 0.95) -> Estimate:
    """Mean with a t interval from the cluster-robust standard error.

    With u_g the sum of deviations in cluster g, the squared standard error is G/(G−1) · Σ u_g² / n² and t has G−1
    degrees of freedom (Liang and Zeger 1986; Miller 2024, arXiv 2411.00640). Without clusters this is s/√n.
    """
    x = _checked(values)
    method = f"mean, {confidence:.0%} t interval" + (" clustered" if clusters is not None else "")
    if x.size == 0:
        return _bare(None, 0, method, "no values")
    labels, num_clusters = _labels(clusters, x.size)
    value, shown = float(x.mean()), _shown(clusters, num_clusters)
    if num_clusters == 1:
        return _bare(value, x.size, method, f"there is only one {_unit(clusters)}", shown)
    error = float(np.sqrt(_variance_of_mean(x, labels, num_clusters)))
    if error <= _ROUNDING * np.abs(x).max():
        return _bare(value, x.size, method, f"every {_unit(clusters)} is alike", shown)
    reach = float(special.stdtrit(num_clusters - 1, 0.5 + confidence / 2)) * error
    return Estimate(value, value - reach, value + reach, x.size, method, shown)


def paired_difference(
    after: ArrayLike, before: ArrayLike, clusters: Clusters = None, *, confidence: float = 0.95
) -> Estimate:
    """Mean of after − before, value by value, with the interval of ``mean``: pairing removes what both share."""
    return mean(_differences(after, before), clusters, confidence=confidence)


def share(outcomes: ArrayLike, clusters: Clusters = None, *, confidence: float = 0.95) -> Estimate:
    """Share of wins with Wilson's interval, which stays inside [0, 1] and is defined for all wins and for none.

    A win is 1, a loss 0, a tie ½. Ties and clusters enter through the effective sample size p(1−p)/SE² (Korn and
    Graubard 1998): the number of independent coin flips that would be as uncertain. For plain wins and losses it is n,
    and the interval is Wilson's own. Clustering only ever lowers it; when all outcomes are alike nothing is known about
    the spread inside a cluster, and each cluster counts as one flip.
    """
    x = _checked(outcomes)
    if x.size and (x.min() < 0 or x.max() > 1):
        raise DataError(
            f"an outcome of {x.min() if x.min() < 0 else x.max()} is neither a win, a loss nor a tie",
            remedy="Give 1, 0 and 0.5.",
        )
    method = f"share, {confidence:.0%} Wilson interval" + (" clustered" if clusters is not None else "")
    if x.size == 0:
        return _bare(None, 0, method, "no outcomes")
    labels, num_clusters = _labels(clusters, x.size)
    value, shown = float(x.mean()), _shown(clusters, num_clusters)
    if clusters is not None and num_clusters == 1:
        return _bare(value, x.size, method, "there is only one cluster", shown)
    variance = float(np.mean((x - value) ** 2)) / x.size
    z = float(special.ndtri(0.5 + confidence / 2))
    flips = value * (1 - value) / variance if variance > 0 else float(num_clusters)
    if clusters is not None and variance > 0:
        design_effect = max(1.0, _variance_of_mean(x, labels, num_clusters) / variance)
        t = float(special.stdtrit(num_clusters - 1, 0.5 + confidence / 2))
        flips *= (z / t) ** 2 / design_effect
    centre = (value + z**2 / (2 * flips)) / (1 + z**2 / flips)
    reach = z / (1 + z**2 / flips) * np.sqrt(value * (1 - value) / flips + z**2 / (4 * flips**2))
    return Estimate(value, max(0.0, centre - reach), min(1.0, centre + reach), x.size, method, shown)


def bootstrap(
    values: ArrayLike,
    clusters: Clusters = None,
    *,
    statistic: Callable[[Floats], float] | None = None,
    kind: Literal["percentile", "bca"] = "percentile",
    resamples: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Estimate:
    """Interval of any statistic, by drawing whole clusters with replacement (Efron and Tibshirani 1993, ch. 13 and 14).

    The tails are widened by √(G/(G−1)) and t, since a bootstrap of few clusters is too narrow (Hesterberg 2015, 4.3).

    Args:
        values: (n,) or (n, columns), for a statistic of several numbers a row.
        clusters: the cluster of each row.
        statistic: rows → number; the mean when not given. A model that is part of it is refitted in each resample.
        kind: ``"bca"`` corrects for bias and skew, at the cost of one more evaluation a cluster.
        resamples: how many.
        seed: the same seed gives the same interval.
        confidence: of the interval.
    """
    rows = _checked(values)
    evaluate = statistic if statistic is not None else _plain_mean
    method = f"{confidence:.0%} {kind} bootstrap, {resamples} resamples" + (" of clusters" if clusters else "")
    if len(rows) == 0:
        return _bare(None, 0, method, "no values")
    labels, num_clusters = _labels(clusters, len(rows))
    value, shown = float(evaluate(rows)), _shown(clusters, num_clusters)
    if not np.isfinite(value):
        return _bare(None, len(rows), method, f"the statistic is {value}", shown)
    if num_clusters == 1:
        return _bare(value, len(rows), method, f"there is only one {_unit(clusters)}", shown)
    blocks = [rows[labels == g] for g in range(num_clusters)]
    draws = np.random.default_rng(seed).integers(num_clusters, size=(resamples, num_clusters))
    replicates = np.array([evaluate(np.concatenate([blocks[g] for g in draw])) for draw in draws.tolist()])
    undefined = int((~np.isfinite(replicates)).sum())
    if undefined:
        return _bare(value, len(rows), method, f"the statistic is undefined in {undefined} of them", shown)
    if np.ptp(replicates) <= _ROUNDING * np.abs(replicates).max():
        return _bare(value, len(rows), method, "every resample is alike", shown)
    reach = special.stdtrit(num_clusters - 1, 0.5 + confidence / 2) * np.sqrt(num_clusters / (num_clusters - 1))
    tails = special.ndtr(np.array([-reach, reach]))
    if kind == "bca":
        left_out = np.array([evaluate(rows[labels != g]) for g in range(num_clusters)])
        tails = _bca_tails(tails, value, replicates, left_out)
        if not np.isfinite(tails).all():
            return _bare(value, len(rows), method, "the correction is undefined", shown)
    low, high = np.quantile(replicates, tails, method="weibull")
    return Estimate(value, float(low), float(high), len(rows), method, shown)


def kl(
    logps: ArrayLike,
    ref_logps: ArrayLike,
    clusters: Clusters = None,
    *,
    estimator: Literal["k1", "k3"] = "k1",
    confidence: float = 0.95,
) -> Estimate:
    """KL(policy‖reference) in nats a completion, from completions that the *policy* wrote.

    With d = logps − ref_logps: k1 = mean(d), unbiased, can come out negative; k3 = mean(exp(−d) − 1 + d), unbiased
    too and never negative, with less variance while policy and reference are close and a heavy tail once they aren't
    (Schulman 2020, "Approximating KL divergence").

    Args:
        logps: (n,) log-probability of each completion under the policy, summed over its tokens.
        ref_logps: (n,) the same under the reference.
        clusters: the prompt of each completion.
        estimator: ``"k1"`` or ``"k3"``.
        confidence: of the interval.
    """
    d = _differences(logps, ref_logps)
    if estimator == "k3":
        with np.errstate(over="ignore"):
            d = np.expm1(-d) + d
    if not np.isfinite(d).all():
        return _bare(None, d.size, estimator, "exp(ref_logps − logps) overflows")
    found = mean(d, clusters, confidence=confidence)
    return Estimate(found.value, found.low, found.high, found.n, f"{estimator}: {found.method}", found.clusters)


@dataclass(frozen=True, slots=True)
class PairedTest:
    """A two-sided test of "no difference"; without anything to test ``p_value`` is ``None`` and ``method`` says why."""

    p_value: float | None
    n: int
    method: str


def sign_test(after: ArrayLike, before: ArrayLike) -> PairedTest:
    """Exact two-sided sign test of paired values; on right/wrong outcomes it is McNemar's exact test.

    Pairs without a difference carry no information and don't enter.
    """
    d = _differences(after, before)
    if d.size == 0:
        return PairedTest(None, 0, "sign test: none, no pairs")
    rises, falls = int((d > 0).sum()), int((d < 0).sum())
    p_value = min(1.0, 2 * float(special.bdtr(min(rises, falls), rises + falls, 0.5))) if rises + falls else 1.0
    return PairedTest(p_value, d.size, f"exact sign test, {rises} up, {falls} down, {d.size - rises - falls} equal")


def permutation_test(
    after: ArrayLike, before: ArrayLike, clusters: Clusters = None, *, resamples: int = 10_000, seed: int = 0
) -> PairedTest:
    """Two-sided test of a mean paired difference by flipping the sign of whole clusters.

    All 2^G sign patterns are tried when there are at most ``resamples`` of them; otherwise that many are drawn, and the
    observed one counts among them, so that p is never 0 (Phipson and Smyth 2010).
    """
    d = _differences(after, before)
    if d.size == 0:
        return PairedTest(None, 0, "permutation test: none, no pairs")
    labels, num_clusters = _labels(clusters, d.size)
    sums = np.bincount(labels, weights=d, minlength=num_clusters)
    exact = 2**num_clusters <= resamples
    if exact:
        patterns = itertools.product((-1.0, 1.0), repeat=num_clusters)
        totals = np.array([np.dot(signs, sums) for signs in patterns])
    else:
        random = np.random.default_rng(seed)
        totals = np.array([(2.0 * random.integers(2, size=num_clusters) - 1) @ sums for _ in range(resamples)])
    # A tolerance, since sums of the same numbers in another order differ in the last bits.
    as_extreme = int((np.abs(totals) >= np.abs(sums.sum()) - _ROUNDING * np.abs(sums).sum()).sum())
    p_value = as_extreme / totals.size if exact else (as_extreme + 1) / (resamples + 1)
    drawn = "all" if exact else f"{resamples} drawn"
    return PairedTest(p_value, d.size, f"permutation test, {drawn} sign patterns of {num_clusters} {_unit(clusters)}s")


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for being several, in the order given (Holm 1979): the family-wise error stays below alpha."""
    adjusted, worst = [0.0] * len(p_values), 0.0
    for rank, position in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        worst = max(worst, min(1.0, (len(p_values) - rank) * p_values[position]))
        adjusted[position] = worst
    return adjusted


def verdict(difference: Estimate, *, better: Literal["higher", "lower"] = "higher") -> Verdict:
    """What the interval of a difference (after − before) says: ``"unclear"`` where it holds 0 or there is none."""
    if difference.low is None or difference.high is None or difference.low <= 0 <= difference.high:
        return "unclear"
    return "better" if (difference.low > 0) == (better == "higher") else "worse"


def _checked(values: ArrayLike) -> Floats:
    x = np.asarray(values, dtype=np.float64)
    wrong = np.argwhere(~np.isfinite(x))
    if len(wrong):
        raise DataError(
            f"value {wrong[0][0]} is {x[tuple(wrong[0])]} ({len(wrong)} of {x.size} are not finite)",
            remedy="Leave out what has no value, and say how many were left out.",
        )
    return x


def _differences(after: ArrayLike, before: ArrayLike) -> Floats:
    x, y = _checked(after), _checked(before)
    if x.shape != y.shape:
        raise DataError(f"{x.size} values can't be paired with {y.size}", remedy="Give both sides in the same order.")
    return x - y


def _labels(clusters: Clusters, n: int) -> tuple[NDArray[np.intp], int]:
    """The cluster of each value as a number from 0, and how many clusters there are."""
    if clusters is None:
        return np.arange(n), n
    if len(clusters) != n:
        raise DataError(f"{n} values have {len(clusters)} cluster names", remedy="Name the cluster of every value.")
    numbers: dict[Hashable, int] = {}
    labels = np.array([numbers.setdefault(name, len(numbers)) for name in clusters], dtype=np.intp)
    return labels, len(numbers)


def _variance_of_mean(x: Floats, labels: NDArray[np.intp], num_clusters: int) -> float:
    sums = np.bincount(labels, weights=x - x.mean(), minlength=num_clusters)
    return float(num_clusters / (num_clusters - 1) * np.sum(sums**2) / x.size**2)


def _bca_tails(tails: Floats, value: float, replicates: Floats, left_out: Floats) -> Floats:
    """Which quantiles of the replicates bound a bias-corrected, accelerated interval (Efron 1987, eq. 2.3 and 6.6)."""
    below = np.mean(replicates < value) + 0.5 * np.mean(replicates == value)
    bias = special.ndtri(below)
    d = left_out.mean() - left_out
    spread = np.sum(d**2)
    acceleration = np.sum(d**3) / (6 * spread**1.5) if spread > 0 else 0.0
    shifted = bias + special.ndtri(tails)
    corrected: Floats = special.ndtr(bias + shifted / (1 - acceleration * shifted))
    return corrected


def _bare(value: float | None, n: int, method: str, reason: str, clusters: int | None = None) -> Estimate:
    """A result without an interval, and why it has none."""
    return Estimate(value, None, None, n, f"{method}: none, {reason}", clusters)


def _plain_mean(rows: Floats) -> float:
    return float(rows.mean())


def _shown(clusters: Clusters, num_clusters: int) -> int | None:
    return None if clusters is None else num_clusters


def _unit(clusters: Clusters) -> str:
    return "value" if clusters is None else "cluster"
