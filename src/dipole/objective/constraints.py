"""Constraints: named terms that are added to a preference loss.

Which of them have a gradient:

    Term        whatever a differentiable function returns is added as it is
    Penalty     λ · relu(C − d): a gradient while the cost C is above its limit d, none below
    Lagrangian  λ · (C − d), where λ itself rises while C is above d and falls while it is below
    Lagrangian, sampled=True   C was measured on text that the policy wrote. Decoding has no gradient, so nothing is
                added to the loss: λ acts through the labels, by ``penalised_scores``

A function whose result has no graph is refused unless it is declared as sampled, because it would constrain nothing.
Multipliers λ are plain tensors; they belong to the checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import relu

from dipole.errors import ConfigError
from dipole.objective.numerics import log1mexp

ConstraintFunction = Callable[[Any, Tensor, Tensor | None, Tensor, Tensor], Tensor]
"""``f(model, pi_logps, ref_logps, yw_idxs, yl_idxs)`` → scalar, of B completions and T pairs among them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """A differentiable scalar that is added to the loss as it is.

    Args:
        name: under which it is logged.
        function: what computes it.
    """

    name: str
    function: ConstraintFunction


@dataclass(frozen=True, slots=True, kw_only=True)
class Penalty:
    """λ · relu(C − d) of a differentiable cost.

    Args:
        name: under which it is logged.
        function: the cost C.
        limit: d, up to which the cost is free.
        weight: λ, positive.
    """

    name: str
    function: ConstraintFunction
    limit: float = 0.0
    weight: float = 1.0

    def __post_init__(self) -> None:
        _positive(self.name, "weight", self.weight)
        _finite(self.name, "limit", self.limit)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lagrangian:
    """λ · (C − d) with dual ascent, λ ← max(0, λ + η (E[C] − d)), after every optimizer step.

    Args:
        name: under which it is logged.
        function: the cost C.
        limit: d, what the cost should stay below.
        step: η, positive.
        initial: λ at step 0, at least 0.
        sampled: the cost was measured on decoded text and has no gradient.
    """

    name: str
    function: ConstraintFunction
    limit: float
    step: float
    initial: float = 0.0
    sampled: bool = False

    def __post_init__(self) -> None:
        _positive(self.name, "step", self.step)
        _finite(self.name, "limit", self.limit)
        if not 0 <= self.initial < math.inf:
            raise ConfigError(f"initial is {self.initial}, but has to be at least 0", where=f"constraint {self.name}")


Constraint = Term | Penalty | Lagrangian


@dataclass(frozen=True, slots=True, kw_only=True)
class Constrained:
    """What constraints say of one micro-batch.

    Args:
        total: scalar with graph, to be added to the loss.
        costs: what each function returned, detached scalars by name; average them over the batch for ``ascend``.
        logged: each constraint's value and multiplier, for the log.
    """

    total: Tensor
    costs: Mapping[str, Tensor]
    logged: Mapping[str, Tensor] = field(default_factory=dict)


