"""The report across rounds: one table, a few curves, warnings, and what each round wrote."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from dipole.data.formats import load_groups
from dipole.evaluate.headline import duration, number
from dipole.evaluate.page import environment, write_page
from dipole.evaluate.plots import Chart, Series, training_curve
from dipole.evaluate.run_folder import inert
from dipole.evaluate.stats import Estimate, verdict
from dipole.group import plain
from dipole.iterate.folder import round_of
from dipole.iterate.presets import PRESETS
from dipole.iterate.summary import RoundRow, Summary

PARTS = {"training": "training judge", "held_out": "held-out judge"}
SHOWN = 6
"""Evaluated prompts whose answers are shown."""

_BOTH = tuple(
    Series(part, label, color) for (part, label), color in zip(PARTS.items(), ("blue", "orange"), strict=True)
)
CHARTS = (
    Chart("gain", "Reward, gain on round 0", "on each judge's scale", _BOTH, level=0.0, across="round"),
    Chart(
        "wins",
        "Win rate against round 0",
        "share of answers",
        tuple(Series(f"wins/{item.key}", item.label, item.color) for item in _BOTH),
        level=0.5,
        limits=(0.0, 1.0),
        across="round",
    ),
    Chart(
        "kl", "KL(policy‖first model)", "nats a completion", (Series("kl", "k1", "blue"),), level=0.0, across="round"
    ),
    Chart("tokens", "Length", "tokens a completion", (Series("tokens", "tokens", "blue"),), across="round"),
    Chart(
        "diversity",
        "Diversity",
        "share that differs",
        (Series("distinct_pairs", "pairs of words", "blue"), Series("different", "answers to a prompt", "orange")),
        limits=(0.0, 1.05),
        across="round",
    ),
)


def table(summary: Summary, *, brief: bool = False) -> tuple[list[str], list[list[str]]]:
    """Columns, and a row of cells a round; ``brief`` leaves out what a terminal has no room for."""
    parts = [part for part in PARTS if any(part in row.numbers["judges"] for row in summary.rounds)]
    short = {part: label.removesuffix(" judge") for part, label in PARTS.items()}
    columns = ["round", *(f"{short[part]} {what}" for part in parts for what in ("reward", "wins"))]
    columns += ["KL", "tokens", *([] if brief else ["diversity"]), "pairs"]
    return columns, [_cells(row, parts, brief) for row in summary.rounds]


def _cells(row: RoundRow, parts: Sequence[str], brief: bool) -> list[str]:
    numbers, kl = row.numbers, row.numbers["kl"]
    cells = [str(row.number)]
    for part in parts:
        judged = numbers["judges"].get(part)
        cells += [_cell(judged and judged[name], 2) for name in ("reward", "win_rate")]
    cells += [number(kl and kl["value"], 1) if brief else _cell(kl, 1), number(numbers["tokens"]["value"], 1)]
    pairs = row.pairs.get("pairs")
    diversity = [] if brief else [number(numbers["distinct_pairs"], 2)]
    return [*cells, *diversity, "–" if pairs is None else f"{pairs:,}"]


def _cell(estimate: Mapping[str, Any] | None, decimals: int) -> str:
    """An estimate with its interval."""
    if estimate is None or estimate["value"] is None:
        return "–"
    value = number(estimate["value"], decimals)
    if estimate["low"] is None:
        return value
    return f"{value} [{number(estimate['low'], decimals)}, {number(estimate['high'], decimals)}]"


def headline(summary: Summary) -> str:
    """What came of it, in one sentence."""
    last = summary.rounds[-1]
    if last.number == 0:
        return "Only the first model has been evaluated."
    rounds = f"{last.number} round{'s' if last.number > 1 else ''}"
    said = []
    for part, judged in last.numbers["judges"].items():
        gain, wins = Estimate.from_json(judged["gain"]), judged["win_rate"]
        words = {"better": "better than", "worse": "worse than", "unclear": "not clearly different from"}[verdict(gain)]
        said.append(f"{words} the first model by the {PARTS[part]} (wins {_cell(wins, 2)})")
    return f"After {rounds} the policy is {' and '.join(said)}."


def write_report(summary: Summary) -> Path:
    """Writes ``report.html`` into the rounds' folder and returns its path."""
    columns, rows = table(summary)
    page = (
        environment()
        .get_template("rounds.html.jinja")
        .render(
            name=summary.output.resolve().name,
            headline=headline(summary),
            columns=columns,
            rows=rows,
            warnings=[f"In round {row.number} {sentence}." for row in summary.rounds for sentence in row.warnings],
            stopped=summary.stopped,
            curves=list(_curves(summary)),
            dropped=list(_dropped(summary)),
            answers=inert(list(_answers(summary))),
            stages=list(_stages(summary)),
            config=inert((summary.output / "config.yaml").read_text(encoding="utf-8")),
            paper=_paper(summary),
        )
    )
    return write_page(page, summary.output / "report.html")


def _curves(summary: Summary) -> Iterator[tuple[Chart, Markup]]:
    rows = []
    for row in summary.rounds:
        numbers = row.numbers
        point: dict[str, Any] = {"step": row.number, "tokens": numbers["tokens"]["value"]}
        point |= {"distinct_pairs": numbers["distinct_pairs"], "different": numbers["different"]}
        point["kl"] = numbers["kl"]["value"] if numbers["kl"] else 0.0
        for part in PARTS:
            judged = numbers["judges"].get(part)
            if judged or row.number == 0:
                point |= {part: judged["gain"]["value"] if judged else 0.0}
                point |= {f"wins/{part}": judged["win_rate"]["value"] if judged else 0.5}
        rows.append(point)
    if not any("held_out" in row.numbers["judges"] for row in summary.rounds):
        rows = [{name: value for name, value in row.items() if "held_out" not in name} for row in rows]
    for chart in CHARTS:
        if svg := training_curve(chart, rows):
            yield chart, Markup(svg)


def _dropped(summary: Summary) -> Iterator[tuple[int, str]]:
    """What became of the pairs of each round."""
    for row in summary.rounds[1:]:
        counts = ", ".join(f"{name.replace('_', ' ')}: {count:,}" for name, count in row.pairs.items())
        yield row.number, counts


def _answers(summary: Summary) -> Iterator[dict[str, Any]]:
    """The first answer of every round to the first evaluated prompts."""
    last = summary.rounds[-1].number
    groups = [load_groups(round_of(summary.output, number).samples) for number in range(last + 1)]
    for of_prompt in list(zip(*groups, strict=True))[:SHOWN]:
        texts = [plain(group.completions[0].text) for group in of_prompt]
        yield {"prompt": plain(of_prompt[0].prompt), "texts": list(enumerate(texts))}


def _stages(summary: Summary) -> Iterator[tuple[int, str, str, str]]:
    """Round, stage, duration and the hash of its result."""
    for row in summary.rounds:
        for name, facts in round_of(summary.output, row.number).recorded().items():
            took = duration(facts["seconds"]) if "seconds" in facts else "–"
            yield row.number, name.replace("_", " "), took, facts["sha256"][:16]


def _paper(summary: Summary) -> str | None:
    import yaml

    preset = yaml.safe_load((summary.output / "config.yaml").read_text(encoding="utf-8"))["preset"]
    return PRESETS[preset].paper if preset in PRESETS else None
