"""Options from flags and from YAML files, and what is said of mistakes in either."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from command_line import Say, assert_one_error, write_yaml
from dipole.config import TrainConfig
from dipole.options import option_types
from dipole.verbs import VERBS, verb
from dipole.verbs.verb import Verb

NEEDED = ("--model", "m", "--data", "d", "--output", "o")


def test_help_names_every_verb(command: Say) -> None:
    status, out, err = command("--help")
    assert (status, err) == (0, "")
    assert all(f"  {name} " in out for name in VERBS)


@pytest.mark.parametrize("name", VERBS)
def test_each_verb_explains_itself_with_an_example_that_parses(name: str, command: Say) -> None:
    status, out, _ = command(*name.split(), "--help")
    assert status == 0
    example = out.partition("example:\n")[2].split()
    assert example[: 1 + len(name.split())] == ["dipole", *name.split()]
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


@pytest.mark.parametrize("name", VERBS)
def test_every_option_is_explained(name: str, command: Say) -> None:
    _, out, _ = command(*name.split(), "--help")
    for option in option_types(verb(name).options):
        shown = option.upper() if option in verb(name).positional else f"--{option}"
        entry = re.search(rf"^  {re.escape(shown)}\b((.*\n {{10}})*.*)", out, re.MULTILINE)
        assert entry, option
        assert len(re.findall(r"[a-z]{2,}", entry[1])) >= 2, option


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
    monkeypatch.setattr("dipole.verbs.train.VERB", Verb(lambda config: seen.append(config) or 0, TrainConfig, ""))

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
    "no such choice": (["train", *NEEDED, "--peft.method", "x"], "--peft.method: has to be one of none, lora, "),
    "no such choice where one may be left out": (["iterate", "--preset", "x"], "--preset: has to be one of snorkel, "),
    "no list": (
        ["generate", "--model", "m", "--stop", "x"],
        """--stop: has to be a list, as '["one", "two"]', not 'x'""",
    ),
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
