"""What is there more than once: prompts and whole groups that are equal or nearly so, within and across splits."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from dipole.data.audit.columns import Columns, text_key
from dipole.data.audit.finding import Finding, first, head, quoted, severity
from dipole.data.audit.intervals import Ints, wilson_interval
from dipole.data.files import is_held_out
from dipole.data.similar import Signatures, close_pairs, clusters
from dipole.group import Group

NEAR_LIMITS = (0.10, 0.40)
"""Share of prompts, or of groups, that are nearly the same as an earlier one."""

KEEP = 4
"""One in how many shingles of a whole group is looked at; a prompt with its answers is long."""

LEAK_LIMITS = (0.0, 0.05)
"""Share of evaluation prompts that are nearly the same as one in training."""


def check_repeated_prompts(columns: Columns) -> Iterator[Finding]:
    """Prompts that are equal but for their form."""
    if not len(columns.prompt):
        return
    _, first_places = np.unique(columns.prompt, return_index=True)
    repeated = np.setdiff1d(np.arange(len(columns.prompt)), first_places)
    yield Finding(
        name="duplicate_prompts",
        severity="info",
        message=f"{len(repeated)} of {len(columns.prompt)} prompts were there before",
        value=len(repeated) / len(columns.prompt),
        examples=first(columns.example(number) for number in repeated.tolist()),
    )


class NearDuplicates:
    """Takes groups one by one, in the order in which the columns do; ``findings`` says which are nearly the same.

    Args:
        shared_prompts: training and evaluation may have prompts in common, so that near ones aren't looked for.
    """

    def __init__(self, *, shared_prompts: bool = False) -> None:
        self._shared = shared_prompts
        self._prompts, self._wholes = Signatures(), Signatures(keep=KEEP)
        self._seen: dict[bool, set[int]] = {False: set(), True: set()}
        self._keys, self._owner, self._held_out = array("q"), array("q"), array("b")
        self._apart: list[tuple[str, str]] = []

    def add(self, group: Group) -> None:
        """Takes a group of the file."""
        self._add_prompt(group, len(self._wholes), held_out=is_held_out(group.split))
        self._wholes.add(group.prompt, *(completion.text for completion in group.completions))

    def add_held_out(self, group: Group) -> None:
        """Takes a group of another file, which is evaluated on."""
        if self._add_prompt(group, -1 - len(self._apart), held_out=True):
            self._apart.append((group.id, head(group.prompt)))

    def _add_prompt(self, group: Group, owner: int, *, held_out: bool) -> bool:
        """Whether the prompt is new. Equal ones have one signature a side: that they are equal is said elsewhere."""
        key = text_key(group.prompt)
        if key in self._seen[held_out]:
            return False
        self._seen[held_out].add(key)
        self._keys.append(key)
        self._owner.append(owner)
        self._held_out.append(held_out)
        self._prompts.add(group.prompt)
        return True

    def findings(self, columns: Columns) -> Iterator[Finding]:
        """Near-duplicate prompts and groups, and prompts of the evaluation data that are nearly in training."""

        def named(prompt: int) -> str:
            owner = self._owner[prompt]
            if owner >= 0:
                return columns.example(owner)
            id, beginning = self._apart[-1 - owner]
            return f"{id}: {quoted(beginning)}"

        held_out, keys = np.array(self._held_out, dtype=bool), np.array(self._keys, dtype=np.int64)
        pairs = close_pairs(self._prompts.matrix())
        crossing = held_out[pairs[:, 0]] != held_out[pairs[:, 1]]
        yield _near("prompts", "different prompts", pairs[~crossing], len(keys), named)
        wholes = close_pairs(self._wholes.matrix())
        yield _near("groups", "groups, prompt and answers,", wholes, len(self._wholes), lambda n: columns.ids[n])
        if held_out.any() and not held_out.all() and not self._shared:
            different = keys[pairs[:, 0]] != keys[pairs[:, 1]]  # equal ones are an error, and said there
            yield _near_leak(pairs[different & crossing], held_out, named)


def _near_leak(across: Ints, held_out: Any, named: Callable[[int], str]) -> Finding:
    """Evaluation prompts that are near to a training prompt.

    Args:
        across: (n, 2) pairs of prompts, one of each side.
        held_out: (prompts) which are evaluated on.
        named: a prompt as an example shows it.
    """
    first_held_out = held_out[across[:, 0]]
    trained = np.where(first_held_out, across[:, 1], across[:, 0])
    evaluated, places = np.unique(np.where(first_held_out, across[:, 0], across[:, 1]), return_index=True)
    total = int(held_out.sum())
    return Finding(
        name="near_leak",
        severity=severity(len(evaluated) / total, LEAK_LIMITS),
        message=f"{len(evaluated)} of {total} evaluation prompts are nearly the same as one in the training data",
        value=len(evaluated) / total,
        interval=wilson_interval(len(evaluated), total),
        examples=first(
            f"{named(prompt)}, in training as {named(int(trained[place]))}"
            for prompt, place in zip(evaluated.tolist(), places.tolist(), strict=True)
        ),
        remedy="Split anew with near-duplicates together (--fix FILE --eval_share 0.1), or leave them out.",
    )


def _near(name: str, what: str, pairs: Ints, total: int, named: Callable[[int], str]) -> Finding:
    """How many are nearly the same as an earlier one."""
    members = clusters(total, pairs)
    repeated = np.flatnonzero(members != np.arange(total))
    interval = wilson_interval(len(repeated), total)
    return Finding(
        name=f"near_duplicate_{name}",
        severity=severity(interval[0], NEAR_LIMITS),
        message=f"{len(repeated)} of {total} {what} are nearly the same as an earlier one",
        value=len(repeated) / total if total else 0.0,
        interval=interval,
        examples=first(f"{named(number)}, much like {named(int(members[number]))}" for number in repeated.tolist()),
        remedy="Keep one of each, or they weigh as much as they are repeated; keep near-duplicates in one split.",
    )
