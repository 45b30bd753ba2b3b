"""What a resumed run may change and what it may not; and how little of old checkpoints a save has to read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import KilledError, Recorder, StopAfter, prepared, rows, tiny_config, write_groups

from conftest import CHAT_TEMPLATE, build_tokenizer
from dipole.errors import ConfigError
from dipole.train import checkpoint
from dipole.train.checkpoint import OtherSettings, identity, newest_first, save_checkpoint
from dipole.train.loop import steps
from dipole.train.run import train

OPTIONS: dict[str, Any] = {"num_samples": 0, "peft": "lora", "rank": 4, "checkpoint_every": 1}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_groups(tmp_path_factory.mktemp("data") / "data.jsonl")


@pytest.fixture(scope="module")
def interrupted(tiny_folder: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Killed in step 3 of 4."""
    output = tmp_path_factory.mktemp("interrupted") / "out"
    with pytest.raises(KilledError):
        train(tiny_config(tiny_folder, data, output, **OPTIONS), StopAfter(3))
    return output


def differences(model: Path, data: Path, output: Path, **changed: Any) -> dict[str, tuple[str, str]]:
    """What a resume is refused for: each setting then and now."""
    with pytest.raises(OtherSettings) as caught:
        train(tiny_config(model, data, output, **OPTIONS, **changed, resume=True))
    assert caught.value.exit_status == 2
    return {name: (then, now) for name, then, now in caught.value.differences}


def with_tokenizer(tiny_folder: Path, folder: Path, **attributes: Any) -> Path:
    """The tiny model with a tokenizer that differs in something."""
    shutil.copytree(tiny_folder, folder)
    tokenizer = build_tokenizer()
    tokenizer.add_special_tokens(attributes.pop("add", {}))
    for name, value in attributes.items():
        setattr(tokenizer, name, value)
    tokenizer.save_pretrained(folder)
    return folder


def test_another_chat_template_is_refused(interrupted: Path, tiny_folder: Path, data: Path, tmp_path: Path) -> None:
    model = with_tokenizer(tiny_folder, tmp_path / "model", chat_template=CHAT_TEMPLATE + " ")
    assert differences(model, data, interrupted).keys() == {"chat_template"}


def test_another_tokenizer_is_refused_even_if_it_splits_the_data_the_same_way(
    interrupted: Path, tiny_folder: Path, data: Path, tmp_path: Path
) -> None:
    model = with_tokenizer(tiny_folder, tmp_path / "model", add={"bos_token": "<|spare|>"})
    assert differences(model, data, interrupted).keys() == {"tokenizer"}


def test_a_tokenizer_that_splits_the_data_otherwise_is_refused(
    interrupted: Path, tiny_folder: Path, data: Path, tmp_path: Path
) -> None:
    model = with_tokenizer(tiny_folder, tmp_path / "model", eos_token="<|spare|>")
    assert differences(model, data, interrupted).keys() == {"tokenizer", "data.fingerprint"}


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"rank": 8}, "peft.rank"),
        ({"alpha": 4}, "peft.alpha"),
        ({"targets": "q_proj"}, "peft.targets"),
        ({"peft": "none", "rank": None}, "peft.method"),
        ({"max_length": 100}, "max_length"),
    ],
)
def test_another_shape_of_the_adapter_is_refused(
    interrupted: Path, tiny_folder: Path, data: Path, changed: dict[str, Any], name: str
) -> None:
    given = {key: value for key, value in (OPTIONS | changed).items() if value is not None}
    with pytest.raises(OtherSettings) as caught:
        train(tiny_config(tiny_folder, data, interrupted, **given, resume=True))
    assert name in [found for found, _, _ in caught.value.differences]
    assert len(list(interrupted.glob("checkpoints/step-*"))) == 2  # nothing was touched
    assert str(caught.value).splitlines()[1].split() == ["then", "now"]


def test_another_reference_is_refused_and_another_way_to_the_same_one_is_not(
    tiny_folder: Path, data: Path, tmp_path: Path
) -> None:
    def reference(method: str, strategy: str) -> Any:
        options: dict[str, Any] = {"num_samples": 0, "peft": method, "reference": strategy}
        return identity(prepared(tiny_config(tiny_folder, data, tmp_path / "out", **options)))["reference"]

    assert reference("lora", "copy") == reference("lora", "auto") == reference("prompt_tuning", "adapter_off")
    assert reference("prompt_tuning", "copy") != reference("prompt_tuning", "auto")


