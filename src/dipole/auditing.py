"""An audit of files: reads them, checks them, asks models where they are given, and repairs what needs no judgment."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from dipole.data.audit import NUM_EXAMPLES, AuditReport, Depth, Finding, audit
from dipole.data.audit.fix import Change, Repair, changes_file, evaluated_prompts, write_fixed
from dipole.data.files import folder_of, is_held_out
from dipole.data.formats import read_groups
from dipole.data.reduce import LabeledGroup, pair_labels
from dipole.data.splits import plan_splits
from dipole.data.tokenize import PromptFormat, TokenizeOptions, tokenize_groups
from dipole.errors import ConfigError, DataError
from dipole.group import Group
from dipole.progress import Progress, Silent

if TYPE_CHECKING:
    from dipole.data.audit.likelihood import ScoredPair
    from dipole.data.audit.tokens import TokenCheck

Preferences = str | Path | Sequence[Group]
"""A file, folder or hub dataset that ``load_groups`` reads, or groups that are loaded already."""

DEFAULT_LENGTH = 1024
PACKED_TOKENS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOptions:
    """What an audit asks of models.

    Args:
        model: a local folder or hub id, whose tokenizer and template are tried on the data.
        max_length: tokens of a prompt with one answer; by default what training takes.
        prompt_format: as in training.
        model_pairs: of how many pairs the model is asked for the likelihood; 0 asks for none and loads no weights.
        embeddings: a local folder of a sentence-embedding model, for topics and reach.
    """

    model: str | None = None
    max_length: int | None = None
    prompt_format: PromptFormat = "as_is"
    model_pairs: int = 64
    embeddings: str | None = None


@dataclass(slots=True)
class BadRows:
    """Rows that can't be read: how many, and the first few."""

    count: int = 0
    examples: list[str] = field(default_factory=list)

    def __call__(self, fault: DataError) -> None:
        """Takes one."""
        self.count += 1
        if len(self.examples) < NUM_EXAMPLES:
            self.examples.append(str(fault))

    def findings(self) -> Iterator[Finding]:
        """The error, if there is any."""
        if self.count:
            yield Finding(
                name="unreadable",
                severity="severe",
                message="1 row can't be read" if self.count == 1 else f"{self.count} rows can't be read",
                value=self.count,
                examples=tuple(self.examples),
                remedy="Repair or remove such rows.",
            )


def audit_data(
    data: Preferences,
    *,
    eval_data: Preferences | None = None,
    allow_shared_prompts: bool = False,
    depth: Depth = "full",
    models: ModelOptions | None = None,
    progress: Progress | None = None,
) -> AuditReport:
    """Checks preference data; a file is read once and never held whole.

    Args:
        data: the training data.
        eval_data: held-out data.
        allow_shared_prompts: training and held-out data may have prompts in common.
        depth: see ``data.audit.audit``.
        models: what to ask of models.
        progress: is told where the audit is.

    Raises:
        DataError: a file can't be read at all, or is damaged.
        ConfigError: a model can't be loaded.
    """
    models, progress = models or ModelOptions(), progress or Silent()
    tokens = _token_check(models, progress) if models.model else None
    embed = None
    if models.embeddings:
        from dipole.policy.embed import Embedder

        embed = Embedder(models.embeddings)
    bad, drawn = BadRows(), _Drawn(models.model_pairs if models.model else 0)
    groups = groups_of(data, bad)
    progress.stage("Checking the data")
    report = audit(
        _told(drawn(groups) if models.model else groups, progress),
        eval_groups=groups_of(eval_data, bad) if eval_data is not None else None,
        allow_shared_prompts=allow_shared_prompts,
        depth=depth,
        folder=folder_of(data) if isinstance(data, str | Path) else None,
        embed=embed,
        tokens=tokens,
    )
    if drawn.groups:
        from dipole.data.audit.likelihood import check_likelihood

        report = report.with_results(results=tuple(check_likelihood(_scored(drawn.groups, models, progress))))
    return AuditReport(errors=(*bad.findings(), *report.errors), findings=report.findings, charts=report.charts)


