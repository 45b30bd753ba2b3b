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
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def cut_back(path: Path, step: int) -> None:
    """Drops the rows of a JSON Lines file that belong to later steps: a resumed run writes those again."""
    if not path.exists():
        return
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
    kept = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows if row["step"] <= step)
    scratch = path.with_name(f".{path.name}.tmp")
    scratch.write_text(kept, encoding="utf-8")
    os.replace(scratch, path)


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
