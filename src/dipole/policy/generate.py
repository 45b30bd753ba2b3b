"""Sampling completions from a policy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from dipole.policy.attention import plain_attention
from dipole.policy.logprobs import Policy


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How completions are drawn.

    Args:
        temperature: 1 samples from the model itself; 0 takes the most likely token.
        top_p: smallest set of tokens with this much probability; 1 for all.
        max_new_tokens: where an answer is cut if it doesn't end by itself.
        seed: of the draws.
        batch_size: sequences at a time.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 128
    seed: int = 0
    batch_size: int = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One sampled completion.

    Args:
        prompt: which of the given prompts.
        ids: its tokens, with the end-of-sequence token if it ended by itself.
        text: without special tokens.
        finished: whether it ended by itself.
    """

    prompt: int
    ids: tuple[int, ...]
    text: str
    finished: bool


@torch.no_grad()
def sample(
    policy: Policy,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    on_batch: Callable[[int], None] = lambda count: None,
) -> list[Sample]:
    """Draws one completion for every entry of ``prompts`` (repeat a prompt to draw more).

    Args:
        policy: the model; its training mode is restored afterwards.
        tokenizer: for padding, the end of a sequence, and the text.
        prompts: token ids.
        sampling: how to draw. Equal seeds give equal draws on one machine, and leave torch's own generator untouched.
        on_batch: called with the number of completions of each finished batch.
    """
    ends = _end_ids(policy, tokenizer)
    settings = GenerationConfig(
        do_sample=sampling.temperature > 0,
        temperature=sampling.temperature if sampling.temperature > 0 else None,
        top_p=sampling.top_p if sampling.temperature > 0 else None,
        top_k=0 if sampling.temperature > 0 else None,
        max_new_tokens=sampling.max_new_tokens,
        eos_token_id=sorted(ends),
        pad_token_id=tokenizer.pad_token_id,
    )
    # Batches of similar length waste little padding; the order is undone at the end.
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    drawn: dict[int, Sample] = {}
    was_training = policy.training
    policy.eval()
    devices = [policy.device] if policy.device.type == "cuda" else []
    model = policy.transformer
    with torch.random.fork_rng(devices=devices), plain_attention(model), _without_own_settings(model):
        torch.manual_seed(sampling.seed)
        for start in range(0, len(order), sampling.batch_size):
            part = order[start : start + sampling.batch_size]
            rows = _generate(policy, [prompts[index] for index in part], settings)
            for index, row in zip(part, rows, strict=True):
                drawn[index] = _sample(index, row, ends, tokenizer)
            on_batch(len(part))
    policy.train(was_training)
    return [drawn[index] for index in range(len(prompts))]


@contextmanager
def _without_own_settings(model: PreTrainedModel) -> Iterator[None]:
    """Hides the model's generation settings, such as a repetition penalty: they would fill in what ours leave open."""
    own, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


def _generate(policy: Policy, prompts: Sequence[Sequence[int]], settings: GenerationConfig) -> list[list[int]]:
    """New tokens of each prompt, padding included. Prompts are padded on the left."""
    model: Any = policy.model
    longest = max(map(len, prompts))
    pad = settings.pad_token_id
    ids = torch.tensor([[pad] * (longest - len(row)) + list(row) for row in prompts], device=policy.device)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in prompts], device=policy.device)
    shared = _shared_cache(policy, prompts)
    output: Tensor = model.generate(
        input_ids=ids, attention_mask=mask, generation_config=settings, past_key_values=shared
    )
    rows: list[list[int]] = output[:, longest:].tolist()
    return rows


def _shared_cache(policy: Policy, prompts: Sequence[Sequence[int]]) -> DynamicCache | None:
    """Keys and values of a prompt that all rows have in common, computed once and repeated; ``None`` if they differ."""
    if len(prompts) < 2 or len(prompts[0]) < 2 or any(row != prompts[0] for row in prompts[1:]):
        return None
    cache = DynamicCache(config=policy.transformer.config)
    # The last token stays out: generation has to read at least one to predict the next.
    ids = torch.tensor([list(prompts[0][:-1])], device=policy.device)
    policy.model(input_ids=ids, past_key_values=cache, use_cache=True)
    cache.batch_repeat_interleave(len(prompts))
    return cache


def _end_ids(policy: Policy, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Tokens that end an answer: the tokenizer's, and those that the model's own generation settings name."""
    configured = policy.transformer.generation_config.eos_token_id
    ends = configured if isinstance(configured, list) else [configured]
    return {token for token in (*ends, tokenizer.eos_token_id) if token is not None}


def _sample(index: int, row: list[int], ends: set[int], tokenizer: PreTrainedTokenizerBase) -> Sample:
    end = next((place for place, token in enumerate(row) if token in ends), None)
    ids = row if end is None else row[: end + 1]
    text = tokenizer.decode(ids, skip_special_tokens=True)
    return Sample(prompt=index, ids=tuple(ids), text=str(text).strip(), finished=end is not None)
