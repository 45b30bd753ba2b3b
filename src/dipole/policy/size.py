"""How large a model is, without its weights."""

from __future__ import annotations

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from dipole.policy.load import count_parameters, quietly


def num_parameters(name: str) -> int | None:
    """Parameters of a causal language model by its config alone; ``None`` where that is none of such a model."""
    with quietly(), torch.device("meta"):
        try:
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(name, trust_remote_code=False))
        except (OSError, ValueError):
            return None
    return count_parameters(model)[0]
