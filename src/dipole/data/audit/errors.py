"""Errors: what training stops at. Looked for in every group, whatever else is audited."""

from __future__ import annotations

from array import array
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dipole.data.audit.columns import text_key
from dipole.data.audit.finding import NUM_EXAMPLES, Finding, head, quoted
from dipole.data.files import is_held_out
from dipole.data.media import REMEDIES as MEDIA_REMEDIES
from dipole.data.media import media_faults
from dipole.data.validate import REMEDIES, Fault, faults, plainly_sound
from dipole.group import Group


class ErrorCheck:
    """Takes groups one by one; ``findings`` are the errors in all of them.

    Args:
        allow_shared_prompts: training and evaluation may have prompts in common; then only a prompt together with one
            of its completions is a leak.
        folder: of the data file, which media have to lie in.
    """

    def __init__(self, *, allow_shared_prompts: bool = False, folder: Path | None = None) -> None:
        self._shared = allow_shared_prompts
        self._folder = folder
        self._groups = 0
        self._counts: Counter[str] = Counter()
        self._examples: dict[str, list[str]] = defaultdict(list)
        self._texts = 0
        self._first: dict[bool, str] = {}
        self._trained = array("q")
        self._held_out: list[tuple[str, str, list[int]]] = []

    def add(self, group: Group) -> None:
        """Takes a group of the file."""
        self._groups += 1
        if not plainly_sound(group):
            self._note(group, [*faults(group), *media_faults(group, self._folder)])
        is_text = isinstance(group.prompt, str)
        self._texts += is_text
        if is_text not in self._first:
            self._first[is_text] = group.id
        if is_held_out(group.split):
            self.add_held_out(group)
        else:
            self._trained.extend(self._keys(group))

    def add_held_out(self, group: Group) -> None:
        """Takes a group that is evaluated on."""
        self._held_out.append((group.id, head(group.prompt), self._keys(group)))

    def findings(self) -> Iterator[Finding]:
        """One error a kind."""
        remedies = REMEDIES | MEDIA_REMEDIES
        for name, count in self._counts.items():
            yield Finding(
                name=name,
                severity="severe",
                message=f"{name.replace('_', ' ')} in {count} of {self._groups} groups",
                value=count,
                examples=tuple(self._examples[name]),
                remedy=remedies[name],
            )
        yield from self._mixed_forms()
        yield from self._leaks()

    def _note(self, group: Group, found: list[Fault]) -> None:
        self._counts.update({fault.name for fault in found})
        for fault in found:
            if len(self._examples[fault.name]) < NUM_EXAMPLES:
                self._examples[fault.name].append(f"{group.id}: {fault.detail}")

    def _keys(self, group: Group) -> list[int]:
        prompt = text_key(group.prompt)
        if not self._shared:
            return [prompt]
        return [hash((prompt, text_key(completion.text))) for completion in group.completions]

    def _mixed_forms(self) -> Iterator[Finding]:
        if len(self._first) == 2:
            texts, chats = self._texts, self._groups - self._texts
            yield Finding(
                name="mixed_forms",
                severity="severe",
                message=f"{texts} prompts are plain text and {chats} are chats",
                value=min(texts, chats),
                examples=(f"{self._first[True]}: text", f"{self._first[False]}: chat"),
                remedy="A model would learn two formats at once; write all prompts in one form.",
            )

    def _leaks(self) -> Iterator[Finding]:
        trained = np.unique(np.frombuffer(self._trained, dtype=np.int64)) if self._trained else np.empty(0, np.int64)
        keys = np.array([key for _, _, keys in self._held_out for key in keys], dtype=np.int64)
        leaked_keys = set(keys[np.isin(keys, trained)].tolist())
        leaked = [(id, beginning) for id, beginning, keys in self._held_out if not leaked_keys.isdisjoint(keys)]
        if leaked:
            what = (
                "answers of evaluation groups, with their prompts," if self._shared else "prompts of evaluation groups"
            )
            yield Finding(
                name="leak",
                severity="severe",
                message=f"{what} are in the training data, in {len(leaked)} of {len(self._held_out)}",
                value=len(leaked),
                examples=tuple(f"{id}: {quoted(beginning)}" for id, beginning in leaked[:NUM_EXAMPLES]),
                remedy="Take them out of the training data, or evaluation measures what was learned by heart.",
            )
