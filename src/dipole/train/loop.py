"""The loop: an optimizer step at a time, each a list of micro-batches that share one normalisation.

A step's loss is Σ weight · loss of a relation, over all micro-batches, divided by the sum of all weights of the step.
So the token budget doesn't change what the gradient means.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dipole.data.batch import PackedBatch, Pairs, Relations, micro_batches, pack, total_weight
from dipole.data.tokenize import TokenizedGroup
from dipole.errors import TrainingFault
from dipole.objective import Completions, Outcome, PairIndex, evaluate
from dipole.objective.diagnostics import pair_metrics
from dipole.policy.logprobs import sum_by_completion
from dipole.train.inputs import completions_of, relation_index
from dipole.train.optim import rate_at
from dipole.train.setup import Run


@dataclass(frozen=True, slots=True, kw_only=True)
class StepInfo:
    """What one optimizer step did.

    Args:
        step: its number, from 1.
        metrics: what metrics.jsonl gets.
    """

    step: int
    metrics: Mapping[str, Any]


class Meter:
    """Weighted sums on the device, read once when they are needed."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._weights: dict[str, Tensor] = {}

    def add(self, values: Mapping[str, Tensor], weight: Tensor) -> None:
        """Adds (R,) values, each with its relation's weight."""
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + (value.detach() * weight).sum().double()
            self._weights[name] = self._weights.get(name, 0.0) + weight.sum().double()

    def means(self) -> dict[str, float]:
        """The weighted means; the one place that waits for the device."""
        if not self._sums:
            return {}
        sums = torch.stack([torch.stack([self._sums[name], self._weights[name]]) for name in self._sums]).tolist()
        return {name: total / weight for name, (total, weight) in zip(self._sums, sums, strict=True) if weight}


def steps(run: Run) -> Iterator[StepInfo]:
    """Trains, yielding after every optimizer step; the caller may stop at any.

    Raises:
        TrainingFault: the first loss isn't what policy = reference gives, or a loss or gradient isn't finite.
    """
    if run.step == 0:
        check_start(run)
    while run.step < run.total_steps:
        began = time.perf_counter()
        groups = [run.data.train[index] for index in run.order.step(run.step)]
        meter = Meter()
        backward(run, groups, meter)
        norm = clip(run)
        metrics = meter.means()
        _check_finite(run, metrics, norm)
        rate = rate_at(run.step, run.total_steps, run.config)
        for part in run.optimizer.param_groups:
            part["lr"] = rate
        run.optimizer.step()
        run.optimizer.zero_grad(set_to_none=True)
        run.step += 1
        tokens = sum(group.num_tokens for group in groups)
        seconds = time.perf_counter() - began
        yield StepInfo(
            step=run.step,
            metrics={
                "step": run.step,
                "epoch": run.step / run.order.steps_per_epoch,
                **metrics,
                "grad_norm": norm,
                "lr": rate,
                "tokens": tokens,
                "tokens_per_second": tokens / seconds,
            },
        )


def backward(run: Run, groups: list[TokenizedGroup], meter: Meter) -> None:
    """Accumulates the gradient of one optimizer step over its micro-batches."""
    accelerator = run.accelerator
    weight = total_weight(groups)
    for part in micro_batches(groups, run.config.max_tokens_per_microbatch):
        batch = pack(part).to(accelerator.device)
        completions, outcome = forward(run, batch)
        accelerator.backward((outcome.losses * batch.relations.weight).sum() / weight)
        meter.add(relation_metrics(completions, outcome, batch.relations), batch.relations.weight)


def forward(run: Run, batch: PackedBatch) -> tuple[Completions, Outcome]:
    """Log-probabilities of policy and reference, and the loss of every relation."""
    with run.accelerator.autocast():
        reference = None if run.reference is None else run.reference.token_logps(batch)
        policy = run.policy(batch)
    ref_logps = None if reference is None else sum_by_completion(reference, batch)
    completions = completions_of(batch, sum_by_completion(policy, batch), ref_logps)
    return completions, evaluate(run.loss, run.hyper, completions, relation_index(batch.relations))


