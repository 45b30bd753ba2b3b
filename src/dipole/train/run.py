"""A training run from its configuration to its folder: what ``dipole train`` does."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from torch import Tensor

from dipole import __version__
from dipole.config import TrainConfig
from dipole.data.tokenize import TokenizedGroup
from dipole.errors import ConfigError, Stopped, TrainingFault
from dipole.objective.constraints import Constraint, ConstraintFunction
from dipole.policy.adapters import save_model
from dipole.policy.generate import Sample, Sampling, sample
from dipole.policy.load import count_parameters
from dipole.progress import Progress, Silent, is_first_process
from dipole.train.checkpoint import NotSaved, contents_of, newest_first, not_saved, resume, save_checkpoint
from dipole.train.finite import marked
from dipole.train.forward import completion_logps
from dipole.train.lock import locked
from dipole.train.loop import StepInfo, held_out_rows, steps
from dipole.train.out_of_memory import OutOfMemory, memory_for
from dipole.train.setup import Run, prepare, trained_parameters
from dipole.train.shard import model_tensors, whole_tensors, with_all_weights
from dipole.train.stop import Stop, before_first_step, stop_signals
from dipole.train.track import clear_scratch, cut_back, environment, now, scratch_for, write_json
from dipole.train.trackers import Tracker, tracking


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
        NotSaved: the trained model couldn't be written.
        OutOfMemory: there isn't enough; with the state before the step saved, if it was in a step.
    """
    if config.dry_run:
        raise ConfigError("a dry run trains nothing", where="--dry_run", remedy="Call dipole.train.rehearsal.rehearse")
    progress = (progress or Silent()) if is_first_process() else Silent()
    output = Path(config.output)
    if output.exists() and not output.is_dir():
        raise ConfigError("this is a file, but a run is a folder", where=f"--output {output}")
    with (
        stop_signals() as stop,
        locked(output, progress.say) if is_first_process() else nullcontext(),
        memory_for("the run", config),
    ):
        refuse_used(output, config)
        with tracking(config, progress.say) if is_first_process() else nullcontext() as tracker:
            _prepared_and_trained(config, progress, stop, kind, constraints, tracker)
    return output


def _prepared_and_trained(
    config: TrainConfig,
    progress: Progress,
    stop: Stop,
    kind: str,
    constraints: Sequence[Constraint | ConstraintFunction],
    tracker: Tracker | None,
) -> None:
    began = time.time()
    run = prepare(config, progress, constraints)
    if config.resume:
        for sentence in resume(run):
            progress.say(sentence)
    if tracker is not None:
        run.log.follow("metrics.jsonl", tracker.log)
    run.ranks.wait()
    if run.ranks.is_first:
        _recorded(run, progress, stop, _manifest(run, kind), began)
    else:
        _train(run, progress, stop)


def _recorded(run: Run, progress: Progress, stop: Stop, manifest: dict[str, Any], began: float) -> None:
    """Trains, with what the folder says of the run and of how it ended."""
    output = run.output
    for folder in (output, output / "checkpoints"):
        clear_scratch(folder)
    for name in ("metrics.jsonl", "samples.jsonl", "held_out.jsonl", "skipped.jsonl"):
        cut_back(output / name, run.step)
    (output / "config.yaml").write_text(yaml.safe_dump(asdict(run.config), sort_keys=False), encoding="utf-8")
    write_json(output / "audit.json", run.data.report.to_json())
    write_json(output / "manifest.json", manifest)
    status = "failed"
    try:
        _train(run, progress, stop)
        status = "done"
    except Stopped:
        status = "stopped"
        raise
    finally:
        spent = manifest["seconds"] + time.time() - began
        with suppress(OSError):  # a full disk has been reported, and this isn't worth more
            write_json(output / "manifest.json", manifest | {"status": status, "seconds": round(spent, 1)})


