"""The page of the frontier is what its numbers say, where there are any."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from dipole.evaluate.frontier import read_points
from dipole.evaluate.frontier_page import page

PAGE = Path(__file__).parent.parent / "docs" / "results" / "frontier.md"


def test_the_page_is_made_from_the_numbers_beside_it() -> None:
    numbers = PAGE.with_suffix("")
    if not (numbers / "config.yaml").exists():
        pytest.skip("no sweep has been kept yet")
    setting = yaml.safe_load((numbers / "config.yaml").read_text(encoding="utf-8"))
    made = page(read_points(numbers / "points"), setting, figures=numbers.name)
    assert PAGE.read_text(encoding="utf-8") == made, "python docs/frontier.py makes it anew"
