"""The shell around the code: versions, pins, make targets, the CI script, and what the pages tell people to type."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

import dipole
from dipole.cli import main
from dipole.verbs import VERBS, verb

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
TARGETS = ("setup", "demo", "test", "faults", "lint", "bench", "docs")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.lower().split("==") for line in lines if not line.startswith("#"))


def make(*arguments: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    return subprocess.run(
        ["make", *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_one_version() -> None:
    assert PROJECT["version"] == dipole.__version__
    assert f"## {dipole.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "wanted",
    [*PROJECT["dependencies"], *(item for name in ("demo", "dev") for item in PROJECT["optional-dependencies"][name])],
)
def test_what_make_installs_is_pinned_within_its_range(wanted: str) -> None:
    requirement = Requirement(wanted)
    assert Version(pins()[requirement.name.lower()]) in requirement.specifier


def test_pins_hold_on_every_machine() -> None:
    assert pins()["torch"] == "2.13.0"
    for name, version in pins().items():
        assert re.fullmatch(r"[a-z0-9_.-]+", name)
        assert Version(version).local is None, f"{name}: a local version is to be had on some machines alone"


@pytest.mark.parametrize("target", TARGETS)
def test_make_help_names_every_target(target: str) -> None:
    assert f"make {target} " in make("help").stdout
    assert make("--dry-run", target).returncode == 0


def test_make_alone_is_help() -> None:
    assert make().stdout == make("help").stdout


@pytest.mark.parametrize("python", ["old", "missing"])
def test_make_refuses_an_old_python_in_plain_words(python: str, tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    if python == "old":
        (tmp_path / "old").write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
        (tmp_path / "old").chmod(0o755)
    done = make("test", f"PYTHON=./{python}", folder=tmp_path)
    assert done.returncode == 2
    assert f"Dipole needs Python 3.11 or newer, and ./{python} isn't. Name one: make test PYTHON=" in done.stdout
    assert not (tmp_path / ".venv").exists()


def test_the_environment_is_built_again_when_its_packages_change(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    ready = tmp_path / ".venv" / ".ready"
    ready.parent.mkdir()
    ready.touch()
    os.utime(ready, (2_000_000_000, 2_000_000_000))
    assert "pip install" not in make("--dry-run", "test", folder=tmp_path).stdout
    os.utime(tmp_path / "constraints.txt", (2_000_000_001, 2_000_000_001))
    assert "pip install" in make("--dry-run", "test", folder=tmp_path).stdout


def test_the_ci_script() -> None:
    script = ROOT / ".ci" / "run"
    text = script.read_text(encoding="utf-8")
    assert os.access(script, os.X_OK)
    assert text.startswith("#!/usr/bin/env bash\n")
    assert "\nset -euo pipefail\n" in text
    assert "\nmake test\n" in text, "CI runs what the README tells people to run"
    assert "\nmake test\n" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0


def commands() -> Iterator[str]:
    """Every dipole command in a code block of a page."""
    for page in PAGES:
        for block in re.findall(r"^```(?:sh|bash|console)\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S):
            for line in block.replace("\\\n", " ").splitlines():
                if re.match(r"(\$ )?(\S*/)?dipole ", line):
                    yield re.sub(r"^(\$ )?(\S*/)?dipole ", "dipole ", line)


@pytest.mark.parametrize("command", sorted({*commands(), *(verb(name).example for name in VERBS)}))
def test_commands_that_pages_show_can_be_typed(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = shlex.split(command, comments=True)[1:]
    status = main(words if "--help" in words else [*words, "--print_config"])
    assert status == 0, capsys.readouterr().err


def test_make_targets_that_pages_show_exist() -> None:
    shown = {name for page in PAGES for name in re.findall(r"\bmake ([a-z]+)\b`", page.read_text(encoding="utf-8"))}
    assert shown <= {*TARGETS, "help"}


TRACES = [
    ("a folder of one machine", r"/" + r"(?:work|root|home/\w+)/"),
    ("a host of packages", r"(?:pypi|pythonhosted|anaconda)\." + r"org|download\.pytorch" + r"\.org"),
    ("an index of packages", r"--(?:extra-)?index" + r"-url|--find" + r"-links"),
    ("an unfinished thought", r"\b(?:TO" + r"DO|FIX" + r"ME|XX" + r"X)\b"),
]


@pytest.mark.parametrize(("what", "pattern"), TRACES, ids=[what for what, _ in TRACES])
def test_no_file_holds(what: str, pattern: str) -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("this is no clone: git can't say which files belong to the project")
    found = []
    for name in listed.stdout.splitlines():
        path = ROOT / name
        if path.suffix in (".gz", ".png", ".jsonl") or not path.is_file():
            continue
        lines = path.read_text(encoding="utf-8").splitlines()
        found += [f"{name}:{number}" for number, line in enumerate(lines, start=1) if re.search(pattern, line)]
    assert not found


def test_shipped_data_comes_with_its_notice() -> None:
    assets = ROOT / "src" / "dipole" / "assets"
    data = list(assets.glob("*.gz"))
    assert data
    for path in data:
        assert (assets / f"{path.name.partition('.')[0]}.LICENSE.txt").exists(), path
