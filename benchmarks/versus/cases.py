"""What is measured: cases, the texts that both sides get, and how much work these are."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

WORDS = tuple("the of and to in is was for on that with as by at from his her it an be this are or had not but".split())  # noqa: SIM905
SPREAD = 0.5
"""Standard deviation of the logarithm of the lengths."""
WARM_UP_TOKENS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One comparison.

    Args:
        groups: groups an optimizer step.
        completions: of each group, ranked; TRL gets every pair of them.
        prompt, completion: mean lengths in tokens; lengths are log-normal.
        lora: an adapter of rank 8 on q and v, instead of all weights.
        cached: the reference's log-probabilities are computed before training.
        device: ``cpu`` in float32, or ``cuda`` in bf16.
        trl_rows: pairs that TRL puts through the model at a time.
    """

    groups: int = 4
    completions: int = 2
    prompt: int = 160
    completion: int = 130
    lora: bool = False
    cached: bool = False
    device: str = "cpu"
    trl_rows: int = 4

    @property
    def pairs(self) -> int:
        """Comparisons an optimizer step."""
        return self.groups * math.comb(self.completions, 2)


# On a CPU, TRL is faster with one pair at a time ("-one") than with four, and takes less memory.
CASES: dict[str, Case] = {
    "pairs-full": Case(),
    "pairs-lora": Case(lora=True),
    "groups-full": Case(groups=2, completions=4),
    "groups-lora": Case(groups=2, completions=4, lora=True),
    "pairs-full-one": Case(trl_rows=1),
    "pairs-lora-one": Case(trl_rows=1, lora=True),
    "groups-full-one": Case(trl_rows=1, groups=2, completions=4),
    "long-answers-one": Case(trl_rows=1, prompt=30, completion=260),
    "long-prompts-one": Case(trl_rows=1, prompt=400, completion=40),
    "pairs-full-cached-one": Case(trl_rows=1, cached=True),
    "pairs-lora-cached-one": Case(trl_rows=1, cached=True, lora=True),
    "gpu-1k": Case(groups=32, prompt=600, completion=400, device="cuda", trl_rows=32),
    "gpu-4k": Case(groups=16, prompt=2400, completion=1600, device="cuda", trl_rows=16),
    "gpu-8k": Case(groups=8, prompt=4800, completion=3200, device="cuda", trl_rows=8),
}
MAIN = ("pairs-full-one", "groups-full-one", "pairs-lora-one")


@dataclass(frozen=True, slots=True)
class TextGroup:
    """A prompt and its completions, best first."""

    prompt: str
    completions: tuple[str, ...]


def text_groups(case: Case, tokenizer: Any, *, steps: int, scale: float) -> list[TextGroup]:
    """Groups of ``steps`` optimizer steps, after those of a first step of a few tokens that only warms up.

    Args:
        case: how many, how long.
        tokenizer: that lengths are measured with.
        steps: that are measured.
        scale: of the lengths.
    """
    draw = random.Random(0)
    tokens_a_word = len(tokenizer(" ".join(WORDS))["input_ids"]) / len(WORDS)

    def text(tokens: float) -> str:
        return " ".join(draw.choice(WORDS) for _ in range(max(2, round(tokens / tokens_a_word))))

    def length(mean: int) -> float:
        return scale * mean * math.exp(draw.gauss(-(SPREAD**2) / 2, SPREAD))

    def group(prompt: float, completions: Sequence[float]) -> TextGroup:
        return TextGroup(f"{draw.random()} {text(prompt)}", tuple(f" {text(tokens)}" for tokens in completions))

    short = [group(WARM_UP_TOKENS, [WARM_UP_TOKENS] * case.completions) for _ in range(case.groups)]
    return short + [
        group(length(case.prompt), [length(case.completion) for _ in range(case.completions)])
        for _ in range(steps * case.groups)
    ]


def write_groups(groups: Sequence[TextGroup], path: Path) -> None:
    """The native file: one ranking a group."""
    rows = [
        {
            "schema": 1,
            "id": f"g{number}",
            "prompt": group.prompt,
            "completions": [{"text": text} for text in group.completions],
            "judgments": [{"kind": "ranking", "order": list(range(len(group.completions)))}],
        }
        for number, group in enumerate(groups)
    ]
    _write(rows, path)


def write_pairs(groups: Sequence[TextGroup], path: Path) -> None:
    """One row a pair, which is what TRL takes."""
    rows = [
        {"prompt": group.prompt, "chosen": chosen, "rejected": rejected}
        for group in groups
        for chosen, rejected in combinations(group.completions, 2)
    ]
    _write(rows, path)


def _write(rows: Sequence[dict[str, Any]], path: Path) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def useful_work(groups: Sequence[TextGroup], tokenizer: Any, config: Any, case: Case) -> dict[str, float]:
    """Tokens and floating-point operations that these groups need, each prompt and each completion once.

    Counted are matrix products: of the layers, of the head on completion tokens, and of attention on the keys that are
    seen. Backward costs twice the forward pass, or once where the weights are frozen (attention has none: twice). Not
    counted is what an implementation computes twice, pads, or computes and doesn't need.

    Args:
        groups: of the measured steps.
        tokenizer: of the model.
        config: of the model, a Llama's.
        case: with an adapter, with a reference.
    """
    hidden, heads = config.hidden_size, config.num_attention_heads
    size = getattr(config, "head_dim", None) or hidden // heads
    layer = hidden * size * (2 * heads + 2 * config.num_key_value_heads) + 3 * hidden * config.intermediate_size
    layers = head = scores = tokens = 0.0
    for group in groups:
        prompt = len(tokenizer(group.prompt)["input_ids"])
        targets = [len(tokenizer(text)["input_ids"]) + 1 for text in group.completions]  # with end of sequence
        row = prompt + sum(targets) - len(targets)
        seen = prompt * (prompt + 1) / 2 + sum((n - 1) * (prompt + n / 2) for n in targets)
        tokens += prompt + sum(targets)
        layers += 2 * row * layer * config.num_hidden_layers
        scores += 4 * seen * heads * size * config.num_hidden_layers
        head += 2 * sum(targets) * hidden * config.vocab_size
    backward = 1 if case.lora else 2
    reference = 0 if case.cached else layers + head + scores
    return {"tokens": tokens, "operations": (layers + head) * (1 + backward) + 3 * scores + reference}
