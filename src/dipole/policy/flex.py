"""Shared-prompt attention as one kernel a layer: FlexAttention with a block mask over the flat row (for GPUs)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from dipole.data.batch import PackedBatch
from dipole.policy.virtual import VirtualTokens

Mask = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]

VIRTUAL = -1
"""The segment of virtual tokens, which every token sees."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FlexPlan:
    """What every token needs to know of every other: the row's, and after them V virtual ones.

    Args:
        segment: (N + V,) the prompt or completion that each token is part of.
        context: (N + V,) the segment that it goes on from; its own for a prompt's tokens.
        position: (N + V,) within virtual tokens, prompt and completion.
        queries: N, or N + V where virtual tokens are computed like others.
    """

    segment: Tensor
    context: Tensor
    position: Tensor
    queries: int
    _masks: dict[int | None, BlockMask] = field(default_factory=dict)

    @classmethod
    def of(cls, batch: PackedBatch, virtual: VirtualTokens | None = None) -> FlexPlan:
        """The plan of a batch. Segments are numbered as they lie in the row: prompts, then completions."""
        prompts = torch.arange(len(batch.prompt_length), device=batch.input_ids.device)
        length = torch.cat([batch.prompt_length, batch.completion_length])
        numbers = torch.arange(len(length), device=length.device)
        size = len(batch.input_ids)
        count = 0 if virtual is None else virtual.count
        ahead = numbers.new_full((count,), VIRTUAL)
        segment = torch.repeat_interleave(numbers, length, output_size=size)
        context = torch.repeat_interleave(torch.cat([prompts, batch.prompt_of]), length, output_size=size)
        return cls(
            segment=torch.cat([segment, ahead]),
            context=torch.cat([context, ahead]),
            position=torch.cat([batch.position_ids + count, torch.arange(count, device=ahead.device)]),
            queries=size + count if virtual is not None and virtual.in_row else size,
        )

    def sees(self, window: int | None) -> Mask:
        """(batch, head, query, key) → whether the query sees the key, as FlexAttention asks it."""

        def mask(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            segment = self.segment[key]
            related = (segment == self.segment[query]) | (segment == self.context[query]) | (segment == VIRTUAL)
            distance = self.position[query] - self.position[key]
            seen = related & (distance >= 0)
            return seen if window is None else seen & (distance < window)

        return mask

    def block_mask(self, window: int | None) -> BlockMask:
        """Which blocks of the square of queries and keys have to be computed; built once a window size."""
        if window not in self._masks:
            keys, device = len(self.position), self.position.device
            self._masks[window] = create_block_mask(self.sees(window), None, None, self.queries, keys, device)
        return self._masks[window]

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, *, scaling: float, window: int | None, softcap: float | None
    ) -> Tensor:
        """See ``AttentionPlan``."""
        mixed: Tensor = _kernel(query.device.type)(
            query,
            key,
            value,
            score_mod=None if softcap is None else _soft_cap(softcap),
            block_mask=self.block_mask(window),
            scale=scaling,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        return mixed.transpose(1, 2)


@cache
def _kernel(device: str) -> Callable[..., Any]:
    """Compiled on a GPU: uncompiled it would hold all scores. Dynamic: rows differ in length between micro-batches."""
    function: Any = flex_attention
    return torch.compile(function, dynamic=True) if device == "cuda" else function


@cache
def _soft_cap(limit: float) -> Callable[..., Tensor]:
    """One function a limit, so that compiled code is used again."""

    def capped(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return limit * torch.tanh(score / limit)

    return capped
