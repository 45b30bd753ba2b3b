"""What is known of a model without its weights: its shape, from its configuration alone."""

from __future__ import annotations

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from dipole.errors import ConfigError
from dipole.policy.load import count_parameters, disable_dropout, quietly


def empty_model(name: str, *, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A causal language model whose parameters and buffers have shapes but no values.

    Args:
        name: a local folder, or a hub id, of which only the configuration is read.
        dtype: of the weights, if they had values.

    Raises:
        ConfigError: there is no such model.
    """
    with quietly(), torch.device("meta"):
        try:
            config = AutoConfig.from_pretrained(name, trust_remote_code=False)
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)
        except (OSError, ValueError) as fault:
            reason = (str(fault).strip() or type(fault).__name__).splitlines()[0][:300]
            raise ConfigError(
                f"no language model can be made from its config: {reason}", where=f"--model {name}"
            ) from fault
    disable_dropout(model)
    return model.eval()


def num_parameters(name: str) -> int | None:
    """Parameters of a causal language model by its config alone; ``None`` where that is none of such a model."""
    try:
        return count_parameters(empty_model(name))[0]
    except ConfigError:
        return None
