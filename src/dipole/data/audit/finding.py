"""What an audit says: findings, the charts that go with them, and the report that holds both."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from dipole.data.audit.personal import mask
from dipole.errors import DataError
from dipole.group import Text, plain

Severity = Literal["info", "warning", "severe"]

NUM_EXAMPLES = 3

EXCERPT = 60
"""Characters of a text that an example shows."""

_RANK = {"severe": 0, "warning": 1, "info": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One fact about the data.

    Args:
        name: of the check.
        severity: what it means for training; every error is ``"severe"``.
        message: what was found, in a sentence.
        value: the number behind it; several where one says too little.
        interval: 95 % confidence interval of a single number that is an estimate.
        examples: up to three, each beginning with the id of its group.
        remedy: what to do about it.
    """

    name: str
    severity: Severity
    message: str
    value: float | dict[str, float] | None = None
    interval: tuple[float, float] | None = None
    examples: tuple[str, ...] = ()
    remedy: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One number of a chart, with the ends of its interval where it has one."""

    label: str
    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BarChart:
    """Numbers to be drawn.

    Args:
        name: unique in a report.
        title: what it shows.
        unit: of the values.
        bars: in the order in which they are drawn.
        level: where no effect would be.
        upright: a histogram, whose bars stand side by side; otherwise each has a line of its own.
    """

    name: str
    title: str
    unit: str
    bars: tuple[Bar, ...]
    level: float | None = None
    upright: bool = False


Result = Finding | BarChart
"""What a check yields."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditReport:
    """What an audit found.

    Args:
        errors: what training would stop at.
        findings: everything else, the worst first.
        charts: numbers to be drawn beside the findings.
    """

    errors: tuple[Finding, ...]
    findings: tuple[Finding, ...]
    charts: tuple[BarChart, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """``{"errors": [...], "findings": [...], "charts": [...]}`` of plain objects."""
        parts: dict[str, tuple[Any, ...]] = {"errors": self.errors, "findings": self.findings, "charts": self.charts}
        plain_objects: dict[str, Any] = json.loads(
            json.dumps({name: [asdict(item) for item in items] for name, items in parts.items()})
        )
        return plain_objects

    def raise_for_errors(self, where: str) -> None:
        """Raises if there are errors.

        Raises:
            DataError: names every error with its examples.
        """
        if self.errors:
            said = [f"{error.message} ({'; '.join(error.examples)})" for error in self.errors]
            remedies = dict.fromkeys(error.remedy for error in self.errors if error.remedy)
            raise DataError("; ".join(said), where=where, remedy=" ".join(remedies))

    def summary(self) -> tuple[str, str, str]:
        """Three lines for a log: how much there is, errors, and what should worry."""
        sizes = " · ".join(item.message for item in self.findings if item.name.startswith("num_"))
        errors = "; ".join(item.message for item in self.errors) or "none"
        worries = [item.message for item in self.findings if item.severity != "info"]
        more = f"; and {len(worries) - NUM_EXAMPLES} more" if len(worries) > NUM_EXAMPLES else ""
        return sizes, f"errors: {errors}", f"warnings: {'; '.join(worries[:NUM_EXAMPLES]) or 'none'}{more}"

    def with_results(self, *, errors: tuple[Finding, ...] = (), results: tuple[Result, ...] = ()) -> AuditReport:
        """The report with more in it, findings of the same severity in the order in which they came."""
        findings = [*self.findings, *(item for item in results if isinstance(item, Finding))]
        return replace(
            self,
            errors=(*self.errors, *errors),
            findings=tuple(sorted(findings, key=lambda item: _RANK[item.severity])),
            charts=(*self.charts, *(item for item in results if isinstance(item, BarChart))),
        )


def severity(value: float, limits: tuple[float, float]) -> Severity:
    """``"severe"`` above the second limit, ``"warning"`` above the first."""
    return "severe" if value > limits[1] else "warning" if value > limits[0] else "info"


def excerpt(text: Text) -> str:
    """The beginning of a text on one line, without personal data, in quotes."""
    return quoted(head(text))


def head(text: Text) -> str:
    """The beginning of a text on one line; one character more than ``quoted`` shows says that there is more."""
    words = plain(text)
    if len(words) > 4 * EXCERPT:
        words = words[: 4 * EXCERPT]
    return " ".join(words.split())[: EXCERPT + 1]


def quoted(beginning: str) -> str:
    """What ``head`` gave, without personal data, in quotes."""
    return repr(mask(beginning if len(beginning) <= EXCERPT else f"{beginning[: EXCERPT - 1]}…"))


def first(examples: Iterator[str]) -> tuple[str, ...]:
    """As many examples as a finding shows."""
    return tuple(example for _, example in zip(range(NUM_EXAMPLES), examples, strict=False))
