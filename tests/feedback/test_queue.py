"""Handing out pairs and taking votes: leases, overlap, undo, and what is refused."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import sqlalchemy as sql
from studio_site import Site, ballot, event, make_groups, open_site

from dipole.feedback import queue as module
from dipole.feedback.queue import AHEAD, Refused
from dipole.feedback.store import assignment, pair
from dipole.feedback.votes import current_votes


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return open_site(tmp_path, make_groups(6), lease_seconds=100)


def votes_of(site: Site) -> dict[str, list[str]]:
    """Group → who voted on its pair."""
    found: dict[str, list[str]] = {}
    with site.store.read() as connection:
        for vote in current_votes(connection):
            if vote.choice != "skip":
                found.setdefault(vote.group_id, []).append(vote.annotator)
    return found


def judge_all(site: Site, person: int) -> int:
    count, desk = 0, site.queue.desk(person)
    while desk.assignments:
        desk = site.queue.answer(person, ballot(desk.assignments[0].key))
        count += 1
    return count


def test_the_same_pairs_lie_there_after_a_reload(site: Site) -> None:
    anna = site.store.person("Anna")
    first = site.queue.desk(anna)
    assert len(first.assignments) == AHEAD
    assert site.queue.desk(anna) == first
    assert (first.answered, first.left) == (0, 6)


def test_an_answer_brings_the_next_pair_and_progress(site: Site) -> None:
    anna = site.store.person("Anna")
    before = site.queue.desk(anna)
    after = site.queue.answer(anna, ballot(before.assignments[0].key))
    assert after.assignments[: AHEAD - 1] == before.assignments[1:]
    assert (after.answered, after.left) == (1, 5)
    assert judge_all(site, anna) == 5
    assert site.queue.desk(anna).left == 0


@pytest.mark.parametrize("overlap", [1, 2, 3])
def test_each_pair_gets_its_votes_from_different_people(tmp_path: Path, overlap: int) -> None:
    site = open_site(tmp_path, make_groups(7), votes_per_pair=overlap)
    people = [site.store.person(f"p{number}") for number in range(4)]
    desks = {person: site.queue.desk(person) for person in people}
    while any(desk.assignments for desk in desks.values()):
        for person in people:
            if lying := site.queue.desk(person).assignments:
                site.queue.answer(person, ballot(lying[0].key))
            desks[person] = site.queue.desk(person)
    votes = votes_of(site)
    assert len(votes) == 7
    assert all(len(names) == len(set(names)) == overlap for names in votes.values())


def test_pairs_that_are_begun_are_finished_first(tmp_path: Path) -> None:
    site = open_site(tmp_path, make_groups(20), votes_per_pair=2)
    anna, ben = site.store.person("Anna"), site.store.person("Ben")
    for _ in range(5):
        site.queue.answer(anna, ballot(site.queue.desk(anna).assignments[0].key))
    for _ in range(5):
        site.queue.answer(ben, ballot(site.queue.desk(ben).assignments[0].key))
    votes = votes_of(site)
    assert len(votes) == 5
    assert all(sorted(names) == ["Anna", "Ben"] for names in votes.values())


def test_a_vote_that_is_sent_again_counts_once(site: Site) -> None:
    anna = site.store.person("Anna")
    said = ballot(site.queue.desk(anna).assignments[0].key)
    first = site.queue.answer(anna, said)
    assert site.queue.answer(anna, said) == first
    assert sum(map(len, votes_of(site).values())) == 1


def test_the_number_of_somebody_elses_vote_is_refused(site: Site) -> None:
    anna, ben = site.store.person("Anna"), site.store.person("Ben")
    said = ballot(site.queue.desk(anna).assignments[0].key)
    site.queue.answer(anna, said)
    with pytest.raises(Refused, match="same number"):
        site.queue.answer(ben, said)


def test_a_pair_is_answered_once_however_many_tabs_show_it(site: Site) -> None:
    anna = site.store.person("Anna")
    key = site.queue.desk(anna).assignments[0].key
    site.queue.answer(anna, ballot(key, "left"))
    with pytest.raises(Refused, match="already"):
        site.queue.answer(anna, ballot(key, "right"))


def test_others_pairs_and_unknown_ones_are_refused(site: Site) -> None:
    anna, ben = site.store.person("Anna"), site.store.person("Ben")
    key = site.queue.desk(anna).assignments[0].key
    for who, what in ((ben, key), (anna, "nonsense")):
        with pytest.raises(Refused, match="any more"):
            site.queue.answer(who, ballot(what))


def test_a_pair_that_left_the_data_is_refused(site: Site, tmp_path: Path) -> None:
    anna = site.store.person("Anna")
    lying = site.queue.desk(anna).assignments
    gone = lying[0].group_id
    site.store.register([])
    with pytest.raises(Refused, match="any more"):
        site.queue.answer(anna, ballot(lying[0].key))
    assert not site.queue.desk(anna).assignments
    assert gone not in votes_of(site)


def test_what_somebody_left_comes_to_others_when_its_lease_runs_out(tmp_path: Path) -> None:
    site = open_site(tmp_path, make_groups(3), lease_seconds=100)
    anna, ben = site.store.person("Anna"), site.store.person("Ben")
    lying = site.queue.desk(anna).assignments
    assert not site.queue.desk(ben).assignments
    assert site.queue.desk(ben).left == 3
    site.clock.now += 99
    assert not site.queue.desk(ben).assignments
    site.clock.now += 2
    assert judge_all(site, ben) == 3
    with pytest.raises(Refused, match="others answered"):
        site.queue.answer(anna, ballot(lying[0].key))
    assert votes_of(site) == {group: ["Ben"] for group in votes_of(site)}


def test_nobody_is_refused_who_still_holds_a_pair(tmp_path: Path) -> None:
    """Anna's lease runs out, Ben takes the pair, Anna comes back: she has to wait for Ben, not the other way round."""
    site = open_site(tmp_path, make_groups(1), lease_seconds=100)
    anna, ben = site.store.person("Anna"), site.store.person("Ben")
    late = site.queue.desk(anna).assignments[0]
    site.clock.now += 101
    held = site.queue.desk(ben).assignments[0]
    with pytest.raises(Refused):
        site.queue.answer(anna, ballot(late.key))
    site.queue.answer(ben, ballot(held.key))
    assert votes_of(site) == {"g0": ["Ben"]}


