"""What tests of the command line share."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

Say = Callable[..., tuple[int, str, str]]
"""The fixture ``command``: from words to exit status, standard output and standard error."""


def write_rows(path: Path, rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_yaml(path: Path, options: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(options), encoding="utf-8")
    return path


def assert_one_error(err: str) -> None:
    """One or two lines, in plain words."""
    assert "Traceback" not in err
    assert "usage:" not in err
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert len(errors[0]) < 800
    assert err.endswith(f"{errors[0]}\n")
