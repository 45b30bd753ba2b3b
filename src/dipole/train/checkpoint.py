"""Checkpoints: written beside, checked by hash, renamed when whole. Safetensors and JSON, no pickle.

A checkpoint holds what training changes: the trained weights, the optimizer's state, the moving state of loss and
constraints, a moving reference, the step, and how many steps before it were skipped. The order of the data and the
learning rate are functions of the step, and no step draws random numbers, so that is all of it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from dipole.errors import ConfigError, TrainingFault
from dipole.objective.constraints import Constraint
from dipole.policy.load import vocabulary_fingerprint
from dipole.policy.logprobs import Policy
from dipole.policy.reference import FrozenCopy
from dipole.policy.virtual import has_virtual_tokens
from dipole.train.optim import SAME_STATE
from dipole.train.setup import Run, trained_parameters
from dipole.train.shard import own_rows, whole_tensors
from dipole.train.track import now, scratch_for, write_json

FORMAT = 1
KEEP = 2
TRAINED = "trained.safetensors"
OPTIMIZER = "optimizer.safetensors"
STATE = "state.safetensors"
REFERENCE = "reference.safetensors"
MANIFEST = "manifest.json"
Contents = dict[str, dict[str, Tensor]]
"""Tensors by file and name."""
NO_ADAPTER = {"rank": 16, "alpha": None, "targets": "all-linear"}
"""What format 1 says of a run whose adapter has no such options."""


class NotSaved(TrainingFault):
    """There was no room, or no right, to save something. What was saved before is still there."""


class OtherSettings(ConfigError):
    """A checkpoint is of a run with other settings.

    Args:
        where: the checkpoint.
        differences: of each setting that differs its name, what it was then, and what it is now.
    """

    def __init__(self, where: str, differences: list[tuple[str, str, str]]) -> None:
        self.differences = differences
        remedy = "Use the same settings, or another --output"
        super().__init__("the checkpoint was made with other settings", where=where, remedy=remedy)

    def __str__(self) -> str:
        rows = [("", "then", "now"), *self.differences]
        widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
        lines = [f"  {name:<{widths[0]}}  {then:<{widths[1]}}  {now}" for name, then, now in rows]
        return "\n".join([super().__str__(), *lines])


def save_checkpoint(run: Run, contents: Contents | None = None) -> Path:
    """Writes ``checkpoints/step-NNNNNN``, over a damaged one if there is, and keeps the two newest valid ones.

    Args:
        run: whose state it is.
        contents: what to write; found by ``contents_of`` if it isn't given.

    Raises:
        NotSaved: the disk is full, or can't be written to. Older checkpoints are as they were.
    """
    folder = run.output / "checkpoints" / f"step-{run.step:06d}"
    if folder.exists() and _damage(folder) is None:
        return folder
    contents = contents_of(run) if contents is None else contents
    try:
        _remove(folder)
        _write(run, folder, contents)
    except (OSError, SafetensorError) as fault:
        needed = sum(tensor.nbytes for tensors in contents.values() for tensor in tensors.values())
        raise not_saved(f"the checkpoint of step {run.step}", needed, fault, where=folder) from fault
    _prune(folder)
    return folder


def not_saved(what: str, needed: int, fault: Exception, *, where: Path) -> NotSaved:
    """The fault of something that couldn't be written.

    Args:
        what: it is.
        needed: its bytes.
        fault: what the operating system said.
        where: it was to be.
    """
    there = next(path for path in where.parents if path.exists())
    free = shutil.disk_usage(there).free
    reason = (fault.strerror if isinstance(fault, OSError) else None) or str(fault)
    return NotSaved(
        f"{what} couldn't be saved: {reason} ({needed:,} bytes are needed, {free:,} are free)",
        where=str(where),
        remedy="Make room, or let the folder be written to; the same command with --resume goes on from what is saved",
    )


def _write(run: Run, folder: Path, contents: Contents) -> None:
    """Beside its place first; it gets its name when all of it is on the disk."""
    scratch = scratch_for(folder)
    try:
        scratch.mkdir(parents=True)
        files = {}
        for name, tensors in contents.items():
            path = scratch / name
            save_file({key: tensor.cpu().contiguous() for key, tensor in tensors.items()}, path)
            files[name] = {"bytes": path.stat().st_size, "sha256": _sha256(path)}
            _sync(path)
        manifest = {
            "format": FORMAT,
            "step": run.step,
            "skips": run.skips,
            **({} if run.scale is None else {"loss_scale": [run.scale.value, run.scale.good_steps]}),
            "created": now(),
            "identity": identity(run),
            "files": files,
        }
        write_json(scratch / MANIFEST, manifest)
        _sync(scratch / MANIFEST)
        _sync(scratch)
        scratch.rename(folder)
        _sync(folder.parent)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise


def resume(run: Run) -> list[str]:
    """Restores the newest valid checkpoint into ``run``, if there is one.

    Returns:
        Sentences: damaged checkpoints that were skipped.

    Raises:
        ConfigError: the checkpoint belongs to another run, or to a newer Dipole.
    """
    said = []
    for folder in newest_first(run.output):
        _check_format(folder)
        if damage := _damage(folder):
            said.append(f"{folder.name} is damaged ({damage}) and was skipped.")
            continue
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        _check_identity(manifest, run, folder)
        _restore(run, folder)
        run.step = manifest["step"]
        run.skips = manifest.get("skips", 0)
        if run.scale is not None and "loss_scale" in manifest:
            run.scale.value, run.scale.good_steps = manifest["loss_scale"]
        break
    return said


def newest_first(output: Path) -> list[Path]:
    """The checkpoints of a run, valid or not. By number: from a million steps on, names are longer."""
    steps = {path: path.name.removeprefix("step-") for path in (output / "checkpoints").glob("step-*")}
    return sorted((path for path, step in steps.items() if step.isdecimal()), key=lambda path: -int(steps[path]))


def identity(run: Run) -> dict[str, Any]:
    """What has to be the same for a checkpoint to go on: settings that a step's result depends on."""
    config = run.config
    return {
        "model": run.fingerprint,
        "data": {name: value for name, value in run.data.facts.items() if name != "source"},
        "loss": {"name": run.loss.name, **{name: _plain(value) for name, value in run.hyper.items()}},
        "constraints": [_facts(constraint) for constraint in run.constraints],
        "reference": {"sync_every": config.sync_reference_every, "sync_alpha": config.sync_reference_alpha}
        | _other_reference(run),
        "peft": {**NO_ADAPTER, "method": config.peft.method}
        | {name: getattr(config.peft, name) for name in config.peft.given()},
        **_other_optimizer(config.optimizer),
        "global_batch_size": config.global_batch_size,
        "seed": config.seed,
        "max_length": config.max_length,
        "prompt_format": config.prompt_format,
        "tokenizer": vocabulary_fingerprint(run.tokenizer),
        "chat_template": hashlib.sha256(str(run.tokenizer.chat_template).encode()).hexdigest()[:16],
    }


