"""The page of the rounds holds what its numbers say, and the numbers are of the configuration beside them."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml

DOCS = Path(__file__).parent.parent / "docs"
RESULTS = DOCS / "results" / "iterate"


@pytest.fixture(scope="module")
def rounds() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_rounds", DOCS / "iterating_rounds.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_page_is_made_from_the_numbers_beside_it(rounds: ModuleType) -> None:
    kept = json.loads((RESULTS / "rounds.json").read_text(encoding="utf-8"))
    page = (RESULTS / "README.md").read_text(encoding="utf-8")
    made = f"{rounds.OPEN}{rounds.block(kept)}{rounds.CLOSE}"
    assert made in page, "python docs/iterating_rounds.py makes it anew"
    config = yaml.safe_load((RESULTS / "config.yaml").read_text(encoding="utf-8"))
    assert [row["round"] for row in kept["rounds"]] == [0, 1, 2, 3]
    for row in kept["rounds"]:
        assert row["prompts"] == config["max_eval_prompts"]
        assert row["samples"] == config["max_eval_prompts"] * config["eval_completions"]
        assert row["pairs"].get("pairs", 0) <= config["prompts_per_round"]


def test_the_picture_is_the_same_for_the_same_numbers(rounds: ModuleType) -> None:
    kept = json.loads((RESULTS / "rounds.json").read_text(encoding="utf-8"))
    assert rounds.picture(kept["rounds"]) == rounds.picture(kept["rounds"])
