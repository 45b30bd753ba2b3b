"""Sampling completions from a policy: K of a prompt cost one pass over the prompt."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from dipole.data.batch import pack
from dipole.data.tokenize import TokenizedGroup
from dipole.errors import ConfigError
from dipole.policy.decode import Decoder
from dipole.policy.logprobs import Policy, plain_logprobs
from dipole.policy.sampling import Sampling, Stream, choose, uniform_numbers

__all__ = ["Sample", "Sampling", "sample"]

Tokens = Sequence[int]

LEAVE = 1 / 8
"""Share of a batch that has to have ended before it leaves: making the batch smaller copies the rest of its cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One sampled completion.

    Args:
        prompt: which of the given prompts.
        ids: its tokens as they were drawn, with the end-of-sequence token, or those of the stop text, that ended it.
        text: without special tokens, stop text and the white space around it.
        verbatim: the same with its white space.
        finished: whether it ended by itself.
        logps: of each token under the model itself, whatever temperature and truncation were.
    """

    prompt: int
    ids: tuple[int, ...]
    text: str
    verbatim: str
    finished: bool
    logps: tuple[float, ...]


@torch.no_grad()
def sample(
    policy: Policy,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Tokens],
    sampling: Sampling,
    on_batch: Callable[[int], None] = lambda count: None,
    streams: Sequence[Stream] | None = None,
) -> list[Sample]:
    """Draws one completion for every entry of ``prompts`` (repeat a prompt to draw more).

    A completion depends on its prompt, the seed and its stream, not on what is drawn beside it; up to rounding, since
    products of other sizes may differ in the last bit, and a draw may fall just there.

    Args:
        policy: the model; its training mode is restored afterwards.
        tokenizer: for the end of a sequence, and the text.
        prompts: token ids, at least one each.
        sampling: how to draw. torch's own generator isn't touched.
        on_batch: called with the number of completions of each finished batch.
        streams: what tells the random numbers of an entry apart from others of the same seed; its place by default.
    """
    ends = _end_ids(policy, tokenizer)
    streams = [(index,) for index in range(len(prompts))] if streams is None else streams
    drawn: dict[int, Sample] = {}
    modes = [(module, module.training) for module in policy.modules()]
    policy.eval()
    for part in _batches(prompts, sampling.batch_size):
        batch = [_Writing(index, streams[index]) for index in part]
        _write(policy, tokenizer, [tuple(prompts[index]) for index in part], batch, ends, sampling)
        for row in batch:
            drawn[row.prompt] = _sample(row, tokenizer, sampling)
        on_batch(len(part))
    for module, training in modes:
        module.training = training
    return [drawn[index] for index in range(len(prompts))]


@torch.no_grad()
def check_sampling(policy: Policy, tokenizer: PreTrainedTokenizerBase, prompt: Tokens, *, tolerance: float) -> None:
    """Compares the log-probabilities of a few sampled tokens with the model's own forward pass.

    Args:
        policy: the model.
        tokenizer: its own.
        prompt: any; a part of it is sampled from beside the whole.
        tolerance: largest difference of a token's log-probability, in nats.

    Raises:
        ConfigError: they differ: the architecture has parts that sampling doesn't know.
    """
    prompts = [tuple(prompt), tuple(prompt), tuple(prompt[: 1 + len(prompt) // 2])]
    drawn = sample(policy, tokenizer, prompts, Sampling(max_new_tokens=4))
    groups = [
        TokenizedGroup(id="", prompt_ids=ids, completion_ids=(item.ids,), relations=())
        for ids, item in zip(prompts, drawn, strict=True)
    ]
    slow = plain_logprobs(policy, pack(groups).to(policy.device))
    fast = torch.tensor([logp for item in drawn for logp in item.logps], dtype=slow.dtype, device=slow.device)
    difference = float((fast - slow).abs().max())
    if not difference <= tolerance:
        name = type(policy.transformer).__name__
        raise ConfigError(
            f"sampling doesn't compute {name} correctly: its log-probabilities differ from the model's own by up to"
            f" {difference:.3g} nats a token (allowed: {tolerance:.3g})",
            where="--model",
            remedy="Use another architecture; this one has parts that sampling doesn't know",
        )


def _batches(prompts: Sequence[Tokens], size: int) -> Iterator[list[int]]:
    """Entries in batches of at most ``size``, of prompts of similar length; a prompt's together if they fit."""
    order = sorted(range(len(prompts)), key=lambda index: (len(prompts[index]), tuple(prompts[index]), index))
    batch: list[int] = []
    for _, equal in groupby(order, key=lambda index: tuple(prompts[index])):
        entries = list(equal)
        if batch and len(batch) + len(entries) > size:
            yield batch
            batch = []
        batch += entries
        while len(batch) >= size:
            yield batch[:size]
            batch = batch[size:]
    if batch:
        yield batch


