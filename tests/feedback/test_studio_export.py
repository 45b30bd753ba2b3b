"""From votes to groups: what a vote becomes, and that an export is of one moment."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from studio_site import Site, ballot, event, make_groups, open_site

from dipole.data.formats import load_groups, save_groups
from dipole.data.reduce import pair_labels
from dipole.errors import ConfigError, DataError
from dipole.feedback.export import export_groups
from dipole.feedback.monitor import overview
from dipole.group import Comparison, Group

Command = Callable[..., tuple[int, str, str]]


def judge(site: Site, name: str, choose: Callable[[int, int], dict[str, object]]) -> None:
    """Has a person answer all pairs; ``choose`` gets the positions that stand left and right."""
    person = site.store.person(name)
    desk = site.queue.desk(person)
    while desk.assignments:
        site.clock.now += 1
        shown = desk.assignments[0]
        desk = site.queue.answer(person, ballot(shown.key, **choose(shown.left, shown.right)))


def lower(left: int, right: int) -> dict[str, object]:
    """Prefers the completion of lower position, wherever it stands."""
    return {"choice": "left" if left < right else "right"}


@pytest.mark.parametrize(
    ("said", "p"),
    [
        ({"choice": "left"}, 1.0),
        ({"choice": "left", "slightly": True}, 0.75),
        ({"choice": "tie"}, 0.5),
        ({"choice": "both bad"}, 0.5),
        ({"choice": "right", "slightly": True}, 0.25),
        ({"choice": "right"}, 0.0),
    ],
)
def test_a_vote_becomes_a_comparison_of_left_and_right(tmp_path: Path, said: dict[str, object], p: float) -> None:
    site = open_site(tmp_path, make_groups(1))
    anna = site.store.person("Anna")
    shown = site.queue.desk(anna).assignments[0]
    vote = ballot(shown.key, reason="since", ms=2500, **said)
    site.queue.answer(anna, vote)
    (group,) = export_groups(site.store, make_groups(1))
    (judgment,) = group.judgments
    assert judgment == Comparison(i=shown.left, j=shown.right, p=p, annotator="Anna", meta=judgment.meta)
    assert judgment.meta == {
        "vote": vote.id,
        "shown_first": shown.left,
        "choice": said["choice"],
        "seconds": 2.5,
        "at": "1970-01-12T13:46:40+00:00",
        "selection": {
            "strategy": "random",
            "arm": judgment.meta["selection"]["arm"],
            "probability": 1.0,
            "eligible": 1,
        },
        "reason": "since",
    }


def test_whoever_stands_left_the_same_answer_wins(tmp_path: Path) -> None:
    groups = make_groups(30)
    site = open_site(tmp_path, groups, votes_per_pair=2)
    for name in ("Anna", "Ben"):
        judge(site, name, lower)
    exported = list(export_groups(site.store, groups))
    assert {judgment.i for group in exported for judgment in group.judgments if isinstance(judgment, Comparison)} == {
        0,
        1,
    }
    for group in exported:
        (label,) = pair_labels(group)
        assert (label.i, label.j, label.p, label.weight) == (0, 1, 1.0, 2.0)


def test_skips_and_what_was_taken_back_arent_exported(tmp_path: Path) -> None:
    groups = make_groups(2)
    site = open_site(tmp_path, groups)
    anna = site.store.person("Anna")
    site.queue.answer(anna, ballot(site.queue.desk(anna).assignments[0].key, "skip"))
    site.queue.answer(anna, ballot(site.queue.desk(anna).assignments[0].key, "left"))
    site.queue.undo(anna, event())
    assert list(export_groups(site.store, groups)) == groups


def test_judgments_of_the_data_stay_and_a_second_export_adds_nothing(tmp_path: Path) -> None:
    groups = [replace(group, judgments=(Comparison(i=0, j=1, annotator="judge"),)) for group in make_groups(3)]
    site = open_site(tmp_path, groups)
    judge(site, "Anna", lower)
    once = list(export_groups(site.store, groups))
    assert [judgment.annotator for judgment in once[0].judgments] == ["judge", "Anna"]
    assert list(export_groups(site.store, once)) == once


def test_the_same_votes_give_the_same_bytes_and_they_can_be_read(tmp_path: Path) -> None:
    site = open_site(tmp_path, make_groups(5))
    judge(site, "Anna", lower)
    for name in ("a.jsonl", "b.jsonl"):
        save_groups(export_groups(site.store, make_groups(5)), tmp_path / name)
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    assert load_groups(tmp_path / "a.jsonl") == list(export_groups(site.store, make_groups(5)))


def test_votes_of_other_texts_are_refused(tmp_path: Path) -> None:
    groups = make_groups(2)
    site = open_site(tmp_path, groups)
    judge(site, "Anna", lower)
    changed = [groups[0], replace(groups[1], prompt="Another question?")]
    with pytest.raises(DataError, match="group 'g1': people were asked about other texts"):
        list(export_groups(site.store, changed))


@pytest.mark.parametrize("slightly", [0.4, 1.1])
def test_slightly_is_a_probability_of_being_better(tmp_path: Path, slightly: float) -> None:
    site = open_site(tmp_path)
    with pytest.raises(ConfigError, match="outside of"):
        list(export_groups(site.store, [], slightly=slightly))


def test_an_export_while_people_vote_is_of_one_moment(tmp_path: Path) -> None:
    """Each export has the first votes in the order in which they were given, none missing in between."""
    groups = make_groups(120)
    site = open_site(tmp_path, groups)
    running = threading.Thread(target=judge, args=(site, "Anna", lower))
    running.start()
    sizes = []
    while running.is_alive():
        exported = list(export_groups(site.store, groups))
        times = sorted(judgment.meta["at"] for group in exported for judgment in group.judgments)
        sizes.append(len(times))
    running.join()
    assert sizes == sorted(sizes)
    assert len({size for size in sizes if 0 < size < 120}) > 1, "some exports were made in the middle"


def test_the_command_line_exports(tmp_path: Path, command: Command) -> None:
    data, votes, out = tmp_path / "groups.jsonl", tmp_path / "votes.db", tmp_path / "out.jsonl"
    save_groups(make_groups(4), data)
    status, _, problem = command("annotate", "--data", data, "--store", votes, "--export", out)
    assert (status, "there is no such store" in problem) == (3, True)
    site = open_site(tmp_path, make_groups(4))
    judge(site, "Anna", lower)
    status, said, _ = command("annotate", "--data", data, "--store", votes, "--export", out)
    assert (status, said) == (0, f"{out}: 4 groups, 4 votes\n")
    assert all(isinstance(group, Group) and len(group.judgments) == 1 for group in load_groups(out))


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (("--host", "0.0.0.0"), "everyone needs an address of their own"),
        (("--host", "192.168.0.7"), "everyone needs an address of their own"),
        (("--people", "Anna,Anna"), "each once"),
        (("--people", " , "), "one person or more"),
        (("--strategy", "diverse", "--predictions", "judge"), "'diverse' asks no model"),
        (("--strategy", "hardest"), "has to be one of random, uncertain"),
        (("--random_share", "2"), "above 0 and at most 1"),
        (("--random_share", "0"), "above 0 and at most 1"),
        (("--export", "out.jsonl", "--port", "80"), "--port: means nothing in an export"),
        (("--votes_per_pair", "0"), "at least 1"),
        (("--lease_minutes", "0"), "more than 0"),
        (("--port", "70000"), "between 0 and 65535"),
    ],
)
def test_what_the_command_line_refuses(tmp_path: Path, command: Command, flags: tuple[str, ...], problem: str) -> None:
    save_groups(make_groups(2), tmp_path / "groups.jsonl")
    status, _, said = command("annotate", "--data", tmp_path / "groups.jsonl", "--store", tmp_path / "v.db", *flags)
    assert status == 2
    assert problem in said


def test_the_overview_by_hand(tmp_path: Path) -> None:
    """Three pairs, two votes each: Anna always takes the left side, Ben the answer of lower position."""
    groups = make_groups(3)
    site = open_site(tmp_path, groups, votes_per_pair=2)
    judge(site, "Anna", lambda left, right: {"choice": "left", "ms": 2000})
    judge(site, "Ben", lambda left, right: {**lower(left, right), "ms": 4000})
    work = overview(site.store, 2, site.clock.now)
    anna, ben = work.people
    assert (work.pairs, work.begun, work.complete, work.votes, work.shared) == (3, 3, 3, 6, 3)
    exported = export_groups(site.store, groups)
    same = [len({(j.i if j.p == 1 else j.j) for j in group.judgments}) == 1 for group in exported]  # type: ignore[attr-defined]
    assert work.agreement is not None
    assert work.agreement.raw == pytest.approx(sum(same) / 3)
    assert (anna.agree, ben.agree) == (pytest.approx(sum(same) / 3),) * 2
    assert (anna.name, anna.votes, anna.left, anna.seconds, anna.skips) == ("Anna", 3, 1.0, 2.0, 0)
    assert (ben.seconds, ben.holds, ben.at) == (4.0, 0, site.clock.now)


def test_the_overview_tells_a_side_from_chance(tmp_path: Path) -> None:
    site = open_site(tmp_path, make_groups(12), votes_per_pair=2)
    judge(site, "Anna", lambda left, right: {"choice": "left"})
    judge(site, "Ben", lower)
    anna, ben = overview(site.store, 2, site.clock.now).people
    assert anna.is_one_sided
    assert not ben.is_one_sided


def test_the_overview_of_nothing(tmp_path: Path) -> None:
    site = open_site(tmp_path)
    work = overview(site.store, 1, 0.0)
    assert (work.votes, work.agreement, work.people) == (0, None, ())
    answer_nothing = site.person("Anna").post("/api/pairs", json={})
    assert answer_nothing.status_code == 200
    (anna,) = overview(site.store, 1, site.clock.now).people
    assert (anna.left, anna.agree, anna.seconds, anna.at, anna.holds) == (None, None, None, None, 3)
    assert not anna.is_one_sided
