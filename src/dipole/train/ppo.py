"""Proximal policy optimization of a language model, small and in the open: what preference losses are measured against.

The clipped surrogate of Schulman et al. 2017 (arXiv 1707.06347) with generalized advantages (Schulman et al. 2016,
arXiv 1506.02438), and the reward with a KL penalty and its controller of Ziegler et al. 2019 (arXiv 1909.08593).

Shapes: B rollouts, L tokens of the longest. A (B, L) tensor has a number a token, 0 after a rollout's end; ``mask``
(B, L) is true where there is a token. The functions before ``PPO`` are pure.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from dipole.data.batch import Order, pack
from dipole.data.tokenize import TokenizedGroup
from dipole.errors import ConfigError, TrainingFault
from dipole.policy.generate import Sampling, sample
from dipole.policy.head import chunked_logprobs
from dipole.policy.logprobs import Policy
from dipole.policy.reference import Reference
from dipole.train.setup import trained_parameters
from dipole.train.track import scratch_for

Tokens = tuple[int, ...]
Scorer = Callable[[Sequence[Tokens], Sequence[Tokens]], Sequence[float]]
"""From the tokens of B prompts and of their completions to B scores, higher is better."""


def penalized_rewards(logps: Tensor, ref_logps: Tensor, scores: Tensor, mask: Tensor, *, beta: float) -> Tensor:
    """(B, L) −β (log π(y_t) − log π_ref(y_t)) at every token, and the score at the last (Ziegler et al. 2019, eq. 2).

    The sum over a rollout is the objective that the policy of DPO maximises too: score − β · log-ratio.

    Args:
        logps: (B, L) of the policy that sampled.
        ref_logps: (B, L) of the reference.
        scores: (B,) of the whole rollouts.
        mask: (B, L).
        beta: strength of the tie to the reference.
    """
    is_last = mask & ~nn.functional.pad(mask[:, 1:], (0, 1))
    return (scores.unsqueeze(1) * is_last - beta * (logps - ref_logps)) * mask


def generalized_advantages(
    rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """A_t = Σ_k (γλ)^k δ_{t+k} with δ_t = r_t + γ V_{t+1} − V_t (Schulman et al. 2016, eq. 16), and the returns A + V.

    Args:
        rewards: (B, L).
        values: (B, L), V_t of the tokens before t; nothing follows a rollout's end, so V is 0 there.
        mask: (B, L).
        gamma: discount of a step; 1 counts every token's reward alike.
        lam: 1 is the whole return minus V_t (no bias), 0 the next value alone (less variance).

    Returns:
        Advantages (B, L) and returns (B, L).
    """
    advantages = torch.zeros_like(rewards)
    later = next_value = torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        surprise = rewards[:, t] + gamma * next_value - values[:, t]
        later = (surprise + gamma * lam * later) * mask[:, t]
        next_value = values[:, t] * mask[:, t]
        advantages[:, t] = later
    return advantages, (advantages + values) * mask


def whitened(values: Tensor, mask: Tensor) -> Tensor:
    """(B, L) shifted and scaled to mean 0 and variance 1 over all tokens; 0 where there is none."""
    kept = values[mask]
    scaled = (values - kept.mean()) * torch.rsqrt(kept.var(correction=0) + 1e-8)
    return scaled * mask


def clipped_surrogate(logps: Tensor, old_logps: Tensor, advantages: Tensor, *, clip: float) -> Tensor:
    """−min(ρ A, clamp(ρ, 1 − ε, 1 + ε) A) a token, with ρ = π / π_old (Schulman et al. 2017, eq. 7).

    At ρ = 1 its gradient is the policy gradient; beyond the clip, where ρ moved the way that A says, it is 0.
    """
    ratio = (logps - old_logps).exp()
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)


def clipped_value_loss(values: Tensor, old_values: Tensor, returns: Tensor, *, clip: float) -> Tensor:
    """½ max((V − R)², (V_clipped − R)²) a token, V_clipped within ``clip`` of V_old (as in OpenAI's baselines)."""
    near = old_values + (values - old_values).clamp(-clip, clip)
    return 0.5 * torch.maximum((values - returns) ** 2, (near - returns) ** 2)


def adapted_beta(beta: float, kl: float, *, target: float, rollouts: int, horizon: float) -> float:
    """β (1 + e n/h), e = clamp(KL/target − 1, ±0.2): β grows while KL is above its target (Ziegler et al. 2019, 2.2).

    Args:
        beta: now.
        kl: nats a rollout, measured.
        target: what it should become.
        rollouts: n, how many it was measured on.
        horizon: h, over how many rollouts β may change by a fifth.
    """
    error = min(max(kl / target - 1, -0.2), 0.2)
    return beta * (1 + error * rollouts / horizon)


@dataclass(frozen=True, slots=True, kw_only=True)
class PPOConfig:
    """Settings of one run.

    Args:
        steps: rounds of sampling and learning.
        prompts_per_step: different prompts a round.
        completions_per_prompt: rollouts of each.
        max_new_tokens: where a rollout is cut.
        epochs: passes over the rollouts of a round.
        minibatch_size: rollouts an optimizer step.
        learning_rate: of AdamW at the first step; it falls linearly to 0.
        max_grad_norm: gradients are scaled down to this norm.
        beta: strength of the tie to the reference; where there is a target, the strength to begin with.
        target_kl: nats a completion that β is moved towards; ``None`` leaves β as it is.
        horizon: of the controller, in rollouts.
        clip: ε of the surrogate.
        value_clip: how far a value may move in a round before its gradient stops.
        value_weight: of the value loss beside the surrogate.
        gamma: discount.
        lam: λ of the advantages.
        seed: of the order, the rollouts and the mini-batches.
    """

    steps: int
    prompts_per_step: int
    completions_per_prompt: int = 1
    max_new_tokens: int = 64
    epochs: int = 4
    minibatch_size: int = 64
    learning_rate: float = 1e-4
    max_grad_norm: float = 1.0
    beta: float = 0.1
    target_kl: float | None = None
    horizon: float = 2000.0
    clip: float = 0.2
    value_clip: float = 0.2
    value_weight: float = 0.1
    gamma: float = 1.0
    lam: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        positive = ("steps", "prompts_per_step", "completions_per_prompt", "max_new_tokens", "epochs", "horizon")
        for name in (*positive, "minibatch_size", "clip", "value_clip", *(["target_kl"] if self.target_kl else [])):
            if not getattr(self, name) > 0:
                raise ConfigError(f"has to be above 0, not {getattr(self, name)}", where=name)
        if not (0 <= self.gamma <= 1 and 0 <= self.lam <= 1):
            raise ConfigError(f"gamma {self.gamma} and lam {self.lam} have to be between 0 and 1", where="PPO")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollouts:
    """What one round sampled, and what policy, reference and value head said of it then.

    Args:
        groups: B of one completion each.
        scores: (B,).
        logps, ref_logps, values: (B, L), without graph.
        mask: (B, L).
    """

    groups: Sequence[TokenizedGroup]
    scores: Tensor
    logps: Tensor
    ref_logps: Tensor
    values: Tensor
    mask: Tensor


@dataclass(slots=True, kw_only=True)
class PPO:
    """A run's parts; ``make_ppo`` builds them. Only ``beta``, ``step`` and weights change.

    Args:
        value_head: from the state that predicts a token to the return that is expected there.
        beta: strength of the tie to the reference, now.
        step: rounds done.
    """

    config: PPOConfig
    policy: Policy
    reference: Reference
    tokenizer: PreTrainedTokenizerBase
    scorer: Scorer
    prompts: Sequence[Tokens]
    value_head: nn.Linear
    optimizer: torch.optim.AdamW
    beta: float
    step: int = 0


def make_ppo(
    config: PPOConfig,
    policy: Policy,
    reference: Reference,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Tokens],
    scorer: Scorer,
) -> PPO:
    """A run before its first round. The value head begins at 0 and shares the policy's transformer."""
    hidden_size = int(policy.transformer.config.get_text_config().hidden_size)
    value_head = nn.Linear(hidden_size, 1, device=policy.device)
    nn.init.zeros_(value_head.weight)
    nn.init.zeros_(value_head.bias)
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    return PPO(
        config=config,
        policy=policy.eval(),
        reference=reference,
        tokenizer=tokenizer,
        scorer=scorer,
        prompts=prompts,
        value_head=value_head,
        optimizer=torch.optim.AdamW([*trained, *value_head.parameters()], lr=config.learning_rate, weight_decay=0.0),
        beta=config.beta,
    )


