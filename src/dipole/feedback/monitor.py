"""How the work goes, for whoever runs it: progress, agreement, and each person's side bias and speed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import sqlalchemy as sql

from dipole.data.audit.agreement import Agreement, VotePairs, agreement, vote_pairs
from dipole.data.audit.intervals import Interval, wilson_interval
from dipole.feedback.store import Store, assignment, pair, person
from dipole.feedback.votes import Vote, current_votes


@dataclass(frozen=True, slots=True)
class PersonSummary:
    """One person's work.

    Args:
        name: who.
        votes: how many count.
        skips: how many pairs they passed.
        ties: how many of the votes prefer neither.
        left: share of the decided votes for the left side; ``None`` without any.
        left_interval: 95 %, after Wilson.
        agree: share of others' votes on the same pairs that say the same; ``None`` where there are none.
        agree_interval: 95 %, after Wilson, each pair of votes counted as one.
        seconds: median time a vote; ``None`` without any.
        at: time of the last vote or skip, in seconds since 1970; ``None`` without any.
        holds: how many pairs are kept for them.
    """

    name: str
    votes: int
    skips: int
    ties: int
    left: float | None
    left_interval: Interval
    agree: float | None
    agree_interval: Interval
    seconds: float | None
    at: float | None
    holds: int

    @property
    def is_one_sided(self) -> bool:
        """Whether they take one side more often than chance does: ½ is outside of the interval."""
        return not self.left_interval[0] <= 0.5 <= self.left_interval[1]


@dataclass(frozen=True, slots=True)
class Overview:
    """The work of all.

    Args:
        pairs: to ask about.
        begun: of them, those with a vote.
        complete: of them, those with all the votes that they need.
        votes: that count.
        shared: pairs of votes of two people on one pair.
        agreement: of all people, ``None`` while no pair was judged by two.
        people: in order of arrival.
    """

    pairs: int
    begun: int
    complete: int
    votes: int
    shared: int
    agreement: Agreement | None
    people: tuple[PersonSummary, ...]


def overview(store: Store, votes_per_pair: int, now: float) -> Overview:
    """What there is to see at one moment of the store.

    Args:
        store: has the votes.
        votes_per_pair: how many people judge each pair.
        now: seconds since 1970.
    """
    with store.read() as connection:
        said = current_votes(connection)
        total, begun, complete = connection.execute(
            sql.select(
                sql.func.count(),
                sql.func.coalesce(sql.func.sum(sql.cast(pair.c.votes > 0, sql.Integer)), 0),
                sql.func.coalesce(sql.func.sum(sql.cast(pair.c.votes >= votes_per_pair, sql.Integer)), 0),
            ).where(pair.c.active)
        ).one()
        names = list(connection.scalars(sql.select(person.c.name).order_by(person.c.id)))
        held = connection.scalars(
            sql.select(person.c.name).select_from(assignment.join(person)).where(assignment.c.expires > now)
        )
        holds = Counter(held)
    votes = [vote for vote in said if vote.choice != "skip"]
    shared = _shared(votes, names)
    return Overview(
        pairs=total,
        begun=begun,
        complete=complete,
        votes=len(votes),
        shared=len(shared.agree),
        agreement=agreement(shared, shared.unit) if len(shared.agree) else None,
        people=tuple(
            _person(name, [vote for vote in said if vote.annotator == name], shared, number, holds[name])
            for number, name in enumerate(names)
        ),
    )


def _shared(votes: Sequence[Vote], names: Sequence[str]) -> VotePairs:
    """Every two votes on one pair."""
    number = {name: place for place, name in enumerate(names)}
    return vote_pairs(
        np.array([vote.pair_id for vote in votes], dtype=np.int64),
        np.array([number[vote.annotator] for vote in votes], dtype=np.int64),
        np.array([(vote.side + 1) / 2 for vote in votes], dtype=np.float64),
    )


def _person(name: str, said: Sequence[Vote], shared: VotePairs, number: int, holds: int) -> PersonSummary:
    votes = [vote for vote in said if vote.choice != "skip"]
    sides = [vote.choice == "left" for vote in votes if vote.choice in ("left", "right")]
    same = shared.agree[(shared.first == number) | (shared.second == number)]
    return PersonSummary(
        name=name,
        votes=len(votes),
        skips=len(said) - len(votes),
        ties=len(votes) - len(sides),
        left=sum(sides) / len(sides) if sides else None,
        left_interval=wilson_interval(sum(sides), len(sides)),
        agree=float(same.mean()) if len(same) else None,
        agree_interval=wilson_interval(float(same.sum()), len(same)),
        seconds=float(np.median([vote.seconds for vote in votes])) if votes else None,
        at=max((vote.at for vote in said), default=None),
        holds=holds,
    )
