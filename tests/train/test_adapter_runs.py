"""Runs with every adapter: they start right, resume exactly, are refused in another shape, and load with PEFT."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import KilledError, StopAfter, prepared, rows, tiny_config, without_time, write_groups

from dipole.config import PeftConfig, train_config
from dipole.data.batch import pack
from dipole.errors import ConfigError, TrainingFault
from dipole.policy.adapters import save_model
from dipole.policy.cached import Cached
from dipole.train.checkpoint import OtherSettings
from dipole.train.loop import check_start, steps
from dipole.train.optim import DEFAULT_RATE, KNOWN_RATE, learning_rate
from dipole.train.run import train

METHODS: dict[str, dict[str, Any]] = {
    "lora": {"rank": 4},
    "dora": {"rank": 4},
    "rslora": {"rank": 4},
    "ia3": {},
    "prefix_tuning": {"num_virtual_tokens": 4},
    "prompt_tuning": {"num_virtual_tokens": 4},
}
VIRTUAL = ("prefix_tuning", "prompt_tuning")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIPOLE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_groups(tmp_path_factory.mktemp("data") / "data.jsonl")


@pytest.fixture(scope="module")
def finished(tiny_folder: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run's folder by method."""
    folder = tmp_path_factory.mktemp("runs")
    return {
        method: train(
            tiny_config(tiny_folder, data, folder / method, peft=method, learning_rate=1e-2, num_epochs=2, **options)
        )
        for method, options in METHODS.items()
    }


def test_every_method_has_its_rates() -> None:
    methods = {"none", *METHODS}
    assert set(DEFAULT_RATE) == set(KNOWN_RATE) == methods
    for method in methods:
        low, high = KNOWN_RATE[method]
        config = train_config(model="m", data="d", output="o", peft=method)
        assert low <= learning_rate(config) == DEFAULT_RATE[method] <= high


# The start


@pytest.mark.parametrize("reference", ["auto", "copy", "cached"])
@pytest.mark.parametrize("method", METHODS)
def test_the_check_of_the_start_knows_which_adapters_start_at_the_reference(
    tiny_folder: Path, data: Path, tmp_path: Path, method: str, reference: str
) -> None:
    options = METHODS[method] | {"peft": method, "reference": reference, "num_samples": 0}
    run = prepared(tiny_config(tiny_folder, data, tmp_path / "out", **options))
    first = next(steps(run)).metrics["loss"]
    equal = method not in VIRTUAL or reference == "copy"
    assert (first == pytest.approx(math.log(2), abs=1e-5)) == equal


@pytest.mark.parametrize("method", ["lora", "prompt_tuning"])
def test_a_wrong_reference_is_caught_with_virtual_tokens_too(
    tiny_folder: Path, data: Path, tmp_path: Path, method: str
) -> None:
    options = METHODS[method] | {"peft": method, "reference": "cached"}
    run = prepared(tiny_config(tiny_folder, data, tmp_path / "out", **options))
    assert isinstance(run.reference, Cached)
    check_start(run)
    for values in run.reference._store._values.values():
        values += 0.01
    with pytest.raises(TrainingFault, match="before the first step"):
        check_start(run)


@pytest.mark.parametrize("method", METHODS)
def test_training_on_from_a_run_starts_at_its_policy(
    finished: dict[str, Path], tiny_folder: Path, data: Path, tmp_path: Path, method: str
) -> None:
    config = tiny_config(tiny_folder, data, tmp_path / "out", start_from=str(finished[method]), num_samples=0)
    folder = train(config)
    before, *_ = [row for row in rows(folder / "metrics.jsonl") if "eval/loss" in row]
    assert before["eval/loss"] == pytest.approx(math.log(2), abs=1e-5)
    scored = {row["id"]: row["logps/chosen"] for row in rows(folder / "held_out.jsonl") if row["stage"] == "before"}
    last = {
        row["id"]: row["logps/chosen"] for row in rows(finished[method] / "held_out.jsonl") if row["stage"] == "after"
    }
    assert scored.keys() == last.keys()
    assert all(scored[name] == pytest.approx(last[name], abs=1e-4) for name in scored)
    assert not (folder / "final" / "start").exists()
    import yaml

    settings = yaml.safe_load((folder / "config.yaml").read_text())["peft"]
    assert settings["method"] == method
    assert all(settings[name] == value for name, value in METHODS[method].items())


