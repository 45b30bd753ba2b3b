"""Reading the files of a run folder: what they may hold, and every text made inert before anything looks at it.

Only ``manifest.json`` has to be there. A line of a log that can't be read (a run that was killed leaves half a line) is
left out and counted; a file that can't be read at all is an error.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dipole.errors import DataError
from dipole.evaluate.stats import Estimate

OPTIONAL = {
    "config.yaml": "the configuration wasn't kept",
    "metrics.jsonl": "nothing was logged",
    "samples.jsonl": "nothing was sampled",
    "evaluation.json": "nothing was measured",
    "audit.json": "the data wasn't audited",
}
"""The files that a run may lack, and what their absence means."""

HARNESS = "harness.json"
"""Rows like those of evaluation.json, of lm-evaluation-harness; see ``evaluate.harness``."""

_INVISIBLE = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"  # ANSI: colours and cursor movements
    r"|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)"  # ANSI: window titles and links
    r"|[\x00-\x08\x0b-\x1f\x7f-\x9f]"  # control characters other than tab and line feed
    r"|[\u202a-\u202e\u2066-\u2069]"  # marks that turn the direction of the text around them
    r"|[\u2028\u2029\ufeff]"
)
_SURROGATE = re.compile(r"[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Measure:
    """One row of ``evaluation.json``: something measured before and after training.

    Args:
        name: a few words, such as "Held-out accuracy".
        what: one sentence on what it is.
        unit: of the numbers.
        before: of the model that training started from.
        after: of the trained model.
        difference: after − before, paired where it can be.
        verdict: ``"better"``, ``"worse"``, ``"unclear"``, or ``None`` where neither direction is better.
    """

    name: str
    what: str
    unit: str
    before: Estimate | None
    after: Estimate | None
    difference: Estimate | None
    verdict: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFolder:
    """What the files of a run say. All strings are inert: see ``inert``.

    Args:
        name: of the folder.
        manifest: ``manifest.json``.
        config: ``config.yaml``, parsed; empty when there is none.
        config_text: the same as it stands in the file.
        metrics: the lines of ``metrics.jsonl``.
        samples: the lines of ``samples.jsonl``.
        measures: the rows of ``evaluation.json``, and of ``harness.json`` after them.
        notes: its notes.
        audit: ``audit.json``, ``None`` when there is none.
        missing: the optional files that aren't there.
        unread: sentences on lines that couldn't be read.
    """

    name: str
    manifest: Mapping[str, Any]
    config: Mapping[str, Any]
    config_text: str
    metrics: list[dict[str, Any]]
    samples: list[dict[str, Any]]
    measures: list[Measure]
    notes: list[str]
    audit: Mapping[str, Any] | None
    missing: list[str]
    unread: list[str]


def read_run_folder(run: Path) -> RunFolder:
    """Reads a run folder.

    Raises:
        DataError: it isn't one, or a file of it can't be read.
    """
    if not (run / "manifest.json").is_file():
        raise DataError("this is not the folder of a run: it has no manifest.json", where=str(run))
    unread: list[str] = []
    evaluation = _json_object(run / "evaluation.json") or {}
    config_text = inert(_text(run / "config.yaml") or "")
    return RunFolder(
        name=inert(run.resolve().name),
        manifest=_json_object(run / "manifest.json") or {},
        config=_yaml_mapping(config_text, run / "config.yaml"),
        config_text=config_text,
        metrics=_json_lines(run / "metrics.jsonl", unread),
        samples=_json_lines(run / "samples.jsonl", unread),
        measures=[
            _measure(row, str(run / name))
            for name, rows in (("evaluation.json", evaluation), (HARNESS, _json_object(run / HARNESS) or {}))
            for row in rows.get("rows", [])
        ],
        notes=[str(note) for note in evaluation.get("notes", [])],
        audit=_json_object(run / "audit.json"),
        missing=[name for name in OPTIONAL if not (run / name).is_file()],
        unread=unread,
    )


def inert(value: Any) -> Any:
    """The value with what no reader should meet taken out of its strings, at any depth.

    Taken out: ANSI sequences, control characters but tab and line feed, and marks that reverse the direction of the
    text after them. Half surrogate pairs, which no file can hold, become U+FFFD. Markup is left to the template, which
    escapes everything.
    """
    if isinstance(value, str):
        return _SURROGATE.sub("\ufffd", _INVISIBLE.sub("", value.replace("\r\n", "\n")))
    if isinstance(value, dict):
        return {inert(key): inert(item) for key, item in value.items()}
    if isinstance(value, list):
        return [inert(item) for item in value]
    return value


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the file can't be read: {error}", where=str(path)) from error


def _json_object(path: Path) -> dict[str, Any] | None:
    text = _text(path)
    if text is None:
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"the file isn't JSON: {error}", where=str(path), remedy="Run the step that wrote it again."
        ) from error
    if not isinstance(value, dict):
        raise DataError("the file has to hold one JSON object", where=str(path))
    clean: dict[str, Any] = inert(value)
    return clean


def _json_lines(path: Path, unread: list[str]) -> list[dict[str, Any]]:
    rows, wrong = [], []
    for number, line in enumerate((_text(path) or "").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict):
            rows.append(inert(row))
        else:
            wrong.append(number)
    if wrong:
        lines = f"{len(wrong)} lines aren't JSON objects" if len(wrong) > 1 else "one line isn't a JSON object"
        unread.append(f"{path.name}: {lines} and can't be shown, the first of them line {wrong[0]}.")
    return rows


def _yaml_mapping(text: str, path: Path) -> dict[str, Any]:
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise DataError(f"the file isn't YAML: {error}", where=str(path)) from error
    return value if isinstance(value, dict) else {}


def _measure(row: Any, where: str) -> Measure:
    if not isinstance(row, dict) or not isinstance(row.get("name"), str):
        raise DataError("a row without a name", where=where, remedy="Write it with name, what, unit, before and after.")

    def estimate(key: str) -> Estimate | None:
        fields = row.get(key)
        return None if fields is None else Estimate.from_json(fields, where=f"{where}: {row['name']}, {key}")

    return Measure(
        name=row["name"],
        what=str(row.get("what") or ""),
        unit=str(row.get("unit") or ""),
        before=estimate("before"),
        after=estimate("after"),
        difference=estimate("difference"),
        verdict=row.get("verdict"),
    )
