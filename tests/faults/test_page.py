"""The page on reliability names tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
ROWS = [
    line for line in (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8").splitlines() if line[:2] == "| "
]
FAULTS = [row for row in ROWS if not row.startswith("| fault ")]


@pytest.mark.parametrize("row", FAULTS, ids=range(len(FAULTS)))
def test_every_fault_has_a_test_that_exists(row: str) -> None:
    _, fault, outcome, test, _ = (cell.strip() for cell in row.split("|"))
    assert fault
    assert outcome
    file, name = re.fullmatch(r"`(tests/[\w/]+\.py)::(\w+)`", test).groups()  # type: ignore[union-attr]
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_there_are_rows() -> None:
    assert len(FAULTS) > 25
