"""Folders with odd names, that can't be written to, or that aren't there at all, as a home folder may be."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from forks import fork, options, results, write_groups

from dipole.config import TrainConfig
from dipole.errors import ConfigError
from dipole.options import parse
from dipole.policy.embedded import cache_folder

ODD = "ein Ordner mit ümläuten, 空格 & 'quotes' #1"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_groups(tmp_path_factory.mktemp("data") / "data.jsonl")


def test_spaces_and_every_kind_of_letter_in_all_paths(tiny_folder: Path, data: Path, tmp_path: Path) -> None:
    odd = tmp_path / ODD
    model, file = odd / "modèle à moi", odd / "дані з пробілом.jsonl"
    shutil.copytree(tiny_folder, model)
    shutil.copy(data, file)
    config = options(model, file, odd / "прогін 1", num_epochs=1, num_samples=1, sample_tokens=4)
    stop = {"at": "dipole.train.loop.clip", "call": 3, "when": "before", "signals": [15]}
    assert fork(config, events=[stop]).status == 143
    ended = fork(config | {"resume": True})
    assert ended.status == 0, ended.said
    plain = options(tiny_folder, data, tmp_path / "run", num_epochs=1, num_samples=1, sample_tokens=4)
    assert fork(plain).status == 0
    assert results(odd / "прогін 1") == results(tmp_path / "run")


def test_nothing_in_a_checkpoint_or_the_final_model_names_a_place(
    tiny_folder: Path, data: Path, tmp_path: Path
) -> None:
    """So that a run can be moved."""
    output = tmp_path / "run"
    assert fork(options(tiny_folder, data, output, max_steps=1)).status == 0
    files = [*output.glob("checkpoints/**/*"), *output.glob("final/*")]
    assert len(files) > 4
    for file in files:
        if file.is_file():
            assert str(tmp_path).encode() not in file.read_bytes(), file


@pytest.mark.parametrize("reason", [errno.EROFS, errno.EACCES])
def test_a_folder_that_is_read_only_is_refused_before_anything_is_loaded(
    data: Path, tmp_path: Path, reason: int
) -> None:
    event = {"at": "dipole.train.lock._open", "call": 0, "errno": reason}
    ended = fork(options(tmp_path / "no model", data, tmp_path / "run"), events=[event])
    assert ended.status == 2
    said = ended.said[0].strip()
    assert (
        said
        == f"error: {tmp_path / 'run'}: nothing can be written there: {os.strerror(reason)}. Choose another --output."
    )
    assert list(tmp_path.glob("run/*")) == []


def test_the_current_folder_may_be_read_only(tiny_folder: Path, data: Path, tmp_path: Path) -> None:
    """Nothing is written but what was asked for: a run leaves the folder that it is started from as it was."""
    here = tmp_path / "here"
    here.mkdir()
    done = dipole(here, "train", "--model", tiny_folder, "--data", data, "--output", tmp_path / "run", *QUICK)
    assert done.returncode == 0, done.stderr
    assert list(here.iterdir()) == []


QUICK = ("--max_steps", "1", "--num_samples", "0", "--max_length", "128")


def dipole(cwd: Path, *argv: str | Path, **environment: str | None) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own; a variable that is ``None`` isn't set."""
    there = os.environ | {"OMP_NUM_THREADS": "1"} | {k: v for k, v in environment.items() if v is not None}
    for name in [name for name, value in environment.items() if value is None]:
        there.pop(name, None)
    command = [sys.executable, "-m", "dipole", *map(str, argv)]
    return subprocess.run(command, cwd=cwd, env=there, capture_output=True, text=True, timeout=300, check=False)


NO_HOME = {"HOME": "/proc/nobody", "XDG_CACHE_HOME": None, "HF_HOME": None, "MPLCONFIGDIR": None, "DIPOLE_CACHE": None}


def test_a_run_needs_no_home_folder(tiny_folder: Path, data: Path, tmp_path: Path) -> None:
    """Neither there nor to be made; and in the oldest of locales, with Python's assertions off."""
    done = dipole(
        tmp_path,
        *("train", "--model", tiny_folder, "--data", data, "--output", tmp_path / "run", *QUICK),
        **NO_HOME,
        LC_ALL="C",
        PYTHONOPTIMIZE="1",
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["status"] == "done"


def test_a_cache_without_a_home_folder_asks_for_a_place(tiny_folder: Path, data: Path, tmp_path: Path) -> None:
    argv = ("train", "--model", tiny_folder, "--data", data, "--output", tmp_path / "run", *QUICK)
    done = dipole(tmp_path, *argv, "--reference", "cached", **NO_HOME)
    assert done.returncode == 2, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: /proc/nobody/.cache/dipole: nothing can be kept there: ")
    assert last.endswith("Set DIPOLE_CACHE to a folder that can be written to.")
    done = dipole(tmp_path, *argv, "--reference", "cached", **(NO_HOME | {"DIPOLE_CACHE": str(tmp_path / "cache")}))
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "cache" / "reference").glob("*/*.safetensors"))


def test_a_user_without_a_home_folder_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container whose user has no entry of its own."""
    for name in ("DIPOLE_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pathlib.Path.home", _no_home)
    with pytest.raises(ConfigError, match="there is no home folder") as caught:
        cache_folder()
    assert "DIPOLE_CACHE" in (caught.value.remedy or "")


def _no_home() -> Path:
    raise RuntimeError("Could not determine home directory.")


def test_a_cache_is_where_it_is_told_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    monkeypatch.delenv("DIPOLE_CACHE", raising=False)
    assert cache_folder() == tmp_path / "x" / "dipole"
    monkeypatch.setenv("DIPOLE_CACHE", str(tmp_path / "d"))
    assert cache_folder() == tmp_path / "d"
    assert list((tmp_path / "d").iterdir()) == []  # the trial is gone


def test_a_huge_file_of_options_is_refused_at_once(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("# nothing\n" * 5_000_000)
    with pytest.raises(ConfigError, match="is too large to be a file of options") as caught:
        parse(TrainConfig, ["--config", str(file)], prog="dipole train", example="")
    assert caught.value.where == f"--config {file}"
