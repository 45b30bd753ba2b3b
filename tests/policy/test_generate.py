"""Samples: from the model's own distribution, the same for a seed, ended where they end."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch

from conftest import build_model, build_tokenizer
from dipole.config import PeftConfig
from dipole.policy.adapters import add_adapter
from dipole.policy.generate import Sampling, sample
from dipole.policy.logprobs import Policy

PROMPTS = [[5, 6, 7], [9], [5, 6, 7, 8, 9, 10, 11], [20, 21]]


@pytest.fixture
def policy() -> Policy:
    return Policy(build_model())


def test_a_seed_gives_its_samples_and_leaves_the_generator_alone(policy: Policy, tokenizer: Any) -> None:
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    first = sample(policy, tokenizer, PROMPTS, Sampling(max_new_tokens=8, seed=1))
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(4)
    assert sample(policy, tokenizer, PROMPTS, Sampling(max_new_tokens=8, seed=1)) == first
    assert sample(policy, tokenizer, PROMPTS, Sampling(max_new_tokens=8, seed=2)) != first


def test_samples_come_in_the_order_of_the_prompts(policy: Policy, tokenizer: Any) -> None:
    done: list[int] = []
    drawn = sample(policy, tokenizer, PROMPTS, Sampling(max_new_tokens=2, batch_size=3), on_batch=done.append)
    assert [item.prompt for item in drawn] == [0, 1, 2, 3]
    assert done == [3, 1]
    assert all(item.text == tokenizer.decode(item.ids, skip_special_tokens=True).strip() for item in drawn)


@pytest.mark.parametrize("prompts", [PROMPTS, [PROMPTS[2]] * 3, [[9], [9]]], ids=["padded", "shared", "one token"])
def test_temperature_zero_is_the_most_likely_token(policy: Policy, tokenizer: Any, prompts: list[list[int]]) -> None:
    drawn = sample(policy, tokenizer, prompts, Sampling(temperature=0, max_new_tokens=6))
    policy.transformer.set_attn_implementation("sdpa")
    for prompt, item in zip(prompts, drawn, strict=True):
        ids = list(prompt)
        for token in item.ids:
            with torch.no_grad():
                logits = policy.transformer(input_ids=torch.tensor([ids])).logits[0, -1]
            assert token == int(logits.argmax())
            ids.append(token)


def test_temperature_one_is_the_model_itself_whatever_its_own_settings_say(policy: Policy, tokenizer: Any) -> None:
    own = policy.transformer.generation_config
    own.update(temperature=0.1, top_p=0.1, top_k=1, min_p=0.5, repetition_penalty=9.0, do_sample=False)
    own.update(no_repeat_ngram_size=1, min_new_tokens=3)
    number = 3000
    drawn = sample(policy, tokenizer, [[5, 6]] * number, Sampling(max_new_tokens=1, batch_size=number))
    counts = torch.bincount(torch.tensor([item.ids[0] for item in drawn]), minlength=260)
    policy.transformer.set_attn_implementation("sdpa")
    with torch.no_grad():
        expected = policy.transformer(input_ids=torch.tensor([[5, 6]])).logits[0, -1].softmax(-1) * number
    likely = expected > 5
    statistic = float(((counts - expected)[likely] ** 2 / expected[likely]).sum())
    assert statistic < 2 * int(likely.sum())  # χ² has that many degrees of freedom; twice is far out
    assert policy.transformer.generation_config is own


def test_a_sample_ends_with_its_end_token_once(tokenizer: Any) -> None:
    model = build_model()
    model.generation_config.eos_token_id = None
    with torch.no_grad():
        model.model.embed_tokens.weight[tokenizer.eos_token_id] *= 4  # tied: makes the end likely
    for pad in ("<|pad|>", tokenizer.eos_token):
        tokenizer.pad_token = pad
        drawn = sample(Policy(model), tokenizer, [[5, 6]] * 40, Sampling(max_new_tokens=12))
        finished = [item for item in drawn if item.finished]
        assert 0 < len(finished) < 40
        for item in drawn:
            assert item.ids.count(tokenizer.eos_token_id) == item.finished
            assert item.finished == (item.ids[-1] == tokenizer.eos_token_id)
            assert item.finished or len(item.ids) == 12
            assert "<|" not in item.text


def test_the_end_tokens_of_the_model_count_too(policy: Policy, tokenizer: Any) -> None:
    policy.transformer.generation_config.eos_token_id = list(range(130))
    drawn = sample(policy, tokenizer, [[5, 6]] * 20, Sampling(max_new_tokens=20))
    assert all(item.finished for item in drawn)
    assert all(item.ids[-1] < 130 or item.ids[-1] == tokenizer.eos_token_id for item in drawn)


def test_attention_and_training_mode_are_restored(policy: Policy, tokenizer: Any) -> None:
    for training in (True, False):
        policy.train(training)
        sample(policy, tokenizer, PROMPTS, Sampling(max_new_tokens=1))
        assert policy.training == policy.transformer.training == training
        assert policy.transformer.config._attn_implementation == "dipole"


def test_an_adapter_takes_part_and_can_be_switched_off() -> None:
    tokenizer = build_tokenizer()
    greedy = Sampling(temperature=0, max_new_tokens=6)
    plain = sample(Policy(build_model()), tokenizer, PROMPTS, greedy)
    adapted = Policy(add_adapter(build_model(), PeftConfig(method="lora", rank=2), seed=0))
    assert sample(adapted, tokenizer, PROMPTS, greedy) == plain
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    assert sample(adapted, tokenizer, PROMPTS, greedy) != plain
    with adapted.model.disable_adapter():  # type: ignore[operator]
        assert sample(adapted, tokenizer, PROMPTS, greedy) == plain


def test_a_stop_text_ends_a_sample_and_is_not_part_of_it(policy: Policy, tokenizer: Any) -> None:
    free = sample(policy, tokenizer, [[5, 6]] * 20, Sampling(max_new_tokens=30, seed=2))
    stop = next(a + b for item in free for a, b in pairwise(item.verbatim[2:]) if (a + b).isascii())
    stopped = sample(policy, tokenizer, [[5, 6]] * 20, Sampling(max_new_tokens=30, seed=2, stop=("never there", stop)))
    assert any(stop in item.verbatim for item in free)
    for before, after in zip(free, stopped, strict=True):
        place = before.verbatim.find(stop)
        assert after.ids == before.ids[: len(after.ids)]
        if place < 0:
            assert after == before
        else:
            assert after.finished
            assert after.verbatim == before.verbatim[:place]
            assert stop in tokenizer.decode(after.ids)
            assert stop not in tokenizer.decode(after.ids[:-1])


def test_text_is_verbatim_without_the_white_space_around(policy: Policy, tokenizer: Any) -> None:
    drawn = sample(policy, tokenizer, [[5, 6]] * 60, Sampling(max_new_tokens=12, temperature=2))
    assert all(item.text == item.verbatim.strip() for item in drawn)
    assert any(item.text != item.verbatim for item in drawn)
