"""The loop: an optimizer step at a time, each a list of micro-batches that share one normalisation.

A step's loss is Σ weight · loss of a relation, over all micro-batches, divided by the sum of all weights of the step.
So the token budget doesn't change what the gradient means.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from dipole.data.batch import PackedBatch, Pairs, Relations, Unaries, micro_batches, pack, total_weight
from dipole.data.tokenize import TokenizedGroup
from dipole.errors import TrainingFault
from dipole.objective import ListIndex, PairIndex, UnaryIndex
from dipole.objective.diagnostics import list_metrics, pair_metrics, rounding, unary_metrics
from dipole.objective.tr_dpo import sync_is_due, updated_reference
from dipole.policy.reference import AdapterOff, FrozenCopy, starts_equal
from dipole.train.finite import marked, not_finite, offending_groups
from dipole.train.forward import (
    Evaluated,
    evaluate_batch,
    joined_values,
    parts_of,
    policy_tokens,
    reference_distributions,
    token_values,
)
from dipole.train.inputs import relation_index
from dipole.train.optim import rate_at
from dipole.train.out_of_memory import memory_for
from dipole.train.ranks import ALONE, Ranks
from dipole.train.setup import Run, trained_parameters


@dataclass(frozen=True, slots=True, kw_only=True)
class StepInfo:
    """What one optimizer step did.

    Args:
        step: its number, from 1.
        metrics: what metrics.jsonl gets; all of it finite.
        skipped: what skipped.jsonl gets, when the step wasn't taken since something in it wasn't finite.
    """

    step: int
    metrics: Mapping[str, Any]
    skipped: Mapping[str, Any] | None = None


class Meter:
    """Weighted sums on the device, read once when they are needed."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._weights: dict[str, Tensor] = {}

    def add(self, values: Mapping[str, Tensor], weight: Tensor) -> None:
        """Adds (R,) values, each with its relation's weight; what has no weight may be anything."""
        for name, value in values.items():
            weighted = torch.where(weight != 0, value.detach() * weight, 0.0)
            self._sums[name] = self._sums.get(name, 0.0) + weighted.sum().double()
            self._weights[name] = self._weights.get(name, 0.0) + weight.sum().double()

    def means(self, ranks: Ranks = ALONE) -> dict[str, float]:
        """The weighted means over all processes; the one place that waits for the device."""
        own: dict[str, list[float]] = {}
        if self._sums:
            pairs = torch.stack([torch.stack([self._sums[name], self._weights[name]]) for name in self._sums])
            own = dict(zip(self._sums, pairs.tolist(), strict=True))
        everyone = ranks.gather(own)
        names = dict.fromkeys(name for found in everyone for name in found)
        pairs_of = {name: [found[name] for found in everyone if name in found] for name in names}
        sums_and_weights = {
            name: [sum(column) for column in zip(*pairs, strict=True)] for name, pairs in pairs_of.items()
        }
        return {name: total / weight for name, (total, weight) in sums_and_weights.items() if weight}


def steps(run: Run) -> Iterator[StepInfo]:
    """Trains, yielding after every optimizer step; the caller may stop at any.

    A step with a loss, log-probability or gradient that isn't finite is skipped by all processes: weights, optimizer
    and moving state stay as they are. It counts as a step, so that order and learning rate go on.

    Raises:
        TrainingFault: the first loss isn't what policy = reference gives.
        OutOfMemory: before the step has changed anything.
    """
    if run.step == 0:
        check_start(run)
    while run.step < run.total_steps:
        began = time.perf_counter()
        groups = [run.data.train[index] for index in run.order.step(run.step)]
        with memory_for(f"step {run.step + 1}", run.config):
            state, metrics = gradient(run, groups)
        rate = rate_at(run.step, run.total_steps, run.config)
        wrong = not_finite(metrics)
        skipped: dict[str, Any] | None = None
        if wrong:
            skipped = {"step": run.step + 1, "lr": rate, "not_finite": wrong, "groups": offending_groups(run, groups)}
            metrics = {name: value for name, value in metrics.items() if name not in wrong}
            run.skips += 1
        else:
            _take_step(run, rate)
            run.state = dict(state)
            run.skips = 0
            if run.scale is not None:
                run.scale.count()
        run.optimizer.zero_grad(set_to_none=True)
        run.step += 1
        move_reference(run)
        tokens = sum(group.num_tokens for group in groups)
        seconds = time.perf_counter() - began
        yield StepInfo(
            step=run.step,
            metrics={
                "step": run.step,
                "epoch": run.step / run.order.steps_per_epoch,
                **({"skipped": True, "not_finite": wrong} if wrong else {}),
                **metrics,
                "lr": rate,
                "tokens": tokens,
                "tokens_per_second": tokens / seconds,
            },
            skipped=skipped,
        )


