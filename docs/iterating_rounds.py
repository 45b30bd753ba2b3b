"""Writes the table, the answers and rounds.svg of docs/results/iterate from rounds.json there. ``make docs`` runs it.

``python docs/iterating_rounds.py RUN`` first takes over the numbers of a run of ``dipole iterate``.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dipole.data.formats import load_groups
from dipole.evaluate.plots import PALETTE
from dipole.evaluate.rounds import outcomes
from dipole.evaluate.stats import share
from dipole.group import Group, plain

RESULTS = Path(__file__).parent / "results" / "iterate"
NUMBERS = RESULTS / "rounds.json"
OPEN, CLOSE = "<!-- rounds -->\n", "<!-- /rounds -->\n"
JUDGES = {"training": ("training judge", "blue"), "held_out": ("held-out judge", "orange")}
SHOWN = 3
"""Evaluated prompts whose first answers are kept."""

Row = Mapping[str, Any]


def take_over(run: Path) -> None:
    """Keeps the rounds' numbers, how long they took, and a few answers; no paths."""
    kept = json.loads((run / "rounds.json").read_text(encoding="utf-8"))
    folders = [run / f"round-{row['round']:03d}" for row in kept["rounds"]]
    for row, folder in zip(kept["rounds"], folders, strict=True):
        stages = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["stages"]
        row["seconds"] = {name: facts["seconds"] for name, facts in stages.items() if "seconds" in facts}
        row["equal_length"] = {
            part: _equally_long(folder / "evaluation" / f"judged-{part}.jsonl") for part in row["judges"]
        }
    samples = [load_groups(folder / "evaluation" / "samples.jsonl") for folder in folders]
    kept["answers"] = [
        {"prompt": plain(groups[0].prompt), "answers": [plain(group.completions[0].text) for group in groups]}
        for groups in list(zip(*samples, strict=True))[:SHOWN]
    ]
    NUMBERS.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _equally_long(judged: Path) -> dict[str, Any]:
    """The win rate among completions that have as many tokens as round 0's with the same random numbers."""
    groups = {group.id: group for group in load_groups(judged)}
    seen = [item for item in outcomes(list(groups.values())) if _length_changed(groups[item.prompt], item.number) == 0]
    return asdict(share([item.win for item in seen], [item.prompt for item in seen]))


