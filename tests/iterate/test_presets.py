"""Presets fill in what is open; numbers of rounds and their warnings, from judgments that are known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dipole.config import PeftConfig
from dipole.errors import ConfigError
from dipole.evaluate.rounds import Outcome, change, distinct_pairs, measure_round, outcomes, overoptimised
from dipole.evaluate.stats import Estimate
from dipole.group import Comparison, Completion, Group, Judgment, Rating
from dipole.iterate.folder import round_of
from dipole.iterate.presets import PRESETS, resolved
from dipole.iterate.settings import IterateConfig, PairingSettings, RoundLoss, SamplerSettings
from dipole.iterate.stages import Work, pairing_of, train_config
from dipole.objective import resolve
from dipole.progress import Silent

ROOT = Path(__file__).parent.parent.parent


def config(**options: Any) -> IterateConfig:
    return IterateConfig(model="m", prompts="p.jsonl", output="out", judge="vader", **options)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_whole_and_its_loss_takes_its_numbers(name: Any) -> None:
    found = resolved(config(preset=name, peft=PeftConfig(method="lora")))
    assert None not in (found.rounds, found.new_prompts, found.reference, found.sampler.temperature)
    pairing_of(found, 0)
    resolve(found.loss.name).settings(**found.loss.hyperparameters())
    assert "20" in PRESETS[name].paper


def test_snorkel_is_what_its_paper_says() -> None:
    found = resolved(config(preset="snorkel"))
    assert (found.rounds, found.sampler.num_completions, found.pairing.policy) == (3, 5, "best_worst")
    assert (found.new_prompts, found.reference, found.loss.name) == (True, "last", "dpo")


def test_what_is_given_wins_over_a_preset() -> None:
    given = config(
        preset="iterative_rpo",
        rounds=2,
        loss=RoundLoss(nll_weight=0.5),
        pairing=PairingSettings(min_gap=0.9),
        sampler=SamplerSettings(num_completions=6),
    )
    found = resolved(given)
    assert (found.rounds, found.sampler.num_completions, found.sampler.temperature) == (2, 6, 0.8)
    assert (found.loss.name, found.loss.nll_weight, found.loss.beta) == ("rpo_pang", 0.5, 0.1)
    assert (found.pairing.policy, found.pairing.min_gap) == ("gap", 0.9)
    assert resolved(replace(given, loss=RoundLoss(name="ipo"))).loss == RoundLoss(name="ipo")
    assert resolved(found) == found


def test_the_first_model_as_reference_needs_an_adapter() -> None:
    with pytest.raises(ConfigError, match="--reference first"):
        resolved(config(preset="online_dpo"))
    found = resolved(config(preset="online_dpo", peft=PeftConfig(method="lora")))
    work = Work(found, Path("out"), Silent())
    assert train_config(work, round_of(Path("out"), 1)).peft.method == "lora"
    second = train_config(work, round_of(Path("out"), 2))
    assert second.peft.start_from == "out/round-001/train/final"
    assert second.reference == "adapter_off"


def test_the_settings_of_the_real_rounds_are_read() -> None:
    from dipole.options import parse

    file = ROOT / "docs" / "results" / "iterate" / "config.yaml"
    found = resolved(parse(IterateConfig, ["--config", str(file)], prog="dipole iterate", example=""))
    assert found.sampler.stop == ("\n",)
    assert (found.rounds, found.sampler.num_completions, found.model) == (3, 5, "embedded")
    prompts = (ROOT / found.prompts).read_text(encoding="utf-8").splitlines()
    assert found.prompts_per_round is not None
    assert found.prompts_per_round * 3 < (1 - found.eval_share) * len(prompts)


def judged(id: str, *judgments: Judgment) -> Group:
    return Group(id=id, prompt="p", completions=tuple(Completion(text=str(i)) for i in range(4)), judgments=judgments)


def test_outcomes_of_ratings_and_of_comparisons() -> None:
    rated = judged("a", *(Rating(i=i, value=value) for i, value in enumerate([3.0, 1.0, 2.0, 1.0])))
    compared = judged("b", Comparison(i=0, j=2, p=0.8), Comparison(i=1, j=3, p=0.5, weight=0.0))
    assert outcomes([rated, compared]) == [
        Outcome("a", 0, 3.0, 2.0, 1.0),
        Outcome("a", 1, 1.0, 1.0, 0.5),
        Outcome("b", 0, 0.8, 0.5, 0.8),
    ]


def test_numbers_of_a_round() -> None:
    meta = [{"tokens": 2, "finished": True, "logps": -1.0}, {"tokens": 4, "finished": False, "logps": -3.0}]
    samples = [
        Group(id=id, prompt=id, completions=tuple(Completion(text="a b a b", meta=item) for item in meta))
        for id in ("x", "y")
    ]
    numbers = measure_round(samples, {"training": [judged("x", Comparison(i=0, j=2, p=1.0))]}, [[-2.0, -3.5]] * 2)
    assert numbers["tokens"]["value"] == 3
    assert numbers["finished"]["value"] == 0.5
    assert numbers["kl"]["value"] == pytest.approx(0.75)
    assert numbers["different"] == 0.5
    assert numbers["distinct_pairs"] == pytest.approx(2 / 12)
    assert numbers["judges"]["training"]["without_verdict"] == 3
    assert distinct_pairs(["one"]) is None


def test_a_round_is_compared_with_the_one_before() -> None:
    first = [Outcome("a", 0, 2.0, 1.0, 1.0), Outcome("b", 0, 3.0, 1.0, 1.0)]
    second = [Outcome("a", 0, 5.0, 1.0, 1.0), Outcome("b", 0, 4.0, 1.0, 1.0), Outcome("c", 0, 9.0, 1.0, 1.0)]
    assert change(first, None).value == 1.5
    assert change(second, first).value == 2.0


def test_a_warning_when_the_judges_part() -> None:
    rise, unsure = Estimate(1.0, 0.5, 1.5, 9, ""), Estimate(0.1, -0.5, 0.7, 9, "")
    fall, slight = Estimate(-1.0, -1.5, -0.5, 9, ""), Estimate(-0.1, -0.7, 0.5, 9, "")
    assert "falls" in str(overoptimised(rise, fall))
    assert "seems to fall" in str(overoptimised(rise, slight))
    assert overoptimised(rise, rise) is None
    assert overoptimised(unsure, fall) is None
