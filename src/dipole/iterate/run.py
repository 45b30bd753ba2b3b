"""Rounds, one after the other, each stage by stage: what ``dipole iterate`` does."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from dipole import __version__
from dipole.errors import ConfigError
from dipole.generating import PARTIAL
from dipole.iterate import evaluation, preflight, stages
from dipole.iterate.folder import Round, sha256
from dipole.iterate.presets import resolved
from dipole.iterate.report import write_report
from dipole.iterate.settings import IterateConfig
from dipole.iterate.stages import Stage, Work
from dipole.iterate.summary import Summary, summarise
from dipole.progress import Progress, Silent
from dipole.train.lock import locked
from dipole.train.track import now

TRAINING = (
    Stage("prompts", lambda round: round.prompts, stages.choose_prompts),
    Stage("generate", lambda round: round.groups, stages.generate),
    Stage("judge", lambda round: round.judged, stages.judge),
    Stage("pair", lambda round: round.training, stages.pair),
    Stage("train", lambda round: round.run, stages.train),
)
CONFIG = "config.yaml"
LIMITS = {"max_calls", "max_total_tokens", "max_cost", "prompt_price", "completion_price"}
MAY_CHANGE = {"output", "rounds", "stop", "sampler.batch_size", "training.max_tokens_per_microbatch"}
MAY_CHANGE |= {"max_invalid", "threads", "timeout", *LIMITS}
"""Options that don't touch what is there already; ``rounds`` does where it says how the prompts are shared out."""


def iterate(config: IterateConfig, progress: Progress | None = None) -> Summary:
    """Runs all rounds that aren't there yet.

    Args:
        config: everything about it; what a preset decides may be open.
        progress: is told where it is.

    Returns:
        What became of the rounds, also in ``rounds.json`` and ``report.html`` of the output folder.

    Raises:
        ConfigError: options don't fit, or the folder holds rounds with others.
        DataError, TrainingFault, JudgeError, Stopped: of a stage; the same command goes on there.
    """
    progress = progress or Silent()
    config = resolved(config)
    assert config.rounds is not None
    output = Path(config.output)
    work = Work(config, output, progress)
    preflight.check_options(work)
    if output.exists() and not output.is_dir():
        raise ConfigError("this is a file, but rounds are a folder", where=f"--output {output}")
    with locked(output, progress.say):
        if not any(output.glob("round-*")):  # nothing was made yet that other options could contradict
            preflight.check_judges(work)
            for left in (output / CONFIG, work.all_prompts):
                left.unlink(missing_ok=True)
        _keep_config(config, output)
        stages.split_prompts(work, preflight.check_prompts)
        summary = None
        for number in range(config.rounds + 1):
            run_round(work, work.round(number))
            summary = summarise(config, output, number)
            write_report(summary)
            for sentence in summary.rounds[-1].warnings:
                progress.say(f"Round {number}: {sentence}.")
            if summary.stopped is not None:
                break
        assert summary is not None
        return summary


def run_round(work: Work, round: Round) -> None:
    """Runs the stages of a round whose result isn't there."""
    round.folder.mkdir(parents=True, exist_ok=True)
    for stage in stages_of(work.config, round):
        result = stage.result(round)
        partial = result.with_name(result.name + PARTIAL)
        if round.trained() if stage.name == "train" else result.exists():
            partial.unlink(missing_ok=True)  # what a process left that was killed between the result and this
            if stage.name not in round.recorded():
                round.record(stage.name, _provenance(result))
            continue
        result.parent.mkdir(parents=True, exist_ok=True)
        began = time.monotonic()
        work.progress.say(f"Round {round.number}: {stage.name.replace('_', ' ')}")
        facts = stage.run(work, round)
        seconds = float(f"{time.monotonic() - began:.1f}")
        round.record(stage.name, {**facts, "seconds": seconds, **_provenance(result)})


def stages_of(config: IterateConfig, round: Round) -> Iterator[Stage]:
    """The stages of a round; round 0 is the first model, which is only evaluated."""
    if round.number:
        yield from TRAINING
    yield Stage("sample", lambda round: round.samples, evaluation.sample)
    if round.number:
        for part in ("training", "held_out") if config.held_out_judge is not None else ("training",):
            yield Stage(f"compare_{part}", lambda round, part=part: round.compared(part), evaluation.compare(part))  # type: ignore[misc]
    yield Stage("measure", lambda round: round.evaluation, evaluation.measure)


def _provenance(result: Path) -> dict[str, Any]:
    file = result if result.is_file() else result / "manifest.json"
    return {"result": result.name, "sha256": sha256(file), "dipole": __version__, "finished": now()}


def _keep_config(config: IterateConfig, output: Path) -> None:
    """Writes the configuration, or holds it against the one that is there.

    Raises:
        ConfigError: an option that matters was another.
    """
    path = output / CONFIG
    settings = asdict(config)
    if path.exists():
        then, new = _flat(yaml.safe_load(path.read_text(encoding="utf-8"))), _flat(_plain(settings))
        fixed = {"rounds"} if config.new_prompts and config.prompts_per_round is None else set()
        for name in sorted(new.keys() | then.keys()):
            may_change = any(name == free or name.startswith(f"{free}.") for free in MAY_CHANGE - fixed)
            if then.get(name) != new.get(name) and not may_change:
                raise ConfigError(
                    f"its rounds were made with {name}: {then.get(name)}, not {new.get(name)}",
                    where=f"--output {output}",
                    remedy="Use the same options, or another --output",
                )
    scratch = path.with_name(".config.yaml.tmp")
    scratch.write_text(yaml.safe_dump(_plain(settings), sort_keys=False, allow_unicode=True), encoding="utf-8")
    scratch.replace(path)


def _plain(settings: Any) -> Any:
    """As a file of options has them: a list is one text."""
    if isinstance(settings, Mapping):
        return {name: _plain(value) for name, value in settings.items()}
    return json.dumps(settings) if isinstance(settings, tuple) else settings


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat
