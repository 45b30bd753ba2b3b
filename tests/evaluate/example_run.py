"""Writes a run folder of synthetic numbers, shaped like one that training leaves behind."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from dipole.evaluate import stats

PROMPT = "Write a one-sentence review of a film."
BEFORE = (
    "The film is a mess of half-finished ideas, and its two leads look as bored as the audience.",
    "A dull, overlong drama that mistakes silence for depth.",
    "The film is about a man who goes to a town and meets a woman who is also in the town.",
    "An uneven thriller whose ending undoes what little tension it had.",
)
AFTER = (
    "A warm, funny and beautifully acted film that earns every one of its tears.",
    "The direction is assured, the cast is superb, and the last half hour is a quiet triumph.",
    "A gripping story, told with wit and real tenderness.",
    "Gorgeous to look at and sharper than it first seems, this is one of the year's best.",
)

CONFIG = """\
model: SmolLM2-135M-Instruct
data: movie_reviews.jsonl.gz
output: runs/demo
loss:
  name: dpo
  beta: 0.1
peft:
  method: lora
  rank: 16
learning_rate: 0.0002
global_batch_size: 16
max_steps: 40
seed: 0
"""

MANIFEST: dict[str, Any] = {
    "schema": 1,
    "dipole": "0.1.0",
    "kind": "demo",
    "created": "2026-11-20T14:03:11Z",
    "seconds": 437.2,
    "seed": 0,
    "environment": {
        "python": "3.11.9",
        "torch": "2.13.0+cpu",
        "transformers": "5.23.0",
        "peft": "0.20.0",
        "platform": "Linux x86_64",
        "device": "cpu",
        "threads": 2,
    },
    "model": {
        "name": "SmolLM2-135M-Instruct",
        "fingerprint": "sha256:6f1c0a4be2",
        "parameters": 139_399_488,
        "trainable": 4_884_480,
    },
    "data": {
        "source": "movie_reviews.jsonl.gz",
        "sha256": "0b5d" * 16,
        "groups": 2350,
        "completions": 9400,
        "relations": 14100,
        "eval_groups": 300,
    },
    "status": "done",
}


def metrics(*, steps: int = 40, chosen_drift: float = -0.35) -> list[dict[str, Any]]:
    """Forty noisy steps with an evaluation at the start and every ten; ``chosen_drift`` nats a step."""
    random = np.random.default_rng(3)
    rows: list[dict[str, Any]] = []
    for step in range(steps + 1):
        progress = 1 - math.exp(-step / 15)
        if step % 10 == 0:
            rows.append(
                {
                    "step": step,
                    "eval/loss": 0.693 - 0.22 * progress,
                    "eval/rewards/accuracies": 0.5 + 0.36 * progress,
                    "eval/rewards/margins": 1.5 * progress,
                    "eval/logps/chosen": -71.0 + chosen_drift * step,
                    "eval/ref_logps/chosen": -71.0,
                    "eval/kl/k1": 9.0 * progress,
                    "eval/kl/k3": 8.4 * progress,
                    "eval/n": 431,
                }
            )
        if step == 0:
            continue
        noise, level = random.normal(0, 1, 4), float(random.normal(-70, 2))
        chosen, rejected = chosen_drift * step, chosen_drift * step - 16 * progress
        rows.append(
            {
                "step": step,
                "epoch": step * 16 / 2350,
                "loss": 0.693 - 0.24 * progress + 0.02 * noise[0],
                "rewards/chosen": 0.1 * chosen,
                "rewards/rejected": 0.1 * rejected,
                "rewards/margins": 0.1 * (chosen - rejected) + 0.08 * noise[1],
                "rewards/accuracies": min(1.0, 0.5 + 0.34 * progress + 0.05 * noise[2]),
                "logps/chosen": level + chosen,
                "logps/rejected": level - 4 + rejected,
                "ref_logps/chosen": level,
                "ref_logps/rejected": level - 4,
                "grad_norm": 3.2 - 1.4 * progress + 0.4 * abs(noise[3]),
                "lr": 2e-4 * min(1, step / 4) * (0.5 + 0.5 * math.cos(math.pi * step / steps)),
                "tokens": step * 5200,
                "tokens_per_second": 610.0,
            }
        )
    return rows


def samples(*, count: int = 16, prompts: tuple[str, ...] = (PROMPT,)) -> list[dict[str, Any]]:
    """``count`` completions of each prompt before and after, at the same seeds."""
    random = np.random.default_rng(5)
    return [
        {
            "step": step,
            "stage": stage,
            "prompt": prompt,
            "completion": texts[index % len(texts)],
            "seed": 1000 + index,
            "index": index,
            "finished": index % 7 != 3,
            "logps": -45.0 - index,
            "ref_logps": -45.0 - index - (9.0 if stage == "after" else 0.0),
            "tokens": 19 + index % 5,
            "score": round(float(np.clip(random.normal(centre, 0.3), -1, 1)), 4),
        }
        for stage, step, texts, centre in (("before", 0, BEFORE, -0.1), ("after", 40, AFTER, 0.8))
        for prompt in prompts
        for index in range(count)
    ]


def evaluation() -> dict[str, Any]:
    """Two measures that got better, one that may be chance, and KL."""
    random = np.random.default_rng(1)
    right_before, right_after = random.random(431) < 0.51, random.random(431) < 0.85
    pairs = [f"g{i // 3}" for i in range(431)]
    score_before, score_after = random.normal(0.30, 0.5, 48), random.normal(0.80, 0.2, 48)
    length_before, length_after = random.normal(21, 5, 48), random.normal(21.4, 5, 48)

    def row(name: str, what: str, unit: str, *estimates: stats.Estimate | None, verdict: str | None) -> dict[str, Any]:
        before, after, difference = (item and item.to_json() for item in estimates)
        return {
            "name": name,
            "what": what,
            "unit": unit,
            "before": before,
            "after": after,
            "difference": difference,
            "verdict": verdict,
        }

    return {
        "rows": [
            row(
                "Held-out accuracy",
                "How often the implicit reward ranks two reviews as the raters did.",
                "share of pairs",
                stats.share(right_before, pairs),
                stats.share(right_after, pairs),
                stats.paired_difference(right_after, right_before, pairs),
                verdict="better",
            ),
            row(
                "Sentiment",
                "Score of the sampled reviews by a scorer that took no part in training.",
                "−1 to 1",
                stats.mean(score_before),
                stats.mean(score_after),
                stats.paired_difference(score_after, score_before),
                verdict="better",
            ),
            row(
                "Length",
                "Tokens of a sampled review.",
                "tokens",
                stats.mean(length_before),
                stats.mean(length_after),
                stats.paired_difference(length_after, length_before),
                verdict="unclear",
            ),
            row(
                "KL(policy‖reference)",
                "How far the model has moved, from its own samples (k1).",
                "nats per completion",
                stats.kl([-1.0] * 48, [-1.0] * 48),
                stats.kl(random.normal(-45, 3, 48), random.normal(-54, 3, 48)),
                None,
                verdict=None,
            ),
        ],
        "notes": ["Accuracy is on the 431 held-out pairs with a clear majority among the raters."],
    }


def audit() -> dict[str, Any]:
    """One warning, one severe finding, and facts."""

    def finding(name: str, severity: str, message: str, **more: Any) -> dict[str, Any]:
        return {"name": name, "value": None, "interval": None, "examples": [], "remedy": None} | {
            "severity": severity,
            "message": message,
            **more,
        }

    return {
        "errors": [],
        "findings": [
            finding("num_groups", "info", "2,350 groups"),
            finding("num_completions", "info", "9,400 completions"),
            finding("ties", "info", "4% of the pairs are ties", value=0.04, interval=[0.037, 0.043]),
            finding(
                "longer_preferred",
                "warning",
                "the longer completion wins 63% of the decided pairs",
                value=0.63,
                interval=[0.61, 0.65],
                remedy="Compare lengths before and after training, or weigh pairs by length.",
                examples=["g12: “Effective but too tepid biopic” lost to a completion of 212 characters"],
            ),
        ],
    }


def write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_run(folder: Path, **changes: Any) -> Path:
    """A complete run folder; ``changes`` replace the contents of a file by its stem, ``None`` leaves the file out."""
    contents: dict[str, Any] = {
        "manifest": MANIFEST,
        "config": CONFIG,
        "metrics": metrics(),
        "samples": samples(),
        "evaluation": evaluation(),
        "audit": audit(),
    } | changes
    folder.mkdir(parents=True, exist_ok=True)
    for stem, content in contents.items():
        if content is None:
            continue
        if stem in ("metrics", "samples"):
            write_lines(folder / f"{stem}.jsonl", content)
        elif stem == "config":
            (folder / "config.yaml").write_text(content, encoding="utf-8")
        else:
            (folder / f"{stem}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder
