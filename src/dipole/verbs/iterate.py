"""``dipole iterate``."""

from __future__ import annotations

from dipole.iterate.settings import IterateConfig
from dipole.verbs.verb import Verb


def run(config: IterateConfig) -> int:
    """A table of the rounds."""
    from dipole import terminal

    with terminal.progress() as progress:
        progress.stage("Starting")
        from dipole.iterate.report import table
        from dipole.iterate.run import iterate

        summary = iterate(config, progress)
    terminal.show_table(*table(summary, brief=True))
    for row in summary.rounds:
        for sentence in row.warnings:
            terminal.show(f"Warning: in round {row.number} {sentence}.")
    if summary.stopped is not None:
        terminal.show(f"Stopped early: {summary.stopped}.")
    terminal.show(f"Policy: {summary.policy}")
    terminal.show(f"Report: {summary.output / 'report.html'}")
    return 0


VERB = Verb(
    run,
    IterateConfig,
    "dipole iterate --preset snorkel --model path/to/model --prompts prompts.jsonl --judge vader --output runs/rounds",
)
