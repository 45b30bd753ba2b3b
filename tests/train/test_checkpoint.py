"""A run that is interrupted and resumed is the run that wasn't; damage is seen, other settings are refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import KilledError, Recorder, StopAfter, prepared, rows, tiny_config, without_time, write_groups

from dipole.config import TrainConfig
from dipole.errors import ConfigError
from dipole.progress import Silent
from dipole.train import checkpoint, run
from dipole.train.checkpoint import NotSaved, OtherSettings, resume, save_checkpoint
from dipole.train.loop import steps
from dipole.train.run import train
from dipole.train.track import append_lines, cut_back

OFTEN = {"checkpoint_every": 1, "eval_every": 1, "sample_every": 2}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_groups(tmp_path_factory.mktemp("data") / "data.jsonl")


def results(output: Path) -> dict[str, Any]:
    """All that a run leaves behind, without what depends on the clock."""
    found: dict[str, Any] = {
        name: [without_time(row) for row in rows(output / name)]
        for name in ("metrics.jsonl", "samples.jsonl", "held_out.jsonl")
    }
    for file in (output / "final").glob("*.safetensors"):
        found[file.name] = {name: tensor.tolist() for name, tensor in load_file(file).items()}
    return found


@pytest.fixture(scope="module", params=["lora", "none"])
def straight(request: pytest.FixtureRequest, tiny_folder: Path, data: Path, tmp_path_factory: Any) -> Any:
    """Configuration and results of a run of six steps, over an epoch's edge, that nothing interrupts."""
    options = OFTEN | {"peft": request.param, "num_epochs": 2, "max_steps": 6}
    config = tiny_config(tiny_folder, data, tmp_path_factory.mktemp("run") / "straight", **options)
    return options, results(train(config))


def interrupt(config: TrainConfig, after: int) -> None:
    with pytest.raises(KilledError):
        train(config, StopAfter(after))


@pytest.mark.parametrize("kills", [(1,), (3,), (5,), (2, 2, 1)])
def test_resumed_equals_uninterrupted_bit_for_bit(
    straight: Any, tiny_folder: Path, data: Path, tmp_path: Path, kills: tuple[int, ...]
) -> None:
    options, expected = straight
    for number, after in enumerate(kills):
        # Killed after the line of metrics and before the checkpoint of the step is written.
        interrupt(tiny_config(tiny_folder, data, tmp_path / "out", **options, resume=number > 0), after)
    train(tiny_config(tiny_folder, data, tmp_path / "out", **options, resume=True))
    assert results(tmp_path / "out") == expected


