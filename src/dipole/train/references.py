"""Which reference a run has, and how the cached one is filled before training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from dipole.config import TrainConfig
from dipole.data.batch import PackedBatch, PromptAndCompletion, micro_batches, pack
from dipole.data.tokenize import TokenizedGroup
from dipole.errors import ConfigError, TrainingFault
from dipole.objective import Loss
from dipole.policy.cached import Cached, LogpStore, fill, model_key
from dipole.policy.embedded import cache_folder
from dipole.policy.logprobs import Policy
from dipole.policy.reference import FrozenCopy, Reference, make_reference, with_own_model
from dipole.progress import Progress
from dipole.train.inputs import MISMATCHED, mismatched_groups
from dipole.train.ranks import Ranks


def reference_of_run(
    config: TrainConfig,
    loss: Loss,
    policy: Policy,
    weights: str,
    groups: Sequence[TokenizedGroup],
    accelerator: Accelerator,
    ranks: Ranks,
    progress: Progress,
    load: Callable[[], tuple[Policy, str]],
) -> Reference | None:
    """The reference of a policy that hasn't been trained yet.

    Args:
        config: of the run.
        loss: says whether it needs one.
        policy: as it is at step 0.
        weights: the fingerprint of the model that training starts from.
        groups: all that will be asked for, to train on or held out.
        accelerator: of the run.
        ranks: its processes; each fills its share of a cache.
        progress: is told when a cache is filled.
        load: the policy as it is at step 0, once more, and the fingerprint of the model that it starts from.

    Raises:
        ConfigError: the strategy doesn't fit the policy or the loss.
    """
    moves = config.sync_reference_every is not None
    if config.reference != "cached":
        twin = (lambda: load()[0]) if ranks.lockstep else None  # divided weights can't be copied in memory
        return make_reference(config.reference, policy, needed=loss.needs_reference, moves=moves, twin=twin)
    check_cacheable(loss, moves=moves)
    assert config.max_length is not None
    wanted = list(groups)
    if MISMATCHED in loss.inputs:
        wanted += [item for group in groups for item in mismatched_groups(group, config.max_length)]
    key = model_key(policy.transformer, weights, accelerator.mixed_precision)
    sequences = [(group.prompt_ids, ids) for group in wanted for ids in group.completion_ids]
    folder = cache_folder() / "reference" / key
    store = LogpStore(folder, sequences)
    for path in store.damaged:
        progress.say(f"{path} is damaged and isn't used; it can be deleted.")
    if hasattr(policy.model, "disable_adapter"):
        live: Callable[[], Reference] = lambda: with_own_model(policy)  # noqa: E731
    else:
        live = lambda: _loaded_again(config, load, weights)  # noqa: E731
    different = list(dict.fromkeys(sequences))
    lacking = ranks.from_first([sequence not in store for sequence in different])
    missing = only(wanted, [sequence for sequence, lacks in zip(different, lacking, strict=True) if lacks])
    if missing:
        _fill(store, missing, config, policy, accelerator, ranks, progress)
        ranks.wait()
    else:
        progress.say("The reference's log-probabilities are in the cache.")
    anyone: dict[str, Any] = {"anyone": ranks.anyone} if ranks.lockstep else {}
    return Cached(store if ranks.count == 1 else LogpStore(folder, sequences), live, **anyone)


def only(groups: Sequence[TokenizedGroup], lacking: Sequence[PromptAndCompletion]) -> list[TokenizedGroup]:
    """The groups with what is lacking alone, each completion once; a prompt whose completions are known isn't there."""
    left, kept = set(lacking), []
    for group in groups:
        found = tuple(ids for ids in dict.fromkeys(group.completion_ids) if (group.prompt_ids, ids) in left)
        left -= {(group.prompt_ids, ids) for ids in found}
        if found:
            kept.append(TokenizedGroup(id=group.id, prompt_ids=group.prompt_ids, completion_ids=found, relations=()))
    return kept


def _fill(
    store: LogpStore,
    missing: Sequence[TokenizedGroup],
    config: TrainConfig,
    policy: Policy,
    accelerator: Accelerator,
    ranks: Ranks,
    progress: Progress,
) -> None:
    """Computes with the policy, which hasn't moved yet: so a second model isn't needed. Each process has its share."""
    start = with_own_model(policy).token_logps if hasattr(policy.model, "disable_adapter") else _untrained(policy)
    parts = micro_batches(missing, config.max_tokens_per_microbatch)
    own = [parts[number] for number, _ in ranks.turns(len(parts))]
    completions = sum(len(group.completion_ids) for part in own for group in part)
    progress.stage("Computing the reference, once", total=completions)
    with accelerator.autocast(), ranks.in_lockstep():
        fill(store, (pack(part).to(accelerator.device) for part in own), start, progress.advance)


def _untrained(policy: Policy) -> Callable[[PackedBatch], Tensor]:
    @torch.no_grad()
    def token_logps(batch: PackedBatch) -> Tensor:
        logps: Tensor = policy(batch).logps
        return logps

    return token_logps


def _loaded_again(config: TrainConfig, load: Callable[[], tuple[Policy, str]], weights: str) -> Reference:
    """A copy of the model that training started from, for as long as somebody holds it.

    Raises:
        TrainingFault: the folder holds another model by now.
    """
    policy, found = load()
    if found != weights:
        raise TrainingFault(
            "the model isn't the one that training started from any more, so it can't be the reference of samples",
            where=config.model,
            remedy="Restore it, or use --reference copy",
        )
    return FrozenCopy(policy)


def check_cacheable(loss: Loss, *, moves: bool) -> None:
    """Raises a ``ConfigError`` if a cache can't hold what the loss or a moving reference needs."""
    reasons = {
        "the loss has no reference": not loss.needs_reference,
        f"{loss.name} compares whole distributions, and the cache keeps log-probabilities of tokens": "seq_kl"
        in loss.inputs,
        "the reference moves": moves,
    }
    for reason, holds in reasons.items():
        if holds:
            raise ConfigError(reason, where="--reference cached", remedy="Leave --reference at auto, or use copy")