def _train(run: Run, progress: Progress, stop: Stop) -> None:
    stop.at_once = False
    if run.step == 0:
        evaluate(run, progress, stage="before")
    elif run.step < run.total_steps:
        _between_steps(run, progress)  # the checkpoint was saved before it
    _stop_if_asked(run, stop)
    progress.stage("Training", total=run.total_steps)
    progress.advance(run.step)
    for info in _steps(run, stop):
        _log_step(run, info, progress)
        if _due(info.step, run.config.checkpoint_every) and (fault := _save(run, stop)):
            progress.say(f"{fault.where}: {fault.problem}. Training goes on.")
        _stop_if_asked(run, stop)
        _stop_after_skips(run, stop, info)
        if info.step < run.total_steps and _between_steps(run, progress):
            _stop_if_asked(run, stop)
    progress.stage("Saving the model")
    whole = whole_tensors(model_tensors(run.policy), run.ranks) if run.ranks.lockstep else None
    if fault := _from_first(run, lambda: save_final(run, whole), stop):
        raise fault
    evaluate(run, progress, stage="after")
    _stop_if_asked(run, stop)
    if run.ranks.is_first:
        _finish_log(run)


def _steps(run: Run, stop: Stop) -> Iterator[StepInfo]:
    """The steps. One that needs more memory than there is has changed nothing yet: what came before it is saved.

    Raises:
        OutOfMemory: after that. Of several processes each ends by itself, and the newest checkpoint is what is left.
    """
    try:
        yield from steps(run)
    except OutOfMemory as fault:
        if run.ranks.count > 1:
            raise
        run.optimizer.zero_grad(set_to_none=True)  # to have room for what a save copies
        kept = run.step > 0 and _save(run, stop) is None
        state = f"the state after step {run.step} is saved" if kept else "nothing is saved"
        raise OutOfMemory(f"{fault.problem}; {state}", where=fault.where, remedy=fault.remedy) from fault


def _log_step(run: Run, info: StepInfo, progress: Progress) -> None:
    if info.skipped is not None:
        run.log.append("skipped.jsonl", [info.skipped])
        groups = ", ".join(info.skipped["groups"][:3]) + (" …" if len(info.skipped["groups"]) > 3 else "")
        what = ", ".join(info.skipped["not_finite"])
        progress.say(f"Step {info.step} was skipped, since it isn't finite in {what}; groups: {groups}.")
    if info.skipped is not None or info.step % run.config.log_every == 0 or info.step == run.total_steps:
        run.log.append("metrics.jsonl", [info.metrics])
    progress.advance(1, _note(info))


def _save(run: Run, stop: Stop) -> NotSaved | None:
    """A checkpoint, by the first process; the others wait. Returns why there is none."""
    contents = contents_of(run)

    def save() -> None:
        with suppress(OSError):
            run.log.flush()
        save_checkpoint(run, contents)

    return _from_first(run, save, stop)


def _from_first(run: Run, save: Callable[[], object], stop: Stop) -> NotSaved | None:
    """Has the first process save something, undisturbed by signals; every process is told if that failed."""
    problem: tuple[str, str | None, str | None] | None = None
    if run.ranks.is_first:
        with stop.held():
            try:
                save()
            except NotSaved as fault:
                problem = fault.problem, fault.where, fault.remedy
    problem = run.ranks.from_first(problem)
    return None if problem is None else NotSaved(problem[0], where=problem[1], remedy=problem[2])


def _stop_if_asked(run: Run, stop: Stop) -> None:
    """Saves and ends the run, on all processes after the same step, if any of them was sent a signal.

    Raises:
        Stopped: after a save.
        NotSaved: that failed.
    """
    number = max(run.ranks.gather(stop.number))
    if not number:
        return
    if run.step == 0:
        raise before_first_step(number)
    if fault := _save(run, stop):
        raise fault
    raise Stopped(
        f"stopped by {signal.Signals(number).name} after step {run.step}; its state is saved",
        signal_number=number,
        remedy="The same command with --resume goes on",
    )


def _stop_after_skips(run: Run, stop: Stop, info: StepInfo) -> None:
    """Ends a run whose steps aren't finite any more, with its state saved."""
    if info.skipped is None or run.skips <= run.config.max_skipped_steps:
        return
    if fault := _save(run, stop):
        raise fault
    first = run.step - run.skips + 1
    steps_after = f" and the {run.skips - 1} after it" if run.skips > 1 else ""
    raise TrainingFault(
        f"{', '.join(info.skipped['not_finite'])} is not a finite number in step {first}{steps_after}; skipped,"
        " and the model is as it was before",
        where=str(run.output / "skipped.jsonl"),
        remedy="It names the groups: look at them, lower --learning_rate, or use --dtype float32",
    )


