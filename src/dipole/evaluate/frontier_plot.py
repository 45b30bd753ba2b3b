"""The frontier as a picture: reward against KL, a colour and a marker a method. It computes nothing but which to draw.

A picture on its own, in a light and a dark theme. Colours are Okabe and Ito's, which people with any colour vision can
tell apart, and every method has a marker and a dash of its own.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dipole.evaluate.frontier import Point, pareto_front


@dataclass(frozen=True, slots=True)
class Look:
    """How a method is drawn.

    Args:
        label: in the legend.
        light: its colour on a light ground.
        dark: its colour on a dark ground.
        marker: of its points.
        dashes: of its front.
    """

    label: str
    light: str
    dark: str
    marker: str
    dashes: Any = "-"


LOOKS = {
    "reference": Look("reference", "#3a4350", "#dfe4ea", "x"),
    "dpo": Look("DPO", "#0072b2", "#4db2ec", "o"),
    "ipo": Look("IPO", "#3f9fd0", "#56b4e9", "s", (0, (4, 1.5))),
    "kto": Look("KTO", "#a3447a", "#e39bc4", "^", (0, (1, 1))),
    "simpo": Look("SimPO", "#00795a", "#2fc79b", "D", (0, (4, 1.5, 1, 1.5))),
    "sft": Look("Preferred-FT", "#7a8594", "#9aa5b4", "v", (0, (1, 2))),
    "unlikelihood": Look("unlikelihood", "#8a7d00", "#f0e442", "P", (0, (6, 2))),
    "best_of_n": Look("best of N", "#3a4350", "#dfe4ea", "*", (0, (5, 3))),
    "best_of_n_rm": Look("best of N, reward model", "#7a8594", "#9aa5b4", "h", (0, (5, 3))),
    "ppo": Look("PPO, reward model", "#b98200", "#e69f00", "<", (0, (3, 1))),
    "ppo_true": Look("PPO, true reward", "#d55e00", "#ff8c42", ">"),
}
OTHER = Look("", "#3a4350", "#dfe4ea", ".")

GROUND = {"light": ("#ffffff", "#3a4350", "#d5dae1"), "dark": ("#14181f", "#dfe4ea", "#39424e")}
"""Background, ink and rules of a theme."""

Theme = Literal["light", "dark"]


def draw_frontier(points: Sequence[Point], *, theme: Theme = "light", reward: str = "reward") -> Figure:
    """All points with their intervals, and each method's front as a line.

    Args:
        points: at least one.
        theme: of the picture.
        reward: what the vertical axis shows, with its unit.
    """
    ground, ink, rule = GROUND[theme]
    with matplotlib.rc_context(_style(ground, ink, rule)):
        figure = Figure(figsize=(7.2, 4.6), layout="constrained")
        axes = figure.add_subplot()
        for method in dict.fromkeys(point.method for point in points):
            _draw_method(axes, [point for point in points if point.method == method], method, theme)
        axes.set_xlabel("KL(policy‖reference), nats a completion")
        axes.set_ylabel(reward)
        axes.xaxis.set_major_locator(MaxNLocator(8))
        axes.yaxis.set_major_locator(MaxNLocator(6))
        axes.set_xlim(left=min(0.0, axes.get_xlim()[0]))
        figure.legend(loc="outside right upper")
    return figure


def save_frontier(points: Sequence[Point], folder: Path, *, reward: str = "reward") -> list[Path]:
    """Writes frontier-light and frontier-dark, each as SVG and PNG; the same points give the same files."""
    written = []
    for theme in ("light", "dark"):
        for suffix in ("svg", "png"):
            path = folder / f"frontier-{theme}.{suffix}"
            with matplotlib.rc_context({"svg.hashsalt": "frontier", "svg.fonttype": "none"}):
                figure = draw_frontier(points, theme=theme, reward=reward)
                content = io.BytesIO()
                metadata: dict[str, Any] = {"Date": None} if suffix == "svg" else {"Software": None}
                figure.savefig(content, format=suffix, dpi=160, metadata=metadata)
            path.write_bytes(content.getvalue())
            written.append(path)
    return written


def _draw_method(axes: Axes, points: Sequence[Point], method: str, theme: Theme) -> None:
    look = LOOKS.get(method, OTHER)
    color = look.light if theme == "light" else look.dark
    front = pareto_front(points)
    for point in points:
        strong = 0.9 if point in front else 0.35
        kl, value = point.at
        axes.plot([kl], [value], look.marker, color=color, alpha=strong, markersize=5, zorder=3)
        if point.reward.low is not None and point.reward.high is not None:
            axes.plot([kl, kl], [point.reward.low, point.reward.high], color=color, alpha=0.35 * strong, linewidth=1)
        if point.kl.low is not None and point.kl.high is not None:
            axes.plot([point.kl.low, point.kl.high], [value, value], color=color, alpha=0.35 * strong, linewidth=1)
    places = [point.at for point in front]
    axes.plot(*zip(*places, strict=True), color=color, linestyle=look.dashes, linewidth=1.4, zorder=2)
    axes.plot([], [], marker=look.marker, color=color, linestyle=look.dashes, label=look.label or method)


def _style(ground: str, ink: str, rule: str) -> dict[Any, Any]:
    return {
        "font.family": "DejaVu Sans",
        "font.size": 9,
        "figure.facecolor": ground,
        "axes.facecolor": ground,
        "savefig.facecolor": ground,
        "text.color": ink,
        "axes.labelcolor": ink,
        "axes.edgecolor": rule,
        "axes.axisbelow": True,
        "axes.grid": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "grid.color": rule,
        "grid.linewidth": 0.5,
        "xtick.color": rule,
        "xtick.labelcolor": ink,
        "ytick.color": rule,
        "ytick.labelcolor": ink,
        "legend.frameon": False,
        "legend.fontsize": 8,
    }
