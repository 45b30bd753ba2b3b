"""Pictures that stand on their own: files in a light and a dark theme, as SVG and PNG.

Colours are Okabe and Ito's, made lighter or darker to be seen on either ground, which people with any colour vision can
tell apart; series differ in marker and dashes as well. The same numbers give the same bytes.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Theme = Literal["light", "dark"]

GROUND: dict[Theme, tuple[str, str, str]] = {
    "light": ("#ffffff", "#3a4350", "#d5dae1"),
    "dark": ("#14181f", "#dfe4ea", "#39424e"),
}
"""Background, ink and rules of a theme."""


@dataclass(frozen=True, slots=True)
class Look:
    """How a series is drawn.

    Args:
        light: its colour on a light ground.
        dark: its colour on a dark ground.
        marker: of its points.
        dashes: of its line.
    """

    light: str
    dark: str
    marker: str
    dashes: Any = "-"

    def color(self, theme: Theme) -> str:
        """Of the theme."""
        return self.light if theme == "light" else self.dark


LOOKS = (
    Look("#0072b2", "#4db2ec", "o"),
    Look("#d55e00", "#ff8c42", "s", (0, (4, 1.5))),
    Look("#00795a", "#2fc79b", "D", (0, (4, 1.5, 1, 1.5))),
    Look("#a3447a", "#e39bc4", "^", (0, (1, 1))),
    Look("#8a7d00", "#f0e442", "v", (0, (6, 2))),
    Look("#7a8594", "#9aa5b4", "P", (0, (1, 2))),
)
"""Of series in their order; a seventh looks like the first."""


def picture(draw: Callable[[Axes, Theme], None], theme: Theme, size: tuple[float, float] = (7.2, 4.6)) -> Figure:
    """A figure of one pair of axes, with a legend where ``draw`` names series.

    Args:
        draw: draws into the axes.
        theme: of the picture.
        size: in inches.
    """
    with matplotlib.rc_context(_style(*GROUND[theme])):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        draw(axes, theme)
        if axes.get_legend_handles_labels()[1]:
            figure.legend(loc="outside right upper")
    return figure


def save_picture(draw: Callable[[Axes, Theme], None], folder: Path, name: str) -> list[Path]:
    """Writes NAME-light and NAME-dark, each as SVG and PNG."""
    written = []
    for theme in GROUND:
        for suffix in ("svg", "png"):
            path = folder / f"{name}-{theme}.{suffix}"
            with matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
                content = io.BytesIO()
                metadata: dict[str, Any] = {"Date": None} if suffix == "svg" else {"Software": None}
                picture(draw, theme).savefig(content, format=suffix, dpi=160, metadata=metadata)
            path.write_bytes(content.getvalue())
            written.append(path)
    return written


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