def test_a_kill_between_checkpoint_and_evaluation_loses_no_line(
    straight: Any, tiny_folder: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options, expected = straight
    calls = []

    def save_and_die(*arguments: Any) -> Path:
        saved = save_checkpoint(*arguments)
        calls.append(saved)
        if len(calls) == 2:
            raise KilledError
        return saved

    with monkeypatch.context() as patch:
        patch.setattr(run, "save_checkpoint", save_and_die)
        with pytest.raises(KilledError):
            train(tiny_config(tiny_folder, data, tmp_path / "out", **options))
    train(tiny_config(tiny_folder, data, tmp_path / "out", **options, resume=True))
    assert results(tmp_path / "out") == expected


def test_without_a_checkpoint_a_resumed_run_starts_afresh(
    straight: Any, tiny_folder: Path, data: Path, tmp_path: Path
) -> None:
    options, expected = straight
    train(tiny_config(tiny_folder, data, tmp_path / "out", **options, resume=True))
    assert results(tmp_path / "out") == expected


def damage(folder: Path, how: str) -> str:
    """Damages a checkpoint and returns what has to be named."""
    weights = folder / "trained.safetensors"
    if how == "flipped":
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
    elif how == "cut short":
        weights.write_bytes(weights.read_bytes()[:-7])
    elif how == "missing":
        weights.unlink()
    elif how == "half a manifest":
        manifest = folder / "manifest.json"
        manifest.write_text(manifest.read_text()[:40])
        return "manifest"
    else:
        (folder / "manifest.json").unlink()
        return "manifest"
    return weights.name


@pytest.mark.parametrize("how", ["flipped", "cut short", "missing", "half a manifest", "no manifest"])
def test_a_damaged_checkpoint_is_named_skipped_and_written_anew(
    tiny_folder: Path, data: Path, tmp_path: Path, how: str
) -> None:
    config = tiny_config(tiny_folder, data, tmp_path / "out", checkpoint_every=1, num_samples=0)
    interrupt(config, 4)
    newest = tmp_path / "out" / "checkpoints" / "step-000003"
    word = damage(newest, how)
    told = Recorder()
    train(tiny_config(tiny_folder, data, tmp_path / "out", checkpoint_every=1, num_samples=0, resume=True), told)
    (sentence,) = [sentence for sentence in told.said if "damaged" in sentence]
    assert newest.name in sentence
    assert word in sentence
    assert told.steps == 2  # it went on from step 2
    assert checkpoint._damage(newest) is None


def test_two_checkpoints_are_kept_and_a_save_leaves_nothing_half_done(
    tiny_folder: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "out" / "checkpoints"
    unfinished = prepared(tiny_config(tiny_folder, data, tmp_path / "out", num_epochs=2))
    for _ in steps(unfinished):
        save_checkpoint(unfinished)
    assert sorted(path.name for path in folder.iterdir()) == ["step-000007", "step-000008"]
    unfinished.step = 9

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(NotSaved, match=r"No space left.*bytes are needed, .* are free") as caught:
        save_checkpoint(unfinished)
    assert caught.value.exit_status == 4
    assert "Make room" in (caught.value.remedy or "")
    assert sorted(path.name for path in folder.iterdir()) == ["step-000007", "step-000008"]


def test_a_checkpoint_holds_no_pickle_and_only_what_is_trained(tiny_folder: Path, data: Path, tmp_path: Path) -> None:
    started = prepared(tiny_config(tiny_folder, data, tmp_path / "out", peft="lora"))
    next(steps(started))
    folder = save_checkpoint(started)
    assert sorted(path.name for path in folder.iterdir()) == [
        "manifest.json",
        "optimizer.safetensors",
        "trained.safetensors",
    ]
    assert all("lora_" in name for name in load_file(folder / "trained.safetensors"))


def test_resume_restores_weights_optimizer_and_step(tiny_folder: Path, data: Path, tmp_path: Path) -> None:
    config = tiny_config(tiny_folder, data, tmp_path / "out")
    first, second = prepared(config), prepared(config)
    for info in steps(first):
        if info.step == 2:
            break
    save_checkpoint(first)
    assert resume(second) == []
    assert second.step == 2
    for left, right in zip(first.policy.parameters(), second.policy.parameters(), strict=True):
        assert torch.equal(left, right)
    left, right = first.optimizer.state_dict()["state"], second.optimizer.state_dict()["state"]
    assert left.keys() == right.keys()
    for number in left:
        assert all(torch.equal(left[number][name], right[number][name]) for name in left[number])


# Other settings


@pytest.fixture(scope="module")
def interrupted(tiny_folder: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("interrupted") / "out"
    config = tiny_config(tiny_folder, data, output, checkpoint_every=1, num_samples=0, peft="lora", rank=4)
    interrupt(config, 3)
    return output


@pytest.mark.parametrize(
    ("changed", "word"),
    [
        ({"beta": 0.2}, "beta"),
        ({"loss": "ipo"}, "loss"),
        ({"rank": 8}, "rank"),
        ({"seed": 1}, "seed"),
        ({"global_batch_size": 4}, "global_batch_size"),
        ({"soft": False}, "data"),
        ({"weighting": "prompt"}, "data"),
        ({"prompt_format": "chat"}, "prompt_format"),
    ],
)
def test_other_settings_are_refused_and_named(
    interrupted: Path, tiny_folder: Path, data: Path, changed: dict[str, Any], word: str
) -> None:
    options = {"num_samples": 0, "peft": "lora", "rank": 4, "resume": True} | changed
    with pytest.raises(OtherSettings, match="other settings") as caught:
        train(tiny_config(tiny_folder, data, interrupted, **options))
    assert caught.value.exit_status == 2
    message, *table = str(caught.value).splitlines()
    assert "another --output" in message
    assert table[0].split() == ["then", "now"]
    assert [line.split()[0] for line in table[1:]] == [name for name, _, _ in caught.value.differences]
    assert all(then != now for _, then, now in caught.value.differences)
    assert any(name.startswith(word) or name.endswith(word) for name, _, _ in caught.value.differences)


def test_other_data_or_another_model_of_the_same_name_are_refused(
    interrupted: Path, tiny_folder: Path, data: Path, tmp_path: Path
) -> None:
    other = write_groups(tmp_path / "data.jsonl", seed=1)
    options: dict[str, Any] = {"num_samples": 0, "peft": "lora", "rank": 4, "resume": True}
    with pytest.raises(ConfigError, match=r"other settings(.|\n)*data\.fingerprint"):
        train(tiny_config(tiny_folder, other, interrupted, **options))
    moved = tmp_path / "model"
    shutil.copytree(tiny_folder, moved)
    weights = load_file(moved / "model.safetensors")
    name = next(iter(weights))
    weights[name] = weights[name] + 0.01
    checkpoint.save_file(weights, moved / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigError, match=r"other settings(.|\n)*model"):
        train(tiny_config(moved, data, interrupted, **options))


def test_a_moved_data_file_a_moved_model_and_another_rate_go_on(
    interrupted: Path, tiny_folder: Path, data: Path, tmp_path: Path
) -> None:
    output = tmp_path / "elsewhere"
    shutil.copytree(interrupted, output)
    shutil.copytree(tiny_folder, tmp_path / "model")
    shutil.copy(data, tmp_path / "renamed.jsonl")
    options: dict[str, Any] = {"num_samples": 0, "peft": "lora", "rank": 4, "resume": True, "learning_rate": 1e-4}
    told = Recorder()
    train(tiny_config(tmp_path / "model", tmp_path / "renamed.jsonl", output, **options), told)
    assert told.steps == 2


def test_a_newer_format_is_refused(interrupted: Path, tiny_folder: Path, data: Path, tmp_path: Path) -> None:
    output = tmp_path / "newer"
    shutil.copytree(interrupted, output)
    for manifest in output.glob("checkpoints/*/manifest.json"):
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format": 99}))
    with pytest.raises(ConfigError, match="format is 99"):
        train(tiny_config(tiny_folder, data, output, num_samples=0, peft="lora", rank=4, resume=True))


# Lines that a resumed run writes again


def test_cut_back_keeps_what_came_before_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    kept = [{"step": 0, "eval/loss": 1}, {"step": 1, "lr": 1}, {"step": 1, "eval/loss": 2}, {"step": 2, "lr": 1}]
    append_lines(path, [*kept, {"step": 2, "eval/loss": 3}, {"step": 3, "lr": 1}])
    with path.open("a") as file:
        file.write('{"step": 3, "completion": "cut in the middle}')
    cut_back(path, 2)
    assert rows(path) == kept
    cut_back(path, 0)
    assert rows(path) == []
    cut_back(tmp_path / "missing.jsonl", 0)
    assert not (tmp_path / "missing.jsonl").exists()


def test_no_character_of_a_sample_ends_a_line(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    sample = {"step": 1, "completion": "one\u2028two\u2029three\x85four\x0bfive\x1csix\r\nseven\n"}
    append_lines(path, [sample, sample])
    assert rows(path) == [sample, sample]
    cut_back(path, 2)
    assert rows(path) == [sample, sample]


def test_silence_is_a_progress() -> None:
    assert Silent().advance(1) is None