def test_going_on_with_a_cached_reference_keeps_another_one(
    finished: dict[str, Path], tiny_folder: Path, data: Path, tmp_path: Path
) -> None:
    keys = set()
    for start in (None, str(finished["lora"])):
        options: dict[str, Any] = {"reference": "cached", "num_samples": 0, "start_from": start}
        run = prepared(tiny_config(tiny_folder, data, tmp_path / "out", **options))
        check_start(run)
        assert isinstance(run.reference, Cached)
        keys.add(run.reference._store.folder)
    assert len(keys) == 2


# Resuming


@pytest.mark.parametrize("method", ["dora", "ia3", "prefix_tuning", "prompt_tuning"])
def test_resumed_equals_uninterrupted_bit_for_bit(tiny_folder: Path, data: Path, tmp_path: Path, method: str) -> None:
    options = METHODS[method] | {"peft": method, "checkpoint_every": 1, "learning_rate": 1e-2}
    train(tiny_config(tiny_folder, data, tmp_path / "straight", **options))
    with pytest.raises(KilledError):
        train(tiny_config(tiny_folder, data, tmp_path / "cut", **options), StopAfter(3))
    train(tiny_config(tiny_folder, data, tmp_path / "cut", **options, resume=True))
    for name in ("metrics.jsonl", "samples.jsonl", "held_out.jsonl"):
        straight, cut = ([without_time(row) for row in rows(tmp_path / run / name)] for run in ("straight", "cut"))
        assert straight == cut
    weights = [(tmp_path / run / "final" / "adapter_model.safetensors").read_bytes() for run in ("straight", "cut")]
    assert weights[0] == weights[1]


@pytest.mark.parametrize(
    ("then", "now", "words"),
    [
        (
            {"peft": "prompt_tuning", "num_virtual_tokens": 4},
            {"num_virtual_tokens": 5},
            ("num_virtual_tokens", "4", "5"),
        ),
        ({"peft": "prefix_tuning"}, {"prefix_projection": True}, ("prefix_projection", "–", "true")),
        ({"peft": "lora", "rank": 4}, {"peft": "dora"}, ("method", "lora", "dora")),
        ({"peft": "ia3"}, {"targets": "k_proj", "feedforward": ""}, ("targets", "all-linear", "k_proj")),
    ],
)
def test_another_adapter_is_refused_with_the_difference(
    tiny_folder: Path, data: Path, tmp_path: Path, then: dict[str, Any], now: dict[str, Any], words: tuple[str, ...]
) -> None:
    options = {"checkpoint_every": 1, "num_samples": 0} | then
    with pytest.raises(KilledError):
        train(tiny_config(tiny_folder, data, tmp_path / "out", **options), StopAfter(2))
    with pytest.raises(OtherSettings) as caught:
        train(tiny_config(tiny_folder, data, tmp_path / "out", **options | now, resume=True))
    assert (f"peft.{words[0]}", *words[1:]) in caught.value.differences


def test_another_start_is_refused(finished: dict[str, Path], tiny_folder: Path, data: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"checkpoint_every": 1, "num_samples": 0}
    config = tiny_config(tiny_folder, data, tmp_path / "out", start_from=str(finished["lora"]), **options)
    with pytest.raises(KilledError):
        train(config, StopAfter(2))
    other = prepared(tiny_config(tiny_folder, data, tmp_path / "other", peft="lora", rank=4, seed=7))
    save_model(other.policy.model, tmp_path / "adapter")
    changed = tiny_config(
        tiny_folder, data, tmp_path / "out", start_from=str(tmp_path / "adapter"), **options, resume=True
    )
    with pytest.raises(OtherSettings) as caught:
        train(changed)
    assert [name for name, _, _ in caught.value.differences] == ["model"]


# What is left behind

