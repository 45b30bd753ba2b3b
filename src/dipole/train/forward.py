"""From a packed batch to the loss of every relation: token values by policy and reference, then the objective."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor

from dipole.data.batch import PackedBatch, Pairs, micro_batches, pack
from dipole.data.tokenize import TokenizedGroup
from dipole.objective import Completions, Outcome, batch_sums, evaluate, settle
from dipole.objective.constraints import ascend, constrain
from dipole.policy.head import HeadInput, chunked_logprobs
from dipole.policy.logprobs import sum_by_completion
from dipole.train.inputs import MISMATCHED, MULTIPLIER, Tokens, completions_of, mismatched_groups, relation_index
from dipole.train.setup import Run


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated:
    """What the objective says of relations.

    Args:
        completions: what it was given.
        outcome: the loss of each relation, with graph.
        penalty: scalar with graph, what constraints add to the mean loss; 0 without any.
        constraints: their values and multipliers, for the log.
        state: the moving state after this step, if these relations are all of it.
    """

    completions: Completions
    outcome: Outcome
    penalty: Tensor
    constraints: Mapping[str, Tensor]
    state: Mapping[str, Tensor]


def policy_tokens(run: Run, batch: PackedBatch, reference: HeadInput | None) -> dict[str, Tensor]:
    """What the policy says of every completion token, with graph."""
    byproducts = [name for name in ("log_sum_sq_probs",) if name in run.loss.inputs]
    with run.accelerator.autocast():
        values = run.policy(batch, byproducts, reference)
    return {"logps": values.logps, **values.byproducts}


def reference_distributions(run: Run, batch: PackedBatch) -> HeadInput | None:
    """The reference's distributions, for losses that compare those."""
    if "seq_kl" not in run.loss.inputs or run.reference is None:
        return None
    with run.accelerator.autocast():
        return run.reference.head_input(batch)


def token_values(run: Run, batch: PackedBatch) -> dict[str, Tensor]:
    """Everything that the loss needs of every completion token; what is the policy's has its graph."""
    head = reference_distributions(run, batch)
    tokens = policy_tokens(run, batch, head)
    if head is not None:
        tokens["ref_logps"] = chunked_logprobs(head, batch.target)[0]
    elif run.reference is not None:
        with run.accelerator.autocast():
            tokens["ref_logps"] = run.reference.token_logps(batch)
    return tokens


def parts_of(run: Run, groups: Sequence[TokenizedGroup]) -> list[list[TokenizedGroup]]:
    """Groups cut into micro-batches: within the token budget, and so that every process has work."""
    return parts_for(groups, run.config.max_tokens_per_microbatch, run.ranks.count)


def parts_for(groups: Sequence[TokenizedGroup], max_tokens: int, processes: int) -> list[list[TokenizedGroup]]:
    """The same for a number of processes."""
    tokens = sum(group.num_tokens for group in groups)
    return micro_batches(groups, min(max_tokens, -(-tokens // processes)))


@torch.no_grad()
def joined_values(run: Run, parts: Sequence[Sequence[TokenizedGroup]]) -> dict[str, Tensor]:
    """The token values of several micro-batches, one after the other, without graph.

    Each process computes its own parts, and all of them get all.
    """
    lengths = [sum(len(ids) for group in part for ids in group.completion_ids) for part in parts]
    starts = list(accumulate(lengths, initial=0))
    joined: dict[str, Tensor] = {}
    for number, counts in run.ranks.turns(len(parts)):
        batch = pack(parts[number]).to(run.accelerator.device)
        with run.ranks.in_lockstep():
            found = token_values(run, batch)
        for name, values in found.items() if counts else ():
            whole = joined.setdefault(name, values.new_zeros(starts[-1]))
            whole[starts[number] : starts[number + 1]] = values
    return run.ranks.summed(joined)


def evaluate_batch(
    run: Run, groups: Sequence[TokenizedGroup], batch: PackedBatch, tokens: Tokens, *, held_out: bool = False
) -> Evaluated:
    """The objective of a batch. Where relations depend on each other, it has to be all of an optimizer step.

    Args:
        run: its loss, constraints and moving state, which stays as it is.
        groups: that the batch was packed from.
        batch: with its relations.
        tokens: of its completion tokens.
        held_out: nothing is learnt from it, a running mean neither.
    """
    mismatched = mismatched_logratios(run, groups) if MISMATCHED in run.loss.inputs else None
    completions = completions_of(run.loss, batch, tokens, mismatched)
    relations = relation_index(batch.relations)
    sums = batch_sums(run.loss, run.hyper, completions, relations)
    if held_out and run.loss.coupling is not None and run.loss.coupling.learns_from_batch:
        sums = {name: torch.zeros_like(value) for name, value in sums.items()}
    constants, state = settle(run.loss, run.hyper, sums, run.state)
    outcome = evaluate(run.loss, run.hyper, completions, relations, constants)
    penalty, logged = outcome.losses.new_zeros(()), {}
    if run.constraints and isinstance(batch.relations, Pairs):
        multipliers = {item.name: run.state.get(MULTIPLIER + item.name) for item in run.constraints}
        known = {name: value for name, value in multipliers.items() if value is not None}
        found = constrain(
            run.constraints,
            known,
            run.policy.model,
            completions.logps,
            completions.ref_logps,
            batch.relations.chosen,
            batch.relations.rejected,
        )
        penalty, logged = found.total, dict(found.logged)
        risen = ascend(run.constraints, known, found.costs)
        state = {**state, **{MULTIPLIER + name: value for name, value in risen.items()}}
    return Evaluated(completions=completions, outcome=outcome, penalty=penalty, constraints=logged, state=state)


@torch.no_grad()
def mismatched_logratios(run: Run, groups: Sequence[TokenizedGroup]) -> Tensor:
    """(C,) log-ratios of the groups' completions after prompts of other groups."""
    assert run.config.max_length is not None
    assert run.reference is not None
    alone = [item for group in groups for item in mismatched_groups(group, run.config.max_length)]
    logps, ref_logps = completion_logps(run, alone)
    assert ref_logps is not None
    return logps - ref_logps


@torch.no_grad()
def completion_logps(run: Run, groups: Sequence[TokenizedGroup]) -> tuple[Tensor, Tensor | None]:
    """(C,) log-probabilities of groups of one completion each, in their order, under policy and reference."""
    numbered = [replace(group, id=str(number)) for number, group in enumerate(groups)]
    parts = parts_of(run, numbered)
    tokens = joined_values(run, parts)
    batch = pack([group for part in parts for group in part]).to(run.accelerator.device)
    back = torch.tensor([int(id) for id in batch.group_ids], device=batch.owner.device).argsort()
    logps = sum_by_completion(tokens["logps"], batch)[back]
    return logps, sum_by_completion(tokens["ref_logps"], batch)[back] if "ref_logps" in tokens else None
