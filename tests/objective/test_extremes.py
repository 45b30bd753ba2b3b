"""What every row promises at the start of training and at the ends of the numbers, run on every row."""

from __future__ import annotations

import math

import pytest
import torch
from objective_cases import (
    ROWS,
    every_row,
    extreme_completions,
    gradients,
    random_completions,
    relations_of,
    replaced,
    run,
    settings_of,
    with_graph,
)

from dipole.objective import Completions, Loss, Outcome, PairIndex, resolve

LN2 = math.log(2)
START = {
    "dpo": LN2,
    "cdpo": LN2,
    "rdpo": LN2,
    "gdpo": LN2,
    "ipo": 25.0,
    "ipo_avg": 25.0,
    "hinge": 1.0,
    "exo": -LN2 - (math.log(0.999) + math.log(0.001)) / 2,
    "discopop": LN2 / 2 + 0.5,
    "adpo": LN2,
    "beta_dpo": LN2,
    "fdpo_forward_kl": LN2,
    "fdpo_jsd": LN2,
    "fdpo_alpha": LN2,
    "chi_po": LN2,
    "nca": 2 * LN2,
    "bco_pair": 2 * LN2,
    "bco_pair_unshifted": 2 * LN2,
    "sppo_hard": 500_000.0,
    "sppo_soft": 250_000.0,
    "apo_zero": 1.0,
    "apo_down": 1.0,
    "dpop": LN2,
    "dpo_norm": LN2,
    "ld_dpo": LN2,
    "aot": LN2,
    "aot_unpaired": LN2,
    "apo_zero_unary": 0.5,
    "bco": LN2,
    "nca_kwise": 2 * LN2,
}
"""Losses whose value at the start is one number. Others depend on labels, lengths, scores or likelihoods."""


@pytest.mark.parametrize("name", START)
def test_start_constant(name: str):
    """Where the policy is the reference, the loss is a constant and every margin 0."""
    row = resolve(name)
    outcome = _at_start(row)
    expected = torch.full_like(outcome.losses, START[name])
    torch.testing.assert_close(outcome.losses, expected, rtol=1e-12, atol=1e-12)
    assert not outcome.rewards.any()


def _at_start(row: Loss) -> Outcome:
    completions = random_completions()
    start = replaced(completions, logps=completions.ref_logps, token_logps=completions.extras["ref_token_logps"])
    relations = relations_of(row)
    if isinstance(relations, PairIndex):
        relations = PairIndex(i=relations.i, j=relations.j)
    return run(row, settings_of(row), start, relations)


def test_start_constants_are_complete():
    """Every row whose start is one number, whatever the completions are, is in the list above."""
    constant = {row.name for row in ROWS if row.needs_reference and _is_constant(_at_start(row).losses)}
    assert constant == START.keys()


def _is_constant(losses: torch.Tensor) -> bool:
    return bool((losses - losses[0]).abs().max() < 1e-12)


@every_row
def test_equal_and_empty_completions_are_defined(row: Loss):
    completions = random_completions()
    equal = completions.take(torch.zeros(8, dtype=torch.int64))
    empty = replaced(
        completions,
        logps=torch.zeros(8).double(),
        ref_logps=torch.zeros(8).double(),
        lengths=torch.zeros(8, dtype=torch.int64),
    )
    for special in (equal, empty):
        leaves = with_graph(special)
        outcome = run(row, settings_of(row), special, relations_of(row))
        assert torch.isfinite(outcome.losses).all()
        assert torch.isfinite(outcome.rewards).all()
        assert torch.isfinite(gradients(outcome.losses, leaves)).all()


@every_row
@pytest.mark.parametrize("size", [100.0, 1000.0])
def test_extremes_in_float32(row: Loss, size: float):
    """Log-ratios of ±1000 give finite losses and gradients, and the values of float64 wherever those fit."""
    results = {}
    for dtype in (torch.float32, torch.float64):
        completions, relations = extreme_completions(row, size, dtype)
        leaves = with_graph(completions)
        outcome = run(row, settings_of(row), completions, relations)
        gradient = gradients(outcome.losses, leaves)
        assert torch.isfinite(outcome.losses).all(), outcome.losses
        assert torch.isfinite(outcome.rewards).all(), outcome.rewards
        assert torch.isfinite(gradient).all(), gradient
        results[dtype] = outcome.losses.detach()
    exact = results[torch.float64]
    fits = exact.abs() < 1e30
    assert fits.any()
    torch.testing.assert_close(results[torch.float32][fits].double(), exact[fits], rtol=2e-5, atol=1e-5)


@every_row
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_made_float32_before_any_arithmetic(row: Loss, dtype: torch.dtype):
    half, relations, settings = random_completions(dtype=dtype), relations_of(row), settings_of(row)
    full = Completions(
        logps=half.logps.float(),
        ref_logps=half.ref_logps.float(),
        lengths=half.lengths,
        extras={name: value.float() if value.is_floating_point() else value for name, value in half.extras.items()},
    )
    outcome, expected = run(row, settings, half, relations), run(row, settings, full, relations)
    assert outcome.losses.dtype == outcome.rewards.dtype == torch.float32
    torch.testing.assert_close(outcome.losses, expected.losses, rtol=0, atol=0)
    torch.testing.assert_close(outcome.rewards, expected.rewards, rtol=0, atol=0)


@pytest.mark.parametrize("name", [r.name for r in ROWS if {"token_logps", "ref_token_logps"} & set(r.inputs)])
def test_what_stands_after_the_last_token_does_not_matter(name: str):
    row, completions = resolve(name), random_completions()
    is_token = torch.arange(8) < completions.lengths[:, None]
    clean = run(row, settings_of(row), completions, relations_of(row)).losses
    spoilt = {
        item: torch.where(is_token, completions.extras[item], float("nan")).requires_grad_()
        for item in ("token_logps", "ref_token_logps")
    }
    losses = run(row, settings_of(row), replaced(completions, **spoilt), relations_of(row)).losses
    torch.testing.assert_close(losses, clean, rtol=0, atol=0)
    (gradient,) = torch.autograd.grad(losses.sum(), spoilt["token_logps"])
    assert not gradient[~is_token].any()
