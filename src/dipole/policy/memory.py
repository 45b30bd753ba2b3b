"""Trading time for memory: layers that forget their activations and compute them again in the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from dipole.errors import ConfigError


def checkpoint_layers(model: nn.Module) -> None:
    """Makes every decoder layer keep its input alone (Chen et al. 2016, arXiv 1604.06174). About a third more time.

    Transformers' own switch needs training mode, in which some architectures have dropout that isn't a module; this one
    doesn't. Call it after the model has been copied for a reference: a copy would go on calling the original's layers.

    Args:
        model: is changed in place.

    Raises:
        ConfigError: the architecture has no layers that can be computed again.
    """
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise ConfigError(
            f"{type(model).__name__} has no layers that can be computed again",
            where="--gradient_checkpointing",
            remedy="Leave it out, and lower --max_tokens_per_microbatch instead",
        )
    for layer in layers:
        layer.forward = _forgetful(layer.forward)


def _forgetful(forward: Callable[..., Any]) -> Callable[..., Any]:
    def forget(*arguments: Any, **options: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*arguments, **options)
        # No layer draws random numbers, since dropout is off, so there is no state to restore.
        return checkpoint(forward, *arguments, use_reentrant=False, preserve_rng_state=False, **options)

    return forget
