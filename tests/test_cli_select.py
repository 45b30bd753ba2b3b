"""``dipole convert --select``: from judged completions to the pairs of a round, or to the best of N."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from dipole.data.formats import load_groups, save_groups
from dipole.group import Comparison, Completion, Group, Rating

Command = Callable[..., tuple[int, str, str]]
SCORES = {"a": (0.1, 0.9, -0.4), "b": (0.5, 0.5, 0.5), "c": (2.0, 1.0, 9.0)}


@pytest.fixture
def judged(tmp_path: Path) -> Path:
    groups = [
        Group(
            id=id,
            prompt=f"Prompt {id}",
            completions=tuple(
                Completion(text="" if value == 9.0 else f"{i} of {id}") for i, value in enumerate(values)
            ),
            judgments=tuple(Rating(i=i, value=value, annotator="vader") for i, value in enumerate(values)),
        )
        for id, values in SCORES.items()
    ]
    save_groups(groups, tmp_path / "judged.jsonl")
    return tmp_path / "judged.jsonl"


def test_best_against_worst(command: Command, judged: Path, tmp_path: Path) -> None:
    output = tmp_path / "pairs.jsonl"
    status, said, _ = command("convert", judged, "--to", "pairs", "--select", "best_worst", "--output", output)
    assert status == 0
    assert "Selected: 2 pairs" in said
    assert "1 empty completions" in said
    assert "1 pairs of equal score" in said
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [(row["prompt"], row["chosen"], row["rejected"]) for row in rows] == [
        ("Prompt a", "1 of a", "2 of a"),
        ("Prompt c", "0 of c", "1 of c"),
    ]


def test_gaps_rejection_and_the_best(command: Command, judged: Path, tmp_path: Path) -> None:
    def selected(*options: object) -> list[Group]:
        output = tmp_path / "selected.jsonl"
        status, _, heard = command("convert", judged, "--to", "groups", "--output", output, "--select", *options)
        assert status == 0, heard
        return load_groups(output)

    (group,) = selected("gap", "--min_gap", "1.1")
    assert [(item.i, item.j) for item in group.judgments if isinstance(item, Comparison)] == [(1, 2)]
    assert {group.id for group in selected("rejection", "--accept", "2", "--beta", "5")} == {"a", "c"}
    best = selected("best_of_n", "--annotator", "vader")
    assert [group.completions[0].text for group in best] == ["1 of a", "0 of b", "0 of c"]
    assert not any(group.judgments for group in best)


@pytest.mark.parametrize(
    ("options", "status", "said"),
    [
        (("--min_gap", "1"), 2, "Add --select"),
        (("--select", "gap"), 2, "min_gap"),
        (("--select", "best_worst", "--accept", "2"), 2, "accept"),
        (("--select", "best_of_n", "--beta", "2"), 2, "--beta"),
        (("--select", "best_wurst"), 2, "best_worst"),
        (("--select", "gap", "--min_gap", "100"), 3, "nothing is left"),
        (("--select", "best_of_n", "--annotator", "nobody"), 3, "nothing is left"),
    ],
)
def test_what_means_nothing_is_refused(
    options: tuple[str, ...], status: int, said: str, command: Command, judged: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out.jsonl"
    got, _, heard = command("convert", judged, "--to", "groups", "--output", output, *options)
    assert (got, said in heard) == (status, True), heard
    assert not output.exists()


def test_a_best_completion_has_no_pair(command: Command, judged: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    status, _, heard = command("convert", judged, "--to", "pairs", "--output", output, "--select", "best_of_n")
    assert (status, "--to groups" in heard) == (2, True)
