"""What a simulation of selection showed: curves with intervals, labels needed, soft labels against majority labels.

Repetitions are the observations: each has its own held-out pairs, first labels and judgments.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter

from dipole.evaluate.plots import PALETTE
from dipole.evaluate.stats import Estimate, Floats, bootstrap, mean, paired_difference
from dipole.feedback.active.simulate import CurvePoint

BASELINE = "random"

LOOKS: Mapping[str, tuple[str, str, Any]] = {
    "random": (PALETTE["ink"], "o", "-"),
    "uncertain": (PALETTE["orange"], "s", "--"),
    "certain": (PALETTE["grey"], "v", ":"),
    "disagreed": ("#cc79a7", "^", "-."),
    "diverse": (PALETTE["green"], "D", (0, (4, 1, 1, 1))),
    "change": (PALETTE["blue"], "P", (0, (6, 2))),
}
"""Colour (Okabe and Ito's), marker and dashes of each strategy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """One strategy.

    Args:
        arm: its name.
        num_labels: after each round.
        accuracy: after each round.
        cross_entropy: after each round.
        over_random: accuracy less that of random selection, repetition by repetition.
        labels_needed: for the accuracy that random selection has with all labels, and with half of them; ``None``
            where that is less than anyone begins with. Never more than there are.
    """

    arm: str
    num_labels: tuple[int, ...]
    accuracy: tuple[Estimate, ...]
    cross_entropy: tuple[Estimate, ...]
    over_random: tuple[Estimate, ...]
    labels_needed: Mapping[str, Estimate]


def curves_of(points: Sequence[CurvePoint]) -> list[Curve]:
    """One curve a strategy, random selection first."""
    arms = sorted({point.arm for point in points}, key=lambda arm: (arm != BASELINE, arm))
    tables = {arm: _table(points, arm) for arm in arms}
    base = tables[BASELINE]
    found = []
    for arm in arms:
        sizes, accuracy, entropy = tables[arm]
        found.append(
            Curve(
                arm=arm,
                num_labels=tuple(sizes),
                accuracy=tuple(mean(column) for column in accuracy.T),
                cross_entropy=tuple(mean(column) for column in entropy.T),
                over_random=tuple(paired_difference(a, b) for a, b in zip(accuracy.T, base[1].T, strict=True)),
                labels_needed={
                    name: _needed(sizes, accuracy, base[1], share) for name, share in (("all", 1.0), ("half", 0.5))
                },
            )
        )
    return found


def _table(points: Sequence[CurvePoint], arm: str) -> tuple[list[int], Floats, Floats]:
    """Sizes, and (repeats, sizes) of accuracy and cross-entropy; the last sizes of all repetitions count as one."""
    by_repeat: dict[int, list[CurvePoint]] = {}
    for point in points:
        if point.arm == arm:
            by_repeat.setdefault(point.repeat, []).append(point)
    rounds = min(len(row) for row in by_repeat.values())
    rows = [[*row[: rounds - 1], row[-1]] for row in by_repeat.values()]
    sizes = [round(float(np.mean([row[k].num_labels for row in rows]))) for k in range(rounds)]
    accuracy = np.array([[point.accuracy for point in row] for row in rows])
    return sizes, accuracy, np.array([[point.cross_entropy for point in row] for row in rows])


def _needed(sizes: list[int], accuracy: Floats, base: Floats, share: float) -> Estimate:
    """Labels for the accuracy that random selection has with this share of all, between rounds by their logarithm."""

    def crossing(rows: Floats) -> float:
        own, other = rows[:, : len(sizes)].mean(axis=0), rows[:, len(sizes) :].mean(axis=0)
        target = np.interp(np.log(share * sizes[-1]), np.log(sizes), other)
        best = np.maximum.accumulate(own)
        reached = np.flatnonzero(best >= target)
        if not len(reached):
            return float(sizes[-1])
        k = int(reached[0])
        if k == 0:
            return float(sizes[0])
        part = (target - best[k - 1]) / (best[k] - best[k - 1])
        return float(np.exp(np.log(sizes[k - 1]) + part * np.log(sizes[k] / sizes[k - 1])))

    return bootstrap(np.hstack([accuracy, base]), statistic=crossing)


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """Labels of one form.

    Args:
        arm: form and number of votes a pair.
        num_labels: judgments used, on average.
        accuracy: on held-out pairs.
        cross_entropy: to the share of people, in nats.
        over_majority: accuracy less that of majority labels of as many votes.
        entropy_over_majority: cross-entropy likewise; below 0 is better.
    """

    arm: str
    num_labels: int
    accuracy: Estimate
    cross_entropy: Estimate
    over_majority: Estimate
    entropy_over_majority: Estimate


def forms_of(points: Sequence[CurvePoint]) -> list[Form]:
    """One row a form and number of votes, in the order in which they were tried."""
    rows: dict[str, list[CurvePoint]] = {}
    for point in points:
        rows.setdefault(point.arm, []).append(point)
    found = []
    for arm, own in rows.items():
        base = rows[f"majority,{arm.partition(',')[2]}"]
        found.append(
            Form(
                arm=arm,
                num_labels=round(float(np.mean([point.num_labels for point in own]))),
                accuracy=mean([point.accuracy for point in own]),
                cross_entropy=mean([point.cross_entropy for point in own]),
                over_majority=paired_difference([p.accuracy for p in own], [p.accuracy for p in base]),
                entropy_over_majority=paired_difference(
                    [p.cross_entropy for p in own], [p.cross_entropy for p in base]
                ),
            )
        )
    return found


def write_curves(
    curves: Sequence[Curve], forms: Mapping[str, Sequence[Form]], folder: Path, command: str
) -> tuple[Path, ...]:
    """Writes ``curves.json``, ``curves.svg``, ``curves.png``, and the tables as ``curves.md``.

    Args:
        curves: see ``curves_of``.
        forms: tables of label forms, by their heading.
        folder: is made where it is missing.
        command: that made it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    numbers = {
        "command": command,
        "curves": [_curve_json(curve) for curve in curves],
        "labels": {name: [_form_json(form) for form in rows] for name, rows in forms.items()},
    }
    paths = [folder / name for name in ("curves.json", "curves.svg", "curves.png", "curves.md")]
    paths[0].write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    for path in paths[1:3]:
        path.write_bytes(picture(curves, path.suffix[1:]))
    paths[3].write_text(tables(curves, forms, command), encoding="utf-8")
    return tuple(paths)


def _curve_json(curve: Curve) -> dict[str, Any]:
    return {
        "arm": curve.arm,
        "num_labels": list(curve.num_labels),
        **{
            name: [estimate.to_json() for estimate in getattr(curve, name)]
            for name in ("accuracy", "cross_entropy", "over_random")
        },
        "labels_needed": {name: estimate.to_json() for name, estimate in curve.labels_needed.items()},
    }


def _form_json(form: Form) -> dict[str, Any]:
    names = ("accuracy", "cross_entropy", "over_majority", "entropy_over_majority")
    return {"arm": form.arm, "num_labels": form.num_labels} | {name: getattr(form, name).to_json() for name in names}


def tables(curves: Sequence[Curve], forms: Mapping[str, Sequence[Form]], command: str) -> str:
    """The tables as Markdown."""
    base = curves[0]
    middle = int(np.argmin(np.abs(np.log(base.num_labels) - np.log(base.num_labels[-1] / 4))))
    repeats = base.accuracy[-1].n
    lines = [
        "# Which pairs to have judged, and what soft labels bring",
        "",
        f"`{command}`",
        "",
        "![Accuracy against labels for each strategy](curves.svg)",
        "",
        f"{repeats} repetitions, each with its own held-out quarter, first labels and judgments. In brackets: 95 %"
        " intervals over repetitions (t for accuracies, bootstrap for labels needed).",
        "",
        f"| strategy | accuracy at {base.num_labels[middle]:,} labels | against random there"
        f" | labels for what random has with all {base.num_labels[-1]:,} | with half of them |",
        "|---|---|---|---|---|",
    ]
    for curve in curves:
        cells = [
            _share(curve.accuracy[middle]),
            "–" if curve.arm == BASELINE else _share(curve.over_random[middle], sign=True),
            _count(curve.labels_needed["all"]),
            _count(curve.labels_needed["half"]),
        ]
        lines.append(f"| {curve.arm} | {' | '.join(cells)} |")
    for heading, rows in forms.items():
        lines += [
            "",
            f"## {heading}",
            "",
            "| labels | judgments | accuracy | against majority | cross-entropy, nats | against majority |",
            "|---|---|---|---|---|---|",
        ]
        for form in rows:
            is_base = form.arm.startswith("majority")
            cells = [
                f"{form.num_labels:,}",
                _share(form.accuracy),
                "–" if is_base else _share(form.over_majority, sign=True),
                _number(form.cross_entropy),
                "–" if is_base else _number(form.entropy_over_majority, sign=True),
            ]
            lines.append(f"| {form.arm} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _share(estimate: Estimate, *, sign: bool = False) -> str:
    return _cell(estimate, lambda value: f"{100 * value:{'+' if sign else ''}.1f}", " %" if not sign else " points")


def _number(estimate: Estimate, *, sign: bool = False) -> str:
    return _cell(estimate, lambda value: f"{value:{'+' if sign else ''}.3f}", "")


def _count(estimate: Estimate) -> str:
    return _cell(estimate, lambda value: f"{round(value):,}", "")


def _cell(estimate: Estimate, show: Any, unit: str) -> str:
    if estimate.value is None:
        return "–"
    around = "" if estimate.low is None else f" [{show(estimate.low)}, {show(estimate.high)}]"
    return f"{show(estimate.value)}{unit}{around}"


def picture(curves: Sequence[Curve], form: str) -> bytes:
    """Accuracy against labels, and its difference to random selection, on a white ground.

    Args:
        curves: see ``curves_of``.
        form: ``"svg"`` or ``"png"``.
    """
    style: dict[Any, Any] = {
        "font.size": 9,
        "svg.fonttype": "none",
        "svg.hashsalt": "curves",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": PALETTE["rule"],
        "grid.linewidth": 0.6,
        "legend.frameon": False,
        "text.color": PALETTE["ink"],
        "axes.labelcolor": PALETTE["ink"],
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(9, 3.8), layout="constrained")
        left, right = figure.subplots(1, 2)
        for curve in curves:
            _draw(left, curve, curve.accuracy, scale=100)
            if curve.arm != BASELINE:
                _draw(right, curve, curve.over_random, scale=100)
        right.axhline(0, color=PALETTE["ink"], linewidth=1)
        _frame(left, "accuracy on held-out pairs, %")
        _frame(right, "accuracy less that of random, points")
        figure.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=len(curves))
        buffer = io.BytesIO()
        metadata: dict[str, Any] = {"Date": None} if form == "svg" else {"Software": None}
        figure.savefig(buffer, format=form, facecolor="white", dpi=160, metadata=metadata)
    return buffer.getvalue()


def _draw(axes: Axes, curve: Curve, estimates: Sequence[Estimate], *, scale: float) -> None:
    color, marker, dashes = LOOKS.get(curve.arm, (PALETTE["ink"], ".", "-"))
    known = [(size, item) for size, item in zip(curve.num_labels, estimates, strict=True) if item.value is not None]
    sizes = [size for size, _ in known]
    values = [scale * float(item.value or 0.0) for _, item in known]
    axes.plot(sizes, values, linestyle=dashes, marker=marker, markersize=4, linewidth=1.4, color=color, label=curve.arm)
    low = [scale * float(item.low if item.low is not None else item.value or 0.0) for _, item in known]
    high = [scale * float(item.high if item.high is not None else item.value or 0.0) for _, item in known]
    axes.fill_between(sizes, low, high, color=color, alpha=0.12, linewidth=0)


def _frame(axes: Axes, unit: str) -> None:
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xticks([50, 100, 200, 500, 1000, 2000, 5000])
    axes.set_xlabel("labels (one judgment a pair)")
    axes.set_ylabel(unit)
