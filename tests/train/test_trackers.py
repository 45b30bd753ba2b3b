"""Trackers get a copy of the metrics; whatever they do, the run is the same."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import Recorder, rows, tiny_config, without_time, write_groups

from dipole.errors import ConfigError
from dipole.train import trackers
from dipole.train.run import train
from dipole.train.trackers import Tracker, numbers

SERVICE = """
import json, time

def write(kind, content):
    with open({file!r}, "a") as file:
        file.write(json.dumps([kind, content], default=str) + "\\n")

def init(**options):
    write("init", options)
    {init}

def log(values, step):
    write("log", {{"step": step, **values}})
    {log}

def finish():
    write("finish", None)
    {finish}
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_groups(tmp_path_factory.mktemp("data") / "data.jsonl")


@pytest.fixture(scope="module")
def expected(tiny_folder: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    output = train(tiny_config(tiny_folder, data, tmp_path_factory.mktemp("run") / "out", num_samples=0))
    return [without_time(row) for row in rows(output / "metrics.jsonl")]


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts a tracker's package on the path; what it was told is in a file."""

    def build(**parts: str) -> Path:
        told = tmp_path / "told.jsonl"
        package = tmp_path / "packages"
        package.mkdir()
        text = SERVICE.format(file=str(told), **{"init": "pass", "log": "pass", "finish": "pass", **parts})
        (package / "trackio.py").write_text(text)
        monkeypatch.syspath_prepend(package)
        monkeypatch.delitem(sys.modules, "trackio", raising=False)
        return told

    yield build
    sys.modules.pop("trackio", None)


def test_a_tracker_gets_every_number_of_every_row(
    tiny_folder: Path, data: Path, tmp_path: Path, service: Any, expected: list[dict[str, Any]]
) -> None:
    told = service()
    said = Recorder()
    output = train(tiny_config(tiny_folder, data, tmp_path / "my run", num_samples=0, track="trackio"), said)
    assert [without_time(row) for row in rows(output / "metrics.jsonl")] == expected
    first, *logged, last = rows(told)
    assert first[0] == "init"
    assert (first[1]["project"], first[1]["name"]) == ("dipole", "my run")
    assert first[1]["config"]["loss"]["name"] == "dpo"
    assert [{"step": row["step"], **numbers(row)} for row in rows(output / "metrics.jsonl")] == [
        row for _, row in logged
    ]
    assert last == ["finish", None]
    assert not any("trackio" in sentence for sentence in said.said)


@pytest.mark.parametrize(
    ("parts", "problem"),
    [
        ({"init": "raise ValueError('wrong key')"}, "wrong key"),
        ({"init": "raise SystemExit(1)"}, "1"),
        ({"log": "raise ConnectionError('the server\\n is down')"}, "the server is down"),
        ({"finish": "raise OSError('no space')"}, "no space"),
    ],
    ids=["wrong key", "exit", "down", "at the end"],
)
def test_a_tracker_that_fails_costs_one_sentence(
    tiny_folder: Path,
    data: Path,
    tmp_path: Path,
    service: Any,
    expected: list[dict[str, Any]],
    parts: dict[str, str],
    problem: str,
) -> None:
    service(**parts)
    said = Recorder()
    output = train(tiny_config(tiny_folder, data, tmp_path / "out", num_samples=0, track="trackio"), said)
    assert [without_time(row) for row in rows(output / "metrics.jsonl")] == expected
    assert json.loads((output / "manifest.json").read_text())["status"] == "done"
    (sentence,) = [sentence for sentence in said.said if "trackio" in sentence]
    assert sentence == f"trackio failed ({problem}); training goes on without it. metrics.jsonl has every row."


@pytest.mark.parametrize("where", ["init", "log"])
def test_a_tracker_that_hangs_holds_nothing_up(
    tiny_folder: Path,
    data: Path,
    tmp_path: Path,
    service: Any,
    expected: list[dict[str, Any]],
    where: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trackers, "PATIENCE", 0.2)
    service(**{where: "__import__('threading').Event().wait()"})  # for ever: a run that waited would never end
    said = Recorder()
    output = train(tiny_config(tiny_folder, data, tmp_path / "out", num_samples=0, track="trackio"), said)
    assert [without_time(row) for row in rows(output / "metrics.jsonl")] == expected
    (sentence,) = [sentence for sentence in said.said if "trackio" in sentence]
    assert "hasn't written everything after 0.2 s and is left" in sentence


def test_a_tracker_that_is_not_installed_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="it isn't installed") as caught:
        train(tiny_config(tmp_path / "no model", tmp_path / "no data", tmp_path / "out", track="wandb"))
    assert caught.value.where == "--track wandb"
    assert "pip install wandb" in (caught.value.remedy or "")
    assert not (tmp_path / "out").exists()


def test_what_a_tracker_gets_are_finite_numbers() -> None:
    row = {"step": 3, "loss": 0.5, "skipped": True, "not_finite": ["x"], "eval/n": 4, "grad_norm": float("nan")}
    assert numbers(row) == {"loss": 0.5, "skipped": 1.0, "eval/n": 4.0}


def test_rows_after_a_fault_are_dropped() -> None:
    said: list[str] = []

    def broken() -> Any:
        raise OSError("no")

    tracker = Tracker("x", broken, said.append)
    tracker.close()
    tracker.log({"step": 1})
    assert tracker._rows.qsize() <= 1  # the end alone
    assert len(said) == 1


def test_event_files_of_tensorboard(tiny_folder: Path, data: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    output = train(tiny_config(tiny_folder, data, tmp_path / "out", num_samples=0, track="tensorboard"))
    events = EventAccumulator(str(output / "tensorboard"))
    events.Reload()
    logged = [(event.step, event.value) for event in events.Scalars("loss")]
    written = [(row["step"], row["loss"]) for row in rows(output / "metrics.jsonl") if "loss" in row]
    assert [step for step, _ in logged] == [step for step, _ in written]
    assert [value for _, value in logged] == pytest.approx([value for _, value in written], rel=1e-6)
