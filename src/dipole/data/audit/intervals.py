"""Intervals for shares and areas, where groups with the same prompt count as one observation.

Shapes: values are (n,); ``clusters`` gives the number of each value's cluster.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Interval = tuple[float, float]

Z = 1.96


def wilson_interval(successes: float, trials: float, z: float = Z) -> Interval:
    """Wilson's score interval of a proportion (1927), 95 % by default; (0, 1) without trials."""
    if trials == 0:
        return 0.0, 1.0
    share, spread = successes / trials, z * z / trials
    half = z * math.sqrt(share * (1 - share) / trials + spread / (4 * trials))
    low, high = ((share + spread / 2 + side * half) / (1 + spread) for side in (-1, 1))
    return max(0.0, low), min(1.0, high)


def share(values: NDArray[Any], clusters: Ints) -> tuple[float, Interval]:
    """The mean over clusters of each cluster's mean, with Wilson's interval on as many trials as there are clusters.

    Means of several values vary less than single outcomes do, so the interval is never too narrow.
    """
    means = cluster_means(values, clusters)
    return float(means.mean()), wilson_interval(float(means.sum()), len(means))


def cluster_means(values: NDArray[Any], clusters: Ints) -> Floats:
    """The mean of each cluster, in the order of their numbers."""
    _, labels = np.unique(clusters, return_inverse=True)
    means: Floats = np.bincount(labels, weights=np.asarray(values, dtype=np.float64)) / np.bincount(labels)
    return means


def preference_auc(scores: Floats, clusters: Ints) -> tuple[float, Interval]:
    """Area under the curve of a score that is antisymmetric in a pair, with an interval clustered by prompt.

    A pair's score is that of the preferred answer minus that of the other; seen from the other side it is the
    negative. So the positives are ``scores`` and the negatives ``-scores``, and the area is the chance that the sum of
    two pairs' scores is positive, a tie counting half. The variance is that of its Hájek projection, 4 Var(V) / n with
    V the chance of one pair against all (DeLong et al. 1988, for one sample), summed by cluster.

    Args:
        scores: (n,) of held-out pairs, positive where the score agrees with the label.
        clusters: (n,) the prompt of each pair.
    """
    ordered = np.sort(scores)
    above = len(scores) - np.searchsorted(ordered, -scores, side="right")
    equal = len(scores) - np.searchsorted(ordered, -scores, side="left") - above
    placements = (above + 0.5 * equal) / len(scores)
    area = float(placements.mean())
    _, labels = np.unique(clusters, return_inverse=True)
    sums = np.bincount(labels, weights=placements - area)
    count = len(sums)
    if count < 2:
        return area, (0.0, 1.0)
    error = 2 * math.sqrt(count / (count - 1) * float(np.sum(sums**2))) / len(scores)
    return area, (max(0.0, area - Z * error), min(1.0, area + Z * error))
