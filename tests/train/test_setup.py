"""What is settled and refused before the first step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from tiny_runs import Recorder, prepared, rows, tiny_config, write_for, write_groups
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
)

from conftest import build_model, build_tokenizer
from dipole.config import train_config
from dipole.errors import ConfigError, DataError
from dipole.objective import LOSSES
from dipole.policy import logprobs
from dipole.train.devices import make_accelerator
from dipole.train.setup import prepare


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_groups(tmp_path_factory.mktemp("data") / "data.jsonl")


def save(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return folder


# Data


def test_groups_of_a_held_out_split_are_never_trained_on(tiny_folder: Path, data: Path, tmp_path: Path) -> None:
    run = prepared(tiny_config(tiny_folder, data, tmp_path))
    assert {group.id for group in run.data.train} == {f"g{number}" for number in range(10)}
    assert {group.id for group in run.data.held_out} == {"g10", "g11", "g12"}
    assert run.data.facts["groups"] == 10
    assert run.data.facts["eval_relations"] == 9
    assert run.total_steps == run.order.steps_per_epoch == 4


def test_what_messages_refer_to_has_to_be_in_the_folder_of_the_data(tiny_folder: Path, tmp_path: Path) -> None:
    parts = [{"type": "image", "path": "cat.png"}, {"type": "text", "text": "What is it?"}]
    row = {"prompt": [{"role": "user", "content": parts}], "chosen": "A cat.", "rejected": "No dog."}
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError, match=r"media missing .*'cat.png' isn't there"):
        prepared(tiny_config(tiny_folder, data, tmp_path / "run"))


def test_eval_data_are_held_out_too(tiny_folder: Path, data: Path, tmp_path: Path) -> None:
    more = write_groups(tmp_path / "more.jsonl", train=2, held_out=0, seed=5)
    more.write_text(more.read_text().replace('"id": "g', '"id": "more'))
    run = prepared(tiny_config(tiny_folder, data, tmp_path, eval_data=str(more)))
    assert {group.id for group in run.data.held_out} == {"g10", "g11", "g12", "more0", "more1"}


def test_nothing_left_to_train_on_is_a_data_error(tiny_folder: Path, tmp_path: Path) -> None:
    held_out = write_groups(tmp_path / "data.jsonl", train=0, held_out=3)
    with pytest.raises(DataError, match="all groups are held out"):
        prepared(tiny_config(tiny_folder, held_out, tmp_path))
    long = write_groups(tmp_path / "data.jsonl")
    with pytest.raises(DataError, match="no room"):
        prepared(tiny_config(tiny_folder, long, tmp_path, max_length=10))


def test_evaluating_without_held_out_data_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    train_only = write_groups(tmp_path / "data.jsonl", held_out=0)
    with pytest.raises(ConfigError, match="held-out"):
        prepared(tiny_config(tiny_folder, train_only, tmp_path, eval_every=2))
    assert prepared(tiny_config(tiny_folder, train_only, tmp_path)).data.held_out == []


# Prompts to sample from


def test_prompts_to_sample_from_are_different_and_as_training_sees_them(
    tiny_folder: Path, data: Path, tmp_path: Path
) -> None:
    run = prepared(tiny_config(tiny_folder, data, tmp_path, num_samples=8, prompt_format="chat"))
    assert len(run.data.prompts) == 3  # as many as are held out
    assert {prompt.ids for prompt in run.data.prompts} == {group.prompt_ids for group in run.data.held_out}
    assert [prompt.text for prompt in run.data.prompts] == [
        json.loads(line)["prompt"] for line in data.read_text().splitlines()[10:]
    ]


def test_a_plain_prompt_of_messages_is_sampled_as_a_chat(tiny_folder: Path, tmp_path: Path) -> None:
    path = write_groups(tmp_path / "data.jsonl", held_out=0)
    groups = rows(path)
    for group in groups:
        for completion in group["completions"]:
            completion["text"] = [{"role": "assistant", "content": completion["text"]}]
    path.write_text("".join(json.dumps(group) + "\n" for group in groups))
    run = prepared(tiny_config(tiny_folder, path, tmp_path))
    assert run.data.prompts[0].ids == next(group.prompt_ids for group in run.data.train if group.id == "g0")


def test_prompts_without_room_for_a_sample_are_passed_over(data: Path, tmp_path: Path) -> None:
    short = GPT2Config(vocab_size=260, n_embd=16, n_layer=1, n_head=2, n_positions=64)
    model = save(GPT2LMHeadModel(short), tmp_path / "model")
    groups = rows(data)
    for group in groups[10:12]:
        group["prompt"] += " and much longer, so long that no room is left"
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(group) + "\n" for group in groups))
    run = prepared(tiny_config(model, path, tmp_path, max_length=64, sample_tokens=32, num_samples=1))
    assert [prompt.text for prompt in run.data.prompts] == [groups[12]["prompt"]]
    told = Recorder()
    run = prepare(tiny_config(model, path, tmp_path, max_length=64, sample_tokens=60), told)
    assert run.data.prompts == []
    assert any("sample" in sentence for sentence in told.said)


# Devices


@pytest.mark.skipif(torch.cuda.is_available(), reason="it is used")
def test_a_gpu_without_float64_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("accelerate.state.is_mps_available", lambda *_, **__: True)
    config = train_config(model="m", data="d", output="o")
    AcceleratorState._reset_state(reset_partial_state=True)  # it remembers the device
    try:
        assert make_accelerator(config).device.type == "cpu"
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


# The model


def test_max_length_is_what_the_model_takes_at_most(tiny_folder: Path, data: Path, tmp_path: Path) -> None:
    assert prepared(tiny_config(tiny_folder, data, tmp_path, max_length=None)).config.max_length == 512
    with pytest.raises(ConfigError, match="takes 512 tokens, fewer than 513") as caught:
        prepared(tiny_config(tiny_folder, data, tmp_path, max_length=513))
    assert caught.value.where == "--max_length"


def test_positions_that_depend_on_a_sequence_s_length_end_where_they_change(data: Path, tmp_path: Path) -> None:
    rope = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "rope_theta": 1e4}
    config = Phi3Config(
        vocab_size=260,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=512,
        original_max_position_embeddings=64,
        rope_parameters=rope | {"original_max_position_embeddings": 64},
        pad_token_id=0,
    )
    model = save(Phi3ForCausalLM(config), tmp_path / "model")
    assert prepared(tiny_config(model, data, tmp_path / "a", max_length=None)).config.max_length == 64
    with pytest.raises(ConfigError, match=r"takes 64 tokens, fewer than 65: beyond that.*longrope"):
        prepared(tiny_config(model, data, tmp_path / "b", max_length=65))


def test_a_tokenizer_of_another_model_is_refused(data: Path, tmp_path: Path) -> None:
    model = save(build_model(200), tmp_path / "model")
    with pytest.raises(ConfigError, match="the tokenizer has 260 tokens, but the model embeds 200"):
        prepared(tiny_config(model, data, tmp_path))


def test_dropout_that_is_no_module_is_off_too(data: Path, tmp_path: Path) -> None:
    config = OPTConfig(
        vocab_size=260,
        hidden_size=32,
        ffn_dim=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        word_embed_proj_dim=32,
        max_position_embeddings=256,
        dropout=0.5,
        init_std=0.2,
    )
    model = save(OPTForCausalLM(config), tmp_path / "model")
    run = prepared(tiny_config(model, data, tmp_path, max_length=None))
    ids = torch.arange(20).unsqueeze(0)
    run.policy.transformer.set_attn_implementation("sdpa")
    with torch.no_grad():
        first, second = (run.policy.transformer(input_ids=ids).logits for _ in range(2))
    assert torch.equal(first, second)


def test_the_engine_is_checked_beyond_the_attention_window(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two short groups say nothing about a window that is longer than they are."""
    config = MistralConfig(
        vocab_size=260,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        sliding_window=40,
    )
    model = save(MistralForCausalLM(config), tmp_path / "model")
    probed: list[int] = []
    plain = logprobs.plain_logprobs

    def record(policy: Any, batch: Any) -> Any:
        probed.append(int((batch.prompt_length[batch.prompt_of] + batch.num_targets).max()))
        return plain(policy, batch)

    monkeypatch.setattr(logprobs, "plain_logprobs", record)
    run = prepared(tiny_config(model, data, tmp_path))
    shortest = sorted(run.data.train, key=lambda group: group.num_tokens)[:2]
    assert all(len(group.prompt_ids) + max(map(len, group.completion_ids)) <= 40 for group in shortest)
    assert max(probed) > 40


