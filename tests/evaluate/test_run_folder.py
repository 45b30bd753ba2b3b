"""Reading the files of a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from example_run import MANIFEST, write_run

from dipole.errors import DataError
from dipole.evaluate.run_folder import inert, read_run_folder


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\x1b[31mred\x1b[0m and \x1b[2Jgone", "red and gone"),
        ("\x1b]0;title\x07after", "after"),
        ("a\x00b\x08c\x7fd\x9be", "abcde"),
        ("tab\tand\nline", "tab\tand\nline"),
        ("win\r\ndows\rold", "win\ndowsold"),
        ("user\u202egpj.exe", "usergpj.exe"),
        ("\u2067isolated\u2069", "isolated"),
        ("half \ud83d of a pair", "half \ufffd of a pair"),
        ("שלום, 世界, 🎬, e\u0301, \u200f", "שלום, 世界, 🎬, e\u0301, \u200f"),
        ("<script>", "<script>"),
    ],
)
def test_text_is_made_inert_and_otherwise_left_alone(text: str, expected: str) -> None:
    assert inert(text) == expected


def test_strings_at_any_depth_are_made_inert() -> None:
    assert inert({"a\x00": ["\x1b[1mb", {"c": "d\x07"}], "n": 1.5, "none": None}) == {
        "a": ["b", {"c": "d"}],
        "n": 1.5,
        "none": None,
    }


def test_a_complete_run(tmp_path: Path) -> None:
    run = read_run_folder(write_run(tmp_path / "demo"))
    assert run.name == "demo"
    assert run.config["loss"] == {"name": "dpo", "beta": 0.1}
    assert len(run.measures) == 4
    assert run.measures[0].after.n == 431
    assert (run.missing, run.unread) == ([], [])


def test_only_the_manifest_has_to_be_there(tmp_path: Path) -> None:
    absent = dict.fromkeys(("config", "metrics", "samples", "evaluation", "audit"))
    run = read_run_folder(write_run(tmp_path / "a", **absent))
    assert len(run.missing) == 5
    assert (run.metrics, run.samples, run.measures, run.audit) == ([], [], [], None)


def test_a_folder_without_a_manifest_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not the folder of a run"):
        read_run_folder(tmp_path)


def test_a_line_cut_by_a_kill_is_left_out_and_counted(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", metrics=[{"step": 1, "loss": 0.6}])
    with (run / "metrics.jsonl").open("a") as log:
        log.write('[1, 2]\n\n{"step": 2, "lo')
    found = read_run_folder(run)
    assert found.metrics == [{"step": 1, "loss": 0.6}]
    assert found.unread == ["metrics.jsonl: 2 lines aren't JSON objects and can't be shown, the first of them line 2."]


@pytest.mark.parametrize("name", ["manifest.json", "evaluation.json", "audit.json"])
@pytest.mark.parametrize("content", ['{"a": ', "[1]", "[" * 100_000])
def test_a_file_that_can_not_be_read_is_an_error_that_names_it(tmp_path: Path, name: str, content: str) -> None:
    run = write_run(tmp_path / "a")
    (run / name).write_text(content)
    with pytest.raises(DataError, match=name):
        read_run_folder(run)


def test_files_in_another_encoding_are_an_error(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a")
    (run / "samples.jsonl").write_bytes("{}\n".encode("utf-16"))
    with pytest.raises(DataError, match=r"samples\.jsonl"):
        read_run_folder(run)


@pytest.mark.parametrize("content", ["a: [1,", "!!python/object/apply:os.getcwd []"])
def test_a_configuration_that_is_no_plain_yaml_is_an_error(tmp_path: Path, content: str) -> None:
    run = write_run(tmp_path / "a", config=content)
    with pytest.raises(DataError, match=r"config\.yaml"):
        read_run_folder(run)


def test_an_estimate_of_wrong_fields_names_its_row(tmp_path: Path) -> None:
    row = {"name": "Accuracy", "before": {"value": 0.5, "low": None, "high": None}}
    run = write_run(tmp_path / "a", evaluation={"rows": [row]})
    with pytest.raises(DataError, match="Accuracy, before"):
        read_run_folder(run)


def test_a_row_without_a_name_is_an_error(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", evaluation={"rows": [{"before": None}]})
    with pytest.raises(DataError, match="a row without a name"):
        read_run_folder(run)


def test_half_a_surrogate_pair_in_a_file(tmp_path: Path) -> None:
    manifest = json.loads(json.dumps(MANIFEST)) | {"model": {"name": "m\ud800"}}
    run = write_run(tmp_path / "a", manifest=manifest)
    assert read_run_folder(run).manifest["model"]["name"] == "m\ufffd"
