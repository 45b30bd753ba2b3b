"""What is repaired, what is left out, and that every change is written down and nothing is changed in place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dipole.auditing import audit_data, fix_data
from dipole.data.formats import load_groups, save_groups
from dipole.errors import ConfigError
from dipole.group import Approval, Comparison, Completion, Group, Judgment, Ranking, Rating


def group(id: str, prompt: str, *answers: str, judgments: tuple[Judgment, ...] = (), split: str | None = None) -> Group:
    texts = answers or ("yes", "no")
    return Group(
        id=id,
        prompt=prompt,
        completions=tuple(Completion(text=text) for text in texts),
        judgments=judgments or (Comparison(i=0, j=1),),
        split=split,
    )


def fixed(folder: Path, *groups: Group, rest: str = "", **options: object) -> tuple[list[Group], list[dict[str, str]]]:
    save_groups(groups, folder / "data.jsonl")
    with open(folder / "data.jsonl", "a", encoding="utf-8") as file:
        file.write(rest)
    before = (folder / "data.jsonl").read_bytes()
    counts = fix_data(folder / "data.jsonl", folder / "new.jsonl.gz", **options)  # type: ignore[arg-type]
    assert (folder / "data.jsonl").read_bytes() == before
    changes = [json.loads(line) for line in (folder / "new.changes.jsonl").read_text().splitlines()]
    kept = load_groups(folder / "new.jsonl.gz")
    assert counts == {"groups": len(kept), "changes": len(changes)}
    return kept, changes


def test_sound_groups_stay_as_they_are(tmp_path: Path) -> None:
    groups = [group("a", "P"), group("b", "Q")]
    assert fixed(tmp_path, *groups) == (groups, [])


def test_what_cannot_be_trained_on_is_left_out_and_said(tmp_path: Path) -> None:
    kept, changes = fixed(
        tmp_path,
        group("good", "P"),
        group("same", "Q", "x", " X"),
        group("empty", "R", "x", ""),
        group("again", "P"),
        rest='{"no": "group"}\n',
    )
    assert [item.id for item in kept] == ["good"]
    assert [(change["id"], change["action"]) for change in changes] == [
        ("same", "group left out"),
        ("empty", "group left out"),
        ("again", "group left out"),
        (f"{tmp_path / 'data.jsonl'}:5", "row left out"),
    ]
    assert changes[2]["reason"] == "it is the same as good"


def test_an_empty_answer_goes_and_its_judgments_with_it(tmp_path: Path) -> None:
    judgments = (
        Comparison(i=0, j=1, annotator="a"),
        Comparison(i=0, j=2, annotator="b"),
        Ranking(order=(2, 1, 0)),
        Rating(i=2, value=3),
        Approval(i=1, value=False),
    )
    (kept,), changes = fixed(tmp_path, group("g", "P", "x", " ", "z", judgments=judgments))
    assert [answer.text for answer in kept.completions] == ["x", "z"]
    assert kept.judgments == (Comparison(i=0, j=1, annotator="b"), Ranking(order=(1, 0)), Rating(i=1, value=3))
    assert [change["action"] for change in changes] == ["1 completions left out"]


def test_a_leak_leaves_the_training_data(tmp_path: Path) -> None:
    groups = [group("a", "P"), group("b", "Q"), group("e", "p", split="eval")]
    assert [item.id for item in fixed(tmp_path, *groups)[0]] == ["b", "e"]
    assert [item.id for item in fixed(tmp_path, *groups, allow_shared_prompts=True)[0]] == ["a", "b", "e"]
    assert [item.id for item in fixed(tmp_path, *groups[:2], eval_data=[groups[2]])[0]] == ["b"]


def test_a_fixed_file_has_no_errors(tmp_path: Path) -> None:
    groups = [
        group(f"g{n}", f"P{n % 7}", "x", "" if n % 3 else "y", split="eval" if n % 5 == 0 else None) for n in range(40)
    ]
    fixed(tmp_path, *groups)
    assert audit_data(tmp_path / "new.jsonl.gz", depth="errors").errors == ()


def test_splits_can_be_given_at_once(tmp_path: Path) -> None:
    groups = [group(f"g{n}", f"{n * 7919} {n**5} {n**7} {-n} of {n**9}") for n in range(2, 42)]
    kept, _ = fixed(tmp_path, *groups, eval_share=0.25)
    assert [item.split for item in kept].count("eval") == 10


@pytest.mark.parametrize("name", ["data.jsonl", "sub/../data.jsonl"])
def test_the_data_is_never_written_over(name: str, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    save_groups([group("a", "P")], tmp_path / "data.jsonl")
    with pytest.raises(ConfigError, match="this is what is read"):
        fix_data(tmp_path / "data.jsonl", tmp_path / name)
    with pytest.raises(ConfigError, match="this is what is read"):
        fix_data(tmp_path, tmp_path / "new.jsonl")
