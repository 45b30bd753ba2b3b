"""``dipole report``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dipole.verbs.verb import Verb


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportOptions:
    """Writes report.html of a run, from the files in its folder."""

    run: str
    """The run folder."""


def run(options: ReportOptions) -> int:
    """Says where the page is."""
    from dipole import terminal
    from dipole.evaluate.report import write_report

    terminal.show(f"Report: {write_report(Path(options.run))}")
    return 0


VERB = Verb(run, ReportOptions, "dipole report runs/a", ("run",))
