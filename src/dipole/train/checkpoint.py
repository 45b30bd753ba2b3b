"""Checkpoints: written beside, checked by hash, renamed when whole. Safetensors and JSON, no pickle.

A checkpoint holds what training changes: the trained weights, the optimizer's state, the moving state of loss and
constraints, a moving reference, and the step. The order of the data and the learning rate are functions of the step,
and no step draws random numbers, so that is all of it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from dataclasses import fields
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from dipole.errors import ConfigError
from dipole.objective.constraints import Constraint
from dipole.policy.logprobs import Policy
from dipole.policy.reference import FrozenCopy
from dipole.train.setup import Run, trained_parameters
from dipole.train.track import now, write_json

FORMAT = 1
KEEP = 2
STATE = "state.safetensors"
REFERENCE = "reference.safetensors"
MANIFEST = "manifest.json"


def save_checkpoint(run: Run) -> Path:
    """Writes ``checkpoints/step-NNNNNN``, over a damaged one if there is, and keeps the two newest valid ones."""
    folder = run.output / "checkpoints" / f"step-{run.step:06d}"
    if folder.exists():
        if _damage(folder) is None:
            return folder
        shutil.rmtree(folder)
    scratch = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.tmp")
    scratch.mkdir(parents=True)
    try:
        save_file(_trained(run, run.policy), scratch / "trained.safetensors")
        save_file(_optimizer_tensors(run), scratch / "optimizer.safetensors")
        if run.state:
            save_file({name: value.cpu().clone() for name, value in run.state.items()}, scratch / STATE)
        if (reference := _moving_reference(run)) is not None:
            save_file(_trained(run, reference), scratch / REFERENCE)
        files = {
            path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)} for path in sorted(scratch.iterdir())
        }
        for name in files:
            _sync(scratch / name)
        manifest = {"format": FORMAT, "step": run.step, "created": now(), "identity": identity(run), "files": files}
        write_json(scratch / MANIFEST, manifest)
        _sync(scratch / MANIFEST)
        _sync(scratch)
        scratch.rename(folder)
        _sync(folder.parent)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    _prune(folder.parent)
    return folder


def resume(run: Run) -> list[str]:
    """Restores the newest valid checkpoint into ``run``, if there is one.

    Returns:
        Sentences: damaged checkpoints that were skipped.

    Raises:
        ConfigError: the checkpoint belongs to another run.
    """
    said = []
    folders = sorted((run.output / "checkpoints").glob("step-*"), reverse=True)
    for folder in folders:
        if damage := _damage(folder):
            said.append(f"{folder.name} is damaged ({damage}) and was skipped.")
            continue
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        _check_identity(manifest, run, folder)
        _restore(run, folder)
        run.step = manifest["step"]
        break
    return said


def identity(run: Run) -> dict[str, Any]:
    """What has to be the same for a checkpoint to go on: settings that a step's result depends on."""
    config = run.config
    return {
        "model": run.fingerprint,
        "data": {name: value for name, value in run.data.facts.items() if name != "source"},
        "loss": {"name": run.loss.name, **{name: _plain(value) for name, value in run.hyper.items()}},
        "constraints": [_facts(constraint) for constraint in run.constraints],
        "reference": {"sync_every": config.sync_reference_every, "sync_alpha": config.sync_reference_alpha},
        "peft": {name: getattr(config.peft, name) for name in ("method", "rank", "alpha", "targets")},
        "global_batch_size": config.global_batch_size,
        "seed": config.seed,
        "max_length": config.max_length,
        "prompt_format": config.prompt_format,
        "tokenizer": hashlib.sha256(str(run.tokenizer.chat_template).encode()).hexdigest()[:16],
    }


def _facts(constraint: Constraint) -> dict[str, Any]:
    """All of a constraint but its function, which nobody can compare."""
    numbers = {item.name: getattr(constraint, item.name) for item in fields(constraint) if item.name != "function"}
    return {"kind": type(constraint).__name__, **numbers}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _check_identity(manifest: dict[str, Any], run: Run, folder: Path) -> None:
    if manifest["format"] != FORMAT:
        raise ConfigError(
            f"its format is {manifest['format']}, and this version of Dipole reads {FORMAT}", where=str(folder)
        )
    ours = json.loads(json.dumps(identity(run)))
    differing = [name for name in ours if ours[name] != manifest["identity"].get(name)]
    if differing:
        table = "; ".join(f"{name}: {manifest['identity'].get(name)} then, {ours[name]} now" for name in differing)
        raise ConfigError(
            f"the checkpoint was made with other settings ({table})",
            where=str(folder),
            remedy="Use the same settings, or another --output",
        )


def _trained(run: Run, model: Policy) -> dict[str, Tensor]:
    """What training changes, as it is in the policy or in a reference that follows it."""
    tensors = trained_parameters(run.policy, model)
    return {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}


def _moving_reference(run: Run) -> Policy | None:
    if run.config.sync_reference_every is None:
        return None
    assert isinstance(run.reference, FrozenCopy)
    return run.reference.policy


def _optimizer_tensors(run: Run) -> dict[str, Tensor]:
    """Flat names: ``<parameter's number>.<exp_avg, exp_avg_sq or step>``."""
    state = run.optimizer.state_dict()["state"]
    return {
        f"{number}.{name}": tensor.detach().cpu().contiguous()
        for number, values in state.items()
        for name, tensor in values.items()
    }


def _restore(run: Run, folder: Path) -> None:
    _copy(load_file(folder / "trained.safetensors"), trained_parameters(run.policy, run.policy))
    if (reference := _moving_reference(run)) is not None:
        _copy(load_file(folder / REFERENCE), trained_parameters(run.policy, reference))
    if run.state:
        run.state = {name: value.to(run.accelerator.device) for name, value in load_file(folder / STATE).items()}
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in load_file(folder / "optimizer.safetensors").items():
        number, name = key.split(".", 1)
        state.setdefault(int(number), {})[name] = tensor
    run.optimizer.load_state_dict({"state": state, "param_groups": run.optimizer.state_dict()["param_groups"]})


def _copy(source: dict[str, Tensor], target: dict[str, Tensor]) -> None:
    for name, tensor in target.items():
        tensor.copy_(source[name])


def _damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, or ``None``."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        for name, facts in manifest["files"].items():
            path = folder / name
            if not path.is_file() or path.stat().st_size != facts["bytes"]:
                return f"{name} is missing or cut short"
            if _sha256(path) != facts["sha256"]:
                return f"{name} doesn't have the hash that its manifest says"
    except (OSError, ValueError, KeyError, TypeError) as fault:
        return f"its manifest can't be read: {fault}"
    return None


def _prune(folder: Path) -> None:
    for unfinished in folder.glob(".step-*.tmp"):  # of a process that was killed
        shutil.rmtree(unfinished, ignore_errors=True)
    valid = [path for path in sorted(folder.glob("step-*"), reverse=True) if _damage(path) is None]
    for path in valid[KEEP:]:
        shutil.rmtree(path, ignore_errors=True)


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
