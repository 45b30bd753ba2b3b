"""What a loss is given: a batch's relations and token values in the objective's own terms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dipole.data.batch import Lists, PackedBatch, Pairs, Relations, Unaries, pack
from dipole.data.tokenize import TokenizedGroup
from dipole.errors import ConfigError, DataError, DipoleError
from dipole.objective import Completions, ListIndex, Loss, PairIndex, UnaryIndex
from dipole.objective.check import check
from dipole.objective.coupling import mismatched_prompts
from dipole.policy.logprobs import sum_by_completion

FACTS = ("unsafe", "from_policy", "margin_rewards")
"""Inputs that come from the ``meta`` of the data's completions."""
MISMATCHED = "mismatched_logratio"
MULTIPLIER = "lambda/"
"""What the names of constraints' multipliers begin with in a run's moving state."""

CHUNK = 512  # groups that are checked at a time

Tokens = Mapping[str, Tensor]
"""Values of the T completion tokens of a batch by name, (T,) each: ``logps``; where the loss needs them ``ref_logps``,
``log_sum_sq_probs`` and ``kl``, KL(π_ref ‖ π)."""


def relation_index(relations: Relations) -> PairIndex | UnaryIndex | ListIndex:
    """A batch's relations as a loss takes them."""
    match relations:
        case Pairs():
            return PairIndex(i=relations.chosen, j=relations.rejected, prob=relations.prob)
        case Unaries():
            return UnaryIndex(i=relations.completion, desirable=relations.desirable)
        case Lists():
            return ListIndex(order=relations.order)


def completions_of(loss: Loss, batch: PackedBatch, tokens: Tokens, mismatched: Tensor | None = None) -> Completions:
    """A batch's completions as a loss takes them.

    Args:
        loss: says what it needs.
        batch: of C completions.
        tokens: of all their tokens.
        mismatched: (C,) log-ratio of each completion after the prompt of another group.
    """
    extras: dict[str, Tensor] = {}
    for name in loss.inputs:
        match name:
            case "token_logps" | "ref_token_logps":
                extras[name] = _padded(tokens[name.replace("token_", "")], batch)
            case "seq_kl":
                extras[name] = sum_by_completion(tokens["kl"], batch)
            case "log_sum_sq_probs":
                extras[name] = sum_by_completion(tokens[name], batch)
            case "scores":
                extras[name] = batch.scores
            case "mismatched_logratio" if mismatched is not None:
                extras[name] = mismatched
            case _:
                extras[name] = batch.facts[name]
    return Completions(
        logps=sum_by_completion(tokens["logps"], batch),
        ref_logps=sum_by_completion(tokens["ref_logps"], batch) if "ref_logps" in tokens else None,
        lengths=batch.num_targets,
        extras=extras,
    )


def _padded(values: Tensor, batch: PackedBatch) -> Tensor:
    """(C, L) of (T,) values, 0 after the end of a completion."""
    starts = batch.num_targets.cumsum(0) - batch.num_targets
    within = torch.arange(values.numel(), device=values.device) - starts[batch.owner]
    padded = values.new_zeros(batch.num_completions, int(batch.num_targets.max()))
    return padded.index_put((batch.owner, within), values)


def check_trainable(loss: Loss) -> None:
    """Raises a ``ConfigError`` for a loss that can't be fed, before any data is read."""
    images = [name for name in loss.inputs if "imageless" in name]
    if images:
        raise ConfigError(
            f"{loss.name} compares prompts with and without their images, and training reads text alone so far",
            where="--loss.name",
            remedy="Use another loss; as a function it is there: dipole.preference_loss",
        )


def check_relations(loss: Loss, hyper: Mapping[str, Any], groups: Sequence[TokenizedGroup]) -> None:
    """Checks every label against the loss, once, before the model is loaded.

    Raises:
        ConfigError, DataError: the loss isn't defined for a label, such as a probability, or lacks scores.
    """
    if loss.whole_batch and len({relation.weight for group in groups for relation in group.relations}) > 1:
        raise ConfigError(
            f"{loss.name} compares ranks within a step's batch, where a pair can't weigh more than another",
            where="--loss.name",
            remedy="Leave --pairing.weighting at pair and the judgments without weights, or use another loss",
        )
    _check_rows_of_facts(groups)
    for start in range(0, len(groups), CHUNK):
        chunk = groups[start : start + CHUNK]
        try:
            _check_batch(loss, hyper, chunk)
        except DipoleError:
            for group in chunk:  # to name the group, for its positions in a chunk say nothing to a person
                try:
                    _check_batch(loss, hyper, [group])
                except DipoleError as fault:
                    where = ", ".join(filter(None, (f"group {group.id}", fault.where)))
                    raise type(fault)(fault.problem, where=where, remedy=fault.remedy) from fault
            raise


def _check_batch(loss: Loss, hyper: Mapping[str, Any], groups: Sequence[TokenizedGroup]) -> None:
    batch = pack(groups)
    zeros = torch.zeros(batch.target.numel())
    tokens = dict.fromkeys(("logps", "ref_logps", "log_sum_sq_probs", "kl"), zeros)
    completions = completions_of(loss, batch, tokens, mismatched=torch.zeros(batch.num_completions))
    check(loss, hyper, completions, relation_index(batch.relations))


def _check_rows_of_facts(groups: Sequence[TokenizedGroup]) -> None:
    """Facts that are rows of numbers have to be of one length, or there is no tensor of them."""
    lengths: dict[str, int] = {}
    for group in groups:
        for name, values in group.facts.items():
            for value in values:
                length = len(value) if isinstance(value, tuple) else 0
                if length != lengths.setdefault(name, length):
                    raise DataError(
                        f"its '{name}' has {length or 'no list of'} numbers, and others have {lengths[name] or 'one'}",
                        where=f"group {group.id}",
                        remedy="Give every completion as many.",
                    )


def with_other_prompts(groups: Sequence[TokenizedGroup]) -> list[TokenizedGroup]:
    """The groups with a prompt of another group beside each completion, for KTO's estimate of the KL.

    It is planned over the whole data, not over a batch: so it is the same in any order, cut or number of processes.

    Raises:
        DataError: more than half of the completions answer the same prompt.
    """
    prompts = [group.prompt_ids for group in groups for _ in group.completion_ids]
    partners = iter(mismatched_prompts(prompts))
    return [
        replace(group, other_prompts=tuple(prompts[next(partners)] for _ in group.completion_ids)) for group in groups
    ]


def mismatched_groups(group: TokenizedGroup, max_length: int) -> list[TokenizedGroup]:
    """Each completion of a group after the prompt of another, cut at the end where that is longer than its own."""
    return [
        TokenizedGroup(id=group.id, prompt_ids=prompt, completion_ids=(ids[: max_length - len(prompt)],), relations=())
        for prompt, ids in zip(group.other_prompts, group.completion_ids, strict=True)
    ]
