"""Win rates and agreement from the command line, on a tiny model and judges that need none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from command_line import Say
from dipole.contest import Contest, run_contest
from dipole.data.formats import save_groups
from dipole.errors import ConfigError, DataError
from dipole.group import Comparison, Completion, Group


def prompts(count: int = 6) -> list[Group]:
    return [
        Group(id=f"g{number}", prompt=f"the cat {number}", completions=(Completion(text="on the mat"),))
        for number in range(count)
    ]


def answers(text: str, count: int = 6) -> list[Group]:
    return [
        Group(id=f"g{number}", prompt=f"the cat {number}", completions=(Completion(text=text * (1 + number % 2)),))
        for number in range(count)
    ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_groups(prompts(), tmp_path / "prompts.jsonl")
    save_groups(answers("a very much longer answer "), tmp_path / "long.jsonl")
    save_groups(answers("no"), tmp_path / "short.jsonl")
    return tmp_path


def test_files_of_answers_are_compared_with_the_reference(folder: Path, command: Say) -> None:
    models = f"long={folder / 'long.jsonl'},short={folder / 'short.jsonl'}"
    data = ["--models", models, "--prompts", folder / "prompts.jsonl"]
    status, out, _ = command("evaluate", "winrate", *data, "--judge", "rule:longer", "--output", folder / "o")
    assert status == 0
    assert "long" in out
    found = json.loads((folder / "o" / "winrate.json").read_text())
    assert [rate["rate"]["value"] for rate in found["rates"]] == [1.0, 0.0]
    assert found["differences"][0]["difference"]["value"] == 1.0
    assert "Win rate against reference" in (folder / "o" / "winrate.md").read_text()


def test_models_are_sampled_at_every_temperature_and_nothing_is_done_twice(folder: Path, tiny_folder: Path) -> None:
    contest = Contest(
        methods={"tiny": str(tiny_folder), "other": str(tiny_folder)},
        prompts=str(folder / "prompts.jsonl"),
        judge="rule:longer",
        against="other",
        temperatures=(0.0, 1.0),
        max_new_tokens=4,
        resamples=20,
    )
    first = run_contest(contest, folder / "o")
    assert [(rate.method, rate.temperature, rate.rate.n) for rate in first.rates] == [
        ("tiny", 0.0, 6),
        ("tiny", 1.0, 6),
    ]
    assert (folder / "o" / "winrate-dark.png").stat().st_size > 1000
    written = {path: path.stat().st_mtime_ns for path in (folder / "o" / "answers").iterdir()}
    assert run_contest(contest, folder / "o").rates == first.rates
    assert written == {path: path.stat().st_mtime_ns for path in (folder / "o" / "answers").iterdir()}


def test_a_folder_of_another_contest_is_refused(folder: Path) -> None:
    contest = Contest(
        methods={"a": str(folder / "long.jsonl")}, prompts=str(folder / "prompts.jsonl"), judge="rule:longer"
    )
    run_contest(contest, folder / "o")
    other = Contest(methods=contest.methods, prompts=contest.prompts, judge="rule:shorter")
    with pytest.raises(ConfigError, match="other judge"):
        run_contest(other, folder / "o")


def test_what_is_missing_is_named(folder: Path) -> None:
    save_groups(answers("x", count=2), folder / "few.jsonl")
    contest = Contest(
        methods={"a": str(folder / "few.jsonl")}, prompts=str(folder / "prompts.jsonl"), judge="rule:longer"
    )
    with pytest.raises(DataError, match="no answer to the prompt of group 'g2'"):
        run_contest(contest, folder / "o")
    with pytest.raises(ConfigError, match="Did you mean 'reference'"):
        Contest(methods={"a": "x"}, prompts="p", judge="vader", against="referenc")


def test_agreement_shows_judges_and_the_ceiling(folder: Path, command: Say) -> None:
    groups = [
        Group(
            id=f"g{number}",
            prompt=f"p{number}",
            completions=(Completion(text="longer than that"), Completion(text="short")),
            judgments=tuple(
                Comparison(i=0, j=1, p=float((number + rater) % 4 > 0), annotator=f"r{rater}") for rater in range(3)
            ),
        )
        for number in range(12)
    ]
    save_groups(groups, folder / "judged.jsonl")
    argv = ["--data", folder / "judged.jsonl", "--judges", "rule:longer,rule:shorter", "--output", folder / "a"]
    status, out, _ = command("evaluate", "agreement", *argv)
    assert status == 0
    rows = json.loads((folder / "a" / "agreement.json").read_text())["rows"]
    assert [row["judge"] for row in rows] == ["rule:longer", "rule:shorter", "people"]
    assert rows[0]["without_ties"]["raw"]["value"] == pytest.approx(0.75)
    assert rows[1]["without_ties"]["raw"]["value"] == pytest.approx(0.25)
    assert "people" in out