def test_bfloat16_runs_on_a_processor(tiny_folder: Path, data: Path, tmp_path: Path) -> None:
    from dipole.train.loop import steps

    for method in ("lora", "none"):
        run = prepared(tiny_config(tiny_folder, data, tmp_path, dtype="bfloat16", peft=method))
        losses = [info.metrics["loss"] for info in steps(run)]
        assert losses[0] == pytest.approx(0.6931, abs=0.01)
        assert len(losses) == 4


@pytest.mark.parametrize("option", [{"rank": 8}, {"alpha": 8}, {"targets": "q_proj"}])
def test_an_adapters_options_without_an_adapter_are_refused(option: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="all weights are trained") as caught:
        train_config(model="m", data="d", output="o", **option)
    assert caught.value.where == f"--peft.{next(iter(option))}"
    assert train_config(model="m", data="d", output="o", peft="lora", **option).peft.method == "lora"


# Labels and facts that a loss can't take


def refused(folder: Path, data: Path, output: Path, loss: str) -> str:
    with pytest.raises(DataError) as caught:
        prepared(tiny_config(folder, data, output, loss=loss))
    return str(caught.value)


def change(path: Path, number: int, edit: Any) -> Path:
    groups = rows(path)
    edit(groups[number])
    path.write_text("".join(json.dumps(group) + "\n" for group in groups), encoding="utf-8")
    return path


