"""Repairs that need no judgment of a person: what is wrong is left out, and every change is written down.

Nothing is invented: no text is edited, no label turned. What only a person can decide (noisy labels, an annotator who
stands apart, near-duplicates) is left as it is.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from dipole.data.audit.columns import text_key
from dipole.data.files import is_held_out, write_lines
from dipole.data.formats import save_groups
from dipole.data.media import media_faults
from dipole.data.native import group_to_json
from dipole.data.validate import faults, is_blank
from dipole.group import Group, with_completions


@dataclass(frozen=True, slots=True)
class Change:
    """One change: what was done to which group (or, for a row that can't be read, at which place), and why."""

    id: str
    action: str
    reason: str


class Repair:
    """Repairs groups one by one.

    Args:
        evaluated: keys of the prompts that are evaluated on, see ``evaluated_prompts``; training groups with one of
            them are left out. Empty where training and evaluation may share prompts.
        folder: of the data file, for media.
        note: receives every change.
    """

    def __init__(self, *, evaluated: frozenset[int], folder: Path | None, note: Callable[[Change], None]) -> None:
        self._evaluated, self._folder, self._note = evaluated, folder, note
        self._seen: dict[int, str] = {}

    def __call__(self, groups: Iterable[Group]) -> Iterator[Group]:
        """The groups that stay, repaired."""
        for group in groups:
            repaired = self._without_empty(group)
            reason = self._reason_to_drop(repaired)
            if reason is None:
                yield repaired
            else:
                self._note(Change(group.id, "group left out", reason))

    def _reason_to_drop(self, group: Group) -> str | None:
        found = [*faults(group), *media_faults(group, self._folder)]
        if found:
            return "; ".join(fault.detail for fault in found)
        if self._evaluated and not is_held_out(group.split) and text_key(group.prompt) in self._evaluated:
            return "its prompt is evaluated on"
        content = {name: value for name, value in group_to_json(group).items() if name != "id"}
        key = hash(json.dumps(content, sort_keys=True, default=str))
        first = self._seen.setdefault(key, group.id)
        return None if first == group.id else f"it is the same as {first}"

    def _without_empty(self, group: Group) -> Group:
        """Without empty answers and the judgments of them, if there is still something judged."""
        kept = [number for number, answer in enumerate(group.completions) if not is_blank(answer.text)]
        if len(kept) == len(group.completions):
            return group
        without = with_completions(group, kept)
        if not without.judgments:
            return group  # and it will be dropped for its fault
        self._note(Change(group.id, f"{len(group.completions) - len(kept)} completions left out", "they are empty"))
        return without


def evaluated_prompts(groups: Iterable[Group]) -> frozenset[int]:
    """Keys of the prompts of held-out groups."""
    return frozenset(text_key(group.prompt) for group in groups)


def write_fixed(groups: Iterable[Group], changes: list[Change], file: Path, splits: Mapping[str, str]) -> int:
    """Writes the groups that stay, and beside them what was changed: ``FILE.changes.jsonl``.

    Args:
        groups: repaired; consumed as they are written.
        changes: complete once the groups are consumed.
        file: ends in .jsonl or .jsonl.gz.
        splits: of groups that get one, by id.

    Returns:
        How many groups were written.
    """
    divided = (replace(group, split=splits.get(group.id, group.split)) for group in groups)
    count = save_groups(divided, file)
    write_lines((json.dumps(asdict(change)) for change in changes), changes_file(file))
    return count


def changes_file(file: Path) -> Path:
    """Where the changes of a fixed file are written."""
    return file.with_name(f"{file.name.removesuffix('.gz').removesuffix('.jsonl')}.changes.jsonl")
