"""Decoding with shared prompts: K samples at once are K samples one by one, and each is the model's own."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from test_architectures import RIGHT, policy_of

from conftest import build_exact_model, build_tokenizer
from dipole.config import PeftConfig
from dipole.data.batch import pack
from dipole.data.tokenize import TokenizedGroup
from dipole.errors import ConfigError
from dipole.policy import decode
from dipole.policy.adapters import add_adapter
from dipole.policy.decode import Decoder
from dipole.policy.generate import Sample, Sampling, check_sampling, sample
from dipole.policy.logprobs import Policy, plain_logprobs

TOKENIZER = build_tokenizer()
DRAW = random.Random(0)
PROMPTS = [[DRAW.randrange(3, 64) for _ in range(length)] for length in (1, 4, 4, 9, 30)]
K = 3
STREAMS = [(number, k) for number in range(len(PROMPTS)) for k in range(K)]
ROWS = [PROMPTS[number] for number, _ in STREAMS]


@pytest.fixture
def exact() -> Policy:
    return Policy(build_exact_model())


def contents(drawn: list[Sample]) -> list[tuple[tuple[int, ...], bool]]:
    return [(item.ids, item.finished) for item in drawn]


def one_by_one(policy: Policy, sampling: Sampling) -> list[Sample]:
    return [
        sample(policy, TOKENIZER, [row], sampling, streams=[stream])[0]
        for row, stream in zip(ROWS, STREAMS, strict=True)
    ]


KINDS: dict[str, dict[str, Any]] = {
    "the model itself": {},
    "hot": {"temperature": 1.7},
    "nucleus": {"top_p": 0.8},
    "few": {"top_k": 5, "temperature": 0.7},
    "repetition": {"repetition_penalty": 1.3, "top_p": 0.9},
    "greedy": {"temperature": 0},
}


@pytest.mark.parametrize(("kind", "batch_size"), [*((kind, 64) for kind in KINDS), ("the model itself", 4)])
def test_samples_with_a_shared_cache_are_those_drawn_one_by_one(exact: Policy, kind: str, batch_size: int) -> None:
    exact.transformer.generation_config.eos_token_id = [5, 6, 7, 8, 9]  # so that rows end at different times
    sampling = Sampling(max_new_tokens=16, seed=3, batch_size=batch_size, **KINDS[kind])
    together, alone = sample(exact, TOKENIZER, ROWS, sampling, streams=STREAMS), one_by_one(exact, sampling)
    assert contents(together) == contents(alone)
    if kind != "greedy":
        assert len({item.ids for item in together}) > K
        assert len({len(item.ids) for item in together}) > 3


def test_log_probabilities_of_samples_are_the_models_own(exact: Policy) -> None:
    exact.transformer.generation_config.eos_token_id = [5, 6]
    drawn = sample(exact, TOKENIZER, ROWS, Sampling(max_new_tokens=66, temperature=0.8, top_p=0.9), streams=STREAMS)
    assert max(len(item.ids) for item in drawn) > 2 * decode.FIRST_ROOM  # the caches have grown twice
    for row, item in zip(ROWS, drawn, strict=True):
        group = TokenizedGroup(id="", prompt_ids=tuple(row), completion_ids=(item.ids,), relations=())
        expected = plain_logprobs(exact, pack([group]))
        assert list(item.logps) == pytest.approx(expected.tolist(), abs=1e-10)


@pytest.mark.parametrize("architecture", RIGHT)
def test_every_architecture_that_the_engine_takes_is_sampled_right(architecture: str) -> None:
    policy = policy_of(*RIGHT[architecture])
    drawn = sample(policy, TOKENIZER, ROWS, Sampling(max_new_tokens=10), streams=STREAMS)
    groups = [
        TokenizedGroup(id="", prompt_ids=tuple(row), completion_ids=(item.ids,), relations=())
        for row, item in zip(ROWS, drawn, strict=True)
    ]
    slow = plain_logprobs(policy, pack(groups))
    assert [logp for item in drawn for logp in item.logps] == pytest.approx(slow.tolist(), abs=1e-5)


def test_prompts_are_encoded_once_each(exact: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[int] = []
    true_hidden = Policy.hidden

    def counted(self: Policy, input_ids: torch.Tensor, *rest: Any, **options: Any) -> torch.Tensor:
        encoded.append(input_ids.numel())
        return true_hidden(self, input_ids, *rest, **options)

    monkeypatch.setattr(Policy, "hidden", counted)
    sample(exact, TOKENIZER, ROWS, Sampling(max_new_tokens=3), streams=STREAMS)
    assert encoded == [sum(map(len, PROMPTS)), len(ROWS), len(ROWS)]


def test_samples_that_have_ended_leave_the_batch(exact: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    exact.transformer.generation_config.eos_token_id = list(range(20))
    sizes: list[int] = []
    true_step = Decoder.step

    def counted(self: Decoder, tokens: torch.Tensor) -> torch.Tensor:
        sizes.append(tokens.numel())
        return true_step(self, tokens)

    monkeypatch.setattr(Decoder, "step", counted)
    sample(exact, TOKENIZER, ROWS, Sampling(max_new_tokens=60), streams=STREAMS)
    assert sizes[0] < len(ROWS)
    assert sizes[-1] <= 2
    assert sizes == sorted(sizes, reverse=True)


def test_many_prompts_are_encoded_in_parts(exact: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = sample(exact, TOKENIZER, ROWS, Sampling(max_new_tokens=5), streams=STREAMS)
    monkeypatch.setattr(decode, "PREFILL_TOKENS", 10)
    assert contents(sample(exact, TOKENIZER, ROWS, Sampling(max_new_tokens=5), streams=STREAMS)) == contents(whole)


def test_an_adapter_takes_part_in_shared_decoding() -> None:
    adapted = Policy(add_adapter(build_exact_model(), PeftConfig(method="lora", rank=2), seed=0).double())
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    sampling = Sampling(max_new_tokens=12, seed=1)
    together = sample(adapted, TOKENIZER, ROWS, sampling, streams=STREAMS)
    assert contents(together) == contents(one_by_one(adapted, sampling))
    assert contents(together) != contents(
        sample(Policy(build_exact_model()), TOKENIZER, ROWS, sampling, streams=STREAMS)
    )


def test_a_model_that_is_sampled_wrong_is_refused(exact: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    check_sampling(exact, TOKENIZER, PROMPTS[3], tolerance=1e-8)
    true_hidden = Policy.hidden
    monkeypatch.setattr(
        Policy, "hidden", lambda self, ids, positions, *rest: true_hidden(self, ids, positions.clamp_max(6), *rest)
    )
    with pytest.raises(ConfigError, match="PhiForCausalLM"):
        check_sampling(exact, TOKENIZER, PROMPTS[3], tolerance=1e-3)


@pytest.mark.parametrize("method", ["prefix_tuning", "prompt_tuning"])
def test_virtual_tokens_come_before_every_prompt(method: Any) -> None:
    config = PeftConfig(method=method, num_virtual_tokens=3)
    adapted = Policy(add_adapter(build_exact_model(), config, seed=0).double())
    drawn = sample(adapted, TOKENIZER, ROWS, Sampling(max_new_tokens=6), streams=STREAMS)
    groups = [
        TokenizedGroup(id="", prompt_ids=tuple(row), completion_ids=(item.ids,), relations=())
        for row, item in zip(ROWS, drawn, strict=True)
    ]
    slow = plain_logprobs(adapted, pack(groups))
    assert [logp for item in drawn for logp in item.logps] == pytest.approx(slow.tolist(), abs=1e-6)
