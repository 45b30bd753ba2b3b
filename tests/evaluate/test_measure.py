"""What a run changed, from files written by hand: margins and their calibration, and how alike samples are."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from dipole.evaluate.measure import measure_run
from dipole.evaluate.run_folder import Measure


def pair(stage: str, id: str, margin: float, prob: float) -> dict[str, Any]:
    """A line of held_out.jsonl."""
    right, tie = float(margin > 0), float(margin == 0)
    logged = {"rewards/margins": margin, "rewards/accuracies": right, "rewards/ties": tie, "logps/displacement": -1.0}
    return {"step": 0, "stage": stage, "id": id, "prob": prob, "weight": 1.0, **logged}


def sample(stage: str, prompt: str, completion: str) -> dict[str, Any]:
    """A line of samples.jsonl."""
    numbers = {"tokens": len(completion.split()), "finished": True, "logps": -3.0, "ref_logps": -4.0, "score": None}
    return {"step": 0, "stage": stage, "prompt": prompt, "completion": completion, **numbers}


def measured(folder: Path, held_out: list[dict[str, Any]], samples: list[dict[str, Any]]) -> dict[str, Measure]:
    for name, rows in (("held_out", held_out), ("samples", samples)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return {measure.name: measure for measure in measure_run(folder)}


def test_margins_and_their_calibration(tmp_path: Path) -> None:
    log_odds = math.log(3)
    rows = [pair("before", id, 0.0, 0.75) for id in "abc"]
    rows += [pair("after", id, 2 * log_odds, 0.75) for id in "ab"] + [pair("after", "c", 2 * log_odds, 0.75)]
    found = measured(tmp_path, rows, [])
    margin, brier, slope = (found[name] for name in ("Margin", "Brier score of σ(margin)", "Calibration slope"))
    assert margin.before is not None
    assert margin.after is not None
    assert (margin.before.value, margin.after.value) == (0.0, pytest.approx(2 * log_odds))
    assert brier.before is not None
    assert brier.after is not None
    assert brier.before.value == pytest.approx(0.0625)
    assert brier.after.value == pytest.approx((9 / 10 - 3 / 4) ** 2)
    assert slope.after is not None
    assert slope.after.value == pytest.approx(0.5), "twice as sure as people"


def test_four_samples_of_a_prompt_are_one_observation(tmp_path: Path) -> None:
    varied = ["one two three", "four five six", "seven eight nine", "ten eleven twelve"]
    rows = [sample("before", prompt, text) for text in varied for prompt in "pq"]
    rows += [sample("after", prompt, "one two three") for _ in varied for prompt in "pq"]
    found = measured(tmp_path, [], rows)
    for name, before, after in (
        ("Distinct words", 1.0, 0.25),
        ("Distinct pairs of words", 1.0, 0.25),
        ("Self-BLEU", 0.0, 1.0),
    ):
        row = found[name]
        assert row.before is not None
        assert row.after is not None
        assert (row.before.value, row.after.value, row.after.n) == (before, pytest.approx(after), 2), name
        assert row.verdict is None


def test_too_few_samples_have_no_diversity(tmp_path: Path) -> None:
    rows = [sample(stage, "p", text) for stage in ("before", "after") for text in ("a", "b", "c")]
    assert not {"Self-BLEU", "Distinct words"} & measured(tmp_path, [], rows).keys()


def test_relations_without_margins_have_no_calibration(tmp_path: Path) -> None:
    rows = [pair(stage, id, 0.0, 1.0) for stage in ("before", "after") for id in "ab"]
    for row in rows:
        del row["rewards/margins"]
    assert not {"Margin", "Calibration slope"} & measured(tmp_path, rows, []).keys()
