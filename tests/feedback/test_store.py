"""The store: what is on the disk, what is refused, and that nothing said is ever lost or changed."""

from __future__ import annotations

import os
import sqlite3
import stat
from pathlib import Path
from random import Random

import pytest
import sqlalchemy as sql
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from studio_site import ballot, event, make_groups, open_site

from dipole.errors import ConfigError, DataError
from dipole.feedback import store as module
from dipole.feedback.active.pool import pool_of
from dipole.feedback.queue import CHOICES, Queue, Refused, Rules
from dipole.feedback.store import Item, Store, assignment, digest, open_store, pair, vote


def items(count: int = 3, text: str = "") -> list[Item]:
    return [Item(group_id=f"g{number}", i=0, j=1, digest=f"{number}{text}") for number in range(count)]


def opened(store: Store, group_id: str) -> None:
    with store.write() as connection:
        connection.execute(sql.update(pair).where(pair.c.group_id == group_id).values(opened=1))


def active(store: Store) -> list[str]:
    with store.read() as connection:
        return list(connection.scalars(sql.select(pair.c.group_id).where(pair.c.active).order_by(pair.c.id)))


def test_a_new_store_is_its_owners_and_durable(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "sub" / "votes.db"))
    with store.write() as connection:
        for pragma, value in (("journal_mode", "wal"), ("synchronous", 2), ("foreign_keys", 1)):
            assert connection.exec_driver_sql(f"PRAGMA {pragma}").scalar() == value
        for file in (tmp_path / "sub").iterdir():
            assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
    assert len(store.secret) == 64
    assert store.secret != open_store(str(tmp_path / "other.db")).secret
    assert store.secret == open_store(str(tmp_path / "sub" / "votes.db")).secret


def test_pairs_come_rest_and_come_back(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "votes.db"))
    store.register(items(3))
    store.register(items(2))
    assert active(store) == ["g0", "g1"]
    store.register(items(4))
    assert active(store) == ["g0", "g1", "g2", "g3"]


def test_texts_may_change_until_somebody_saw_them(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "votes.db"))
    store.register(items(2))
    store.register(items(2, "changed"))
    opened(store, "g1")
    store.register(items(2, "changed"))
    with pytest.raises(DataError, match="group 'g1': people were asked about other texts"):
        store.register(items(2))


def test_a_digest_tells_texts_apart_and_ignores_what_nobody_sees() -> None:
    one, other = make_groups(2)
    assert digest(one, 0, 1) != digest(other, 0, 1)
    assert digest(one, 0, 1) != digest(one, 1, 0)
    assert digest(one, 0, 1) == digest(make_groups(1)[0], 0, 1)


def test_a_person_has_one_number(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "votes.db"))
    assert [store.person(name) for name in ("Anna", "Ben", "Anna")] == [1, 2, 1]
    assert store.names() == ["Anna", "Ben"]


def test_a_good_store_is_copied_when_it_is_opened(tmp_path: Path) -> None:
    path = tmp_path / "votes.db"
    open_store(str(path)).person("Anna")
    open_store(str(path))
    copy = sqlite3.connect(tmp_path / "votes.db.backup")
    assert copy.execute("SELECT name FROM person").fetchall() == [("Anna",)]
    assert stat.S_IMODE((tmp_path / "votes.db.backup").stat().st_mode) == 0o600
    assert not list(tmp_path.glob("*.backup.*"))


def test_a_damaged_store_is_refused_and_its_copy_named(tmp_path: Path) -> None:
    path = tmp_path / "votes.db"
    open_store(str(path)).close()
    open_store(str(path)).close()
    path.write_bytes(b"not a database, and long enough to be looked at" * 100)
    with pytest.raises(DataError, match=r"can't be used as a store of votes .*votes\.db\.backup"):
        open_store(str(path))


def test_a_store_with_a_broken_page_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "votes.db"
    store = open_store(str(path))
    store.register(items(500))
    store.close()
    content = bytearray(path.read_bytes())
    content[3 * 4096 : 6 * 4096] = os.urandom(3 * 4096)
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"damaged|can't be used"):
        open_store(str(path))


def test_a_later_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "votes.db"
    open_store(str(path)).close()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE setting SET value = '2' WHERE name = 'schema'")
    with pytest.raises(DataError, match="newer Dipole"):
        open_store(str(path))


def test_a_database_of_something_else_is_refused(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "other.db") as connection:
        connection.execute("CREATE TABLE songs (name TEXT)")
    with pytest.raises(DataError, match="something else"):
        open_store(str(tmp_path / "other.db"))


@pytest.mark.parametrize(
    ("where", "problem"),
    [("postgresql://me:hunter2@db/votes", "password"), ("mysql://db/votes", "no database that Dipole knows")],
)
def test_addresses_that_are_refused(where: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem) as caught:
        open_store(where)
    assert "hunter2" not in str(caught.value)


