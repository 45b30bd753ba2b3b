"""The reference policy: where it comes from, and its log-probabilities, which never carry a gradient."""

from __future__ import annotations

import copy
from typing import Literal, Protocol

import torch
from torch import Tensor

from dipole.data.batch import PackedBatch
from dipole.errors import ConfigError
from dipole.policy.logprobs import Policy

Strategy = Literal["auto", "adapter_off", "copy", "none"]


class Reference(Protocol):
    """Gives the reference's log-probabilities of a batch."""

    def token_logps(self, batch: PackedBatch) -> Tensor:
        """(T,) one a completion token, without a gradient."""


class AdapterOff:
    """The policy with its adapter switched off: one model in memory, two forward passes."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    @torch.no_grad()
    def token_logps(self, batch: PackedBatch) -> Tensor:
        """(T,) of the model without its adapter."""
        with self._policy.model.disable_adapter():  # type: ignore[operator]
            result: Tensor = self._policy(batch)
        return result


class FrozenCopy:
    """A model of its own that is never trained."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy.eval().requires_grad_(False)

    @torch.no_grad()
    def token_logps(self, batch: PackedBatch) -> Tensor:
        """(T,) of the frozen model."""
        result: Tensor = self._policy(batch)
        return result


def make_reference(strategy: Strategy, policy: Policy, *, needed: bool) -> Reference | None:
    """The reference for a policy that hasn't been trained yet.

    Args:
        strategy: ``auto`` takes ``adapter_off`` for an adapter and ``copy`` otherwise, or ``none`` if none is needed.
        policy: as it is at step 0.
        needed: whether the loss has a reference.

    Raises:
        ConfigError: the strategy doesn't fit the policy or the loss.
    """
    has_adapter = hasattr(policy.model, "disable_adapter")
    if strategy == "auto":
        strategy = ("adapter_off" if has_adapter else "copy") if needed else "none"
    if strategy == "none" and needed:
        raise ConfigError("the loss needs a reference", where="--reference none", remedy="Leave --reference at auto")
    if strategy != "none" and not needed:
        raise ConfigError(
            "the loss has no reference, so computing one would be for nothing",
            where=f"--reference {strategy}",
            remedy="Leave --reference at auto, or use none",
        )
    if strategy == "none":
        return None
    if strategy == "copy":
        return FrozenCopy(copy.deepcopy(policy))
    if not has_adapter:
        raise ConfigError(
            "there is no adapter to switch off",
            where="--reference adapter_off",
            remedy="Use copy, or --peft.method lora",
        )
    return AdapterOff(policy)
