"""The votes that count: of everything that a person said about a pair, the last, unless it was taken back."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sql
from sqlalchemy.engine import Connection

from dipole.feedback.active.choose import Origin
from dipole.feedback.store import assignment, pair, person, selection, vote

SLIGHTLY = 0.75
"""Probability that stands for "slightly better"."""


@dataclass(frozen=True, slots=True)
class Vote:
    """What a person says of a pair.

    Args:
        id: drawn when it was given.
        pair_id: number of the pair in the store.
        group_id: of its group.
        left: position of the completion that stood left.
        right: position of the other one.
        annotator: the person's name.
        choice: ``left``, ``right``, ``tie``, ``both bad`` or ``skip``.
        slightly: the better side is only a little better.
        reason: in the person's own words.
        seconds: for which the pair was looked at.
        at: when, in seconds since 1970.
        origin: how the pair came to be asked about; its probability is that of being drawn next when it was.
    """

    id: str
    pair_id: int
    group_id: str
    left: int
    right: int
    annotator: str
    choice: str
    slightly: bool
    reason: str
    seconds: float
    at: float
    origin: Origin

    @property
    def side(self) -> int:
        """1 for the completion of lower position, −1 for the other, 0 for neither."""
        return side_of(self.choice, self.left > self.right)


def side_of(choice: str, swapped: bool) -> int:
    """Which completion of a pair a choice prefers: 1 for i, −1 for j, 0 for neither."""
    shown = {"left": 1, "right": -1}.get(choice, 0)
    return -shown if swapped else shown


def probability_of(choice: str, is_slight: bool, slightly: float = SLIGHTLY) -> float:
    """The probability that the left answer is better that a choice stands for; ½ where it prefers neither.

    Args:
        choice: as of a ``Vote``.
        is_slight: the better side is only a little better.
        slightly: what that stands for.
    """
    strength = slightly if is_slight else 1.0
    return {"left": strength, "right": 1 - strength}.get(choice, 0.5)


def current_votes(connection: Connection) -> list[Vote]:
    """All votes and skips that count, in the order in which they were given."""
    rows = connection.execute(
        sql.select(vote, assignment.c.swapped, pair, person.c.name, selection)
        .select_from(assignment.join(vote, vote.c.id == assignment.c.last).join(pair).join(person).join(selection))
        .where(assignment.c.state != "held")
        .order_by(vote.c.seq)
    ).mappings()
    return [
        Vote(
            id=row[vote.c.id],
            pair_id=row[selection.c.pair_id],
            group_id=row[pair.c.group_id],
            left=row[pair.c.j if row[assignment.c.swapped] else pair.c.i],
            right=row[pair.c.i if row[assignment.c.swapped] else pair.c.j],
            annotator=row[person.c.name],
            choice=row[vote.c.choice],
            slightly=row[vote.c.slightly],
            reason=row[vote.c.reason],
            seconds=row[vote.c.ms] / 1000,
            at=row[vote.c.at],
            origin=Origin(
                strategy=row[selection.c.strategy],
                arm=row[selection.c.arm],
                probability=row[selection.c.probability],
                eligible=row[selection.c.eligible],
            ),
        )
        for row in rows
    ]