def test_a_folder_with_checkpoints_alone_is_in_use(
    interrupted: Path, tiny_folder: Path, data: Path, tmp_path: Path
) -> None:
    """A fresh run would find checkpoints of its steps there, and keep them for its own."""
    shutil.copytree(interrupted / "checkpoints", tmp_path / "out" / "checkpoints")
    with pytest.raises(ConfigError, match="already holds a run"):
        train(tiny_config(tiny_folder, data, tmp_path / "out", **OPTIONS))


def test_the_newest_checkpoint_is_the_one_of_the_largest_step(tmp_path: Path) -> None:
    for name in ("step-000002", "step-999999", "step-1000000", "step-copy", ".step-000003.0a1b2c3d.tmp"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert [path.name for path in newest_first(tmp_path)] == ["step-1000000", "step-999999", "step-000002"]


def test_more_steps_and_other_logging_go_on(interrupted: Path, tiny_folder: Path, data: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    shutil.copytree(interrupted, output)
    changed: dict[str, Any] = {
        "num_epochs": 3,
        "max_steps": 9,
        "log_every": 2,
        "eval_every": 3,
        "sample_every": 4,
        "num_samples": 1,
        "checkpoint_every": 4,
        "max_skipped_steps": 0,
        "schedule": "constant",
        "max_tokens_per_microbatch": 100,
        "gradient_checkpointing": True,
        "process_timeout": 60,
    }
    told = Recorder()
    train(tiny_config(tiny_folder, data, output, **(OPTIONS | changed), resume=True), told)
    assert told.steps == 7
    assert rows(output / "metrics.jsonl")[-1]["step"] == 9


def test_a_checkpoint_from_before_tokenizers_were_hashed_goes_on(
    interrupted: Path, tiny_folder: Path, data: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    shutil.copytree(interrupted, output)
    for path in output.glob("checkpoints/*/manifest.json"):
        manifest = json.loads(path.read_text())
        manifest["identity"]["tokenizer"] = manifest["identity"].pop("chat_template")
        path.write_text(json.dumps(manifest))
    other = with_tokenizer(tiny_folder, tmp_path / "model", chat_template=CHAT_TEMPLATE + " ")
    assert differences(other, data, output).keys() == {"chat_template"}
    told = Recorder()
    train(tiny_config(tiny_folder, data, output, **OPTIONS, resume=True), told)
    assert told.steps == 2


# Reading as little as possible


def test_a_save_reads_one_older_checkpoint_and_none_that_is_cut_short(
    tiny_folder: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = prepared(tiny_config(tiny_folder, data, tmp_path / "out", num_epochs=2))
    hashed: list[str] = []
    sha256 = checkpoint._sha256

    def noted(path: Path) -> str:
        hashed.append(path.parent.name)
        return sha256(path)

    monkeypatch.setattr(checkpoint, "_sha256", noted)
    training = steps(run)
    for _ in range(4):
        next(training)
        save_checkpoint(run)
    hashed.clear()
    next(training)
    save_checkpoint(run)
    assert {name for name in hashed if not name.startswith(".")} == {"step-000004"}  # hidden ones are being written
    cut = run.output / "checkpoints" / "step-000005" / "optimizer.safetensors"
    cut.write_bytes(cut.read_bytes()[:-1])
    hashed.clear()
    next(training)
    save_checkpoint(run)
    assert {name for name in hashed if not name.startswith(".")} == {"step-000004"}
    kept = sorted(path.name for path in (run.output / "checkpoints").iterdir())
    assert kept == ["step-000004", "step-000005", "step-000006"]  # two valid ones, and one to be named


def test_a_flipped_bit_is_seen_before_an_older_checkpoint_goes(tiny_folder: Path, data: Path, tmp_path: Path) -> None:
    run = prepared(tiny_config(tiny_folder, data, tmp_path / "out", num_epochs=2))
    for info in steps(run):
        save_checkpoint(run)
        if info.step == 3:
            weights = run.output / "checkpoints" / "step-000003" / "trained.safetensors"
            content = bytearray(weights.read_bytes())
            content[-1] ^= 1
            weights.write_bytes(content)
        if info.step == 4:
            break
    kept = sorted(path.name for path in (run.output / "checkpoints").iterdir())
    assert kept == ["step-000002", "step-000003", "step-000004"]
