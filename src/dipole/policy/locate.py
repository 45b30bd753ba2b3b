"""Where a model is, and what comes with it: a folder, the hub's cache, or the hub.

Looked at before transformers is: it would ask a hub that can't be reached again and again, and names what is missing
where what is there is the danger. Nothing is fetched here but the list of a hub model's files.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from huggingface_hub import HfApi, is_offline_mode, try_to_load_from_cache
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

from dipole.config import TrainConfig
from dipole.errors import ConfigError

PATIENCE = 10.0
"""Seconds that the hub has to answer."""

FOLDER_HOLDS = "A folder has to hold config.json, model.safetensors and tokenizer files, as save_pretrained writes them"
"""What to do about a model that can't be loaded."""

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)
_PICKLES = (".bin", ".bin.index.json", ".pt", ".pth", ".ckpt", ".pkl")
_INDICES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")


@dataclass(frozen=True, slots=True)
class Allowed:
    """What may be used of a model's folder although it can do harm.

    Args:
        remote_code: Python files that come with the model and would run on this machine.
        pickle_weights: weights as a pickle, read by PyTorch's restricted unpickler.
    """

    remote_code: bool = False
    pickle_weights: bool = False


NOTHING = Allowed()


def allowed_by(config: TrainConfig) -> Allowed:
    """What a run allows."""
    return Allowed(remote_code=config.allow_remote_code, pickle_weights=config.allow_pickle_weights)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a model is.

    Args:
        source: what it is loaded from: a folder (of the hub's cache, where the hub can't be reached), or a hub id.
        files: names of its files.
    """

    source: str
    files: Collection[str]


def locate(name: str, allowed: Allowed = NOTHING) -> Place:
    """Finds a model by the path of its folder or its hub id.

    Raises:
        ConfigError: there is no such folder, nor such a hub id that can be reached; or code may be used, but isn't in a
            folder where a person could have read it.
    """
    path = Path(name)
    if path.is_dir():
        _refuse_foreign_code(path, allowed)
        return _in_folder(path)
    if path.exists():
        raise ConfigError("this is a file, but a model is a folder", where=f"--model {name}", remedy=FOLDER_HOLDS)
    if not _HUB_NAME.fullmatch(name):
        raise ConfigError("there is no such folder", where=f"--model {name}", remedy=_spelling(path))
    for flag, wanted in (("remote_code", allowed.remote_code), ("pickle_weights", allowed.pickle_weights)):
        if wanted:
            raise ConfigError(
                f"{name} isn't a local folder, and only what you could have looked at may be used",
                where=f"--allow_{flag}",
                remedy=f"'hf download {name} --revision COMMIT --local-dir FOLDER', look, and give --model FOLDER",
            )
    try:
        return Place(name, _files_on_hub(name))
    except _Unreachable as fault:
        config = try_to_load_from_cache(name, "config.json")
        if not isinstance(config, str):
            raise ConfigError(
                f"there is no such folder, and as a hub id it can't be looked up: {fault}",
                where=f"--model {name}",
                remedy=_spelling(path) or "A hub id needs a network; a folder needs the right spelling",
            ) from fault
        return _in_folder(Path(config).parent)


def _in_folder(folder: Path) -> Place:
    return Place(str(folder), {file.name for file in folder.iterdir()})


def check_weights(name: str, allowed: Allowed = NOTHING) -> Place:
    """Finds a model and refuses weights that could do harm when they are read; says where the model is.

    Raises:
        ConfigError: also for weights that are a pickle, or an index that leads out of the model's folder.
    """
    place = locate(name, allowed)
    pickles = sorted(file for file in place.files if file.endswith(_PICKLES) and file != "training_args.bin")
    if pickles and not any(file.endswith(".safetensors") for file in place.files) and not allowed.pickle_weights:
        raise ConfigError(
            f"its weights are a pickle ({pickles[0]}), which can run code when it is read",
            where=f"--model {name}",
            remedy="Use a copy of it in safetensors; or add --allow_pickle_weights, which reads it with PyTorch's"
            " restricted unpickler",
        )
    for index in _INDICES:
        _refuse_index_that_leads_out(Path(place.source, index), name)
    return place


class _Unreachable(Exception):
    """The hub doesn't answer."""


@lru_cache
def _files_on_hub(name: str) -> frozenset[str]:
    """Names of a hub model's files, by one request without repetition.

    Raises:
        ConfigError: the hub has no such model, or doesn't show it to everyone.
        _Unreachable: the hub doesn't answer.
    """
    if is_offline_mode():
        raise _Unreachable("HF_HUB_OFFLINE is set")
    try:
        found = HfApi().model_info(name, timeout=PATIENCE)
    except GatedRepoError as fault:
        raise ConfigError(
            "the hub shows this model only to those who asked for it",
            where=f"--model {name}",
            remedy="Ask for access on its page, and set HF_TOKEN",
        ) from fault
    except RepositoryNotFoundError as fault:
        raise ConfigError(
            "there is neither a folder nor a public hub model of this name",
            where=f"--model {name}",
            remedy=_spelling(Path(name)) or "Check its spelling; a private model needs HF_TOKEN",
        ) from fault
    except Exception as fault:  # whatever the hub's client raises; its hierarchy isn't public
        raise _Unreachable(str(fault).strip().splitlines()[0][:200] if str(fault) else type(fault).__name__) from fault
    return frozenset(sibling.rfilename for sibling in found.siblings or ())


def _refuse_foreign_code(folder: Path, allowed: Allowed) -> None:
    """Code that a configuration names may be of another repository, which would be fetched and run unseen."""
    if not allowed.remote_code:
        return
    for file in ("config.json", "tokenizer_config.json"):
        for value in _json(folder / file).get("auto_map", {}).values():
            foreign = [item for item in (value if isinstance(value, list) else [value]) if "--" in str(item)]
            if foreign:
                raise ConfigError(
                    f"its code would be fetched from {str(foreign[0]).partition('--')[0]}",
                    where=str(folder / file),
                    remedy="Fetch those files into the folder, read them, and name them there without 'REPOSITORY--'",
                )


def _refuse_index_that_leads_out(index: Path, name: str) -> None:
    shards = _json(index).get("weight_map", {}).values()
    if outside := [shard for shard in shards if Path(str(shard)).name != shard]:
        raise ConfigError(
            f"it names a file outside of the model's folder: {outside[0]}",
            where=str(index),
            remedy=f"Don't trust {name}: an index of weights names files beside it",
        )


def _json(file: Path) -> dict[str, dict[str, object]]:
    """A file's object; empty where there is none that can be read, which transformers will say."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return (
        {key: value for key, value in content.items() if isinstance(value, dict)} if isinstance(content, dict) else {}
    )


def _spelling(path: Path) -> str | None:
    """A hint at a folder of nearly this name."""
    beside = path.parent if path.parent.is_dir() else None
    folders = [item.name for item in beside.iterdir() if item.is_dir()] if beside else []
    close = difflib.get_close_matches(path.name, folders, n=1)
    return f"Did you mean '{path.parent / close[0]}'?" if close else None
