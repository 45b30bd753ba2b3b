"""The reference policy: where it comes from, and its log-probabilities, which never carry a gradient."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Literal, Protocol

import torch
from torch import Tensor

from dipole.data.batch import PackedBatch
from dipole.errors import ConfigError
from dipole.policy.adapters import as_it_started, starts_from_adapter
from dipole.policy.head import HeadInput, chunked_logprobs
from dipole.policy.logprobs import Policy
from dipole.policy.virtual import has_virtual_tokens

Strategy = Literal["auto", "adapter_off", "copy", "none"]


class Reference(Protocol):
    """A model that is measured beside the policy. Nothing that it gives carries a gradient."""

    def token_logps(self, batch: PackedBatch) -> Tensor:
        """(T,) log-probabilities of the completion tokens."""

    def head_input(self, batch: PackedBatch) -> HeadInput:
        """What its logits are computed from, for losses that compare whole distributions."""


class AdapterOff:
    """The policy with its adapter switched off: one model in memory, two forward passes."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy

    def token_logps(self, batch: PackedBatch) -> Tensor:
        """(T,) of the model without its adapter."""
        return chunked_logprobs(self.head_input(batch), batch.target)[0]

    @torch.no_grad()
    def head_input(self, batch: PackedBatch) -> HeadInput:
        """Of the model without its adapter, detached."""
        with self._switched():
            head = self.policy.head_input(batch)
        bias = None if head.bias is None else head.bias.detach()
        return head._replace(weight=head.weight.detach(), bias=bias)

    def _switched(self) -> AbstractContextManager[None]:
        off: AbstractContextManager[None] = self.policy.model.disable_adapter()  # type: ignore[operator]
        return off


class StartAdapter(AdapterOff):
    """The policy with the adapter that it went on from, of which there is a frozen copy in the same model."""

    def _switched(self) -> AbstractContextManager[None]:
        return as_it_started(self.policy.model)


class FrozenCopy:
    """A model of its own, which is never trained."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy.eval().requires_grad_(False)

    def token_logps(self, batch: PackedBatch) -> Tensor:
        """(T,) of the frozen model."""
        return chunked_logprobs(self.head_input(batch), batch.target)[0]

    @torch.no_grad()
    def head_input(self, batch: PackedBatch) -> HeadInput:
        """Of the frozen model."""
        return self.policy.head_input(batch)


def with_own_model(policy: Policy) -> AdapterOff:
    """The reference of a policy with an adapter, in the policy's own model: as it was before there was any training."""
    return StartAdapter(policy) if starts_from_adapter(policy.model) else AdapterOff(policy)


def starts_equal(policy: Policy, reference: Reference) -> bool:
    """Whether a policy that hasn't been trained is its reference.

    Virtual tokens are none of the model's own, so with them it isn't the model without its adapter; and neither is a
    policy that goes on from an adapter, where that is asked for.
    """
    if isinstance(reference, FrozenCopy):
        return True
    went_on = starts_from_adapter(policy.model)
    if isinstance(reference, AdapterOff) and not isinstance(reference, StartAdapter) and went_on:
        return False
    return went_on or not has_virtual_tokens(policy.model)


def make_reference(
    strategy: Strategy,
    policy: Policy,
    *,
    needed: bool,
    moves: bool = False,
    twin: Callable[[], Policy] | None = None,
) -> Reference | None:
    """The reference for a policy that hasn't been trained yet.

    Args:
        strategy: ``auto`` takes what an adapter started from and ``copy`` otherwise, or ``none`` if none is needed.
        policy: as it is at step 0.
        needed: whether the loss has a reference.
        moves: whether it follows the policy in the course of training, so that it has to be a model of its own.
        twin: makes a second policy that is equal to the first; by default a copy of it in memory.

    Raises:
        ConfigError: the strategy doesn't fit the policy or the loss.
    """
    has_adapter = hasattr(policy.model, "disable_adapter")
    if strategy == "auto":
        if needed and has_adapter and not moves:
            return with_own_model(policy)
        strategy = "copy" if needed else "none"
    if strategy == "none" and needed:
        raise ConfigError("the loss needs a reference", where="--reference none", remedy="Leave --reference at auto")
    if strategy != "none" and not needed:
        raise ConfigError(
            "the loss has no reference, so computing one would be for nothing",
            where=f"--reference {strategy}",
            remedy="Leave --reference at auto, or use none",
        )
    if moves and strategy != "copy":
        raise ConfigError(
            "a reference that follows the policy has to be a model of its own",
            where=f"--reference {strategy}" if needed else "--sync_reference_every",
            remedy="Use --reference copy" if needed else "Leave it out: the loss has no reference",
        )
    if strategy == "none":
        return None
    if strategy == "copy":
        return FrozenCopy(copy.deepcopy(policy) if twin is None else twin())
    if not has_adapter:
        raise ConfigError(
            "there is no adapter to switch off",
            where="--reference adapter_off",
            remedy="Use copy, or --peft.method lora",
        )
    return AdapterOff(policy)