def fix_data(
    data: str | Path,
    file: Path,
    *,
    eval_data: Preferences | None = None,
    allow_shared_prompts: bool = False,
    eval_share: float | None = None,
) -> dict[str, int]:
    """Writes what can be trained on to a new file, and every change to ``FILE.changes.jsonl``.

    Args:
        data: what to read.
        file: what to write, .jsonl or .jsonl.gz.
        eval_data: held-out data; training groups with one of its prompts are left out.
        allow_shared_prompts: leave those in.
        eval_share: gives groups without a split one, see ``data.splits``.

    Returns:
        ``groups`` written and ``changes`` made.

    Raises:
        ConfigError: the file is one of those that are read.
        DataError: the data can't be read, or the file can't be written.
    """
    for read in (data, eval_data):
        if isinstance(read, str | Path):
            for place in (file, changes_file(file)):
                if Path(read).resolve() in (place.resolve(), place.resolve().parent):
                    raise ConfigError("this is what is read", where=f"--fix {file}", remedy="Name another file")
    changes: list[Change] = []
    unread = BadRows()
    evaluated: frozenset[int] = frozenset()
    if not allow_shared_prompts:
        evaluated = evaluated_prompts(group for group in groups_of(data, unread) if is_held_out(group.split))
        evaluated |= evaluated_prompts(groups_of(eval_data, unread) if eval_data is not None else ())

    def note_row(fault: DataError) -> None:
        changes.append(Change(fault.where or str(data), "row left out", fault.problem))

    def repaired(note: bool) -> Iterator[Group]:
        repair = Repair(evaluated=evaluated, folder=folder_of(data), note=changes.append if note else _forget)
        return repair(read_groups(data, on_bad_row=note_row if note else unread))

    splits = plan_splits(repaired(note=False), eval_share=eval_share) if eval_share is not None else {}
    return {"groups": write_fixed(repaired(note=True), changes, file, splits), "changes": len(changes)}


def groups_of(data: Preferences, bad: BadRows) -> Iterable[Group]:
    """Groups one by one, from wherever they are."""
    return read_groups(data, on_bad_row=bad) if isinstance(data, str | Path) else data


def _forget(change: Change) -> None:
    """For a first pass whose changes will be made again."""


def _told(groups: Iterable[Group], progress: Progress) -> Iterator[Group]:
    number = 0
    for number, group in enumerate(groups, start=1):
        yield group
        if number % 1000 == 0:
            progress.advance(1000)
    progress.advance(number % 1000)


class _Drawn:
    """Draws groups with a decided pair uniformly as they go by."""

    def __init__(self, count: int) -> None:
        self.groups: list[Group] = []
        self._count, self._seen, self._random = count, 0, random.Random(0)

    def __call__(self, groups: Iterable[Group]) -> Iterator[Group]:
        for group in groups:
            if self._count and any(label.p > 0.5 for label in pair_labels(group)):
                self._seen += 1
                place = self._random.randrange(self._seen)
                if len(self.groups) < self._count:
                    self.groups.append(group)
                elif place < self._count:
                    self.groups[place] = group
            yield group


def _token_check(models: ModelOptions, progress: Progress) -> TokenCheck:
    from dipole.data.audit.tokens import TokenCheck
    from dipole.policy.load import load_tokenizer, max_positions
    from dipole.policy.size import num_parameters

    assert models.model is not None
    progress.stage("Loading the tokenizer")
    longest = max_positions(models.model)
    return TokenCheck(
        load_tokenizer(models.model),
        max_length=models.max_length or min(DEFAULT_LENGTH, longest or DEFAULT_LENGTH),
        prompt_format=models.prompt_format,
        parameters=num_parameters(models.model),
    )


def _scored(groups: Sequence[Group], models: ModelOptions, progress: Progress) -> list[ScoredPair]:
    """One decided pair of each group with the model's log-probabilities."""
    import torch

    from dipole.data.audit.likelihood import ScoredPair
    from dipole.data.batch import Pairs, in_chunks
    from dipole.policy.load import load_model, load_tokenizer
    from dipole.policy.logprobs import Policy, sum_by_completion

    assert models.model is not None
    decided = {group.id: (group, next(label for label in pair_labels(group) if label.p > 0.5)) for group in groups}
    labeled = [LabeledGroup(group, (label,)) for group, label in decided.values()]
    options = TokenizeOptions(max_length=models.max_length or DEFAULT_LENGTH, prompt_format=models.prompt_format)
    try:
        tokenized, _ = tokenize_groups(labeled, load_tokenizer(models.model), options)
    except DataError:  # nothing that fits: the tokens' own findings say so
        return []
    policy = Policy(load_model(models.model)).eval()
    progress.stage("Asking the model", total=len(tokenized))
    scored = []
    for batch in in_chunks(tokenized, PACKED_TOKENS):
        with torch.no_grad():
            means = (sum_by_completion(policy(batch).logps, batch) / batch.num_targets).tolist()
        assert isinstance(batch.relations, Pairs)
        pairs = zip(batch.relations.chosen.tolist(), batch.relations.rejected.tolist(), strict=True)
        for id, (chosen, rejected) in zip(batch.group_ids, pairs, strict=True):
            group, label = decided[id]
            scored.append(ScoredPair(group, label.i, label.j, means[chosen], means[rejected]))
        progress.advance(len(batch.group_ids))
    return scored