def _finish_log(run: Run) -> None:
    try:
        run.log.flush()
    except OSError as fault:
        raise NotSaved(
            f"the last rows couldn't be written: {fault.strerror}",
            where=str(fault.filename or run.output),
            remedy="Make room; the same command with --resume goes on from what is saved",
        ) from fault


def _between_steps(run: Run, progress: Progress) -> bool:
    """Held-out metrics and samples in the course of training, where they are due; returns whether any were."""
    config = run.config
    if scores := _due(run.step, config.eval_every):
        run.log.append("metrics.jsonl", [_held_out(run, None, progress)])
    if samples := _due(run.step, config.sample_every):
        run.log.append("samples.jsonl", draw_samples(run, "step", progress))
    return scores or samples


def evaluate(run: Run, progress: Progress, *, stage: str) -> None:
    """Held-out metrics and samples, before or after training, into the run folder."""
    if run.data.held_out:
        progress.stage(f"Scoring {len(run.data.held_out)} held-out groups")
        run.log.append("metrics.jsonl", [_held_out(run, stage, progress)])
    if run.data.prompts:
        progress.stage(f"Sampling {run.config.num_samples} completions", total=run.config.num_samples)
        run.log.append("samples.jsonl", draw_samples(run, stage, progress))


def _held_out(run: Run, stage: str | None, progress: Progress) -> dict[str, Any]:
    """One line of metrics; with a stage, also a line a relation in held_out.jsonl."""
    rows, metrics = held_out_rows(run)
    if wrong := [row for row in rows if "not_finite" in row]:
        groups = ", ".join(dict.fromkeys(row["id"] for row in wrong[:3])) + (" …" if len(wrong) > 3 else "")
        progress.say(
            f"At step {run.step}, {len(wrong)} of {len(rows)} held-out relations aren't finite in"
            f" {', '.join(wrong[0]['not_finite'][:3])} and count in no mean; groups: {groups}."
        )
    if stage is not None:
        run.log.append("held_out.jsonl", ({"step": run.step, "stage": stage, **row} for row in rows))
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
    if run.ranks.is_first or run.ranks.lockstep:
        drawn = with_all_weights(
            run.policy, sample, run.policy, run.tokenizer, ids, sampling, on_batch=progress.advance
        )
    drawn = run.ranks.from_first(drawn)
    groups = [
        TokenizedGroup(id=str(index), prompt_ids=prompts[index].ids, completion_ids=(item.ids,), relations=())
        for index, item in enumerate(drawn)
    ]
    logps, ref_logps = completion_logps(run, groups)
    rows = [
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
    return [marked(row) for row in rows]


def save_final(run: Run, whole: Mapping[str, Tensor] | None = None) -> None:
    """``final/``: loads with transformers, or with PEFT when an adapter was trained; tokenizer included.

    Args:
        run: whose model it is.
        whole: the model's tensors, where the processes have parts of them.

    Raises:
        NotSaved: there is no room for it.
    """
    folder = run.output / "final"
    scratch = scratch_for(folder)
    try:
        save_model(run.policy.for_saving(), scratch, whole)
        run.tokenizer.save_pretrained(str(scratch))
        if folder.exists():
            shutil.rmtree(folder)
        scratch.rename(folder)
    except (OSError, SafetensorError) as fault:
        needed = sum(tensor.nbytes for tensor in trained_parameters(run.policy, run.policy).values())
        raise not_saved("the trained model", needed, fault, where=folder) from fault
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def refuse_used(output: Path, config: TrainConfig) -> None:
    """Raises a ``ConfigError`` if the folder holds a run that isn't to go on."""
    if not config.resume and ((output / "metrics.jsonl").exists() or newest_first(output)):
        raise ConfigError(
            "the folder already holds a run",
            where=f"--output {output}",
            remedy="Choose another, or go on with --resume",
        )


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
    if info.skipped is not None:
        return "skipped"
    accuracy = metrics.get("rewards/accuracies")
    known = f" · accuracy {accuracy:.2f}" if accuracy is not None else ""
    return f"loss {metrics['loss']:.4f}{known} · {metrics['tokens_per_second']:,.0f} tokens/s"


def _due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0
