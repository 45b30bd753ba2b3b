"""Mixed precision: what a launch may ask for, bfloat16, and float16 with scaled losses."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import KilledError, Recorder, StopAfter, prepared, rows, tiny_config, without_time, write_groups

from dipole.errors import ConfigError, TrainingFault
from dipole.train import loop
from dipole.train.devices import REFUSED, make_accelerator
from dipole.train.loop import steps
from dipole.train.optim import LossScale
from dipole.train.run import train
from dipole.train.setup import prepare

QUIET: dict[str, Any] = {"num_samples": 0, "checkpoint_every": 1, "dtype": "float16"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_groups(tmp_path_factory.mktemp("data") / "data.jsonl", held_out=0)


@pytest.mark.parametrize("name", REFUSED)
def test_a_launch_with_something_else_is_refused_with_the_reason(
    tiny_folder: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "true")
    with pytest.raises(ConfigError, match=r"the launch asks for .*--sharding fsdp") as caught:
        prepared(tiny_config(tiny_folder, data, tmp_path / "out"))
    assert caught.value.exit_status == 2
    assert ("DeepSpeed ZeRO" in str(caught.value)) == (name == "ACCELERATE_USE_DEEPSPEED")


@pytest.mark.parametrize(("dtype", "kind"), [("float32", "no"), ("bfloat16", "bf16"), ("float16", "fp16")])
def test_products_are_as_narrow_as_asked_for(
    tiny_folder: Path, data: Path, tmp_path: Path, dtype: str, kind: str
) -> None:
    accelerator = make_accelerator(tiny_config(tiny_folder, data, tmp_path / "out", dtype=dtype))
    assert accelerator.mixed_precision == kind
    with accelerator.autocast():
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == getattr(torch, dtype)


def test_accelerates_own_accumulation_divides_nothing(
    tiny_folder: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    norms = []
    for count in ("1", "4"):
        monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", count)
        run = prepared(tiny_config(tiny_folder, data, tmp_path / count))
        norms.append(next(steps(run)).metrics["grad_norm"])
    assert norms[0] == norms[1]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_offloading_is_said_to_change_nothing(tiny_folder: Path, data: Path, tmp_path: Path) -> None:
    told = Recorder()
    prepare(tiny_config(tiny_folder, data, tmp_path / "out", activation_offloading=True), told)
    assert any("--activation_offloading changes nothing here" in sentence for sentence in told.said)


# Scaled losses


def test_the_scale_falls_by_half_and_rises_after_many_good_steps() -> None:
    scale = LossScale()
    scale.lower()
    assert scale.value == 2.0**15
    for _ in range(LossScale.GROW_AFTER - 1):
        scale.count()
    assert scale.value == 2.0**15
    scale.count()
    assert (scale.value, scale.good_steps) == (2.0**16, 0)


def test_the_scale_changes_no_step(tiny_folder: Path, data: Path, tmp_path: Path) -> None:
    """Losses times a power of two, gradients divided by it: the same numbers, as long as none leaves the range."""
    after = []
    for value in (1024.0, 4096.0):
        run = prepared(tiny_config(tiny_folder, data, tmp_path / str(value), dtype="float32"))
        run.scale = LossScale(value)  # in float32 nothing is rounded away at either end
        info = next(steps(run))
        assert info.metrics["loss_scale"] == value
        after.append([info.metrics["grad_norm"], *(p.detach().clone() for p in run.policy.parameters())])
    assert after[0][0] == after[1][0]
    assert all(torch.equal(left, right) for left, right in zip(after[0][1:], after[1][1:], strict=True))


@pytest.mark.parametrize("options", [{}, {"peft": "lora"}, {"loss": "bco_pair"}], ids=str)
def test_float16_learns_as_float32_does(tiny_folder: Path, data: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    losses = []
    for dtype in ("float32", "float16"):
        run = prepared(tiny_config(tiny_folder, data, tmp_path / dtype, dtype=dtype, num_epochs=2, **options))
        losses.append([info.metrics["loss"] for info in steps(run)])
    assert losses[1] == pytest.approx(losses[0], abs=0.02)
    assert losses[1][-1] < losses[1][0]


def test_a_gradient_that_overflows_is_computed_again_with_half_the_scale(
    tiny_folder: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = prepared(tiny_config(tiny_folder, data, tmp_path / "out", dtype="float16"))
    clip, seen = loop.clip, []

    def overflowing(run: Any) -> float:
        seen.append(run.scale.value)
        norm = clip(run)
        return math.inf if run.scale.value > 2.0**14 else norm

    monkeypatch.setattr(loop, "clip", overflowing)
    training = steps(run)
    info = next(training)
    assert seen == [2.0**16, 2.0**15, 2.0**14]
    assert info.skipped is None
    assert (run.skips, run.scale.value, run.scale.good_steps) == (0, 2.0**14, 1)
    assert info.metrics["loss_scale"] == 2.0**14
    next(training)
    assert seen[3:] == [2.0**14]


def test_a_gradient_that_is_never_finite_is_a_skipped_step_and_no_fault_of_the_scale(
    tiny_folder: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(tiny_folder, data, tmp_path / "out", **QUIET, max_skipped_steps=0)
    clip = loop.clip
    monkeypatch.setattr(loop, "clip", lambda run: clip(run) if run.step < 1 else math.nan)
    with pytest.raises(TrainingFault, match="grad_norm is not a finite number in step 2"):
        train(config)
    manifest = json.loads((tmp_path / "out" / "checkpoints" / "step-000002" / "manifest.json").read_text())
    assert manifest["loss_scale"] == [2.0**16, 1]
    assert rows(tmp_path / "out" / "skipped.jsonl")[0]["not_finite"] == ["grad_norm"]


def test_an_interrupted_run_goes_on_with_its_scale(
    tiny_folder: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LossScale, "GROW_AFTER", 2)
    straight = train(tiny_config(tiny_folder, data, tmp_path / "straight", **QUIET))
    with pytest.raises(KilledError):
        train(tiny_config(tiny_folder, data, tmp_path / "cut", **QUIET), StopAfter(3))
    cut = train(tiny_config(tiny_folder, data, tmp_path / "cut", **QUIET, resume=True))
    found = [[without_time(row) for row in rows(run / "metrics.jsonl")] for run in (straight, cut)]
    assert found[0] == found[1]
    scales = [row["loss_scale"] for row in found[0] if "loss_scale" in row]
    assert len(set(scales)) > 1
