"""The four trainers, used as one would write it down: tensors, index pairs, a step; and what they say of mistakes."""

from __future__ import annotations

import copy
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import write_for, write_groups
from torch import Tensor
from torch.nn.functional import logsigmoid
from transformers import LlamaForCausalLM

import dipole
from conftest import build_exact_model, build_model, build_tokenizer
from dipole.errors import ConfigError, DataError, DipoleError, TrainingFault
from dipole.objective import LOSSES
from dipole.objective.constraints import Lagrangian, Penalty
from dipole.train.padded import unpadded

B, LENGTH, PROMPT = 4, 12, 5
YW, YL = torch.tensor([0, 0, 2]), torch.tensor([1, 3, 3])
"""Three pairs among four completions; 0 and 3 occur twice."""


def batch_of(pad: str = "right", vocabulary: int = 64) -> dict[str, Tensor]:
    """Four completions of one prompt, of different lengths, padded on one side."""
    draw = torch.Generator().manual_seed(0)
    prompt = torch.randint(3, vocabulary, (PROMPT,), generator=draw)
    x = {name: torch.zeros(B, LENGTH, dtype=torch.int64) for name in ("input_ids", "attention_mask", "completion_mask")}
    for row, length in enumerate((3, 7, 5, 1)):
        used = PROMPT + length
        place = slice(0, used) if pad == "right" else slice(LENGTH - used, LENGTH)
        x["input_ids"][row, place] = torch.cat([prompt, torch.randint(3, vocabulary, (length,), generator=draw)])
        x["attention_mask"][row, place] = 1
        x["completion_mask"][row, place] = torch.arange(used).ge(PROMPT).long()
    return x


def sequence_logps(model: Any, x: dict[str, Tensor]) -> Tensor:
    """(B,) as one writes it by hand: full logits, shifted, masked, summed."""
    logits = model(input_ids=x["input_ids"], attention_mask=x["attention_mask"]).logits[:, :-1]
    logps = logits.log_softmax(-1).gather(2, x["input_ids"][:, 1:, None]).squeeze(2)
    return (logps * x["completion_mask"][:, 1:]).sum(1)


# The script


def test_the_four_trainers_as_a_script() -> None:
    base = build_model(64)
    x = batch_of()

    dpo = dipole.DPOTrainer(copy.deepcopy(base), beta=0.1, lr=1e-3)
    losses = [dpo.train_step((x, YW, YL)) for _ in range(10)]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-6)
    assert losses[-1] < losses[0] - 0.1
    assert dpo.metrics["rewards/accuracies"] == 1

    lora = dipole.DPOTrainerWithLoRA(copy.deepcopy(base), beta=0.1, lr=1e-3, lora_rank=4)
    losses = [lora.train_step((x, YW, YL)) for _ in range(10)]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-6)
    assert losses[-1] < losses[0]

    soft = dipole.ProbabilisticDPOTrainer(copy.deepcopy(base), beta=0.1, lr=1e-3)
    losses = [soft.train_step((x, YW, YL, 0.8)) for _ in range(100)]
    entropy = -0.8 * math.log(0.8) - 0.2 * math.log(0.2)
    assert losses[-1] == pytest.approx(entropy, abs=0.02)
    assert losses[-1] >= entropy - 1e-6

    def stay_near(model: Any, pi_logps: Tensor, ref_logps: Tensor, yw_idxs: Tensor, yl_idxs: Tensor) -> Tensor:
        return (pi_logps - ref_logps).square().mean()

    constitutional = dipole.ConstitutionalDPOTrainer(copy.deepcopy(base), beta=0.1, lr=1e-3, constraints=[stay_near])
    for _ in range(10):
        constitutional.train_step((x, YW, YL))
    assert constitutional.metrics["constraints/stay_near"] > 0
    assert constitutional.metrics["rewards/margins"] < dpo.metrics["rewards/margins"]


def test_the_example_runs() -> None:
    script = Path(__file__).parents[2] / "examples" / "four_trainers.py"
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert lines[0] == "At the reference: loss 0.6931, rewards [0.0, 0.0, 0.0, 0.0]"
    assert [line.partition(":")[0] for line in lines[1:5]] == ["DPO", "LoRA", "Probabilities", "Constraints"]
    assert all("loss 0.693 → 0." in line for line in lines[1:5])


def test_fit_takes_groups(tiny_folder: Path, tmp_path: Path) -> None:
    groups = dipole.load_groups(str(write_for(tmp_path / "data.jsonl", LOSSES["dpo"])))
    model = LlamaForCausalLM.from_pretrained(tiny_folder)
    losses = dipole.DPOTrainer(model, lr=1e-3).fit(groups, num_epochs=20, global_batch_size=2)
    assert len(losses) == 40
    assert losses[0] == pytest.approx(math.log(2), abs=1e-6)
    assert losses[-1] < 0.3


