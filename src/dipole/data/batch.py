"""From tokenized groups to packed batches: one flat row, every prompt once, every completion once, no padding.

Shape letters: N tokens of the row · P prompts · C completions · T completion tokens · R relations.

The order of the data is a pure function of (seed, epoch, position), so a resumed run, or one with another number of
processes or another token budget, sees the same groups in the same optimizer steps.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import accumulate
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from dipole.data.reduce import ListRelation, PairRelation, UnaryRelation
from dipole.data.tokenize import TokenizedGroup

PromptAndCompletion = tuple[tuple[int, ...], tuple[int, ...]]
"""Token ids of a prompt and of a completion."""


class _OnDevice:
    """Moves every tensor of a dataclass, and of the dataclasses inside it, to a device."""

    def to(self, device: torch.device | str) -> Self:
        """The same on ``device``; ``self`` unchanged."""
        moved: dict[str, Any] = {}
        for item in fields(self):  # type: ignore[arg-type]
            value = getattr(self, item.name)
            if isinstance(value, dict):
                moved[item.name] = {name: tensor.to(device) for name, tensor in value.items()}
            else:
                moved[item.name] = value.to(device) if isinstance(value, Tensor | _OnDevice) else value
        return type(self)(**moved)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs(_OnDevice):
    """R comparisons of completions: ``prob`` is P(chosen ≻ rejected), at least ½."""

    chosen: Tensor
    rejected: Tensor
    prob: Tensor
    weight: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Unaries(_OnDevice):
    """R single completions, each desirable or not."""

    completion: Tensor
    desirable: Tensor
    weight: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Lists(_OnDevice):
    """R rankings, best first: ``order`` (R, K) of completions, −1 where a ranking is shorter than K."""

    order: Tensor
    weight: Tensor


Relations = Pairs | Unaries | Lists


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedBatch(_OnDevice):
    """One micro-batch as one flat row.

    The row holds each different prompt once, then the completions. A completion's last token is a target but never an
    input, since nothing is predicted from it; so it is not in the row.

    Args:
        input_ids: (N,) tokens of the row.
        position_ids: (N,) positions; a completion's go on from its prompt's end.
        prompt_start, prompt_length: (P,) where each prompt lies in the row.
        completion_start, completion_length: (C,) where each completion's inputs lie; the length may be 0.
        prompt_of: (C,) the prompt of each completion.
        predictor: (T,) the place in the row whose hidden state predicts each completion token.
        target: (T,) the completion tokens.
        owner: (T,) the completion of each completion token.
        num_targets: (C,) completion tokens a completion, its end-of-sequence token included.
        scores: (C,) a score a completion, NaN where the data has none.
        facts: (C,) or (C, M) further facts of completions, by name.
        relations: what the loss consumes.
        group_ids: which groups these are.
        sequences: (C,) the same tokens on the host, for whoever looks completions up.
    """

    input_ids: Tensor
    position_ids: Tensor
    prompt_start: Tensor
    prompt_length: Tensor
    completion_start: Tensor
    completion_length: Tensor
    prompt_of: Tensor
    predictor: Tensor
    target: Tensor
    owner: Tensor
    num_targets: Tensor
    scores: Tensor
    facts: dict[str, Tensor]
    relations: Relations
    group_ids: tuple[str, ...]
    sequences: tuple[PromptAndCompletion, ...]

    @property
    def num_tokens(self) -> int:
        """Useful tokens: prompts once, and every completion token."""
        return int(self.prompt_length.sum()) + self.target.numel()

    @property
    def num_completions(self) -> int:
        """C."""
        return self.num_targets.numel()


def pack(groups: Sequence[TokenizedGroup]) -> PackedBatch:
    """Packs groups into one row; groups with the same prompt share it.

    Raises:
        ValueError: no groups, or relations of different kinds.
    """
    if not groups:
        raise ValueError("a batch needs at least one group")
    prompts: dict[tuple[int, ...], int] = {}
    for group in groups:
        prompts.setdefault(group.prompt_ids, len(prompts))
    completions = [(prompts[group.prompt_ids], ids) for group in groups for ids in group.completion_ids]
    prompt_length = [len(ids) for ids in prompts]
    input_length = [len(ids) - 1 for _, ids in completions]
    starts = list(accumulate([*prompt_length, *input_length], initial=0))
    prompt_start, completion_start = starts[: len(prompts)], starts[len(prompts) : -1]

    input_ids = [token for ids in prompts for token in ids]
    position_ids = [position for length in prompt_length for position in range(length)]
    predictor: list[int] = []
    for (prompt, ids), start in zip(completions, completion_start, strict=True):
        input_ids += ids[:-1]
        position_ids += range(prompt_length[prompt], prompt_length[prompt] + len(ids) - 1)
        predictor.append(prompt_start[prompt] + prompt_length[prompt] - 1)
        predictor += range(start, start + len(ids) - 1)
    num_targets = torch.tensor([len(ids) for _, ids in completions])
    return PackedBatch(
        input_ids=torch.tensor(input_ids),
        position_ids=torch.tensor(position_ids),
        prompt_start=torch.tensor(prompt_start),
        prompt_length=torch.tensor(prompt_length),
        completion_start=torch.tensor(completion_start),
        completion_length=torch.tensor(input_length),
        prompt_of=torch.tensor([prompt for prompt, _ in completions]),
        predictor=torch.tensor(predictor),
        target=torch.tensor([token for _, ids in completions for token in ids]),
        owner=torch.repeat_interleave(torch.arange(len(completions)), num_targets),
        num_targets=num_targets,
        scores=torch.tensor([score for group in groups for score in _scores(group)]),
        facts=_facts(groups),
        relations=_relations(groups),
        group_ids=tuple(group.id for group in groups),
        sequences=tuple((group.prompt_ids, ids) for group in groups for ids in group.completion_ids),
    )


def _scores(group: TokenizedGroup) -> tuple[float, ...]:
    return group.scores or (float("nan"),) * len(group.completion_ids)


def _facts(groups: Sequence[TokenizedGroup]) -> dict[str, Tensor]:
    rows = {name: [value for group in groups for value in group.facts[name]] for name in groups[0].facts}
    return {name: torch.tensor(values, dtype=torch.float32) for name, values in rows.items()}


def _relations(groups: Sequence[TokenizedGroup]) -> Relations:
    """All relations with group-local indices moved to the batch's completions."""
    offsets = accumulate((len(group.completion_ids) for group in groups), initial=0)
    found = [(offset, relation) for group, offset in zip(groups, offsets, strict=False) for relation in group.relations]
    weight = torch.tensor([relation.weight for _, relation in found], dtype=torch.float32)
    pairs = [(offset, relation) for offset, relation in found if isinstance(relation, PairRelation)]
    unaries = [(offset, relation) for offset, relation in found if isinstance(relation, UnaryRelation)]
    lists = [(offset, relation) for offset, relation in found if isinstance(relation, ListRelation)]
    if sum(map(bool, (pairs, unaries, lists))) > 1:
        raise ValueError("a batch holds relations of one kind, but these groups have several")
    if unaries:
        return Unaries(
            completion=torch.tensor([offset + relation.i for offset, relation in unaries]),
            desirable=torch.tensor([relation.desirable for _, relation in unaries]),
            weight=weight,
        )
    if lists:
        longest = max(len(relation.order) for _, relation in lists)
        rows = [[offset + index for index in relation.order] for offset, relation in lists]
        return Lists(order=torch.tensor([row + [-1] * (longest - len(row)) for row in rows]), weight=weight)
    return Pairs(
        chosen=torch.tensor([offset + relation.i for offset, relation in pairs], dtype=torch.int64),
        rejected=torch.tensor([offset + relation.j for offset, relation in pairs], dtype=torch.int64),
        prob=torch.tensor([relation.p for _, relation in pairs], dtype=torch.float32),
        weight=weight,
    )