def _take_step(run: Run, rate: float) -> None:
    for part in run.optimizer.param_groups:
        part["lr"] = rate
    run.optimizer.step()


def gradient(run: Run, groups: list[TokenizedGroup]) -> tuple[Mapping[str, Tensor], dict[str, float]]:
    """Leaves the gradient of one optimizer step, clipped, in the parameters.

    In float16 it is computed again, with losses scaled by half as much, as long as it alone isn't finite: so that no
    data is lost, and a step is what it would be at any scale.

    Returns:
        The moving state after the step, and the step's metrics, which may not be finite.
    """
    before = None if run.scale is None else (run.scale.value, run.scale.good_steps)
    while True:
        meter = Meter()
        with run.ranks.in_lockstep():
            state = backward(run, groups, meter)
            run.ranks.sum_gradients(run.policy.parameters())
            metrics = meter.means(run.ranks) | {"grad_norm": clip(run)}
        if run.scale is None or before is None:
            return state, metrics
        scale = {"loss_scale": run.scale.value}
        if not_finite(metrics) != ["grad_norm"]:
            return state, metrics | scale
        if run.scale.value <= 1:
            run.scale.value, run.scale.good_steps = before  # it wasn't the scale's fault
            return state, metrics | scale
        run.scale.lower()
        run.optimizer.zero_grad(set_to_none=True)


def backward(run: Run, groups: list[TokenizedGroup], meter: Meter) -> Mapping[str, Tensor]:
    """Accumulates the gradient of one optimizer step over its micro-batches.

    Returns:
        The moving state after the step.
    """
    parts = parts_of(run, groups)
    if relations_depend_on_each_other(run) and (len(parts) > 1 or run.ranks.count > 1):
        return _backward_together(run, parts, meter)
    weight = total_weight(groups)
    state: Mapping[str, Tensor] = {}
    for number, counts in run.ranks.turns(len(parts)):
        batch = pack(parts[number]).to(run.accelerator.device)
        found = evaluate_batch(run, parts[number], batch, token_values(run, batch))
        _scaled(run, mean_loss(found, batch, weight) * counts).backward()
        state = found.state
        if counts:
            record(meter, batch, found)
    return state


def _scaled(run: Run, loss: Tensor) -> Tensor:
    return loss if run.scale is None else loss * run.scale.value


def relations_depend_on_each_other(run: Run) -> bool:
    """Whether a relation's loss is a function of the whole step's batch."""
    return bool(run.loss.coupling or run.loss.whole_batch or run.constraints)