def test_fit_keeps_probabilities_only_in_the_probabilistic_trainer(tiny_folder: Path, tmp_path: Path) -> None:
    groups = dipole.load_groups(str(write_groups(tmp_path / "data.jsonl")))
    seen = []

    class Watched(dipole.ProbabilisticDPOTrainer):
        def compute_loss(self, *arguments: Any, **known: Any) -> tuple[Tensor, Tensor]:  # type: ignore[override]
            seen.extend(arguments[4].tolist())
            return super().compute_loss(*arguments, **known)

    Watched(LlamaForCausalLM.from_pretrained(tiny_folder)).fit(groups)
    assert set(seen) == {1.0, 0.75, 0.625}


# What compute_loss computes


@pytest.mark.parametrize("pad", ["left", "right"])
def test_log_probabilities_and_gradients_are_those_by_hand(pad: str) -> None:
    model, x = build_exact_model(), batch_of(pad)
    trainer = dipole.DPOTrainer(model, beta=0.3, lr=0.0, max_grad_norm=1e9)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.05)
    reference = build_exact_model()
    pi, ref = sequence_logps(model, batch_of("right")), sequence_logps(reference, batch_of("right"))
    h = (pi - ref.detach())[YW] - (pi - ref.detach())[YL]
    loss = -logsigmoid(0.3 * h).mean()
    loss.backward()
    expected = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    assert trainer.train_step((x, YW, YL)) == pytest.approx(loss.item(), abs=1e-10)
    found = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    for left, right in zip(found, expected, strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=1e-10)


def test_rewards_are_one_a_completion_and_a_shared_completion_adds_up() -> None:
    trainer = dipole.DPOTrainer(build_model(64), beta=0.5)
    pi, ref = torch.tensor([-1.0, -2.0, -3.0, -4.0], requires_grad=True), torch.tensor([-2.0, -2.0, -2.0, -2.0])
    loss, rewards = trainer.compute_loss(pi, ref, YW, YL)
    assert rewards.tolist() == [0.5, 0.0, -0.5, -1.0]
    assert not rewards.requires_grad
    loss.backward()
    slope = [-torch.sigmoid(-0.5 * (pi.detach()[i] - pi.detach()[j])) * 0.5 / 3 for i, j in zip(YW, YL, strict=True)]
    assert pi.grad is not None
    torch.testing.assert_close(pi.grad, torch.stack([slope[0] + slope[1], -slope[0], slope[2], -slope[1] - slope[2]]))


def test_no_pairs_are_a_zero_with_a_graph() -> None:
    trainer = dipole.DPOTrainer(build_model(64))
    before = [parameter.clone() for parameter in trainer.model.parameters()]
    assert trainer.train_step((batch_of(), [], [])) == 0
    assert all(torch.equal(old, new) for old, new in zip(before, trainer.model.parameters(), strict=True))


@pytest.mark.parametrize("prob", [0.7, torch.tensor([0.7, 0.7, 0.7]), [0.7, 0.7, 0.7]])
def test_a_probability_is_a_number_or_one_a_pair(prob: Any) -> None:
    trainer = dipole.ProbabilisticDPOTrainer(build_model(64), beta=0.5)
    pi, ref = torch.tensor([-1.0, -2.0, -3.0, -4.0]), torch.zeros(4)
    loss, _ = trainer.compute_loss(pi, ref, YW, YL, prob)
    h = 0.5 * (pi[YW] - pi[YL])
    assert loss.item() == pytest.approx((-0.7 * logsigmoid(h) - 0.3 * logsigmoid(-h)).mean().item())


def test_multipliers_rise_and_are_logged() -> None:
    def spread(model: Any, pi_logps: Tensor, ref_logps: Tensor, yw_idxs: Tensor, yl_idxs: Tensor) -> Tensor:
        return (pi_logps - ref_logps).abs().mean()

    trainer = dipole.ConstitutionalDPOTrainer(
        build_model(64),
        lr=1e-3,
        constraints=[
            Lagrangian(name="spread", function=spread, limit=0.0, step=0.1),
            Penalty(name="far", function=spread, limit=100.0, weight=3.0),
        ],
    )
    for _ in range(5):
        trainer.train_step((batch_of(), YW, YL))
    assert trainer.multipliers["spread"] > 0
    assert trainer.metrics["constraints/far/lambda"] == 3
    assert 0 < trainer.metrics["constraints/spread/lambda"] < float(trainer.multipliers["spread"])