def _positive(name: str, field_name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise ConfigError(f"{field_name} is {value}, but has to be positive", where=f"constraint {name}")


def _finite(name: str, field_name: str, value: float) -> None:
    if not math.isfinite(value):
        raise ConfigError(f"{field_name} is {value}, but has to be a finite number", where=f"constraint {name}")


def named_constraints(constraints: Sequence[Constraint | ConstraintFunction]) -> tuple[Constraint, ...]:
    """Constraints as they are, and bare functions as terms under their own names.

    Raises:
        ConfigError: something that can't be called, or two that have the same name.
    """
    given: Any = constraints
    if callable(given) or isinstance(given, str):
        raise ConfigError("constraints are given as a list", where="constraints", remedy="Write [f] for a single one.")
    for item in constraints:
        if not callable(getattr(item, "function", item)):
            problem = f"{item!r} is neither a function nor a Term, Penalty or Lagrangian around one"
            raise ConfigError(problem, where="constraints")
    named = tuple(
        item
        if isinstance(item, (Term, Penalty, Lagrangian))
        else Term(name=getattr(item, "__name__", type(item).__name__), function=item)
        for item in constraints
    )
    names = [item.name for item in named]
    for name in names:
        if names.count(name) > 1:
            remedy = "Wrap them in Term with a name each."
            raise ConfigError(f"two constraints are called '{name}'", where="constraints", remedy=remedy)
    return named


def initial_multipliers(
    constraints: Sequence[Constraint], device: torch.device | str | None = None
) -> dict[str, Tensor]:
    """λ of every Lagrangian at step 0."""
    return {
        item.name: torch.tensor(item.initial, device=device) for item in constraints if isinstance(item, Lagrangian)
    }


def constrain(
    constraints: Sequence[Constraint],
    multipliers: Mapping[str, Tensor],
    model: Any,
    pi_logps: Tensor,
    ref_logps: Tensor | None,
    yw_idxs: Tensor,
    yl_idxs: Tensor,
) -> Constrained:
    """Every constraint of one micro-batch.

    Args:
        constraints: from ``named_constraints``.
        multipliers: λ of the Lagrangians.
        model: handed on to the functions.
        pi_logps: (B,) handed on.
        ref_logps: (B,) handed on; ``None`` without a reference.
        yw_idxs: (T,) handed on.
        yl_idxs: (T,) handed on.

    Raises:
        ConfigError: a result that isn't a scalar, or has no graph and isn't declared as sampled.
    """
    total = 0 * pi_logps.sum()
    costs: dict[str, Tensor] = {}
    logged: dict[str, Tensor] = {}
    for item in constraints:
        cost = _scalar(item, item.function(model, pi_logps, ref_logps, yw_idxs, yl_idxs))
        costs[item.name] = cost.detach()
        logged[f"constraints/{item.name}"] = cost.detach()
        if isinstance(item, Term):
            total = total + cost
        elif isinstance(item, Penalty):
            total = total + item.weight * relu(cost - item.limit)
            logged[f"constraints/{item.name}/lambda"] = cost.new_tensor(item.weight)
        else:
            multiplier = multipliers[item.name].detach()
            logged[f"constraints/{item.name}/lambda"] = multiplier
            if not item.sampled:
                total = total + multiplier * (cost - item.limit)
    return Constrained(total=total, costs=costs, logged=logged)


def _scalar(item: Constraint, value: Any) -> Tensor:
    where = f"constraint {item.name}"
    sampled = isinstance(item, Lagrangian) and item.sampled
    if sampled and isinstance(value, (int, float)):
        return torch.tensor(float(value))
    if not isinstance(value, Tensor) or value.dim() != 0:
        shape = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise ConfigError(f"it returned {shape}, but has to return a scalar tensor", where=where)
    if not sampled and torch.is_grad_enabled() and not value.requires_grad:
        remedy = (
            "Compute it from tensors with a graph. A cost that is measured on decoded text has no gradient: declare it "
            "with Lagrangian(..., sampled=True)."
        )
        raise ConfigError("its result has no graph, so it would constrain nothing", where=where, remedy=remedy)
    return value


def ascend(
    constraints: Sequence[Constraint], multipliers: Mapping[str, Tensor], mean_costs: Mapping[str, Tensor | float]
) -> dict[str, Tensor]:
    """The multipliers of the next step, λ ← max(0, λ + η (E[C] − d)).

    Args:
        constraints: from ``named_constraints``.
        multipliers: of this step.
        mean_costs: each cost, averaged over the whole batch of the step and all ranks.
    """
    return {
        item.name: (multipliers[item.name] + item.step * (mean_costs[item.name] - item.limit)).detach().clamp(min=0)
        for item in constraints
        if isinstance(item, Lagrangian)
    }


def penalised_scores(scores: Tensor, costs: Tensor, multiplier: Tensor | float) -> Tensor:
    """The scores r − λ c: pairs that are ordered by them make a sampled cost count.

    Liu, Sun, Zheng 2024 (constrained DPO), arXiv 2403.02475.

    Args:
        scores: (C,) rewards.
        costs: (C,) costs.
        multiplier: λ.
    """
    return scores - multiplier * costs


# --------------------------------------------------------------------------------------------------------------------
# Differentiable costs
# --------------------------------------------------------------------------------------------------------------------


def banned_span_cost(token_logps: Tensor, banned: Tensor) -> Tensor:
    """−mean log(1 − p) over the tokens of banned spans: 0 when the policy would never write them.

    Args:
        token_logps: (…) log-probabilities of tokens, with graph.
        banned: (…) booleans, true inside a banned span.
    """
    cost = torch.where(banned, -log1mexp(token_logps), 0.0)
    return cost.sum() / banned.sum().clamp(min=1)


def flagged_mean_cost(values: Tensor, flagged: Tensor) -> Tensor:
    """Mean over flagged completions, such as of the KL to a safe reference on prompts that need care.

    Args:
        values: (C,) with graph, such as ``seq_kl``, Σ_t KL over the vocabulary. A log-ratio of given completions is no
            KL: it has a gradient, but may be negative.
        flagged: (C,) booleans.
    """
    return torch.where(flagged, values, 0.0).sum() / flagged.sum().clamp(min=1)


def reward_bounds(beta: float, low: float, high: float) -> ConstraintFunction:
    """The mean distance by which implicit rewards β · logratio leave [low, high], as a constraint function."""
    if not low <= high:
        raise ConfigError(f"low is {low} and high is {high}", where="reward_bounds")

    def reward_out_of_bounds(
        model: Any, pi_logps: Tensor, ref_logps: Tensor | None, yw_idxs: Tensor, yl_idxs: Tensor
    ) -> Tensor:
        if ref_logps is None:
            raise ConfigError("implicit rewards need a reference", where="reward_bounds")
        rewards = beta * (pi_logps - ref_logps)
        return (relu(rewards - high) + relu(low - rewards)).sum() / max(rewards.numel(), 1)

    return reward_out_of_bounds