def _backward_together(run: Run, parts: list[list[TokenizedGroup]], meter: Meter) -> Mapping[str, Tensor]:
    """The same gradient for a loss whose relations depend on each other, however the batch is cut.

    Every token's value is computed first, without graph. The loss of the whole batch then gives the gradient of each
    value, and a second pass takes these through the model, one micro-batch at a time.
    """
    groups = [group for part in parts for group in part]
    whole = pack(groups).to(run.accelerator.device)
    tokens = joined_values(run, parts)
    leaves = {name: tokens[name].requires_grad_() for name in ("logps", "kl") if name in tokens}
    found = evaluate_batch(run, groups, whole, tokens)
    # Every process computes this, and a constraint may reach the model itself: its share is one of as many.
    _scaled(run, mean_loss(found, whole, total_weight(groups)) / run.ranks.count).backward()
    if run.ranks.is_first:
        record(meter, whole, found)
    starts = list(accumulate((sum(len(ids) for g in part for ids in g.completion_ids) for part in parts), initial=0))
    for number, counts in run.ranks.turns(len(parts)):
        batch = pack(parts[number]).to(run.accelerator.device)
        own, share = slice(starts[number], starts[number + 1]), run.ranks.count * counts
        values = policy_tokens(run, batch, reference_distributions(run, batch))
        slopes = {name: leaf.grad[own] * share for name, leaf in leaves.items() if leaf.grad is not None}
        torch.stack([(values[name] * slope).sum() for name, slope in slopes.items()]).sum().backward()
    return found.state


def mean_loss(found: Evaluated, batch: PackedBatch, weight: float) -> Tensor:
    """The batch's share of the step's loss: Σ weight · loss over the step's weight, and what constraints add."""
    return (found.outcome.losses * batch.relations.weight).sum() / weight + found.penalty


def record(meter: Meter, batch: PackedBatch, found: Evaluated, kept: Tensor | None = None) -> None:
    """Takes a batch's metrics into the meter; with ``kept``, (R,), those of some relations alone."""
    relations, weight = batch.relations, batch.relations.weight
    if kept is not None:
        weight = weight * kept
    meter.add(relation_metrics(found, relations), weight)
    if isinstance(relations, Unaries):
        of = {"rewards": found.outcome.rewards, "logps": found.completions.logps}
        for side, chosen in (("chosen", relations.desirable), ("rejected", ~relations.desirable)):
            meter.add({f"{name}/{side}": values[relations.completion] for name, values in of.items()}, weight * chosen)
    meter.add({name: value.reshape(1) for name, value in found.constraints.items()}, weight.new_ones(1))


def relation_metrics(found: Evaluated, relations: Relations) -> dict[str, Tensor]:
    """(R,) values that are averaged and logged."""
    completions, rewards = found.completions, found.outcome.rewards
    values = {"loss": found.outcome.losses, **found.outcome.logged}
    match relation_index(relations):
        case PairIndex() as pairs:
            values |= pair_metrics(completions, rewards, pairs)
            if completions.ref_logps is not None:
                values["ref_logps/chosen"] = completions.ref_logps[pairs.i]
                values["ref_logps/rejected"] = completions.ref_logps[pairs.j]
        case UnaryIndex() as unaries:
            values |= unary_metrics(rewards, unaries)
        case ListIndex() as lists:
            values |= list_metrics(completions, rewards, lists)
    return values


def move_reference(run: Run) -> None:
    """TR-DPO: takes the reference towards the policy, where that is due after this step."""
    every = run.config.sync_reference_every
    if every is None or not sync_is_due(run.step, every):
        return
    assert isinstance(run.reference, FrozenCopy)
    old, new = trained_parameters(run.policy, run.reference.policy), trained_parameters(run.policy, run.policy)
    for name, value in updated_reference(old, new, alpha=run.config.sync_reference_alpha).items():
        old[name].copy_(value)


def clip(run: Run) -> float:
    """Scales the gradient down to ``max_grad_norm`` and returns its norm before that."""
    trained = [parameter for parameter in run.policy.parameters() if parameter.grad is not None]
    gradients = [parameter.grad for parameter in trained if parameter.grad is not None]
    if run.scale is not None:
        torch._foreach_div_(gradients, run.scale.value)
    norm = get_total_norm(gradients)
    norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
    clip_grads_with_norm_(trained, run.config.max_grad_norm or math.inf, norm)
    return float(norm)