@pytest.mark.parametrize("loss", ["odpo", "rpo_nvidia_sq"])
def test_missing_scores_are_refused_before_training(tiny_folder: Path, tmp_path: Path, loss: str) -> None:
    def unrate(group: dict[str, Any]) -> None:
        order = list(range(len(group["completions"])))
        group["judgments"] = [{"kind": "ranking", "order": order}]

    data = change(write_for(tmp_path / "data.jsonl", LOSSES[loss]), 2, unrate)
    assert "group g2, completions: scores[0] is nan" in refused(tiny_folder, data, tmp_path / "run", loss)


def test_groups_without_scores_make_no_scored_list_and_are_counted(tiny_folder: Path, tmp_path: Path) -> None:
    def unrate(group: dict[str, Any]) -> None:
        group["judgments"] = [{"kind": "ranking", "order": [0, 1, 2]}]

    data = change(write_for(tmp_path / "data.jsonl", LOSSES["infonca"]), 2, unrate)
    told = Recorder()
    run = prepare(tiny_config(tiny_folder, data, tmp_path / "run", loss="infonca"), told)
    assert [group.id for group in run.data.train] == ["g0", "g1", "g3"]
    assert "1 groups without relations dropped." in told.said
    for number in (0, 1, 3):
        change(data, number, unrate)
    assert "make no scored relation" in refused(tiny_folder, data, tmp_path / "run", "infonca")


def test_a_pair_that_a_loss_can_t_take_is_named_by_its_group(tiny_folder: Path, tmp_path: Path) -> None:
    def contradict(group: dict[str, Any]) -> None:
        group["judgments"].append({"kind": "comparison", "i": 1, "j": 0, "weight": 5})

    data = change(write_for(tmp_path / "data.jsonl", LOSSES["odpo"]), 3, contradict)
    said = refused(tiny_folder, data, tmp_path / "run", "odpo")
    assert "group g3, odpo: the rejected completion of pair 0 has the higher score" in said


def test_rows_of_facts_of_different_lengths_are_refused(tiny_folder: Path, tmp_path: Path) -> None:
    def lengthen(group: dict[str, Any]) -> None:
        group["completions"][1]["meta"]["margin_rewards"] = [0.1, 0.2]

    data = change(write_for(tmp_path / "data.jsonl", LOSSES["modpo"]), 1, lengthen)
    said = refused(tiny_folder, data, tmp_path / "run", "modpo")
    assert "group g1: its 'margin_rewards' has 2 numbers, and others have 1" in said


def test_completions_of_one_prompt_alone_have_no_mismatched_prompts(tiny_folder: Path, tmp_path: Path) -> None:
    data = write_for(tmp_path / "data.jsonl", LOSSES["kto"], groups=1)
    said = refused(tiny_folder, data, tmp_path / "run", "kto")
    assert "2 of 2 completions answer the same prompt" in said
