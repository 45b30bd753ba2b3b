"""Shared-prompt attention: a completion sees its group's prompt and itself, and nothing else of the flat row.

It enters through transformers' attention interface under the name ``dipole``, so any decoder that takes the interface
works. What is seen is planned once a micro-batch, by device: few padded calls a layer here, or one kernel on a GPU
(``policy.flex``).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from dipole.data.batch import PackedBatch
from dipole.errors import ConfigError
from dipole.policy.load import quietly
from dipole.policy.virtual import VirtualTokens

NAME = "dipole"

PLANNED = (1, 1, 1, 1)
"""Shape of the attention mask that says that there is a plan."""

CALL_COST = 4096
"""Pairs of query and key that take about as long as one more call; padding may grow up to it to save a call."""


class AttentionPlan(Protocol):
    """Who sees whom in one micro-batch, and how that is computed."""

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, *, scaling: float, window: int | None, softcap: float | None
    ) -> Tensor:
        """(1, N, H, D) attention of one layer. Where there are V virtual tokens, their keys come after the row's.

        Args:
            query: (1, H, N, D).
            key: (1, H_kv, N + V, D); H / H_kv query heads share one.
            value: (1, H_kv, N + V, D).
            scaling: of the scores.
            window: keys that lie this far before a query, or farther, are not seen; ``None`` for no limit.
            softcap: scores are softcap · tanh(score / softcap); ``None`` for no limit.
        """


def plan_attention(batch: PackedBatch, virtual: VirtualTokens | None = None) -> AttentionPlan:
    """The plan of one micro-batch, on the batch's device, with virtual tokens before every prompt."""
    if batch.input_ids.is_cuda:
        from dipole.policy.flex import FlexPlan  # its import takes seconds

        return FlexPlan.of(batch, virtual)
    return PaddedPlan.of(batch, virtual)


