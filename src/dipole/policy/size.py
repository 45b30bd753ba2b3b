"""What is known of a model without its weights: its shape, from its configuration alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from dipole.errors import ConfigError
from dipole.policy.load import count_parameters, disable_dropout, quietly
from dipole.policy.locate import NOTHING, Allowed, locate
from dipole.policy.memory import repeated_layers


def empty_model(name: str, *, dtype: torch.dtype = torch.float32, allowed: Allowed = NOTHING) -> PreTrainedModel:
    """A causal language model whose parameters and buffers have shapes but no values.

    Args:
        name: a local folder, or a hub id, of which only the configuration is read.
        dtype: of the weights, if they had values.
        allowed: what of the model may be used although it can do harm.

    Raises:
        ConfigError: there is no such model.
    """
    code, source = allowed.remote_code, locate(name, allowed).source
    with quietly(), torch.device("meta"):
        try:
            config = AutoConfig.from_pretrained(source, trust_remote_code=code)
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=code)
        except (OSError, ValueError) as fault:
            reason = (str(fault).strip() or type(fault).__name__).splitlines()[0][:300]
            raise ConfigError(
                f"no language model can be made from its config: {reason}", where=f"--model {name}"
            ) from fault
    disable_dropout(model)
    model.eval()
    return model


def num_parameters(name: str) -> int | None:
    """Parameters of a causal language model by its config alone; ``None`` where that is none of such a model."""
    try:
        return count_parameters(empty_model(name))[0]
    except ConfigError:
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The numbers of a decoder that memory depends on.

    Args:
        parameters: all of them; tied ones count once.
        in_layers: those of the decoder layers.
        layers: how many.
        hidden: units of the residual stream.
        attention: query heads times their size.
        key_value: key heads times their size.
        intermediate: units between the products of a feed-forward part.
        vocabulary: tokens.
    """

    parameters: int
    in_layers: int
    layers: int
    hidden: int
    attention: int
    key_value: int
    intermediate: int
    vocabulary: int


def shape_of(model: PreTrainedModel) -> Shape:
    """The shape of a model, with or without values.

    Raises:
        ConfigError: the architecture has no decoder layers.
    """
    config = model.config.get_text_config()
    layers = repeated_layers(model, "--dry_run", "counted")
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    return Shape(
        parameters=count_parameters(model)[0],
        in_layers=sum(count_parameters(layer)[0] for layer in layers),
        layers=len(layers),
        hidden=config.hidden_size,
        attention=heads * size,
        key_value=(getattr(config, "num_key_value_heads", None) or heads) * size,
        intermediate=getattr(config, "intermediate_size", None) or 4 * config.hidden_size,
        vocabulary=config.vocab_size,
    )
