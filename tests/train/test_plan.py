"""A run's plan: arithmetic by hand, against what a step really allocates, and without loading any weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from measured import peak_bytes
from tiny_runs import prepared, rows, tiny_config, write_groups
from transformers import LlamaConfig, LlamaForCausalLM

from conftest import build_tokenizer
from dipole.errors import ConfigError, DataError
from dipole.policy.size import Shape, empty_model, shape_of
from dipole.progress import Silent
from dipole.train.plan import FOUR_BIT, NARROW, WIDE, Setup, memory
from dipole.train.rehearsal import rehearse
from dipole.train.run import train

SHAPE = Shape(
    parameters=1000, in_layers=800, layers=4, hidden=10, attention=10, key_value=5, intermediate=20, vocabulary=10
)
FULL = Setup(
    trained=1000,
    adapter=False,
    weight_bytes=WIDE,
    narrow=False,
    optimizer="adamw_fused",
    reference="copy",
    tokens=7,
    targets=3,
)
LORA = replace(FULL, trained=40, adapter=True, weight_bytes=NARROW, narrow=True, reference="adapter_off")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six layers of 128 units, so that no part of the memory is lost beside another."""
    folder = tmp_path_factory.mktemp("models") / "larger"
    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=2000,
            hidden_size=128,
            intermediate_size=352,
            num_hidden_layers=6,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            tie_word_embeddings=False,
        )
    ).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_groups(tmp_path_factory.mktemp("data") / "data.jsonl", train=12, held_out=2)


def test_all_weights_take_sixteen_bytes_a_parameter_and_the_reference_four() -> None:
    found = memory(SHAPE, FULL)
    assert (found.weights, found.gradients, found.optimizer, found.reference) == (4000, 4000, 8000, 4000)
    assert (found.together, found.temporary) == (0, 0)


def test_an_adapter_takes_its_own_sixteen_beside_frozen_weights() -> None:
    found = memory(SHAPE, LORA)
    assert found.weights == 2 * 1000 + 4 * 40
    assert (found.gradients, found.optimizer, found.reference) == (160, 320, 0)


def test_four_bits_are_for_layers_alone() -> None:
    found = memory(SHAPE, replace(LORA, weight_bytes=FOUR_BIT))
    assert found.weights == round(FOUR_BIT * 800 + 2 * 200 + 4 * 40)


@pytest.mark.parametrize(
    ("optimizer", "state", "temporary"),
    [("adamw", 8000, 4000), ("adamw_fused", 8000, 0), ("adamw_8bit", 2031, 0), ("rmsprop", 4000, 4000), ("sgd", 0, 0)],
)
def test_optimizers_by_their_state(optimizer: str, state: int, temporary: int) -> None:
    found = memory(SHAPE, replace(FULL, optimizer=optimizer))
    assert found.optimizer == pytest.approx(state, abs=1)
    assert found.temporary == temporary


def test_divided_weights_are_shared_but_for_what_is_put_together() -> None:
    found = memory(SHAPE, replace(FULL, processes=4, sharded=True))
    assert (found.weights, found.gradients, found.optimizer, found.reference) == (1000, 1000, 2000, 1000)
    # Embeddings and head (200 parameters) of policy, copy and gradient; two layers of 200, and the gradient of one.
    assert found.together == 4 * (3 * 200 + 2 * 200 + 200)


def test_layers_that_forget_keep_their_inputs_and_one_layer() -> None:
    one = 2 * 10 * (4 + 4) + 4 * (2 * 10 + 10 + 20 + 2 * 10 + 2 * 5 + 3 * 20)
    assert memory(SHAPE, FULL).activations == 7 * (4 * one + 2 * 40)
    assert memory(SHAPE, replace(FULL, checkpointing=True)).activations == 7 * (4 * 40 + one + 2 * 40)
    assert memory(SHAPE, replace(FULL, offloading=True)).activations == 7 * (one + 2 * 40)


