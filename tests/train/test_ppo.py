"""The pieces of PPO, each against what defines it; the whole of it is checked on a bandit."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import build_model
from dipole.config import PeftConfig
from dipole.errors import ConfigError, TrainingFault
from dipole.policy.adapters import add_adapter
from dipole.policy.logprobs import Policy
from dipole.policy.reference import AdapterOff, FrozenCopy
from dipole.train.ppo import (
    PPO,
    PPOConfig,
    adapted_beta,
    clipped_surrogate,
    clipped_value_loss,
    generalized_advantages,
    learn,
    load_ppo,
    look_at,
    make_ppo,
    penalized_rewards,
    ppo_steps,
    roll_out,
    save_ppo,
    whitened,
)

LENGTHS = torch.tensor([5, 1, 3, 4])
MASK = torch.arange(5) < LENGTHS.unsqueeze(1)
PROMPTS = ((5, 6, 7), (8, 9), (10, 11, 12), (13,))


def random(seed: int) -> Tensor:
    """(4, 5) numbers in float64, 0 where there is no token."""
    return torch.randn(4, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * MASK


def slow_advantages(rewards: Tensor, values: Tensor, gamma: float, lam: float) -> Tensor:
    """The double sum as it is written down, one rollout and one token at a time."""
    advantages = torch.zeros_like(rewards)
    for b, length in enumerate(LENGTHS.tolist()):
        for t in range(length):
            for k in range(t, length):
                following = values[b, k + 1] if k + 1 < length else 0.0
                surprise = rewards[b, k] + gamma * following - values[b, k]
                advantages[b, t] += (gamma * lam) ** (k - t) * surprise
    return advantages


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (0.99, 0.0)])
def test_advantages_are_the_double_sum(gamma: float, lam: float) -> None:
    rewards, values = random(0), random(1)
    advantages, returns = generalized_advantages(rewards, values, MASK, gamma=gamma, lam=lam)
    expected = slow_advantages(rewards, values, gamma, lam)
    torch.testing.assert_close(advantages, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(returns, (expected + values) * MASK, rtol=0, atol=1e-12)


def test_without_discount_the_advantage_is_what_comes_minus_what_was_expected() -> None:
    rewards, values = random(2), random(3)
    advantages, returns = generalized_advantages(rewards, values, MASK, gamma=1.0, lam=1.0)
    to_come = rewards.flip(1).cumsum(1).flip(1)
    torch.testing.assert_close(advantages, (to_come - values) * MASK)
    torch.testing.assert_close(returns, to_come * MASK)


def test_rewards_add_up_to_the_score_minus_beta_times_the_log_ratio() -> None:
    logps, ref_logps, scores = random(4), random(5), torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
    rewards = penalized_rewards(logps, ref_logps, scores, MASK, beta=0.3)
    torch.testing.assert_close(rewards.sum(1), scores - 0.3 * (logps - ref_logps).sum(1))
    free = penalized_rewards(logps, ref_logps, scores, MASK, beta=0.0)
    assert free.nonzero().tolist() == [[0, 4], [1, 0], [2, 2], [3, 3]], "the score comes with the last token"


def test_whitened_advantages_have_mean_0_and_variance_1_over_tokens() -> None:
    kept = whitened(5 + 3 * random(6), MASK)
    assert kept[~MASK].eq(0).all()
    assert float(kept[MASK].mean()) == pytest.approx(0, abs=1e-12)
    assert float(kept[MASK].var(correction=0)) == pytest.approx(1, abs=1e-6)
    assert whitened(torch.ones(4, 5), MASK).eq(0).all()


def test_at_ratio_1_the_surrogate_has_the_policy_gradient() -> None:
    advantages = random(7)
    logps = random(8).requires_grad_()
    clipped_surrogate(logps, logps.detach(), advantages, clip=0.2).sum().backward()
    torch.testing.assert_close(logps.grad, -advantages)


@pytest.mark.parametrize(
    ("ratio", "advantage", "slope"),
    [(1.3, 1.0, 0.0), (1.3, -1.0, 1.3), (0.7, 1.0, -0.7), (0.7, -1.0, 0.0), (1.1, 2.0, -2.2)],
)
def test_beyond_the_clip_nothing_more_is_gained(ratio: float, advantage: float, slope: float) -> None:
    logps = torch.tensor([ratio]).log().requires_grad_()
    clipped_surrogate(logps, torch.zeros(1), torch.tensor([advantage]), clip=0.2).sum().backward()
    assert logps.grad is not None
    assert float(logps.grad) == pytest.approx(slope, abs=1e-6)


def test_the_value_loss_is_never_below_the_square_and_stops_beyond_its_clip() -> None:
    values, old, returns = random(9), random(10), random(11)
    assert (clipped_value_loss(values, old, returns, clip=0.1) >= 0.5 * (values - returns) ** 2).all()
    value = torch.tensor([0.5], requires_grad=True)  # moved by 0.5 towards the return of 1 already
    clipped_value_loss(value, torch.zeros(1), torch.ones(1), clip=0.2).sum().backward()
    assert value.grad is not None
    assert float(value.grad) == 0


def test_beta_follows_the_measured_kl() -> None:
    def adapted(kl: float) -> float:
        return adapted_beta(0.1, kl, target=2.0, rollouts=100, horizon=1000.0)

    assert adapted(2.0) == pytest.approx(0.1)
    assert adapted(2.2) == pytest.approx(0.1 * (1 + 0.1 * 0.1))
    assert adapted(100.0) == pytest.approx(0.102)
    assert adapted(0.0) == pytest.approx(0.098)


def ppo_over(policy: Policy, tokenizer: Any, *, adapter: bool = False, **options: Any) -> PPO:
    defaults: dict[str, Any] = {
        "steps": 3,
        "prompts_per_step": 4,
        "max_new_tokens": 5,
        "minibatch_size": 3,
        "epochs": 2,
    }
    reference = AdapterOff(policy) if adapter else FrozenCopy(copy.deepcopy(policy))
    return make_ppo(PPOConfig(**(defaults | options)), policy, reference, tokenizer, PROMPTS, length_scorer)


def length_scorer(prompts: Any, completions: Any) -> list[float]:
    return [sum(token % 7 for token in tokens) / 7 for tokens in completions]


def test_rollouts_say_what_the_model_says_of_each_alone(tokenizer: Any) -> None:
    ppo = ppo_over(Policy(build_model()), tokenizer)
    rollouts = roll_out(ppo)
    assert rollouts.mask.sum(1).tolist() == [len(group.completion_ids[0]) for group in rollouts.groups]
    for number, group in enumerate(rollouts.groups):
        length = len(group.completion_ids[0])
        logps, values, mask = look_at(ppo, [group])
        assert mask.all()
        torch.testing.assert_close(rollouts.logps[number, :length], logps[0].detach(), rtol=0, atol=1e-5)
        torch.testing.assert_close(rollouts.values[number, :length], values[0].detach(), rtol=0, atol=1e-5)
    torch.testing.assert_close(rollouts.ref_logps, rollouts.logps, rtol=0, atol=1e-5)


def test_the_first_pass_has_ratio_1_everywhere(tokenizer: Any) -> None:
    ppo = ppo_over(Policy(build_model()), tokenizer, epochs=1, minibatch_size=4, learning_rate=0.1)
    assert learn(ppo, roll_out(ppo))["clipped"] == 0
    again = ppo_over(Policy(build_model()), tokenizer, epochs=4, minibatch_size=4, learning_rate=0.1)
    assert learn(again, roll_out(again))["clipped"] > 0


def test_the_value_head_learns_what_is_expected(tokenizer: Any) -> None:
    policy = Policy(build_model()).requires_grad_(False)
    ppo = ppo_over(policy, tokenizer, steps=20, epochs=8, learning_rate=3e-2, minibatch_size=4, value_clip=10.0)
    errors = [metrics["value_error"] for metrics in ppo_steps(ppo)]
    assert sum(errors[-5:]) < 0.5 * sum(errors[:5])


@pytest.mark.parametrize("adapter", [False, True], ids=["all weights", "lora"])
def test_a_saved_run_goes_on_as_if_it_had_not_stopped(tokenizer: Any, tmp_path: Path, adapter: bool) -> None:
    def fresh() -> PPO:
        model = build_model()
        config = PeftConfig(method="lora", rank=2) if adapter else PeftConfig()
        policy = Policy(add_adapter(model, config, seed=0))
        return ppo_over(policy, tokenizer, adapter=adapter, learning_rate=1e-2, target_kl=0.5)

    whole = list(ppo_steps(fresh()))
    first, second = fresh(), fresh()
    stopped = next(iter(ppo_steps(first)))
    save_ppo(first, tmp_path / "ppo.safetensors")
    load_ppo(second, tmp_path / "ppo.safetensors")
    assert [stopped, *ppo_steps(second)] == whole
    assert whole[2]["beta"] != whole[0]["beta"]
    assert [path.name for path in tmp_path.iterdir()] == ["ppo.safetensors"]


def test_a_score_that_is_no_number_stops_before_the_weights_change(tokenizer: Any) -> None:
    ppo = ppo_over(Policy(build_model()), tokenizer)
    ppo.scorer = lambda prompts, completions: [float("nan")] * len(prompts)
    before = {name: value.clone() for name, value in ppo.policy.state_dict().items()}
    with pytest.raises(TrainingFault, match="norm is nan in round 1"):
        next(iter(ppo_steps(ppo)))
    assert all(torch.equal(value, before[name]) for name, value in ppo.policy.state_dict().items())


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"clip": 0.0}, {"gamma": 1.5}, {"lam": -0.1}, {"target_kl": -1.0}])
def test_settings_that_mean_nothing_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        PPOConfig(**({"steps": 1, "prompts_per_step": 1} | wrong))
