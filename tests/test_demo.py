"""The demo: its labels by hand, its groups, and the whole of it on the tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dipole import demo
from dipole.errors import ConfigError
from dipole.evaluate.measure import measure_run
from dipole.evaluate.run_folder import Measure
from dipole.evaluate.stats import Estimate


def test_probability_is_the_share_of_rater_pairs_with_ties_as_half() -> None:
    # (2, 1) against (1, 1): 2>1 twice, 1=1 twice, so (1 + 1 + ½ + ½) / 4.
    assert demo.probability_above((2, 1), (1, 1)) == 0.75
    assert demo.probability_above((1, 1), (2, 1)) == 0.25
    assert demo.probability_above((-4,), (4, 4, 4)) == 0.0


def test_every_sentence_is_in_one_group_and_groups_mix_all_bands() -> None:
    groups = demo.review_groups(demo.load_sentences(), seed=3)
    ids = [completion.meta["sentence"] for group in groups for completion in group.completions]
    assert len(ids) == len(set(ids))
    assert sum(group.split == "eval" for group in groups) == demo.HELD_OUT_GROUPS
    assert sum(group.split == "train" for group in groups) == demo.STEPS * demo.GROUPS_PER_STEP
    assert all(len(group.completions) == demo.COMPLETIONS for group in groups)
    spread = [max(abs(2 * judgment.p - 1) for judgment in group.judgments) for group in groups]  # type: ignore[attr-defined]
    assert min(spread) > 0.9  # the best and the worst sentence of a group are far apart, in every group


def test_groups_depend_on_the_seed_alone() -> None:
    sentences = demo.load_sentences()
    assert demo.review_groups(sentences, seed=1) == demo.review_groups(sentences, seed=1)
    assert demo.review_groups(sentences, seed=1) != demo.review_groups(sentences, seed=2)


def test_demo_runs_to_its_report(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"STEPS": 2, "GROUPS_PER_STEP": 2, "HELD_OUT_GROUPS": 3, "SAMPLES": 6}.items():
        monkeypatch.setattr(demo, name, value)
    result = demo.run_demo(tmp_path / "demo", model=str(tiny_folder))
    assert result.report.is_file()
    found = {measure.name: measure for measure in result.measures}
    assert found["Held-out accuracy"].before.value == 0.5  # type: ignore[union-attr]
    assert found["Score of samples"].after.n == 6  # type: ignore[union-attr]
    assert found["KL, k1"].after is not None
    steps = [json.loads(line) for line in (tmp_path / "demo/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in steps] == [0, 1, 2, 2]
    assert measure_run(tmp_path / "demo") == result.measures
    with pytest.raises(ConfigError, match="already holds a run"):
        demo.run_demo(tmp_path / "demo", model=str(tiny_folder))


@pytest.mark.parametrize(
    ("accuracy_low", "verdict", "better"), [(0.6, "better", True), (0.49, "better", False), (0.6, "unclear", False)]
)
def test_better_needs_both_claims(accuracy_low: float, verdict: str, better: bool) -> None:
    estimate = Estimate(0.7, accuracy_low, 0.8, 100, "share")
    measures = [
        Measure("Held-out accuracy", "", "share", None, estimate, None, "better"),
        Measure("Score of samples", "", "score", None, estimate, None, verdict),
    ]
    assert demo.is_better(measures) is better
