"""What a run writes down: metrics.jsonl, samples.jsonl and manifest.json. Human-readable, one JSON object a line."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

SCHEMA = 1


def write_json(path: Path, content: Any) -> None:
    """Writes a file whole or not at all: beside it first, then renamed over it."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    scratch.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(scratch, path)


def append_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Appends rows to a JSON Lines file and flushes them."""
    with path.open("a", encoding="utf-8") as file:
        file.writelines(map(_line, rows))


def cut_back(path: Path, step: int) -> None:
    """Drops the rows of a JSON Lines file that a run resumed from the checkpoint of ``step`` writes again.

    A checkpoint comes after its step's own row, which has a learning rate, and before evaluations and samples.
    """
    if not path.exists():
        return
    rows = [row for line in path.read_text(encoding="utf-8").split("\n") if (row := _parsed(line)) is not None]
    kept = [row for row in rows if row["step"] < step or (row["step"] == step and "lr" in row)]
    scratch = path.with_name(f".{path.name}.tmp")
    scratch.write_text("".join(map(_line, kept)), encoding="utf-8")
    os.replace(scratch, path)


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
