"""Pictures as SVG text. They draw the numbers that they are given and compute nothing: no smoothing, no statistics.

Text stays text (small files, searchable, in the page's own font), there is no date in them, and the same numbers give
the same bytes. Every colour is a CSS variable whose fallback is the light theme's, so that a page can set both themes
and a picture on its own still has colours. The palette is Okabe and Ito's, which people with any colour vision can tell
apart; series differ in line style or marker as well.
"""

from __future__ import annotations

import html
import io
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dipole.data.audit import BarChart
from dipole.evaluate.stats import Estimate

PALETTE = {
    "ink": "#3a4350",
    "rule": "#d5dae1",
    "blue": "#0072b2",
    "orange": "#d55e00",
    "green": "#00795a",
    "grey": "#7a8594",
}
"""Role → colour of the light theme. A page gives the dark theme by setting ``--plot-ROLE``."""

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "text.color": PALETTE["ink"],
    "axes.edgecolor": PALETTE["rule"],
    "axes.labelcolor": PALETTE["ink"],
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.unicode_minus": True,
    "grid.color": PALETTE["rule"],
    "grid.linewidth": 0.6,
    "xtick.color": PALETTE["rule"],
    "xtick.labelcolor": PALETTE["ink"],
    "ytick.color": PALETTE["rule"],
    "ytick.labelcolor": PALETTE["ink"],
    "ytick.left": False,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "legend.borderpad": 0.2,
    "legend.columnspacing": 1.4,
    "legend.handlelength": 1.8,
    "lines.linewidth": 1.5,
    "lines.markersize": 4,
}

Row = Mapping[str, Any]
"""One line of ``metrics.jsonl``."""


@dataclass(frozen=True, slots=True)
class Series:
    """One line of a chart: the metric ``key`` against ``step``.

    Args:
        key: as in ``metrics.jsonl``.
        label: in the legend.
        color: a role of ``PALETTE``.
        line: ``"-"`` training, ``"--"`` reference, ``":"`` evaluation.
    """

    key: str
    label: str
    color: str
    line: str = "-"


@dataclass(frozen=True, slots=True)
class Chart:
    """What one training curve shows.

    Args:
        name: unique, for the file name and for the colours' namespace.
        title: what it is.
        unit: of the vertical axis.
        series: its lines; those without a value in the rows are left out.
        level: where a thin horizontal line marks what "no effect" would be.
        limits: of the vertical axis, when they are known beforehand.
        across: what the rows' ``step`` counts.
    """

    name: str
    title: str
    unit: str
    series: tuple[Series, ...]
    level: float | None = None
    limits: tuple[float, float] | None = None
    across: str = "optimizer step"


CHARTS = (
    Chart(
        "loss",
        "Loss",
        "mean per relation",
        (Series("loss", "training", "blue"), Series("eval/loss", "held out", "orange", ":")),
    ),
    Chart(
        "accuracy",
        "Implicit-reward accuracy",
        "share of pairs",
        (
            Series("rewards/accuracies", "training", "blue"),
            Series("eval/rewards/accuracies", "held out", "orange", ":"),
        ),
        level=0.5,
        limits=(0.0, 1.0),
    ),
    Chart(
        "margins",
        "Reward margin, chosen − rejected",
        "β · nats",
        (Series("rewards/margins", "training", "blue"), Series("eval/rewards/margins", "held out", "orange", ":")),
        level=0.0,
    ),
    Chart(
        "rewards",
        "Implicit reward",
        "β · nats",
        (Series("rewards/chosen", "chosen", "blue"), Series("rewards/rejected", "rejected", "orange", "-.")),
        level=0.0,
    ),
    Chart(
        "logps",
        "Log-probability of the completions",
        "nats per completion",
        (
            Series("logps/chosen", "chosen", "blue"),
            Series("ref_logps/chosen", "chosen, reference", "blue", ":"),
            Series("logps/rejected", "rejected", "orange", "-."),
            Series("ref_logps/rejected", "rejected, reference", "orange", ":"),
        ),
    ),
    Chart(
        "kl",
        "KL(policy‖reference)",
        "nats per completion",
        (
            Series("kl/policy_ref", "training", "blue"),
            Series("eval/kl/k1", "k1", "orange", ":"),
            Series("eval/kl/k3", "k3", "green", "--"),
            Series("eval/kl/full", "full", "blue", "-."),
        ),
        level=0.0,
    ),
    Chart("grad_norm", "Gradient norm", "before clipping", (Series("grad_norm", "training", "blue"),)),
    Chart("lr", "Learning rate", "per step", (Series("lr", "training", "blue"),)),
)


