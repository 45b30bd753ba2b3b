"""The theory on a bandit: one prompt, eight answers of one token, a reward for each.

What maximises E[r] − β KL(π‖π_ref) is π ∝ π_ref · exp(r/β). PPO with the true reward, and DPO on the Bradley–Terry
preferences that the reward implies, both have to find it; and as β varies, they trace the exact frontier.
"""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import prepared, tiny_config
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from conftest import build_model
from dipole.data.batch import Order, pack
from dipole.data.reduce import PairRelation
from dipole.data.tokenize import TokenizedGroup
from dipole.policy.logprobs import Policy, sum_by_completion
from dipole.policy.reference import FrozenCopy
from dipole.train.loop import steps
from dipole.train.ppo import PPOConfig, make_ppo, ppo_steps

ARMS = 8
PROMPT = (1, 2)
REWARDS = torch.tensor([0.0, 1.0, -1.0, 0.5, 2.0, -0.5, 0.25, 1.5], dtype=torch.float64)
BETAS = (0.4, 1.5)


def answers(relations: tuple[PairRelation, ...] = ()) -> TokenizedGroup:
    """The prompt with every token of the vocabulary as its answer."""
    return TokenizedGroup(
        id="bandit", prompt_ids=PROMPT, completion_ids=tuple((arm,) for arm in range(ARMS)), relations=relations
    )


@torch.no_grad()
def log_probs(policy: Policy) -> Tensor:
    """(8,) of the answers; they are the whole vocabulary, so this is the whole policy."""
    logps = policy(pack([answers()])).logps.double()
    assert float(logps.exp().sum()) == pytest.approx(1, abs=1e-5)
    return logps.log_softmax(0)


def optimum(reference: Tensor, beta: float) -> Tensor:
    """(8,) log π of π ∝ π_ref · exp(r/β)."""
    return (reference + REWARDS / beta).log_softmax(0)


def kl(left: Tensor, right: Tensor) -> float:
    return float((left.exp() * (left - right)).sum())


def reward(policy: Tensor) -> float:
    return float(policy.exp() @ REWARDS)


def best_reward(reference: Tensor, divergence: float) -> float:
    """The exact frontier: the most reward that a policy can have at this KL to the reference, by bisection over β."""
    low, high = 1e-3, 1e3
    for _ in range(200):
        beta = (low * high) ** 0.5
        low, high = (beta, high) if kl(optimum(reference, beta), reference) > divergence else (low, beta)
    return reward(optimum(reference, (low * high) ** 0.5))


def by_ppo(tokenizer: Any, **options: Any) -> tuple[Tensor, Tensor]:
    """(policy, reference) after PPO on sampled answers."""
    policy = Policy(build_model(ARMS))
    reference = FrozenCopy(copy.deepcopy(policy))

    def score(prompts: Any, completions: Any) -> list[float]:
        return [float(REWARDS[arm]) for (arm,) in completions]

    config = PPOConfig(
        prompts_per_step=1,
        completions_per_prompt=256,
        max_new_tokens=1,
        epochs=2,
        minibatch_size=256,
        **({"steps": 60, "learning_rate": 1e-2} | options),
    )
    for _ in ppo_steps(make_ppo(config, policy, reference, tokenizer, [PROMPT], score)):
        pass
    return log_probs(policy), log_probs(reference.policy)


def tokenizer_of_arms() -> PreTrainedTokenizerFast:
    words = ["<pad>", "a", "b", "c", "d", "e", "f", "<end>"]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="f"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<pad>")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bandit's model in a folder, with a file of preferences that only has to be there."""
    folder = tmp_path_factory.mktemp("bandit")
    build_model(ARMS).save_pretrained(folder / "model")
    tokenizer_of_arms().save_pretrained(folder / "model")
    group = {
        "schema": 1,
        "id": "g",
        "prompt": "a b",
        "completions": [{"text": " c"}, {"text": " d"}],
        "judgments": [{"kind": "comparison", "i": 0, "j": 1}],
    }
    (folder / "groups.jsonl").write_text(json.dumps(group) + "\n", encoding="utf-8")
    return folder


