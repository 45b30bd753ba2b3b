"""Sentences from numbers."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from example_run import MANIFEST, metrics, write_run

from dipole.evaluate import headline
from dipole.evaluate.run_folder import Measure, RunFolder, read_run_folder
from dipole.evaluate.stats import Estimate


def estimate(value: float | None, half: float | None = None) -> Estimate:
    low, high = (None, None) if half is None or value is None else (value - half, value + half)
    return Estimate(value, low, high, 10, "by hand")


def measured(*verdicts: str | None, status: str = "done") -> RunFolder:
    measures = [
        Measure(f"Measure {i}", "", "", estimate(0.2, 0.04), estimate(0.5, 0.04), None, verdict)
        for i, verdict in enumerate(verdicts)
    ]
    return RunFolder(
        name="a",
        manifest={"status": status},
        config={},
        config_text="",
        metrics=[],
        samples=[],
        measures=measures,
        notes=[],
        audit=None,
        missing=[],
        unread=[],
    )


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        (("better",), "Better on the one measure"),
        (("better", "better", None), "Better on both measures"),
        (("worse",) * 3, "Worse on all 3 measures"),
        (("better", "unclear", "better"), "Better on 2, unclear on 1 of 3 measures"),
        (("worse", "better", "unclear"), "Better on 1, worse on 1, unclear on 1 of 3 measures"),
        ((None,), "Trained; whether it is better wasn't measured"),
        ((), "Trained; whether it is better wasn't measured"),
    ],
)
def test_the_heading_counts_verdicts(verdicts: tuple[str | None, ...], expected: str) -> None:
    assert headline.outcome(measured(*verdicts)) == expected


@pytest.mark.parametrize(
    ("status", "steps", "expected"),
    [
        ("failed", 40, "Training failed"),
        ("stopped", 23, "Stopped at step 23"),
        ("running", 10, "Still running at step 10"),
    ],
)
def test_the_heading_of_a_run_that_is_not_done(tmp_path: Path, status: str, steps: int, expected: str) -> None:
    run = write_run(tmp_path / "a", manifest=MANIFEST | {"status": status}, metrics=metrics(steps=steps))
    assert headline.outcome(read_run_folder(run)) == expected


def test_a_run_that_stopped_before_its_first_step() -> None:
    assert headline.outcome(measured(status="stopped")) == "Stopped before the first step"


def test_the_lead_says_what_was_trained_on_what_and_what_came_out(tmp_path: Path) -> None:
    trained, came_out = headline.lead(read_run_folder(write_run(tmp_path / "a")))
    assert trained.replace("\u00a0", " ") == (
        "SmolLM2-135M-Instruct was trained with DPO (β = 0.1) and LoRA of rank 16 on 2,350 groups of completions "
        "from movie_reviews.jsonl.gz for 40 steps, in 7 min 17 s."
    )
    assert came_out.startswith("Held-out accuracy went from 0.536 to 0.824; Sentiment went from 0.43 to 0.76; ")
    assert came_out.endswith(", which may be chance.")
    assert "KL" not in came_out, "what is neither better nor worse is no result"


def test_a_run_that_was_not_measured_speaks_of_its_held_out_pairs(tmp_path: Path) -> None:
    run = read_run_folder(write_run(tmp_path / "a", evaluation=None))
    assert headline.outcome(run) == "Trained: 83% of held-out pairs ranked right"
    assert headline.lead(run)[1] == "At step 40 the implicit reward ranked 83% of 431 held-out pairs right."


def test_the_lead_of_an_empty_manifest_is_still_a_sentence(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", manifest={}, config=None, metrics=None, evaluation=None)
    assert headline.lead(read_run_folder(run)) == ["A model was trained."]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"loss": {"name": "simpo", "beta": 2.0}}, "simpo (β = 2.0)"),
        ({"loss": {"name": "dpo", "beta": None}, "peft": {"method": "none"}}, "DPO"),
        ({"peft": {"method": "lora", "rank": 8}}, "LoRA of rank 8"),
        ({"peft": {"method": "rslora", "rank": 8}}, "rsLoRA of rank 8"),
        ({"peft": {"method": "prefix_tuning", "num_virtual_tokens": 4}}, "prefix tuning with 4 virtual tokens"),
        ({"peft": {"method": "ia3"}}, "IA3"),
        ({"peft": {"method": "none"}}, ""),
        ({}, ""),
    ],
)
def test_the_method_is_what_the_configuration_names(config: dict, expected: str) -> None:
    assert headline.method(config) == expected


# --- displacement -----------------------------------------------------------------------------------------------------


def test_displacement_is_of_the_last_held_out_evaluation() -> None:
    found = headline.displacement(metrics(chosen_drift=-0.35))
    assert (found.nats, found.step, found.held_out, found.fell) == (pytest.approx(-14.0), 40, True, True)


def test_without_held_out_pairs_the_last_batch_speaks() -> None:
    rows = [
        {"step": 1, "logps/chosen": -50.0, "ref_logps/chosen": -60.0},
        {"step": 2, "logps/chosen": -62.5, "ref_logps/chosen": -60.0},
        {"step": 3, "loss": 0.1},
    ]
    assert headline.displacement(rows) == headline.Displacement(-2.5, 2, held_out=False)


@pytest.mark.parametrize(("nats", "fell"), [(-0.06, True), (-0.04, False), (0.0, False), (3.0, False)])
def test_a_fall_is_one_that_the_page_would_show(nats: float, fell: bool) -> None:
    assert headline.Displacement(nats, 1, held_out=True).fell is fell


def test_no_displacement_without_a_reference_or_with_nan() -> None:
    assert headline.displacement([{"step": 1, "logps/chosen": -50.0}]) is None
    assert headline.displacement([{"step": 1, "logps/chosen": math.nan, "ref_logps/chosen": -1.0}]) is None


# --- numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sides", "expected"),
    [
        ((estimate(0.5, 0.038), estimate(0.8, 0.021)), 3),
        ((estimate(0.5, 0.16), estimate(0.8, 0.038)), 2),  # the widest decides for the whole row
        ((estimate(21.0, 2.4), None), 1),
        ((estimate(2100.0, 240.0), None), 0),
        ((estimate(0.123456), None), 3),
        ((estimate(0.0), None), 2),
        ((estimate(None), None), 2),
        ((estimate(1e-9, 1e-10), None), 4),
    ],
)
def test_decimals_follow_from_the_interval(sides: tuple[Estimate, Estimate | None], expected: int) -> None:
    assert headline.places(Measure("", "", "", *sides, None, None)) == expected


def test_numbers_have_a_real_minus_sign_and_separators() -> None:
    assert headline.number(-1234.5, 1) == "−1,234.5"
    assert headline.number(0.25, 2, sign=True) == "+0.25"
    for nothing in (None, math.nan, math.inf, "<b>", [1]):
        assert headline.number(nothing, 2) == "–"


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(4.4, "4 s"), (437.2, "7 min 17 s"), (7260, "2 h 1 min"), (None, "–"), (59.7, "1 min 0 s")],
)
def test_durations(seconds: float | None, expected: str) -> None:
    assert headline.duration(seconds).replace("\u00a0", " ") == expected
