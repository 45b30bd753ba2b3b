"""A run's folder: what is in it, and that it says what is true."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny_runs import KilledError, Recorder, StopAfter, prepared, rows, tiny_config, without_time, write_groups
from transformers import AutoModelForCausalLM, AutoTokenizer

from dipole.config import TrainConfig
from dipole.data.batch import pack
from dipole.errors import ConfigError, Stopped, TrainingFault
from dipole.policy.logprobs import sum_by_completion
from dipole.train import loop, run
from dipole.train.run import draw_samples, train


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_groups(tmp_path_factory.mktemp("data") / "data.jsonl")


class Finished:
    """A run that is done: its configuration, folder, and what it said."""

    def __init__(self, config: TrainConfig) -> None:
        self.config, self.told, self.runs = config, Recorder(), list[Any]()
        prepare = run.prepare

        def keep(*arguments: Any) -> Any:
            self.runs.append(prepare(*arguments))
            return self.runs[-1]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(run, "prepare", keep)
            self.output = train(config, self.told)
        (self.run,) = self.runs


@pytest.fixture(scope="module")
def both(tiny_folder: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Finished]:
    """A run of an adapter, and one of all weights."""
    options = {"eval_every": 2, "sample_every": 2, "num_samples": 4}
    made = {}
    for method in ("lora", "none"):
        output = tmp_path_factory.mktemp(method) / "out"
        made[method] = Finished(tiny_config(tiny_folder, data, output, peft=method, **options))
    return made


@pytest.fixture(params=["lora", "none"])
def finished(request: pytest.FixtureRequest, both: dict[str, Finished]) -> Finished:
    return both[request.param]


# The folder


def test_the_folder_holds_what_it_should(finished: Finished) -> None:
    names = {path.name for path in finished.output.iterdir()}
    expected = {"config.yaml", "manifest.json", "metrics.jsonl", "samples.jsonl", "held_out.jsonl", "audit.json"}
    assert names == expected | {"final"}
    manifest = json.loads((finished.output / "manifest.json").read_text())
    assert manifest["status"] == "done"
    assert manifest["steps"] == 4
    assert manifest["seed"] == 0
    assert manifest["data"]["groups"] == 10
    assert (manifest["model"]["trainable"] < manifest["model"]["parameters"]) == (finished.config.peft.method == "lora")


def test_the_written_configuration_makes_the_same_run(finished: Finished, tmp_path: Path) -> None:
    from dipole.config import LossConfig, PairingConfig, PeftConfig

    written = yaml.safe_load((finished.output / "config.yaml").read_text())
    for name, kind in (("loss", LossConfig), ("peft", PeftConfig), ("pairing", PairingConfig)):
        written[name] = kind(**written[name])
    again = train(TrainConfig(**written | {"output": str(tmp_path / "again")}))
    first, second = ([without_time(row) for row in rows(path / "metrics.jsonl")] for path in (finished.output, again))
    assert first == second


def test_metrics_have_a_row_a_step_and_evaluations_before_between_and_after(finished: Finished) -> None:
    metrics = rows(finished.output / "metrics.jsonl")
    assert [(row["step"], "loss" in row, "eval/loss" in row) for row in metrics] == [
        (0, False, True),
        (1, True, False),
        (2, True, False),
        (2, False, True),
        (3, True, False),
        (4, True, False),
        (4, False, True),
    ]
    named = {"step", "loss", "grad_norm", "lr", "tokens", "tokens_per_second", "logps/chosen", "logps/rejected"}
    named |= {f"rewards/{name}" for name in ("chosen", "rejected", "margins", "accuracies")}
    assert named <= metrics[1].keys()
    assert metrics[1]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert metrics[-1]["eval/loss"] < metrics[0]["eval/loss"]


def test_rows_of_held_out_relations_average_to_the_metrics(finished: Finished) -> None:
    held_out = rows(finished.output / "held_out.jsonl")
    metrics = [row for row in rows(finished.output / "metrics.jsonl") if "eval/loss" in row]
    for stage, line in (("before", metrics[0]), ("after", metrics[-1])):
        found = [row for row in held_out if row["stage"] == stage]
        assert len(found) == line["eval/n"] == 9
        weight = sum(row["weight"] for row in found)
        for name in ("loss", "rewards/margins", "rewards/accuracies", "logps/chosen"):
            assert line[f"eval/{name}"] == pytest.approx(
                sum(row[name] * row["weight"] for row in found) / weight, rel=1e-5
            )


def test_log_every_leaves_rows_out_but_never_the_last(tiny_folder: Path, data: Path, tmp_path: Path) -> None:
    config = tiny_config(tiny_folder, data, tmp_path / "out", log_every=3, num_samples=0, eval_data=None)
    steps = [row["step"] for row in rows(train(config) / "metrics.jsonl") if "loss" in row]
    assert steps == [3, 4]


# Samples


def plain_logps(model: Any, prompt: list[int], completion: list[int]) -> float:
    with torch.no_grad():
        logps = model(input_ids=torch.tensor([[*prompt, *completion]])).logits[0, :-1].log_softmax(-1)
    return float(sum(logps[len(prompt) - 1 + place, token] for place, token in enumerate(completion)))


def test_log_probabilities_of_samples_are_those_of_a_plain_forward_pass(
    finished: Finished, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Any] = []
    sample = run.sample
    monkeypatch.setattr(run, "sample", lambda *a, **k: drawn.extend(sample(*a, **k)) or drawn)
    found = draw_samples(finished.run, "after", Recorder())
    written = [row for row in rows(finished.output / "samples.jsonl") if row["stage"] == "after"]
    assert found == written
    original = AutoModelForCausalLM.from_pretrained(tiny_folder)
    trained = finished.run.policy.transformer
    trained.set_attn_implementation("sdpa")
    try:
        for number, (row, item) in enumerate(zip(found, drawn, strict=True)):
            prompt = finished.run.data.prompts[number % len(finished.run.data.prompts)]
            assert row["prompt"] == prompt.text
            assert row["tokens"] == len(item.ids)
            assert row["logps"] == pytest.approx(plain_logps(trained, list(prompt.ids), list(item.ids)), abs=1e-3)
            assert row["ref_logps"] == pytest.approx(plain_logps(original, list(prompt.ids), list(item.ids)), abs=1e-3)
    finally:
        trained.set_attn_implementation("dipole")


def test_before_training_policy_and_reference_give_samples_the_same_probability(finished: Finished) -> None:
    samples = rows(finished.output / "samples.jsonl")
    assert [row["stage"] for row in samples] == ["before"] * 4 + ["step"] * 4 + ["after"] * 4
    assert all(row["logps"] == row["ref_logps"] for row in samples[:4])
    assert any(row["logps"] != row["ref_logps"] for row in samples[4:])
    assert [row["step"] for row in samples] == [0] * 4 + [2] * 4 + [4] * 4


# The result


FRESH = """
import json, sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
base, lora, none, request = sys.argv[1:]
models = {
    "lora": PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), lora),
    "none": AutoModelForCausalLM.from_pretrained(none),
}
found = {}
for name, model in models.items():
    found[name] = []
    for prompt, completion in json.loads(request):
        with torch.no_grad():
            logps = model.eval()(input_ids=torch.tensor([prompt + completion])).logits[0, :-1].log_softmax(-1)
        found[name].append(sum(logps[len(prompt) - 1 + i, t].item() for i, t in enumerate(completion)))