LOAD = """
import json, sys
import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

torch.set_num_threads(1)
sequences = json.loads(sys.argv[1])
found = {}
for folder in sys.argv[2:]:
    model = AutoPeftModelForCausalLM.from_pretrained(folder).eval()
    AutoTokenizer.from_pretrained(folder)
    logps = []
    for prompt, completion in sequences:
        ids = torch.tensor([prompt + completion])
        with torch.no_grad():
            token_logps = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0].log_softmax(-1)
        size = len(completion)
        logps.append(float(token_logps[-size - 1 : -1].gather(1, ids[0, -size:, None]).sum()))
    found[folder] = logps
print(json.dumps(found))
"""


def test_final_loads_with_peft_in_a_fresh_process_and_gives_the_same_log_probabilities(
    finished: dict[str, Path], tiny_folder: Path, data: Path, tmp_path: Path
) -> None:
    run = prepared(tiny_config(tiny_folder, data, tmp_path / "out", num_samples=0))
    batch = pack(run.data.held_out)
    folders = [str(folder / "final") for folder in finished.values()]
    done = subprocess.run(
        [sys.executable, "-c", LOAD, json.dumps(batch.sequences), *folders],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    starts = {}
    for method, folder in finished.items():
        trained = [row for row in rows(folder / "held_out.jsonl") if row["stage"] == "after"]
        expected = sorted({round(row[f"logps/{side}"], 3) for row in trained for side in ("chosen", "rejected")})
        again = sorted({round(value, 3) for value in found[str(folder / "final")]})
        assert again == pytest.approx(expected, abs=2e-3), method
        starts[method] = tuple(again)
    assert len(set(starts.values())) == len(finished), "every method has trained something else"


@pytest.mark.parametrize("method", VIRTUAL)
def test_max_length_leaves_room_for_virtual_tokens(tiny_folder: Path, data: Path, tmp_path: Path, method: str) -> None:
    options = {"peft": method, "num_virtual_tokens": 12}
    assert prepared(tiny_config(tiny_folder, data, tmp_path, max_length=None, **options)).config.max_length == 500
    with pytest.raises(ConfigError, match="takes 500 tokens beside 12 virtual ones, fewer than 501"):
        prepared(tiny_config(tiny_folder, data, tmp_path, max_length=501, **options))


def test_token_budgets_and_processes_of_virtual_tokens_change_nothing(
    tiny_folder: Path, data: Path, tmp_path: Path
) -> None:
    from dipole.train.loop import Meter, backward

    found = []
    for budget in (1, 100_000):
        options = METHODS["prefix_tuning"] | {"peft": "prefix_tuning", "max_tokens_per_microbatch": budget}
        run = prepared(tiny_config(tiny_folder, data, tmp_path / "out", **options))
        run.policy.double()
        backward(run, [run.data.train[index] for index in run.order.step(0)], Meter())
        found.append([parameter.grad for parameter in run.policy.parameters() if parameter.grad is not None])
    for left, right in zip(*found, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-7)


def test_options_reach_the_adapter_from_python() -> None:
    config = train_config(model="m", data="d", output="o", peft="prompt_tuning", num_virtual_tokens=7)
    assert config.peft == PeftConfig(method="prompt_tuning", num_virtual_tokens=7)
    assert train_config(model="m", data="d", output="o", start_from="runs/a").peft.start_from == "runs/a"


def test_a_run_in_four_bits_resumes_and_leaves_an_adapter(tiny_folder: Path, data: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes isn't installed")
    options = {"peft": "lora", "quantization": "4bit", "checkpoint_every": 1, "learning_rate": 1e-2}
    straight = train(tiny_config(tiny_folder, data, tmp_path / "straight", **options))
    with pytest.raises(KilledError):
        train(tiny_config(tiny_folder, data, tmp_path / "cut", **options), StopAfter(3))
    train(tiny_config(tiny_folder, data, tmp_path / "cut", **options, resume=True))
    assert rows(straight / "metrics.jsonl")[0]["eval/loss"] == pytest.approx(math.log(2), abs=1e-4)
    weights = [(tmp_path / run / "final" / "adapter_model.safetensors").read_bytes() for run in ("straight", "cut")]
    assert weights[0] == weights[1]
    whole = {name: value for name, value in options.items() if name != "quantization"}
    with pytest.raises(OtherSettings):
        train(tiny_config(tiny_folder, data, tmp_path / "cut", **whole, resume=True))
