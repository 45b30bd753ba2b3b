"""The Python surface: whole pieces of work in one call each, as the command line offers them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dipole.config import LossConfig, PeftConfig, TrainConfig, train_config
from dipole.data.audit import NUM_EXAMPLES, AuditReport, Finding
from dipole.data.audit import audit as audit_groups
from dipole.data.formats import load_groups, save_groups
from dipole.errors import DataError
from dipole.group import Group
from dipole.progress import Progress

if TYPE_CHECKING:
    from dipole.objective.constraints import Constraint, ConstraintFunction

Preferences = str | Path | Sequence[Group]
"""A file, folder or hub dataset that ``load_groups`` reads, or groups that are loaded already."""


def train(
    model: str | Path,
    data: Preferences,
    output: str | Path,
    loss: str | LossConfig = "dpo",
    peft: str | PeftConfig = "none",
    *,
    eval_data: Preferences | None = None,
    constraints: Sequence[Constraint | ConstraintFunction] = (),
    progress: Progress | None = None,
    **options: Any,
) -> Path:
    """Trains a model on preferences and writes a report.

    Args:
        model: a local folder or a hub id of a causal language model.
        data: what to train on. Groups are first written into the run folder, so that it holds all that made it.
        output: the run folder.
        loss: name of a loss, or a ``LossConfig``.
        peft: ``"none"``, ``"lora"``, or a ``PeftConfig``.
        eval_data: held-out preferences.
        constraints: terms beside a pairwise loss: ``dipole.objective.constraints`` has the kinds. A function
            ``f(model, pi_logps, ref_logps, yw_idxs, yl_idxs)`` returns a scalar with a gradient.
        progress: is told where the run is.
        options: any other field of ``TrainConfig``, ``LossConfig``, ``PeftConfig`` or ``PairingConfig``, such as
            ``beta=0.1, rank=8, max_steps=100``.

    Returns:
        The run folder; the model is in its ``final``, the report is ``report.html``.

    Raises:
        ConfigError, DataError, TrainingFault, Stopped: see ``dipole.errors``.
    """
    config = train_config(
        model=str(model),
        data=_named(data, Path(output) / "preferences.jsonl"),
        eval_data=None if eval_data is None else _named(eval_data, Path(output) / "eval_preferences.jsonl"),
        output=str(output),
        loss=loss,
        peft=peft,
        **options,
    )
    for given, file in ((data, config.data), (eval_data, config.eval_data)):
        if not (given is None or isinstance(given, str | Path) or _holds_another_run(config)):
            save_groups(given, str(file))
    return run_training(config, progress, constraints)


def run_training(
    config: TrainConfig,
    progress: Progress | None = None,
    constraints: Sequence[Constraint | ConstraintFunction] = (),
) -> Path:
    """What ``dipole train`` does: a training run, its measures and its report. Returns the run folder."""
    from dipole.evaluate.measure import measure_run
    from dipole.evaluate.report import write_report
    from dipole.train.run import train

    run = train(config, progress, constraints=constraints)
    measure_run(run)
    write_report(run)
    return run


def audit(
    data: Preferences, *, eval_data: Preferences | None = None, allow_shared_prompts: bool = False
) -> AuditReport:
    """Checks preference data: errors that stop training, and findings that should worry.

    Args:
        data: the training data. Rows of a file that can't be read are one of the errors.
        eval_data: held-out data; looked at for leaks alone.
        allow_shared_prompts: training and held-out data may have prompts in common.

    Raises:
        DataError: a file can't be read at all.
    """
    faults: list[DataError] = []
    groups, held_out = (
        load_groups(part, on_bad_row=faults.append) if isinstance(part, str | Path) else list(part or ())
        for part in (data, eval_data)
    )
    report = audit_groups(groups, eval_groups=held_out, allow_shared_prompts=allow_shared_prompts)
    if not faults:
        return report
    unreadable = Finding(
        name="unreadable",
        severity="severe",
        message="1 row can't be read" if len(faults) == 1 else f"{len(faults)} rows can't be read",
        value=len(faults),
        examples=tuple(map(str, faults[:NUM_EXAMPLES])),
        remedy="Repair or remove such rows.",
    )
    return replace(report, errors=(unreadable, *report.errors))


def _named(data: Preferences, file: Path) -> str:
    return str(data) if isinstance(data, str | Path) else str(file)


def _holds_another_run(config: TrainConfig) -> bool:
    """Whether training will refuse the folder: then nothing in it may be overwritten before."""
    return not config.resume and (Path(config.output) / "metrics.jsonl").exists()
