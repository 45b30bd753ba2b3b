"""Losses that depend on the rest of the batch: what is summed over it, and what the sums become.

The loop adds the sums of all micro-batches and ranks of an optimizer step, then settles them once. So a batch gives the
same losses however it is cut. The moving state is plain tensors and goes into the checkpoint.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence

from torch import Tensor

from dipole.errors import DataError
from dipole.objective.completions import Completions, PairIndex, UnaryIndex
from dipole.objective.row import Coupling, HyperParameter, Scalars, Settings


def _count(index: Tensor, like: Tensor) -> Tensor:
    return like.new_tensor(float(index.numel()))


def _divide(total: Tensor, count: Tensor) -> Tensor:
    return total / count.clamp(min=1)


def kto_sums(completions: Completions, relations: UnaryIndex, settings: Settings) -> Scalars:
    """Sum of the log-ratios of completions after a prompt that isn't theirs, and how many there are."""
    mismatched = completions["mismatched_logratio"][relations.i]
    return {"logratio": mismatched.sum(), "count": _count(relations.i, mismatched)}


def kto_settle(sums: Mapping[str, Tensor], state: Mapping[str, Tensor], settings: Settings) -> tuple[Scalars, Scalars]:
    """z₀ = max(0, mean), clamped after the mean over the whole batch, not on every rank."""
    return {"z0": _divide(sums["logratio"], sums["count"]).clamp(min=0)}, {}


def mismatched_prompts(prompts: Sequence[Hashable]) -> list[int]:
    """For every completion of a batch, the position of another one whose prompt is different: KTO's mismatched pairs.

    Plan it over the whole batch of an optimizer step, before that is cut into micro-batches and ranks: then it needs
    neither a sequential sampler nor micro-batches of more than one. Completions are ordered by prompt and turned by the
    size of the largest group, so no completion meets its own prompt, and every prompt is used as often as it occurs.

    Args:
        prompts: what tells the prompts of the completions apart, such as the ids of their groups.

    Raises:
        DataError: more than half of the completions have the same prompt.
    """
    if not prompts:
        return []
    largest = max(Counter(prompts).values())
    if 2 * largest > len(prompts):
        raise DataError(
            f"{largest} of {len(prompts)} completions answer the same prompt",
            where="kto",
            remedy="KTO sets completions after other prompts, so give more groups, with different prompts.",
        )
    first_seen = {prompt: place for place, prompt in reversed(list(enumerate(prompts)))}
    ordered = sorted(range(len(prompts)), key=lambda place: first_seen[prompts[place]])
    partner = dict(zip(ordered, ordered[largest:] + ordered[:largest], strict=True))
    return [partner[place] for place in range(len(prompts))]


def bco_sums(completions: Completions, relations: UnaryIndex | PairIndex, settings: Settings) -> Scalars:
    """Sum of the rewards of all completions in relations, of pairs both sides, and how many there are."""
    sides = [relations.i] if isinstance(relations, UnaryIndex) else [relations.i, relations.j]
    rewards = settings["beta"] * completions.logratio
    return {
        "reward": sum((rewards[side].sum() for side in sides), start=rewards.new_zeros(())),
        "count": sum((_count(side, rewards) for side in sides), start=rewards.new_zeros(())),
    }


def bco_settle(sums: Mapping[str, Tensor], state: Mapping[str, Tensor], settings: Settings) -> tuple[Scalars, Scalars]:
    """δ is the mean of every reward so far, this batch's included. It is updated before it is used."""
    count = state["reward_count"] + sums["count"]
    mean = state["reward_mean"] + (sums["reward"] - state["reward_mean"] * sums["count"]) / count.clamp(min=1)
    return {"shift": mean}, {"reward_mean": mean, "reward_count": count}


def beta_dpo_sums(completions: Completions, relations: PairIndex, settings: Settings) -> Scalars:
    """Sum of h over pairs, and how many there are."""
    logratio = completions.logratio
    h = logratio[relations.i] - logratio[relations.j]
    return {"h": h.sum(), "count": _count(relations.i, h)}


def beta_dpo_settle(
    sums: Mapping[str, Tensor], state: Mapping[str, Tensor], settings: Settings
) -> tuple[Scalars, Scalars]:
    """β is scaled by 1 + a (mean h − running mean); the running mean takes the batch in after it was used."""
    mean = _divide(sums["h"], sums["count"])
    scale = 1 + settings["sensitivity"] * (mean - state["h_mean"])
    momentum = settings["momentum"]
    return {"beta_scale": scale}, {"h_mean": momentum * state["h_mean"] + (1 - momentum) * mean}


KTO = Coupling(
    sums=kto_sums,
    settle=kto_settle,
    constants={"z0": "mean log-ratio of mismatched prompts and completions, at least 0"},
    initial={},
)
BCO = Coupling(
    sums=bco_sums,
    settle=bco_settle,
    constants={"shift": "running mean of rewards, δ"},
    initial={"reward_mean": 0.0, "reward_count": 0.0},
    learns_from_batch=True,
)
BETA_DPO = Coupling(
    sums=beta_dpo_sums,
    settle=beta_dpo_settle,
    constants={"beta_scale": "what β is multiplied with in this batch"},
    initial={"h_mean": 0.0},
    hyper=(
        HyperParameter("sensitivity", 0.6, "a: how strongly β follows the batch's margin", low_open=False),
        HyperParameter("momentum", 0.9, "of the running mean of h", low_open=False, high=1.0),
    ),
)
