"""Shared-prompt attention: a completion sees its group's prompt and itself, and nothing else of the flat row.

It enters through transformers' attention interface under the name ``dipole``, so any decoder that takes the interface
works. A plan, built once a micro-batch, gathers the row into two padded calls a layer: prompts among themselves, and
completions over their prompt and themselves.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

from dipole.data.batch import PackedBatch
from dipole.errors import ConfigError

NAME = "dipole"


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionPlan:
    """Where each query's keys lie in the row.

    Args:
        prompt: (P, Lp) places of the prompts' tokens, padded with 0.
        query: (C, Lc) places of the completions' tokens, padded with 0; completions without inputs are left out.
        key: (C, Lp + Lc) places of what those completions see: their prompt, then themselves.
        distance: (C, Lc, Lp + Lc) how far each key lies before its query, −1 where it is not to be seen.
        back: (N,) where each token of the row lies in the concatenated outputs of the two calls.
    """

    prompt: Tensor
    query: Tensor
    key: Tensor
    distance: Tensor
    back: Tensor
    _masks: dict[int | None, Tensor] = field(default_factory=dict)

    def mask(self, window: int | None) -> Tensor:
        """(C, 1, Lc, Lp + Lc), true where a query sees a key; built once a plan for each window size."""
        if window not in self._masks:
            seen = self.distance >= 0 if window is None else (self.distance >= 0) & (self.distance < window)
            # A padded query sees the first key, since a row without any would be not-a-number.
            seen[..., 0] |= ~seen.any(-1)
            self._masks[window] = seen.unsqueeze(1)
        return self._masks[window]


def plan_attention(batch: PackedBatch) -> AttentionPlan:
    """The plan of one micro-batch, on the batch's device."""
    device = batch.input_ids.device
    filled = (batch.completion_length > 0).nonzero().squeeze(-1)
    prompt_of = batch.prompt_of[filled]
    prompt, prompt_real = _places(batch.prompt_start, batch.prompt_length)
    query, query_real = _places(batch.completion_start[filled], batch.completion_length[filled])
    key = torch.cat([prompt[prompt_of], query], dim=1)
    key_real = torch.cat([prompt_real[prompt_of], query_real], dim=1)
    position = batch.position_ids
    distance = position[query].unsqueeze(2) - position[key].unsqueeze(1)
    distance = distance.masked_fill(~(query_real.unsqueeze(2) & key_real.unsqueeze(1)), -1).clamp_min(-1)
    back = torch.empty_like(batch.input_ids)
    slots = torch.arange(prompt.numel() + query.numel(), device=device)
    real = torch.cat([prompt_real.flatten(), query_real.flatten()])
    back[torch.cat([prompt.flatten(), query.flatten()])[real]] = slots[real]
    return AttentionPlan(prompt=prompt, query=query, key=key, distance=distance, back=back)


def _places(start: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
    """(S, L) places in the row of S segments, padded with 0, and which of them are real."""
    longest = int(length.max()) if length.numel() else 0
    steps = torch.arange(longest, device=start.device)
    real = steps < length.unsqueeze(1)
    return (start.unsqueeze(1) + steps) * real, real


def shared_prompt_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    plan: AttentionPlan | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention over the flat row, in transformers' calling convention.

    Args:
        module: the attention layer.
        query: (1, H, N, D).
        key: (1, H_kv, N, D); several query heads may share one.
        value: (1, H_kv, N, D).
        attention_mask: unused: the plan says what is seen.
        scaling: of the scores; 1/√D when ``None``.
        sliding_window: keys farther back than this are not seen.
        plan: of the micro-batch.
        options: others; those that would change the result are refused.

    Returns:
        (1, N, H, D), and ``None`` in place of the attention weights.
    """
    if plan is None:
        raise ConfigError(
            f"{type(module).__name__} doesn't pass the attention plan on to its attention function",
            remedy="This model can't be trained with the shared-prompt engine",
        )
    for name in ("softcap", "s_aux", "position_bias"):
        if options.get(name) is not None:
            raise ConfigError(f"{type(module).__name__} uses attention with {name}, which the engine doesn't compute")
    q, k, v = (tensor.squeeze(0).transpose(0, 1) for tensor in (query, key, value))  # (N, H, D)
    grouped = q.shape[1] != k.shape[1]
    window = None if sliding_window is None or plan.distance.numel() == 0 else sliding_window

    def attend(queries: Tensor, keys: Tensor, mask: Tensor | None) -> Tensor:
        mixed = scaled_dot_product_attention(
            _rows(q, queries),
            _rows(k, keys),
            _rows(v, keys),
            attn_mask=mask,
            is_causal=mask is None,
            scale=scaling,
            enable_gqa=grouped,
        )
        return mixed.transpose(1, 2).flatten(0, 1)  # (segments · length, H, D)

    if sliding_window is None or plan.prompt.shape[1] <= sliding_window:
        outputs = [attend(plan.prompt, plan.prompt, None)]
    else:
        steps = torch.arange(plan.prompt.shape[1], device=q.device)
        gap = steps.unsqueeze(1) - steps
        outputs = [attend(plan.prompt, plan.prompt, (gap >= 0) & (gap < sliding_window))]
    if plan.query.numel():
        outputs.append(attend(plan.query, plan.key, plan.mask(window)))
    return torch.cat(outputs).index_select(0, plan.back).unsqueeze(0), None


def _rows(tensor: Tensor, places: Tensor) -> Tensor:
    """(S, H, L, D) the rows of (N, H, D) at (S, L) places; by ``index_select``, whose backward is fast."""
    return tensor.index_select(0, places.flatten()).view(*places.shape, *tensor.shape[1:]).transpose(1, 2)


AttentionInterface.register(NAME, shared_prompt_attention)


def use_shared_prompt_attention(model: PreTrainedModel) -> None:
    """Makes ``model`` attend by the plan that each forward pass is given."""
    model.set_attn_implementation(NAME)


@contextmanager
def plain_attention(model: PreTrainedModel) -> Iterator[None]:
    """Ordinary attention for a while: for generation, which goes token by token with a cache."""
    before = model.config._attn_implementation
    model.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        model.set_attn_implementation(before)
