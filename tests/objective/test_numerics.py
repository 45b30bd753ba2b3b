"""Functions that stay finite where the textbook form doesn't."""

from __future__ import annotations

import math

import pytest
import torch

from dipole.objective.numerics import CERTAIN, exp_linear, log1mexp, log_odds


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 72.7), (torch.float64, 693.0)])
def test_exp_is_exact_up_to_its_limit_and_straight_beyond(dtype: torch.dtype, limit: float):
    below = torch.tensor([-1000.0, -1.0, 0.0, 1.0, limit], dtype=dtype)
    torch.testing.assert_close(exp_linear(below), below.exp(), rtol=0, atol=0)
    beyond = torch.tensor([limit + 1, limit + 500, limit + 1000], dtype=dtype, requires_grad=True)
    values = exp_linear(beyond)
    (slopes,) = torch.autograd.grad(values.sum(), beyond)
    assert torch.isfinite(values).all()
    assert (values.diff() > 0).all()
    assert slopes[0] == slopes[1] == slopes[2] > 1e31
    torch.testing.assert_close(values.diff(), slopes[0] * beyond.detach().diff(), rtol=1e-4, atol=0)


@pytest.mark.parametrize("x", [-1e-5, -1e-3, -0.1, -0.6931, -0.6932, -1.0, -20.0, -80.0])
def test_log1mexp_keeps_its_digits_in_float32(x: float):
    single = torch.tensor(x, dtype=torch.float32, requires_grad=True)
    exact = torch.tensor(single.item(), dtype=torch.float64)  # what x is once it is float32
    value = log1mexp(single)
    (slope,) = torch.autograd.grad(value, single)
    true_value = torch.log(-torch.expm1(exact)) if exact > -1 else torch.log1p(-torch.exp(exact))
    true_slope = torch.exp(exact) / torch.expm1(exact)
    torch.testing.assert_close(value.double(), true_value, rtol=1e-6, atol=0)
    torch.testing.assert_close(slope.double(), true_slope, rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_log1mexp_of_certain_tokens(dtype: torch.dtype):
    """Between 1 − 10⁻⁶ and 1, and a rounding error beyond: finite, falling, with the tangent's slope."""
    x = torch.tensor([-CERTAIN / 2, 0.0, 1e-7], dtype=dtype, requires_grad=True)
    values = log1mexp(x)
    (slopes,) = torch.autograd.grad(values.sum(), x)
    tangent = math.log(CERTAIN) - (x.detach().double() + CERTAIN) / CERTAIN
    torch.testing.assert_close(values.detach().double(), tangent, rtol=1e-4, atol=0)
    torch.testing.assert_close(slopes, torch.full_like(slopes, -1 / CERTAIN))


@pytest.mark.parametrize("p", [0.5, 0.9, 1e-30])
def test_log_odds(p: float):
    expected = math.log(p) - math.log1p(-p)
    assert log_odds(torch.tensor(math.log(p), dtype=torch.float64)).item() == pytest.approx(expected)
    assert torch.isfinite(log_odds(torch.tensor([0.0, -1000.0]))).all()
