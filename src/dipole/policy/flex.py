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

Mask = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class FlexPlan:
    """What every token of the row needs to know of every other.

    Args:
        segment: (N,) the prompt or completion that each token is part of.
        context: (N,) the segment that it goes on from; its own for a prompt's tokens.
        position: (N,) within prompt and completion.
    """

    segment: Tensor
    context: Tensor
    position: Tensor
    _masks: dict[int | None, BlockMask] = field(default_factory=dict)

    @classmethod
    def of(cls, batch: PackedBatch) -> FlexPlan:
        """The plan of a batch. Segments are numbered as they lie in the row: prompts, then completions."""
        prompts = torch.arange(len(batch.prompt_length), device=batch.input_ids.device)
        length = torch.cat([batch.prompt_length, batch.completion_length])
        numbers = torch.arange(len(length), device=length.device)
        size = len(batch.input_ids)
        return cls(
            segment=torch.repeat_interleave(numbers, length, output_size=size),
            context=torch.repeat_interleave(torch.cat([prompts, batch.prompt_of]), length, output_size=size),
            position=batch.position_ids,
        )

    def sees(self, window: int | None) -> Mask:
        """(batch, head, query, key) → whether the query sees the key, as FlexAttention asks it."""

        def mask(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            related = (self.segment[key] == self.segment[query]) | (self.segment[key] == self.context[query])
            distance = self.position[query] - self.position[key]
            seen = related & (distance >= 0)
            return seen if window is None else seen & (distance < window)

        return mask

    def block_mask(self, window: int | None) -> BlockMask:
        """Which blocks of the square of queries and keys have to be computed; built once a window size."""
        if window not in self._masks:
            size = len(self.position)
            self._masks[window] = create_block_mask(self.sees(window), None, None, size, size, self.position.device)
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