assert "dipole" not in sys.modules
print(json.dumps(found))
"""


def test_the_results_load_in_a_fresh_process_and_give_the_same_log_probabilities(
    both: dict[str, Finished], tiny_folder: Path
) -> None:
    expected = {}
    for method, finished in both.items():
        batch = pack(finished.run.data.held_out)
        with torch.no_grad():
            expected[method] = sum_by_completion(finished.run.policy(batch).logps, batch).tolist()
        request = [
            [list(group.prompt_ids), list(ids)] for group in finished.run.data.held_out for ids in group.completion_ids
        ]
    finals = [str(both[method].output / "final") for method in ("lora", "none")]
    command = [sys.executable, "-c", FRESH, str(tiny_folder), *finals, json.dumps(request)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    found = json.loads(result.stdout)
    assert expected["lora"] != expected["none"]
    assert found == {method: pytest.approx(values, abs=1e-3) for method, values in expected.items()}


def test_the_result_has_the_models_own_attention_and_tokenizer(finished: Finished, tiny_folder: Path) -> None:
    final = finished.output / "final"
    text = "About it: <|end|> ünï"
    ours, theirs = AutoTokenizer.from_pretrained(final), AutoTokenizer.from_pretrained(tiny_folder)
    assert ours(text)["input_ids"] == theirs(text)["input_ids"]
    assert ours.chat_template == theirs.chat_template
    assert not list(final.glob("*.bin"))
    for config in final.glob("*config.json"):
        assert '"dipole"' not in config.read_text()


# Faults and stops


def test_a_used_folder_and_a_file_are_refused(
    finished: Finished, data: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="already holds a run"):
        train(tiny_config(tiny_folder, data, finished.output))
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="a run is a folder"):
        train(tiny_config(tiny_folder, data, tmp_path / "file"))


def test_the_manifest_says_how_a_run_ended(
    tiny_folder: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KilledError):
        train(tiny_config(tiny_folder, data, tmp_path / "killed", num_samples=0), StopAfter(2))
    assert json.loads((tmp_path / "killed" / "manifest.json").read_text())["status"] == "failed"

    def broken(*_: Any) -> float:
        return math.nan

    monkeypatch.setattr(loop, "clip", broken)
    with pytest.raises(TrainingFault):
        train(tiny_config(tiny_folder, data, tmp_path / "fault", num_samples=0, max_skipped_steps=0))
    assert json.loads((tmp_path / "fault" / "manifest.json").read_text())["status"] == "failed"
    assert not (tmp_path / "fault" / "final").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_after_the_step_and_resume_goes_on(
    tiny_folder: Path, data: Path, tmp_path: Path, number: signal.Signals
) -> None:
    class Interrupting(Recorder):
        def advance(self, units: int = 1, note: str = "") -> None:
            super().advance(units, note)
            if self.steps == 2 and note:
                os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    options: dict[str, Any] = {"num_samples": 0, "eval_every": 2}
    with pytest.raises(Stopped) as caught:
        train(tiny_config(tiny_folder, data, tmp_path / "out", **options), Interrupting())
    assert caught.value.exit_status == 128 + number
    assert signal.getsignal(number) is before
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["status"] == "stopped"
    assert [path.name for path in (tmp_path / "out" / "checkpoints").iterdir()] == ["step-000002"]
    train(tiny_config(tiny_folder, data, tmp_path / "out", **options, resume=True))
    straight = train(tiny_config(tiny_folder, data, tmp_path / "straight", **options))
    resumed, expected = (
        [without_time(row) for row in rows(folder / "metrics.jsonl")] for folder in (tmp_path / "out", straight)
    )
    assert resumed == expected


def test_an_adapter_is_no_model_to_start_from_and_the_message_says_so(
    tiny_folder: Path, data: Path, tmp_path: Path
) -> None:
    adapter = train(tiny_config(tiny_folder, data, tmp_path / "one", peft="lora", num_samples=0)) / "final"
    with pytest.raises(ConfigError, match="'dipole merge' it"):
        prepared(tiny_config(adapter, data, tmp_path / "two"))
