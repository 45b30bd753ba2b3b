"""Samples of a policy with an adapter are the policy's own, virtual tokens and all."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_adapters import ALL, adapted

from conftest import build_tokenizer
from dipole.data.batch import pack
from dipole.data.tokenize import TokenizedGroup
from dipole.policy.generate import Sampling, sample

PROMPTS = [[5, 6, 7], [9], [5, 6, 7, 8, 9, 10, 11], [9]]


def plain(model: Any, prompt: list[int]) -> int:
    """The most likely next token by PEFT's own forward pass."""
    base = model.get_base_model()
    base.set_attn_implementation("sdpa")
    token = int(model(input_ids=torch.tensor([prompt])).logits[0, -1].argmax())
    base.set_attn_implementation("dipole")
    return token


@pytest.mark.parametrize("name", ALL)
@torch.no_grad()
def test_temperature_zero_is_the_most_likely_token(name: str) -> None:
    policy = adapted(ALL[name])
    drawn = sample(policy, build_tokenizer(), PROMPTS, Sampling(temperature=0, max_new_tokens=5))
    for prompt, item in zip(PROMPTS, drawn, strict=True):
        ids = list(prompt)
        for token in item.ids:
            assert token == plain(policy.model, ids)
            ids.append(token)
    with policy.model.disable_adapter():  # type: ignore[operator]
        assert sample(policy, build_tokenizer(), PROMPTS, Sampling(temperature=0, max_new_tokens=5)) != drawn


@pytest.mark.parametrize("name", ["prefix_tuning", "prompt_tuning", "lora on the head"])
@torch.no_grad()
def test_the_log_probabilities_of_samples_are_those_of_training(name: str) -> None:
    policy = adapted(ALL[name])
    drawn = sample(policy, build_tokenizer(), PROMPTS, Sampling(max_new_tokens=6, seed=2))
    groups = [
        TokenizedGroup(id="", prompt_ids=tuple(PROMPTS[item.prompt]), completion_ids=(item.ids,), relations=())
        for item in drawn
    ]
    found = torch.tensor([logp for item in drawn for logp in item.logps], dtype=torch.float64)
    torch.testing.assert_close(found, policy(pack(groups)).logps, rtol=0, atol=1e-6)
