"""lm-evaluation-harness: its commands for a run, and its files read, paired where it kept single answers."""

from __future__ import annotations

import json
import math
import shlex
from pathlib import Path
from typing import Any

import pytest
from example_run import MANIFEST, write_run

from command_line import Say
from dipole.errors import DataError
from dipole.evaluate.harness import commands, compare, folder_of
from dipole.evaluate.run_folder import read_run_folder
from dipole.evaluate.stats import paired_difference


def write_results(
    run: Path, stage: Any, acc: list[float], stamp: str = "2026-11-20T10-00-00", *, kept: bool = True, error: Any = 0.1
) -> None:
    """What the harness writes of one task with an accuracy and a perplexity."""
    folder = folder_of(run, stage) / "a__model"
    folder.mkdir(parents=True, exist_ok=True)
    results = {
        "results": {
            "quiz": {
                "alias": "quiz",
                "sample_len": len(acc),
                "acc,none": sum(acc) / len(acc),
                "acc_stderr,none": error,
                "word_perplexity,none": 12.0,
                "word_perplexity_stderr,none": "N/A",
            }
        },
        "higher_is_better": {"quiz": {"acc": True, "word_perplexity": False}},
        "n-samples": {"quiz": {"original": 100, "effective": len(acc)}},
    }
    (folder / f"results_{stamp}.json").write_text(json.dumps(results))
    if kept:
        rows = [{"doc_id": number, "filter": "none", "acc": value} for number, value in enumerate(acc)]
        (folder / f"samples_quiz_{stamp}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


BEFORE, AFTER = [1.0, 1.0, 1.0, 0.0, 1.0, 1.0, 0.0, 1.0], [0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0]


def test_commands_name_both_models(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a run", manifest=MANIFEST | {"model": {"name": "org/model"}})
    with pytest.raises(DataError, match="a finished run"):
        commands(run, "quiz")
    (run / "final").mkdir()
    before, after = (shlex.split(command) for command in commands(run, "quiz,other", limit=5))
    assert before[before.index("--model_args") + 1] == "pretrained=org/model"
    assert after[after.index("--model_args") + 1] == f"pretrained={run / 'final'}"
    assert after[after.index("--output_path") + 1] == str(run / "harness" / "after")
    assert before[before.index("--limit") + 1] == "5"
    (run / "final" / "adapter_config.json").write_text("{}")
    _, after = (shlex.split(command) for command in commands(run, "quiz"))
    assert after[after.index("--model_args") + 1] == f"pretrained=org/model,peft={run / 'final'}"
    assert "--limit" not in after


def test_single_answers_are_paired(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    write_results(run, "before", BEFORE)
    write_results(run, "after", AFTER)
    accuracy, perplexity = compare(run)
    assert accuracy.name == "quiz, acc"
    assert accuracy.difference == paired_difference(AFTER, BEFORE)
    assert accuracy.verdict == "worse"
    assert accuracy.after is not None
    assert (accuracy.after.value, accuracy.after.n) == (0.25, 8)
    assert perplexity.difference is not None
    assert (perplexity.difference.value, perplexity.difference.low, perplexity.verdict) == (0.0, None, "unclear")


def test_without_single_answers_errors_add_up(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    write_results(run, "before", BEFORE, kept=False, error=0.3)
    write_results(run, "after", AFTER, kept=False, error=0.4)
    difference = compare(run)[0].difference
    assert difference is not None
    assert difference.value == pytest.approx(-0.5)
    assert difference.high == pytest.approx(-0.5 + 1.959964 * math.hypot(0.3, 0.4), abs=1e-5)


def test_the_newest_results_count_and_are_in_the_report(tmp_path: Path, command: Say) -> None:
    run = write_run(tmp_path / "run")
    write_results(run, "before", BEFORE)
    write_results(run, "after", BEFORE, "2026-11-20T10-00-00")
    write_results(run, "after", AFTER, "2026-11-21T09-00-00")
    status, out, _ = command("evaluate", "harness", run)
    assert status == 0
    assert "quiz, acc" in out
    assert read_run_folder(run).measures[-2].name == "quiz, acc"
    assert "quiz, acc" in (run / "report.html").read_text(encoding="utf-8")


def test_what_is_missing_or_broken_is_named(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    with pytest.raises(DataError, match="there are no results"):
        compare(run)
    write_results(run, "before", BEFORE)
    folder_of(run, "after").mkdir(parents=True)
    (folder_of(run, "after") / "results.json").write_text('{"results": [1]}')
    with pytest.raises(DataError, match="isn't what lm-evaluation-harness writes"):
        compare(run)
    (folder_of(run, "after") / "results.json").write_text('{"results": {"other": {"acc,none": 1.0}}}')
    with pytest.raises(DataError, match="no metric in common"):
        compare(run)
