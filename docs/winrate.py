"""Writes docs/results/winrate.md and its pictures from the numbers in docs/results/winrate. ``make docs`` runs it.

``python docs/winrate.py VADER MODEL`` first takes over the numbers of two contests of ``dipole evaluate winrate``: one
judged by a lexicon, one by a language model. The words are in template.md.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from dipole.evaluate.winrate import difference_from_json, rate_from_json
from dipole.evaluate.winrate_page import difference_table, rate_table
from dipole.evaluate.winrate_plot import save_win_rates

PAGE = Path(__file__).parent / "results" / "winrate.md"
NUMBERS = PAGE.with_suffix("")
PARTS = ("vader", "model")


def take_over(runs: list[Path]) -> None:
    """Copies the numbers of both contests, and what they were asked for without folders of this machine."""
    for name, run in zip(PARTS, runs, strict=True):
        folder = NUMBERS / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "winrate.json").write_text((run / "winrate.json").read_text(encoding="utf-8"), encoding="utf-8")
        contest = json.loads((run / "contest.json").read_text(encoding="utf-8"))
        contest["judge"] = numbers(name)["judge"]
        (folder / "contest.json").write_text(json.dumps(contest, indent=1) + "\n", encoding="utf-8")


def numbers(name: str) -> dict[str, Any]:
    """What a contest found."""
    found: dict[str, Any] = json.loads((NUMBERS / name / "winrate.json").read_text(encoding="utf-8"))
    return found


def page() -> str:
    """The page: the template with its tables."""
    filled: dict[str, str] = {}
    for name in PARTS:
        found = numbers(name)
        rates = [rate_from_json(row) for row in found["rates"]]
        filled[f"rates_{name}"] = "\n".join(rate_table(rates))
        filled[f"differences_{name}"] = "\n".join(difference_table(map(difference_from_json, found["differences"])))
        filled[f"prompts_{name}"] = str(max(rate.rate.n + rate.invalid for rate in rates))
    return (NUMBERS / "template.md").read_text(encoding="utf-8").format_map(filled)


def write() -> None:
    """The pictures and the page."""
    for name in PARTS:
        save_win_rates([rate_from_json(row) for row in numbers(name)["rates"]], NUMBERS / name, opponent="people")
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        take_over([Path(item) for item in sys.argv[1:]])
    if all((NUMBERS / name / "winrate.json").exists() for name in PARTS):
        write()
