"""``dipole demo``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dipole.errors import TrainingFault
from dipole.progress import is_first_process
from dipole.verbs.verb import Verb


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOptions:
    """Makes a small real model write better film reviews, from real judgments, in minutes and without a GPU."""

    output: str = "runs/demo"
    """The run folder to write."""
    model: str | None = None
    """A local folder or a hub id; SmolLM2-135M-Instruct by default, which is fetched once (100 MB)."""
    seed: int = 0
    """Of the data's split and order, the adapter's first weights, and the samples."""


def run(options: DemoOptions) -> int:
    """The main job; status 4 when the model isn't better."""
    from dipole import terminal

    with terminal.progress() as progress:
        if is_first_process():
            progress.stage("Starting")
        from dipole.demo import run_demo

        result = run_demo(Path(options.output), model=options.model, seed=options.seed, progress=progress)
    terminal.show_measures(result.measures)
    terminal.show("The model is better." if result.better else "The model isn't better, by these intervals.")
    terminal.show(f"Report: {result.report}")
    return 0 if result.better else TrainingFault.exit_status


VERB = Verb(run, DemoOptions, "dipole demo --output runs/demo")
