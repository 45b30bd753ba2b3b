"""What a run writes down: metrics.jsonl, samples.jsonl and manifest.json. Human-readable, one JSON object a line."""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
import uuid
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

SCHEMA = 1


def write_json(path: Path, content: Any) -> None:
    """Writes a file whole or not at all: beside it first, then renamed over it."""
    _write_whole(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def _write_whole(path: Path, text: str) -> None:
    scratch = scratch_for(path)
    try:
        scratch.write_text(text, encoding="utf-8")
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


def append_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Appends rows to a JSON Lines file, all of them or, on an ``OSError``, none."""
    before = path.stat().st_size if path.exists() else None
    try:
        with path.open("a", encoding="utf-8") as file:
            file.writelines(map(_line, rows))
    except OSError:
        if before is not None:
            os.truncate(path, before)
        else:
            path.unlink(missing_ok=True)
        raise


class Log:
    """The files of rows in a run folder. A full disk doesn't end a run: rows wait until there is room.

    Args:
        folder: of the run.
        say: is told when rows have to wait.
        writes: of several processes one alone writes; the others' rows are dropped.
    """

    def __init__(self, folder: Path, say: Callable[[str], None], *, writes: bool) -> None:
        self._folder = folder
        self._say = say
        self._writes = writes
        self._waiting: dict[str, list[Mapping[str, Any]]] = {}
        self._followers: dict[str, list[Callable[[Mapping[str, Any]], None]]] = {}

    def follow(self, name: str, follower: Callable[[Mapping[str, Any]], None]) -> None:
        """From here on ``follower`` is told every row of the file ``name``."""
        self._followers.setdefault(name, []).append(follower)

    def append(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Appends rows to the file ``name``, after those that wait."""
        if not self._writes:
            return
        rows = list(rows)
        for follower in self._followers.get(name, ()):
            for row in rows:
                follower(row)
        waited = bool(self._waiting)
        self._waiting.setdefault(name, []).extend(rows)
        try:
            self.flush()
        except OSError as fault:
            if not waited:
                self._say(f"{self._folder / name}: {fault.strerror}. Its rows wait in memory until there is room.")

    def flush(self) -> None:
        """Writes what waits.

        Raises:
            OSError: there is still no room.
        """
        for name in list(self._waiting):
            append_lines(self._folder / name, self._waiting[name])
            del self._waiting[name]


def clear_scratch(folder: Path) -> None:
    """Removes files and folders that a process left half written when it was killed; see ``scratch_for``."""
    for path in folder.glob(".*.tmp"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def scratch_for(path: Path) -> Path:
    """A hidden place beside ``path``, on the same disk, to write what is renamed to ``path`` when it is whole."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")


def cut_back(path: Path, step: int) -> None:
    """Drops the rows of a JSON Lines file that a run resumed from the checkpoint of ``step`` writes again.

    A checkpoint comes after its step's own rows, which have a learning rate, and before evaluations and samples.
    """
    if not path.exists():
        return
    rows = [row for line in path.read_text(encoding="utf-8").split("\n") if (row := _parsed(line)) is not None]
    kept = [row for row in rows if row["step"] < step or (row["step"] == step and "lr" in row)]
    _write_whole(path, "".join(map(_line, kept)))


def _line(row: Mapping[str, Any]) -> str:
    """A row as a line. Three characters are escaped that JSON may hold as they are, but many take for a line's end."""
    line = json.dumps(row, ensure_ascii=False)
    return line.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029").replace("\x85", "\\u0085") + "\n"


def _parsed(line: str) -> dict[str, Any] | None:
    """The row of a line; ``None`` for one that was never finished, since the process died."""
    try:
        row: dict[str, Any] = json.loads(line)
    except ValueError:
        return None
    return row


def environment(device: torch.device) -> dict[str, Any]:
    """Versions and machine, as far as results depend on them."""
    packages = ("torch", "transformers", "peft", "accelerate", "tokenizers")
    return {
        "python": sys.version.split()[0],
        **{name: _version(name) for name in packages},
        "platform": f"{platform.system()} {platform.machine()}",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
    }


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