def ppo_steps(ppo: PPO) -> Iterator[Mapping[str, float]]:
    """Trains, yielding the metrics of each round; the caller may stop at any.

    Raises:
        TrainingFault: a gradient isn't finite.
    """
    while ppo.step < ppo.config.steps:
        rollouts = roll_out(ppo)
        kl = float((rollouts.logps - rollouts.ref_logps).sum(1).mean())
        metrics = {"step": ppo.step + 1.0, "score": float(rollouts.scores.mean()), "kl": kl, "beta": ppo.beta}
        metrics |= learn(ppo, rollouts)
        if ppo.config.target_kl is not None:
            ppo.beta = adapted_beta(
                ppo.beta,
                kl,
                target=ppo.config.target_kl,
                rollouts=len(rollouts.groups),
                horizon=ppo.config.horizon,
            )
        ppo.step += 1
        yield metrics


@torch.no_grad()
def roll_out(ppo: PPO) -> Rollouts:
    """Samples completions at temperature 1, since log-probabilities of another distribution would be biased."""
    config = ppo.config
    chosen = Order(len(ppo.prompts), config.prompts_per_step, config.seed).step(ppo.step)
    prompts = [ppo.prompts[index] for index in chosen for _ in range(config.completions_per_prompt)]
    seed = 1_000_003 * config.seed + ppo.step
    sampling = Sampling(max_new_tokens=config.max_new_tokens, seed=seed, batch_size=config.minibatch_size)
    drawn = sample(ppo.policy, ppo.tokenizer, prompts, sampling)
    groups = [
        TokenizedGroup(id=str(number), prompt_ids=prompt, completion_ids=(item.ids,), relations=())
        for number, (prompt, item) in enumerate(zip(prompts, drawn, strict=True))
    ]
    scores = ppo.scorer(prompts, [item.ids for item in drawn])
    width = max(len(item.ids) for item in drawn)
    rows: list[tuple[Tensor, ...]] = []
    for start in range(0, len(groups), config.minibatch_size):
        part = groups[start : start + config.minibatch_size]
        logps, values, mask = look_at(ppo, part)
        ref_logps = padded(ppo.reference.token_logps(pack(part).to(ppo.policy.device)), mask)
        rows.append(tuple(_widened(tensor, width) for tensor in (logps, ref_logps, values, mask)))
    logps, ref_logps, values, mask = (torch.cat(column) for column in zip(*rows, strict=True))
    return Rollouts(
        groups=groups,
        scores=torch.tensor(scores, dtype=logps.dtype, device=logps.device),
        logps=logps,
        ref_logps=ref_logps,
        values=values,
        mask=mask,
    )


