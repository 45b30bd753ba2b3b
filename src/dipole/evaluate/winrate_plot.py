"""Win rate against sampling temperature as a picture. It draws numbers and computes none."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from matplotlib.axes import Axes

from dipole.evaluate.picture import GROUND, LOOKS, Theme, save_picture
from dipole.evaluate.winrate import WinRate

STEP_ASIDE = 0.012
"""Methods at one temperature stand this far apart, or their intervals would hide each other."""


def save_win_rates(rates: Sequence[WinRate], folder: Path, *, opponent: str) -> list[Path]:
    """Writes winrate-light and winrate-dark, each as SVG and PNG.

    Args:
        rates: of any methods; those without a temperature aren't drawn.
        folder: to write to.
        opponent: whose answers are won against.
    """
    return save_picture(partial(_draw, rates=rates, opponent=opponent), folder, "winrate")


def _draw(axes: Axes, theme: Theme, *, rates: Sequence[WinRate], opponent: str) -> None:
    methods = list(dict.fromkeys(rate.method for rate in rates))
    for number, method in enumerate(methods):
        look = LOOKS[number % len(LOOKS)]
        aside = STEP_ASIDE * (number - (len(methods) - 1) / 2)
        points = [
            (rate.temperature + aside, rate.rate.value, rate.rate)
            for rate in rates
            if rate.method == method and rate.temperature is not None and rate.rate.value is not None
        ]
        if not points:
            continue
        for place, _, estimate in points:
            if estimate.low is not None and estimate.high is not None:
                axes.plot([place] * 2, [estimate.low, estimate.high], color=look.color(theme), alpha=0.5, linewidth=1.2)
        axes.plot(
            [place for place, _, _ in points],
            [value for _, value, _ in points],
            color=look.color(theme),
            marker=look.marker,
            markersize=5,
            linestyle=look.dashes,
            linewidth=1.4,
            label=method,
        )
    axes.axhline(0.5, color=GROUND[theme][1], linewidth=0.8, dashes=(4, 3), zorder=1)
    axes.set_ylim(0, 1)
    axes.set_xlabel("sampling temperature")
    axes.set_ylabel(f"win rate against {opponent}, ties half")
