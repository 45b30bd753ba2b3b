"""Full disks, folders that somebody else has, and what killed processes leave lying about."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from forks import fork, options, results, rows, valid_steps, write_groups

from dipole.errors import ConfigError
from dipole.train.lock import locked
from dipole.train.track import Log


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_groups(tmp_path_factory.mktemp("data") / "data.jsonl")


@pytest.fixture(scope="module")
def expected(tiny_folder: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    output = tmp_path_factory.mktemp("straight") / "run"
    assert fork(options(tiny_folder, data, output, num_epochs=1)).status == 0
    return results(output)


# Full disks


@pytest.mark.parametrize("reason", [errno.ENOSPC, errno.EACCES, errno.EROFS])
@pytest.mark.parametrize(
    ("at", "call"),
    [
        ("dipole.train.checkpoint.save_file", 6),  # the second file of the third save
        ("dipole.train.checkpoint.write_json", 3),
        ("dipole.train.checkpoint._sync", 14),
    ],
)
def test_a_save_that_fails_costs_a_warning_and_that_checkpoint_only(
    tiny_folder: Path, data: Path, tmp_path: Path, expected: dict[str, Any], at: str, call: int, reason: int
) -> None:
    event = {"at": at, "call": call, "errno": reason}
    stop = {"at": "dipole.train.loop.clip", "call": 4, "when": "before", "signals": [signal.SIGKILL]}
    config = options(tiny_folder, data, tmp_path / "run", num_epochs=1)
    ended = fork(config, events=[event, stop])  # killed in step 4, to see what the failed save of step 3 left
    assert ended.status == -signal.SIGKILL
    (warning,) = [line for line in ended.said[0].splitlines() if "couldn't be saved" in line]
    assert "step 3" in warning
    assert os.strerror(reason) in warning
    assert "bytes are needed" in warning
    assert "are free" in warning
    assert "goes on" in warning
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == ["step-000001", "step-000002"]
    assert valid_steps(tmp_path / "run") == [2, 1]
    assert fork(config | {"resume": True}).status == 0
    assert results(tmp_path / "run") == expected


def test_a_disk_without_room_for_weights_ends_the_run_at_its_last_save_with_the_remedy(
    tiny_folder: Path, data: Path, tmp_path: Path, expected: dict[str, Any]
) -> None:
    """A limit of the operating system on the size of files, so that writes really fail in their middle."""
    config = options(tiny_folder, data, tmp_path / "run", num_epochs=1)
    ended = fork(config, file_limit=30_000)
    assert ended.status == 4, ended.said
    *_, last = ended.said[0].strip().splitlines()
    assert last.startswith("error: ")
    assert "the trained model couldn't be saved" in last
    assert "Make room" in last
    assert "--resume" in last
    assert ended.said[0].count("Training goes on") == 4
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []
    assert not (tmp_path / "run" / "final").exists()
    assert not list((tmp_path / "run").rglob(".*"))
    assert len(rows(tmp_path / "run" / "metrics.jsonl")) == 5
    assert fork(config | {"resume": True}).status == 0
    assert results(tmp_path / "run") == expected


def test_a_signal_whose_save_fails_says_so(tiny_folder: Path, data: Path, tmp_path: Path) -> None:
    events = [
        {"at": "dipole.train.loop.clip", "call": 3, "when": "before", "signals": [signal.SIGTERM]},
        {"at": "dipole.train.checkpoint.write_json", "call": 0, "errno": errno.ENOSPC},
    ]
    ended = fork(options(tiny_folder, data, tmp_path / "run", checkpoint_every=None), events=events)
    assert ended.status == 4
    assert "the checkpoint of step 3 couldn't be saved" in ended.said[0]


def test_rows_wait_for_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    log = Log(tmp_path, said.append, writes=True)
    log.append("metrics.jsonl", [{"step": 1}])
    with monkeypatch.context() as patch:
        patch.setattr("dipole.train.track._line", _full)
        log.append("metrics.jsonl", [{"step": 2}])
        log.append("metrics.jsonl", [{"step": 3}])
        with pytest.raises(OSError, match="No space"):
            log.flush()
        assert rows(tmp_path / "metrics.jsonl") == [{"step": 1}]  # no half line
    log.append("metrics.jsonl", [{"step": 4}])
    assert rows(tmp_path / "metrics.jsonl") == [{"step": number} for number in (1, 2, 3, 4)]
    assert len(said) == 1
    assert "No space left" in said[0]
    Log(tmp_path, said.append, writes=False).append("metrics.jsonl", [{"step": 5}])
    assert len(rows(tmp_path / "metrics.jsonl")) == 4


def _full(row: Any) -> str:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


# Two runs in one folder

HOLD = """
import sys, time
from pathlib import Path
from dipole.train.lock import locked
with locked(Path(sys.argv[1]), print):
    print("has it", flush=True)
    time.sleep(60)
"""


def test_the_second_run_in_a_folder_is_refused_until_the_first_is_dead(
    tiny_folder: Path, data: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(output)], stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "has it\n"
        owner = json.loads((output / "run.lock").read_text())
        assert owner["pid"] == first.pid
        config = options(tiny_folder, data, output, num_epochs=1, max_steps=1)
        for resume in (False, True):
            ended = fork(config | {"resume": resume})
            assert ended.status == 2
            assert f"another run is writing to this folder: process {first.pid} on {owner['host']}" in ended.said[0]
            assert "choose another --output" in ended.said[0]
        assert [path.name for path in output.iterdir()] == ["run.lock"]
        first.kill()
    ended = fork(config)
    assert ended.status == 0, ended.said
    assert f"process {first.pid} on {owner['host']}" in ended.said[0]
    assert "taken over" in ended.said[0]
    assert not (output / "run.lock").exists()


def test_a_lock_goes_with_its_run_and_takes_along_folders_that_stayed_empty(tmp_path: Path) -> None:
    deep = tmp_path / "a" / "b"
    with locked(deep, print):
        assert (deep / "run.lock").exists()
        with pytest.raises(ConfigError, match=f"process {os.getpid()}"), locked(deep, print):
            pass
        assert (deep / "run.lock").exists()
    assert list(tmp_path.iterdir()) == []
    with locked(deep, print):
        (deep / "kept").write_text("")
    assert [path.name for path in deep.iterdir()] == ["kept"]


def test_a_folder_that_can_not_be_written_to_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(ConfigError, match="nothing can be written there") as caught,
        locked(tmp_path / "file" / "x", print),
    ):
        pass
    assert caught.value.exit_status == 2


# What lies about


def test_what_a_killed_process_left_is_removed_at_the_start(tiny_folder: Path, data: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    (output / "checkpoints" / ".step-000001.0a1b2c3d.tmp").mkdir(parents=True)
    (output / "checkpoints" / ".step-000001.0a1b2c3d.tmp" / "trained.safetensors").write_text("half")
    (output / ".final.0a1b2c3d.tmp").mkdir()
    (output / ".manifest.json.0a1b2c3d.tmp").write_text("{")
    assert fork(options(tiny_folder, data, output, max_steps=1)).status == 0
    assert not list(output.rglob(".*"))
    assert valid_steps(output) == [1]
