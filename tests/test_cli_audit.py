"""``dipole audit`` from the command line: its files, its repairs, a model, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import dipole

Say = Callable[..., tuple[int, str, str]]


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    file = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"Is {n} even?", "chosen": f"yes {n}", "rejected": f"no, not {n}"} for n in range(12)]
    file.write_text("".join(json.dumps(row) + "\n" for row in [*rows, rows[0]]), encoding="utf-8")
    return file


def test_a_report_in_two_forms(command: Say, pairs: Path, tmp_path: Path) -> None:
    status, out, _ = command("audit", pairs, "--output", tmp_path / "out")
    assert status == 0
    assert out.splitlines()[0] == "13 groups · 26 completions · 13 judgments"
    found = json.loads((tmp_path / "out" / "audit.json").read_text(encoding="utf-8"))
    for item in (*found["errors"], *found["findings"]):
        assert {"name", "severity", "value", "interval", "message", "examples"} <= item.keys()
        assert item["severity"] in ("info", "warning", "severe")
        assert item["severity"] == "info" or item["remedy"]
    assert "pairs.jsonl" in (tmp_path / "out" / "audit.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("depth", "has", "lacks"), [("errors", "", "characters a"), ("cheap", "characters a", "turns")]
)
def test_less_can_be_asked_for(depth: str, has: str, lacks: str, command: Say, pairs: Path) -> None:
    status, out, _ = command("audit", pairs, "--depth", depth)
    assert status == 0
    assert has in out
    assert lacks not in out


def test_repairs_go_to_a_new_file(command: Say, pairs: Path, tmp_path: Path) -> None:
    before = pairs.read_bytes()
    status, out, _ = command(
        "audit", pairs, "--depth", "errors", "--fix", tmp_path / "new.jsonl", "--eval_share", "0.25"
    )
    assert status == 0
    assert "new.jsonl: 12 groups, 1 changes" in out
    assert pairs.read_bytes() == before
    assert sum(group.split == "eval" for group in dipole.load_groups(tmp_path / "new.jsonl")) == 3
    (change,) = (tmp_path / "new.changes.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(change)["reason"] == "it is the same as pairs.jsonl:1"


def test_a_models_tokenizer_is_tried(command: Say, pairs: Path, tiny_folder: Path) -> None:
    argv = ("--depth", "errors", "--model", tiny_folder, "--max_length", "18", "--model_pairs", "0")
    status, out, _ = command("audit", pairs, *argv)
    assert status == 0
    assert "of the answers are cut at 18 tokens" in out
    assert command("audit", pairs, *argv[:5], "11", *argv[6:])[0] == 3


@pytest.mark.parametrize(
    ("argv", "problem"),
    [
        (("--fix", "{pairs}"), "this is what is read"),
        (("--eval_share", "0.1"), "a file is needed"),
        (("--fix", "{pairs}.new.jsonl", "--eval_share", "2"), "no share between 0 and 1"),
        (("--max_length", "10"), "with a model alone"),
        (("--prompt_format", "chat"), "with a model alone"),
        (("--embeddings", "nowhere"), "there is no model"),
        (("--embeddings", "nowhere", "--depth", "cheap"), "part of the full audit"),
    ],
)
def test_refused(argv: tuple[str, ...], problem: str, command: Say, pairs: Path) -> None:
    before = pairs.read_bytes()
    status, _, err = command("audit", pairs, *(item.format(pairs=pairs) for item in argv))
    assert status == 2
    assert problem in err
    assert "Traceback" not in err
    assert pairs.read_bytes() == before
