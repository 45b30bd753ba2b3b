"""Win rates as files: numbers, a page of Markdown, pictures."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from dipole.evaluate.page import markdown_table, write_page
from dipole.evaluate.stats import Estimate
from dipole.evaluate.winrate import Difference, WinRate, difference_to_json, rate_to_json
from dipole.evaluate.winrate_plot import save_win_rates

COLUMNS = (
    "method",
    "temperature",
    "win rate",
    "at equal length",
    "both orders agree",
    "ties",
    "no verdict",
    "n",
    "finds",
)


def write_win_rates(
    rates: Sequence[WinRate], differences: Sequence[Difference], folder: Path, *, opponent: str, judge: str
) -> tuple[Path, ...]:
    """Writes winrate.json, winrate.md, and the pictures where methods have temperatures."""
    found = {
        "judge": judge,
        "opponent": opponent,
        "rates": [rate_to_json(rate) for rate in rates],
        "differences": [difference_to_json(item) for item in differences],
    }
    numbers = write_page(json.dumps(found, indent=1) + "\n", folder / "winrate.json")
    drawn = any(rate.temperature is not None for rate in rates)
    pictures = save_win_rates(rates, folder, opponent=opponent) if drawn else []
    page = write_page(_page(rates, differences, opponent, judge, drawn), folder / "winrate.md")
    return (numbers, page, *pictures)


def rate_table(rates: Iterable[WinRate]) -> list[str]:
    """The lines of a table in Markdown."""
    return markdown_table(COLUMNS, [rate_row(rate) for rate in rates])


def difference_table(differences: Iterable[Difference]) -> list[str]:
    """The lines of a table in Markdown."""
    columns = ("first", "second", "temperature", "first − second", "n", "p", "p, corrected (Holm)", "finds")
    return markdown_table(columns, [_difference_row(item) for item in differences])


def rate_row(rate: WinRate) -> list[str]:
    """A row under ``COLUMNS``."""
    return [
        rate.method,
        "–" if rate.temperature is None else f"{rate.temperature:g}",
        percent(rate.rate),
        percent(rate.at_equal_length),
        percent(rate.consistent),
        str(rate.ties),
        str(rate.invalid),
        str(rate.rate.n),
        "–" if rate.detectable is None else f"{rate.detectable:.0%}",
    ]


def percent(estimate: Estimate) -> str:
    """A share with its interval."""
    if estimate.value is None:
        return "–"
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.0%}"
    return f"{estimate.value:.0%} [{estimate.low:.0%}, {estimate.high:.0%}]"


def _page(rates: Sequence[WinRate], differences: Sequence[Difference], opponent: str, judge: str, drawn: bool) -> str:
    lines = [f"# Win rate against {opponent}", "", f"Judge: {judge}, in both orders. Ties count half.", ""]
    lines += ["![Win rate against temperature](winrate-light.png)", ""] if drawn else []
    lines += rate_table(rates)
    lines += [
        "",
        "In brackets: 95 % intervals, clustered by prompt. *At equal length*: by a logistic model of the difference in"
        " length, refitted in every resample. *Finds*: the smallest distance from one half that a sample of this size"
        " and spread would find with 80 % power.",
    ]
    if differences:
        lines += ["", "## Differences, prompt by prompt", "", *difference_table(differences)]
    return "\n".join(lines) + "\n"


def _difference_row(item: Difference) -> list[str]:
    return [
        item.first,
        item.second,
        "–" if item.temperature is None else f"{item.temperature:g}",
        percent(item.difference),
        str(item.difference.n),
        "–" if item.test.p_value is None else f"{item.test.p_value:.3f}",
        "–" if item.adjusted is None else f"{item.adjusted:.3f}",
        "–" if item.detectable is None else f"{item.detectable:.0%}",
    ]
