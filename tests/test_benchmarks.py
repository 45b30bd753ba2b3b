"""The benchmark's own arithmetic, and that its Dipole side runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from conftest import build_tokenizer

SIDES = Path(__file__).parents[1] / "benchmarks" / "versus"
sys.path.insert(0, str(SIDES))

from cases import Case, TextGroup, text_groups, useful_work, write_groups, write_pairs  # noqa: E402
from summary import compare, disagreement, table  # noqa: E402

WORK = {"tokens": 100.0, "operations": 1e9}


def measurement(seconds: float, *, peak: float = 1e9, loss: float = 0.69, chosen: float = -200.0) -> dict[str, Any]:
    row = {"loss": loss, "logps/chosen": chosen, "logps/rejected": -210.0, "cpu_seconds": 2 * seconds}
    steps = [row | {"seconds": 99.0}, row | {"seconds": seconds}]
    return {"steps": steps, "peak_bytes": peak, "matrix_rate": [1e9, 2e9]}


def test_ratios_are_of_pairs_of_measurements_without_the_warm_up() -> None:
    found = compare([measurement(1), measurement(2)], [measurement(6), measurement(8, peak=4e9)], WORK)
    assert found["times_faster"] == (5.0, 4.0, 6.0)
    assert found["memory_ratio"] == (0.625, 0.25, 1.0)
    assert found["dipole"]["tokens_per_second"] == (75.0, 50.0, 100.0)
    assert found["dipole"]["share_of_matrix_rate"] == (0.375, 0.25, 0.5)
    assert "**5.0 (4.0–6.0)**" in table({"case": found})


def test_another_loss_or_another_log_probability_is_a_disagreement() -> None:
    assert disagreement(measurement(1), measurement(2, loss=0.69005, chosen=-200.01)) is None
    assert disagreement(measurement(1), measurement(1, loss=0.6903)) == "step 0: loss is 0.690000 and 0.690300"
    assert "logps/chosen" in str(disagreement(measurement(1), measurement(1, chosen=-200.1)))
    assert "loss" in str(disagreement(measurement(1), measurement(1, loss=float("nan"))))


def test_useful_work_counts_each_prompt_and_completion_once() -> None:
    config = SimpleNamespace(
        hidden_size=4, num_attention_heads=2, num_key_value_heads=1, head_dim=2, intermediate_size=8,
        num_hidden_layers=3, vocab_size=10,
    )  # fmt: skip
    group = TextGroup("abc", ("de", "f"))  # bytes, each completion with an end-of-sequence token that is no input
    found = useful_work([group], build_tokenizer(), config, Case())
    layers = 2 * (3 + 2 + 1) * (2 * (4 * 4) + 2 * (4 * 2) + 3 * 4 * 8) * 3
    head = 2 * (3 + 2) * 4 * 10
    scores = 4 * (1 + 2 + 3 + 4 + 5 + 4) * 4 * 3
    assert found == {"tokens": 8, "operations": pytest.approx(3 * (layers + head + scores) + layers + head + scores)}
    frozen = useful_work([group], build_tokenizer(), config, Case(lora=True, cached=True))
    assert frozen["operations"] == pytest.approx(2 * (layers + head) + 3 * scores)


def test_both_sides_get_the_same_completions(tmp_path: Path) -> None:
    groups = text_groups(Case(groups=1, completions=3), build_tokenizer(), steps=1, scale=0.1)
    write_groups(groups, tmp_path / "groups.jsonl")
    write_pairs(groups, tmp_path / "pairs.jsonl")
    ours, theirs = (
        [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        for name in ("groups", "pairs")
    )
    assert [len(ours), len(theirs)] == [2, 2 * 3]
    best, middle, worst = (item["text"] for item in ours[1]["completions"])
    assert [(row["chosen"], row["rejected"]) for row in theirs[3:]] == [(best, middle), (best, worst), (middle, worst)]
    assert {row["prompt"] for row in theirs[3:]} == {ours[1]["prompt"]}


def test_the_side_of_dipole_runs(tmp_path: Path, tiny_folder: Path) -> None:
    case = Case(groups=2)
    write_groups(text_groups(case, build_tokenizer(), steps=1, scale=0.1), tmp_path / "groups.jsonl")
    spec = {
        "case": {"groups": 2, "lora": True, "cached": False, "device": "cpu"},
        "model": str(tiny_folder),
        "groups": str(tmp_path / "groups.jsonl"),
        "threads": 1,
        "beta": 0.1,
        "learning_rate": 1e-6,
        "max_length": 512,
        "max_tokens_per_microbatch": 4096,
    }
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    script = [sys.executable, str(SIDES / "dipole_side.py"), str(tmp_path / "spec.json"), str(tmp_path / "result.json")]
    subprocess.run(script, check=True, capture_output=True)
    found = json.loads((tmp_path / "result.json").read_text())
    assert [row["loss"] for row in found["steps"]] == [pytest.approx(0.6931, abs=1e-3)] * 2
    assert found["peak_bytes"] > 1e8
    assert min(row["cpu_seconds"] for row in found["steps"]) > 0
