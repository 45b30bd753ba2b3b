"""What the page asks next: the strategies of ``active``, on the pairs of a store that grows.

Strategies give each pair a priority; the pairs of highest priority come first, equal ones in random order. A share of
the questions is drawn at random among all pairs whatever their priority, and the probability with which a pair was
drawn is written down, see ``active.choose``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from dipole.data.audit.intervals import Floats
from dipole.errors import DataError
from dipole.feedback.active.pool import PairKey, Pool, scored
from dipole.feedback.active.strategies import Strategy, disagreed


def priorities(
    pool: Pool, strategy: Strategy, *, has_odds: bool = False, answered: Collection[PairKey] = ()
) -> dict[PairKey, float]:
    """The priority of each pair: what a judgment of it is worth, see ``active.strategies``.

    Unlike ``dipole active``, the page asks about pairs that the data bring judgments for, too. A pair of which the
    model has no opinion comes last.

    Args:
        pool: of the groups with everything that was said of them, on the page too.
        strategy: by which.
        has_odds: see ``active.pool.scored``.
        answered: pairs that people have answered on the page; they are no more to be opened.

    Raises:
        DataError: see ``active.pool.scored``.
    """
    keys = pool.keys
    answered = frozenset(answered)
    is_open = np.array([strategy == "disagreed" or key not in answered for key in keys])
    places = np.flatnonzero(is_open)
    found = np.full(len(keys), np.nan)
    if len(places):
        found[places], _ = scored(pool, strategy, places, has_odds=has_odds)
    known = found[np.isfinite(found)]
    last = float(known.min()) - 1 if len(known) else 0.0
    return dict(zip(keys, np.where(np.isfinite(found), found, last).tolist(), strict=True))


def disagreement(said: Sequence[float], wins: float = 0.0, votes: float = 0.0) -> float:
    """The chance that the next two who judge a pair differ, see ``active.strategies.disagreed``.

    Args:
        said: of each vote on the page, the probability of i ≻ j that it stands for.
        wins: weight of the data's judgments that prefer i, ties half.
        votes: weight of all of the data's judgments.
    """
    return float(disagreed(np.array([wins + sum(said)]), np.array([votes + len(said)]))[0])


def load_scores(path: Path, keys: Sequence[PairKey]) -> dict[PairKey, float]:
    """A model's log-odds of pairs from a file of lines such as ``{"id": "g1", "i": 0, "j": 1, "score": 0.3}``.

    Where i > j, it is turned round.

    Raises:
        DataError: a line is no such object, or names no pair of the data.
    """
    known = set(keys)
    scores: dict[PairKey, float] = {}
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"can't be read ({error})", where=str(path)) from error
    for number, line in enumerate(lines, start=1):
        where = f"{path}:{number}"
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            i, j, score = int(row["i"]), int(row["j"]), float(row["score"])
            key = (str(row["id"]), min(i, j), max(i, j))
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                "isn't the score of a pair", where=where, remedy='Write {"id": "g1", "i": 0, "j": 1, "score": 0.3}'
            ) from error
        if key not in known:
            raise DataError(f"group '{key[0]}' has no two different answers {key[1]} and {key[2]}", where=where)
        if not math.isfinite(score):
            raise DataError("the score has to be a finite number", where=where)
        scores[key] = score if i < j else -score
    return scores


def with_scores(pool: Pool, scores: Mapping[PairKey, float]) -> Pool:
    """The pool with a model's opinion of its pairs; see ``load_scores``."""
    odds: Floats = np.array([scores.get(key, np.nan) for key in pool.keys])
    return replace(pool, odds=odds)