def _other_reference(run: Run) -> dict[str, str]:
    """Which reference, if it isn't what ``auto`` takes; strategies that give the same numbers are the same."""
    match run.config.reference:
        case "adapter_off" if run.config.peft.start_from is not None:
            return {"of": "the model without any adapter"}
        case "copy" if has_virtual_tokens(run.policy.model) and run.config.peft.start_from is None:
            return {"of": "the model with its first virtual tokens"}
    return {}


def _other_optimizer(name: str) -> dict[str, str]:
    """The optimizer, if its state isn't AdamW's, which is what format 1 says nothing of."""
    family = SAME_STATE.get(name, name)
    return {} if family == "adamw" else {"optimizer": family}


def _facts(constraint: Constraint) -> dict[str, Any]:
    """All of a constraint but its function, which nobody can compare."""
    numbers = {item.name: getattr(constraint, item.name) for item in fields(constraint) if item.name != "function"}
    return {"kind": type(constraint).__name__, **numbers}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _check_format(folder: Path) -> None:
    """Before anything else is looked at: what a newer version wrote isn't damaged, and isn't to be passed over."""
    try:
        found = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["format"]
    except (OSError, ValueError, KeyError, TypeError):
        return  # then it is damaged
    if found != FORMAT:
        raise ConfigError(
            f"its format is {found}, and this version of Dipole reads {FORMAT}",
            where=str(folder),
            remedy="Use the version of Dipole that wrote it, or another --output",
        )


