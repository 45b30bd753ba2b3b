"""The reference is the model that training starts from, whatever training does."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from conftest import build_groups, build_model
from dipole.config import PeftConfig
from dipole.data.batch import PackedBatch, Pairs, pack
from dipole.errors import ConfigError
from dipole.objective import preference_loss
from dipole.policy.adapters import add_adapter
from dipole.policy.load import count_parameters, fingerprint
from dipole.policy.logprobs import Policy, sum_by_completion
from dipole.policy.reference import AdapterOff, FrozenCopy, Reference, make_reference

BATCH = pack(build_groups((5, [4, 1, 9]), (12, [3, 8])))
LORA = PeftConfig(method="lora", rank=4)


def policy_of(method: str) -> Policy:
    return Policy(add_adapter(build_model(64), LORA, seed=0) if method == "lora" else build_model(64))


def reference_of(policy: Policy, strategy: str) -> Reference:
    reference = make_reference(strategy, policy, needed=True)  # type: ignore[arg-type]
    assert reference is not None
    return reference


def loss_of(policy: Policy, reference: Reference, batch: PackedBatch = BATCH) -> torch.Tensor:
    ours, theirs = sum_by_completion(policy(batch).logps, batch), sum_by_completion(reference.token_logps(batch), batch)
    assert isinstance(batch.relations, Pairs)
    w, l = batch.relations.chosen, batch.relations.rejected  # noqa: E741
    return preference_loss("dpo", ours[w], ours[l], theirs[w], theirs[l]).losses


@pytest.mark.parametrize(("method", "strategy"), [("lora", "adapter_off"), ("lora", "copy"), ("none", "copy")])
def test_before_training_it_equals_the_original_and_the_loss_is_ln_2(method: str, strategy: str) -> None:
    original = Policy(build_model(64))
    policy = policy_of(method)
    reference = reference_of(policy, strategy)
    with torch.no_grad():
        assert torch.equal(reference.token_logps(BATCH), original(BATCH).logps)
        losses = loss_of(policy, reference)
    assert losses.tolist() == [pytest.approx(math.log(2), abs=1e-7)] * 4
    assert len(set(losses.tolist())) == 1


@pytest.mark.parametrize(("method", "strategy"), [("lora", "adapter_off"), ("lora", "copy"), ("none", "copy")])
def test_after_training_it_still_equals_the_original_bit_for_bit(method: str, strategy: str) -> None:
    with torch.no_grad():
        original = Policy(build_model(64))(BATCH).logps
    policy = policy_of(method)
    reference = reference_of(policy, strategy)
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    first = loss_of(policy, reference).mean()
    for _ in range(3):
        loss_of(policy, reference).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss_of(policy, reference).mean() < 0.9 * first
    assert torch.equal(reference.token_logps(BATCH), original)


@pytest.mark.parametrize("strategy", ["adapter_off", "copy"])
def test_its_log_probabilities_carry_no_gradient(strategy: str) -> None:
    policy = policy_of("lora")
    logps = reference_of(policy, strategy).token_logps(BATCH)
    assert not logps.requires_grad
    assert policy(BATCH).logps.requires_grad


def test_a_copy_shares_no_memory_with_the_policy_and_is_frozen() -> None:
    policy = policy_of("none")
    reference = reference_of(policy, "copy")
    with torch.no_grad():
        before = reference.token_logps(BATCH)
        for parameter in policy.parameters():
            parameter.zero_()
    assert torch.equal(reference.token_logps(BATCH), before)
    assert all(parameter.requires_grad for parameter in policy.parameters())


def test_auto_is_what_fits() -> None:
    assert isinstance(make_reference("auto", policy_of("lora"), needed=True), AdapterOff)
    assert isinstance(make_reference("auto", policy_of("none"), needed=True), FrozenCopy)
    assert make_reference("auto", policy_of("lora"), needed=False) is None
    assert make_reference("none", policy_of("lora"), needed=False) is None


@pytest.mark.parametrize(
    ("strategy", "method", "needed", "words"),
    [
        ("adapter_off", "none", True, "no adapter"),
        ("none", "lora", True, "needs a reference"),
        ("copy", "none", False, "has no reference"),
        ("adapter_off", "lora", False, "has no reference"),
    ],
)
def test_what_does_not_fit_is_refused(strategy: str, method: str, needed: bool, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make_reference(strategy, policy_of(method), needed=needed)  # type: ignore[arg-type]


# Adapters


def test_an_adapter_is_all_that_is_trained_and_the_seed_decides_how_it_begins() -> None:
    state = torch.random.get_rng_state()
    one, same, other = (add_adapter(build_model(64), LORA, seed=seed) for seed in (0, 0, 1))
    total, trained = count_parameters(one)
    assert 0 < trained < total
    assert all(("lora_" in name) == parameter.requires_grad for name, parameter in one.named_parameters())
    assert fingerprint(one) == fingerprint(same) != fingerprint(other)
    torch.manual_seed(0)
    build_model(64)
    before = torch.random.get_rng_state()
    add_adapter(build_model(64), LORA, seed=5)
    torch.manual_seed(0)
    build_model(64)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.random.set_rng_state(state)


def test_the_update_is_scaled_by_twice_the_rank_unless_told_otherwise() -> None:
    def scale(config: PeftConfig) -> float:
        adapted = add_adapter(build_model(64), config, seed=0)
        layer = adapted.get_submodule("base_model.model.model.layers.0.mlp.up_proj")
        return float(layer.scaling["default"])  # type: ignore[index, union-attr]

    assert scale(PeftConfig(method="lora", rank=4)) == 2.0
    assert scale(PeftConfig(method="lora", rank=4, alpha=4)) == 1.0


def test_targets_name_modules_and_a_misspelt_one_is_refused() -> None:
    adapted = add_adapter(build_model(64), PeftConfig(method="lora", targets="q_proj, v_proj"), seed=0)
    touched = {name.split(".")[-4] for name, _ in adapted.named_parameters() if "lora_A" in name}
    assert touched == {"q_proj", "v_proj"}
    for targets in ("qproj", "q_proj,qproj", "input_layernorm"):
        with pytest.raises(ConfigError, match=targets.rpartition(",")[2]) as caught:
            add_adapter(build_model(64), PeftConfig(method="lora", targets=targets), seed=0)
        assert caught.value.where == "--peft.targets"


def test_adapters_train_in_float32_on_a_bfloat16_model() -> None:
    policy = Policy(add_adapter(build_model(64).bfloat16(), LORA, seed=0))
    assert {p.dtype for p in policy.parameters() if p.requires_grad} == {torch.float32}
    logps = policy(BATCH).logps
    assert logps.dtype == torch.float32
    logps.sum().backward()
    norms = [float(p.grad.norm()) for p in policy.parameters() if p.grad is not None]
    assert all(map(math.isfinite, norms))
    assert max(norms) > 0


def test_dropout_is_off_and_the_engine_needs_no_luck() -> None:
    from dipole.policy.load import disable_dropout

    module = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5), nn.Sequential(nn.Dropout(0.1)))
    disable_dropout(module)
    assert all(part.p == 0 for part in module.modules() if isinstance(part, nn.Dropout))
