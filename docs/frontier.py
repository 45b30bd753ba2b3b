"""Writes docs/results/frontier.md and its figures from the numbers in docs/results/frontier. ``make docs`` runs it.

``python docs/frontier.py RUN`` first takes over the numbers of a sweep: its config, and its points without the texts.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml

from dipole.evaluate.frontier import read_points
from dipole.evaluate.frontier_page import page
from dipole.evaluate.frontier_plot import save_frontier

PAGE = Path(__file__).parent / "results" / "frontier.md"
NUMBERS = PAGE.with_suffix("")
DIGITS = 5


def take_over(run: Path) -> None:
    """Copies a sweep's config and points, a row a line, so that changes can be read."""
    (NUMBERS / "points").mkdir(parents=True, exist_ok=True)
    for old in (NUMBERS / "points").glob("*.json"):
        old.unlink()
    (NUMBERS / "config.yaml").write_text((run / "config.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    for path in sorted((run / "points").glob("*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        rows = ",\n".join(json.dumps(_numbers(row), ensure_ascii=False) for row in record.pop("rows"))
        head = json.dumps(record, ensure_ascii=False).removesuffix("}")
        text = f'{head}, "rows": [\n{rows}\n]}}\n'
        (NUMBERS / "points" / path.name).write_text(text, encoding="utf-8")


def _numbers(row: dict[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in row.items() if name != "completion"}
    return {name: round(value, DIGITS) if isinstance(value, float) else value for name, value in kept.items()}


def write() -> str:
    """The figures, and the page, which is returned."""
    points = read_points(NUMBERS / "points")
    setting = yaml.safe_load((NUMBERS / "config.yaml").read_text(encoding="utf-8"))
    save_frontier(points, NUMBERS, reward=f"mean reward ({setting['scorer']})")
    text = page(points, setting, figures=NUMBERS.name)
    PAGE.write_text(text, encoding="utf-8")
    return text


if __name__ == "__main__":
    if len(sys.argv) > 1:
        take_over(Path(sys.argv[1]))
    if (NUMBERS / "config.yaml").exists():
        write()
