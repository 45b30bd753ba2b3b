"""Small preference files and runs over the tiny model."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dipole.config import TrainConfig, train_config
from dipole.objective import Loss
from dipole.progress import Silent
from dipole.train.setup import Run, prepare

WORDS = ["good", "fine", "dull", "slow", "warm", "odd", "kind", "bright", "grey", "loud", "calm", "thin"]


def write_groups(path: Path, *, train: int = 10, held_out: int = 3, completions: int = 3, seed: int = 0) -> Path:
    """Groups in the native format, judged by soft comparisons; probabilities and weights are exact in float32."""
    draw = random.Random(seed)
    lines = []
    for number in range(train + held_out):
        answers = [" ".join(draw.choices(WORDS, k=draw.randint(1, 4))) + f" {index}" for index in range(completions)]
        judgments = [
            {"kind": "comparison", "i": i, "j": j, "p": draw.choice((1.0, 0.75, 0.625)), "weight": draw.choice((1, 2))}
            for j in range(completions)
            for i in range(j)
        ]
        group = {
            "schema": 1,
            "id": f"g{number}",
            "prompt": f"About {draw.choice(WORDS)} number {number}:",
            "completions": [{"text": f" {answer}"} for answer in answers],
            "judgments": judgments,
            "split": "train" if number < train else "eval",
        }
        lines.append(json.dumps(group))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


GOOD, BAD = ("warm", "kind", "bright"), ("grey", "dull", "odd")


def write_for(path: Path, row: Loss, *, groups: int = 4) -> Path:
    """Groups in which the better answer can be told by its words: pairs, approvals, or ratings of three answers."""
    lines = []
    for number in range(groups):
        answers = [f" {GOOD[number % 3]}", f" {BAD[number % 3]}"]
        judgments: list[dict[str, Any]] = [{"kind": "comparison", "i": 0, "j": 1}]
        if row.relation == "unary":
            judgments = [{"kind": "approval", "i": i, "value": i == 0} for i in (0, 1)]
        if row.relation == "list":
            answers.insert(1, " calm")
        if row.relation == "list" or "scores" in row.inputs:
            judgments = [{"kind": "rating", "i": i, "value": -i} for i in range(len(answers))]
        meta = [{"unsafe": i > 0, "from_policy": i == 0, "margin_rewards": [0.1 * i]} for i in range(len(answers))]
        lines.append(
            {
                "schema": 1,
                "id": f"g{number}",
                "prompt": f"{number}:",
                "completions": [{"text": text, "meta": facts} for text, facts in zip(answers, meta, strict=True)],
                "judgments": judgments,
            }
        )
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def tiny_config(model: Path, data: Path, output: Path, **options: Any) -> TrainConfig:
    """Four steps an epoch over ten groups, small samples; ``options`` as in ``dipole.train``."""
    defaults: dict[str, Any] = {
        "global_batch_size": 3,
        "num_samples": 2,
        "sample_tokens": 6,
        "learning_rate": 1e-3,
        "max_length": 128,
        "dtype": "float32",
    }
    return train_config(model=str(model), data=str(data), output=str(output), **(defaults | options))


def prepared(config: TrainConfig, constraints: Sequence[Any] = ()) -> Run:
    """A run before its first step."""
    return prepare(config, Silent(), constraints)


class Recorder(Silent):
    """A progress that remembers what was said, and may call something after each step."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.stages: list[str] = []
        self.steps = 0

    def stage(self, text: str, total: int | None = None) -> None:
        self.stages.append(text)

    def say(self, text: str) -> None:
        self.said.append(text)

    def advance(self, units: int = 1, note: str = "") -> None:
        if note:
            self.steps += 1


class StopAfter(Recorder):
    """Raises in the middle of a run, as if the process had been killed."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.limit = steps

    def advance(self, units: int = 1, note: str = "") -> None:
        super().advance(units, note)
        if note and self.steps == self.limit:
            raise KilledError


class KilledError(Exception):
    """Stands for the end of the process."""


def rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON Lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def without_time(row: dict[str, Any]) -> dict[str, Any]:
    """A row of metrics without what depends on the clock."""
    return {name: value for name, value in row.items() if name != "tokens_per_second"}
