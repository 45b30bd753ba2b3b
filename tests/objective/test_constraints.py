"""Constraints: which have a gradient, what they add, and how their multipliers move."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from objective_cases import VECTORS
from torch import Tensor

from dipole.errors import ConfigError
from dipole.objective.constraints import (
    Constrained,
    Lagrangian,
    Penalty,
    Term,
    ascend,
    banned_span_cost,
    constrain,
    flagged_mean_cost,
    initial_multipliers,
    named_constraints,
    penalised_scores,
    reward_bounds,
)

YW, YL = torch.tensor([0, 2]), torch.tensor([1, 3])


def _logps() -> Tensor:
    return torch.tensor([-1.0, -2.0, -3.0, -4.0], requires_grad=True)


def _apply(constraints: list[Any], logps: Tensor, multipliers: dict[str, Tensor] | None = None) -> Constrained:
    named = named_constraints(constraints)
    start = initial_multipliers(named) if multipliers is None else multipliers
    return constrain(named, start, None, logps, torch.zeros(4), YW, YL)


def mean_cost(model: Any, pi_logps: Tensor, ref_logps: Tensor | None, yw_idxs: Tensor, yl_idxs: Tensor) -> Tensor:
    """2.5 on the four log-probabilities above."""
    return -pi_logps.mean()


def sampled_cost(model: Any, pi_logps: Tensor, ref_logps: Tensor | None, yw_idxs: Tensor, yl_idxs: Tensor) -> Tensor:
    return torch.tensor(0.8)


def test_a_function_is_added_as_it_is():
    logps = _logps()
    outcome = _apply([mean_cost], logps)
    assert outcome.total.item() == 2.5
    assert outcome.logged == {"constraints/mean_cost": torch.tensor(2.5)}
    assert torch.autograd.grad(outcome.total, logps)[0].tolist() == [-0.25] * 4


def test_functions_get_what_they_are_promised():
    seen: list[Any] = []

    def spy(*arguments: Any) -> Tensor:
        seen.extend(arguments)
        return arguments[1].sum()

    logps = _logps()
    constrain(named_constraints([spy]), {}, "model", logps, None, YW, YL)
    assert seen[0] == "model"
    assert seen[1] is logps
    assert seen[2] is None
    assert (seen[3] is YW, seen[4] is YL) == (True, True)


@pytest.mark.parametrize(("limit", "total", "slope"), [(2.0, 1.5, -0.75), (2.5, 0.0, 0.0), (3.0, 0.0, 0.0)])
def test_a_penalty_counts_above_its_limit(limit: float, total: float, slope: float):
    logps = _logps()
    outcome = _apply([Penalty(name="p", function=mean_cost, limit=limit, weight=3.0)], logps)
    assert outcome.total.item() == total
    assert torch.autograd.grad(outcome.total, logps)[0].tolist() == [slope] * 4
    assert outcome.logged["constraints/p/lambda"].item() == 3


def test_a_lagrangian_weighs_the_excess_by_its_multiplier():
    logps = _logps()
    item = Lagrangian(name="l", function=mean_cost, limit=2.0, step=0.1, initial=4.0)
    outcome = _apply([item], logps)
    assert outcome.total.item() == 4.0 * 0.5
    assert torch.autograd.grad(outcome.total, logps)[0].tolist() == [-1.0] * 4
    assert {name: value.item() for name, value in outcome.logged.items()} == {
        "constraints/l": 2.5,
        "constraints/l/lambda": 4.0,
    }
    below = _apply([Lagrangian(name="l", function=mean_cost, limit=3.0, step=0.1, initial=4.0)], logps)
    assert below.total.item() == -2.0, "below the limit it is negative, unlike a penalty"


def test_a_sampled_cost_adds_nothing_and_moves_its_multiplier():
    expected = VECTORS["updates"]["dual_ascent"]
    item = Lagrangian(
        name="c",
        function=sampled_cost,
        limit=expected["limit"],
        step=expected["step"],
        initial=expected["lam"],
        sampled=True,
    )
    logps = _logps()
    outcome = _apply([item], logps)
    assert outcome.total.item() == 0
    assert not torch.autograd.grad(outcome.total, logps)[0].any()
    new = ascend([item], initial_multipliers([item]), outcome.costs)
    assert new["c"].item() == pytest.approx(expected["new_lam"])
    assert ascend([item], new, {"c": -100.0})["c"].item() == 0, "a multiplier is never negative"


def test_a_sampled_cost_may_be_a_number():
    item = Lagrangian(name="c", function=lambda *_: 0.25, limit=0.0, step=1.0, sampled=True)
    assert _apply([item], _logps()).costs["c"].item() == 0.25


@pytest.mark.parametrize(
    "item",
    [
        sampled_cost,
        Term(name="x", function=sampled_cost),
        Penalty(name="x", function=sampled_cost),
        Lagrangian(name="x", function=sampled_cost, limit=0.0, step=0.1),
    ],
    ids=["function", "term", "penalty", "lagrangian"],
)
def test_a_result_without_a_graph_is_refused(item: Any):
    with pytest.raises(ConfigError, match=r"(?s)has no graph.*sampled=True"):
        _apply([item], _logps())
    with torch.no_grad():
        assert _apply([item], _logps()).costs, "in evaluation nothing has a graph"


@pytest.mark.parametrize("value", [torch.zeros(4, requires_grad=True), 0.5, None, "0.5"])
def test_a_result_that_is_no_scalar_is_refused(value: Any):
    with pytest.raises(ConfigError, match="constraint odd: it returned a"):
        _apply([Term(name="odd", function=lambda *_: value)], _logps())


def test_names_have_to_differ():
    with pytest.raises(ConfigError, match="two constraints are called '<lambda>'"):
        named_constraints([lambda *_: None, lambda *_: None])


@pytest.mark.parametrize(
    "make",
    [
        lambda: Penalty(name="x", function=mean_cost, weight=0.0),
        lambda: Penalty(name="x", function=mean_cost, weight=float("nan")),
        lambda: Lagrangian(name="x", function=mean_cost, limit=0.0, step=0.0),
        lambda: Lagrangian(name="x", function=mean_cost, limit=0.0, step=0.1, initial=-1.0),
    ],
)
def test_wrong_numbers_are_refused(make: Any):
    with pytest.raises(ConfigError, match="constraint x"):
        make()


def test_multipliers_are_plain_numbers_for_the_checkpoint():
    items = named_constraints([mean_cost, Lagrangian(name="l", function=mean_cost, limit=2.0, step=0.1, initial=0.5)])
    multipliers = initial_multipliers(items)
    saved = json.loads(json.dumps({name: value.item() for name, value in multipliers.items()}))
    assert saved == {"l": 0.5}
    assert _apply(list(items), _logps(), multipliers).costs.keys() == {"mean_cost", "l"}


# ---------------------------------------------------------------------------------------------------------------------
# Differentiable costs
# ---------------------------------------------------------------------------------------------------------------------


def test_banned_spans_become_unlikely():
    logps = torch.log(torch.tensor([[0.5, 0.2], [0.9, 0.1]], dtype=torch.float64)).requires_grad_()
    banned = torch.tensor([[True, False], [True, False]])
    cost = banned_span_cost(logps, banned)
    assert cost.item() == pytest.approx(-(torch.tensor([0.5, 0.1]).double().log().mean().item()))
    (gradient,) = torch.autograd.grad(cost, logps)
    assert (gradient[:, 0] > 0).all()
    assert not gradient[:, 1].any()
    certain = torch.zeros(1, 1, requires_grad=True)
    cost = banned_span_cost(certain, torch.ones(1, 1, dtype=torch.bool))
    assert torch.isfinite(cost)
    assert torch.isfinite(torch.autograd.grad(cost, certain)[0]).all()
    assert banned_span_cost(logps, torch.zeros_like(banned)).item() == 0, "nothing is banned: zero, with a graph"


def test_flagged_mean_looks_at_flagged_completions_alone():
    kl = torch.tensor([1.0, 2.0, 30.0], requires_grad=True)
    cost = flagged_mean_cost(kl, torch.tensor([True, True, False]))
    assert cost.item() == 1.5
    assert torch.autograd.grad(cost, kl)[0].tolist() == [0.5, 0.5, 0.0]
    assert flagged_mean_cost(kl, torch.zeros(3, dtype=torch.bool)).item() == 0


def test_rewards_are_kept_within_bounds():
    logps = _logps()
    outcome = _apply([reward_bounds(0.5, -1.25, -0.75)], logps)  # rewards −0.5, −1, −1.5, −2
    assert outcome.total.item() == (0.25 + 0 + 0.25 + 0.75) / 4
    assert torch.autograd.grad(outcome.total, logps)[0].tolist() == [0.125, 0, -0.125, -0.125]
    with pytest.raises(ConfigError, match="reference"):
        constrain(named_constraints([reward_bounds(0.1, -1, 1)]), {}, None, logps, None, YW, YL)
    with pytest.raises(ConfigError, match="low is 2"):
        reward_bounds(0.1, 2.0, 1.0)


def test_a_sampled_cost_turns_labels_round():
    scores, costs = torch.tensor([2.0, 1.0]), torch.tensor([3.0, 0.0])
    assert penalised_scores(scores, costs, 0.1).argmax() == 0
    assert penalised_scores(scores, costs, 0.5).argmax() == 1


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Penalty(name="p", function=len, limit=float("nan")), "limit is nan"),  # type: ignore[arg-type]
        (lambda: Penalty(name="p", function=len, weight=float("inf")), "weight is inf"),  # type: ignore[arg-type]
        (lambda: Lagrangian(name="p", function=len, limit=0, step=float("inf")), "step is inf"),  # type: ignore[arg-type]
        (lambda: Lagrangian(name="p", function=len, limit=0, step=1, initial=float("inf")), "initial is inf"),  # type: ignore[arg-type]
        (lambda: named_constraints(len), "as a list"),  # type: ignore[arg-type]
        (lambda: named_constraints(["x"]), "'x' is neither a function"),  # type: ignore[list-item]
    ],
)
def test_what_can_not_constrain_is_refused_when_it_is_made(make, says):
    with pytest.raises(ConfigError, match=says):
        make()
