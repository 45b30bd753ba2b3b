"""Hands out pairs and takes votes: leases, overlap, undo, and each person's own progress.

A pair is *opened* when it is first asked about, and then goes to as many people as it needs votes from, before others
are opened. Whoever is shown a pair holds a lease on it. Leases keep others from answering what would be a vote too
many; they run out, so nobody waits for a person who left.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import Random, SystemRandom
from typing import TYPE_CHECKING, Any, Literal, get_args

import sqlalchemy as sql
from sqlalchemy.engine import Connection

from dipole.errors import ConfigError, DipoleError
from dipole.feedback.active.choose import Origin, check_share, draw, draw_probability
from dipole.feedback.active.pool import PairKey
from dipole.feedback.active.strategies import Strategy
from dipole.feedback.assign import disagreement
from dipole.feedback.store import Store, assignment, pair, selection, vote
from dipole.feedback.votes import SLIGHTLY, probability_of

if TYPE_CHECKING:
    from sqlalchemy.engine import Row

    Found = Row[*tuple[Any, ...]]  # of any columns; SQLAlchemy 2.0 can't say that when it runs

Choice = Literal["left", "right", "tie", "both bad", "skip"]
CHOICES: tuple[Choice, ...] = get_args(Choice)

AHEAD = 3
"""Pairs that a person holds: the one on the page, and those that are loaded already."""

SECONDS_LIMIT = 24 * 3600
REASON_LIMIT = 4_000
"""Characters of a reason."""


_HELD = sql.select(assignment, pair.c.group_id, pair.c.i, pair.c.j, pair.c.active, pair.c.votes).select_from(
    assignment.join(pair)
)
"""Assignments with their pairs."""


class Refused(DipoleError):
    """A vote can't be taken, and sending it again won't help: the pair is answered, full or gone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """How pairs are handed out.

    Args:
        strategy: see ``assign.priorities``.
        random_share: share of pairs that are drawn at random, whatever the strategy; above 0.
        votes_per_pair: how many people judge each pair.
        lease_seconds: how long a pair is kept for the person who looks at it.
        slightly: the probability that "slightly better" stands for, ½ to 1.

    Raises:
        ConfigError: a share or a probability is out of range.
    """

    strategy: Strategy = "random"
    random_share: float = 0.1
    votes_per_pair: int = 1
    lease_seconds: float = 900.0
    slightly: float = SLIGHTLY

    def __post_init__(self) -> None:
        check_share(self.random_share)
        if not 0.5 <= self.slightly <= 1:
            raise ConfigError("has to lie between 0.5 and 1", where="--slightly")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ballot:
    """What a person says of a pair.

    Args:
        id: drawn by the browser; the same vote sent twice has the same one.
        key: of the assignment.
        choice: which side is better, as it was shown.
        slightly: the better side is only a little better.
        reason: in the person's own words.
        ms: milliseconds for which the pair was looked at.
    """

    id: str
    key: str
    choice: Choice
    slightly: bool = False
    reason: str = ""
    ms: int = 0


@dataclass(frozen=True, slots=True)
class Assignment:
    """A pair before a person.

    Args:
        key: an unguessable name, which says nothing about the pair.
        group_id: the group.
        left: position of the completion that stands left.
        right: position of the other one.
    """

    key: str
    group_id: str
    left: int
    right: int


@dataclass(frozen=True, slots=True)
class Desk:
    """What lies before a person: the pair to judge, those after it, and how far they are."""

    assignments: tuple[Assignment, ...]
    answered: int
    left: int