def learn(ppo: PPO, rollouts: Rollouts) -> dict[str, float]:
    """Several passes over the rollouts of a round, a mini-batch an optimizer step. Returns metrics."""
    config, mask = ppo.config, rollouts.mask
    rewards = penalized_rewards(rollouts.logps, rollouts.ref_logps, rollouts.scores, mask, beta=ppo.beta)
    advantages, returns = generalized_advantages(rewards, rollouts.values, mask, gamma=config.gamma, lam=config.lam)
    advantages = whitened(advantages, mask)
    for part in ppo.optimizer.param_groups:
        part["lr"] = config.learning_rate * (1 - ppo.step / config.steps)
    clipped, errors = [], []
    for epoch in range(config.epochs):
        count = len(rollouts.groups)
        shuffled = random.Random(f"{config.seed} {ppo.step} {epoch}").sample(range(count), count)
        for start in range(0, count, config.minibatch_size):
            index = shuffled[start : start + config.minibatch_size]
            logps, values, there = look_at(ppo, [rollouts.groups[i] for i in index])
            width = there.shape[1]
            old_logps, old_values, advantage, target = (
                tensor[index, :width] for tensor in (rollouts.logps, rollouts.values, advantages, returns)
            )
            surrogate = clipped_surrogate(logps, old_logps, advantage, clip=config.clip)
            error = clipped_value_loss(values, old_values, target, clip=config.value_clip)
            _descend(ppo, (surrogate + config.value_weight * error)[there].mean())
            outside = ((logps - old_logps).exp() - 1).abs() > config.clip
            clipped.append(float(outside[there].float().mean()))
            errors.append(float(error.detach()[there].mean()))
    return {"clipped": fmean(clipped), "value_error": fmean(errors)}


