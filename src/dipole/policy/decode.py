"""Writing token by token: each prompt is encoded once, and its keys and values are kept once for all of its samples.

A step is one flat row, as in training: a token of each sample, and an attention plan that says what each sees. Here
the plan is the cache: a sample sees its prompt's keys, which all samples of that prompt read together, and its own.

Shape letters: N samples · P prompts · M most samples of one prompt · L tokens of the longest prompt · T tokens that
each sample has written · C tokens that there is room for · H query heads · K key heads, each for G = H / K query
heads · D units of a head.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dipole.data.batch import pack
from dipole.data.tokenize import TokenizedGroup
from dipole.errors import ConfigError
from dipole.policy.attention import PaddedPlan
from dipole.policy.head import logits_of
from dipole.policy.logprobs import Policy
from dipole.policy.virtual import VirtualTokens, virtual_tokens

PREFILL_TOKENS = 8192
"""Tokens of prompts that are encoded at a time; bounds the memory for activations."""

FIRST_ROOM = 32
"""Tokens a sample that there is room for at first; the room doubles when it is full."""


@dataclass(slots=True)
class LayerCache:
    """Keys and values of one layer.

    Args:
        prompt_key, prompt_value: (P, K, L, D).
        key, value: (N, K, C, D) of what the samples have written.
    """

    prompt_key: Tensor
    prompt_value: Tensor
    key: Tensor
    value: Tensor


class Decoder:
    """Samples that are being written, all equally long so far; an ``AttentionPlan`` for one step after another.

    Args:
        policy: the model.
        prompts: token ids, no two equal.
        prompt_of: the prompt of each of N samples.

    Raises:
        ConfigError: a layer doesn't attend the way that the engine expects.
    """

    def __init__(self, policy: Policy, prompts: Sequence[Sequence[int]], prompt_of: Sequence[int]) -> None:
        self._policy = policy
        self._written = 0
        self._turn = 0
        virtual = virtual_tokens(policy.model)
        ahead = virtual.count if virtual is not None else 0  # as part of every prompt
        self._lengths = torch.tensor([ahead + len(prompt) for prompt in prompts], device=policy.device)
        self._rows = torch.tensor(prompt_of, device=policy.device)
        self._group()
        self._first, layers = _prefill(policy, prompts, virtual)
        weight = policy.head_of(self._first).weight
        self._head = weight.to(torch.promote_types(weight.dtype, torch.float32))  # once, not in every step
        count = len(prompt_of)
        self._layers = [
            LayerCache(key, value, _room(key, count, FIRST_ROOM), _room(value, count, FIRST_ROOM))
            for key, value in layers
        ]

    def begin(self) -> Tensor:
        """(N, V) logits of every sample's first token."""
        return self._logits(self._first).index_select(0, self._rows)

    def step(self, tokens: Tensor) -> Tensor:
        """(N, V) logits of the token after ``tokens``, (N,), which is what each sample has just written."""
        if self._written == self._layers[0].key.shape[2]:
            for layer in self._layers:
                layer.key, layer.value = _doubled(layer.key), _doubled(layer.value)
        self._turn = 0
        self._masks: dict[int | None, Tensor | None] = {}
        hidden = self._policy.hidden(tokens, self._lengths[self._rows] + self._written, self)
        if self._turn != len(self._layers):
            raise ConfigError("the layers that attend differ from token to token, which sampling can't follow")
        self._written += 1
        return self._logits(hidden)

    def keep(self, samples: Tensor) -> None:
        """Goes on with these samples alone, (n,) in ascending order; prompts that have none left are forgotten."""
        rows = self._rows.index_select(0, samples)
        prompts, self._rows = rows.unique(return_inverse=True)
        fewer = prompts.numel() < self._lengths.numel()
        self._lengths = self._lengths.index_select(0, prompts)
        self._group()
        longest = int(self._lengths.max())
        for layer in self._layers:
            if fewer:
                layer.prompt_key = layer.prompt_key[:, :, :longest].index_select(0, prompts)
                layer.prompt_value = layer.prompt_value[:, :, :longest].index_select(0, prompts)
            layer.key, layer.value = (_moved(old, samples, self._written) for old in (layer.key, layer.value))

    def _logits(self, hidden: Tensor) -> Tensor:
        return logits_of(self._policy.head_of(hidden)._replace(weight=self._head))

    def _group(self) -> None:
        """Lays the samples out by prompt: (P, M) sample numbers, padded with 0, and each sample's place among them."""
        samples = torch.arange(self._rows.numel(), device=self._rows.device)
        by_prompt = self._rows.argsort(stable=True)
        counts = self._rows.bincount(minlength=self._lengths.numel())
        first = counts.cumsum(0) - counts
        within = torch.empty_like(samples)
        within[by_prompt] = samples - first[self._rows[by_prompt]]
        width = int(counts.max())
        self._place = self._rows * width + within
        members = samples.new_zeros(counts.numel() * width)
        members[self._place] = samples
        self._members = members
        self._width = width

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, *, scaling: float, window: int | None, softcap: float | None
    ) -> Tensor:
        """(1, N, H, D) attention of one layer over each sample's prompt and what it has written; see ``AttentionPlan``.

        Layers come in the same order in every step, as they did when the prompts were encoded.
        """
        layer = self._layers[self._turn]
        self._turn += 1
        now = self._written + 1
        layer.key[:, :, self._written] = key[0].transpose(0, 1)
        layer.value[:, :, self._written] = value[0].transpose(0, 1)
        samples, heads, size = query.shape[2], key.shape[1], query.shape[3]
        asked = (query[0].transpose(0, 1) * scaling).reshape(samples, heads, -1, size)  # (N, K, G, D)
        own_key, own_value = layer.key[:, :, :now], layer.value[:, :, :now]
        of_prompt = self._by_sample(self._by_prompt(asked) @ layer.prompt_key.transpose(2, 3))
        scores = torch.cat([of_prompt, asked @ own_key.transpose(2, 3)], dim=-1)  # (N, K, G, L + T)
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        if (mask := self._mask(window)) is not None:
            scores = scores.masked_fill(mask, -torch.inf)
        weights = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(value.dtype)
        to_prompt, to_own = weights.split([layer.prompt_key.shape[2], now], dim=-1)
        mixed: Tensor = self._by_sample(self._by_prompt(to_prompt) @ layer.prompt_value) + to_own @ own_value
        return mixed.reshape(1, samples, -1, size)

    def _by_prompt(self, values: Tensor) -> Tensor:
        """(P, K, M · G, X) of (N, K, G, X): what the samples of a prompt ask, side by side."""
        laid: Tensor = values.index_select(0, self._members).unflatten(0, (-1, self._width))
        return laid.transpose(1, 2).flatten(2, 3)

    def _by_sample(self, values: Tensor) -> Tensor:
        """(N, K, G, X) of (P, K, M · G, X)."""
        laid: Tensor = values.unflatten(2, (self._width, -1)).transpose(1, 2).flatten(0, 1)
        return laid.index_select(0, self._place)

    def _mask(self, window: int | None) -> Tensor | None:
        """(N, 1, 1, L + T) true for keys that aren't to be seen; ``None`` if all are. Made once a step and window."""
        if window not in self._masks:
            lengths = self._lengths[self._rows].unsqueeze(1)
            places = torch.arange(int(self._lengths.max()), device=lengths.device)
            own = torch.arange(self._written + 1, device=lengths.device)
            hidden = torch.cat([places >= lengths, (own < 0).expand(len(lengths), -1)], dim=1)
            if window is not None:
                position = torch.cat([places.expand(len(lengths), -1), lengths + own], dim=1)
                hidden |= lengths + self._written - position >= window
            self._masks[window] = hidden[:, None, None] if bool(hidden.any()) else None
        return self._masks[window]


