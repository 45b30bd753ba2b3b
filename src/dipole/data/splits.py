"""Training and evaluation groups: by prompt, near-duplicates together, the same again when data is added.

A group that has a split keeps it, so a file that was split once and then grew is never shuffled: only what is new is
divided. Which of the new prompts are evaluated on follows from a hash of their text, not from their place in the file.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from dipole.data.files import is_held_out
from dipole.data.similar import Signatures, close_pairs, clusters
from dipole.data.validate import fold
from dipole.errors import ConfigError
from dipole.group import Group


class _Prompt(NamedTuple):
    """A different prompt: its hash, the category and the split of the first group that has one."""

    rank: bytes
    category: str | None
    split: str | None


def assign_splits(groups: Iterable[Group], *, eval_share: float = 0.1, seed: int = 0) -> list[Group]:
    """The groups, those without a split now ``"train"`` or ``"eval"``; see ``plan_splits``."""
    kept = list(groups)
    plan = plan_splits(kept, eval_share=eval_share, seed=seed)
    return [replace(group, split=plan[group.id]) for group in kept]


def plan_splits(groups: Iterable[Group], *, eval_share: float = 0.1, seed: int = 0) -> dict[str, str]:
    """The split of every group by its id.

    All groups of a prompt, and those of prompts that are nearly the same (``similar.THRESHOLD``), form a cluster and go
    together. A cluster in which a group has a split goes where its first such group is. Of the others, as many are
    evaluated on as make ``eval_share`` of the clusters of each category (``meta.category``), those with the smallest
    hashes; where no group has a split, adding data changes the number only, so that few clusters move.

    Args:
        groups: looked at once.
        eval_share: of the clusters of each category.
        seed: of the hash.

    Raises:
        ConfigError: the share isn't between 0 and 1.
    """
    if not 0 < eval_share < 1:
        raise ConfigError(f"{eval_share} is no share between 0 and 1", where="eval_share")
    prompts: list[_Prompt] = []
    number_of: dict[str, int] = {}
    signatures = Signatures()
    members: list[tuple[str, int, str | None]] = []
    for group in groups:
        folded = fold(group.prompt)
        number = number_of.setdefault(folded, len(prompts))
        split = None if group.split is None else "eval" if is_held_out(group.split) else "train"
        if number == len(prompts):
            category = group.meta.get("category")
            rank = hashlib.blake2b(f"{seed}\0{folded}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
            prompts.append(_Prompt(rank, category if isinstance(category, str) else None, split))
            signatures.add(group.prompt)
        elif prompts[number].split is None:
            prompts[number] = prompts[number]._replace(split=split)
        members.append((group.id, number, group.split))
    cluster = clusters(len(prompts), close_pairs(signatures.matrix())) if prompts else np.empty(0, np.int64)
    chosen = _choose(prompts, cluster.tolist(), eval_share)
    return {id: split if split is not None else chosen[int(cluster[number])] for id, number, split in members}


def _choose(prompts: list[_Prompt], cluster: list[int], eval_share: float) -> dict[int, str]:
    """The split of each cluster, named by its first prompt."""
    chosen: dict[int, str] = {}
    rank: dict[int, bytes] = {}
    for prompt, first in zip(prompts, cluster, strict=True):
        rank[first] = min(rank.get(first, prompt.rank), prompt.rank)
        if prompt.split is not None:
            chosen.setdefault(first, prompt.split)
    strata: dict[str | None, list[int]] = defaultdict(list)
    for first in dict.fromkeys(cluster):
        strata[prompts[first].category].append(first)
    for stratum in strata.values():
        free = sorted((first for first in stratum if first not in chosen), key=lambda first: rank[first])
        held_out = sum(chosen.get(first) == "eval" for first in stratum)
        wanted = max(0, round(eval_share * len(stratum)) - held_out)
        chosen |= {first: "eval" if place < wanted else "train" for place, first in enumerate(free)}
    return chosen
