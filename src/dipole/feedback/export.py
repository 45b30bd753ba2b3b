"""From votes back to groups: each vote becomes a comparison, signed, with everything that is known about it.

In an exported comparison ``i`` is the completion that stood left, so that a preference for a side can be told from one
for an answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sql

from dipole.errors import ConfigError
from dipole.feedback.store import Store, digest, other_texts, pair
from dipole.feedback.votes import SLIGHTLY, Vote, current_votes, probability_of
from dipole.group import Comparison, Group


def export_groups(store: Store, groups: Iterable[Group], *, slightly: float = SLIGHTLY) -> Iterator[Group]:
    """The groups with people's votes added to their judgments, as they are at one moment of the store.

    A vote is a ``Comparison`` of (left, right) with p = 1, ``slightly``, or ½ for a tie. Its ``meta`` has ``vote`` (an
    id), ``shown_first``, ``choice``, ``seconds``, ``at``, the ``reason`` if there is one, and ``selection``:
    ``strategy``, ``arm``, ``probability`` and ``eligible``. Both bad is a tie whose choice says so. Skips say nothing
    of the answers and aren't exported. The same votes give the same groups, and a vote that a group has already isn't
    added again.

    Args:
        store: has the votes; it may be written to meanwhile.
        groups: those that people were asked about.
        slightly: the probability that "slightly better" stands for, ½ to 1.

    Raises:
        ConfigError: ``slightly`` is no such probability.
        DataError: a group has other texts than those that people judged.
    """
    if not 0.5 <= slightly <= 1:
        raise ConfigError(f"{slightly} is outside of 0.5 to 1", where="--slightly")
    with store.read() as connection:
        votes = [vote for vote in current_votes(connection) if vote.choice != "skip"]
        digests = {row.id: row.digest for row in connection.execute(sql.select(pair.c.id, pair.c.digest))}
    by_group: dict[str, list[Vote]] = {}
    for vote in votes:
        by_group.setdefault(vote.group_id, []).append(vote)
    for group in groups:
        known = {judgment.meta.get("vote") for judgment in group.judgments}
        added = [vote for vote in by_group.get(group.id, ()) if vote.id not in known]
        for vote in added:
            if not _is_of(vote, group, digests[vote.pair_id]):
                raise other_texts(group.id)
        yield replace(group, judgments=(*group.judgments, *(_comparison(vote, slightly) for vote in added)))


def _is_of(vote: Vote, group: Group, seen: str) -> bool:
    """Whether the group still has the texts that a vote is about."""
    i, j = sorted((vote.left, vote.right))
    return j < len(group.completions) and digest(group, i, j) == seen


def _comparison(vote: Vote, slightly: float) -> Comparison:
    meta: dict[str, Any] = {
        "vote": vote.id,
        "shown_first": vote.left,
        "choice": vote.choice,
        "seconds": vote.seconds,
        "at": datetime.fromtimestamp(vote.at, UTC).isoformat(timespec="seconds"),
        "selection": vote.origin.to_json(),
    }
    if vote.reason:
        meta["reason"] = vote.reason
    p = probability_of(vote.choice, vote.slightly, slightly)
    return Comparison(i=vote.left, j=vote.right, p=p, annotator=vote.annotator, meta=meta)
