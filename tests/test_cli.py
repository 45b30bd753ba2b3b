"""The command line from end to end: options from flags and files, exit statuses, and what a person is told."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from data.test_bad_files import BAD, assert_says
from dipole import cli
from dipole.cli import VERBS, main
from dipole.config import TrainConfig
from dipole.data.formats import load_groups
from dipole.errors import JudgeError, TrainingFault
from dipole.options import option_types

NEEDED = ("--model", "m", "--data", "d", "--output", "o")
SMALL = ("--global_batch_size", "4", "--num_samples", "2", "--sample_tokens", "8")
Say = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Say:
    """Runs the command line in this process: (exit status, standard output, standard error)."""

    def run(*argv: str | Path) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main([str(item) for item in argv])
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


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


def write_rows(path: Path, rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_yaml(path: Path, options: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(options), encoding="utf-8")
    return path


def metrics(run: Path) -> list[dict[str, Any]]:
    """The log without what depends on the clock."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in row.items() if key != "tokens_per_second"} for row in rows]


# Help and options


def test_help_names_every_verb(command: Say) -> None:
    status, out, err = command("--help")
    assert (status, err) == (0, "")
    assert all(f"  {verb} " in out for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_explains_itself_with_an_example_that_parses(verb: str, command: Say) -> None:
    status, out, _ = command(verb, "--help")
    assert status == 0
    example = out.partition("example:\n")[2].split()
    assert example[:2] == ["dipole", verb]
    status, out, err = command(*example[1:], "--print_config")
    assert (status, err) == (0, "")
    assert yaml.safe_load(out)


def test_help_is_quick_and_needs_no_torch() -> None:
    code = (
        "import sys, time; from dipole.cli import main; main(['train', '--help']); main(['--help']);"
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules); assert time.process_time() < 1"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_python_m_dipole() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dipole", "train", "--loss.bta", "1"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: there is no option --loss.bta. Did you mean 'loss.beta'?\n"


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_is_explained(verb: str, command: Say) -> None:
    _, out, _ = command(verb, "--help")
    for name in option_types(VERBS[verb].options):
        shown = name.upper() if name in VERBS[verb].positional else f"--{name}"
        entry = re.search(rf"^  {re.escape(shown)}\b((.*\n {{10}})*.*)", out, re.MULTILINE)
        assert entry, name
        assert len(re.findall(r"[a-z]{2,}", entry[1])) >= 2, name


def test_print_config_prints_what_reads_back_the_same(command: Say, tmp_path: Path) -> None:
    given = (*NEEDED, "--learning_rate", "1e-5", "--loss.name", "simpo", "--peft.method", "lora", "--resume")
    status, first, _ = command("train", *given, "--print_config")
    assert status == 0
    values = yaml.safe_load(first)
    assert values["learning_rate"] == 1e-5
    assert values["loss"]["name"] == "simpo"
    assert values["resume"] is True
    (tmp_path / "a.yaml").write_text(first, encoding="utf-8")
    assert command("train", "--config", tmp_path / "a.yaml", "--print_config") == (0, first, "")


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch, command: Say) -> Callable[..., TrainConfig]:
    """The configuration that a command line of ``train`` stands for."""
    seen: list[TrainConfig] = []
    verb = cli.Verb(lambda config: seen.append(config) or 0, TrainConfig, "")
    monkeypatch.setitem(VERBS, "train", verb)

    def run(*argv: str | Path) -> TrainConfig:
        assert command("train", *argv) == (0, "", "")
        return seen[-1]

    return run


def test_flags_and_files_take_the_same_names(parsed: Callable[..., TrainConfig], tmp_path: Path) -> None:
    options = {
        "model": "m",
        "data": "d",
        "output": "o",
        "learning_rate": 1e-5,
        "max_steps": 7,
        "resume": True,
        "loss": {"name": "dpo", "beta": 0.3},
        "pairing": {"policy": "margin", "min_margin": 1, "soft": False},
        "peft": {"method": "lora", "rank": 4},
    }
    flags = (*NEEDED, "--learning_rate=1e-5", "--max_steps", "7", "--resume", "--loss.beta", "0.3", "--pairing.soft")
    flags = (*flags, "false", "--pairing.policy=margin", "--pairing.min_margin=1", "--peft.method=lora")
    from_flags = parsed(*flags, "--peft.rank", "4")
    assert parsed("--config", write_yaml(tmp_path / "a.yaml", options)) == from_flags
    dotted = {key: value for key, value in options.items() if key != "loss"} | {"loss.name": "dpo", "loss.beta": 0.3}
    assert parsed("--config", write_yaml(tmp_path / "b.yaml", dotted)) == from_flags
    assert from_flags.loss.beta == 0.3
    assert from_flags.resume is True
    assert from_flags.pairing.soft is False


