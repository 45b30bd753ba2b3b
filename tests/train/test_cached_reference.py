"""Runs with a cached reference: the same training, filled once for all runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import (
    KilledError,
    Recorder,
    StopAfter,
    prepared,
    rows,
    tiny_config,
    without_time,
    write_for,
    write_groups,
)

from conftest import build_groups
from dipole.errors import ConfigError
from dipole.objective import LOSSES
from dipole.policy.cached import Cached
from dipole.train.loop import steps
from dipole.train.references import only
from dipole.train.run import train
from dipole.train.setup import prepare


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DIPOLE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "reference"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_groups(tmp_path / "data.jsonl")


def losses(config: Any) -> list[float]:
    return [info.metrics["loss"] for info in steps(prepared(config))]


@pytest.mark.parametrize("peft", ["none", "lora"])
def test_cached_trains_as_live_does(tiny_folder: Path, data: Path, tmp_path: Path, peft: str) -> None:
    options = {"peft": peft, "num_epochs": 2}
    cached = losses(tiny_config(tiny_folder, data, tmp_path / "a", reference="cached", **options))
    live = losses(tiny_config(tiny_folder, data, tmp_path / "b", **options))
    assert cached == pytest.approx(live, rel=1e-5)


def test_a_second_run_computes_nothing(tiny_folder: Path, data: Path, tmp_path: Path, cache: Path) -> None:
    prepared(tiny_config(tiny_folder, data, tmp_path / "a", reference="cached"))
    before = sorted(cache.rglob("*.safetensors"))
    assert before
    for number, options in enumerate(
        ({"beta": 0.5}, {"learning_rate": 1e-5}, {"loss": "ipo"}, {"seed": 3}, {"global_batch_size": 5})
    ):
        told = Recorder()
        prepare(tiny_config(tiny_folder, data, tmp_path / f"b{number}", reference="cached", **options), told)
        assert "The reference's log-probabilities are in the cache." in told.said
    assert sorted(cache.rglob("*.safetensors")) == before


def test_new_data_adds_what_is_new(tiny_folder: Path, data: Path, tmp_path: Path, cache: Path) -> None:
    prepared(tiny_config(tiny_folder, data, tmp_path / "a", reference="cached"))
    more = write_groups(tmp_path / "more.jsonl", train=12)
    told = Recorder()
    prepare(tiny_config(tiny_folder, more, tmp_path / "b", reference="cached"), told)
    assert "Computing the reference, once" in told.stages
    assert len(list(cache.rglob("*.safetensors"))) == 2


def test_of_a_group_with_known_completions_only_the_others_are_computed() -> None:
    (first, second, third) = build_groups((4, [3, 3, 2]), (4, [5, 1]), (2, [1]))
    second = replace(second, prompt_ids=first.prompt_ids, completion_ids=(*first.completion_ids[:2], (7, 7), (7, 7)))
    known = {(group.prompt_ids, ids) for group in (first, third) for ids in group.completion_ids}
    sequences = {(group.prompt_ids, ids) for group in (first, second, third) for ids in group.completion_ids}
    assert [(group.id, group.completion_ids) for group in only([first, second, third], list(sequences - known))] == [
        (second.id, ((7, 7),))
    ]
    everything = only([second, first, third], list(sequences))
    assert [group.completion_ids for group in everything] == [
        (*first.completion_ids[:2], (7, 7)),
        first.completion_ids[2:],
        third.completion_ids,
    ]


def test_kto_s_mismatched_completions_are_cached_too(tiny_folder: Path, tmp_path: Path) -> None:
    data = write_for(tmp_path / "data.jsonl", LOSSES["kto"])
    config = tiny_config(tiny_folder, data, tmp_path / "a", loss="kto", reference="cached", num_samples=0)
    run = prepared(config)
    assert isinstance(run.reference, Cached)
    run.reference._live = None  # type: ignore[assignment]
    cached = [info.metrics["loss"] for info in steps(run)]
    assert cached == pytest.approx(losses(tiny_config(tiny_folder, data, tmp_path / "b", loss="kto")), rel=1e-5)


@pytest.mark.parametrize("peft", ["none", "lora"])
def test_a_whole_run_with_samples_and_an_interruption(tiny_folder: Path, data: Path, tmp_path: Path, peft: str) -> None:
    options = {"reference": "cached", "checkpoint_every": 1, "peft": peft, "learning_rate": 1e-2}
    train(tiny_config(tiny_folder, data, tmp_path / "straight", **options))
    with pytest.raises(KilledError):
        train(tiny_config(tiny_folder, data, tmp_path / "cut", **options), StopAfter(2))
    train(tiny_config(tiny_folder, data, tmp_path / "cut", **options, resume=True))
    for name in ("metrics.jsonl", "samples.jsonl", "held_out.jsonl"):
        straight, cut = ([without_time(row) for row in rows(tmp_path / run / name)] for run in ("straight", "cut"))
        assert straight == cut
    samples = rows(tmp_path / "straight" / "samples.jsonl")
    assert all(abs(row["logps"] - row["ref_logps"]) < 1e-4 for row in samples if row["stage"] == "before")
    assert any(abs(row["logps"] - row["ref_logps"]) > 1e-3 for row in samples if row["stage"] == "after")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "simpo"}, "no reference"),
        ({"loss": "tdpo1"}, "whole distributions"),
        ({"sync_reference_every": 2}, "the reference moves"),
    ],
)
def test_what_can_not_be_cached_is_refused(
    tiny_folder: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    data = write_for(tmp_path / "data.jsonl", LOSSES["dpo"])
    with pytest.raises(ConfigError, match=message):
        prepared(tiny_config(tiny_folder, data, tmp_path / "out", reference="cached", **options))
