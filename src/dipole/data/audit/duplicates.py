"""What is there more than once: prompts and whole groups that are equal or nearly so, within and across splits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

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
    """Takes groups one by one; ``findings`` says which are nearly the same.

    Args:
        shared_prompts: training and evaluation may have prompts in common, so that near ones aren't looked for.
    """

    def __init__(self, *, shared_prompts: bool = False) -> None:
        self._shared = shared_prompts
        self._prompts, self._wholes = Signatures(), Signatures(keep=KEEP)
        self._seen: set[tuple[int, bool]] = set()
        self._keys: list[int] = []
        self._owner: list[tuple[str, str, bool]] = []
        self._groups: list[str] = []

    def add(self, group: Group) -> None:
        """Takes a group of the file."""
        self._add_prompt(group, is_held_out(group.split))
        self._wholes.add(group.prompt, *(completion.text for completion in group.completions))
        self._groups.append(group.id)

    def add_held_out(self, group: Group) -> None:
        """Takes a group that is evaluated on."""
        self._add_prompt(group, True)

    def _add_prompt(self, group: Group, held_out: bool) -> None:
        """Equal prompts have one signature for each side: that they are equal is said elsewhere."""
        key = text_key(group.prompt)
        if (key, held_out) not in self._seen:
            self._seen.add((key, held_out))
            self._owner.append((group.id, head(group.prompt), held_out))
            self._keys.append(key)
            self._prompts.add(group.prompt)

    def findings(self) -> Iterator[Finding]:
        """Near-duplicate prompts and groups, and prompts of the evaluation data that are nearly in training."""
        held_out = np.array([owner[2] for owner in self._owner], dtype=bool)
        pairs = close_pairs(self._prompts.matrix())
        within = pairs[held_out[pairs[:, 0]] == held_out[pairs[:, 1]]]
        names = [f"{id}: {quoted(beginning)}" for id, beginning, _ in self._owner]
        yield _near("prompts", within, names, len(names))
        yield _near("groups", close_pairs(self._wholes.matrix()), self._groups, len(self._groups))
        if held_out.any() and not held_out.all() and not self._shared:
            keys = np.array(self._keys)
            different = keys[pairs[:, 0]] != keys[pairs[:, 1]]  # equal ones are an error, and said there
            yield self._leaks(pairs[different & (held_out[pairs[:, 0]] != held_out[pairs[:, 1]])], held_out)

    def _leaks(self, across: Ints, held_out: Ints) -> Finding:
        trained = np.where(held_out[across[:, 0]], across[:, 1], across[:, 0])
        evaluated = np.where(held_out[across[:, 0]], across[:, 0], across[:, 1])
        different, places = np.unique(evaluated, return_index=True)
        total = int(held_out.sum())
        return Finding(
            name="near_leak",
            severity=severity(len(different) / total, LEAK_LIMITS),
            message=f"{len(different)} of {total} evaluation prompts are nearly the same as one in the training data",
            value=len(different) / total,
            interval=wilson_interval(len(different), total),
            examples=first(
                f"{self._owner[evaluated[place]][0]}: {quoted(self._owner[evaluated[place]][1])}, in training as "
                f"{self._owner[trained[place]][0]}: {quoted(self._owner[trained[place]][1])}"
                for place in places.tolist()
            ),
            remedy="Split anew with near-duplicates together (--fix FILE --eval_share 0.1), or leave them out.",
        )


def _near(what: str, pairs: Ints, names: Sequence[str], total: int) -> Finding:
    """How many are nearly the same as an earlier one."""
    members = clusters(total, pairs)
    repeated = np.flatnonzero(members != np.arange(total))
    value = len(repeated) / total if total else 0.0
    interval = wilson_interval(len(repeated), total)
    return Finding(
        name=f"near_duplicate_{what}",
        severity=severity(interval[0], NEAR_LIMITS),
        message=f"{len(repeated)} of {total} different {what} are nearly the same as an earlier one"
        if what == "prompts"
        else f"{len(repeated)} of {total} {what}, prompt and answers, are nearly the same as an earlier one",
        value=value,
        interval=interval,
        examples=first(f"{names[number]}, much like {names[members[number]]}" for number in repeated.tolist()),
        remedy="Keep one of each, or they weigh as much as they are repeated; keep near-duplicates in one split.",
    )