def test_a_late_vote_counts_while_nobody_else_has_the_pair(site: Site) -> None:
    anna = site.store.person("Anna")
    lying = site.queue.desk(anna).assignments
    site.clock.now += 10_000
    site.queue.answer(anna, ballot(lying[0].key))
    assert len(votes_of(site)) == 1


def test_a_skip_goes_to_others_and_isnt_a_vote(tmp_path: Path) -> None:
    site = open_site(tmp_path, make_groups(1))
    anna, ben = site.store.person("Anna"), site.store.person("Ben")
    desk = site.queue.answer(anna, ballot(site.queue.desk(anna).assignments[0].key, "skip"))
    assert (desk.assignments, desk.answered, desk.left) == ((), 0, 0)
    assert judge_all(site, ben) == 1
    assert votes_of(site) == {"g0": ["Ben"]}


def test_undo_goes_back_one_by_one_and_a_new_answer_counts(site: Site) -> None:
    anna = site.store.person("Anna")
    order = []
    for choice in ("left", "skip", "tie"):
        order.append(site.queue.desk(anna).assignments[0])
        site.queue.answer(anna, ballot(order[-1].key, choice))
    for back in reversed(order):
        desk = site.queue.undo(anna, event())
        assert desk.assignments[0] == back, "with its sides as they were"
    assert desk.answered == 0
    assert site.queue.undo(anna, event()).answered == 0, "there is nothing left to take back"
    site.queue.answer(anna, ballot(order[0].key, "right"))
    assert site.queue.desk(anna).assignments[:2] == (order[1], order[2])
    with site.store.read() as connection:
        assert [vote.choice for vote in current_votes(connection)] == ["right"]


def test_an_undo_that_is_sent_again_takes_back_one(site: Site) -> None:
    anna = site.store.person("Anna")
    for _ in range(2):
        site.queue.answer(anna, ballot(site.queue.desk(anna).assignments[0].key))
    id = event()
    assert site.queue.undo(anna, id) == site.queue.undo(anna, id)
    assert site.queue.desk(anna).answered == 1


