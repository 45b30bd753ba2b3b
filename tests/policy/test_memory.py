"""Layers that forget: the same gradient, without the activations."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from conftest import build_exact_model, build_groups
from dipole.config import PeftConfig
from dipole.data.batch import pack
from dipole.errors import ConfigError
from dipole.policy import memory
from dipole.policy.adapters import add_adapter
from dipole.policy.logprobs import Policy
from dipole.policy.memory import checkpoint_layers, offload_layers

BATCH = pack(build_groups((5, [4, 1, 9]), (12, [3, 8])))


def gradients(policy: Policy) -> list[Any]:
    (policy(BATCH).logps.sin()).sum().backward()
    found = [parameter.grad for parameter in policy.parameters() if parameter.grad is not None]
    assert found
    return found


@pytest.mark.parametrize("method", ["none", "lora"])
def test_the_gradient_is_the_same_bit_for_bit(method: str) -> None:
    found = []
    for forgetful in (False, True):
        model = build_exact_model()
        policy = Policy(add_adapter(model, PeftConfig(method="lora", rank=4), seed=0) if method == "lora" else model)
        if forgetful:
            checkpoint_layers(policy.transformer)
        found.append(gradients(policy.eval()))
    assert all(torch.equal(left, right) for left, right in zip(*found, strict=True))


@pytest.mark.parametrize("method", ["none", "lora"])
@pytest.mark.parametrize("forgetful", [False, True])
def test_activations_that_were_away_give_the_same_gradient_bit_for_bit(
    monkeypatch: pytest.MonkeyPatch, method: str, forgetful: bool
) -> None:
    monkeypatch.setattr(memory, "WORTH_SENDING", 1)  # the model is tiny
    sent: list[torch.Tensor] = []
    back = memory._back
    monkeypatch.setattr(memory, "_back", lambda kept: sent.append(kept) or back(kept))
    found = []
    for away in (False, True):
        model = build_exact_model()
        policy = Policy(add_adapter(model, PeftConfig(method="lora", rank=4), seed=0) if method == "lora" else model)
        if forgetful:
            checkpoint_layers(policy.transformer)
        if away:
            offload_layers(policy.transformer)
        found.append(gradients(policy.eval()))
    assert all(torch.equal(left, right) for left, right in zip(*found, strict=True))
    assert any(isinstance(kept, tuple) for kept in sent)
    shapes = {p.shape for p in policy.parameters()}
    assert not any(isinstance(kept, tuple) and kept[1].shape in shapes for kept in sent), "weights stay"


def test_activations_of_layers_are_not_kept() -> None:
    def saved(policy: Policy) -> int:
        sizes: list[int] = []

        def pack_hook(tensor: torch.Tensor) -> torch.Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack_hook, lambda tensor: tensor):
            policy(BATCH)
        return sum(sizes)

    policy = Policy(build_exact_model())
    before = saved(policy)
    checkpoint_layers(policy.transformer)
    assert saved(policy) < before / 2


def test_a_copy_made_before_is_its_own(tmp_path: Any) -> None:
    policy = Policy(build_exact_model())
    reference = copy.deepcopy(policy)
    checkpoint_layers(policy.transformer)
    with torch.no_grad():
        expected = reference(BATCH).logps
        for parameter in policy.parameters():
            parameter.mul_(1.1)
        assert torch.equal(reference(BATCH).logps, expected)


def test_a_model_without_layers_is_refused() -> None:
    with pytest.raises(ConfigError, match="no layers"):
        checkpoint_layers(nn.Linear(2, 2))