class _Segment(NamedTuple):
    """Consecutive tokens of the row, and those that they go on from: a completion's prompt, nothing for a prompt."""

    start: int
    length: int
    context_start: int = 0
    context_length: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Segments of similar size, which one call computes.

    Args:
        query: (S, Lq) places of the segments' tokens in the row, padded with 0.
        key: (S, Lk) places of what they see: virtual tokens, context, then themselves; padded with 0. Lk ≥ Lq.
        distance: (S, Lq, Lk) int32, how far each key lies before its query, −1 where it isn't to be seen.
        causal: whether segments see themselves alone: then a triangle says as much as ``distance``, and costs half.
    """

    query: Tensor
    key: Tensor
    distance: Tensor
    causal: bool
    _masks: dict[int | None, Tensor] = field(default_factory=dict)

    def mask(self, window: int | None) -> Tensor | None:
        """(S, 1, Lq, Lk), true where a query sees a key; ``None`` where it is a triangle. Built once a window size."""
        if self.causal and (window is None or self.query.shape[1] <= window):
            return None
        if window not in self._masks:
            seen = self.distance >= 0 if window is None else (self.distance >= 0) & (self.distance < window)
            # A padded query sees the first key, since a row without any would be not-a-number.
            seen[..., 0] |= ~seen.any(-1)
            self._masks[window] = seen.unsqueeze(1)
        return self._masks[window]


@dataclass(frozen=True, slots=True, kw_only=True)
class PaddedPlan:
    """A few padded calls a layer, each of segments of similar size.

    Args:
        blocks: one call each.
        query: places of all blocks' queries, one after the other.
        key: places of all blocks' keys, likewise.
        back: (N,) where each token of the row lies among the queries.
    """

    blocks: tuple[Block, ...]
    query: Tensor
    key: Tensor
    back: Tensor

    @classmethod
    def of(cls, batch: PackedBatch, virtual: VirtualTokens | None = None) -> PaddedPlan:
        """The plan of a batch. Virtual tokens come after the row, and their queries too where they are computed.

        Wherever they lie, every token of the row sees them, and its distance to them is that of tokens before it.
        """
        end, device = len(batch.input_ids), batch.input_ids.device
        parts = _parts(_segments(batch))
        ahead = range(end, end + virtual.count) if virtual is not None else range(0)
        blocks = [_block(part, ahead, device) for part in parts]
        if virtual is not None and virtual.in_row:
            parts.append([_Segment(end, virtual.count)])
            blocks.append(_block(parts[-1], range(0), device))
            end += virtual.count
        back, offset = batch.input_ids.new_empty(end), 0
        for part, block in zip(parts, blocks, strict=True):
            width = block.query.shape[1]
            for number, segment in enumerate(part):
                first = offset + number * width
                back[segment.start : segment.start + segment.length] = torch.arange(first, first + segment.length)
            offset += block.query.numel()
        return cls(
            blocks=tuple(blocks),
            query=torch.cat([block.query.flatten() for block in blocks]),
            key=torch.cat([block.key.flatten() for block in blocks]),
            back=back,
        )

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, *, scaling: float, window: int | None, softcap: float | None
    ) -> Tensor:
        """See ``AttentionPlan``."""
        queries = _gather(query, self.query, [block.query for block in self.blocks])
        keys, values = (_gather(rows, self.key, [block.key for block in self.blocks]) for rows in (key, value))
        grouped = query.shape[1] != key.shape[1]
        outputs = []
        for block, q, k, v in zip(self.blocks, queries, keys, values, strict=True):
            mask = block.mask(window)
            if softcap is None:
                mixed = scaled_dot_product_attention(
                    q, k, v, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=grouped
                )
            else:
                mixed = capped_attention(q, k, v, mask, scaling, softcap)
            outputs.append(mixed.transpose(1, 2).flatten(0, 1))  # (S · Lq, H, D)
        return torch.cat(outputs).index_select(0, self.back).unsqueeze(0)


def _segments(batch: PackedBatch) -> list[_Segment]:
    """Prompts, and those completions that have inputs."""
    prompts = list(zip(batch.prompt_start.tolist(), batch.prompt_length.tolist(), strict=True))
    completions = zip(
        batch.completion_start.tolist(), batch.completion_length.tolist(), batch.prompt_of.tolist(), strict=True
    )
    return [_Segment(start, length) for start, length in prompts] + [
        _Segment(start, length, *prompts[prompt]) for start, length, prompt in completions if length
    ]


def _parts(segments: list[_Segment]) -> list[list[_Segment]]:
    """Segments of similar size together, as long as what they are padded by costs less than another call.

    Prompts and completions stay apart, since the former need no mask.
    """
    parts: list[list[_Segment]] = []
    longest = useful = 0
    for segment in sorted(segments, key=lambda item: (item.context_length, item.length)):
        cost = segment.length * (segment.context_length + segment.length)
        longest, useful = max(longest, segment.length), useful + cost
        padded = (len(parts[-1]) + 1) * longest * (segment.context_length + longest) if parts else 0
        if (
            not parts
            or padded - useful > CALL_COST
            or (segment.context_length > 0 and parts[-1][0].context_length == 0)
        ):
            parts.append([])
            longest, useful = segment.length, cost
        parts[-1].append(segment)
    return parts


def _block(part: list[_Segment], ahead: range, device: torch.device) -> Block:
    """The block of some segments, all of which see the places ``ahead`` of them too."""
    start, length, context_start, context_length = torch.tensor(part, device=device).unsqueeze(-1).unbind(1)
    widths = [int(lengths.max()) for lengths in (context_length, length)]
    (context, context_real), (query, query_real) = (
        _places(first, lengths, width)
        for first, lengths, width in zip((context_start, start), (context_length, length), widths, strict=True)
    )
    lead = torch.arange(ahead.start, ahead.stop, device=device).expand(len(part), -1)
    steps = [torch.arange(width, device=device) for width in (len(ahead), *widths)]
    context_position, own_position = len(ahead) + steps[1], len(ahead) + context_length + steps[2]
    position = torch.cat([*(row.expand(len(part), -1) for row in (steps[0], context_position)), own_position], dim=1)
    real = torch.cat([torch.ones_like(lead, dtype=torch.bool), context_real, query_real], dim=1)
    distance = own_position.int().unsqueeze(2) - position.int().unsqueeze(1)  # int64 would be most of a long plan
    return Block(
        query=query,
        key=torch.cat([lead, context, query], dim=1),
        distance=distance.masked_fill(~(query_real.unsqueeze(2) & real.unsqueeze(1)), -1).clamp_min(-1),
        causal=len(ahead) + widths[0] == 0,
    )


def _places(start: Tensor, length: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """(S, width) places in the row of S segments, given as (S, 1), padded with 0; and which of them are real."""
    steps = torch.arange(width, device=start.device)
    real = steps < length
    return (start + steps) * real, real


def _gather(rows: Tensor, places: Tensor, shapes: list[Tensor]) -> list[Tensor]:
    """Rows of (1, H, N, D) at the places of all blocks, as (S, H, L, D) of each.

    It is one ``index_select`` for all, since the backward pass of each fills a tensor of the row's size.
    """
    gathered = rows.squeeze(0).transpose(0, 1).index_select(0, places).split([shape.numel() for shape in shapes])
    return [
        piece.view(*shape.shape, *piece.shape[1:]).transpose(1, 2)
        for piece, shape in zip(gathered, shapes, strict=True)
    ]


def capped_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float, softcap: float
) -> Tensor:
    """(S, H, Lq, D) attention whose scores are softcap · tanh(score / softcap), as in Gemma 2 (arXiv 2408.00118).

    Args:
        query: (S, H, Lq, D).
        key: (S, H_kv, Lk, D).
        value: (S, H_kv, Lk, D).
        mask: (S, 1, Lq, Lk); ``None`` where the last query sees all keys, and each one before it one fewer.
        scaling: of the scores.
        softcap: the largest score.
    """
    shared = query.shape[1] // key.shape[1]
    key, value = (tensor.repeat_interleave(shared, dim=1) for tensor in (key, value))
    scores = softcap * torch.tanh((query @ key.transpose(2, 3)) * (scaling / softcap))
    if mask is None:
        mask = torch.ones_like(scores[0, 0], dtype=torch.bool).tril(scores.shape[3] - scores.shape[2])
    # The smallest number and not −∞: a padded query sees nothing, and would be not-a-number.
    scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(value.dtype) @ value


def shared_prompt_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    plan: AttentionPlan | None = None,
    virtual: VirtualTokens | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention over the flat row, in transformers' calling convention; ordinary attention when there is no plan.

    Args:
        module: the attention layer.
        query: (1, H, N, D).
        key: (1, H_kv, N, D).
        value: (1, H_kv, N, D).
        attention_mask: unused with a plan, which says what is seen.
        scaling: of the scores; 1/√D when ``None``.
        sliding_window: keys this far back, or farther, are not seen.
        softcap: a soft limit of the scores.
        plan: of the micro-batch.
        virtual: tokens before every prompt, whose keys and values may be given.
        options: others; those that would change the result are refused.

    Returns:
        (1, N, H, D), and ``None`` in place of the attention weights.
    """
    if plan is None and attention_mask is not None and attention_mask.shape == PLANNED:
        raise ConfigError(
            f"{type(module).__name__} doesn't pass the attention plan on to its attention function",
            remedy="This model can't be trained with the shared-prompt engine",
        )
    for name in ("s_aux", "position_bias"):
        if options.get(name) is not None:
            raise ConfigError(f"{type(module).__name__} uses attention with {name}, which the engine doesn't compute")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    if plan is not None:
        if virtual is not None:
            key, value = virtual.after(module, key, value)
        return plan.attend(query, key, value, scaling=scaling, window=sliding_window, softcap=softcap), None
    if softcap is not None:
        return capped_attention(query, key, value, attention_mask, scaling, softcap).transpose(1, 2), None
    output: Tensor = sdpa_attention_forward(
        module, query, key, value, attention_mask, scaling=scaling, sliding_window=sliding_window, **options
    )[0]
    return output, None


AttentionInterface.register(NAME, shared_prompt_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)  # for ordinary forward passes, such as a person's own


def planned_mask(device: torch.device) -> Tensor:
    """What is passed as the attention mask beside a plan: a ready one, so that transformers doesn't build its own."""
    return torch.ones(PLANNED, dtype=torch.bool, device=device)


def use_shared_prompt_attention(model: PreTrainedModel) -> None:
    """Makes ``model`` attend by the plan that each forward pass is given.

    Raises:
        ConfigError: it computes attention in a way of its own.
    """
    with quietly():
        model.set_attn_implementation(NAME)
    if model.config._attn_implementation != NAME:
        raise ConfigError(
            f"{type(model).__name__} doesn't attend through transformers' attention interface",
            where="--model",
            remedy="Use another architecture",
        )


@contextmanager
def plain_attention(model: PreTrainedModel) -> Iterator[None]:
    """Ordinary attention for a while: for generation, which goes token by token with a cache."""
    before = model.config._attn_implementation
    capped = getattr(model.config.get_text_config(), "attn_logit_softcapping", None)  # sdpa would leave it out
    model.set_attn_implementation("sdpa" if model._supports_sdpa and not capped else "eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)
