"""The frontier as a page and files: the picture, where DPO doesn't dominate, and every point with its intervals."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dipole.evaluate.frontier import Challenge, Point, challenges, pareto_front
from dipole.evaluate.frontier_plot import LOOKS, save_frontier
from dipole.evaluate.stats import Estimate

HOW_TO_READ = """Reward is the scorer's; KL(policy‖reference) is in nats a completion, along completions that the policy
samples at temperature 1, up to where they end or are cut. `KL` is the exact sum over the vocabulary at every sampled
step. `k1` and `k3` estimate it from the sampled tokens alone: they are unbiased too, and show by how much more they
vary. In brackets are 95 % intervals that take a prompt as one observation. A point is on its method's front when no
other point of the method has more reward at no more KL.

Every method was given the same number of samples, and passes over them: those that learn from preferences, completions
of the reference, rated once; PPO, its own as it goes. Pairs of equal reward are left out, but for the reward model, to
which they are ties. Best of N trains nothing: it pays N samples for every answer."""

_SET_UP = """{model} was fine-tuned on {imitated} {texts} and is the reference of everything here. Prompts are the first
2 to 8 tokens of others. Each method had {samples} samples ({completions} for each of {prompts} prompts) and {epochs}
passes over them, with LoRA of rank {rank} at a learning rate of {learning_rate}. Each point is measured on
{test_completions} completions of each of {test_prompts} other prompts. The reward is the scorer `{scorer}`; the seed is
{seed}."""

_PICTURE = """<picture>
<source media="(prefers-color-scheme: dark)" srcset="{figures}/frontier-dark.svg">
<img src="{figures}/frontier-light.svg" alt="Mean reward against KL to the reference, by method">
</picture>"""


def write_frontier(points: Sequence[Point], folder: Path, *, reward: str, setting: Mapping[str, Any]) -> None:
    """Writes frontier.md, frontier.json and the figures into a folder."""
    save_frontier(points, folder, reward=reward)
    (folder / "frontier.md").write_text(page(points, setting, figures="."), encoding="utf-8")
    facts = [
        {name: value for name, value in asdict(point).items() if name != "rewards_by_prompt"}
        | {"on_front": any(point is other for other in _fronts(points))}
        for point in points
    ]
    (folder / "frontier.json").write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def page(points: Sequence[Point], setting: Mapping[str, Any], *, figures: str) -> str:
    """The page as Markdown.

    Args:
        points: of all methods.
        setting: what the sweep was asked for, as its config.yaml has it.
        figures: where the pictures are, seen from the page.
    """
    reference = next((point for point in points if point.method == "reference"), None)
    parts = [
        "# Reward against KL",
        _set_up(setting),
        _PICTURE.format(figures=figures),
        "## Where DPO doesn't dominate",
        "\n".join(_verdicts(challenges(points))),
        "## How to read it",
        HOW_TO_READ,
        "## All points",
        _table(points),
    ]
    if reference is not None:
        parts.insert(2, f"The reference itself has a reward of {_interval(reference.reward)}.")
    best = [point for point in points if point.bound is not None]
    if best:
        parts += ["## Best of N", _best_table(best)]
    return "\n\n".join(parts) + "\n"


def _set_up(setting: Mapping[str, Any]) -> str:
    sizes: Mapping[str, Any] = setting.get("sizes", {})
    known = {**sizes, "scorer": setting.get("scorer"), "seed": setting.get("seed")}
    known["model"] = Path(str(setting.get("model") or "SmolLM2-135M-Instruct")).name
    known["texts"] = Path(str(setting.get("texts") or "film-review sentences")).name
    known["samples"] = sizes.get("prompts", 0) * sizes.get("completions", 0)
    return _SET_UP.format_map(defaultdict(lambda: "–", known))


def _verdicts(found: Sequence[Challenge]) -> list[str]:
    """A sentence for every point of another front that DPO isn't clearly above, and how many it is."""
    if not found:
        return ["There are no points to compare."]
    said = [_sentence(item) for item in found if item.verdict != "better"]
    above = sum(item.verdict == "better" for item in found)
    head = (
        f"Of the {len(found)} points on other methods' fronts, DPO has clearly more reward at no more KL than {above}."
        " Its point was chosen by the same rewards, which favours it."
    )
    return [head, "", *(f"- {sentence}" for sentence in said)]


def _sentence(item: Challenge) -> str:
    kl, reward = item.point.at
    name = f"**{_label(item.point)}** (step {item.point.step}, KL {_number(kl)}, reward {_number(reward)})"
    if item.champion is None or item.difference is None:
        return f"{name}: DPO has no point at so little KL."
    own = f"{_label(item.champion)} at KL {_number(item.champion.at[0])}, by {_interval(item.difference)}"
    if item.verdict == "worse":
        return f"{name} has more reward than {own} (DPO − it)."
    return f"{name} can't be told apart from {own} (DPO − it)."


def _table(points: Sequence[Point]) -> str:
    head = ["method", "step", "samples", "reward", "KL", "k1", "k3", "tokens", "ended", "front"]
    front = _fronts(points)
    rows = [
        [
            _label(point),
            str(point.step),
            str(point.samples),
            _interval(point.reward),
            _interval(point.kl),
            _interval(point.k1),
            _interval(point.k3),
            "–" if point.tokens is None else _number(point.tokens.value, 1),
            "–" if point.finished is None else _number(point.finished.value),
            "•" if any(point is other for other in front) else "",
        ]
        for point in points
    ]
    return _markdown(head, rows)


def _best_table(points: Sequence[Point]) -> str:
    rows = [[_label(point), _number(point.bound, 3), _interval(point.kl), _interval(point.reward)] for point in points]
    said = (
        "The KL of the best of N is at most log N − (N−1)/N. It is less where rewards are equal, since then the best is"
        " drawn from several: so it is with a scorer that gives many completions the same reward."
    )
    return f"{said}\n\n{_markdown(['method', 'bound', 'KL', 'reward'], rows)}"


def _fronts(points: Sequence[Point]) -> list[Point]:
    methods = dict.fromkeys(point.method for point in points)
    return [point for method in methods for point in pareto_front(point for point in points if point.method == method)]


def _label(point: Point) -> str:
    look = LOOKS.get(point.method)
    return f"{look.label if look else point.method} {point.strength}".strip()


def _interval(estimate: Estimate | None) -> str:
    if estimate is None or estimate.value is None:
        return "–"
    if estimate.low is None or estimate.high is None:
        return _number(estimate.value)
    return f"{_number(estimate.value)} [{_number(estimate.low)}, {_number(estimate.high)}]"


def _number(value: float | None, decimals: int = 2) -> str:
    return "–" if value is None else f"{value:.{decimals}f}".replace("-", "−")


def _markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
