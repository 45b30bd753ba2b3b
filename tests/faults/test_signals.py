"""Signals in every phase of a run: the step is finished, the state saved once, and the exit status says which."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from forks import Ended, fork, options, results, valid_steps, write_groups

PHASES: dict[str, dict[str, Any]] = {
    "in a step": {"at": "dipole.train.loop.clip", "call": 3, "when": "before"},
    "in a save": {"at": "dipole.train.checkpoint.save_file", "call": 6, "when": "before"},
    "before a save is renamed": {"at": "dipole.train.checkpoint.write_json", "call": 3, "when": "after"},
    "in held-out scoring": {"at": "dipole.train.run.held_out_rows", "call": 4, "when": "before"},
}
"""Where a signal comes; all of them in or after step 3."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_groups(tmp_path_factory.mktemp("data") / "data.jsonl")


@pytest.fixture(scope="module")
def expected(tiny_folder: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    output = tmp_path_factory.mktemp("straight") / "run"
    assert fork(config(tiny_folder, data, output)).status == 0
    return results(output)


def config(model: Path, data: Path, output: Path, **more: Any) -> dict[str, Any]:
    return options(model, data, output, eval_every=1, num_epochs=1, **more)


def saves(record: Path) -> list[str]:
    """The checkpoints that were written, in order."""
    lines = record.read_text().splitlines()
    return [line.split()[1] for line in lines if line.startswith("rename step-")]


def status_says(output: Path) -> str:
    found: str = json.loads((output / "manifest.json").read_text())["status"]
    return found


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("phase", PHASES)
def test_a_signal_is_obeyed_after_the_step_with_one_save(
    tiny_folder: Path, data: Path, tmp_path: Path, expected: dict[str, Any], phase: str, number: int
) -> None:
    event = PHASES[phase] | {"signals": [number]}
    ended = fork(config(tiny_folder, data, tmp_path / "run"), events=[event], record=str(tmp_path / "writes"))
    assert ended.status == 128 + number, ended.said
    assert valid_steps(tmp_path / "run") == [3, 2]
    assert saves(tmp_path / "writes").count("step-000003") == 1
    assert status_says(tmp_path / "run") == "stopped"
    assert fork(config(tiny_folder, data, tmp_path / "run", resume=True)).status == 0
    assert results(tmp_path / "run") == expected


@pytest.mark.parametrize("numbers", [[2, 2, 2], [15, 15], [2, 15, 2]])
def test_repeated_signals_in_a_save_neither_cut_it_short_nor_start_another(
    tiny_folder: Path, data: Path, tmp_path: Path, expected: dict[str, Any], numbers: list[int]
) -> None:
    event = PHASES["in a save"] | {"signals": numbers}
    ended = fork(config(tiny_folder, data, tmp_path / "run"), events=[event], record=str(tmp_path / "writes"))
    assert ended.status == 128 + numbers[0], ended.said
    assert saves(tmp_path / "writes") == ["step-000001", "step-000002", "step-000003"]
    assert fork(config(tiny_folder, data, tmp_path / "run", resume=True)).status == 0
    assert results(tmp_path / "run") == expected


def test_a_repeated_sigterm_in_a_step_counts_once_and_a_repeated_sigint_ends_it(
    tiny_folder: Path, data: Path, tmp_path: Path
) -> None:
    for number, newest in ((signal.SIGTERM, 3), (signal.SIGINT, 2)):
        event = PHASES["in a step"] | {"signals": [number, number]}
        ended = fork(config(tiny_folder, data, tmp_path / str(number)), events=[event])
        assert ended.status == 128 + number, ended.said
        assert valid_steps(tmp_path / str(number))[0] == newest


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("at", ["dipole.train.setup.load_policy", "dipole.train.run.held_out_rows"])
def test_before_the_first_step_there_is_nothing_to_save(
    tiny_folder: Path, data: Path, tmp_path: Path, expected: dict[str, Any], at: str, number: int
) -> None:
    event = {"at": at, "call": 1, "when": "before", "signals": [number]}
    ended: Ended = fork(config(tiny_folder, data, tmp_path / "run"), events=[event])
    assert ended.status == 128 + number, ended.said
    assert "before the first step" in ended.said[0]
    assert valid_steps(tmp_path / "run") == []
    assert fork(config(tiny_folder, data, tmp_path / "run", resume=True)).status == 0
    assert results(tmp_path / "run") == expected


def test_a_signal_after_the_last_step_keeps_the_model(
    tiny_folder: Path, data: Path, tmp_path: Path, expected: dict[str, Any]
) -> None:
    event = {"at": "dipole.train.run.save_final", "call": 1, "when": "before", "signals": [signal.SIGTERM] * 2}
    ended = fork(config(tiny_folder, data, tmp_path / "run"), events=[event])
    assert ended.status == 143, ended.said
    assert (tmp_path / "run" / "final").is_dir()
    assert fork(config(tiny_folder, data, tmp_path / "run", resume=True)).status == 0
    assert results(tmp_path / "run") == expected
