"""Held-out scores and samples that aren't finite: in no mean, and named in the log, the files and the evaluation."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from poison import poison
from tiny_runs import Recorder, rows, tiny_config, write_for, write_groups

from dipole.evaluate.measure import measure_run
from dipole.evaluate.report import write_report
from dipole.objective import LOSSES
from dipole.train import loop
from dipole.train import run as run_module
from dipole.train.run import train


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_groups(tmp_path_factory.mktemp("data") / "data.jsonl")


def strict(path: Path) -> list[dict[str, Any]]:
    """Rows of JSON as the standard has it, which knows no NaN."""

    def refuse(word: str) -> None:
        raise AssertionError(word)

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("what", ["logps", "ref_logps", "loss"])
def test_what_is_not_finite_is_in_no_mean_and_is_named(
    tiny_folder: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    good = train(tiny_config(tiny_folder, data, tmp_path / "good", num_samples=0))
    poison(["g11"], what, monkeypatch.setattr)  # one of three held-out groups, of three comparisons
    told = Recorder()
    output = train(tiny_config(tiny_folder, data, tmp_path / "out", num_samples=0), told)

    by_group = {stage: [row for row in strict(output / "held_out.jsonl") if row["stage"] == stage] for stage in STAGES}
    for stage in STAGES:
        bad = [row for row in by_group[stage] if "not_finite" in row]
        assert [row["id"] for row in bad] == ["g11"] * 3
        assert all(row[name] is None for row in bad for name in row["not_finite"])
    kept = [row for row in rows(good / "held_out.jsonl") if row["stage"] == "after" and row["id"] != "g11"]
    last = [row for row in strict(output / "metrics.jsonl") if "eval/n" in row][-1]
    assert (last["eval/n"], last["eval/not_finite"]) == (6, 3)
    expected = sum(row["loss"] * row["weight"] for row in kept) / sum(row["weight"] for row in kept)
    assert last["eval/loss"] == pytest.approx(expected, rel=1e-4)
    said = [sentence for sentence in told.said if "held-out" in sentence and "finite" in sentence]
    assert len(said) == 2
    assert "3 of 9 held-out relations aren't finite" in said[0]
    assert "g11" in said[0]

    accuracy, *_ = measure_run(output)
    assert accuracy.after is not None
    assert accuracy.after.n == measure_run(good)[0].after.n - 3  # type: ignore[union-attr]
    note = json.loads((output / "evaluation.json").read_text())["notes"][0]
    assert "3 of 9 held-out comparisons have a value that isn't finite" in note
    assert "g11" in note
    page = write_report(output).read_text(encoding="utf-8")
    assert "3 of 9 held-out comparisons have a value that isn&#39;t finite" in page


STAGES = ("before", "after")


def test_a_run_whose_held_out_scores_are_all_lost_ends_and_says_so(
    tiny_folder: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(["g10", "g11", "g12"], "logps", monkeypatch.setattr)
    output = train(tiny_config(tiny_folder, data, tmp_path / "out", num_samples=0))
    first = strict(output / "metrics.jsonl")[0]
    assert first == {"step": 0, "eval/n": 0, "eval/not_finite": 9}
    assert measure_run(output) == []
    notes = json.loads((output / "evaluation.json").read_text())["notes"]
    assert "9 of 9 held-out comparisons" in notes[0]
    write_report(output)


def test_of_single_completions_the_other_side_keeps_its_mean(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Desirable and undesirable ones are averaged apart, with weights that are 0 on the other side."""
    data = write_for(tmp_path / "data.jsonl", LOSSES["kto"], groups=6)
    groups = rows(data)
    for group in groups[3:]:
        group["split"] = "eval"
    data.write_text("".join(json.dumps(group) + "\n" for group in groups))
    evaluate = loop.evaluate_batch

    def evaluated(run: Any, groups: Any, batch: Any, tokens: Any, **options: Any) -> Any:
        found = evaluate(run, groups, batch, tokens, **options)
        if options.get("held_out"):
            found.outcome.losses[0] = math.nan
        return found

    monkeypatch.setattr(loop, "evaluate_batch", evaluated)
    output = train(tiny_config(tiny_folder, data, tmp_path / "out", num_samples=0, loss="kto", max_steps=1))
    last = [row for row in strict(output / "metrics.jsonl") if "eval/n" in row][-1]
    assert (last["eval/n"], last["eval/not_finite"]) == (5, 1)
    assert {"eval/rewards/chosen", "eval/rewards/rejected", "eval/loss"} <= last.keys()


def test_samples_without_a_finite_log_probability_are_left_out_of_the_kl(
    tiny_folder: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    completion_logps = run_module.completion_logps

    def spoilt(run: Any, groups: Any) -> Any:
        logps, ref_logps = completion_logps(run, groups)
        return torch.cat([torch.tensor([-math.inf]), logps[1:]]), ref_logps

    monkeypatch.setattr(run_module, "completion_logps", spoilt)
    output = train(tiny_config(tiny_folder, data, tmp_path / "out", num_samples=3))
    bad = [row for row in strict(output / "samples.jsonl") if "not_finite" in row]
    assert [(row["stage"], row["index"], row["logps"]) for row in bad] == [("before", 0, None), ("after", 0, None)]
    measures = {measure.name: measure for measure in measure_run(output)}
    assert measures["KL, k1"].after.n == 2  # type: ignore[union-attr]
    assert measures["Length of samples"].after.n == 3  # type: ignore[union-attr]
    notes = json.loads((output / "evaluation.json").read_text())["notes"]
    assert "1 of 3 samples have a log-probability that isn't finite" in " ".join(notes)
    write_report(output)