def relation_metrics(completions: Completions, outcome: Outcome, relations: Relations) -> dict[str, Tensor]:
    """(R,) values that are averaged and logged."""
    values = {"loss": outcome.losses, **outcome.logged}
    if isinstance(relations, Pairs):
        pairs = relation_index(relations)
        assert isinstance(pairs, PairIndex)
        values |= pair_metrics(completions, outcome.rewards, pairs)
        if completions.ref_logps is not None:
            values["ref_logps/chosen"] = completions.ref_logps[relations.chosen]
            values["ref_logps/rejected"] = completions.ref_logps[relations.rejected]
    return values


def clip(run: Run) -> float:
    """Scales the gradient down to ``max_grad_norm`` and returns its norm before that."""
    limit = run.config.max_grad_norm or math.inf
    norm = run.accelerator.clip_grad_norm_(run.policy.parameters(), limit)
    return float(norm) if norm is not None else math.nan


@torch.no_grad()
def check_start(run: Run) -> None:
    """Before the first step policy and reference are the same, so the loss has a known value: ln 2 for DPO.

    A wrong reference, dropout left on, or a template that differs between the two shows here and nowhere else so early.

    Raises:
        TrainingFault: the loss isn't what it has to be.
    """
    if run.reference is None:
        return
    part = micro_batches([run.data.train[index] for index in run.order.step(0)], run.config.max_tokens_per_microbatch)
    batch = pack(part[0]).to(run.accelerator.device)
    completions, outcome = forward(run, batch)
    assert completions.ref_logps is not None
    equal = replace(completions, logps=completions.ref_logps)
    expected = evaluate(run.loss, run.hyper, equal, relation_index(batch.relations)).losses
    gap = float((completions.logps - completions.ref_logps).abs().max())
    difference = float((outcome.losses - expected).abs().max()) if expected.numel() else 0.0
    tolerance = 1e-4 if run.accelerator.mixed_precision == "no" else 0.1
    if not max(gap, difference) <= tolerance:
        raise TrainingFault(
            f"before the first step the loss is {float(outcome.losses.mean()):.6f}, but with a policy equal to its"
            f" reference it has to be {float(expected.mean()):.6f}; log-probabilities differ by up to {gap:.3g} nats",
            remedy="The reference isn't the model that training starts from: check --model and --reference",
        )


def _check_finite(run: Run, metrics: Mapping[str, float], norm: float) -> None:
    bad = [name for name, value in metrics.items() if not math.isfinite(value)]
    if bad or not math.isfinite(norm):
        what = ", ".join(bad) or "the gradient's norm"
        raise TrainingFault(
            f"{what} is not a finite number in step {run.step + 1}; the model was left as it was before it",
            remedy="Lower --learning_rate, or use --dtype float32",
        )


@torch.no_grad()
def held_out_rows(run: Run) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Scores the held-out data.

    Returns:
        A row a relation (its values, weight and label), and the metrics under ``eval/``.
    """
    meter, rows = Meter(), []
    accelerator = run.accelerator
    for part in micro_batches(run.data.held_out, run.config.max_tokens_per_microbatch):
        batch = pack(part).to(accelerator.device)
        completions, outcome = forward(run, batch)
        values = relation_metrics(completions, outcome, batch.relations)
        meter.add(values, batch.relations.weight)
        if isinstance(batch.relations, Pairs):
            values |= {"prob": batch.relations.prob}
        columns = {name: value.tolist() for name, value in {**values, "weight": batch.relations.weight}.items()}
        ids = [group.id for group in part for _ in group.relations]
        rows += [
            {"id": ids[number]} | {name: column[number] for name, column in columns.items()}
            for number in range(len(ids))
        ]
    metrics = {f"eval/{name}": value for name, value in meter.means().items()}
    return rows, metrics | {"eval/n": len(rows)}
