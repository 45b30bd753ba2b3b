"""The command line from end to end: options from flags and files, exit statuses, and what a person is told."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from command_line import Say, assert_one_error, write_rows, write_yaml
from data.test_bad_files import BAD, assert_says
from dipole.config import TrainConfig
from dipole.data.formats import load_groups
from dipole.errors import JudgeError, TrainingFault
from dipole.verbs.verb import Verb

NEEDED = ("--model", "m", "--data", "d", "--output", "o")
SMALL = ("--global_batch_size", "4", "--num_samples", "2", "--sample_tokens", "8")


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Twelve pairs of plain text, two of them held out."""
    return write_rows(
        tmp_path / "pairs.jsonl",
        (
            {"id": f"p{n}", "prompt": f"Is {n} even?", "chosen": f"Say {n % 2}.", "rejected": f"{n} is nice, I guess."}
            | {"split": "eval" if n > 9 else "train"}
            for n in range(12)
        ),
    )


@pytest.fixture
def chats(tmp_path: Path) -> Path:
    """The same as messages."""
    return write_rows(
        tmp_path / "chats.jsonl",
        (
            {
                "prompt": [{"role": "user", "content": f"Is {n} even?"}],
                "chosen": [{"role": "assistant", "content": f"Say {n % 2}."}],
                "rejected": [{"role": "assistant", "content": f"{n} is nice, I guess."}],
                "split": "eval" if n > 9 else "train",
            }
            for n in range(12)
        ),
    )


