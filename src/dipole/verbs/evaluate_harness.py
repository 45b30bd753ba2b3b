"""``dipole evaluate harness``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dipole.verbs.verb import Verb


@dataclass(frozen=True, slots=True, kw_only=True)
class HarnessOptions:
    """What else a model can do, before and after training, by lm-evaluation-harness (pip install "lm_eval[hf]")."""

    run: str
    """The folder of a finished run."""
    tasks: str | None = None
    """Shows the two commands for these tasks, such as hellaswag,arc_easy; without, reads what they have written into
    RUN/harness, compares, and adds it to the report."""
    limit: int | None = None
    """Questions of each task; all by default."""


def run(options: HarnessOptions) -> int:
    """The commands, or the table of what came of them."""
    from dipole import terminal
    from dipole.errors import ConfigError
    from dipole.evaluate.harness import commands, compare
    from dipole.evaluate.report import write_report

    folder = Path(options.run)
    if options.tasks is not None:
        for command in commands(folder, options.tasks, limit=options.limit):
            terminal.show(command)
        return 0
    if options.limit is not None:
        raise ConfigError("means nothing without --tasks", where="--limit", remedy="Name the tasks, or leave it out")
    terminal.show_measures(compare(folder))
    terminal.show(f"Report: {write_report(folder)}")
    return 0


VERB = Verb(run, HarnessOptions, "dipole evaluate harness runs/a --tasks hellaswag,arc_easy", ("run",))