def test_the_total_is_what_stays_and_the_larger_of_pass_and_optimizer() -> None:
    found = replace(memory(SHAPE, FULL), activations=10, head=20, together=30, temporary=50)
    assert found.total == 20_000 + 60
    assert replace(found, temporary=500).total == 20_000 + 500


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"gradient_checkpointing": True},
        {"dtype": "bfloat16", "optimizer": "rmsprop"},
        {"peft": "lora"},
        {"peft": "lora", "dtype": "bfloat16"},
        {"peft": "lora", "optimizer": "sgd", "reference": "copy"},
    ],
    ids=str,
)
def test_the_estimate_is_near_what_a_step_allocates(
    model: Path, data: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    """Within 15 %: attention on the CPU pads segments and copies a prompt's keys for each completion, norms and rotary
    embeddings make short-lived tensors, and none of that is in the formula."""
    config = tiny_config(model, data, tmp_path / "out", num_samples=0, global_batch_size=6, num_epochs=2, **options)
    estimate = rehearse(config, Silent()).memory.total
    assert estimate == pytest.approx(peak_bytes(prepared(config)), rel=0.15)


def test_a_plan_counts_what_the_run_does(model: Path, data: Path, tmp_path: Path) -> None:
    config = tiny_config(model, data, tmp_path / "out", num_samples=0, num_epochs=2, max_steps=7, peft="lora", rank=4)
    plan = rehearse(config, Silent())
    assert not (tmp_path / "out").exists()
    assert (plan.steps, plan.epochs, plan.groups, plan.held_out) == (7, 1.75, 12, 2)
    output = train(config)
    metrics = [row for row in rows(output / "metrics.jsonl") if "tokens" in row]
    assert sum(row["tokens"] for row in metrics) == plan.tokens
    run = prepared(replace(config, output=str(tmp_path / "other")))
    trained = sum(p.numel() for p in run.policy.parameters() if p.requires_grad)
    assert plan.setup.trained == trained
    assert plan.shape.parameters == sum(p.numel() for p in run.policy.parameters()) - trained


def test_no_weights_are_needed(model: Path, data: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for file in model.iterdir():
        if file.suffix == ".json":
            (bare / file.name).write_bytes(file.read_bytes())
    assert rehearse(tiny_config(bare, data, tmp_path / "out"), Silent()).shape.layers == 6
    assert (
        shape_of(empty_model(str(bare))).parameters
        == rehearse(tiny_config(model, data, tmp_path / "out"), Silent()).shape.parameters
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reference": "adapter_off"}, "no adapter"),
        ({"loss": "simpo", "reference": "copy"}, "no reference"),
        ({"loss": "tdpo1", "reference": "cached"}, "whole distributions"),
        ({"max_length": 600}, "512 tokens"),
        ({"sharding": "fsdp"}, "one process"),
        ({"optimizer": "adamw_8bit"}, "GPU"),
        ({"beta": -1.0}, "beta"),
    ],
)
def test_options_that_a_run_would_refuse_are_refused(
    model: Path, data: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    if "adamw_8bit" in options.values() and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ConfigError, match=message):
        rehearse(tiny_config(model, data, tmp_path / "out", **options), Silent())


def test_data_that_a_run_would_refuse_is_refused(model: Path, tmp_path: Path) -> None:
    held_out = write_groups(tmp_path / "data.jsonl", train=0, held_out=3)
    with pytest.raises(DataError, match="held out"):
        rehearse(tiny_config(model, held_out, tmp_path / "out"), Silent())


def test_the_command_line_shows_the_plan(
    model: Path, data: Path, tmp_path: Path, command: Callable[..., tuple[int, str, str]]
) -> None:
    flags = ["--model", model, "--data", data, "--output", tmp_path / "out", "--peft.method", "lora"]
    status, out, _ = command("train", *flags, "--dry_run")
    assert status == 0
    for words in ("trained", "12 groups", "adapter off", "weights", "at the fullest moment", "nothing was written"):
        assert words in out
    assert not (tmp_path / "out").exists()


def test_a_dry_run_is_none_of_train(model: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="rehearse"):
        train(tiny_config(model, data, tmp_path / "out", dry_run=True))
