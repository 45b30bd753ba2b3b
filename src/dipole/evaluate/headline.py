"""Sentences made from the numbers of a run: what was trained on what, what came out, what to beware of."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dipole.evaluate.run_folder import Measure, RunFolder

Row = Mapping[str, Any]

_OF_RANK = {"lora": "LoRA", "dora": "DoRA", "rslora": "rsLoRA"}
_ACRONYMS = ("dpo", "ipo", "kto", "orpo")


def outcome(run: RunFolder) -> str:
    """The heading: how training ended, or what the measures say, in a few words."""
    status = run.manifest.get("status")
    if status == "failed":
        return "Training failed"
    if status in ("running", "stopped"):
        where = f" at step {last_step(run.metrics)}" if run.metrics else " before the first step"
        return ("Still running" if status == "running" else "Stopped") + where
    verdicts = [measure.verdict for measure in run.measures if measure.verdict]
    if not verdicts:
        held_out = _held_out_accuracy(run.metrics)
        if held_out is None:
            return "Trained; whether it is better wasn't measured"
        return f"Trained: {held_out[0]:.0%} of held-out pairs ranked right"
    counts = [(word, verdicts.count(word)) for word in ("better", "worse", "unclear") if word in verdicts]
    if len(counts) == 1:
        word, count = counts[0]
        every = {1: "the one measure", 2: "both measures"}.get(count, f"all {count} measures")
        return f"{word.capitalize()} on {every}"
    parts = [f"{word} on {count}" for word, count in counts]
    return f"{', '.join(parts)} of {len(verdicts)} measures".capitalize()


def lead(run: RunFolder) -> list[str]:
    """One sentence on what was trained on what, one on what came out."""
    return [_trained(run), *(_measured(run.measures) or _logged(run.metrics))]


def method(config: Mapping[str, Any]) -> str:
    """The loss and the adapter, such as ``"DPO (β = 0.1) and LoRA of rank 16"``; empty when the config has neither."""
    loss, peft = config.get("loss"), config.get("peft")
    words = ""
    if isinstance(loss, Mapping) and loss.get("name"):
        name, beta = str(loss["name"]), loss.get("beta")
        words = name.upper() if name in _ACRONYMS else name
        words += f" (β = {beta})" if beta is not None else ""
    adapter = _adapter(peft) if isinstance(peft, Mapping) else ""
    return " and ".join(filter(None, (words, adapter)))


def _adapter(peft: Mapping[str, Any]) -> str:
    method, tokens = peft.get("method"), peft.get("num_virtual_tokens")
    if method in _OF_RANK:
        return f"{_OF_RANK[method]} of rank {peft.get('rank')}"
    if method in ("prefix_tuning", "prompt_tuning"):
        return f"{method.replace('_', ' ')}" + (f" with {tokens} virtual tokens" if tokens else "")
    return "IA3" if method == "ia3" else ""


def last_step(metrics: Sequence[Row]) -> int:
    """The last step that was logged, 0 when none was."""
    return max((row["step"] for row in metrics if isinstance(row.get("step"), int)), default=0)


@dataclass(frozen=True, slots=True)
class Displacement:
    """How far the chosen completions are from where the reference has them.

    Args:
        nats: logps − ref_logps of the chosen at the last step where both were logged.
        step: which step that was.
        held_out: whether on held-out pairs or on the last training batch.
    """

    nats: float
    step: int
    held_out: bool

    @property
    def fell(self) -> bool:
        """Whether the chosen lost probability, by as much as the page shows."""
        return round(self.nats, 1) < 0


def displacement(metrics: Sequence[Row]) -> Displacement | None:
    """Whether the preferred answers themselves became likelier: a margin can grow while both sides fall.

    Held-out pairs are preferred, since they are the same at every evaluation. ``None`` when neither was logged.
    """
    for prefix in ("eval/", ""):
        for row in reversed(metrics):
            logps, ref_logps = row.get(f"{prefix}logps/chosen"), row.get(f"{prefix}ref_logps/chosen")
            if (
                isinstance(logps, int | float)
                and isinstance(ref_logps, int | float)
                and math.isfinite(logps - ref_logps)
            ):
                return Displacement(logps - ref_logps, row.get("step", 0), held_out=bool(prefix))
    return None


def places(measure: Measure) -> int:
    """How many decimals the numbers of a measure deserve: two digits of half the widest interval, else three digits."""
    estimates = [
        item for item in (measure.before, measure.after, measure.difference) if item and item.value is not None
    ]
    halves = [(item.high - item.low) / 2 for item in estimates if item.low is not None and item.high is not None]
    scale, digits = (max(halves), 2) if halves else (max((abs(item.value or 0) for item in estimates), default=0.0), 3)
    return 2 if scale == 0 else max(0, min(4, digits - 1 - math.floor(math.log10(scale))))


def number(value: Any, decimals: int = 0, *, sign: bool = False) -> str:
    """A number as text with a real minus sign; a dash for what is none."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        return "–"
    return f"{value:{'+' if sign else ''},.{decimals}f}".replace("-", "−")


def duration(seconds: float | None) -> str:
    """Such as ``"6 min 12 s"``."""
    if seconds is None:
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}\u00a0h {minutes}\u00a0min"
    return f"{minutes}\u00a0min {rest}\u00a0s" if minutes else f"{rest}\u00a0s"


def _trained(run: RunFolder) -> str:
    data, model = run.manifest.get("data") or {}, run.manifest.get("model") or {}
    name = str(model.get("name", "A model")).rstrip("/")
    # A hub id has one slash; of a folder, the last part says enough.
    sentence = f"{name if name.count('/') == 1 else name.rsplit('/', 1)[-1]} was trained"
    if how := method(run.config):
        sentence += f" with {how}"
    if data.get("groups"):
        sentence += f" on {data['groups']:,} groups of completions"
    if data.get("source"):
        sentence += f" from {data['source']}"
    if steps := last_step(run.metrics):
        sentence += f" for {steps:,} steps"
    if run.manifest.get("seconds") is not None:
        sentence += f", in {duration(run.manifest['seconds'])}"
    return sentence + "."


def _measured(measures: Sequence[Measure]) -> list[str]:
    clauses = []
    for measure in measures:
        if measure.verdict and measure.before and measure.after:
            before, after = (number(side.value, places(measure)) for side in (measure.before, measure.after))
            chance = ", which may be chance" if measure.verdict == "unclear" else ""
            clauses.append(f"{measure.name} went from {before} to {after}{chance}")
    return ["; ".join(clauses) + "."] if clauses else []


def _logged(metrics: Sequence[Row]) -> list[str]:
    """What the log says of held-out pairs, for a run that wasn't measured before and after."""
    held_out = _held_out_accuracy(metrics)
    if held_out is None:
        return []
    accuracy, row = held_out
    pairs = f"{row['eval/n']:,} held-out pairs" if isinstance(row.get("eval/n"), int) else "the held-out pairs"
    return [f"At step {row.get('step')} the implicit reward ranked {number(accuracy * 100)}% of {pairs} right."]


def _held_out_accuracy(metrics: Sequence[Row]) -> tuple[float, Row] | None:
    """The last that was logged, and its line."""
    for row in reversed(metrics):
        accuracy = row.get("eval/rewards/accuracies")
        if isinstance(accuracy, int | float) and math.isfinite(accuracy):
            return accuracy, row
    return None
