"""Wherever and however often a run is interrupted: what it makes is what it makes uninterrupted, bit for bit."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from tiny_runs import KilledError, Recorder, rows, tiny_config, without_time, write_groups

from dipole.train import run as run_module
from dipole.train.run import train

KINDS: dict[str, dict[str, Any]] = {
    "all weights": {"eval_every": 2},
    "adapter, seldom saved": {"peft": "lora", "checkpoint_every": 3, "schedule": "linear", "warmup_ratio": 0.4},
    "moving state and reference": {"loss": "bco_pair", "sync_reference_every": 3, "max_tokens_per_microbatch": 60},
}
STEPS = 8  # two epochs of four, the last of a single group

interruptions = st.lists(
    st.tuples(st.sampled_from(["step", "save"]), st.integers(1, STEPS - 1)), min_size=1, max_size=3
)


class Interrupted(Recorder):
    """Ends a run in the n-th step that it takes, or after the n-th save."""

    def __init__(self, where: str, number: int, patch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.limit = number if where == "step" else None
        self.saves = 0 if where == "save" else None
        save = run_module.save_checkpoint

        def save_and_die(*arguments: Any) -> Path:
            saved = save(*arguments)
            if self.saves is not None:
                self.saves += 1
                if self.saves == number:
                    raise KilledError
            return saved

        patch.setattr(run_module, "save_checkpoint", save_and_die)

    def advance(self, units: int = 1, note: str = "") -> None:
        super().advance(units, note)
        if note and self.steps == self.limit:
            raise KilledError


def results(output: Path) -> dict[str, Any]:
    found: dict[str, Any] = {
        name: [without_time(row) for row in rows(output / name)] for name in ("metrics.jsonl", "held_out.jsonl")
    }
    for file in (output / "final").glob("*.safetensors"):
        found[file.name] = {name: tensor.tolist() for name, tensor in load_file(file).items()}
    return found


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_groups(tmp_path_factory.mktemp("data") / "data.jsonl")


@pytest.fixture(scope="module")
def straight(tiny_folder: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("straight")
    return {name: results(train(config(name, tiny_folder, data, folder / str(n)))) for n, name in enumerate(KINDS)}


def config(kind: str, model: Path, data: Path, output: Path, *, resume: bool = False) -> Any:
    options = {"num_samples": 0, "num_epochs": 2, "checkpoint_every": 1} | KINDS[kind]
    return tiny_config(model, data, output, **options, resume=resume)


@given(kind=st.sampled_from(list(KINDS)), cuts=interruptions)
@example(kind="moving state and reference", cuts=[("save", 4)])  # at an epoch's edge
@example(kind="all weights", cuts=[("step", 6), ("save", 1), ("step", 1)])
@settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_any_interruptions_leave_no_trace(
    straight: dict[str, dict[str, Any]], tiny_folder: Path, data: Path, kind: str, cuts: list[tuple[str, int]]
) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch) / "run"
        for number, (where, after) in enumerate(cuts):
            with pytest.MonkeyPatch.context() as patch:
                try:
                    train(config(kind, tiny_folder, data, output, resume=number > 0), Interrupted(where, after, patch))
                except KilledError:
                    continue
        train(config(kind, tiny_folder, data, output, resume=True))
        assert results(output) == straight[kind]