def total_weight(groups: Sequence[TokenizedGroup]) -> float:
    """The sum of all relations' weights: what an optimizer step's loss is divided by."""
    return sum(relation.weight for group in groups for relation in group.relations)


def groups_fingerprint(groups: Sequence[TokenizedGroup]) -> str:
    """A hash of all tokens and relations: what makes two sets of groups the same to training."""
    digest = hashlib.sha256()
    for group in groups:
        known = (group.prompt_ids, group.completion_ids, group.relations, group.scores, *sorted(group.facts.items()))
        digest.update(repr(known).encode())
    return digest.hexdigest()[:32]


def micro_batches(groups: Sequence[TokenizedGroup], max_tokens: int) -> list[list[TokenizedGroup]]:
    """Cuts the groups of one optimizer step into parts of at most ``max_tokens`` packed tokens.

    Groups of one prompt stay side by side and then groups of similar length, which changes the cost of the step and not
    its gradient. A group that alone exceeds the budget is a part of its own: its relations need all its completions.
    """
    parts: list[list[TokenizedGroup]] = []
    filled, prompt = 0, None
    for group in sorted(groups, key=lambda group: (len(group.prompt_ids), group.prompt_ids, group.num_tokens)):
        cost = group.num_tokens - (len(group.prompt_ids) if group.prompt_ids == prompt else 0)
        if not parts or filled + cost > max_tokens:
            parts.append([])
            filled, cost = 0, group.num_tokens
        parts[-1].append(group)
        filled, prompt = filled + cost, group.prompt_ids
    return parts


@dataclass(frozen=True, slots=True)
class Order:
    """The order in which groups are seen: epochs of shuffled groups, cut into optimizer steps.

    An epoch sees every group once; its last step is smaller when ``global_batch_size`` doesn't divide the number.

    Args:
        num_groups: groups in the data.
        global_batch_size: groups an optimizer step, over all processes.
        seed: shuffles.
    """

    num_groups: int
    global_batch_size: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in one pass over the data."""
        return -(-self.num_groups // self.global_batch_size)

    def step(self, number: int) -> list[int]:
        """Indices of the groups of optimizer step ``number`` (from 0)."""
        epoch, within = divmod(number, self.steps_per_epoch)
        shuffled = np.random.default_rng((self.seed, epoch)).permutation(self.num_groups)
        start = within * self.global_batch_size
        return [int(index) for index in shuffled[start : start + self.global_batch_size]]


def in_chunks(groups: Sequence[TokenizedGroup], max_tokens: int) -> Iterator[PackedBatch]:
    """Packs all groups into batches of at most ``max_tokens``: for passes without a gradient, where order is free."""
    for part in micro_batches(groups, max_tokens):
        yield pack(part)