def by_dpo(folder: Path, output: Path, beta: float) -> tuple[Tensor, Tensor]:
    """(policy, reference) after the training loop on all pairs of answers, each with its probability σ(r_i − r_j)."""
    pairs = [(i, j) for i in range(ARMS) for j in range(ARMS) if REWARDS[i] > REWARDS[j]]
    relations = tuple(PairRelation(i, j, p=float(torch.sigmoid(REWARDS[i] - REWARDS[j]))) for i, j in pairs)
    config = tiny_config(
        folder / "model",
        folder / "groups.jsonl",
        output,
        loss="dpo",
        beta=beta,
        num_epochs=120,
        num_samples=0,
        learning_rate=1e-2,
        max_grad_norm=0.0,
    )
    run = prepared(config)
    run.data = replace(run.data, train=[answers(relations)])
    run.order = Order(1, 1, 0)
    for _ in steps(run):
        pass
    assert isinstance(run.reference, FrozenCopy)
    return log_probs(run.policy), log_probs(run.reference.policy)


def test_the_exact_frontier_is_what_no_policy_exceeds() -> None:
    reference = torch.linspace(-1, 1, ARMS, dtype=torch.float64).log_softmax(0)
    draw = torch.Generator().manual_seed(0)
    for _ in range(200):
        policy = (2 * torch.randn(ARMS, generator=draw, dtype=torch.float64)).log_softmax(0)
        assert reward(policy) <= best_reward(reference, kl(policy, reference)) + 1e-9
    for beta in BETAS:
        best = optimum(reference, beta)
        assert reward(best) == pytest.approx(best_reward(reference, kl(best, reference)), abs=1e-9)


@pytest.mark.parametrize("beta", BETAS)
def test_dpo_reaches_the_optimum_and_lies_on_the_frontier(beta: float, folder: Path, tmp_path: Path) -> None:
    policy, reference = by_dpo(folder, tmp_path / "out", beta)
    assert kl(reference, optimum(reference, beta)) > 0.05, "the start is no optimum"
    assert kl(policy, optimum(reference, beta)) < 0.01
    assert reward(policy) == pytest.approx(best_reward(reference, kl(policy, reference)), abs=0.01)


@pytest.mark.parametrize("beta", BETAS)
def test_ppo_reaches_the_optimum_and_lies_on_the_frontier(beta: float, tokenizer: Any) -> None:
    policy, reference = by_ppo(tokenizer, beta=beta)
    assert kl(policy, optimum(reference, beta)) < 0.01
    assert reward(policy) == pytest.approx(best_reward(reference, kl(policy, reference)), abs=0.01)


def test_ppo_of_two_tokens_reaches_the_optimum_over_sequences(tokenizer: Any) -> None:
    """The reward comes with the second token, so that credit has to reach the first."""
    letters = 3
    sequences = [(first, second) for first in range(letters) for second in range(letters)]
    table = torch.tensor([0.0, 1.0, -1.0, 0.5, 2.0, -0.5, 0.25, 1.5, -2.0], dtype=torch.float64)
    policy = Policy(build_model(letters))
    policy.transformer.generation_config.eos_token_id = None  # no letter ends
    reference = FrozenCopy(copy.deepcopy(policy))

    def score(prompts: Any, completions: Any) -> list[float]:
        return [float(table[sequences.index(ids)]) for ids in completions]

    @torch.no_grad()
    def of_sequences(model: Policy) -> Tensor:
        batch = pack([replace(answers(), completion_ids=tuple(sequences))])
        return sum_by_completion(model(batch).logps, batch).double().log_softmax(0)

    config = PPOConfig(
        steps=60,
        prompts_per_step=1,
        completions_per_prompt=256,
        max_new_tokens=2,
        epochs=2,
        minibatch_size=256,
        learning_rate=1e-2,
        beta=0.6,
    )
    for _ in ppo_steps(make_ppo(config, policy, reference, tokenizer, [PROMPT], score)):
        pass
    best = (of_sequences(reference.policy) + table / 0.6).log_softmax(0)
    assert kl(of_sequences(reference.policy), best) > 0.3
    assert kl(of_sequences(policy), best) < 0.01


def test_the_controller_brings_ppo_to_its_target_on_the_frontier(tokenizer: Any) -> None:
    policy, reference = by_ppo(tokenizer, beta=1.0, target_kl=0.3, horizon=1024.0)
    assert kl(policy, reference) == pytest.approx(0.3, abs=0.05)
    assert reward(policy) == pytest.approx(best_reward(reference, kl(policy, reference)), abs=0.01)
