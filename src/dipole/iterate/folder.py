"""Where rounds keep what they make: every stage reads files and writes one, so that a file that is there is work done.

``OUTPUT/config.yaml`` (resolved) · ``prompts.jsonl`` (all of them, split) · ``round-000/evaluation`` (the first
model) · ``round-001`` … each with ``prompts.jsonl``, ``groups.jsonl``, ``judged.jsonl``, ``pairs.jsonl``,
``training.jsonl``, ``train/`` (a run folder), ``evaluation/`` and ``manifest.json`` · ``rounds.json``, ``report.html``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dipole.train.track import write_json


@dataclass(frozen=True, slots=True)
class Round:
    """A round's number, from 0 for the model that rounds begin with, and its folder."""

    number: int
    folder: Path

    @property
    def prompts(self) -> Path:
        """Groups without completions."""
        return self.folder / "prompts.jsonl"

    @property
    def groups(self) -> Path:
        """With the completions of the last round's policy."""
        return self.folder / "groups.jsonl"

    @property
    def judged(self) -> Path:
        """The same with judgments."""
        return self.folder / "judged.jsonl"

    @property
    def pairs(self) -> Path:
        """Groups with the chosen pairs of this round."""
        return self.folder / "pairs.jsonl"

    @property
    def training(self) -> Path:
        """What is trained on: these pairs, and those of earlier rounds."""
        return self.folder / "training.jsonl"

    @property
    def run(self) -> Path:
        """The run folder of training."""
        return self.folder / "train"

    @property
    def samples(self) -> Path:
        """Completions of the evaluated prompts by this round's policy."""
        return self.folder / "evaluation" / "samples.jsonl"

    def compared(self, judge: str) -> Path:
        """The same beside those of round 0, judged by the ``training`` or the ``held_out`` judge."""
        return self.folder / "evaluation" / f"judged-{judge}.jsonl"

    @property
    def evaluation(self) -> Path:
        """The numbers."""
        return self.folder / "evaluation" / "evaluation.json"

    def trained(self) -> bool:
        """Whether training came to its end."""
        manifest = read_json(self.run / "manifest.json")
        return manifest.get("status") == "done" and (self.run / "final").is_dir()

    def record(self, stage: str, facts: Mapping[str, Any]) -> None:
        """Adds what is known of a stage to the round's manifest."""
        path = self.folder / "manifest.json"
        content = read_json(path) or {"schema": 1, "round": self.number, "stages": {}}
        content["stages"][stage] = dict(facts)
        write_json(path, content)

    def recorded(self) -> Mapping[str, Any]:
        """What the manifest says of the stages."""
        stages: Mapping[str, Any] = read_json(self.folder / "manifest.json").get("stages", {})
        return stages


def round_of(output: Path, number: int) -> Round:
    """A round's place."""
    return Round(number, output / f"round-{number:03d}")


def read_json(path: Path) -> dict[str, Any]:
    """An object from a file that was written whole; empty where there is none."""
    if not path.exists():
        return {}
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def sha256(path: Path) -> str:
    """Of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
