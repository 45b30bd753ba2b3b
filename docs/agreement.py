"""Writes docs/results/agreement.md and its pictures from the numbers in docs/results/agreement. ``make docs`` runs it.

``python docs/agreement.py ALL SAMPLE`` first takes over the numbers of two runs of ``dipole evaluate agreement``: one
on all pairs, and one on a sample of those that no judge was trained on. The words are in template.md.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from dipole.evaluate.agreement import JudgeAgreement
from dipole.evaluate.agreement_page import COLUMNS, category_table, save_calibration, table_row
from dipole.evaluate.page import markdown_table

PAGE = Path(__file__).parent / "results" / "agreement.md"
NUMBERS = PAGE.with_suffix("")
PARTS = ("all", "sample")


def take_over(runs: list[Path]) -> None:
    """Copies the numbers of both runs."""
    for name, run in zip(PARTS, runs, strict=True):
        (NUMBERS / f"{name}.json").write_text((run / "agreement.json").read_text(encoding="utf-8"), encoding="utf-8")


def page() -> str:
    """The page: the template with its tables and counts."""
    filled: dict[str, str] = {}
    for name in PARTS:
        facts = json.loads((NUMBERS / f"{name}.json").read_text(encoding="utf-8"))
        rows = [JudgeAgreement.from_json(row) for row in facts["rows"]]
        filled |= {f"votes_{name}": f"{facts['votes']:,}", f"pairs_{name}": f"{facts['pairs']:,}"}
        filled[f"table_{name}"] = "\n".join(markdown_table(COLUMNS, [table_row(row) for row in rows]))
        filled[f"categories_{name}"] = "\n".join(category_table(rows))
    return (NUMBERS / "template.md").read_text(encoding="utf-8").format_map(filled)


def write() -> None:
    """The pictures and the page."""
    facts = json.loads((NUMBERS / "sample.json").read_text(encoding="utf-8"))
    save_calibration([JudgeAgreement.from_json(row) for row in facts["rows"]], NUMBERS)
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        take_over([Path(item) for item in sys.argv[1:]])
    if all((NUMBERS / f"{name}.json").exists() for name in PARTS):
        write()