def test_defaults_are_those_of_the_dataclass(parsed: Callable[..., TrainConfig]) -> None:
    assert parsed(*NEEDED) == TrainConfig(model="m", data="d", output="o")


def test_flags_win_over_files_and_later_files_over_earlier(parsed: Callable[..., TrainConfig], tmp_path: Path) -> None:
    first = write_yaml(tmp_path / "a.yaml", {"seed": 1, "max_steps": 1, "log_every": 5, "loss": {"beta": 0.2}})
    second = write_yaml(tmp_path / "b.yaml", {"max_steps": 2, "loss": {"name": "ipo"}})
    config = parsed(*NEEDED, "--seed", "3", "--config", first, f"--config={second}")
    assert (config.seed, config.max_steps, config.log_every) == (3, 2, 5)
    assert (config.loss.name, config.loss.beta) == ("ipo", 0.2)


@pytest.mark.parametrize("written", ["1e-5", "1.0e-05", "1E-5", "0.00001"])
def test_every_spelling_of_a_number_is_one(written: str, parsed: Callable[..., TrainConfig], tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(f"learning_rate: {written}\n", encoding="utf-8")
    assert parsed(*NEEDED, "--config", file).learning_rate == 1e-5
    assert parsed(*NEEDED, "--learning_rate", written).learning_rate == 1e-5


USAGE = {
    # what is wrong: (arguments, what is said)
    "a misspelt verb": (["trian"], "there is no verb 'trian'. Did you mean 'train'?"),
    "a misspelt flag": (["train", "--loss.bta", "1"], "there is no option --loss.bta. Did you mean 'loss.beta'?"),
    "a hyphen": (["train", "--learning-rate", "1"], "no option --learning-rate. Did you mean 'learning_rate'?"),
    "a part left out": (["train", "--beta", "1"], "no option --beta. Did you mean 'loss.beta'?"),
    "an abbreviation": (["train", *NEEDED, "--max_step=1"], "no option --max_step. Did you mean 'max_steps'?"),
    "nothing like it": (["train", "--zzz"], "no option --zzz. 'dipole train --help' lists all"),
    "one thing missing": (["train", *NEEDED[:4]], "--output is missing"),
    "two things missing": (["train", "--data", "d"], "--model and --output are missing"),
    "no file": (["audit"], "DATA is missing"),
    "no value": (["train", "--seed"], "--seed: a value is missing"),
    "one word too many": (["train", *NEEDED, "extra"], "'extra' belongs to no option"),
    "a word for a number": (["train", *NEEDED, "--seed", "x"], "--seed: has to be a whole number, not 'x'"),
    "half a step": (["train", *NEEDED, "--max_steps", "1.5"], "--max_steps: has to be a whole number, not '1.5'"),
    "a word for a rate": (["train", *NEEDED, "--learning_rate", "x"], "--learning_rate: has to be a number, not 'x'"),
    "maybe": (["train", *NEEDED, "--resume", "maybe"], "--resume: has to be true or false, not 'maybe'"),
    "no such choice": (["train", *NEEDED, "--peft.method", "x"], "--peft.method: has to be one of none, lora, not 'x'"),
    "too small": (["train", *NEEDED, "--max_steps", "0"], "--max_steps: has to be at least 1, not 0"),
    "no such format": (
        ["convert", "a", "--to", "x", "--output", "b"],
        "--to: has to be one of groups, pairs, unpaired",
    ),
    "no such file of options": (["train", "--config", "no.yaml"], "no.yaml: can't be read"),
    "a file of options without a name": (["train", "--config"], "--config: a file is missing"),
    "no such model": (["train", "--model", "./no", "--data", "d", "--output", "o"], "no such folder"),
}


@pytest.mark.parametrize("case", USAGE)
def test_a_mistake_in_the_command(case: str, command: Say, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    argv, problem = USAGE[case]
    status, out, err = command(*argv)
    assert (status, out) == (2, "")
    assert problem in err
    assert_one_error(err)
    assert list(tmp_path.iterdir()) == []


FILES = {
    # what is wrong: (the file, where, what is said)
    "a key twice": ("seed: 1\nseed: 2\n", ":2", "'seed' is given twice, first in .*:1"),
    "a key in both spellings": ("loss.beta: 1\nloss:\n  beta: 2\n", ":3", "'loss.beta' is given twice"),
    "a misspelt key": ("seed: 1\nlos:\n  beta: 1\n", ":2", "there is no option 'los'"),
    "a misspelt key below another": ("loss:\n  name: dpo\n  bta: 1\n", ":3", "'loss.bta'. Did you mean 'loss.beta'"),
    "a key that is a number": ("1: 2\n", ":1", "there is no option '1'"),
    "a key that is a list": ("? [a]\n: 1\n", ":1", "no option 'a list or mapping'"),
    "a value for a part": ("loss: dpo\n", ":1", "'loss' has to hold options. Write them as 'name: VALUE'"),
    "a list for a value": ("model: [a, b]\n", ":1", "'model' takes one plain value"),
    "a mapping for a value": ("model: {a: b}\n", ":1", "'model' takes one plain value"),
    "a list": ("- 1\n", ":1", "the file has to hold options"),
    "nothing": ("", "", "the file has to hold options"),
    "a comment alone": ("# later\n", "", "the file has to hold options"),
    "a word for a number": ("data: d\n\nseed: x\n", ":3", "'seed' has to be a whole number, not 'x'"),
    "a number for text": ("model: 3\n", ":1", "'model' has to be text, not '3'"),
    "no YAML": ("a: [\n", ":2", "isn't YAML"),
    "a tab": ("loss:\n\tbeta: 1\n", ":2", "isn't YAML"),
    "an object of Python": ("model: !!python/object/apply:os.getcwd []\n", ":1", "'model' takes one plain value"),
    "a tagged value": ("model: !!python/name:os.getcwd x\n", ":1", "'model' takes one plain value"),
    "an alias": ("model: &a m\ndata: *a\n", ":2", "aliases .* aren't taken"),
    "very deep": ("a: " + "[" * 1500, "", "isn't YAML"),
    "two documents": ("seed: 1\n---\nseed: 2\n", ":2", "isn't YAML"),
    "another file within": ("config: a.yaml\n", ":1", "there is no option 'config'"),
}


@pytest.mark.parametrize("case", FILES)
def test_a_mistake_in_a_file_of_options(case: str, command: Say, tmp_path: Path) -> None:
    text, place, problem = FILES[case]
    file = tmp_path / "a.yaml"
    file.write_text(text, encoding="utf-8")
    status, out, err = command("train", "--config", file, "--output", tmp_path / "o")
    assert (status, out) == (2, "")
    assert err.startswith(f"error: {file}{place}: "), err
    assert re.search(problem, err), err
    assert_one_error(err)


def test_a_file_of_options_that_is_no_text(command: Say, tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_bytes(b"model: \xff\n")
    status, _, err = command("train", "--config", file)
    assert status == 2
    assert err.startswith(f"error: {file}: isn't YAML that Dipole reads")


def test_a_bomb_of_aliases_is_refused_at_once(command: Say, tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x]"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 40)]
    file = tmp_path / "a.yaml"
    file.write_text("\n".join(lines), encoding="utf-8")
    began = time.process_time()
    assert command("train", "--config", file)[0] == 2
    assert time.process_time() - began < 5


def assert_one_error(err: str) -> None:
    """One or two lines, in plain words."""
    assert "Traceback" not in err
    assert "usage:" not in err
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert len(errors[0]) < 800
    assert err.endswith(f"{errors[0]}\n")


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

    monkeypatch.setitem(VERBS, "train", cli.Verb(fail, TrainConfig, ""))
    assert command("train", *NEEDED) == (status, "", said)


def test_a_bug_keeps_its_traceback(command: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(config: TrainConfig) -> int:
        raise ZeroDivisionError

    monkeypatch.setitem(VERBS, "train", cli.Verb(fail, TrainConfig, ""))
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
    assert (status, err) == (0, "")
    assert "12 groups" in out
    report = json.loads((tmp_path / "audit" / "audit.json").read_text(encoding="utf-8"))
    assert report["errors"] == []
    assert {finding["name"] for finding in report["findings"]} >= {"longer_preferred"}


def test_audit_finds_errors_and_rows_that_cannot_be_read(command: Say, pairs: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_bytes(pairs.read_bytes() + b'{"prompt": "Q", "chosen": "a"}\n' + b'{"prompt": "Q", "chosen": "a", "re')
    status, out, err = command("audit", bad)
    assert (status, err) == (3, "")
    assert out.startswith("error    2 rows can't be read\n")
    assert f"{bad}:13: " in out
    assert f"{bad}:14: " in out


def test_audit_finds_what_leaks(command: Say, pairs: Path) -> None:
    status, out, _ = command("audit", pairs, "--eval_data", pairs)
    assert status == 3
    assert out.startswith("error ")


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
