"""Functions that stay finite, with a gradient, where the textbook form overflows."""

from __future__ import annotations

import math

import torch
from torch import Tensor

CERTAIN = 1e-6
"""Log-probabilities above −CERTAIN are treated as certain: log(1 − p) goes on as its tangent."""


def exp_linear(x: Tensor) -> Tensor:
    """exp(x), continued by its tangent where it nears the largest number of the dtype.

    Up to ``limit`` (72.7 in float32, 693 in float64) it is exact. Beyond, e^limit · (1 + x − limit): finite for any
    log-ratio in reach, increasing, and with the gradient e^limit instead of none, which is what a clamp would leave.
    The room of e^16 that is left above the limit is for the factors that a loss multiplies it with.
    """
    limit = math.log(torch.finfo(x.dtype).max) - 16
    below = x.clamp(max=limit)
    return below.exp() * (1 + (x - below))


def log1mexp(x: Tensor) -> Tensor:
    """log(1 − e^x) for x ≤ 0, by the branch that doesn't cancel, switched at −ln 2.

    Above −CERTAIN it goes on as its tangent there (slope −1/CERTAIN), so that a certain token gives a large finite
    value and a gradient instead of −∞. The clamp also keeps both branches finite: ``where`` would pass the NaN of an
    unused branch on to the gradient.
    """
    certain = (x + CERTAIN).clamp(min=0)
    x = x.clamp(max=-CERTAIN)
    value = torch.where(x > -math.log(2), torch.log(-torch.expm1(x)), torch.log1p(-torch.exp(x)))
    return value - certain / CERTAIN


def log_odds(x: Tensor) -> Tensor:
    """log(p/(1 − p)) of a log-probability x ≤ 0."""
    return x - log1mexp(x)
