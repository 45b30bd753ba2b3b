"""Runs with ``--objective reward_model``: they learn, resume, report, and save what transformers loads."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import KilledError, StopAfter, rows, tiny_config, without_time, write_for, write_groups
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from dipole.errors import ConfigError, DataError
from dipole.objective.reward_model import REWARD_LOSSES
from dipole.policy.reward import load_reward_model, reward_scores
from dipole.train.run import train


def config_of(model: Path, data: Path, output: Path, **options: Any) -> Any:
    return tiny_config(model, data, output, objective="reward_model", **options)


@pytest.mark.parametrize("peft", ["none", "lora"])
@pytest.mark.parametrize("loss", REWARD_LOSSES)
def test_a_reward_model_learns_what_is_better_and_loads_in_transformers(
    tiny_folder: Path, tmp_path: Path, peft: str, loss: str
) -> None:
    row = REWARD_LOSSES[loss]
    data = write_for(tmp_path / "data.jsonl", row, groups=6)
    options = {"tie_width": 0.1} if loss == "bradley_terry" else {"score_scale": 2.0}
    run = train(
        config_of(
            tiny_folder, data, tmp_path / "run", loss=loss, peft=peft, num_epochs=15, learning_rate=3e-3, **options
        )
    )
    metrics = [line for line in rows(run / "metrics.jsonl") if "loss" in line]
    assert metrics[-1]["loss"] < 0.7 * metrics[0]["loss"]
    assert metrics[-1]["rewards/accuracies"] == 1

    tokenizer = AutoTokenizer.from_pretrained(run / "final")
    model: Any = AutoModelForSequenceClassification.from_pretrained(run / "final").eval()
    texts = [
        group["prompt"] + answer["text"] for group in map(json.loads, data.open()) for answer in group["completions"]
    ]
    batch = tokenizer([text + tokenizer.eos_token for text in texts], padding=True, return_tensors="pt")
    with torch.no_grad():
        theirs = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.squeeze(-1)
    assert (theirs[0::2] > theirs[1::2]).all(), "the first answer of each group is the better one"
    ours, _ = load_reward_model(run / "final", device=torch.device("cpu"))
    sequences = [
        tuple(ids[mask.bool()].tolist()) for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]
    scores = reward_scores(ours, [ids[:2] for ids in sequences], [ids[2:] for ids in sequences], batch_size=5)
    assert scores == pytest.approx(theirs.tolist(), abs=1e-4)


def test_it_starts_at_chance_and_its_folder_says_what_it_is(tiny_folder: Path, tmp_path: Path) -> None:
    data = write_groups(tmp_path / "data.jsonl")
    run = train(config_of(tiny_folder, data, tmp_path / "run", max_steps=2))
    before, first, *_ = rows(run / "metrics.jsonl")
    assert before["eval/n"] == 9
    assert first["loss"] == pytest.approx(math.log(2), abs=0.1)
    assert "name: bradley_terry" in (run / "config.yaml").read_text()
    assert not (run / "samples.jsonl").exists(), "a reward model writes nothing"
    held_out = rows(run / "held_out.jsonl")
    assert {row["stage"] for row in held_out} == {"before", "after"}


def test_a_killed_run_goes_on_as_if_it_had_not_been(tiny_folder: Path, tmp_path: Path) -> None:
    data = write_groups(tmp_path / "data.jsonl")
    options: dict[str, Any] = {"checkpoint_every": 1, "peft": "lora", "rank": 2}
    whole = train(config_of(tiny_folder, data, tmp_path / "whole", **options))
    config = config_of(tiny_folder, data, tmp_path / "killed", resume=True, **options)
    with pytest.raises(KilledError):
        train(config, StopAfter(2))
    killed = train(config)
    first, second = ([without_time(row) for row in rows(run / "metrics.jsonl")] for run in (whole, killed))
    assert first == second


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "ipo"}, "'ipo' isn't the loss of a reward model"),
        ({"beta": 0.1}, "'beta' is no hyper-parameter of bradley_terry"),
        ({"reference": "copy"}, "no reference"),
        ({"sample_every": 1}, "writes no samples"),
        ({"peft": "prompt_tuning"}, "can't become part of the saved weights"),
    ],
)
def test_options_that_mean_nothing_are_refused(
    tiny_folder: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    data = write_groups(tmp_path / "data.jsonl", train=3)
    with pytest.raises(ConfigError, match=message):
        train(config_of(tiny_folder, data, tmp_path / "run", **options))


def test_a_policy_has_no_such_loss(tiny_folder: Path, tmp_path: Path) -> None:
    data = write_groups(tmp_path / "data.jsonl", train=3)
    with pytest.raises(ConfigError, match="no loss 'bradley_terry'"):
        train(tiny_config(tiny_folder, data, tmp_path / "run", loss="bradley_terry"))


def test_margins_need_ratings(tiny_folder: Path, tmp_path: Path) -> None:
    data = write_groups(tmp_path / "data.jsonl", train=3)
    with pytest.raises(DataError, match="scores"):
        train(config_of(tiny_folder, data, tmp_path / "run", loss="bradley_terry_margin"))