def training_curve(chart: Chart, rows: Sequence[Row]) -> str | None:
    """One chart as SVG, or ``None`` when the rows hold no number for any of its series."""
    lines = [(series, _points(rows, series.key)) for series in chart.series]
    lines = [(series, points) for series, points in lines if points]
    if not lines:
        return None
    with matplotlib.rc_context(_STYLE | {"svg.hashsalt": chart.name}):
        figure = Figure(figsize=(3.5, 2.15), layout="constrained")
        axes = figure.add_subplot()
        for series, points in lines:
            _draw(axes, series, points)
        _frame(axes, chart)
        if len(lines) > 1:
            figure.legend(loc="outside upper left", ncols=2 if len(lines) == 4 else 3)
        return _svg(figure, label=_describe(chart, lines))


def interval_pair(before: Estimate | None, after: Estimate | None, *, name: str) -> str | None:
    """Before (grey) above after (blue) on a common scale without ticks; the numbers stand beside it in a table.

    Args:
        before: dot and interval above.
        after: dot and interval below.
        name: unique in the page, so that the ids inside are too.
    """
    shown = [
        (y, role, e, e.value) for y, role, e in ((1, "grey", before), (0, "blue", after)) if e and e.value is not None
    ]
    if not shown:
        return None
    with matplotlib.rc_context(_STYLE | {"svg.hashsalt": f"interval {name}"}):
        figure = Figure(figsize=(1.5, 0.36))
        axes = figure.add_axes((0.04, 0.0, 0.92, 1.0))
        axes.set_axis_off()
        axes.set_ylim(-0.7, 1.7)
        for y, role, estimate, value in shown:
            color = PALETTE[role]
            if estimate.low is not None and estimate.high is not None:
                ends = [estimate.low, estimate.high]
                axes.plot(ends, [y, y], color=color, linewidth=2, solid_capstyle="round", clip_on=False)
            axes.plot([value], [y], "o", color=color, markersize=5, clip_on=False)
        return _svg(figure, label=None)


def _points(rows: Sequence[Row], key: str) -> list[tuple[float, float]]:
    """(step, value) of the rows that hold a finite number under ``key``."""
    pairs = ((row.get("step"), row.get(key)) for row in rows)
    return [(step, value) for step, value in pairs if _is_number(step) and _is_number(value)]


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _draw(axes: Axes, series: Series, points: list[tuple[float, float]]) -> None:
    steps, values = zip(*points, strict=True)
    sparse = len(points) <= 12
    axes.plot(
        steps,
        values,
        series.line,
        color=PALETTE[series.color],
        label=series.label,
        marker="o" if sparse else None,
        markersize=3.5,
    )


def _frame(axes: Axes, chart: Chart) -> None:
    axes.set_xlabel(chart.across)
    axes.set_ylabel(chart.unit)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.ticklabel_format(axis="y", scilimits=(-3, 5), useMathText=False)
    axes.margins(x=0.02, y=0.08)
    if chart.limits:
        axes.set_ylim(*chart.limits)
    if chart.level is not None:
        axes.axhline(chart.level, color=PALETTE["grey"], linewidth=0.8, dashes=(4, 3), zorder=1)


