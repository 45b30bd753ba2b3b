"""One optimizer step against a padded DPO in float64 written by hand; what stops a run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import prepared, tiny_config, without_time, write_groups
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from conftest import build_exact_model, build_tokenizer
from dipole.data.reduce import PairRelation
from dipole.data.tokenize import TokenizedGroup
from dipole.errors import TrainingFault
from dipole.train import loop
from dipole.train.loop import Meter, backward, check_start, clip, held_out_rows, steps
from dipole.train.setup import Run

BETA = 0.3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that computes in float64 throughout, its tokenizer, and data."""
    folder = tmp_path_factory.mktemp("exact")
    tokenizer = build_tokenizer()
    build_exact_model(len(tokenizer)).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    write_groups(folder / "data.jsonl", completions=4)
    return folder


def exact_run(folder: Path, *, moved: bool = True, **options: Any) -> Run:
    """A run in float64, whose policy has already moved away from its reference unless ``moved`` is false."""
    run = prepared(tiny_config(folder / "model", folder / "data.jsonl", folder / "out", beta=BETA, **options))
    run.policy.double()
    if run.reference is not None:
        run.reference.policy.double()  # type: ignore[attr-defined]
    if moved:
        torch.manual_seed(0)
        with torch.no_grad():
            for parameter in run.policy.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.02 * torch.randn_like(parameter))
    return run


def first_groups(run: Run) -> list[TokenizedGroup]:
    return [run.data.train[index] for index in run.order.step(0)]


def padded_sums(model: nn.Module, group: TokenizedGroup) -> Tensor:
    """(K,) sequence log-probabilities of a group's completions: one padded batch, full logits, ordinary attention."""
    start = len(group.prompt_ids)
    longest = start + max(map(len, group.completion_ids))
    rows = [[*group.prompt_ids, *ids, *[0] * (longest - start - len(ids))] for ids in group.completion_ids]
    mask = [[1] * (start + len(ids)) + [0] * (longest - start - len(ids)) for ids in group.completion_ids]
    logps = model(input_ids=torch.tensor(rows), attention_mask=torch.tensor(mask)).logits.log_softmax(-1)
    picked = logps[:, start - 1 : -1].gather(2, torch.tensor(rows)[:, start:, None]).squeeze(2)
    return (picked * torch.tensor(mask)[:, start:]).sum(1)


def dpo_by_hand(run: Run, groups: Sequence[TokenizedGroup]) -> list[tuple[float, Tensor]]:
    """(weight, loss) of every relation, with the soft label p: −p log σ(βh) − (1−p) log σ(−βh)."""
    found = []
    original = build_exact_model(len(build_tokenizer())).float().double()  # as it was saved
    model = run.policy.transformer
    model.set_attn_implementation("sdpa")
    for group in groups:
        ours = padded_sums(model, group)
        with torch.no_grad():
            theirs = padded_sums(original, group)
        for relation in group.relations:
            assert isinstance(relation, PairRelation)
            h = (ours[relation.i] - theirs[relation.i]) - (ours[relation.j] - theirs[relation.j])
            loss = -relation.p * logsigmoid(BETA * h) - (1 - relation.p) * logsigmoid(-BETA * h)
            found.append((relation.weight, loss))
    model.set_attn_implementation("dipole")
    return found


def gradients(run: Run) -> dict[str, Tensor]:
    found = {name: p.grad.clone() for name, p in run.policy.named_parameters() if p.grad is not None}
    run.optimizer.zero_grad(set_to_none=True)
    assert found
    return found


