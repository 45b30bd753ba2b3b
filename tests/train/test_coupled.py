"""Losses whose relations depend on each other, constraints, a reference that moves: cuts, moving state, resuming."""

from __future__ import annotations

import json
import math
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import WORDS, KilledError, StopAfter, prepared, rows, tiny_config, without_time
from torch import Tensor

from conftest import build_exact_model, build_tokenizer
from dipole.data.batch import pack
from dipole.errors import ConfigError
from dipole.objective import LOSSES, resolve
from dipole.objective.constraints import ConstraintFunction, Lagrangian, Penalty, reward_bounds
from dipole.train.forward import mismatched_logratios, token_values
from dipole.train.inputs import completions_of, mismatched_groups
from dipole.train.loop import Meter, backward, check_start, held_out_rows, steps
from dipole.train.run import train
from dipole.train.setup import Run

COUPLED = [row.name for row in LOSSES.values() if row.coupling or row.whole_batch]
BY_TOKENS = ["ld_dpo", "tdpo1", "tdpo2", "wpo", "unlikelihood_welleck"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in float64, and two files of data: pairs with certain labels, and approvals."""
    folder = tmp_path_factory.mktemp("exact")
    tokenizer = build_tokenizer()
    build_exact_model(len(tokenizer)).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    draw = random.Random(0)
    for kind in ("pair", "unary"):
        lines = []
        for number in range(9):
            answers = [" ".join(draw.choices(WORDS, k=draw.randint(1, 4))) + f" {index}" for index in range(2)]
            judgments: list[dict[str, Any]] = [{"kind": "comparison", "i": 0, "j": 1}]
            if kind == "unary":
                judgments = [{"kind": "approval", "i": i, "value": draw.random() < 0.5} for i in range(2)]
            group = {
                "schema": 1,
                "id": f"g{number}",
                "prompt": f"About {draw.choice(WORDS)} {number}:",
                "completions": [{"text": f" {answer}"} for answer in answers],
                "judgments": judgments,
                "split": "train" if number < 6 else "eval",
            }
            lines.append(json.dumps(group))
        (folder / f"{kind}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


def config_of(folder: Path, loss: str, output: Path, **options: Any) -> Any:
    data = folder / f"{resolve(loss).relation}.jsonl"
    return tiny_config(folder / "model", data, output, loss=loss, **options)


def moved_run(folder: Path, loss: str, *, constraints: tuple[Any, ...] = (), **options: Any) -> Run:
    """A run in float64 whose policy has left its reference."""
    config = config_of(folder, loss, folder / "out", global_batch_size=4, **options)
    run = prepared(config, constraints)
    run.policy.double()
    if run.reference is not None:
        run.reference.policy.double()  # type: ignore[attr-defined]
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in run.policy.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return run


def one_step(run: Run) -> tuple[dict[str, float], list[Tensor], dict[str, float]]:
    """Metrics, gradient and next state of the first step, without taking it."""
    meter = Meter()
    state = backward(run, [run.data.train[index] for index in run.order.step(0)], meter)
    gradients = [p.grad.clone() for p in run.policy.parameters() if p.grad is not None]
    run.optimizer.zero_grad(set_to_none=True)
    return meter.means(), gradients, {name: float(value) for name, value in state.items()}


def assert_same_for_all_cuts(folder: Path, loss: str, **options: Any) -> dict[str, float]:
    whole, *others = [
        one_step(moved_run(folder, loss, max_tokens_per_microbatch=budget, **options)) for budget in (100_000, 60, 1)
    ]
    assert max(float(gradient.abs().max()) for gradient in whole[1]) > 1e-6
    for means, gradients, state in others:
        assert means == pytest.approx(whole[0], abs=1e-10)
        assert state == pytest.approx(whole[2], abs=1e-6)
        for left, right in zip(gradients, whole[1], strict=True):
            torch.testing.assert_close(left, right, rtol=0, atol=1e-10)
    return whole[0]


# Any cut


@pytest.mark.parametrize("loss", [*COUPLED, *BY_TOKENS, "mpo"])
def test_the_cut_into_micro_batches_changes_nothing(folder: Path, loss: str) -> None:
    assert_same_for_all_cuts(folder, loss)


def mean_logp(model: Any, pi_logps: Tensor, ref_logps: Tensor | None, yw_idxs: Tensor, yl_idxs: Tensor) -> Tensor:
    """A term that isn't linear in the log-probabilities, and one on the model itself."""
    return (pi_logps[yw_idxs].mean() ** 2) / 1000 + sum(parameter.square().mean() for parameter in model.parameters())


CONSTRAINTS: tuple[Any, ...] = (
    mean_logp,
    Penalty(name="bounds", function=reward_bounds(0.1, -0.001, 0.001), limit=1e-3, weight=2.0),
    Lagrangian(name="near", function=reward_bounds(0.1, -0.01, 0.01), limit=1e-3, step=0.5, initial=0.25),
)


def test_constraints_are_those_of_the_whole_step_and_are_logged(folder: Path) -> None:
    means = assert_same_for_all_cuts(folder, "dpo", constraints=CONSTRAINTS)
    assert means["constraints/near/lambda"] == 0.25
    assert means["constraints/bounds/lambda"] == 2.0
    assert means["constraints/bounds"] > 1e-3
    assert means["constraints/mean_logp"] > 0


def test_multipliers_rise_while_the_cost_is_above_its_limit(folder: Path, tmp_path: Path) -> None:
    run = prepared(config_of(folder, "dpo", tmp_path, num_epochs=3), CONSTRAINTS)
    infos = [info.metrics for info in steps(run)]
    assert infos[0]["constraints/near/lambda"] == 0.25
    for before, after in pairwise(infos):
        risen = before["constraints/near/lambda"] + 0.5 * (before["constraints/near"] - 1e-3)
        assert after["constraints/near/lambda"] == pytest.approx(max(0, risen), abs=1e-6)


def test_constraints_are_refused_where_there_are_no_pairs(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no pairs"):
        prepared(config_of(folder, "kto", tmp_path), CONSTRAINTS)


def test_a_constraint_without_a_graph_is_refused(folder: Path, tmp_path: Path) -> None:
    def decoded(*_: Any) -> Tensor:
        return torch.tensor(1.0)

    run = prepared(config_of(folder, "dpo", tmp_path), (decoded,))
    with pytest.raises(ConfigError, match="no graph"):
        next(steps(run))


def test_pairs_that_weigh_differently_have_no_ranks(folder: Path, tmp_path: Path) -> None:
    lines = (folder / "pair.jsonl").read_text(encoding="utf-8").splitlines()
    group = json.loads(lines[0])
    group["judgments"][0]["weight"] = 2
    data = tmp_path / "weighted.jsonl"
    data.write_text("\n".join([json.dumps(group), *lines[1:]]), encoding="utf-8")
    with pytest.raises(ConfigError, match="can't weigh more"):
        prepared(tiny_config(folder / "model", data, tmp_path / "out", loss="aot"))


# By-products


def test_by_products_are_those_of_full_logits(folder: Path) -> None:
    run = moved_run(folder, "tdpo1")
    group = run.data.train[0]
    batch = pack([group])
    named = ("token_logps", "ref_token_logps", "log_sum_sq_probs", "seq_kl")
    tokens = dict(token_values(run, batch))
    tokens |= run.policy(batch, ["log_sum_sq_probs"]).byproducts
    completions = completions_of(_row_with(named), batch, tokens)

    def full(model: Any, ids: tuple[int, ...]) -> Tensor:
        model.set_attn_implementation("sdpa")
        logits = model(input_ids=torch.tensor([[*group.prompt_ids, *ids[:-1]]])).logits[0]
        model.set_attn_implementation("dipole")
        found: Tensor = logits[len(group.prompt_ids) - 1 :].log_softmax(-1)
        return found

    for number, ids in enumerate(group.completion_ids):
        p = full(run.policy.transformer, ids)
        r = full(run.reference.policy.transformer, ids)  # type: ignore[union-attr]
        target = torch.tensor(ids)[:, None]
        length = len(ids)
        close = {"rtol": 0, "atol": 1e-10}
        torch.testing.assert_close(completions["token_logps"][number, :length], p.gather(1, target)[:, 0], **close)
        torch.testing.assert_close(completions["ref_token_logps"][number, :length], r.gather(1, target)[:, 0], **close)
        torch.testing.assert_close(completions["log_sum_sq_probs"][number], (2 * p).logsumexp(-1).sum(), **close)
        torch.testing.assert_close(completions["seq_kl"][number], (r.exp() * (r - p)).sum(), **close)
        assert completions["token_logps"][number, length:].eq(0).all()


def _row_with(inputs: tuple[str, ...]) -> Any:
    class Row:
        """Stands for a loss that wants them all."""

    Row.inputs = inputs  # type: ignore[attr-defined]
    return Row


# KTO


def test_ktos_constant_is_the_mean_log_ratio_after_prompts_of_others(folder: Path) -> None:
    run = moved_run(folder, "kto")
    groups = run.data.train
    for group in groups:
        assert all(prompt != group.prompt_ids for prompt in group.other_prompts)
    found = mismatched_logratios(run, groups)
    alone = [item for group in groups for item in mismatched_groups(group, 128)]
    for value, item in zip(found.tolist(), alone, strict=True):
        batch = pack([item])
        assert run.reference is not None
        expected = (run.policy(batch).logps - run.reference.token_logps(batch)).sum().item()
        assert value == pytest.approx(expected, abs=1e-10)


def test_a_mismatched_completion_never_exceeds_the_models_length(folder: Path) -> None:
    run = moved_run(folder, "kto", max_length=40)
    longest = max(len(group.prompt_ids) for group in run.data.train)
    for group in run.data.train:
        for item in mismatched_groups(group, longest + 2):
            assert len(item.completion_ids[0]) >= 1
            assert item.num_tokens <= longest + 2


@pytest.mark.parametrize("loss", COUPLED)
def test_the_start_and_held_out_data_work_for_coupled_losses(folder: Path, loss: str, tmp_path: Path) -> None:
    run = prepared(config_of(folder, loss, tmp_path, max_tokens_per_microbatch=60))
    check_start(run)
    state = dict(run.state)
    found, metrics = held_out_rows(run)
    assert len(found) == metrics["eval/n"] == (6 if loss in ("kto", "bco") else 3)
    assert math.isfinite(metrics["eval/loss"])
    assert run.state == state, "measuring moves nothing"


def test_held_out_data_do_not_move_bcos_shift(folder: Path, tmp_path: Path) -> None:
    run = prepared(config_of(folder, "bco", tmp_path, schedule="constant", learning_rate=1e-2))
    list(steps(run))
    shift = float(run.state["reward_mean"])
    assert abs(shift) > 1e-4
    found, _ = held_out_rows(run)
    for row in found:
        sign = 1 if row["desirable"] else -1
        assert row["loss"] == pytest.approx(math.log1p(math.exp(-sign * (row["reward"] - shift))), abs=1e-5)


# TR-DPO


def test_a_reference_that_is_moved_all_the_way_is_the_policy(folder: Path, tmp_path: Path) -> None:
    config = config_of(
        folder, "dpo", tmp_path, num_epochs=3, sync_reference_every=2, sync_reference_alpha=1.0, schedule="constant"
    )
    losses = [info.metrics["loss"] for info in steps(prepared(config))]
    at_reference = [loss == pytest.approx(math.log(2), abs=1e-7) for loss in losses]
    assert at_reference == [True, False, True, False, True, False]


def test_the_reference_moves_by_its_share(folder: Path, tmp_path: Path) -> None:
    config = config_of(folder, "dpo", tmp_path, max_steps=1, sync_reference_every=1, sync_reference_alpha=0.25)
    run = prepared(config)
    start = [parameter.clone() for parameter in run.policy.parameters()]
    list(steps(run))
    moved = list(run.reference.policy.parameters())  # type: ignore[union-attr]
    for old, new, reference in zip(start, run.policy.parameters(), moved, strict=True):
        torch.testing.assert_close(reference, 0.75 * old + 0.25 * new)
    assert not any(parameter.requires_grad for parameter in moved)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"loss": "simpo"}, "Leave it out"),
        ({"loss": "dpo", "peft": "lora", "reference": "adapter_off"}, "copy"),
    ],
)
def test_a_reference_that_can_not_move_is_refused(
    folder: Path, tmp_path: Path, options: dict[str, Any], word: str
) -> None:
    with pytest.raises(ConfigError, match="model of its own") as caught:
        prepared(config_of(folder, options.pop("loss"), tmp_path, sync_reference_every=2, **options))
    assert word in (caught.value.remedy or "")