def _describe(chart: Chart, lines: list[tuple[Series, list[tuple[float, float]]]]) -> str:
    """What someone hears who can't see the chart: the ends of each line."""
    ends = []
    for series, points in lines:
        (first_step, first), (last_step, last) = points[0], points[-1]
        unit = chart.across.rpartition(" ")[2]
        ends.append(f"{series.label} from {first:.3g} at {unit} {first_step:g} to {last:.3g} at {unit} {last_step:g}")
    return f"{chart.title}, {chart.unit}: {'; '.join(ends)}."


def _svg(figure: Figure, *, label: str | None) -> str:
    """The figure as one ``<svg>`` element that can stand in a page among others."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"\s*<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # A style sheet inside would hold for the whole page; the attribute below says the same for this picture alone.
    svg = re.sub(r"\s*<defs>\s*<style.*?</style>\s*</defs>", "", svg, count=1, flags=re.DOTALL)
    # Matplotlib numbers its groups alike in every figure; ids have to be unique in a page and nothing refers to these.
    svg = re.sub(r' id="[a-zA-Z][\w.]*_\d+"', "", svg)
    svg = svg.replace("'DejaVu Sans'", "system-ui, sans-serif")
    for role, color in PALETTE.items():
        svg = svg.replace(color, f"var(--plot-{role}, {color})")
    access = f'role="img" aria-label="{html.escape(label)}"' if label else 'aria-hidden="true"'
    return svg.replace("<svg", f'<svg {access} stroke-linejoin="round"', 1)


def bar_chart(chart: BarChart) -> str | None:
    """Shares, areas or counts as SVG: one line each with its interval, or upright bars; ``None`` without any."""
    if not chart.bars:
        return None
    with matplotlib.rc_context(_STYLE | {"svg.hashsalt": chart.name}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # the browser's fonts draw the text, whatever this one lacks
        height = 2.15 if chart.upright else 0.75 + 0.2 * len(chart.bars)
        figure = Figure(figsize=(3.5, height), layout="constrained")
        axes = figure.add_subplot()
        (_upright if chart.upright else _lying)(axes, chart)
        return _svg(figure, label=f"{chart.title}, {chart.unit}: {_spoken(chart)}.")


def _upright(axes: Axes, chart: BarChart) -> None:
    places = range(len(chart.bars))
    axes.bar(places, [bar.value for bar in chart.bars], width=0.9, color=PALETTE["blue"])
    axes.set_xticks(places, [_label(bar.label) for bar in chart.bars], parse_math=False, rotation=45, ha="right")
    axes.set_xlabel(chart.unit)
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))


def _lying(axes: Axes, chart: BarChart) -> None:
    """Dots where a level says what no effect is, bars from 0 otherwise; the first one on top."""
    axes.grid(visible=False, axis="y")
    axes.grid(visible=True, axis="x")
    for place, bar in enumerate(reversed(chart.bars)):
        if chart.level is None:
            axes.barh(place, bar.value, height=0.6, color=PALETTE["blue"])
        else:
            axes.plot([bar.value], [place], "o", color=PALETTE["blue"], markersize=5)
        if bar.low is not None and bar.high is not None:
            color = PALETTE["ink" if chart.level is None else "blue"]
            axes.plot([bar.low, bar.high], [place, place], color=color, linewidth=1.5, solid_capstyle="round")
    labels = [_label(bar.label) for bar in reversed(chart.bars)]
    axes.set_yticks(range(len(labels)), labels, parse_math=False)
    axes.set_ylim(-0.7, len(labels) - 0.3)
    axes.set_xlabel(chart.unit)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    if chart.level is not None:
        axes.axvline(chart.level, color=PALETTE["grey"], linewidth=0.8, dashes=(4, 3), zorder=1)


def _label(text: str) -> str:
    """At most 30 characters that can be drawn: names come from the data and may be anything."""
    drawn = "".join(c if c.isprintable() and not 0xD800 <= ord(c) < 0xE000 else "?" for c in text)
    return drawn if len(drawn) <= 30 else f"{drawn[:29]}…"


def _spoken(chart: BarChart) -> str:
    return "; ".join(f"{_label(bar.label)} {bar.value:.3g}" for bar in chart.bars)
