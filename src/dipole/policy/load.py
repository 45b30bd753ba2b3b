"""Loading models and tokenizers: safetensors alone and no code of the model's author, unless a person allows it."""

from __future__ import annotations

import hashlib
import json
import warnings
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from dipole.errors import ConfigError
from dipole.policy.locate import FOLDER_HOLDS, NOTHING, Allowed, check_weights, locate
from dipole.policy.quantize import four_bit, keep_trainable

DType = Literal["auto", "float32", "bfloat16", "float16"]


def load_model(
    name: str,
    *,
    dtype: torch.dtype = torch.float32,
    allowed: Allowed = NOTHING,
    four_bits_on: torch.device | None = None,
) -> PreTrainedModel:
    """A causal language model with dropout switched off.

    Dropout would give policy and reference different masks, and a loss that isn't ln 2 where it has to be.

    Args:
        name: a local folder, or a hub id.
        dtype: of the weights.
        allowed: what of the model may be used although it can do harm.
        four_bits_on: loads linear layers in 4 bits, on this device; ``dtype`` is that of the rest and of the products.

    Raises:
        ConfigError: there is no such model, or it can't be loaded safely; or not in 4 bits.
    """
    place = check_weights(name, allowed)
    quantized: dict[str, Any] = {}
    if four_bits_on is not None:
        quantized = {"quantization_config": four_bit(dtype), "device_map": {"": str(four_bits_on)}}
    with quietly():
        try:
            found: Any = AutoModelForCausalLM.from_pretrained(
                place.source,
                dtype=dtype,
                use_safetensors=None if allowed.pickle_weights else True,
                weights_only=True,
                trust_remote_code=allowed.remote_code,
                output_loading_info=True,
                **quantized,
            )
        except (OSError, ValueError, SafetensorError, UnpicklingError) as fault:
            raise _not_loadable("model", name, fault) from fault
    model, info = found
    if missing := sorted(info["missing_keys"]):  # transformers would go on with random numbers in their place
        raise ConfigError(
            f"{len(missing)} of its weights are missing: {', '.join(missing[:3])}{' …' if len(missing) > 3 else ''}",
            where=f"--model {name}",
            remedy="It was saved in part, or is of another architecture than its config.json says",
        )
    model.config._name_or_path = model.name_or_path = name  # not where the hub's cache has it
    disable_dropout(model)
    keep_trainable(model)
    loaded: PreTrainedModel = model
    return loaded


def position_limit(config: PretrainedConfig) -> tuple[int | None, str]:
    """Most tokens of a sequence, ``None`` if a model doesn't say, and why they aren't more, or nothing.

    Some turn positions by angles that depend on how long the whole sequence is (``longrope``, as in Phi-3). A row of
    many sequences has one set of angles, so such a model is computed right up to the length at which they change.
    """
    text = config.get_text_config()
    limit: int | None = getattr(text, "max_position_embeddings", None)
    ropes = getattr(text, "rope_parameters", None) or {}
    for rope in [ropes, *(part for part in ropes.values() if isinstance(part, dict))]:
        if "longrope" in str(rope.get("rope_type")):
            original: int | None = rope.get("original_max_position_embeddings")
            if original is not None and (limit is None or original < limit):
                return original, "beyond that, angles of positions depend on each sequence's length (longrope)"
    return limit, ""


def max_positions(name: str, allowed: Allowed = NOTHING) -> int | None:
    """Most tokens that the engine takes of the model's, from its config alone; ``None`` if it doesn't say.

    Raises:
        ConfigError: there is no such model.
    """
    return max_positions_and_why(name, allowed)[0]


def max_positions_and_why(name: str, allowed: Allowed = NOTHING) -> tuple[int | None, str]:
    """The same, with what ``position_limit`` gives as the reason."""
    place = locate(name, allowed)
    with quietly():
        try:
            config = AutoConfig.from_pretrained(place.source, trust_remote_code=allowed.remote_code)
        except (OSError, ValueError) as fault:
            raise _not_loadable("model", name, fault) from fault
    return position_limit(config)


