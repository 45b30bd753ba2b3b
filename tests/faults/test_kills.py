"""Runs that are killed in the middle of a save, and anywhere else, lose nothing.

A chain of kills: each run resumes the one before, gets a little further and is killed. What comes out in the end is
what a run makes that nobody interrupts, bit for bit. ``make faults`` kills hundreds of times.
"""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path
from typing import Any

import pytest
from forks import Ended, fork, options, results, valid_steps, write_groups

LONG = os.environ.get("FAULTS") == "long"
KINDS: dict[str, dict[str, Any]] = {
    "all weights": {"eval_every": 2},
    "adapter": {"peft": "lora", "rank": 2},
    "moving state and reference": {"loss": "bco_pair", "sync_reference_every": 2, "eval_every": 3},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_groups(tmp_path_factory.mktemp("data") / "data.jsonl")


@pytest.fixture(scope="module", params=KINDS if LONG else ["moving state and reference"])
def straight(
    request: pytest.FixtureRequest, tiny_folder: Path, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], dict[str, Any], list[str], float]:
    """Of a run that nobody interrupts: its options, its results, what its saves did to the disk, and its seconds."""
    folder = tmp_path_factory.mktemp("straight")
    kind = KINDS[request.param]
    ended = fork(options(tiny_folder, data, folder / "run", **kind), record=str(folder / "writes"))
    assert ended.status == 0, ended.said
    return kind, results(folder / "run"), (folder / "writes").read_text().splitlines(), ended.seconds


def killed(ended: Ended) -> bool:
    assert ended.status in (0, -signal.SIGKILL), ended.said
    return ended.status != 0


class Chain:
    """A run that is killed and resumed again and again; nothing that was saved is ever lost."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self.output = Path(config["output"])
        self.newest = 0

    def go_on(self, **order: Any) -> bool:
        """Resumes; returns whether it was killed."""
        was_killed = killed(fork(self.config | {"resume": True}, **order))
        valid = valid_steps(self.output)
        assert max(valid, default=0) >= self.newest, "a checkpoint was lost"
        assert len(valid) >= min(2, self.newest), "fewer than two checkpoints are left"
        self.newest = max(valid, default=0)
        return was_killed

    def finish(self) -> dict[str, Any]:
        assert not self.go_on()
        assert not list(self.output.rglob(".*.tmp")), "something half written was left"
        assert not (self.output / "run.lock").exists()
        return results(self.output)


def points_of_a_save(writes: list[str]) -> list[int]:
    """The numbers of everything that one save with pruning does to the disk, and of what ends the run."""
    ends = [number for number, write in enumerate(writes, start=1) if write.startswith("rmtree .step")]
    first_pruning = ends[0]
    begin = max(n for n, write in enumerate(writes[:first_pruning], start=1) if write.startswith("mkdir"))
    return list(range(begin, first_pruning + 2))


def test_a_save_has_every_point_that_is_named(straight: Any) -> None:
    _, _, writes, _ = straight
    words = {write.split()[0] for write in writes}
    assert words == {"mkdir", "save_file", "_sync", "write_json", "rename", "rmtree"}
    assert len(points_of_a_save(writes)) >= 12  # with 8 at random times at least 20 kills in every test run
    files = {write.split()[1] for write in writes if write.startswith("save_file")}
    assert {"trained.safetensors", "optimizer.safetensors"} <= files


def test_killed_at_every_point_of_a_save(straight: Any, tiny_folder: Path, data: Path, tmp_path: Path) -> None:
    kind, expected, writes, _ = straight
    points = points_of_a_save(writes) if not LONG else list(range(1, len(writes) + 1))
    config = options(tiny_folder, data, tmp_path / "run", **kind)
    chain = Chain(config)
    for point in points:
        if not chain.go_on(kill_at_write=point):  # it came to its end: once more from the start
            assert results(chain.output) == expected
            chain.output.rename(tmp_path / f"done-{point}")
            chain = Chain(config)
            assert chain.go_on(kill_at_write=point), f"nothing happens at point {point}"
    assert chain.finish() == expected


def test_killed_at_random_times(straight: Any, tiny_folder: Path, data: Path, tmp_path: Path) -> None:
    kind, expected, _, seconds = straight
    draw = random.Random(0)
    config = options(tiny_folder, data, tmp_path / "run", **kind)
    chain, kills = Chain(config), 0
    while kills < (30 if LONG else 8):
        if chain.go_on(kill_after=draw.uniform(0.1, 1) * seconds):
            kills += 1
        else:  # it came to its end: once more from the start
            assert results(chain.output) == expected
            chain.output.rename(tmp_path / f"done-{kills}-{draw.random()}")
            chain = Chain(config)
    assert chain.finish() == expected
