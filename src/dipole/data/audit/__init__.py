"""Knowing the data before training on it: errors that stop training, and findings that should worry.

Groups go by once (``columns``, and what needs every text: ``errors``, ``duplicates``, ``privacy``, ``tokens``); the
checks then look at what was kept. Each module is one kind of finding, each check a function from columns to findings.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dipole.data.audit.columns import Collector, Columns
from dipole.data.audit.consistency import check_contradictions
from dipole.data.audit.coverage import check_sizes, check_ties
from dipole.data.audit.duplicates import check_repeated_prompts
from dipole.data.audit.errors import ErrorCheck
from dipole.data.audit.finding import NUM_EXAMPLES, AuditReport, Bar, BarChart, Finding, Result, Severity
from dipole.data.audit.intervals import wilson_interval
from dipole.data.audit.shortcuts import check_length, check_repetition
from dipole.data.audit.space import Embed, Space
from dipole.data.files import is_held_out
from dipole.group import Group

if TYPE_CHECKING:
    from dipole.data.audit.tokens import TokenCheck

__all__ = [
    "NUM_EXAMPLES",
    "AuditReport",
    "Bar",
    "BarChart",
    "Depth",
    "Finding",
    "Severity",
    "audit",
    "wilson_interval",
]

Depth = Literal["errors", "cheap", "full"]

HELD_OUT_SAMPLE = 1_000
"""Evaluation groups whose texts are compared with the training data's."""


def audit(
    groups: Iterable[Group],
    *,
    eval_groups: Iterable[Group] | None = None,
    allow_shared_prompts: bool = False,
    depth: Depth = "cheap",
    folder: Path | None = None,
    embed: Embed | None = None,
    tokens: TokenCheck | None = None,
) -> AuditReport:
    """Checks preference data.

    Args:
        groups: the training data, looked at once, so that it may be a stream. Those of a held-out split among them
            (``files.is_held_out``) are evaluation data.
        eval_groups: evaluation data; looked at for leaks, and for how much of it the training data reaches.
        allow_shared_prompts: training and evaluation may have prompts in common, as where there is only one prompt;
            then only a prompt together with one of its completions is a leak.
        depth: ``"errors"`` alone; ``"cheap"`` adds what is counted as the groups go by; ``"full"`` adds
            near-duplicates, personal data, agreement, probes and topics.
        folder: of the data file, which images have to lie in.
        embed: texts to vectors, for topics and reach; without it they are told by TF-IDF.
        tokens: of a model, to be tried on the data.
    """
    errors = ErrorCheck(allow_shared_prompts=allow_shared_prompts, folder=folder)
    collected = Collector() if depth != "errors" else None
    more = _Full(embed, shared_prompts=allow_shared_prompts) if depth == "full" else None
    checks = [check for check in (errors, collected, more, tokens) if check is not None]
    for group in groups:
        for check in checks:
            check.add(group)
    for group in eval_groups or ():
        errors.add_held_out(group)
        if more:
            more.add_held_out(group)
    results: list[Result] = []
    if collected:
        columns = collected.columns()
        results += [*_cheap(columns), *(more.results(columns) if more else ())]
    found = [*errors.findings(), *(tokens.errors() if tokens else ())]
    results += tokens.results() if tokens else ()
    return AuditReport(errors=(), findings=()).with_results(errors=tuple(found), results=tuple(results))


def _cheap(columns: Columns) -> Iterator[Result]:
    yield from check_sizes(columns)
    yield from check_repeated_prompts(columns)
    yield from check_ties(columns)
    yield from check_contradictions(columns)
    yield from check_length(columns)
    yield from check_repetition(columns)


class _Full:
    """The checks that take time, and the libraries that they need, which are imported only when they are used."""

    def __init__(self, embed: Embed | None, *, shared_prompts: bool) -> None:
        from dipole.data.audit.duplicates import NearDuplicates
        from dipole.data.audit.privacy import PersonalScan

        self._near = NearDuplicates(shared_prompts=shared_prompts)
        self._personal = PersonalScan()
        self._held_out = Collector(HELD_OUT_SAMPLE)
        self._space = Space(embed)

    def add(self, group: Group) -> None:
        """Takes a group of the file."""
        self._near.add(group)
        self._personal.add(group)
        if is_held_out(group.split):
            self._held_out.add(group)

    def add_held_out(self, group: Group) -> None:
        """Takes a group that is evaluated on."""
        self._near.add_held_out(group)
        self._held_out.add(group)

    def results(self, columns: Columns) -> Iterator[Result]:
        """Findings and charts."""
        from dipole.data.audit.annotators import check_annotators
        from dipole.data.audit.balance import check_balance
        from dipole.data.audit.consistency import check_cycles
        from dipole.data.audit.coverage import check_languages, check_reach, check_topics, check_turns
        from dipole.data.audit.noise import check_noise
        from dipole.data.audit.probe import sampled_pairs, word_scores
        from dipole.data.audit.shortcuts import check_probes

        yield from check_turns(columns)
        yield from check_languages(columns)
        yield from check_topics(columns, self._space)
        yield from check_reach(columns, self._held_out.columns(), self._space)
        yield from self._near.findings(columns)
        yield from check_cycles(columns)
        yield from check_annotators(columns)
        yield from check_balance(columns)
        pairs = sampled_pairs(columns)
        words = word_scores(pairs)
        yield from check_probes(columns, pairs, words)
        yield from check_noise(columns, pairs, words)
        yield from self._personal.findings()
