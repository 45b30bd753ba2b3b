"""Padded tensors of whole sequences, as tokenizers give them, into the packed rows that the engine takes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from dipole.data.batch import PackedBatch, pack
from dipole.data.tokenize import TokenizedGroup
from dipole.errors import ConfigError
from dipole.policy.load import position_limit

NAMES = ("input_ids", "attention_mask", "completion_mask")


def unpadded(x: Mapping[str, Any]) -> PackedBatch:
    """A packed batch of B completions without relations.

    Args:
        x: ``input_ids`` (B, L) of prompts with their completions; ``attention_mask`` (B, L), 0 where there is padding,
            on either side; ``completion_mask`` (B, L), 1 on the completion's tokens, which end the sequence.

    Raises:
        ConfigError: something is missing, of another shape, or a row isn't a prompt followed by a completion.
    """
    if not isinstance(x, Mapping):
        raise _wrong(f"x is a {type(x).__name__}, but has to be a mapping", f"Give it {', '.join(NAMES)}")
    ids, attended, completion = (_matrix(x, name) for name in NAMES)
    for name, tensor in zip(NAMES[1:], (attended, completion), strict=True):
        if tensor.shape != ids.shape:
            raise _wrong(f"{name} has shape {tuple(tensor.shape)}, but input_ids has {tuple(ids.shape)}")
        if not ((tensor == 0) | (tensor == 1)).all():
            raise _wrong(f"{name} has entries other than 0 and 1")
    if not len(ids):
        raise _wrong("it has no completions")
    return pack([_group(row, *tensors) for row, tensors in enumerate(zip(ids, attended, completion, strict=True))])


def check_fits(batch: PackedBatch, model: PreTrainedModel) -> None:
    """Raises a ``ConfigError`` for token ids that the model doesn't embed, and sequences beyond its positions."""
    embeddings: Any = model.get_input_embeddings()
    vocabulary = embeddings.weight.shape[0]
    limit, why = position_limit(model.config)
    positions = limit or math.inf
    for row, (prompt, completion) in enumerate(batch.sequences):
        ids = (*prompt, *completion)
        if not all(0 <= token < vocabulary for token in ids):
            raise _wrong(f"row {row} has the token {max(ids)}, but the model embeds {vocabulary}")
        if len(ids) > positions:
            reason = f": {why}" if why else ""
            raise _wrong(f"row {row} has {len(ids)} tokens, but the model takes {positions}{reason}")


def _group(row: int, ids: Tensor, attended: Tensor, completion: Tensor) -> TokenizedGroup:
    places = attended.nonzero().flatten()
    if not len(places):
        raise _wrong(f"row {row} is all padding")
    if int(places[-1] - places[0]) + 1 != len(places):
        raise _wrong(f"row {row} has padding inside")
    if (completion > attended).any():
        raise _wrong(f"row {row} has padding in its completion_mask")
    length = int(completion.sum())
    if not length:
        raise _wrong(f"row {row} has no completion")
    kept, marks = ids[places].tolist(), completion[places]
    if not marks[len(kept) - length :].all():
        raise _wrong(f"row {row} has prompt tokens after or inside its completion")
    if length == len(kept):
        raise _wrong(f"row {row} has no prompt", "Give it at least a begin-of-sequence token")
    prompt, answer = tuple(kept[:-length]), tuple(kept[-length:])
    return TokenizedGroup(id=str(row), prompt_ids=prompt, completion_ids=(answer,), relations=())


def _matrix(x: Mapping[str, Any], name: str) -> Tensor:
    if name not in x:
        raise _wrong(f"{name} is missing", f"A batch is (x, yw_idxs, yl_idxs), where x has {', '.join(NAMES)}")
    try:
        tensor = torch.as_tensor(x[name]).cpu()
    except (TypeError, ValueError) as fault:
        raise _wrong(f"{name} is no tensor: {fault}", "Pad its rows to one length") from fault
    if tensor.dim() != 2 or tensor.is_floating_point():
        raise _wrong(f"{name} has shape {tuple(tensor.shape)} and dtype {tensor.dtype}, but has to be (B, L) integers")
    return tensor.to(torch.int64)


def _wrong(problem: str, remedy: str | None = None) -> ConfigError:
    return ConfigError(problem, where="batch", remedy=remedy)
