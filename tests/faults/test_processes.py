"""Two processes of one run: what happens to one happens to both, and a run goes on with another number of them."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from forks import fork, options, rows, valid_steps, write_groups
from safetensors.torch import load_file

TOLERANCE: dict[str, float] = {"rel": 2e-4, "abs": 2e-5}
"""Of metrics, when the same sums are added up in another order."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_groups(tmp_path_factory.mktemp("data") / "data.jsonl")


@pytest.fixture(scope="module")
def straight(tiny_folder: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("straight") / "run"
    assert fork(options(tiny_folder, data, output, eval_every=2)).status == 0
    return output


def kill_at(step: int, rank: int = 0) -> dict[str, Any]:
    return {"at": "dipole.train.loop.clip", "call": step, "when": "before", "signals": [signal.SIGKILL], "rank": rank}


def assert_same(output: Path, expected: Path) -> None:
    """The same data in the same order, and numbers within the tolerance."""
    ours, theirs = rows(output / "metrics.jsonl"), rows(expected / "metrics.jsonl")
    for left, right in zip(ours, theirs, strict=True):
        assert left.keys() == right.keys()
        assert left["step"] == right["step"]
        assert left.get("tokens") == right.get("tokens")
        for name in left.keys() - {"tokens_per_second"}:
            near = pytest.approx(right[name], **TOLERANCE) if isinstance(right[name], float) else right[name]
            assert left[name] == near, name
    left_file, right_file = (load_file(folder / "final" / "model.safetensors") for folder in (output, expected))
    for name, tensor in left_file.items():
        torch.testing.assert_close(tensor, right_file[name], rtol=1e-4, atol=2e-5)


def test_two_processes_one_and_two_again_do_what_one_does(
    straight: Path, tiny_folder: Path, data: Path, tmp_path: Path
) -> None:
    config = options(tiny_folder, data, tmp_path / "run", eval_every=2)
    assert fork(config, ranks=2, events=[kill_at(3), kill_at(3, rank=1)], timeout=60).statuses == [-9, -9]
    assert valid_steps(tmp_path / "run") == [2, 1]
    assert fork(config | {"resume": True}, events=[kill_at(3)]).status == -9  # two further steps
    assert valid_steps(tmp_path / "run") == [4, 3]
    ended = fork(config | {"resume": True}, ranks=2)
    assert ended.statuses == [0, 0], ended.said
    assert_same(tmp_path / "run", straight)


def test_divided_weights_go_on_whole_and_divided_again(
    straight: Path, tiny_folder: Path, data: Path, tmp_path: Path
) -> None:
    config = options(tiny_folder, data, tmp_path / "run", eval_every=2)
    divided = {"sharding": "fsdp"}
    ended = fork(config | divided, ranks=2, events=[kill_at(3), kill_at(3, rank=1)], timeout=60)
    assert ended.statuses == [-9, -9], ended.said
    assert valid_steps(tmp_path / "run") == [2, 1]
    assert fork(config | {"resume": True}, events=[kill_at(3)]).status == -9  # two further steps
    assert valid_steps(tmp_path / "run") == [4, 3]
    ended = fork(config | divided | {"resume": True}, ranks=2)
    assert ended.statuses == [0, 0], ended.said
    assert_same(tmp_path / "run", straight)


def test_when_one_of_two_with_divided_weights_is_killed_the_other_ends_with_a_fault(
    tiny_folder: Path, data: Path, tmp_path: Path
) -> None:
    event = {"at": "dipole.train.forward.token_values", "call": 3, "when": "before", "signals": [signal.SIGKILL]}
    config = options(tiny_folder, data, tmp_path / "run", num_epochs=1, sharding="fsdp")
    ended = fork(config, ranks=2, events=[event | {"rank": 1}], timeout=60)
    assert ended.statuses == [4, -9], ended.said
    assert "process 0 of 2" in ended.said[0]
    assert "Traceback" not in ended.said[0]


def test_another_token_budget_goes_on_with_the_same_data(
    straight: Path, tiny_folder: Path, data: Path, tmp_path: Path
) -> None:
    config = options(tiny_folder, data, tmp_path / "run", eval_every=2)
    for number, budget in enumerate((60, 1, 500)):
        changed = config | {"max_tokens_per_microbatch": budget, "resume": number > 0}
        assert fork(changed, events=[kill_at(3)]).status == -9
    assert fork(config | {"resume": True, "log_every": 1}).status == 0
    assert_same(tmp_path / "run", straight)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_one_of_two_stops_both_after_the_same_step(
    tiny_folder: Path, data: Path, tmp_path: Path, rank: int
) -> None:
    event = {"at": "dipole.train.loop.clip", "call": 3, "when": "before", "signals": [signal.SIGTERM], "rank": rank}
    ended = fork(options(tiny_folder, data, tmp_path / "run"), ranks=2, events=[event], timeout=30)
    assert ended.statuses == [143, 143], ended.said
    assert all("after step 3" in said for said in ended.said)
    assert valid_steps(tmp_path / "run") == [3, 2]
    assert not (tmp_path / "run" / "run.lock").exists()


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("at", ["dipole.train.loop.clip", "dipole.train.run._save"])
def test_when_one_of_two_is_killed_the_other_ends_with_a_fault(
    tiny_folder: Path, data: Path, tmp_path: Path, at: str, rank: int
) -> None:
    event = {"at": at, "call": 3, "when": "before", "signals": [signal.SIGKILL], "rank": rank}
    config = options(tiny_folder, data, tmp_path / "run", num_epochs=1)
    ended = fork(config, ranks=2, events=[event], timeout=30)
    assert ended.statuses[rank] == -signal.SIGKILL
    assert ended.statuses[1 - rank] == 4, ended.said
    assert "error: " in ended.said[1 - rank]
    assert f"process {1 - rank} of 2" in ended.said[1 - rank]
    assert "Traceback" not in ended.said[1 - rank]
    assert valid_steps(tmp_path / "run")[0] >= 2
    assert fork(config | {"resume": True}).status == 0


def test_a_save_that_fails_is_told_to_both(tiny_folder: Path, data: Path, tmp_path: Path) -> None:
    config = options(tiny_folder, data, tmp_path / "run", num_epochs=1)
    ended = fork(config, ranks=2, file_limit=30_000, timeout=60)
    assert ended.statuses == [4, 4], ended.said
    assert all("the trained model couldn't be saved" in said for said in ended.said)
    assert ended.said[0].count("Training goes on") == 4


def test_both_skip_a_step_that_one_finds_not_finite(tiny_folder: Path, data: Path, tmp_path: Path) -> None:
    one, two = (options(tiny_folder, data, tmp_path / name) for name in ("one", "two"))
    assert fork(one, poison=["g3"]).status == 0
    ended = fork(two, ranks=2, poison=["g3"], timeout=60)
    assert ended.statuses == [0, 0], ended.said
    skipped = [rows(tmp_path / name / "skipped.jsonl") for name in ("one", "two")]
    assert [row["groups"] for row in skipped[0]] == [["g3"], ["g3"]]
    assert skipped[0] == skipped[1]
    assert_same(tmp_path / "two", tmp_path / "one")


def test_one_lock_is_shared_by_all_processes_of_a_run(tiny_folder: Path, data: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    ended = fork(options(tiny_folder, data, output, max_steps=1), ranks=2, timeout=60)
    assert ended.statuses == [0, 0], ended.said
    assert json.loads((output / "manifest.json").read_text())["status"] == "done"
