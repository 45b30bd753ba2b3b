"""Steps that aren't finite: skipped, written down, survived; too many of them end the run with its state."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from poison import poison
from safetensors.torch import load_file
from tiny_runs import KilledError, Recorder, StopAfter, prepared, rows, tiny_config, without_time, write_groups

from dipole.errors import ConfigError, TrainingFault
from dipole.train import loop
from dipole.train.loop import steps
from dipole.train.run import train

QUIET: dict[str, Any] = {"num_samples": 0, "checkpoint_every": 1, "num_epochs": 2}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_groups(tmp_path_factory.mktemp("data") / "data.jsonl", held_out=0)


def strict(path: Path) -> list[dict[str, Any]]:
    """Rows of JSON as the standard has it, which knows no NaN."""

    def refuse(word: str) -> None:
        raise AssertionError(word)

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("what", ["logps", "ref_logps", "loss", "gradient"])
@pytest.mark.parametrize("options", [{"max_tokens_per_microbatch": 60}, {"loss": "bco_pair"}], ids=["cut", "coupled"])
def test_the_groups_at_fault_are_found_and_nothing_else_moves(
    tiny_folder: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, options: dict[str, Any]
) -> None:
    run = prepared(tiny_config(tiny_folder, data, tmp_path / "out", **options))
    training = steps(run)
    next(training)
    before = {name: value.clone() for name, value in run.policy.named_parameters()}
    state = dict(run.state)
    moments = [value.clone() for values in run.optimizer.state.values() for value in values.values()]
    of_step = [run.data.train[index].id for index in run.order.step(1)]
    poison([of_step[1]], what, monkeypatch.setattr)
    info = next(training)
    assert info.skipped is not None
    assert set(info.skipped["groups"]) == (set(of_step) if what == "gradient" else {of_step[1]})
    assert info.metrics["skipped"] is True
    assert info.metrics["not_finite"] == info.skipped["not_finite"] != []
    named = {"logps": "logps/chosen", "ref_logps": "ref_logps/chosen", "loss": "loss", "gradient": "grad_norm"}[what]
    assert named in info.metrics["not_finite"]
    assert (info.metrics["not_finite"] == ["grad_norm"]) == (what == "gradient")
    assert all(math.isfinite(value) for value in info.metrics.values() if isinstance(value, float))
    assert all(torch.equal(before[name], value) for name, value in run.policy.named_parameters())
    assert all(value.grad is None for value in run.policy.parameters())
    after = [value for values in run.optimizer.state.values() for value in values.values()]
    assert all(map(torch.equal, moments, after))
    assert state.keys() == run.state.keys()
    assert all(torch.equal(state[name], run.state[name]) for name in state)


def test_a_group_that_is_not_finite_in_the_first_step_is_no_wrong_reference(
    tiny_folder: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = prepared(tiny_config(tiny_folder, data, tmp_path / "out"))
    bad = run.data.train[run.order.step(0)[0]].id
    poison([bad], "logps", monkeypatch.setattr)
    info = next(steps(run))
    assert info.skipped is not None
    assert info.skipped["groups"] == [bad]


def test_a_run_with_one_bad_group_goes_on_and_its_folder_says_so(
    tiny_folder: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(["g3"], "logps", monkeypatch.setattr)
    told = Recorder()
    output = train(tiny_config(tiny_folder, data, tmp_path / "out", **QUIET, log_every=100), told)
    skipped = strict(output / "skipped.jsonl")
    assert [row["groups"] for row in skipped] == [["g3"], ["g3"]]  # once an epoch
    assert all(row["lr"] >= 0 and "loss" in row["not_finite"] for row in skipped)
    metrics = strict(output / "metrics.jsonl")
    # Every skipped step is in the log, however seldom others are.
    assert [row["step"] for row in metrics if row.get("skipped")] == [row["step"] for row in skipped]
    assert metrics[-1]["step"] == 8
    assert sum("was skipped" in sentence and "g3" in sentence for sentence in told.said) == 2
    weights = load_file(next((output / "final").glob("*.safetensors")))
    assert all(tensor.isfinite().all() for tensor in weights.values())


def test_a_resumed_run_skips_as_the_one_that_was_not_interrupted(
    tiny_folder: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(["g3", "g5"], "logps", monkeypatch.setattr)

    def result(output: Path) -> Any:
        logs = [[without_time(row) for row in rows(output / name)] for name in ("metrics.jsonl", "skipped.jsonl")]
        weights = load_file(next((output / "final").glob("*.safetensors")))
        return logs, {name: tensor.tolist() for name, tensor in weights.items()}

    straight = result(train(tiny_config(tiny_folder, data, tmp_path / "straight", **QUIET)))
    skipped = [row["step"] for row in straight[0][1]]
    assert len(skipped) >= 2
    for number, after in enumerate([skipped[0], 1, 2]):  # first in a skipped step, before its checkpoint
        with pytest.raises(KilledError):
            train(tiny_config(tiny_folder, data, tmp_path / "cut", **QUIET, resume=number > 0), StopAfter(after))
    assert result(train(tiny_config(tiny_folder, data, tmp_path / "cut", **QUIET, resume=True))) == straight


@pytest.mark.parametrize(("most", "last"), [(0, 3), (2, 5)])
def test_too_many_skips_in_a_row_stop_the_run_with_its_state_saved(
    tiny_folder: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int, last: int
) -> None:
    options: dict[str, Any] = {"num_samples": 0, "num_epochs": 2, "max_skipped_steps": most}
    clip = loop.clip
    calls = []

    def broken(run: Any) -> float:
        calls.append(run.step)
        return clip(run) if run.step < 2 else math.nan

    monkeypatch.setattr(loop, "clip", broken)
    with pytest.raises(TrainingFault, match="grad_norm is not a finite number in step 3") as caught:
        train(tiny_config(tiny_folder, data, tmp_path / "out", **options))
    assert caught.value.exit_status == 4
    assert "skipped.jsonl" in str(caught.value)
    assert calls == list(range(last))
    assert [row["step"] for row in strict(tmp_path / "out" / "skipped.jsonl")] == list(range(3, last + 1))
    (saved,) = (tmp_path / "out" / "checkpoints").iterdir()
    assert saved.name == f"step-{last:06d}"
    assert json.loads((saved / "manifest.json").read_text())["skips"] == last - 2
    with pytest.raises(TrainingFault, match="step 3"):  # still counted: the next one is one more in a row
        train(tiny_config(tiny_folder, data, tmp_path / "out", **options, resume=True))
    monkeypatch.undo()
    train(tiny_config(tiny_folder, data, tmp_path / "out", **options, resume=True))
    assert rows(tmp_path / "out" / "metrics.jsonl")[-1]["step"] == 8


def test_a_negative_number_of_skips_is_refused() -> None:
    with pytest.raises(ConfigError, match="max_skipped_steps"):
        tiny_config(Path("m"), Path("d"), Path("o"), max_skipped_steps=-1)