class _Recorder:
    """A plan that keeps the keys and values of every layer."""

    def __init__(self, plan: PaddedPlan) -> None:
        self._plan = plan
        self.layers: list[tuple[Tensor, Tensor]] = []

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, *, scaling: float, window: int | None, softcap: float | None
    ) -> Tensor:
        """See ``AttentionPlan``."""
        self.layers.append((key[0], value[0]))
        return self._plan.attend(query, key, value, scaling=scaling, window=window, softcap=softcap)


def _prefill(
    policy: Policy, prompts: Sequence[Sequence[int]], virtual: VirtualTokens | None
) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """Encodes all prompts, each with the virtual tokens before it.

    Returns:
        (P, hidden units) what predicts each one's next token, and of each layer keys and values, (P, K, L, D) each.
    """
    ahead, longest = virtual.count if virtual is not None else 0, max(map(len, prompts))
    hidden, parts = [], []
    for part in _parts(prompts):
        # A completion of one token has no input of its own: what predicts it is the prompt's end.
        groups = [TokenizedGroup(id="", prompt_ids=tuple(ids), completion_ids=((0,),), relations=()) for ids in part]
        batch = pack(groups).to(policy.device)
        recorder = _Recorder(PaddedPlan.of(batch, virtual))
        states = policy.hidden(batch.input_ids, batch.position_ids, recorder, virtual)
        hidden.append(states.index_select(0, batch.predictor))
        steps = torch.arange(longest, device=policy.device)
        own = (batch.prompt_start.unsqueeze(1) + steps) * (steps < batch.prompt_length.unsqueeze(1))
        # Keys of virtual tokens come after those of the row.
        first = torch.arange(len(batch.input_ids), len(batch.input_ids) + ahead, device=policy.device)
        places = torch.cat([first.expand(len(own), -1), own], dim=1)
        parts.append([(_laid(key, places), _laid(value, places)) for key, value in recorder.layers])
    layers = [
        (torch.cat([key for key, _ in layer]), torch.cat([value for _, value in layer]))
        for layer in zip(*parts, strict=True)
    ]
    return torch.cat(hidden), layers


def _laid(rows: Tensor, places: Tensor) -> Tensor:
    """(P, K, L, D) of (K, N, D) at (P, L) places."""
    return rows[:, places].transpose(0, 1)


def _parts(prompts: Sequence[Sequence[int]]) -> Iterator[list[Sequence[int]]]:
    """Consecutive prompts of at most ``PREFILL_TOKENS`` together, or one that is longer."""
    part: list[Sequence[int]] = []
    for prompt in prompts:
        if part and sum(map(len, part)) + len(prompt) > PREFILL_TOKENS:
            yield part
            part = []
        part.append(prompt)
    yield part


def _room(like: Tensor, samples: int, tokens: int) -> Tensor:
    return like.new_empty(samples, like.shape[1], tokens, like.shape[3])


def _doubled(old: Tensor) -> Tensor:
    new = _room(old, old.shape[0], 2 * old.shape[2])
    new[:, :, : old.shape[2]] = old
    return new


def _moved(old: Tensor, samples: Tensor, written: int) -> Tensor:
    """The samples' rows with as much room; only what is written is copied."""
    new = _room(old, samples.numel(), old.shape[2])
    new[:, :, :written] = old[:, :, :written].index_select(0, samples)
    return new
