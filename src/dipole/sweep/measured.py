"""One policy on the plane of reward and KL: samples of it, what they score, and how far it is from the reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from dipole.data.batch import PackedBatch, pack
from dipole.data.tokenize import TokenizedGroup
from dipole.evaluate.frontier import best_of_n
from dipole.policy.generate import Sample, Sampling, sample
from dipole.policy.head import chunked_divergence
from dipole.policy.logprobs import Policy, sum_by_completion
from dipole.policy.reference import Reference
from dipole.sweep.texts import Prompt, Score

BATCH = 64
"""Completions at a time."""


def drawn(
    policy: Policy,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    count: int,
    *,
    max_new_tokens: int,
    seed: int,
) -> list[Sample]:
    """``count`` completions of each prompt at temperature 1, prompt by prompt.

    Each draw has random numbers of its own, whatever else is drawn: policies that differ little say much the same.
    """
    repeated = [prompt.ids for prompt in prompts for _ in range(count)]
    streams = [(*prompt.ids, number) for prompt in prompts for number in range(count)]
    sampling = Sampling(max_new_tokens=max_new_tokens, seed=seed, batch_size=BATCH)
    return sample(policy, tokenizer, repeated, sampling, streams=streams)


def rows_of_policy(
    policy: Policy,
    reference: Reference,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    score: Score,
    *,
    completions: int,
    max_new_tokens: int,
    seed: int,
) -> list[dict[str, Any]]:
    """A row a completion, as ``evaluate.frontier`` takes them.

    Args:
        policy: to measure.
        reference: what the KL is to.
        tokenizer: of both.
        prompts: to sample from.
        score: of prompt and completion.
        completions: of each prompt.
        max_new_tokens: where they are cut; the KL counts up to there.
        seed: of the draws.
    """
    samples = drawn(policy, tokenizer, prompts, completions, max_new_tokens=max_new_tokens, seed=seed)
    owners = [prompt for prompt in prompts for _ in range(completions)]
    rows: list[dict[str, Any]] = []
    for start in range(0, len(samples), BATCH):
        part = list(zip(owners[start : start + BATCH], samples[start : start + BATCH], strict=True))
        groups = [
            TokenizedGroup(id="", prompt_ids=prompt.ids, completion_ids=(item.ids,), relations=())
            for prompt, item in part
        ]
        columns = divergences(policy, reference, pack(groups).to(policy.device))
        values = zip(*(columns[name].tolist() for name in ("kl", "k1", "k3")), strict=True)
        for (prompt, item), (kl, k1, k3) in zip(part, values, strict=True):
            rows.append(
                {
                    "prompt": prompt.text,
                    "completion": item.verbatim,
                    "reward": score(prompt.text, item.verbatim),
                    "kl": kl,
                    "k1": k1,
                    "k3": k3,
                    "tokens": len(item.ids),
                    "finished": item.finished,
                }
            )
    return rows


@torch.no_grad()
def divergences(policy: Policy, reference: Reference, batch: PackedBatch) -> dict[str, Tensor]:
    """(C,) KL(policy‖reference) of the policy's own samples, in nats a completion, by three estimators.

    With d_t = log π(y_t) − log π_ref(y_t) of the sampled tokens: ``k1`` is Σ_t d_t, ``k3`` Σ_t (exp(−d_t) − 1 + d_t)
    (Schulman 2020, "Approximating KL divergence"), and ``kl`` Σ_t KL(π_t‖π_ref,t), the exact sum over the vocabulary
    at every sampled step. All are unbiased for the KL of the sequences; the last has the least variance.
    """
    kl, d = chunked_divergence(policy.head_input(batch), reference.head_input(batch), batch.target)
    tokens = {"kl": kl, "k1": d, "k3": torch.expm1(-d) + d}
    return {name: sum_by_completion(values, batch) for name, values in tokens.items()}


def rows_of_best(
    prompts: Sequence[Prompt], rewards: Sequence[Sequence[float]], selector: Sequence[Sequence[float]], n: int
) -> list[dict[str, Any]]:
    """A row a prompt for taking the best of N draws of the reference.

    Args:
        prompts: P of them.
        rewards: (P, M) of the draws.
        selector: (P, M) by which the best is chosen.
        n: N.
    """
    rows = []
    for prompt, own_rewards, own_selector in zip(prompts, rewards, selector, strict=True):
        reward, kl = best_of_n(own_selector, own_rewards, n)
        rows.append({"prompt": prompt.text, "reward": reward, "kl": kl})
    return rows
