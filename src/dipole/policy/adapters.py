"""Parameter-efficient fine-tuning through PEFT: which adapter, and how it is put on a model."""

from __future__ import annotations

from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
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

    Raises:
        ConfigError: a target isn't there, or can't have an adapter.
    """
    if config.method == "none":
        return model
    names = [name.strip() for name in config.targets.split(",")]
    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=config.rank,
        lora_alpha=config.alpha if config.alpha is not None else 2 * config.rank,
        lora_dropout=0.0,
        target_modules=names if names != ["all-linear"] else "all-linear",
    )
    with torch.random.fork_rng(devices=[]), quietly():
        torch.manual_seed(seed)
        try:
            adapted: Any = get_peft_model(model, lora)
        except ValueError as fault:
            raise _bad_targets(f"can't put an adapter on {config.targets}: {str(fault).splitlines()[0]}") from fault
    touched = {name.rpartition(".")[2] for name in adapted.base_model.targeted_module_names}
    if names != ["all-linear"] and (unknown := [name for name in names if name.rpartition(".")[2] not in touched]):
        raise _bad_targets(f"no module of the model is called {', '.join(unknown)}")
    if isinstance(model.get_output_embeddings(), BaseTunerLayer):
        raise _bad_targets("an adapter on the language-model head isn't possible: the engine reads its weight alone")
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()  # few, and updates below bfloat16's spacing would be lost
    result: nn.Module = adapted
    return result


def _bad_targets(problem: str) -> ConfigError:
    return ConfigError(problem, where="--peft.targets", remedy="Use all-linear, or names such as q_proj,v_proj")
