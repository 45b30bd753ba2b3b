"""Parameter-efficient fine-tuning through PEFT: which adapter, and how it is put on a model."""

from __future__ import annotations

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from dipole.config import PeftConfig
from dipole.errors import ConfigError
from dipole.policy.load import quietly


def add_adapter(model: PreTrainedModel, config: PeftConfig, *, seed: int) -> nn.Module:
    """The model with a fresh adapter, whose weights alone are trained; ``model`` itself when the method is ``none``.

    LoRA (Hu et al. 2021, arXiv 2106.09685) starts with B = 0, so policy and reference are equal at step 0.

    Args:
        model: is changed in place.
        config: which adapter, how large, on which modules.
        seed: of the adapter's initial weights.
    """
    if config.method == "none":
        return model
    targets: str | list[str] = config.targets
    if targets != "all-linear":
        targets = [name.strip() for name in config.targets.split(",")]
    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=config.rank,
        lora_alpha=config.alpha if config.alpha is not None else 2 * config.rank,
        lora_dropout=0.0,
        target_modules=targets,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            with quietly():
                adapted: nn.Module = get_peft_model(model, lora)
        except ValueError as fault:
            raise ConfigError(
                f"no module of the model is called {config.targets}: {str(fault).splitlines()[0]}",
                where="--peft.targets",
                remedy="Use all-linear, or names such as q_proj,v_proj",
            ) from fault
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()  # few, and updates below bfloat16's spacing would be lost
    return adapted
