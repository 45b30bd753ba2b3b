"""A training run from its configuration to its folder: what ``dipole train`` does."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml

from dipole import __version__
from dipole.config import TrainConfig
from dipole.data.tokenize import TokenizedGroup
from dipole.errors import ConfigError, Stopped
from dipole.objective.constraints import Constraint, ConstraintFunction
from dipole.policy.generate import Sample, Sampling, sample
from dipole.policy.load import count_parameters, quietly
from dipole.progress import Progress, Silent, is_first_process
from dipole.train.checkpoint import resume, save_checkpoint
from dipole.train.forward import completion_logps
from dipole.train.loop import StepInfo, held_out_rows, steps
from dipole.train.setup import Run, prepare
from dipole.train.track import append_lines, cut_back, environment, now, write_json


def train(
    config: TrainConfig,
    progress: Progress | None = None,
    *,
    kind: str = "train",
    constraints: Sequence[Constraint | ConstraintFunction] = (),
) -> Path:
    """Trains a model on preferences and writes a run folder.

    Args:
        config: everything about it.
        progress: is told where the run is.
        kind: what the manifest calls the run.
        constraints: terms beside a pairwise loss, as in ``dipole.objective.constraints``.

    Returns:
        The run folder: config.yaml, manifest.json, metrics.jsonl, samples.jsonl, held_out.jsonl, audit.json,
        checkpoints/ and final/.

    Raises:
        ConfigError, DataError, TrainingFault: see the exit statuses in ``errors``.
        Stopped: by SIGTERM or SIGINT, after a checkpoint was saved.
    """
    progress = (progress or Silent()) if is_first_process() else Silent()
    output = Path(config.output)
    _refuse_used(output, config)
    began = time.time()
    run = prepare(config, progress, constraints)
    if config.resume:
        for sentence in resume(run):
            progress.say(sentence)
    run.ranks.wait()
    if not run.ranks.is_first:
        _train(run, progress)
        return output
    config = run.config
    output.mkdir(parents=True, exist_ok=True)
    manifest = _manifest(run, kind)
    for name in ("metrics.jsonl", "samples.jsonl", "held_out.jsonl"):
        cut_back(output / name, run.step)
    (output / "config.yaml").write_text(yaml.safe_dump(asdict(config), sort_keys=False), encoding="utf-8")
    write_json(output / "audit.json", run.data.report.to_json())
    write_json(output / "manifest.json", manifest)
    status = "failed"
    try:
        _train(run, progress)
        status = "done"
    except Stopped:
        status = "stopped"
        raise
    finally:
        spent = manifest["seconds"] + time.time() - began
        write_json(output / "manifest.json", manifest | {"status": status, "seconds": round(spent, 1)})
    return output


def _train(run: Run, progress: Progress) -> None:
    config = run.config
    if run.step == 0:
        evaluate(run, progress, stage="before")
    elif run.step < run.total_steps:
        _between_steps(run, progress)  # the checkpoint was saved before it
    progress.stage("Training", total=run.total_steps)
    progress.advance(run.step)
    with _stop_signal() as stop:
        for info in steps(run):
            if info.step % config.log_every == 0 or info.step == run.total_steps:
                _append(run, "metrics.jsonl", [info.metrics])
            progress.advance(1, _note(info))
            if number := max(run.ranks.gather(stop.number)):  # all processes stop after the same step
                _save(run)
                raise Stopped(
                    f"stopped by {signal.Signals(number).name} after step {run.step}; its state is saved",
                    signal_number=number,
                    remedy="The same command with --resume goes on",
                )
            if info.step == run.total_steps:
                break
            if _due(info.step, config.checkpoint_every):
                _save(run)
            _between_steps(run, progress)
    progress.stage("Saving the model")
    if run.ranks.is_first:
        save_final(run)
    evaluate(run, progress, stage="after")


def _save(run: Run) -> None:
    if run.ranks.is_first:
        save_checkpoint(run)
    run.ranks.wait()


def _append(run: Run, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
    """To a file of the run folder, which one process alone writes."""
    if run.ranks.is_first:
        append_lines(run.output / name, rows)


def _between_steps(run: Run, progress: Progress) -> None:
    """Held-out metrics and samples in the course of training, where they are due."""
    if _due(run.step, run.config.eval_every):
        _append(run, "metrics.jsonl", [_held_out(run, stage=None)])
    if _due(run.step, run.config.sample_every):
        _append(run, "samples.jsonl", draw_samples(run, "step", progress))


def evaluate(run: Run, progress: Progress, *, stage: str) -> None:
    """Held-out metrics and samples, before or after training, into the run folder."""
    if run.data.held_out:
        progress.stage(f"Scoring {len(run.data.held_out)} held-out groups")
        _append(run, "metrics.jsonl", [_held_out(run, stage)])
    if run.data.prompts:
        progress.stage(f"Sampling {run.config.num_samples} completions", total=run.config.num_samples)
        _append(run, "samples.jsonl", draw_samples(run, stage, progress))


def _held_out(run: Run, stage: str | None) -> dict[str, Any]:
    """One line of metrics; with a stage, also a line a relation in held_out.jsonl."""
    rows, metrics = held_out_rows(run)
    if stage is not None:
        _append(run, "held_out.jsonl", ({"step": run.step, "stage": stage, **row} for row in rows))
    return {"step": run.step, **metrics}


@torch.no_grad()
def draw_samples(run: Run, stage: str, progress: Progress) -> list[dict[str, Any]]:
    """Completions of the policy with their log-probabilities under policy and reference: rows of samples.jsonl.

    At temperature 1 and the same seed every time, so that before and after can be compared, and the KL be estimated.
    """
    prompts = [run.data.prompts[index % len(run.data.prompts)] for index in range(run.config.num_samples)]
    sampling = Sampling(max_new_tokens=run.config.sample_tokens, seed=run.config.seed)
    ids = [prompt.ids for prompt in prompts]
    drawn: list[Sample] = []
    if run.ranks.is_first:
        drawn = sample(run.policy, run.tokenizer, ids, sampling, on_batch=progress.advance)
    drawn = run.ranks.from_first(drawn)
    groups = [
        TokenizedGroup(id=str(index), prompt_ids=prompts[index].ids, completion_ids=(item.ids,), relations=())
        for index, item in enumerate(drawn)
    ]
    logps, ref_logps = completion_logps(run, groups)
    return [
        {
            "step": run.step,
            "stage": stage,
            "prompt": prompts[index].text,
            "completion": item.text,
            "seed": sampling.seed,
            "index": index,
            "finished": item.finished,
            "logps": float(logps[index]),
            "ref_logps": None if ref_logps is None else float(ref_logps[index]),
            "tokens": len(item.ids),
            "score": None,
        }
        for index, item in enumerate(drawn)
    ]


def save_final(run: Run) -> None:
    """``final/``: loads with transformers, or with PEFT when an adapter was trained; tokenizer included."""
    folder = run.output / "final"
    with quietly():
        run.policy.model.save_pretrained(str(folder))  # type: ignore[operator]
    run.tokenizer.save_pretrained(str(folder))


def _refuse_used(output: Path, config: TrainConfig) -> None:
    if not config.resume and (output / "metrics.jsonl").exists():
        raise ConfigError(
            "the folder already holds a run",
            where=f"--output {output}",
            remedy="Choose another, or go on with --resume",
        )
    if output.exists() and not output.is_dir():
        raise ConfigError("this is a file, but a run is a folder", where=f"--output {output}")


def _manifest(run: Run, kind: str) -> dict[str, Any]:
    total, trained = count_parameters(run.policy)
    return {
        "schema": 1,
        "dipole": __version__,
        "kind": kind,
        "created": now(),
        "seconds": 0.0,
        "seed": run.config.seed,
        "steps": run.total_steps,
        "environment": environment(run.accelerator.device),
        "model": {
            "name": run.config.model,
            "fingerprint": run.fingerprint,
            "parameters": total,
            "trainable": trained,
        },
        "data": dict(run.data.facts),
        "status": "running",
    }


def _note(info: StepInfo) -> str:
    metrics = info.metrics
    accuracy = metrics.get("rewards/accuracies")
    known = f" · accuracy {accuracy:.2f}" if accuracy is not None else ""
    return f"loss {metrics['loss']:.4f}{known} · {metrics['tokens_per_second']:,.0f} tokens/s"


def _due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0


class _Stop:
    """Remembers the signal that asked the run to stop; 0 for none."""

    number = 0


@contextmanager
def _stop_signal() -> Iterator[_Stop]:
    """SIGTERM and SIGINT set a flag that the loop looks at between two steps; a second SIGINT stops at once."""
    stop = _Stop()

    def remember(number: int, frame: Any) -> None:
        if stop.number:
            raise KeyboardInterrupt
        stop.number = number

    try:
        before = {number: signal.signal(number, remember) for number in (signal.SIGTERM, signal.SIGINT)}
    except ValueError:  # not in the main thread: then whoever owns it handles signals
        before = {}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
