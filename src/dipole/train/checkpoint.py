"""Checkpoints: written beside, checked by hash, renamed when whole. Safetensors and JSON, no pickle.

A checkpoint holds what training changes: the trained weights, the optimizer's state, and the step. The order of the
data and the learning rate are functions of the step, and no step draws random numbers, so that is all of it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dipole.errors import ConfigError
from dipole.train.setup import Run
from dipole.train.track import now, write_json

FORMAT = 1
KEEP = 2
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
        save_file(_trained(run), scratch / "trained.safetensors")
        save_file(_optimizer_tensors(run), scratch / "optimizer.safetensors")
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
        "peft": {name: getattr(config.peft, name) for name in ("method", "rank", "alpha", "targets")},
        "global_batch_size": config.global_batch_size,
        "seed": config.seed,
        "max_length": config.max_length,
        "prompt_format": config.prompt_format,
        "tokenizer": hashlib.sha256(str(run.tokenizer.chat_template).encode()).hexdigest()[:16],
    }


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


def _trained(run: Run) -> dict[str, Tensor]:
    return {
        name: parameter.detach().cpu().contiguous()
        for name, parameter in run.policy.named_parameters()
        if parameter.requires_grad
    }


def _optimizer_tensors(run: Run) -> dict[str, Tensor]:
    """Flat names: ``<parameter's number>.<exp_avg, exp_avg_sq or step>``."""
    state = run.optimizer.state_dict()["state"]
    return {
        f"{number}.{name}": tensor.detach().cpu().contiguous()
        for number, values in state.items()
        for name, tensor in values.items()
    }


def _restore(run: Run, folder: Path) -> None:
    weights = load_file(folder / "trained.safetensors")
    with torch.no_grad():
        for name, parameter in run.policy.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(weights.pop(name))
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in load_file(folder / "optimizer.safetensors").items():
        number, name = key.split(".", 1)
        state.setdefault(int(number), {})[name] = tensor
    run.optimizer.load_state_dict({"state": state, "param_groups": run.optimizer.state_dict()["param_groups"]})


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
