"""Trading time for memory: layers that forget their activations and compute them again, or send them to main memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from dipole.errors import ConfigError

WORTH_SENDING = 2**14
"""Elements; smaller tensors, such as one number a token, stay where they are."""


def repeated_layers(model: nn.Module, option: str, purpose: str) -> list[nn.Module]:
    """The decoder layers of a model, from first to last.

    Args:
        model: a transformers model.
        option: that asks for them, for the message.
        purpose: what is to be done with them, such as ``"computed again"``.

    Raises:
        ConfigError: the architecture has none.
    """
    layers: list[nn.Module] = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise ConfigError(
            f"{type(model).__name__} has no layers that can be {purpose}",
            where=option,
            remedy="Leave it out, and lower --max_tokens_per_microbatch instead",
        )
    return layers


def checkpoint_layers(model: nn.Module) -> None:
    """Makes every decoder layer keep its input alone (Chen et al. 2016, arXiv 1604.06174). About a third more time.

    Transformers' own switch needs training mode, in which some architectures have dropout that isn't a module; this one
    doesn't. Call it after the model has been copied for a reference: a copy would go on calling the original's layers.

    Args:
        model: is changed in place.

    Raises:
        ConfigError: the architecture has no layers that can be computed again.
    """
    for layer in repeated_layers(model, "--gradient_checkpointing", "computed again"):
        layer.forward = _forgetful(layer.forward)


def _forgetful(forward: Callable[..., Any]) -> Callable[..., Any]:
    def forget(*arguments: Any, **options: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*arguments, **options)
        # No layer draws random numbers, since dropout is off, so there is no state to restore.
        return checkpoint(forward, *arguments, use_reentrant=False, preserve_rng_state=False, **options)

    return forget


def offload_layers(model: nn.Module) -> None:
    """Makes every decoder layer keep what it saves for the backward pass in main memory.

    With ``checkpoint_layers``, which has to come first, that is each layer's input alone. Weights stay where they are.

    Args:
        model: is changed in place.

    Raises:
        ConfigError: the architecture has no layers.
    """
    for layer in repeated_layers(model, "--activation_offloading", "told apart"):
        layer.forward = _sending(layer, layer.forward)


def _sending(layer: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
    def send(*arguments: Any, **options: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*arguments, **options)
        # Products save views of weights, known by the memory that they share, or autocast's copies of weights, known by
        # their shape: these are there until the end of the pass anyway.
        weights = {tensor.untyped_storage().data_ptr() for tensor in layer.parameters()}
        shapes = {shape for tensor in layer.parameters() for shape in (tensor.shape, tensor.shape[::-1])}

        def away(tensor: Tensor) -> Tensor | tuple[torch.device, Tensor]:
            is_weight = tensor.untyped_storage().data_ptr() in weights or tensor.shape in shapes
            if is_weight or tensor.numel() < WORTH_SENDING:
                return tensor
            kept = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            return tensor.device, kept.copy_(tensor, non_blocking=True)  # one stream: it is read after it was written

        with saved_tensors_hooks(away, _back):
            return forward(*arguments, **options)

    return send


def _back(kept: Tensor | tuple[torch.device, Tensor]) -> Tensor:
    if isinstance(kept, Tensor):
        return kept
    device, tensor = kept
    return tensor.to(device, non_blocking=True)