def _check_identity(manifest: dict[str, Any], run: Run, folder: Path) -> None:
    now = _flat(json.loads(json.dumps(identity(run))))
    then = _flat(manifest["identity"])
    if "chat_template" not in then:  # the first checkpoints called it the tokenizer, whose own hash they don't have
        then |= {"chat_template": then["tokenizer"], "tokenizer": now["tokenizer"]}
    differences = [
        (name, then.get(name, "–"), now.get(name, "–"))
        for name in dict.fromkeys([*now, *then])
        if then.get(name) != now.get(name)
    ]
    if differences:
        raise OtherSettings(str(folder), differences)


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Settings by dotted name, as text."""
    flat: dict[str, str] = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value if isinstance(value, str) else json.dumps(value)
    return flat


def contents_of(run: Run) -> Contents:
    """What a checkpoint is made of, by file; nothing is copied yet.

    Divided tensors are put together in the first process's main memory, so that a checkpoint is the same however many
    processes made it. All of them have to take part then.
    """
    contents = {TRAINED: trained_parameters(run.policy, run.policy), OPTIMIZER: _optimizer_tensors(run)}
    if run.state:
        contents[STATE] = {name: value.clone() for name, value in run.state.items()}
    if (reference := _moving_reference(run)) is not None:
        contents[REFERENCE] = trained_parameters(run.policy, reference)
    if not run.ranks.lockstep:
        return contents
    return {name: whole_tensors(tensors, run.ranks) for name, tensors in contents.items()}


def _moving_reference(run: Run) -> Policy | None:
    if run.config.sync_reference_every is None:
        return None
    assert isinstance(run.reference, FrozenCopy)
    return run.reference.policy


def _optimizer_tensors(run: Run) -> dict[str, Tensor]:
    """Flat names, such as ``<parameter's number>.exp_avg``. Whole numbers become tensors of int64."""
    state = run.optimizer.state_dict()["state"]
    return {
        f"{number}.{name}": value.detach() if isinstance(value, Tensor) else torch.tensor(value)
        for number, values in state.items()
        for name, value in values.items()
    }


def _restore(run: Run, folder: Path) -> None:
    _copy(folder / TRAINED, trained_parameters(run.policy, run.policy))
    if (reference := _moving_reference(run)) is not None:
        _copy(folder / REFERENCE, trained_parameters(run.policy, reference))
    if run.state:
        run.state = {name: value.to(run.accelerator.device) for name, value in load_file(folder / STATE).items()}
    state = _optimizer_state(run, folder / OPTIMIZER)
    run.optimizer.load_state_dict({"state": state, "param_groups": run.optimizer.state_dict()["param_groups"]})


def _optimizer_state(run: Run, path: Path) -> dict[int, dict[str, Tensor | int]]:
    """The optimizer's state by parameter; of a divided parameter's as much as the process has of that."""
    parameters = [parameter for group in run.optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor | int]] = {}
    with safe_open(path, "pt") as file:
        for key in file.keys():  # noqa: SIM118 - it is no dictionary
            number, name = key.split(".", 1)
            like = parameters[int(number)]
            divided = tuple(file.get_slice(key).get_shape()) == tuple(like.shape)
            value = own_rows(file, key, like) if divided else file.get_tensor(key)
            is_count = value.ndim == 0 and value.dtype == torch.int64
            state.setdefault(int(number), {})[name] = int(value) if is_count else value
    return state


def _copy(path: Path, target: dict[str, Tensor]) -> None:
    with safe_open(path, "pt") as file:
        for name, tensor in target.items():
            tensor.copy_(own_rows(file, name, tensor))


def _damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, or ``None``. Sizes come first: to see them nothing has to be read."""
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"].items()
        for name, facts in files:
            path = folder / name
            if not path.is_file() or path.stat().st_size != facts["bytes"]:
                return f"{name} is missing or cut short"
        for name, facts in files:
            if _sha256(folder / name) != facts["sha256"]:
                return f"{name} doesn't have the hash that its manifest says"
    except (OSError, ValueError, KeyError, TypeError) as fault:
        return f"its manifest can't be read: {fault}"
    return None


def _prune(saved: Path) -> None:
    """Keeps the newest valid ones and whatever is newer than the last of them; a damaged one stays to be named.

    Args:
        saved: was written just now, and hashed then. Of the others only as many are read as it takes to know that
            enough valid ones are kept.
    """
    found = newest_first(saved.parent.parent)
    valid = (path for path in found if path == saved or _damage(path) is None)
    kept = list(islice(valid, KEEP))
    if len(kept) < KEEP:
        return
    for path in found[found.index(kept[-1]) + 1 :]:
        with suppress(OSError):
            _remove(path)


def _remove(folder: Path) -> None:
    """Takes its name away before its content, so that a checkpoint is never half there."""
    if folder.exists():
        scratch = scratch_for(folder)
        folder.rename(scratch)
        shutil.rmtree(scratch, ignore_errors=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """Makes the operating system write a file or folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
