"""Optimizers by name, what they keep, and whether a run may go on with another."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import KilledError, StopAfter, prepared, rows, tiny_config, without_time, write_groups
from torch import nn

from dipole.config import TrainConfig, train_config
from dipole.errors import ConfigError
from dipole.train.checkpoint import OtherSettings
from dipole.train.loop import steps
from dipole.train.optim import make_optimizer
from dipole.train.plan import OPTIMIZER_BYTES
from dipole.train.run import train

QUIET: dict[str, Any] = {"num_samples": 0, "checkpoint_every": 1}
HERE = ("adamw", "adamw_fused", "rmsprop", "sgd")
"""Those that need nothing that isn't here."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_groups(tmp_path_factory.mktemp("data") / "data.jsonl", held_out=0)


def config(**options: Any) -> TrainConfig:
    return train_config(model="m", data="d", output="o", learning_rate=0.1, **options)


def stepped(**options: Any) -> torch.Tensor:
    """A parameter of 1 and −2 after a step along the gradient 0.5 and 4."""
    layer = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, -2.0]]))
    layer.weight.grad = torch.tensor([[0.5, 4.0]])
    make_optimizer(layer, config(**options)).step()
    return layer.weight.detach().squeeze(0)


@pytest.mark.parametrize("name", ["adamw", "adamw_fused"])
def test_the_first_step_of_adamw_is_the_rate_whatever_the_gradient(name: str) -> None:
    torch.testing.assert_close(stepped(optimizer=name), torch.tensor([0.9, -2.1]))
    decayed = stepped(optimizer=name, weight_decay=0.5)
    torch.testing.assert_close(decayed, torch.tensor([0.95 - 0.1, -1.9 - 0.1]))


def test_sgd_follows_the_gradient() -> None:
    torch.testing.assert_close(stepped(optimizer="sgd"), torch.tensor([0.95, -2.4]))


def test_the_first_step_of_rmsprop_is_ten_times_the_rate() -> None:
    torch.testing.assert_close(stepped(optimizer="rmsprop"), torch.tensor([0.0, -3.0]))


@pytest.mark.parametrize("name", HERE)
def test_what_an_optimizer_keeps_is_what_the_plan_counts(name: str) -> None:
    layer = nn.Linear(64, 64, bias=False)
    layer.weight.grad = torch.ones_like(layer.weight)
    optimizer = make_optimizer(layer, config(optimizer=name))
    optimizer.step()
    kept = [value for values in optimizer.state.values() for value in values.values() if value.ndim]
    assert sum(value.nbytes for value in kept) == OPTIMIZER_BYTES[name] * layer.weight.numel()


def test_eight_bits_are_refused_where_they_cant_be(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = nn.Linear(2, 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="there is none here"):
        make_optimizer(layer, config(optimizer="adamw_8bit"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ConfigError, match="divided over processes"):
        make_optimizer(layer, config(optimizer="adamw_8bit", sharding="fsdp"))
    with missing("bitsandbytes"), pytest.raises(ConfigError, match=r"isn't installed\. Install dipole\[quant\]"):
        make_optimizer(layer, config(optimizer="adamw_8bit"))


@contextmanager
def missing(name: str) -> Iterator[None]:
    """A package can't be imported within."""
    load = importlib.import_module

    def without(wanted: str, *rest: Any) -> Any:
        if wanted == name:
            raise ImportError(name)
        return load(wanted, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importlib, "import_module", without)
        yield


@pytest.mark.parametrize("name", ["adamw", "rmsprop", "sgd"])
def test_interrupted_equals_uninterrupted(tiny_folder: Path, data: Path, tmp_path: Path, name: str) -> None:
    options = QUIET | {"optimizer": name}
    straight = train(tiny_config(tiny_folder, data, tmp_path / "straight", **options))
    with pytest.raises(KilledError):
        train(tiny_config(tiny_folder, data, tmp_path / "cut", **options), StopAfter(3))
    cut = train(tiny_config(tiny_folder, data, tmp_path / "cut", **options, resume=True))
    found = [[without_time(row) for row in rows(run / "metrics.jsonl")] for run in (straight, cut)]
    assert found[0] == found[1]
    files = [(run / "final" / "model.safetensors").read_bytes() for run in (straight, cut)]
    assert files[0] == files[1]


def test_a_run_goes_on_with_the_same_optimizer_alone_but_fused_or_not(
    tiny_folder: Path, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(KilledError):
        train(tiny_config(tiny_folder, data, tmp_path / "out", **QUIET), StopAfter(2))
    with pytest.raises(OtherSettings, match="optimizer"):
        train(tiny_config(tiny_folder, data, tmp_path / "out", **QUIET, optimizer="rmsprop", resume=True))
    train(tiny_config(tiny_folder, data, tmp_path / "out", **QUIET, optimizer="adamw", resume=True))


def test_state_that_isnt_a_tensor_is_saved_too(tiny_folder: Path, data: Path, tmp_path: Path) -> None:
    """As that of bitsandbytes, which counts steps by whole numbers."""
    from dipole.train.checkpoint import resume, save_checkpoint

    runs = [prepared(tiny_config(tiny_folder, data, tmp_path / "out")) for _ in range(2)]
    next(steps(runs[0]))
    for values in runs[0].optimizer.state.values():
        values["count"] = 3
    save_checkpoint(runs[0])
    resume(runs[1])
    assert [values["count"] for values in runs[1].optimizer.state.values()] == [3] * len(runs[1].optimizer.state)
    assert all(type(values["count"]) is int for values in runs[1].optimizer.state.values())
