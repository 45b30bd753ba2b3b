"""Whether σ(margin) is the probability that it claims to be: that people prefer one answer to the other."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from scipy import optimize, special

from dipole.evaluate.stats import Estimate, mean

STEEPEST = 1e3
"""A slope beyond this is one without limit: margins and people never disagree."""


def brier(margins: Sequence[float], shares: Sequence[float]) -> list[float]:
    """(n) squared distances of σ(margin) from the share of people for the answer on its positive side."""
    gaps = special.expit(np.asarray(margins, dtype=np.float64)) - np.asarray(shares, dtype=np.float64)
    return [float(gap) ** 2 for gap in gaps]


def slope(margins: Sequence[float], shares: Sequence[float], clusters: Sequence[Hashable]) -> Estimate:
    """The b for which σ(b · margin) fits people's shares best, by maximum likelihood.

    There is no intercept: which answer of a pair comes first is arbitrary. The interval is that of a mean of influences
    m (p − σ(b m)) / H, H the mean curvature, with clusters as single observations (Huber's sandwich).

    Args:
        margins: (n) log-odds that the first answer is preferred, as the model has them.
        shares: (n) of people who prefer it.
        clusters: (n) what pairs belong together.

    Returns:
        The slope; without a value, and with the reason, where all margins are 0 or never disagree with people.
    """
    m, p = np.asarray(margins, dtype=np.float64), np.asarray(shares, dtype=np.float64)
    method = "logistic regression through 0"
    if not m.any():
        return Estimate(None, None, None, len(m), f"{method}: none, every margin is 0", None)

    def pull(b: float) -> float:
        return float(np.sum(m * (p - special.expit(b * m))))

    if pull(-STEEPEST) <= 0 or pull(STEEPEST) >= 0:
        return Estimate(None, None, None, len(m), f"{method}: none, margins decide every pair", None)
    b = float(optimize.brentq(pull, -STEEPEST, STEEPEST, xtol=1e-10))  # the pull falls with b: one zero
    sure = special.expit(b * m)
    curvature = float(np.mean(m**2 * sure * (1 - sure)))
    spread = mean(m * (p - sure) / curvature, clusters)
    if spread.low is None or spread.high is None:
        return Estimate(b, None, None, len(m), f"{method}: {spread.method}", spread.clusters)
    half = (spread.high - spread.low) / 2
    return Estimate(b, b - half, b + half, len(m), f"{method}; {spread.method} of its influences", spread.clusters)
