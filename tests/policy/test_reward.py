"""Reward models: the engine's scores are transformers' own, before and after saving, padded or not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, LlamaForSequenceClassification

from conftest import build_groups, build_tokenizer
from dipole.config import PeftConfig
from dipole.data.batch import pack
from dipole.errors import ConfigError
from dipole.policy.adapters import add_adapter
from dipole.policy.logprobs import sum_by_completion
from dipole.policy.reward import (
    RewardModel,
    load_reward_model,
    load_scorer,
    plain_scores,
    reward_scores,
    separate_padding,
)

GROUPS = build_groups((4, [3, 1, 6]), (2, [5, 2]), (7, [1]))
CPU = torch.device("cpu")


@pytest.fixture
def model(tiny_folder: Path) -> RewardModel:
    return RewardModel(load_scorer(str(tiny_folder), pad_id=257)).eval()


def test_scores_are_the_models_own(model: RewardModel) -> None:
    batch = pack(GROUPS)
    values = model(batch).logps
    torch.testing.assert_close(values, plain_scores(model, batch), rtol=0, atol=1e-5)
    torch.testing.assert_close(sum_by_completion(values, batch), model.scores(batch))
    assert model.scores(batch).unique().numel() == 6, "each completion has a score of its own"


def test_the_last_token_counts(model: RewardModel) -> None:
    group = build_groups((4, [3]))[0]
    other = replace(group, completion_ids=((*group.completion_ids[0][:-1], 9),))
    assert not torch.equal(model.scores(pack([group])), model.scores(pack([other])))


def test_every_weight_of_the_body_and_the_head_gets_a_gradient(model: RewardModel) -> None:
    model.scores(pack(GROUPS)).square().sum().backward()
    without = [name for name, value in model.named_parameters() if value.grad is None or not value.grad.any()]
    assert without == []


@pytest.mark.parametrize("adapter", [False, True], ids=["all weights", "lora"])
def test_what_is_saved_has_the_same_scores_in_transformers(tiny_folder: Path, tmp_path: Path, adapter: bool) -> None:
    tokenizer = build_tokenizer()
    scorer = load_scorer(str(tiny_folder), pad_id=separate_padding(tokenizer))
    config = PeftConfig(method="lora", rank=2) if adapter else PeftConfig()
    model = RewardModel(add_adapter(scorer, config, seed=0))
    assert any("score" in name and value.requires_grad for name, value in model.named_parameters())
    with torch.no_grad():
        for value in model.parameters():
            if value.requires_grad:
                value += 0.1 * torch.randn(value.shape, generator=torch.Generator().manual_seed(1))
    batch = pack(GROUPS)
    expected = model.scores(batch).detach()
    saved: Any = model.for_saving()
    saved.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    torch.testing.assert_close(model.scores(batch), expected, rtol=0, atol=0)

    loaded: Any = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert isinstance(loaded, LlamaForSequenceClassification)
    rows = [[*prompt, *ids] for prompt, ids in batch.sequences]
    width = max(map(len, rows))
    for side in (1, -1):
        padded = [(row + [257] * (width - len(row))) if side == 1 else [257] * (width - len(row)) + row for row in rows]
        ids = torch.tensor(padded)
        with torch.no_grad():
            logits = loaded(input_ids=ids, attention_mask=(ids != 257).long()).logits
        torch.testing.assert_close(logits.squeeze(-1), expected, rtol=0, atol=1e-4)

    again, _ = load_reward_model(tmp_path, device=CPU)
    prompts, completions = zip(*batch.sequences, strict=True)
    assert reward_scores(again, prompts, completions, batch_size=4) == pytest.approx(expected.tolist(), abs=1e-4)


def test_padding_is_another_token_than_the_end_where_there_is_one() -> None:
    tokenizer = build_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    pad_id = separate_padding(tokenizer)
    assert pad_id == tokenizer.pad_token_id != tokenizer.eos_token_id


def test_where_padding_ends_answers_the_score_is_read_where_transformers_reads_it(model: RewardModel) -> None:
    model.transformer.config.pad_token_id = 5
    group = build_groups((4, [3]))[0]
    ended = replace(group, completion_ids=((9, 8, 5), (5,)), relations=())
    batch = pack([ended])
    torch.testing.assert_close(model(batch).logps, plain_scores(model, batch), rtol=0, atol=1e-5)


def test_a_seed_gives_its_head(tiny_folder: Path) -> None:
    heads = [load_scorer(str(tiny_folder), seed=seed, pad_id=257).score.weight for seed in (1, 1, 2)]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_a_model_that_cant_score_is_refused(tiny_model: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no head of one number"):
        RewardModel(tiny_model)
    with pytest.raises(ConfigError):
        load_scorer(str(tmp_path / "nothing"), pad_id=0)
