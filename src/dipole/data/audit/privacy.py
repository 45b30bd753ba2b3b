"""Personal data and secrets in the texts, counted and never shown."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator

from dipole.data.audit.finding import NUM_EXAMPLES, Finding, severity
from dipole.data.audit.intervals import wilson_interval
from dipole.data.audit.personal import KINDS, find
from dipole.group import Group, plain

SECRETS = ("private key", "API key")

_REPORTED = (
    (
        "secrets",
        SECRETS,
        (0.0, 0.0),
        "Take them out and revoke them: a model can be made to say what it was trained on.",
    ),
    (
        "personal_data",
        tuple(kind.name for kind in KINDS if kind.name not in SECRETS),
        (0.001, 0.05),
        "Replace them, unless they are made up: a model can be made to say what it was trained on.",
    ),
)
"""Name of the finding, kinds, limits of the share of groups, remedy."""


class PersonalScan:
    """Takes groups one by one; ``findings`` says what personal data and secrets are in them."""

    def __init__(self) -> None:
        self._groups = 0
        self._counts: Counter[str] = Counter()
        self._examples: dict[str, list[str]] = defaultdict(list)

    def add(self, group: Group) -> None:
        """Takes one group."""
        self._groups += 1
        kinds = set()
        for text in (group.prompt, *(completion.text for completion in group.completions)):
            for kind, found in find(plain(text)):
                kinds.add(kind)
                if len(self._examples[kind]) < NUM_EXAMPLES:
                    self._examples[kind].append(f"{group.id}: {kind} of {len(found)} characters")
        self._counts.update(kinds)

    def findings(self) -> Iterator[Finding]:
        """One finding for personal data and one for secrets, never with what was found."""
        for name, kinds, limits, remedy in _REPORTED:
            counts = {kind: self._counts[kind] for kind in kinds if self._counts[kind]}
            if not counts:
                continue
            parts = ", ".join(f"{kind} in {count}" for kind, count in counts.items())
            most = max(counts.values())
            yield Finding(
                name=name,
                severity=severity(most / self._groups, limits),
                message=f"{name.replace('_', ' ')} in the texts: {parts} of {self._groups} groups",
                value={kind: float(count) for kind, count in counts.items()},
                interval=wilson_interval(most, self._groups) if len(counts) == 1 else None,
                examples=tuple(example for kind in counts for example in self._examples[kind])[:NUM_EXAMPLES],
                remedy=remedy,
            )