# Resuming


@pytest.mark.parametrize(
    ("loss", "options", "constraints"),
    [
        ("bco", {}, ()),
        ("beta_dpo", {}, ()),
        ("kto", {"max_tokens_per_microbatch": 60}, ()),
        ("dpo", {"sync_reference_every": 2}, ()),
        ("dpo", {"sync_reference_every": 2, "peft": "lora"}, ()),
        ("dpo", {}, CONSTRAINTS),
    ],
    ids=["bco", "beta_dpo", "kto", "tr_dpo", "tr_dpo_lora", "constraints"],
)
def test_moving_state_survives_an_interruption_bit_for_bit(
    folder: Path, tmp_path: Path, loss: str, options: dict[str, Any], constraints: tuple[ConstraintFunction, ...]
) -> None:
    often = {"num_epochs": 3, "checkpoint_every": 1, "num_samples": 0} | options
    train(config_of(folder, loss, tmp_path / "straight", **often), constraints=constraints)
    with pytest.raises(KilledError):
        train(config_of(folder, loss, tmp_path / "cut", **often), StopAfter(4), constraints=constraints)
    train(config_of(folder, loss, tmp_path / "cut", **often, resume=True), constraints=constraints)
    straight, cut = (
        [without_time(row) for row in rows(tmp_path / name / "metrics.jsonl")] for name in ("straight", "cut")
    )
    assert straight == cut


def test_other_constraints_do_not_go_on_from_a_checkpoint(folder: Path, tmp_path: Path) -> None:
    often = {"num_epochs": 3, "checkpoint_every": 1, "num_samples": 0}
    with pytest.raises(KilledError):
        train(config_of(folder, "dpo", tmp_path / "cut", **often), StopAfter(3), constraints=CONSTRAINTS)
    with pytest.raises(ConfigError, match="constraints"):
        train(config_of(folder, "dpo", tmp_path / "cut", **often, resume=True), constraints=CONSTRAINTS[1:])