@torch.no_grad()
def check_start(run: Run) -> None:
    """Before the first step policy and reference are the same, so the loss has a known value: ln 2 for DPO.

    A wrong reference, dropout left on, or a template that differs between the two shows here and nowhere else so early.
    An adapter that begins with something of its own is switched off for it.

    Raises:
        TrainingFault: the loss isn't what it has to be.
    """
    if run.reference is None:
        return
    first = [run.data.train[index] for index in run.order.step(0)]
    part = micro_batches(first, run.config.max_tokens_per_microbatch)[0]
    batch = pack(part).to(run.accelerator.device)
    tokens = token_values(run, batch)
    if not starts_equal(run.policy, run.reference):
        with run.accelerator.autocast():
            tokens["logps"] = AdapterOff(run.policy).token_logps(batch)
        if "kl" in tokens:
            tokens["kl"] = torch.zeros_like(tokens["kl"])
    found = evaluate_batch(run, part, batch, tokens)
    equal = {**tokens, "logps": tokens["ref_logps"]}
    if "kl" in tokens:
        equal["kl"] = torch.zeros_like(tokens["kl"])
    completions, outcome = found.completions, found.outcome
    expected = evaluate_batch(run, part, batch, equal).outcome.losses
    assert completions.ref_logps is not None
    gap = _largest(completions.logps - completions.ref_logps)
    difference = _largest(outcome.losses - expected)
    tolerance = 1e-4 if run.accelerator.mixed_precision == "no" else 0.1
    tolerance += _largest(rounding(completions.logps))  # a cached reference was computed in other batches
    if not (gap <= tolerance and difference <= tolerance * max(1.0, _largest(expected))):
        raise TrainingFault(
            f"before the first step the loss is {float(outcome.losses.mean()):.6f}, but with a policy equal to its"
            f" reference it has to be {float(expected.mean()):.6f}; log-probabilities differ by up to {gap:.3g} nats",
            remedy="The reference isn't the model that training starts from: check --model and --reference",
        )


def _largest(gaps: Tensor) -> float:
    """The largest size of those that are finite: whatever isn't finite is dealt with by the step."""
    sizes = gaps[gaps.isfinite()].abs()
    return float(sizes.max()) if sizes.numel() else 0.0


@torch.no_grad()
def held_out_rows(run: Run) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Scores the held-out data.

    Returns:
        A row a relation (its values, weight and label), and the metrics under ``eval/``. Relations with a value that
        isn't finite have no part in the means; ``eval/not_finite`` says how many these are.
    """
    meter, groups = Meter(), run.data.held_out
    parts = parts_of(run, groups)
    groups = [group for part in parts for group in part]
    tokens = joined_values(run, parts)
    batch = pack(groups).to(run.accelerator.device)
    found = evaluate_batch(run, groups, batch, tokens, held_out=True)
    relations = batch.relations
    values = relation_metrics(found, relations)
    if run.loss.whole_batch:
        del values["loss"]  # it belongs to a rank, not to this pair
    prob = relations.prob if isinstance(relations, Pairs) else torch.ones_like(relations.weight)
    values |= {"prob": prob, "weight": relations.weight}
    if isinstance(relations, Unaries):
        values |= {"desirable": relations.desirable, "reward": found.outcome.rewards[relations.completion]}
    kept = torch.stack([value.isfinite() for value in values.values()]).all(0)
    record(meter, batch, found, kept)
    columns = {name: value.tolist() for name, value in values.items()}
    ids = [group.id for group in groups for _ in group.relations]
    rows = [
        marked({"id": ids[number]} | {name: column[number] for name, column in columns.items()})
        for number in range(len(ids))
    ]
    metrics = {f"eval/{name}": value for name, value in meter.means(run.ranks).items() if math.isfinite(value)}
    left_out = len(rows) - int(kept.sum())
    return rows, metrics | {"eval/n": len(rows) - left_out} | ({"eval/not_finite": left_out} if left_out else {})