@dataclass(slots=True)
class _Writing:
    """A completion that is being written."""

    prompt: int
    stream: Stream
    ids: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)
    finished: bool = False


def _write(
    policy: Policy,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[tuple[int, ...]],
    batch: Sequence[_Writing],
    ends: set[int],
    sampling: Sampling,
) -> None:
    """Writes all completions of a batch to their ends; ``prompts`` has the prompt of each."""
    device, longest = policy.device, sampling.max_new_tokens
    place = {prompt: number for number, prompt in enumerate(dict.fromkeys(prompts))}
    decoder = Decoder(policy, list(place), [place[prompt] for prompt in prompts])
    uniform = torch.tensor([uniform_numbers(sampling.seed, row.stream, longest) for row in batch], dtype=torch.float64)
    uniform = uniform.to(device)
    logits = decoder.begin()
    seen = _seen(prompts, logits) if sampling.repetition_penalty != 1 else None
    rows = list(batch)
    for position in range(longest):
        tokens, logps = choose(logits, uniform[:, position], sampling, seen)
        for row, token, logp in zip(rows, tokens.tolist(), logps.tolist(), strict=True):
            if not row.finished:
                row.ids.append(token)
                row.logps.append(logp)
                row.finished = token in ends or _stopped(row.ids, tokenizer, sampling.stop)
        going = [number for number, row in enumerate(rows) if not row.finished]
        if not going or position == longest - 1:
            return
        if seen is not None:
            seen.scatter_(1, tokens.unsqueeze(1), True)
        if len(rows) - len(going) >= LEAVE * len(rows):
            kept = torch.tensor(going, device=device)
            decoder.keep(kept)
            rows = [rows[number] for number in going]
            tokens, uniform = tokens[kept], uniform[kept]
            seen = None if seen is None else seen[kept]
        logits = decoder.step(tokens)


def _seen(prompts: Sequence[tuple[int, ...]], logits: Tensor) -> Tensor:
    """(N, V) true for the tokens of each sample's prompt."""
    seen = torch.zeros_like(logits, dtype=torch.bool)
    for row, prompt in zip(seen, prompts, strict=True):
        row[list(prompt)] = True
    return seen


def _stopped(ids: list[int], tokenizer: PreTrainedTokenizerBase, stop: Sequence[str]) -> bool:
    """Whether the newest token completes a stop text, which is at most as many tokens long as it has bytes."""
    if not stop:
        return False
    reach = max(len(text.encode()) for text in stop) + 4
    tail = str(tokenizer.decode(ids[-reach:], skip_special_tokens=True))
    return any(text in tail for text in stop)


def _end_ids(policy: Policy, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Tokens that end an answer: the tokenizer's, and those that the model's own generation settings name."""
    configured = policy.transformer.generation_config.eos_token_id
    ends = configured if isinstance(configured, list) else [configured]
    return {token for token in (*ends, tokenizer.eos_token_id) if token is not None}


def _sample(row: _Writing, tokenizer: PreTrainedTokenizerBase, sampling: Sampling) -> Sample:
    text = str(tokenizer.decode(row.ids, skip_special_tokens=True))
    cut = min((place for stop in sampling.stop if (place := text.find(stop)) >= 0), default=len(text))
    return Sample(
        prompt=row.prompt,
        ids=tuple(row.ids),
        text=text[:cut].strip(),
        verbatim=text[:cut],
        finished=row.finished,
        logps=tuple(row.logps),
    )
