"""Kinds of annotators, and ``dipole aggregate`` from the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from crowds import crowd, pair, vote

import dipole
from dipole.data.formats import save_groups
from dipole.errors import ConfigError, DataError
from dipole.feedback.aggregate import aggregate, read_kinds
from dipole.group import Group

Say = Callable[..., tuple[int, str, str]]
KINDS = {"n1": "nurses", "n2": "nurses", "n3": "nurses", "d1": "doctors", "d2": "doctors"}


def opposed(pairs: int, *, share: float, seed: int = 0) -> list[Group]:
    """Three nurses and two doctors; on a share of the pairs doctors prefer what nurses don't. A tenth is noise."""
    random = np.random.default_rng(seed)
    groups = []
    for number in range(pairs):
        nurses = float(random.integers(2))
        doctors = 1 - nurses if random.random() < share else nurses
        votes = []
        for name, kind in KINDS.items():
            p = nurses if kind == "nurses" else doctors
            votes.append(vote(1 - p if random.random() < 0.1 else p, name))
        groups.append(pair(f"g{number}", *votes))
    return groups


def test_kinds_that_differ_are_told() -> None:
    (found,) = aggregate(opposed(200, share=0.4), kinds=KINDS).differences
    assert found.kinds == ("doctors", "nurses")
    assert found.within == pytest.approx(0.82, abs=0.05)
    assert found.gap is not None
    assert found.clear
    assert found.gap == pytest.approx(0.4 * (2 * 0.82 - 1), abs=0.08)
    assert 50 < found.contrary < 110
    assert any(
        "doctors and nurses differ" in note
        for note in aggregate(opposed(200, share=0.4), kinds=KINDS).aggregation.notes
    )


def test_kinds_that_do_not_differ_are_not() -> None:
    clear = sum(
        aggregate(opposed(80, share=0.0, seed=seed), "majority", kinds=KINDS).differences[0].clear for seed in range(20)
    )
    assert clear <= 2


def test_equal_weights_keep_the_smaller_kind_in_view() -> None:
    groups = [pair(f"g{n}", *[vote(float(name[0] == "n"), name) for name in KINDS]) for n in range(10)]
    together = aggregate(groups, "majority", kinds=KINDS).aggregation.pairs.p
    apart = aggregate(groups, "majority", kinds=KINDS, kind_weights="equal").aggregation
    np.testing.assert_allclose(together, (3 + 1) / (5 + 2))
    np.testing.assert_allclose(apart.pairs.p, ((3 + 1) / (3 + 2) + 1 / (2 + 2)) / 2)
    assert apart.pairs.num_votes.tolist() == [5] * 10
    assert {person.name for person in apart.annotators} == set(KINDS)
    doctors = aggregate(groups, "majority", kinds=KINDS, kind_weights="nurses=1, doctors=3").aggregation.pairs.p
    np.testing.assert_allclose(doctors, ((3 + 1) / (3 + 2) + 3 * 1 / (2 + 2)) / 4)


def test_a_pair_that_one_kind_skipped_is_the_others() -> None:
    groups = [pair("both", vote(1.0, "n1"), vote(0.0, "d1")), pair("one", vote(1.0, "n1"))]
    p = aggregate(groups, "majority", kinds=KINDS, kind_weights="equal").aggregation.pairs.p
    np.testing.assert_allclose(p, [0.5, 2 / 3])


def test_kinds_are_read(tmp_path: Path) -> None:
    table = tmp_path / "who.csv"
    table.write_text("annotator,group\nn1,nurses\nd1,doctors\n", encoding="utf-8")
    assert read_kinds(table) == {"n1": "nurses", "d1": "doctors"}
    table = tmp_path / "who.json"
    table.write_text('{"n1": "nurses"}', encoding="utf-8")
    assert read_kinds(table) == {"n1": "nurses"}


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("a.csv", "who,group\nn1,nurses\n", "isn't a table"),
        ("b.csv", "annotator,group\nn1,nurses\nn1,doctors\n", "in two groups"),
        ("c.json", "{", "can't be read"),
        ("d.json", "[1]", "isn't a table"),
        ("e.json", '{"n1": 3}', "isn't a table"),
    ],
)
def test_kinds_that_cannot_be_read(tmp_path: Path, name: str, text: str, problem: str) -> None:
    file = tmp_path / name
    file.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=problem):
        read_kinds(file)
    with pytest.raises(DataError, match="can't be read"):
        read_kinds(tmp_path / "missing.csv")


@pytest.mark.parametrize("weights", ["nurse=1", "nurses=1", "nurses=0,doctors=1", "nurses=x,doctors=1"])
def test_weights_that_mean_nothing(weights: str) -> None:
    with pytest.raises(ConfigError, match="--group_weights"):
        aggregate(opposed(3, share=0.0), kinds=KINDS, kind_weights=weights)


def test_an_annotator_without_a_kind() -> None:
    with pytest.raises(DataError, match=r"'x'.*in no group"):
        aggregate([pair("g", vote(1.0, "x"))], kinds=KINDS)


def test_the_command_line(command: Say, tmp_path: Path) -> None:
    data, output, report = tmp_path / "votes.jsonl", tmp_path / "labels.jsonl", tmp_path / "report"
    save_groups(crowd(pairs=60, biases=(0.5,) * 5, seed=1).groups, data)
    status, out, err = command("aggregate", "--data", data, "--output", output, "--report", report)
    assert (status, err) == (0, "")
    assert out.splitlines()[0].split()[:3] == ["annotator", "votes", "right"]
    assert f"{output}: 60 pairs, 60 groups" in out
    assert all(group.judgments[0].annotator == "aggregate/one_coin" for group in dipole.load_groups(output))
    found = json.loads((report / "aggregate.json").read_text(encoding="utf-8"))
    assert {person["name"] for person in found["annotators"]} == {f"a{k}" for k in range(5)}
    page = (report / "aggregate.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert page.count("<svg") == 3


def test_names_of_annotators_are_inert_in_the_page(command: Say, tmp_path: Path) -> None:
    data = tmp_path / "votes.jsonl"
    save_groups([pair("g", vote(1.0, "<script>alert(1)</script>"), vote(1.0, "b"))], data)
    command("aggregate", "--data", data, "--output", tmp_path / "l.jsonl", "--report", tmp_path)
    assert "<script>" not in (tmp_path / "aggregate.html").read_text(encoding="utf-8")


def test_kinds_on_the_command_line(command: Say, tmp_path: Path) -> None:
    data, who = tmp_path / "votes.jsonl", tmp_path / "who.json"
    save_groups(opposed(60, share=0.5), data)
    who.write_text(json.dumps(KINDS), encoding="utf-8")
    argv = ("aggregate", "--data", data, "--output", tmp_path / "l.jsonl", "--annotator_groups", who)
    status, out, _ = command(*argv)
    assert status == 0
    assert "doctors and nurses: votes agree in" in out
    assert "Note: doctors and nurses differ" in out
    status, out, _ = command(*argv, "--group_weights", "equal", "--report", tmp_path / "r")
    assert status == 0
    assert "Note: doctors and nurses differ" not in out
    assert "doctors and nurses" in (tmp_path / "r" / "aggregate.html").read_text(encoding="utf-8")


def test_what_is_read_is_not_written_over(command: Say, tmp_path: Path) -> None:
    data = tmp_path / "votes.jsonl"
    save_groups([pair("g", vote(1.0, "a"))], data)
    before = data.read_bytes()
    status, _, err = command("aggregate", "--data", data, "--output", data)
    assert status == 2
    assert "Name another" in err
    assert data.read_bytes() == before
