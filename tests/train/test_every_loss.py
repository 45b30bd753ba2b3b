"""Every row of the table trains: fifty steps on separable data, and its own objective falls."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_runs import prepared, tiny_config, write_for

from dipole.errors import ConfigError, DataError
from dipole.objective import LOSSES, Loss
from dipole.train.loop import steps

TRAINABLE = [row for row in LOSSES.values() if "imageless_logps" not in row.inputs]


@pytest.mark.parametrize("row", TRAINABLE, ids=lambda row: row.name)
def test_the_objective_falls_in_fifty_steps(row: Loss, tiny_folder: Path, tmp_path: Path) -> None:
    data = write_for(tmp_path / "data.jsonl", row)
    options = {"weights": (0.7, 0.3)} if any(parameter.simplex for parameter in row.hyper) else {}
    config = tiny_config(
        tiny_folder,
        data,
        tmp_path / "out",
        loss=row.name,
        global_batch_size=4,
        num_epochs=50,
        schedule="constant",
        warmup_ratio=0.0,
        num_samples=0,
        max_grad_norm=1.0,
        **options,
    )
    losses = [info.metrics["loss"] for info in steps(prepared(config))]
    assert len(losses) == 50
    assert losses[-1] < losses[0] - 0.02 * abs(losses[0])
    assert sum(losses[-10:]) < sum(losses[:10])


def test_losses_of_images_are_refused_until_there_are_images(tiny_folder: Path, tmp_path: Path) -> None:
    data = write_for(tmp_path / "data.jsonl", LOSSES["mdpo"])
    with pytest.raises(ConfigError, match="images"):
        prepared(tiny_config(tiny_folder, data, tmp_path / "out", loss="mdpo"))


def test_a_missing_fact_names_the_completion(tiny_folder: Path, tmp_path: Path) -> None:
    data = write_for(tmp_path / "data.jsonl", LOSSES["safedpo"])
    lines = [json.loads(line) for line in data.read_text(encoding="utf-8").splitlines()]
    del lines[2]["completions"][1]["meta"]["unsafe"]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    with pytest.raises(DataError, match="no 'unsafe'") as caught:
        prepared(tiny_config(tiny_folder, data, tmp_path / "out", loss="safedpo"))
    assert caught.value.where == "group g2, completion 1"


def test_kto_on_a_single_prompt_is_refused_before_the_model_is_loaded(tiny_folder: Path, tmp_path: Path) -> None:
    data = write_for(tmp_path / "data.jsonl", LOSSES["kto"])
    data.write_text(
        data.read_text(encoding="utf-8").replace('"1:"', '"0:"').replace('"2:"', '"0:"').replace('"3:"', '"0:"')
    )
    with pytest.raises(DataError, match="answer the same prompt"):
        prepared(tiny_config(tiny_folder, data, tmp_path / "out", loss="kto"))