def metrics(run: Path) -> list[dict[str, Any]]:
    """The log without what depends on the clock."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in row.items() if key != "tokens_per_second"} for row in rows]


# Exit statuses


@pytest.mark.parametrize(
    ("fault", "status", "said"),
    [
        (TrainingFault("it diverged", where="step 3", remedy="Lower it"), 4, "error: step 3: it diverged. Lower it.\n"),
        (JudgeError("the budget is spent"), 5, "error: the budget is spent\n"),
        (KeyboardInterrupt(), 130, "error: stopped\n"),
        (PermissionError(13, "Permission denied", "/a"), 1, "error: /a: Permission denied\n"),
        (OSError(28, "No space left on device", "/a"), 1, "error: /a: No space left on device\n"),
        (TrainingFault("the model said \x1b[2J\u202e"), 4, "error: the model said ?[2J?\n"),
    ],
)
def test_exit_statuses(
    fault: BaseException, status: int, said: str, command: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(config: TrainConfig) -> int:
        raise fault

    monkeypatch.setattr("dipole.verbs.train.VERB", Verb(fail, TrainConfig, ""))
    assert command("train", *NEEDED) == (status, "", said)


def test_a_bug_keeps_its_traceback(command: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(config: TrainConfig) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr("dipole.verbs.train.VERB", Verb(fail, TrainConfig, ""))
    with pytest.raises(ZeroDivisionError):
        command("train", *NEEDED)


# Training


@pytest.mark.parametrize("form", ["pairs", "chats"])
def test_train_from_flags_alone_and_from_a_file(
    form: str, command: Say, tiny_folder: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    data: Path = request.getfixturevalue(form)
    runs = tmp_path / "flags", tmp_path / "file"
    lora = ("--loss.name", "ipo", "--loss.beta", "0.2", "--peft.method", "lora", "--learning_rate", "1e-3")
    status, out, err = command("train", "--model", tiny_folder, "--data", data, "--output", runs[0], *SMALL, *lora)
    assert status == 0
    assert f"Model: {runs[0] / 'final'}\nReport: {runs[0] / 'report.html'}\n" in out
    assert re.search(r"^Training: 3 of 3 .*loss [\d.]+ .*tokens/s", err, re.MULTILINE)
    options = {
        "model": str(tiny_folder),
        "data": str(data),
        "output": str(runs[1]),
        "learning_rate": 1e-3,
        "global_batch_size": 4,
        "num_samples": 2,
        "sample_tokens": 8,
        "loss": {"name": "ipo", "beta": 0.2},
        "peft": {"method": "lora"},
    }
    assert command("train", "--config", write_yaml(tmp_path / "a.yaml", options))[0] == 0
    assert metrics(runs[0]) == metrics(runs[1])
    assert [row["step"] for row in metrics(runs[0]) if "loss" in row] == [1, 2, 3]
    for run in runs:
        assert (run / "report.html").read_text(encoding="utf-8").lstrip().startswith("<!doctype html>")
        assert (run / "final" / "adapter_model.safetensors").exists()

    # The configuration that a run leaves makes the same run again.
    again = tmp_path / "again"
    assert command("train", "--config", runs[0] / "config.yaml", "--output", again)[0] == 0
    assert metrics(again) == metrics(runs[0])


def test_report_is_written_again(command: Say, tiny_folder: Path, pairs: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    argv = ("train", "--model", tiny_folder, "--data", pairs, "--output", run, *SMALL, "--max_steps", "1")
    assert command(*argv)[0] == 0
    before = (run / "report.html").read_bytes()
    (run / "report.html").unlink()
    assert command("report", run) == (0, f"Report: {run / 'report.html'}\n", "")
    assert (run / "report.html").read_bytes() == before

    status, _, err = command(*argv)
    assert status == 2
    assert "the folder already holds a run" in err
    assert_one_error(err)


def test_report_of_what_is_no_run(command: Say, tmp_path: Path) -> None:
    status, _, err = command("report", tmp_path)
    assert status == 3
    assert f"{tmp_path}: this is not the folder of a run" in err


def test_training_that_diverges(command: Say, tiny_folder: Path, pairs: Path, tmp_path: Path) -> None:
    argv = ("train", "--model", tiny_folder, "--data", pairs, "--output", tmp_path / "run", *SMALL)
    status, _, err = command(*argv, "--learning_rate", "1e30", "--num_epochs", "4")
    assert status == 4
    assert "not a finite number in step 2" in err
    assert_one_error(err)


@pytest.mark.parametrize("case", BAD)
def test_training_on_a_bad_file(case: str, command: Say, tiny_folder: Path, tmp_path: Path) -> None:
    name, data, place, problem = BAD[case]
    file = tmp_path / name
    file.write_bytes(data)
    run = tmp_path / "run"
    status, out, err = command("train", "--model", tiny_folder, "--data", file, "--output", run)
    assert (status, out) == (3, "")
    assert_one_error(err)
    assert_says(err.splitlines()[-1].removeprefix("error: "), str(tmp_path), name + place, problem)
    assert not run.exists()


def test_prompts_longer_than_the_model_takes(command: Say, tiny_folder: Path, tmp_path: Path) -> None:
    rows = [{"prompt": "Q" * 600, "chosen": f"a{n}", "rejected": "b"} for n in range(3)]
    file = write_rows(tmp_path / "long.jsonl", rows)
    status, _, err = command("train", "--model", tiny_folder, "--data", file, "--output", tmp_path / "run")
    assert status == 3
    assert "none of the 3 groups can be trained on" in err
    assert_one_error(err)


@pytest.mark.slow
def test_a_run_that_is_told_to_stop_goes_on_as_if_it_never_had(
    command: Say, tiny_folder: Path, pairs: Path, tmp_path: Path
) -> None:
    argv = ["train", "--model", str(tiny_folder), "--data", str(pairs), "--global_batch_size", "4", "--num_samples"]
    argv += ["0", "--num_epochs", "40", "--learning_rate", "1e-4", "--output"]
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    process = subprocess.Popen(
        [sys.executable, "-m", "dipole", *argv, str(stopped)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},  # as the tests have it: the number of threads changes last digits
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    log = stopped / "metrics.jsonl"
    try:
        while process.poll() is None and not (log.exists() and log.read_text(encoding="utf-8").count("\n") > 3):
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 143, err
    assert re.search(r"^error: stopped by SIGTERM after step \d+; its state is saved", err, re.MULTILINE)
    assert "Traceback" not in err
    done = metrics(stopped)[-1]["step"]
    assert 3 <= done < 120

    assert command(*argv, stopped, "--resume")[0] == 0
    assert command(*argv, whole)[0] == 0
    assert metrics(stopped) == metrics(whole)
    assert metrics(whole)[-1]["step"] == 120
    ends = [(run / "final" / "model.safetensors").read_bytes() for run in (stopped, whole)]
    assert ends[0] == ends[1]


# The other verbs


def test_convert_there_and_back(command: Say, pairs: Path, tmp_path: Path) -> None:
    groups, back, labels = (tmp_path / name for name in ("groups.jsonl.gz", "back.jsonl", "labels.jsonl"))
    assert command("convert", pairs, "--to", "groups", "--output", groups) == (0, f"{groups}: 12 groups\n", "")
    status, out, _ = command("convert", groups, "--to", "pairs", "--output", back)
    assert (status, out) == (0, f"{back}: 12 rows, 12 judgments\n")
    assert load_groups(back) == load_groups(groups) == load_groups(pairs)
    assert command("convert", back, "--to", "unpaired", "--output", labels)[0] == 0
    rows = [json.loads(line) for line in labels.read_text(encoding="utf-8").splitlines()]
    assert [row["label"] for row in rows[:2]] == [True, False]
    assert len(rows) == 24


@pytest.mark.parametrize(
    ("argv", "status", "problem"),
    [
        (("--to", "pairs", "--output", "{pairs}"), 2, "this is the file that is read"),
        (("--to", "pairs", "--output", "a.csv"), 3, "a.csv: only JSON Lines are written"),
    ],
)
def test_convert_refuses(
    argv: tuple[str, ...], status: int, problem: str, command: Say, pairs: Path, tmp_path: Path
) -> None:
    before = pairs.read_bytes()
    got, _, err = command("convert", pairs, *(item.format(pairs=pairs) for item in argv))
    assert got == status
    assert problem in err
    assert_one_error(err)
    assert pairs.read_bytes() == before


def test_audit(command: Say, pairs: Path, tmp_path: Path) -> None:
    status, out, err = command("audit", pairs, "--output", tmp_path / "audit")
    assert (status, err) == (0, "Checking the data\n")
    assert "12 groups" in out
    report = json.loads((tmp_path / "audit" / "audit.json").read_text(encoding="utf-8"))
    assert report["errors"] == []
    assert {finding["name"] for finding in report["findings"]} >= {"longer_preferred"}


def test_audit_finds_errors_and_rows_that_cannot_be_read(command: Say, pairs: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_bytes(pairs.read_bytes() + b'{"prompt": "Q", "chosen": "a"}\n' + b'{"prompt": "Q", "chosen": "a", "re')
    status, out, err = command("audit", bad)
    assert (status, err) == (3, "Checking the data\n")
    assert "\nerror    2 rows can't be read\n" in out
    assert f"{bad}:13: " in out
    assert f"{bad}:14: " in out


def test_audit_finds_what_leaks(command: Say, pairs: Path) -> None:
    status, out, _ = command("audit", pairs, "--eval_data", pairs)
    assert status == 3
    assert "\nerror    prompts of evaluation groups are in the training data" in out


@pytest.mark.parametrize(("better", "status"), [(True, 0), (False, 4)])
def test_the_demo_says_whether_the_model_is_better(
    better: bool, status: int, command: Say, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dipole import demo
    from dipole.evaluate.run_folder import Measure
    from dipole.evaluate.stats import Estimate

    before, after, difference = (
        Estimate(value=value, low=value - 0.05, high=value + 0.05, n=431, method="t") for value in (0.51, 0.85, 0.34)
    )
    measure = Measure("Held-out accuracy", "", "share", before, after, difference, "better" if better else "unclear")
    asked: list[Any] = []

    def run_demo(output: Path, *, model: str | None, seed: int, progress: Any) -> demo.DemoResult:
        asked.append((output, model, seed))
        return demo.DemoResult(measures=[measure], report=output / "report.html", better=better)

    monkeypatch.setattr(demo, "run_demo", run_demo)
    argv = ("--output", tmp_path, "--model", "m", "--seed", "3")
    got, out, _ = command("demo", *argv)
    assert got == status
    assert asked == [(tmp_path, "m", 3)]
    assert re.search(
        r"Held-out accuracy \(share\) +0.510 \[0.460, 0.560\] +0.850 .* \+0.340 .* 431 +(better|unclear)", out
    )
    assert ("The model is better." in out) is better
    assert f"Report: {tmp_path / 'report.html'}\n" in out