def test_a_constraint_may_run_the_model_itself() -> None:
    x = batch_of()
    seen = []

    def prompts_stay_likely(
        model: Any, pi_logps: Tensor, ref_logps: Tensor, yw_idxs: Tensor, yl_idxs: Tensor
    ) -> Tensor:
        seen.append(sequence_logps(model, x).detach())
        return model(input_ids=x["input_ids"][:1, :PROMPT], labels=x["input_ids"][:1, :PROMPT]).loss

    trainer = dipole.ConstitutionalDPOTrainer(build_model(64), lr=1e-3, constraints=[prompts_stay_likely])
    pi_logps = sequence_logps(trainer.model, x).detach()
    costs = []
    for _ in range(5):
        trainer.train_step((x, YW, YL))
        costs.append(trainer.metrics["constraints/prompts_stay_likely"])
    torch.testing.assert_close(seen[0], pi_logps)
    assert costs[-1] < costs[0]


def test_a_loss_that_uses_lengths_is_given_them() -> None:
    trainer = dipole.DPOTrainer(build_model(64), loss="simpo", lr=1e-3)
    assert trainer.reference is None
    losses = [trainer.train_step((batch_of(), YW, YL)) for _ in range(5)]
    assert losses[-1] < losses[0]
    with pytest.raises(ConfigError, match="lengths"):
        trainer.compute_loss(torch.zeros(2), None, [0], [1])


def test_another_model_may_be_the_reference() -> None:
    model, reference = build_model(64), build_model(64, seed=1)
    trainer = dipole.DPOTrainer(model, reference, lr=1e-3)
    assert abs(trainer.train_step((batch_of(), YW, YL)) - math.log(2)) > 1e-3
    twin = build_model(64, seed=1)
    assert all(torch.equal(old, new) for old, new in zip(twin.parameters(), reference.parameters(), strict=True))


# Mistakes


@pytest.mark.parametrize(
    ("yw", "yl", "message"),
    [
        ([0, 1], [1], "yw_idxs has 2 entries and yl_idxs has 1"),
        ([0, 4], [1, 2], r"yw_idxs\[1\] is 4, but there are 4"),
        ([0, 1], [-1, 2], r"yl_idxs\[0\] is -1"),
        ([0, 2], [1, 2], r"yw_idxs\[1\] and yl_idxs\[1\] are the same completion"),
        (torch.tensor([0.0]), torch.tensor([1]), r"yw_idxs has .*float"),
    ],
)
@pytest.mark.parametrize(
    "make",
    [
        dipole.DPOTrainer,
        dipole.ProbabilisticDPOTrainer,
        lambda model: dipole.ConstitutionalDPOTrainer(model, constraints=[]),
    ],
)
def test_bad_indices_name_the_entry(make: Callable[[Any], Any], yw: Any, yl: Any, message: str) -> None:
    with pytest.raises(DipoleError, match=message):
        make(build_model(64)).train_step((batch_of(), yw, yl))


