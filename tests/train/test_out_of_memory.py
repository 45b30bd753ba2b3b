"""Too little memory: a message with the settings to change, and the state of the step before on the disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import rows, tiny_config, write_groups

from dipole.errors import TrainingFault
from dipole.train import loop, setup
from dipole.train.out_of_memory import OutOfMemory, is_out_of_memory, memory_for, remedy
from dipole.train.run import train


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_groups(tmp_path_factory.mktemp("data") / "data.jsonl", held_out=0)


def gpu_is_full() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee documentation")


FULL: dict[str, Callable[[], Any]] = {
    "PyTorch": lambda: torch.empty(2**52),  # what its allocator really says on this machine
    "Python": lambda: bytearray(2**60),
    "GPU": gpu_is_full,
}


@pytest.mark.parametrize("what", FULL)
def test_a_step_without_memory_ends_the_run_with_its_state_and_what_to_change(
    tiny_folder: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    options: dict[str, Any] = {"num_samples": 0, "max_tokens_per_microbatch": 500}
    train(tiny_config(tiny_folder, data, tmp_path / "straight", **options))
    backward = loop.backward

    def full(run: Any, *rest: Any) -> Any:
        state = backward(run, *rest)  # gradients are there already
        if run.step == 2:
            FULL[what]()
        return state

    with monkeypatch.context() as patch:
        patch.setattr(loop, "backward", full)
        with pytest.raises(OutOfMemory, match="there isn't enough memory for step 3") as caught:
            train(tiny_config(tiny_folder, data, tmp_path / "run", **options))
    said = str(caught.value)
    assert caught.value.exit_status == 4
    assert "the state after step 2 is saved" in said
    for setting in ("--max_tokens_per_microbatch (now 500)", "--gradient_checkpointing", "--reference cached", "lora"):
        assert setting in said
    assert "\n" not in said
    train(tiny_config(tiny_folder, data, tmp_path / "run", **options, resume=True, gradient_checkpointing=True))
    logged = [[row["loss"] for row in rows(tmp_path / name / "metrics.jsonl")] for name in ("run", "straight")]
    assert logged[0] == pytest.approx(logged[1], rel=1e-5)


def test_memory_that_lacks_before_the_first_step(
    tiny_folder: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setup, "load_model", lambda *_, **__: torch.empty(2**52))
    with pytest.raises(OutOfMemory, match="there isn't enough memory for the run"):
        train(tiny_config(tiny_folder, data, tmp_path / "run"))


def test_settings_that_are_set_already_are_not_named(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, tmp_path, tmp_path, gradient_checkpointing=True, reference="cached", peft="lora")
    assert remedy(config) == "In this order: lower --max_tokens_per_microbatch (now 4096); lower --max_length (now 128)"


def test_other_faults_pass(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, tmp_path, tmp_path)
    with pytest.raises(RuntimeError, match="shapes") as caught, memory_for("x", config):
        raise RuntimeError("shapes don't fit")
    assert not isinstance(caught.value, TrainingFault)
    assert not is_out_of_memory(TrainingFault("a judge is out of memory"))
