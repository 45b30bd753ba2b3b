"""Small iterations over the tiny model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dipole.config import PeftConfig
from dipole.iterate.settings import (
    IterateConfig,
    PairingSettings,
    RoundLoss,
    SamplerSettings,
    StopSettings,
    TrainingSettings,
)

WORDS = ["amber", "basil", "cedar", "delta", "ember", "flint", "grove", "heron"]
WORDS += ["ivory", "jolly", "knoll", "lemon", "maple", "north", "ochre", "pearl"]


def write_prompts(path: Path, count: int = 16) -> Path:
    rows = [{"prompt": f"{WORDS[n % 16]} {WORDS[(7 * n + 3) % 16]}:"} for n in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def tiny_rounds(model: Path, folder: Path, output: str = "rounds", **options: Any) -> IterateConfig:
    """Two rounds of an adapter, judged by length, held out by the share of ASCII letters."""
    judge = folder / "letters.py"
    judge.write_text("def letters(text):\n    return sum(c.isascii() and c.isalpha() for c in text)\n")
    prompts = folder / "prompts.jsonl"
    if not prompts.exists():
        write_prompts(prompts)
    parts: dict[str, Any] = {
        "sampler": SamplerSettings(num_completions=4, temperature=1.2, max_new_tokens=6),
        "pairing": PairingSettings(),
        "loss": RoundLoss(beta=0.1),
        "peft": PeftConfig(method="lora", rank=2),
        "training": TrainingSettings(learning_rate=1e-2, global_batch_size=4, checkpoint_every=1, max_length=64),
        "stop": StopSettings(),
    }
    defaults: dict[str, Any] = {
        "rounds": 2,
        "judge": "rule:longer",
        "held_out_judge": f"{judge}:letters",
        "eval_share": 0.25,
        "eval_completions": 2,
        "dtype": "float32",
    }
    return IterateConfig(
        model=str(model), prompts=str(prompts), output=str(folder / output), **{**defaults, **parts, **options}
    )


def results(output: Path) -> dict[str, bytes]:
    """Every file of groups, pairs and numbers, and the trained weights, as bytes."""
    names = [*output.rglob("*.jsonl"), *output.rglob("evaluation.json"), *output.glob("rounds.json")]
    weights = output.rglob("final/*.safetensors")
    files = [path for path in names if "train" not in path.relative_to(output).parts]
    return {str(path.relative_to(output)): path.read_bytes() for path in sorted([*files, *weights])}
