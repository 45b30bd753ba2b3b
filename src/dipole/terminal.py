"""What a person sees: progress on the standard error stream, results on the standard output.

Progress is drawn with bars where someone watches, and written as plain lines where the stream goes to a file.
"""

from __future__ import annotations

import sys
import unicodedata
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Self

from rich import progress as bars
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dipole.data.audit import AuditReport, Finding
    from dipole.evaluate.run_folder import Measure
    from dipole.evaluate.stats import Estimate
    from dipole.feedback.check import Check
    from dipole.train.plan import Plan

LINE_EVERY = 10.0
"""Seconds between two lines of progress where there are no bars."""

PLAIN_WIDTH = 120
"""Columns of a table that goes to a file."""


def inert(text: str) -> str:
    """Text from files and models, with whatever could steer a terminal shown as ``?``."""
    return "".join("?" if unicodedata.category(c).startswith("C") and c not in "\n\t" else c for c in text)


def show(text: str) -> None:
    """A line of a result."""
    sys.stdout.write(f"{inert(text)}\n")


def show_error(text: str) -> None:
    """What went wrong."""
    sys.stderr.write(f"error: {inert(text)}\n")


def show_measures(measures: Sequence[Measure]) -> None:
    """A table: what was measured before and after training, each with its 95 % interval."""
    from dipole.evaluate.headline import number, places

    def cell(estimate: Estimate | None, decimals: int, *, sign: bool = False) -> str:
        if estimate is None or estimate.value is None:
            return "–"
        value = number(estimate.value, decimals, sign=sign)
        if estimate.low is None or estimate.high is None:
            return value
        return f"{value} [{number(estimate.low, decimals, sign=sign)}, {number(estimate.high, decimals, sign=sign)}]"

    table = Table("measure", "before", "after", "difference", "n", "", box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for item in measures:
        decimals = places(item)
        sides = [cell(item.before, decimals), cell(item.after, decimals), cell(item.difference, decimals, sign=True)]
        known = [estimate.n for estimate in (item.after, item.before) if estimate]
        name = f"{item.name} ({item.unit})" if item.unit else item.name
        cells = [name, *sides, f"{known[0]:,}" if known else "–", item.verdict or ""]
        table.add_row(*(Text(inert(text)) for text in cells))
    _console(sys.stdout).print(table)
    show("In brackets: 95 % confidence intervals.")


def show_audit(report: AuditReport) -> None:
    """How much there is, then errors, then findings, the worst first."""
    sizes, *_ = report.summary()
    show(sizes)
    show_findings(report.errors, label="error")
    show_findings([finding for finding in report.findings if not finding.name.startswith("num_")])
    worries = sum(finding.severity != "info" for finding in report.findings)
    show(f"{len(report.errors)} kinds of errors, {worries} findings to look into.")


def show_findings(findings: Sequence[Finding], *, label: str | None = None) -> None:
    """One paragraph a finding: how bad, what, examples, remedy; of those that are no worry only the first line."""
    for finding in findings:
        show(f"{label or finding.severity:<8} {finding.message}")
        if finding.severity == "info":
            continue
        for example in finding.examples:
            show(f"           · {example}")
        if finding.remedy:
            show(f"           → {finding.remedy}")


def show_checks(checks: Sequence[Check]) -> None:
    """A table: what a check of a judge asked, the share with its 95 % interval, and whether that is as it should be."""
    table = Table("check", "share of", "share", "should be", "n", "", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    words = {True: "ok", False: "FAILED", None: ""}
    for check in checks:
        share = "–" if check.share is None else f"{check.share:.0%} [{check.low:.0%}, {check.high:.0%}]"
        cells = [check.name, check.question, share, check.limit, f"{check.n:,}", words[check.passed]]
        table.add_row(*map(Text, cells))
    _console(sys.stdout).print(table)
    show("In brackets: 95 % confidence intervals. A check fails only if all of its interval is on the wrong side.")


def show_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table of words."""
    table = Table(*columns, box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for row in rows:
        table.add_row(*(Text(inert(cell)) for cell in row))
    _console(sys.stdout).print(table)


MEMORY_PARTS = {
    "weights": "weights",
    "gradients": "gradients",
    "optimizer": "optimizer's state",
    "reference": "reference",
    "activations": "activations",
    "head": "head and logits",
    "together": "weights put together, or narrow copies",
    "temporary": "optimizer's working memory",
}
"""What a person reads of each part of a plan's memory."""


def show_plan(plan: Plan) -> None:
    """What a run will do and need: a table of sizes, and one of memory."""
    setup, total = plan.setup, plan.memory.total
    where = f"{setup.processes} processes" if setup.processes > 1 else "one process"
    divided = ", which divide the weights" if setup.sharded else ""
    rows = [
        ("model", plan.model),
        ("parameters", f"{plan.shape.parameters:,}"),
        ("trained", f"{setup.trained:,} ({plan.trained_share:.2%})"),
        ("data", f"{plan.groups:,} groups · {plan.completions:,} completions · {plan.relations:,} relations"),
        ("held out", f"{plan.held_out:,} groups"),
        ("steps", f"{plan.steps:,} ({plan.epochs:g} epochs), up to {plan.micro_batches:,} micro-batches each"),
        ("tokens", f"{plan.tokens:,}: prompts once, completions once"),
        ("largest micro-batch", f"{setup.tokens:,} tokens, {setup.targets:,} of them of completions"),
        ("reference", setup.reference.replace("_", " ")),
        ("products", f"{plan.precision}, on {where}{divided}"),
    ]
    show_table(("the run", ""), rows)
    show("")
    parts = {name: size for name, size in plan.memory.parts().items() if size}
    sizes = [(MEMORY_PARTS[name], _size(size)) for name, size in parts.items()]
    show_table(("memory of one process", ""), [*sizes, ("at the fullest moment", _size(total))])
    device = "The GPU here has" if setup.gpu else "The machine has"
    show(
        f"{device} {_size(plan.available)}. Libraries and gaps between allocations add a tenth or two to the estimate."
    )
    show("Data and options are in order. Weights weren't looked at, and nothing was written.")


def _size(count: int) -> str:
    """Bytes as a person reads them."""
    for power, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if count >= 2**power:
            return f"{count / 2**power:,.1f} {unit}"
    return f"{count} bytes"


@dataclass(slots=True)
class _Stage:
    """One stage of a long piece of work, and how far it has come."""

    text: str
    total: int | None
    began: float
    done: int = 0
    skipped: int = 0
    note: str = ""

    def advance(self, units: int, note: str) -> None:
        if self.done == 0 and units > 1:  # a resumed run begins with the steps of the run before, done in no time
            self.skipped = units
        self.done += units
        self.note = note or self.note

    def seconds(self) -> float:
        return monotonic() - self.began

    def seconds_left(self) -> float | None:
        measured = self.done - self.skipped
        if self.total is None or measured <= 0:
            return None
        return self.seconds() / measured * max(0, self.total - self.done)


class Bars:
    """Progress with bars, for a terminal. A context manager: what it draws goes away at the end."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = bars.Progress(
            bars.SpinnerColumn(),
            bars.TextColumn("{task.description}", markup=False),
            bars.BarColumn(bar_width=24),
            bars.TextColumn("{task.fields[count]}", markup=False),
            bars.TextColumn("{task.fields[note]}", markup=False),
            bars.TextColumn("{task.fields[left]}", markup=False),
            console=console,
            transient=True,
        )
        self._stage: _Stage | None = None
        self._task = bars.TaskID(0)

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._end(finished=kind is None)
        self._bars.stop()

    def stage(self, text: str, total: int | None = None) -> None:
        """Ends the stage before with a line, and begins a bar."""
        self._end(finished=True)
        self._stage = _Stage(text, total, began=monotonic())
        self._task = self._bars.add_task(inert(text), total=total, count="", note="", left="")

    def advance(self, units: int = 1, note: str = "") -> None:
        """Moves the bar."""
        if self._stage is None:
            return
        self._stage.advance(units, note)
        note, count, left = inert(self._stage.note), _count(self._stage), _left(self._stage)
        self._bars.update(self._task, completed=self._stage.done, count=count, note=note, left=left)

    def say(self, text: str) -> None:
        """A sentence above the bar."""
        self._console.print(Text(f"  {inert(text)}"))

    def _end(self, *, finished: bool) -> None:
        if self._stage is None:
            return
        self._bars.remove_task(self._task)
        if finished:
            note = f" · {self._stage.note}" if self._stage.note else ""
            self._console.print(Text(inert(f"✓ {self._stage.text} ({_duration(self._stage.seconds())}){note}")))
        self._stage = None


class Lines:
    """Progress in plain lines, for a file or a pipe: one a stage, and one every few seconds within it."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._stage: _Stage | None = None
        self._written = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stage = None

    def stage(self, text: str, total: int | None = None) -> None:
        """A line."""
        self._stage = _Stage(text, total, began=monotonic())
        self._written = self._stage.began
        self.say(text)

    def advance(self, units: int = 1, note: str = "") -> None:
        """A line, if the last one is some time ago or the stage is complete."""
        stage = self._stage
        if stage is None:
            return
        stage.advance(units, note)
        now = monotonic()
        if now - self._written >= LINE_EVERY or (stage.total is not None and stage.done >= stage.total):
            self._written = now
            parts = [_count(stage), stage.note, _left(stage)]
            self.say(f"{stage.text}: {' · '.join(part for part in parts if part)}")

    def say(self, text: str) -> None:
        """A line."""
        self._console.print(Text(inert(text)), soft_wrap=True)


def progress() -> Bars | Lines:
    """Progress on the standard error stream, as fits what that is."""
    console = _console(sys.stderr)
    return Bars(console) if console.is_terminal else Lines(console)


def _console(stream: object) -> Console:
    console = Console(stderr=stream is sys.stderr, highlight=False)
    return console if console.is_terminal else Console(stderr=console.stderr, highlight=False, width=PLAIN_WIDTH)


def _count(stage: _Stage) -> str:
    return f"{stage.done:,} of {stage.total:,}" if stage.total is not None else ""


def _left(stage: _Stage) -> str:
    left = stage.seconds_left()
    return f"{_duration(left)} left" if left is not None and stage.done != stage.total else ""


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
