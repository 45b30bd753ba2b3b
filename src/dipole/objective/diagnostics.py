"""What is worth logging besides the loss: pure functions that give one value a relation, detached.

The loop averages them with the weights of the relations, as it does with losses.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dipole.objective.completions import Completions, ListIndex, PairIndex, UnaryIndex
from dipole.objective.losses import delta, wpo_weight
from dipole.objective.numerics import log_odds


@torch.no_grad()
def pair_metrics(completions: Completions, rewards: Tensor, pairs: PairIndex) -> dict[str, Tensor]:
    """The usual curves of a pairwise loss, (R,) each.

    Chosen is the completion that the label makes more likely to be preferred, ``i`` when p = ½. Accuracy is strict: a
    tie counts 0 and is counted apart, so before the first step accuracy is 0 and ``rewards/ties`` 1. Margins that are
    within rounding of the log-probabilities are ties: a reference that was computed in other batches differs by that.
    ``logps/displacement`` is how far the chosen completion's log-probability has moved from the reference's. When it
    falls while margins grow, likelihood goes to something that is neither chosen nor rejected.

    Args:
        completions: C of them; displacement and averages appear when reference and lengths are there.
        rewards: (C,) from ``Outcome``.
        pairs: R of them.
    """
    chosen_index, rejected_index = pairs.i, pairs.j
    if pairs.prob is not None:
        swap = pairs.prob < 0.5
        chosen_index = torch.where(swap, pairs.j, pairs.i)
        rejected_index = torch.where(swap, pairs.i, pairs.j)
    completions = completions.upcast()
    margins = rewards[chosen_index] - rewards[rejected_index]
    noise = rounding(completions.logps[chosen_index]) + rounding(completions.logps[rejected_index])
    metrics = {
        "rewards/chosen": rewards[chosen_index],
        "rewards/rejected": rewards[rejected_index],
        "rewards/margins": margins,
        "rewards/accuracies": (margins > noise).to(margins.dtype),
        "rewards/ties": (margins.abs() <= noise).to(margins.dtype),
        "logps/chosen": completions.logps[chosen_index],
        "logps/rejected": completions.logps[rejected_index],
    }
    if completions.ref_logps is not None:
        metrics["logps/displacement"] = completions.logratio[chosen_index]
    if completions.lengths is not None:
        metrics["logps/chosen_mean"] = completions.mean_logps[chosen_index]
        metrics["logps/rejected_mean"] = completions.mean_logps[rejected_index]
    return {name: values.detach() for name, values in metrics.items()}


def rounding(logps: Tensor) -> Tensor:
    """By how much log-probabilities may differ, in nats, when the same tokens are computed in other batches."""
    return 8 * torch.finfo(logps.dtype).eps * logps.abs()


@torch.no_grad()
def unary_metrics(rewards: Tensor, unaries: UnaryIndex) -> dict[str, Tensor]:
    """Of single completions: whether the reward's sign is the label, (R,) each. A reward of 0 is a tie.

    Args:
        rewards: (C,) from ``Outcome``.
        unaries: R of them.
    """
    reward = rewards[unaries.i]
    right = torch.where(unaries.desirable, reward > 0, reward < 0)
    return {"rewards/accuracies": right.to(reward.dtype), "rewards/ties": (reward == 0).to(reward.dtype)}


@torch.no_grad()
def list_metrics(completions: Completions, rewards: Tensor, lists: ListIndex) -> dict[str, Tensor]:
    """Of rankings: the best completion is the chosen one, the others together the rejected one; (R,) each.

    Accuracy is 1 where the best has the highest reward of all, alone.

    Args:
        completions: C of them.
        rewards: (C,) from ``Outcome``.
        lists: R of them.
    """
    completions = completions.upcast()
    places = lists.order.clamp(min=0)
    others = lists.order[:, 1:] >= 0

    def mean_of_others(values: Tensor) -> Tensor:
        return torch.where(others, values[places[:, 1:]], 0.0).sum(-1) / others.sum(-1)

    best = lists.order[:, 0]
    runner_up = rewards[places[:, 1:]].masked_fill(~others, -torch.inf).amax(-1)
    noise = 2 * rounding(completions.logps[places]).amax(-1)
    metrics = {
        "rewards/chosen": rewards[best],
        "rewards/rejected": mean_of_others(rewards),
        "rewards/margins": rewards[best] - mean_of_others(rewards),
        "rewards/accuracies": (rewards[best] - runner_up > noise).to(rewards.dtype),
        "rewards/ties": ((rewards[best] - runner_up).abs() <= noise).to(rewards.dtype),
        "logps/chosen": completions.logps[best],
        "logps/rejected": mean_of_others(completions.logps),
    }
    if completions.ref_logps is not None:
        metrics["logps/displacement"] = completions.logratio[best]
    return {name: values.detach() for name, values in metrics.items()}


def watch_target_distance(chosen: Completions, rejected: Completions, *, beta: float) -> dict[str, Tensor]:
    """IPO: nats still missing to the target margin, negative; overshoot is positive."""
    return {"ipo/target_distance": delta(chosen, rejected) - 1 / (2 * beta)}


def watch_mean_target_distance(chosen: Completions, rejected: Completions, *, beta: float) -> dict[str, Tensor]:
    """Averaged IPO: nats a token still missing to the target margin."""
    return {"ipo/target_distance": chosen.mean_logratio - rejected.mean_logratio - 1 / (2 * beta)}


def watch_implied_prob(chosen: Completions, rejected: Completions, *, beta: float, **_: Any) -> dict[str, Tensor]:
    """Of cDPO and robust DPO: σ(β h), to be compared with 1 − ε."""
    return {"implied_prob": torch.sigmoid(beta * delta(chosen, rejected))}


def watch_odds(chosen: Completions, rejected: Completions, *, odds_weight: float) -> dict[str, Tensor]:
    """ORPO: its two terms, the likelihood and the log of the odds ratio."""
    log_odds_ratio = log_odds(chosen.mean_logps) - log_odds(rejected.mean_logps)
    return {"orpo/nll": -chosen.mean_logps, "orpo/log_odds_ratio": log_odds_ratio}


def watch_seq_kl(chosen: Completions, rejected: Completions, **_: Any) -> dict[str, Tensor]:
    """TDPO: the two forward KL sums."""
    return {"tdpo/kl_chosen": chosen["seq_kl"], "tdpo/kl_rejected": rejected["seq_kl"]}


def watch_weight(chosen: Completions, rejected: Completions, *, beta: float, clamp_weight: bool) -> dict[str, Tensor]:
    """WPO: the weight, and where it is above 1 before the clamp."""
    raw = wpo_weight(chosen, rejected, clamp_weight=False)
    return {
        "wpo/weight": wpo_weight(chosen, rejected, clamp_weight),
        "wpo/above_one": (raw > 1).to(raw.dtype),
    }


def watch_safety(chosen: Completions, rejected: Completions, **_: Any) -> dict[str, Tensor]:
    """SafeDPO: pairs that were swapped because the chosen one is unsafe, and dropped because both are."""
    unsafe_w, unsafe_l, dtype = chosen["unsafe"].bool(), rejected["unsafe"].bool(), chosen.logps.dtype
    swapped, dropped = unsafe_w & ~unsafe_l, unsafe_w & unsafe_l
    return {"safedpo/swapped": swapped.to(dtype), "safedpo/dropped": dropped.to(dtype)}


def watch_queries(chosen: Completions, rejected: Completions, *, beta: float, gamma: float) -> dict[str, Tensor]:
    """Active DPO: pairs whose label had to be asked for, and pairs whose label the policy overruled."""
    z = beta * delta(chosen, rejected)
    return {"adpo/queried": (z.abs() <= gamma).to(z.dtype), "adpo/flipped": (z < -gamma).to(z.dtype)}
