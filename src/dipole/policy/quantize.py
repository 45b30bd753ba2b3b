"""Frozen weights in 4 bits (QLoRA; Dettmers et al. 2023, arXiv 2305.14314), by bitsandbytes where that is there."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig

from dipole.errors import ConfigError

WHERE = "--peft.quantization 4bit"


def four_bit(compute: torch.dtype) -> BitsAndBytesConfig:
    """What transformers loads a model with: NF4, with its scales quantized again; 4.13 bits a weight.

    Args:
        compute: dtype of the products.

    Raises:
        ConfigError: bitsandbytes isn't installed, or doesn't work here.
    """
    try:
        import_module("bitsandbytes")
        import_module("transformers.integrations").validate_bnb_backend_availability(raise_exception=True)
    except ImportError as fault:
        raise ConfigError("bitsandbytes isn't installed", where=WHERE, remedy="Install dipole[quant]") from fault
    except Exception as fault:  # it has no kernels for the device, or its native library can't be loaded
        reason = str(fault).strip().splitlines()[0] if str(fault).strip() else type(fault).__name__
        raise ConfigError(
            f"bitsandbytes doesn't work on this machine: {reason}", where=WHERE, remedy="Leave it out"
        ) from fault
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
    )


def keep_trainable(model: nn.Module) -> None:
    """Keeps bitsandbytes from laying weights out for inference at the first pass without gradients.

    It does so on processors with AVX-512 for bfloat16, and from then on no gradient goes through these weights.
    """
    layers: list[Any] = [module for module in model.modules() if hasattr(module, "support_avx512bf16_for_cpu")]
    for layer in layers:
        layer.support_avx512bf16_for_cpu = False