def spoiled(name: str, value: Any) -> dict[str, Any]:
    x: dict[str, Any] = batch_of()
    if callable(value):
        value(x[name])
    elif value is None:
        del x[name]
    else:
        x[name] = value
    return x


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("completion_mask", None, "completion_mask is missing"),
        ("attention_mask", torch.ones(4, 3, dtype=torch.int64), "attention_mask has shape"),
        ("input_ids", torch.zeros(4, 12), "integers"),
        ("attention_mask", lambda mask: mask[1].zero_(), "row 1 is all padding"),
        ("attention_mask", lambda mask: mask[2, 3].zero_(), "row 2 has padding inside"),
        ("completion_mask", lambda mask: mask[0].zero_(), "row 0 has no completion"),
        ("completion_mask", lambda mask: mask[3].copy_(torch.arange(12) < 6), "row 3 has no prompt"),
        ("completion_mask", lambda mask: mask[1, 6].zero_(), "row 1 has prompt tokens after or inside"),
        ("completion_mask", lambda mask: mask[0, -1].fill_(1), "row 0 has padding in its completion_mask"),
        ("completion_mask", lambda mask: mask[0].mul_(2), "other than 0 and 1"),
    ],
)
def test_a_bad_batch_names_the_row(name: str, change: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        unpadded(spoiled(name, change))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "kto"}, "unary"),
        ({"loss": "tdpo1"}, "seq_kl"),
        ({"loss": "bco_pair"}, "moves from step to step"),
        ({"loss": "dpo", "gamma": 1.0}, "gamma"),
        ({"loss": "orpo", "beta": 0.1}, "beta"),
        ({"loss": "dpoo"}, "there is no loss"),
    ],
)
def test_what_a_trainer_can_not_do_is_refused_when_it_is_made(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dipole.DPOTrainer(build_model(64), **options)


def test_a_reference_for_a_loss_without_one_is_refused() -> None:
    with pytest.raises(ConfigError, match="no reference"):
        dipole.DPOTrainer(build_model(64), build_model(64), loss="simpo")


def test_fit_needs_a_tokenizer_and_pairs(tmp_path: Path) -> None:
    groups = dipole.load_groups(str(write_for(tmp_path / "data.jsonl", LOSSES["dpo"])))
    with pytest.raises(ConfigError, match="no folder"):
        dipole.DPOTrainer(build_model(260)).fit(groups)
    approvals = [
        dipole.Group(
            id="a",
            prompt="p",
            completions=(dipole.Completion(text="x"),),
            judgments=(dipole.Approval(i=0, value=True),),
        )
    ]
    with pytest.raises(DataError):
        dipole.DPOTrainer(build_model(260), tokenizer=build_tokenizer()).fit(approvals)


def test_a_probability_outside_of_its_range_names_the_pair() -> None:
    with pytest.raises(DataError, match=r"prob\[1\] is 1\.5"):
        dipole.ProbabilisticDPOTrainer(build_model(64)).train_step((batch_of(), YW, YL, [0.5, 1.5, 1.0]))


def test_a_constraint_without_a_graph_is_refused() -> None:
    def decoded(*_: Any) -> Tensor:
        return torch.tensor(0.3)

    with pytest.raises(ConfigError, match="no graph"):
        dipole.ConstitutionalDPOTrainer(build_model(64), constraints=[decoded]).train_step((batch_of(), YW, YL))


@pytest.mark.parametrize(
    ("weight", "loss", "message"),
    [
        (torch.ones(2), "dpo", "weight: it has shape (2,), but there are 3 pairs"),
        (torch.tensor([1.0, -1.0, 1.0]), "dpo", "weight[1] is -1"),
        (torch.tensor([1.0, 2.0, 1.0]), "aot", "aot compares ranks within the batch"),
    ],
)
def test_weights_that_can_not_be_are_refused(weight: Tensor, loss: str, message: str) -> None:
    trainer = dipole.DPOTrainer(build_model(64), loss=loss)
    with pytest.raises(DipoleError) as caught:
        trainer.compute_loss(torch.zeros(B), torch.zeros(B), YW, YL, weight=weight)
    assert message in str(caught.value)


def test_a_step_that_is_not_finite_leaves_the_model_as_it_was() -> None:
    def explode(model: Any, pi_logps: Tensor, ref_logps: Tensor, yw_idxs: Tensor, yl_idxs: Tensor) -> Tensor:
        return pi_logps.sum() * math.inf

    model = build_model(64)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(TrainingFault, match="left as it was"):
        dipole.ConstitutionalDPOTrainer(model, constraints=[explode]).train_step((batch_of(), YW, YL))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_frozen_model_and_empty_epochs_are_refused() -> None:
    with pytest.raises(ConfigError, match="none of its parameters requires a gradient"):
        dipole.DPOTrainer(build_model(64).requires_grad_(False))
    with pytest.raises(ConfigError, match="global_batch_size: has to be at least 1, not 0"):
        dipole.DPOTrainer(build_model(64)).fit([], global_batch_size=0)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(2, 3), "x is a Tensor, but has to be a mapping"),
        ({"input_ids": [[1, 2], [1]]}, "input_ids is no tensor"),
        ({name: torch.zeros(0, 3, dtype=torch.int64) for name in batch_of()}, "it has no completions"),
    ],
)
def test_what_is_no_batch_says_so(x: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        unpadded(x)


@pytest.mark.parametrize(
    ("use", "says"),
    [
        (lambda: dipole.DPOTrainer("gpt2"), "it is a str"),  # type: ignore[arg-type]
        (lambda: dipole.DPOTrainer(build_model(64)).fit("x.jsonl"), "it is a path"),
        (lambda: dipole.DPOTrainer(build_model(64)).train_step((batch_of(), [0])), r"isn't \(x, yw_idxs"),
        (lambda: dipole.DPOTrainer(build_model(32)).train_step((batch_of(), [0], [1])), "the model embeds 32"),
        (lambda: dipole.DPOTrainer(short_model()).train_step((batch_of(), [0], [1])), "row 1 has 12 tokens, but .* 10"),
    ],
)
def test_other_mistakes_are_named_too(use: Callable[[], Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        use()


def short_model() -> Any:
    model = build_model(64)
    model.config.max_position_embeddings = 10
    return model