def largest_gap(left: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    assert left.keys() == right.keys()
    return max(float((left[name] - right[name]).abs().max()) for name in left)


# A step by hand


@pytest.mark.parametrize("method", ["none", "lora"])
def test_loss_and_gradient_are_those_of_padded_dpo_with_soft_labels_and_weights(folder: Path, method: str) -> None:
    run = exact_run(folder, peft=method)
    groups = first_groups(run)
    by_hand = dpo_by_hand(run, groups)
    assert len({weight for weight, _ in by_hand}) > 1
    total = sum(weight for weight, _ in by_hand)
    loss = sum((weight * value for weight, value in by_hand), torch.zeros(())) / total
    loss.backward()
    expected = gradients(run)
    meter = Meter()
    backward(run, groups, meter)
    assert meter.means()["loss"] == pytest.approx(loss.item(), abs=1e-10)
    assert abs(loss.item() - math.log(2)) > 1e-3
    assert largest_gap(gradients(run), expected) < 1e-10


def test_weighting_by_prompt_gives_every_group_the_same_weight(folder: Path) -> None:
    run = exact_run(folder, weighting="prompt")
    groups = first_groups(run)
    by_group = []
    for group in groups:
        by_hand = dpo_by_hand(run, [group])
        assert sum(weight for weight, _ in by_hand) == pytest.approx(1)
        by_group.append(sum((weight * value for weight, value in by_hand), torch.zeros(())))
    loss = torch.stack(by_group).mean()
    loss.backward()
    expected = gradients(run)
    meter = Meter()
    backward(run, groups, meter)
    assert meter.means()["loss"] == pytest.approx(loss.item(), abs=1e-7)  # weights of thirds are float32
    assert largest_gap(gradients(run), expected) < 1e-7


def test_the_token_budget_changes_neither_loss_nor_gradient(folder: Path) -> None:
    found = []
    for budget in (1, 120, 100_000):
        run = exact_run(folder, max_tokens_per_microbatch=budget)
        meter = Meter()
        backward(run, first_groups(run), meter)
        found.append((meter.means(), gradients(run)))
    for means, gradient in found[1:]:
        assert means == pytest.approx(found[0][0], abs=1e-10)
        assert largest_gap(gradient, found[0][1]) < 1e-10


def test_gradient_checkpointing_changes_nothing(folder: Path) -> None:
    found = []
    for forgetful in (False, True):
        run = exact_run(folder, gradient_checkpointing=forgetful)
        meter = Meter()
        backward(run, first_groups(run), meter)
        found.append((meter.means(), gradients(run)))
    assert found[0][0] == found[1][0]
    assert largest_gap(found[0][1], found[1][1]) == 0


def test_a_step_is_adam_on_the_clipped_gradient_at_the_schedules_rate(folder: Path) -> None:
    run = exact_run(folder, max_grad_norm=0.05, weight_decay=0.1, moved=False)
    twin = exact_run(folder, max_grad_norm=0.05, weight_decay=0.1, moved=False)
    info = next(steps(run))
    backward(twin, first_groups(twin), Meter())
    norm = math.sqrt(sum(float((p.grad**2).sum()) for p in twin.policy.parameters() if p.grad is not None))
    assert norm > 0.05
    assert info.metrics["grad_norm"] == pytest.approx(norm, rel=1e-6)
    assert info.metrics["lr"] == 1e-3
    for parameter in twin.policy.parameters():
        if parameter.grad is not None:
            gradient = parameter.grad * 0.05 / norm
            decayed = parameter.detach() * (1 - 1e-3 * (0.1 if parameter.ndim >= 2 else 0))
            # Adam's first step: both moments equal the gradient once their bias is corrected.
            parameter.data = decayed - 1e-3 * gradient / (gradient.abs() + 1e-8)
    for (name, left), right in zip(run.policy.named_parameters(), twin.policy.parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=1e-8, msg=name)


def test_no_clipping_at_a_limit_of_zero(folder: Path) -> None:
    run = exact_run(folder, max_grad_norm=0.0)
    backward(run, first_groups(run), Meter())
    before = {name: p.grad.clone() for name, p in run.policy.named_parameters() if p.grad is not None}
    norm = clip(run)
    assert norm == pytest.approx(math.sqrt(sum(float((g**2).sum()) for g in before.values())))
    assert largest_gap(gradients(run), before) == 0


def test_metrics_are_weighted_means_over_the_relations(folder: Path) -> None:
    run = exact_run(folder)
    run.step = 1  # past the check of the start, which a policy that has moved doesn't pass
    groups = [run.data.train[index] for index in run.order.step(1)]
    by_hand = dpo_by_hand(run, groups)
    expected = sum(weight * value.item() for weight, value in by_hand) / sum(weight for weight, _ in by_hand)
    info = next(steps(run))
    assert info.step == info.metrics["step"] == 2
    assert info.metrics["loss"] == pytest.approx(expected, abs=1e-10)
    assert info.metrics["epoch"] == 2 / 4
    assert info.metrics["tokens"] == sum(group.num_tokens for group in groups)
    chosen, rejected, margin = (info.metrics[f"rewards/{name}"] for name in ("chosen", "rejected", "margins"))
    assert margin == pytest.approx(chosen - rejected, abs=1e-10)
    displacement = info.metrics["logps/chosen"] - info.metrics["ref_logps/chosen"]
    assert chosen == pytest.approx(BETA * displacement, abs=1e-9)
    assert info.metrics["logps/displacement"] == pytest.approx(displacement, abs=1e-9)


# Held-out data


def test_held_out_metrics_are_those_computed_by_hand(folder: Path) -> None:
    run = exact_run(folder)
    by_hand = dpo_by_hand(run, run.data.held_out)
    rows, metrics = held_out_rows(run)
    assert len(rows) == metrics["eval/n"] == len(by_hand) == 18
    # Rows come in the order of micro-batches.
    assert sorted(row["loss"] for row in rows) == pytest.approx(sorted(value.item() for _, value in by_hand), abs=1e-10)
    weight = sum(weight for weight, _ in by_hand)
    expected = sum(w * value.item() for w, value in by_hand) / weight
    assert metrics["eval/loss"] == pytest.approx(expected, abs=1e-10)
    right = sum(row["weight"] for row in rows if row["rewards/margins"] > 0)
    assert metrics["eval/rewards/accuracies"] == pytest.approx(right / weight)
    assert 0 < metrics["eval/rewards/accuracies"] < 1
    assert all(parameter.grad is None for parameter in run.policy.parameters())


# The start


@pytest.mark.parametrize("method", ["none", "lora"])
def test_the_first_loss_is_ln_2_with_soft_labels_too(folder: Path, method: str) -> None:
    run = exact_run(folder, peft=method, moved=False)
    check_start(run)
    metrics = next(steps(run)).metrics
    assert metrics["loss"] == pytest.approx(math.log(2), abs=1e-15)
    assert metrics["rewards/margins"] == 0
    assert metrics["rewards/ties"] == 1


def test_a_wrong_reference_is_caught_before_the_first_step(folder: Path) -> None:
    run = exact_run(folder, moved=False)
    with torch.no_grad():
        run.reference.policy.transformer.model.layers[0].mlp.fc1.weight.mul_(1.01)  # type: ignore[union-attr]
    before = {name: parameter.clone() for name, parameter in run.policy.named_parameters()}
    with pytest.raises(TrainingFault, match=r"before the first step the loss is .* has to be 0\.693147"):
        next(steps(run))
    assert all(torch.equal(before[name], parameter) for name, parameter in run.policy.named_parameters())


def test_a_loss_without_a_reference_starts_anywhere(folder: Path) -> None:
    run = exact_run(folder, loss="simpo")
    assert run.reference is None
    metrics = next(steps(run)).metrics
    assert math.isfinite(metrics["loss"])
    assert not any("ref_" in name for name in metrics)


# Faults


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_step_that_is_not_finite_is_skipped_and_the_next_one_is_taken(
    folder: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = exact_run(folder, moved=False)
    training = steps(run)
    next(training)
    before = {name: parameter.clone() for name, parameter in run.policy.named_parameters()}
    adam = {key: value.clone() for state in run.optimizer.state.values() for key, value in state.items()}
    if where == "loss":
        evaluate_batch = loop.evaluate_batch

        def broken(*arguments: Any) -> Any:
            found = evaluate_batch(*arguments)
            found.outcome.losses.data[-1] = math.nan
            return found

        monkeypatch.setattr(loop, "evaluate_batch", broken)
        undo = monkeypatch.undo
    else:
        weight = run.policy.transformer.model.layers[0].mlp.fc1.weight
        undo = weight.register_hook(lambda gradient: gradient * math.inf).remove
    info = next(training)
    assert (info.step, info.metrics["skipped"], run.skips) == (2, True, 1)
    assert info.metrics["lr"] > 0
    assert all(math.isfinite(value) for value in info.metrics.values() if isinstance(value, float))
    assert info.metrics["not_finite"] == ["loss" if where == "loss" else "grad_norm"]
    assert info.skipped is not None
    # Neither fault is in the log-probabilities, nor is it there when the step is looked at again: so all are suspects.
    assert set(info.skipped["groups"]) == {run.data.train[index].id for index in run.order.step(1)}
    assert all(torch.equal(before[name], parameter) for name, parameter in run.policy.named_parameters())
    now = {key: value for state in run.optimizer.state.values() for key, value in state.items()}
    assert all(torch.equal(adam[key], now[key]) for key in adam)
    undo()
    taken = next(training)
    assert (taken.step, taken.skipped, run.skips) == (3, None, 0)
    assert "skipped" not in taken.metrics
    assert any(not torch.equal(before[name], parameter) for name, parameter in run.policy.named_parameters())


# The same again


def test_the_same_seed_gives_the_same_steps_bit_for_bit(folder: Path) -> None:
    def metrics(seed: int) -> list[dict[str, Any]]:
        run = prepared(tiny_config(folder / "model", folder / "data.jsonl", folder / "out", peft="lora", seed=seed))
        return [without_time(dict(info.metrics)) for info in steps(run)]

    assert metrics(0) == metrics(0)
    assert metrics(0) != metrics(1)