def _length_changed(group: Group, number: int) -> int:
    before = group.completions[number + len(group.completions) // 2]
    return int(group.completions[number].meta["tokens"] - before.meta["tokens"])


def block(kept: Mapping[str, Any]) -> str:
    """What stands between the marks in README.md."""
    rows: Sequence[Row] = kept["rounds"]
    judges = [name for name in JUDGES if any(name in row["judges"] for row in rows)]
    head = [
        "round",
        *(f"{JUDGES[name][0]}: {what}" for name in judges for what in ("gain", "wins", "wins at equal length")),
    ]
    head += ["KL, nats", "tokens", "ended", "different pairs of words", "trained on"]
    lines = [head, ["---"] * len(head), *(_cells(row, judges) for row in rows)]
    table = "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
    answers = "".join(_answer(item) for item in kept["answers"])
    return f"{table}\n{answers}"


def _cells(row: Row, judges: Sequence[str]) -> list[str]:
    cells = [str(row["round"])]
    for name in judges:
        judged = row["judges"].get(name)
        cells += [_number(judged and judged["gain"], 2, sign="+"), _number(judged and judged["win_rate"], 2)]
        cells.append(_number(row["equal_length"].get(name), 2))
    pairs = row["pairs"].get("pairs")
    cells += [_number(row["kl"], 1), _number(row["tokens"], 1), _number(row["finished"], 2)]
    return [*cells, f"{row['distinct_pairs']:.2f}", "–" if pairs is None else f"{pairs} pairs"]


def _number(estimate: Row | None, decimals: int, *, sign: str = "") -> str:
    if estimate is None or estimate["value"] is None:
        return "–"
    form = f"{sign}.{decimals}f"
    words = format(estimate["value"], form)
    if estimate["low"] is not None:
        words += f" [{format(estimate['low'], form)}, {format(estimate['high'], form)}]"
    return words.replace("-", "−")


def _answer(item: Row) -> str:
    words = [f"> *{item['prompt']}*\n>\n"]
    words += [f"> {number}. … {_one_line(text)}\n" for number, text in enumerate(item["answers"])]
    return "".join(words) + "\n"


def _one_line(text: str) -> str:
    return " ".join(text.split()).replace("*", r"\*").replace("<", "&lt;") or "(nothing)"


def picture(rows: Sequence[Row]) -> bytes:
    """Four panels over rounds, with 95 % intervals."""
    style = {"font.size": 8, "svg.fonttype": "none", "svg.hashsalt": "rounds", "font.family": "DejaVu Sans"}
    with matplotlib.rc_context({**style, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(7.6, 4.6), layout="constrained")
        gain, wins, kl, length = figure.subplots(2, 2).flat
        for name, (label, color) in JUDGES.items():
            _curve(gain, [_of(row, name, "gain", 0.0) for row in rows], label, color)
            _curve(wins, [_of(row, name, "win_rate", 0.5) for row in rows], label, color)
        _curve(kl, [row["kl"] or _point(0.0) for row in rows], "KL", "blue")
        _curve(length, [row["tokens"] for row in rows], "tokens", "blue")
        _frame(gain, "Reward, gain on round 0", "on each judge's scale", level=0.0)
        _frame(wins, "Win rate against round 0", "share of answers", level=0.5)
        _frame(kl, "KL(policy‖first model)", "nats a completion", level=0.0)
        _frame(length, "Length", "tokens a completion")
        gain.legend(frameon=False)
        content = io.BytesIO()
        figure.savefig(content, format="svg", metadata={"Date": None})
    return content.getvalue()


def _of(row: Row, judge: str, what: str, at_first: float) -> Row | None:
    """A number of a judge; what it is by definition for the first model."""
    if row["round"] == 0:
        return _point(at_first)
    judged = row["judges"].get(judge)
    return None if judged is None else judged[what]


def _point(value: float) -> Row:
    return {"value": value, "low": None, "high": None}


def _curve(axes: Axes, estimates: Sequence[Row | None], label: str, color: str) -> None:
    known = [(x, item) for x, item in enumerate(estimates) if item is not None and item["value"] is not None]
    shift = 0.03 if color == "orange" else -0.03  # so that intervals stand beside each other
    places = [x + shift for x, _ in known]
    axes.plot(places, [item["value"] for _, item in known], "o-", color=PALETTE[color], label=label, markersize=4)
    for x, (_, item) in zip(places, known, strict=True):
        if item["low"] is not None:
            axes.plot([x, x], [item["low"], item["high"]], color=PALETTE[color], alpha=0.5, linewidth=1.2)


def _frame(axes: Axes, title: str, unit: str, *, level: float | None = None) -> None:
    axes.set_title(title, loc="left", fontsize=9)
    axes.set_ylabel(unit)
    axes.set_xlabel("round")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if level is not None:
        axes.axhline(level, color=PALETTE["grey"], linewidth=0.7)
    axes.grid(visible=True, axis="y", color=PALETTE["rule"], linewidth=0.5)


def main() -> None:
    """Writes picture and block."""
    if len(sys.argv) > 1:
        take_over(Path(sys.argv[1]))
    if not NUMBERS.exists():
        return
    kept = json.loads(NUMBERS.read_text(encoding="utf-8"))
    (RESULTS / "rounds.svg").write_bytes(picture(kept["rounds"]))
    page = RESULTS / "README.md"
    before, rest = page.read_text(encoding="utf-8").split(OPEN)
    page.write_text(f"{before}{OPEN}{block(kept)}{CLOSE}{rest.split(CLOSE)[1]}", encoding="utf-8")


if __name__ == "__main__":
    main()
