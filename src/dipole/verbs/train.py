"""``dipole train``."""

from __future__ import annotations

from dipole.config import TrainConfig
from dipole.progress import is_first_process
from dipole.verbs.verb import Verb


def run(config: TrainConfig) -> int:
    """A training run and its report, or what it would take."""
    return _plan(config) if config.dry_run else _train(config)


def _plan(config: TrainConfig) -> int:
    from dipole import terminal

    with terminal.progress() as progress:
        from dipole.train.rehearsal import rehearse

        plan = rehearse(config, progress)
    if is_first_process():
        terminal.show_plan(plan)
    return 0


def _train(config: TrainConfig) -> int:
    """A training run and its report."""
    from dipole import terminal

    with terminal.progress() as progress:
        if is_first_process():
            progress.stage("Starting")
        from dipole.api import run_training
        from dipole.evaluate.headline import lead
        from dipole.evaluate.run_folder import read_run_folder

        folder = run_training(config, progress)
    if not is_first_process():
        return 0
    run = read_run_folder(folder)
    what, *outcome = lead(run)
    terminal.show(what)
    if run.measures:
        terminal.show_measures(run.measures)
    for sentence in outcome:
        terminal.show(sentence)
    terminal.show(f"Model: {folder / 'final'}")
    terminal.show(f"Report: {folder / 'report.html'}")
    return 0


VERB = Verb(
    run,
    TrainConfig,
    "dipole train --model path/to/model --data pairs.jsonl --output runs/a --loss.beta 0.1 --peft.method lora",
)