def _descend(ppo: PPO, loss: Tensor) -> None:
    parameters = [parameter for part in ppo.optimizer.param_groups for parameter in part["params"]]
    ppo.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    norm = nn.utils.clip_grad_norm_(parameters, ppo.config.max_grad_norm)
    if not norm.isfinite():
        raise TrainingFault(
            f"the gradient's norm is {float(norm):g} in round {ppo.step + 1}; the model is as it was before the step",
            remedy="Lower the learning rate, or keep the weights in float32",
        )
    ppo.optimizer.step()


def look_at(ppo: PPO, groups: Sequence[TokenizedGroup]) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities (B, L) and values (B, L) of groups of one completion each, with graph, and their mask.

    The state that predicts a token is all that is known before it: what its value is a function of.
    """
    batch = pack(groups).to(ppo.policy.device)
    head = ppo.policy.head_input(batch)
    logps, _ = chunked_logprobs(head, batch.target)
    values = ppo.value_head(head.hidden.to(ppo.value_head.weight.dtype)).squeeze(-1)
    places = torch.arange(int(batch.num_targets.max()), device=ppo.policy.device)
    mask = places < batch.num_targets.unsqueeze(1)
    return padded(logps, mask), padded(values.to(logps.dtype), mask), mask


def padded(values: Tensor, mask: Tensor) -> Tensor:
    """(B, L) of the values (T,) of all tokens, one rollout after the other."""
    return values.new_zeros(mask.shape).masked_scatter(mask, values)


def _widened(tensor: Tensor, width: int) -> Tensor:
    return nn.functional.pad(tensor, (0, width - tensor.shape[1]))


def save_ppo(ppo: PPO, path: Path) -> None:
    """Writes all that training changes into one file, whole or not at all."""
    tensors = {f"policy.{name}": value for name, value in trained_parameters(ppo.policy, ppo.policy).items()}
    tensors |= {f"value.{name}": value for name, value in ppo.value_head.state_dict().items()}
    for number, values in ppo.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{name}": tensor for name, tensor in values.items()}
    tensors |= {"beta": torch.tensor(ppo.beta, dtype=torch.float64), "step": torch.tensor(ppo.step)}
    scratch = scratch_for(path)
    try:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, scratch)
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


def load_ppo(ppo: PPO, path: Path) -> None:
    """Restores what ``save_ppo`` wrote into a run that was built alike."""
    tensors = load_file(path)
    for name, value in trained_parameters(ppo.policy, ppo.policy).items():
        value.copy_(tensors[f"policy.{name}"])
    ppo.value_head.load_state_dict({name: tensors[f"value.{name}"] for name in ppo.value_head.state_dict()})
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, number, field = name.split(".")
            state.setdefault(int(number), {})[field] = tensor
    ppo.optimizer.load_state_dict({"state": state, "param_groups": ppo.optimizer.state_dict()["param_groups"]})
    ppo.beta, ppo.step = float(tensors["beta"]), int(tensors["step"])
