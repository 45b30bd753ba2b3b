"""Checkpoints of every format that was ever released load and go on."""

from __future__ import annotations

import json
import shutil
import sys
import tarfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import prepared, tiny_config

from dipole.train.checkpoint import FORMAT, resume
from dipole.train.loop import steps
from dipole.train.setup import trained_parameters

FIXTURES = Path(__file__).parent / "fixtures"
FORMATS = sorted(FIXTURES.glob("format-*.tar.gz"))

sys.path.append(str(FIXTURES))

from write_format import OPTIONS  # noqa: E402


def test_there_is_a_fixture_of_every_format() -> None:
    assert [archive.name for archive in FORMATS] == [f"format-{number}.tar.gz" for number in range(1, FORMAT + 1)]
    assert sum(path.stat().st_size for path in FIXTURES.rglob("*") if path.is_file()) < 200_000


@pytest.mark.parametrize("fixture", FORMATS, ids=lambda archive: archive.name)
def test_a_checkpoint_of_the_format_loads_and_goes_on(fixture: Path, tmp_path: Path) -> None:
    with tarfile.open(fixture) as packed:
        packed.extractall(tmp_path, filter="data")
    fixture = tmp_path / fixture.name.removesuffix(".tar.gz")
    saved = tmp_path / "out" / "checkpoints" / "step-000002"
    shutil.copytree(fixture / "step-000002", saved)
    run = prepared(tiny_config(fixture / "model", fixture / "data.jsonl", tmp_path / "out", **OPTIONS))
    assert resume(run) == []
    assert (run.step, run.skips) == (2, 0)
    weights = load_file(saved / "trained.safetensors")
    assert all(torch.equal(weights[name], value) for name, value in trained_parameters(run.policy, run.policy).items())
    reference = load_file(saved / "reference.safetensors")
    moved = trained_parameters(run.policy, run.reference.policy)  # type: ignore[union-attr]
    assert all(torch.equal(reference[name], value) for name, value in moved.items())
    assert run.state.keys() == load_file(saved / "state.safetensors").keys()
    assert {float(values["step"]) for values in run.optimizer.state.values()} == {2.0}
    metrics = next(steps(run)).metrics
    expected = json.loads((fixture / "expected.json").read_text())
    for name in ("step", "loss", "grad_norm", "lr", "rewards/margins"):
        assert metrics[name] == pytest.approx(expected[name], rel=1e-3, abs=1e-6), name