def test_a_folder_that_cant_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="can't be written"):
        open_store(str(tmp_path / "file" / "votes.db"))


def test_a_writer_who_waits_too_long_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BUSY_SECONDS", 0.1)
    store = open_store(str(tmp_path / "votes.db"))
    other = sqlite3.connect(tmp_path / "votes.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(sql.exc.OperationalError, match="locked"):
        store.person("Anna")
    assert store.names() == [], "readers aren't held up"
    other.execute("ROLLBACK")
    assert store.person("Anna") == 1


def test_a_reader_sees_one_moment(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "votes.db"))
    count = sql.select(sql.func.count()).select_from(pair)
    with store.read() as reader:
        assert reader.scalar(count) == 0
        store.register(items(3))
        assert reader.scalar(count) == 0
    with store.read() as reader:
        assert reader.scalar(count) == 3


ACTS = st.lists(
    st.tuples(
        st.integers(0, 2),  # who
        st.sampled_from([*CHOICES, "undo", "again", "wait"]),
        st.integers(0, 2),  # which of the pairs that lie before them
    ),
    max_size=25,
)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(acts=ACTS, overlap=st.integers(1, 3))
def test_what_counts_is_what_the_events_say(
    tmp_path_factory: pytest.TempPathFactory, acts: list[tuple[int, str, int]], overlap: int
) -> None:
    """Whatever people do: events are only added, and every table agrees with a replay of them."""
    site = open_site(tmp_path_factory.mktemp("site"), make_groups(4), votes_per_pair=overlap, lease_seconds=50)
    queue, store = site.queue, site.store
    people = [store.person(name) for name in ("Anna", "Ben", "Cleo")]
    events: list[sql.Row] = []
    said = []
    for who, act, place in acts:
        lying = queue.desk(people[who]).assignments
        if act == "wait":
            site.clock.now += 30
        elif act == "undo":
            queue.undo(people[who], event())
        elif act == "again" and said:
            queue.answer(*said[place % len(said)])
        elif lying and act in CHOICES:
            vote_ = ballot(lying[place % len(lying)].key, act)
            queue.answer(people[who], vote_)
            said.append((people[who], vote_))
        with store.read() as connection:
            now = list(connection.execute(sql.select(vote).order_by(vote.c.seq)))
        assert now[: len(events)] == events, "an event was changed"
        events = now
        check_against_replay(store, events, overlap)


def check_against_replay(store: Store, events: list[sql.Row], overlap: int) -> None:
    last = {row.assignment_id: row for row in events}
    with store.read() as connection:
        for row in connection.execute(sql.select(assignment)):
            choice = last[row.id].choice if row.id in last else "undo"
            assert row.state == {"undo": "held", "skip": "skipped"}.get(choice, "voted")
            assert row.last == (last[row.id].id if row.id in last else None)
        votes = sql.select(sql.func.count()).where(assignment.c.state == "voted", assignment.c.pair_id == pair.c.id)
        for row in connection.execute(sql.select(pair.c.votes, votes.scalar_subquery().label("counted"))):
            assert row.votes == row.counted <= overlap


def test_events_of_one_pair_are_a_chain(tmp_path: Path) -> None:
    site = open_site(tmp_path, make_groups(1))
    anna = site.store.person("Anna")
    key = site.queue.desk(anna).assignments[0].key
    site.queue.answer(anna, ballot(key, "left"))
    site.queue.undo(anna, event())
    site.queue.answer(anna, ballot(key, "right"))
    with site.store.read() as connection:
        first, undone, second = connection.execute(sql.select(vote).order_by(vote.c.seq))
    assert [row.choice for row in (first, undone, second)] == ["left", "undo", "right"]
    assert [row.supersedes for row in (first, undone, second)] == [None, first.id, undone.id]


def test_two_stores_on_one_file_take_turns(tmp_path: Path) -> None:
    site = open_site(tmp_path, make_groups(3))
    second = Queue(open_store(str(tmp_path / "votes.db")), Rules(), random=Random(1), clock=site.clock)
    anna, ben = site.store.person("Anna"), second.store.person("Ben")
    first = {item.group_id for item in site.queue.desk(anna).assignments}
    assert len(first) == 3
    assert not second.desk(ben).assignments, "Anna holds them all"
    with pytest.raises(Refused):
        second.answer(ben, ballot(site.queue.desk(anna).assignments[0].key))


def test_every_two_different_answers_are_a_pair() -> None:
    groups = make_groups(2, answers=3)
    assert pool_of(groups).keys == [(f"g{n}", i, j) for n in (0, 1) for i, j in ((0, 1), (0, 2), (1, 2))]