def load_tokenizer(name: str, allowed: Allowed = NOTHING) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, as it is: one without a pad token stays without.

    Nothing is padded in training, and what pads samples is never looked at. A saved tokenizer whose end-of-sequence
    token had become its pad token would have the ends of answers masked by many who train on from there.

    Raises:
        ConfigError: there is none, or it has no end-of-sequence token.
    """
    place = locate(name, allowed)
    with quietly():
        try:
            tokenizer = AutoTokenizer.from_pretrained(place.source, trust_remote_code=allowed.remote_code)
        except (OSError, ValueError) as fault:
            raise _not_loadable("tokenizer", name, fault) from fault
    if tokenizer.eos_token_id is None:
        raise ConfigError(
            "the tokenizer has no end-of-sequence token, so a completion could never end",
            where=name,
            remedy="Set eos_token in its tokenizer_config.json",
        )
    loaded: PreTrainedTokenizerBase = tokenizer
    return loaded


def disable_dropout(model: nn.Module) -> None:
    """Sets every dropout probability to 0; the module stays in training mode where checkpointing needs that."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0


def fingerprint(model: nn.Module) -> str:
    """A hash of all weights: what makes two models the same. By name; of buffers, those that are saved with it."""
    digest = hashlib.sha256()
    for name, tensor in sorted([*model.named_parameters(), *_saved_buffers(model)]):
        digest.update(f"{name}:{tuple(tensor.shape)}:{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:32]


def _saved_buffers(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Such as what DeepSeek's router adds to its scores; not angles of positions, which follow from the settings."""
    return [
        (f"{path}.{name}" if path else name, buffer)
        for path, module in model.named_modules()
        for name, buffer in module.named_buffers(recurse=False)
        if name not in module._non_persistent_buffers_set
    ]


def vocabulary_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of all tokens with their ids, and of those that begin and end a text."""
    facts = [sorted(tokenizer.get_vocab().items()), tokenizer.bos_token_id, tokenizer.eos_token_id]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """(all parameters, those that are trained)."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return sum(size for size, _ in sizes), sum(size for size, trained in sizes if trained)


def weights_dtype(dtype: DType, device: torch.device) -> torch.dtype:
    """The dtype of a frozen model's weights: ``auto`` is bfloat16 on a GPU that has it, and float32 elsewhere."""
    if dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
    resolved: torch.dtype = getattr(torch, dtype)
    return resolved


def _not_loadable(what: str, name: str, fault: Exception) -> ConfigError:
    if "trust_remote_code" in str(fault):
        return ConfigError(
            "it comes with Python code of its own, which would run on this machine",
            where=f"--model {name}",
            remedy="Use a model that transformers knows; or read its *.py files, and add --allow_remote_code",
        )
    reason = str(fault).strip().splitlines()[0][:300] if str(fault).strip() else type(fault).__name__
    if Path(name, "adapter_config.json").exists():
        remedy = "This is an adapter: name its model, and go on with --peft.start_from; or 'dipole merge' it first"
    elif Path(name).exists():
        remedy = FOLDER_HOLDS
    else:
        remedy = "Is it a causal language model in the format of transformers?"
    return ConfigError(f"can't load the {what} '{name}': {reason}", where="--model", remedy=remedy)


class quietly:  # noqa: N801 - used like a function
    """Silences progress bars and notices of transformers while it loads or saves, and restores them."""

    def __enter__(self) -> None:
        self.verbosity = transformers_logging.get_verbosity()
        self.bars = transformers_logging.is_progress_bar_enabled()
        self.warnings = warnings.catch_warnings()
        self.warnings.__enter__()
        warnings.simplefilter("ignore", FutureWarning)
        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()

    def __exit__(self, *_: Any) -> None:
        self.warnings.__exit__(None, None, None)
        transformers_logging.set_verbosity(self.verbosity)
        if self.bars:
            transformers_logging.enable_progress_bar()
