"""The pages of win rates, of agreement and of speed are what the numbers beside them say."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"


@pytest.mark.parametrize("name", ["winrate", "agreement"])
def test_a_page_is_made_from_the_numbers_beside_it(name: str) -> None:
    made = runpy.run_path(str(DOCS / f"{name}.py"))["page"]()
    kept = (DOCS / "results" / f"{name}.md").read_text(encoding="utf-8")
    assert kept == made, f"python docs/{name}.py makes it anew"


def test_the_tables_of_speed_are_made_from_what_was_measured() -> None:
    for page, made in runpy.run_path(str(DOCS / "speed_tables.py"))["pages"]().items():
        assert page.read_text(encoding="utf-8") == made, "python docs/speed_tables.py makes it anew"