def test_what_isnt_asked_about_any_more_isnt_taken_back(tmp_path: Path) -> None:
    """Otherwise a vote would go that its person can neither see nor give again."""
    groups = make_groups(3)
    site = open_site(tmp_path, groups)
    anna = site.store.person("Anna")
    order = []
    for _ in range(2):
        order.append(site.queue.desk(anna).assignments[0])
        site.queue.answer(anna, ballot(order[-1].key))
    open_site(tmp_path, [group for group in groups if group.id != order[1].group_id], store=site.store)
    assert site.queue.undo(anna, event()).assignments[0] == order[0]
    assert votes_of(site) == {order[1].group_id: ["Anna"]}


def test_an_undone_pair_stays_its_persons(tmp_path: Path) -> None:
    site = open_site(tmp_path, make_groups(1))
    anna, ben = site.store.person("Anna"), site.store.person("Ben")
    key = site.queue.desk(anna).assignments[0].key
    site.queue.answer(anna, ballot(key))
    site.queue.undo(anna, event())
    assert not site.queue.desk(ben).assignments
    site.queue.answer(anna, ballot(key, "right"))
    assert votes_of(site) == {"g0": ["Anna"]}


def test_a_persons_sides_are_drawn_once_and_fairly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AHEAD", 200)
    site = open_site(tmp_path, make_groups(200), votes_per_pair=2)
    people = [site.store.person(name) for name in ("Anna", "Ben")]
    for person in people:
        assert site.queue.desk(person) == site.queue.desk(person)
    with site.store.read() as connection:
        rows = list(connection.execute(sql.select(assignment).order_by(assignment.c.pair_id, assignment.c.person_id)))
    for person in people:
        swapped = sum(row.swapped for row in rows if row.person_id == person)
        assert abs(swapped - 100) < 4 * 50**0.5, "four standard deviations of 200 fair coins"
    both = Counter((rows[n].swapped, rows[n + 1].swapped) for n in range(0, 400, 2))
    assert all(abs(count - 50) < 4 * 37.5**0.5 for count in both.values()), "each person's order is their own"


def test_disagreed_pairs_come_first_to_the_third_person(tmp_path: Path) -> None:
    site = open_site(tmp_path, make_groups(4), strategy="disagreed", votes_per_pair=3, random_share=1e-12)
    anna, ben, cleo = (site.store.person(name) for name in ("Anna", "Ben", "Cleo"))
    for person in (anna, ben):
        while lying := site.queue.desk(person).assignments:
            item = lying[0]
            wants = 0 if person == anna or item.group_id != "g2" else 1
            site.queue.answer(person, ballot(item.key, "left" if item.left == wants else "right"))
    assert site.queue.desk(cleo).assignments[0].group_id == "g2"
    with site.store.read() as connection:
        rows = connection.execute(sql.select(pair.c.group_id, pair.c.priority))
        priority = {row.group_id: row.priority for row in rows}
    assert priority["g2"] > priority["g0"] == priority["g1"] == priority["g3"]


def test_no_answer_reads_what_grows_with_the_votes(tmp_path: Path) -> None:
    """As many statements in a large store as in a small one, and none that reads through all assignments or events."""
    counts = []
    for size in (20, 2_000):
        site = open_site(tmp_path / str(size), make_groups(size), votes_per_pair=2)
        anna = site.store.person("Anna")
        judged = size // 2  # that wait for a second vote: none of these is asked again
        with site.store.write() as connection:
            connection.execute(sql.update(pair).where(pair.c.id <= judged).values(opened=pair.c.id, votes=1))
            columns = (
                sql.cast(pair.c.id, sql.String),
                pair.c.id,
                anna,
                sql.false(),
                sql.literal("voted"),
                0.0,
                pair.c.id,
            )
            connection.execute(
                sql.insert(assignment).from_select(
                    ["key", "pair_id", "person_id", "swapped", "state", "expires", "turn"],
                    sql.select(*columns).where(pair.c.id <= judged),
                )
            )
        key = site.queue.desk(anna).assignments[0].key
        said: list[tuple[str, object]] = []

        @sql.event.listens_for(site.store._engine, "before_cursor_execute")
        def heard(_: object, __: object, words: str, values: object, *___: object, said: list = said) -> None:
            said.append((words, values))

        site.queue.answer(anna, ballot(key))
        sql.event.remove(site.store._engine, "before_cursor_execute", heard)
        counts.append(len(said))
        with site.store.read() as connection:
            for words, values in said:
                if words.startswith(("SELECT", "UPDATE")):
                    plan = [row.detail for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {words}", values)]
                    assert not [step for step in plan if step.startswith(("SCAN assignment", "SCAN vote"))], words
    assert counts[0] == counts[1] > 5