@dataclass(slots=True)
class Queue:
    """Hands out the pairs of a store and takes the votes on them; may be used by several threads and processes.

    Args:
        store: has the pairs.
        rules: how they are handed out.
        before: what the data already say of a pair, for ``disagreed``: the weight of the judgments that prefer i, ties
            half, and of all.
        random: where chance comes from.
        clock: seconds since 1970.
    """

    store: Store
    rules: Rules
    before: Mapping[PairKey, tuple[float, float]] = field(default_factory=dict)
    random: Random = field(default_factory=SystemRandom)
    clock: Callable[[], float] = time.time

    def desk(self, person: int) -> Desk:
        """The pairs that a person holds, filled up with new ones; the same again after a reload."""
        with self.store.write() as connection:
            return self._fill(connection, person)

    def answer(self, person: int, ballot: Ballot) -> Desk:
        """Takes a vote or a skip, and hands out what comes next. A vote that is sent again changes nothing.

        Raises:
            Refused: the pair isn't this person's to answer (any more).
        """
        with self.store.write() as connection:
            if not self._is_known(connection, person, ballot.id):
                self._take(connection, person, ballot)
            return self._fill(connection, person)

    def undo(self, person: int, id: str) -> Desk:
        """Takes back the person's last vote or skip on a pair that is asked about; it lies before them again.

        Args:
            person: who.
            id: of the undo itself, as of a vote.
        """
        with self.store.write() as connection:
            if not self._is_known(connection, person, id):
                self._take_back(connection, person, id)
            return self._fill(connection, person)

    def _is_known(self, connection: Connection, person: int, id: str) -> bool:
        owner = connection.scalar(
            sql.select(assignment.c.person_id).select_from(vote.join(assignment)).where(vote.c.id == id)
        )
        if owner not in (None, person):
            raise Refused("another vote has the same number")
        return owner is not None

    def _take(self, connection: Connection, person: int, ballot: Ballot) -> None:
        now = self.clock()
        row = connection.execute(
            _HELD.where(assignment.c.key == ballot.key, assignment.c.person_id == person)
        ).one_or_none()
        if row is None or not row.active:
            raise Refused("this pair isn't asked about any more")
        if row.state != "held":
            raise Refused("you have answered this pair already")
        counts = ballot.choice != "skip"
        if counts and self._room(connection, row, now) < 1:
            raise Refused("others answered this pair while it lay here for long")
        self._write_event(connection, row, ballot.id, now, ballot)
        state = "voted" if counts else "skipped"
        connection.execute(
            sql.update(assignment).where(assignment.c.id == row.id).values(state=state, last=ballot.id, expires=0.0)
        )
        if counts:
            self._count(connection, row.pair_id, 1)

    def _take_back(self, connection: Connection, person: int, id: str) -> None:
        row = connection.execute(
            sql.select(assignment)
            .select_from(assignment.join(vote, vote.c.id == assignment.c.last).join(pair))
            .where(assignment.c.person_id == person, assignment.c.state != "held", pair.c.active)
            .order_by(vote.c.seq.desc())
            .limit(1)
        ).one_or_none()
        if row is None:
            return
        now = self.clock()
        event = self._write_event(connection, row, id, now, None)
        connection.execute(
            sql.update(assignment)
            .where(assignment.c.id == row.id)
            .values(state="held", last=id, expires=now + self.rules.lease_seconds, turn=-event)  # before all others
        )
        if row.state == "voted":
            self._count(connection, row.pair_id, -1)

    def _write_event(self, connection: Connection, row: Found, id: str, now: float, ballot: Ballot | None) -> int:
        values = {"id": id, "assignment_id": row.id, "at": now, "supersedes": row.last, "choice": "undo"}
        if ballot is not None:
            values |= {"choice": ballot.choice, "slightly": ballot.slightly, "reason": ballot.reason, "ms": ballot.ms}
        key = connection.execute(sql.insert(vote).values(values)).inserted_primary_key
        assert key is not None
        return int(key[0])

    def _count(self, connection: Connection, pair_id: int, change: int) -> None:
        """Counts a vote; where people are asked about what they disagree on, the pair's place changes with it."""
        values: dict[str, object] = {"votes": pair.c.votes + change}
        if self.rules.strategy == "disagreed":
            key = connection.execute(sql.select(pair.c.group_id, pair.c.i, pair.c.j).where(pair.c.id == pair_id)).one()
            votes = connection.execute(
                sql.select(vote.c.choice, vote.c.slightly, assignment.c.swapped)
                .select_from(assignment.join(vote, vote.c.id == assignment.c.last))
                .where(assignment.c.pair_id == pair_id, assignment.c.state == "voted")
            )
            left = [(probability_of(row.choice, row.slightly, self.rules.slightly), row.swapped) for row in votes]
            said = [1 - p if swapped else p for p, swapped in left]
            values["priority"] = disagreement(said, *self.before.get((key.group_id, key.i, key.j), ()))
        connection.execute(sql.update(pair).where(pair.c.id == pair_id).values(values))

    def _fill(self, connection: Connection, person: int) -> Desk:
        now = self.clock()
        held = self._held(connection, person, now)
        while len(held) < AHEAD and (pair_id := self._begun(connection, person, now) or self._open(connection, now)):
            held.append(self._lease(connection, person, pair_id, now))
        connection.execute(
            sql.update(assignment)
            .where(assignment.c.id.in_([row.id for row in held]))
            .values(expires=now + self.rules.lease_seconds)
        )
        return Desk(tuple(map(_shown, held)), *self._progress(connection, person))

    def _held(self, connection: Connection, person: int, now: float) -> list[Found]:
        """What the person holds and may still answer, the one to judge now first."""
        rows = connection.execute(
            _HELD.where(assignment.c.person_id == person, assignment.c.state == "held", pair.c.active).order_by(
                assignment.c.turn
            )
        )
        return [row for row in rows if self._room(connection, row, now) > 0]

    def _room(self, connection: Connection, row: Found, now: float) -> int:
        """How many votes a pair still needs. Whoever let their lease on it run out comes after those who look at it."""
        needed = self.rules.votes_per_pair - int(row.votes)
        if row.expires > now:
            return needed
        others = connection.scalar(
            sql.select(sql.func.count()).where(
                assignment.c.pair_id == row.pair_id, assignment.c.id != row.id, assignment.c.expires > now
            )
        )
        return needed - int(others or 0)

    def _begun(self, connection: Connection, person: int, now: float) -> int | None:
        """A pair that others have begun and that this person may go on with."""
        own, held = assignment.alias("own"), assignment.alias("held")
        is_done = sql.exists().where(
            own.c.pair_id == pair.c.id, own.c.person_id == person, (own.c.state != "held") | (own.c.expires > now)
        )
        looked_at = (
            sql.select(sql.func.count())
            .where(held.c.pair_id == pair.c.id, held.c.person_id != person, held.c.expires > now)
            .scalar_subquery()
        )
        first = [pair.c.priority.desc()] if self.rules.strategy == "disagreed" else []
        found = connection.scalar(
            sql.select(pair.c.id)
            .where(pair.c.active, pair.c.opened.is_not(None), pair.c.votes < self.rules.votes_per_pair)
            .where(~is_done, pair.c.votes + looked_at < self.rules.votes_per_pair)
            .order_by(*first, pair.c.opened)
            .limit(1)
        )
        return None if found is None else int(found)

    def _open(self, connection: Connection, now: float) -> int | None:
        """A pair that nobody was asked about yet, drawn by the strategy or at random."""
        fresh = (pair.c.active, pair.c.opened.is_(None))
        eligible, highest = connection.execute(
            sql.select(sql.func.count(), sql.func.max(pair.c.priority)).where(*fresh)
        ).one()
        if not eligible:
            return None
        is_best = pair.c.priority == highest
        best = int(connection.scalar(sql.select(sql.func.count()).where(*fresh, is_best)) or 0)
        drawn = draw(eligible, best, self.rules.random_share, self.random)
        among = fresh if drawn.arm == "random" else (*fresh, is_best)
        row = connection.execute(
            sql.select(pair.c.id, pair.c.priority).where(*among).order_by(pair.c.id).offset(drawn.offset).limit(1)
        ).one()
        origin = Origin(
            strategy=self.rules.strategy,
            arm=drawn.arm,
            probability=draw_probability(row.priority == highest, eligible, best, self.rules.random_share),
            eligible=eligible,
        )
        connection.execute(sql.insert(selection).values(pair_id=row.id, at=now, **origin.to_json()))
        last = connection.scalar(sql.select(sql.func.max(pair.c.opened))) or 0
        connection.execute(sql.update(pair).where(pair.c.id == row.id).values(opened=last + 1))
        return int(row.id)

    def _lease(self, connection: Connection, person: int, pair_id: int, now: float) -> Found:
        """The person's assignment of a pair. Which answer stands left is drawn the first time, and then stays."""
        own = _HELD.where(assignment.c.pair_id == pair_id, assignment.c.person_id == person)
        found = connection.execute(own).one_or_none()
        expires = now + self.rules.lease_seconds
        if found is None:
            last = connection.scalar(sql.select(sql.func.max(assignment.c.id))) or 0
            values = {"pair_id": pair_id, "person_id": person, "state": "held", "expires": expires, "turn": last + 1}
            values |= {"key": secrets.token_urlsafe(12), "swapped": self.random.random() < 0.5}
            connection.execute(sql.insert(assignment).values(values))
        else:
            connection.execute(sql.update(assignment).where(assignment.c.id == found.id).values(expires=expires))
        return connection.execute(own).one()

    def _progress(self, connection: Connection, person: int) -> tuple[int, int]:
        """How many pairs the person has answered, and how many are left for them."""
        mine = sql.select(assignment.c.pair_id).where(assignment.c.person_id == person, assignment.c.state != "held")
        answered = connection.scalar(
            sql.select(sql.func.count()).where(assignment.c.person_id == person, assignment.c.state == "voted")
        )
        left = connection.scalar(
            sql.select(sql.func.count()).where(
                pair.c.active, pair.c.votes < self.rules.votes_per_pair, pair.c.id.not_in(mine)
            )
        )
        return int(answered or 0), int(left or 0)


def _shown(row: Found) -> Assignment:
    left, right = (row.j, row.i) if row.swapped else (row.i, row.j)
    return Assignment(row.key, row.group_id, left, right)
