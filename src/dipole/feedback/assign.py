"""What to ask next.

Strategies give each pair a priority; the pairs of highest priority come first, equal ones in random order. A share of
the questions is drawn at random among all pairs whatever their priority, and the probability with which a pair was
selected is written down. So whatever is estimated from the votes can be made unbiased by weighting with its inverse
(Horvitz and Thompson 1952; for questions without replacement: Farquhar, Gal and Rainforth 2021).

The literature is not of one mind whether the pairs that a model is least or most certain about teach it more, so both
are here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Literal, NamedTuple

import numpy as np

from dipole.data.reduce import as_comparisons
from dipole.errors import ConfigError, DataError
from dipole.feedback.active.strategies import Strategy, disagreed, diverse
from dipole.feedback.judge import all_pairs
from dipole.group import Group, plain

SCORED = ("uncertain", "certain", "change")
"""Strategies that need a score of each pair."""

SPREAD = 1_000
"""How many pairs ``diverse`` puts in order; more would take minutes, and whatever is left is near one of these."""

PairKey = tuple[str, int, int]
"""A group's id and two positions, i < j."""


class Draw(NamedTuple):
    """Which pair was drawn.

    Args:
        arm: ``"random"``: from all eligible pairs; ``"strategy"``: from those of the highest priority.
        offset: which of them, from 0.
    """

    arm: Literal["random", "strategy"]
    offset: int


def draw(eligible: int, best: int, random_share: float, random: Random) -> Draw:
    """Draws a pair.

    Args:
        eligible: how many pairs haven't been asked about, at least 1.
        best: how many of them have the highest priority, at least 1.
        random_share: share of the questions that are drawn from all eligible pairs.
        random: where chance comes from.
    """
    if random.random() < random_share:
        return Draw("random", random.randrange(eligible))
    return Draw("strategy", random.randrange(best))


def selection_probability(is_best: bool, eligible: int, best: int, random_share: float) -> float:
    """The probability with which ``draw`` selects a pair, given whether it is of the highest priority."""
    return random_share / eligible + (1 - random_share) / best * is_best


def pairs_of(groups: Sequence[Group]) -> dict[PairKey, Group]:
    """Every two different answers of every group, in the order of the groups.

    Raises:
        DataError: there are none.
    """
    found = {(group.id, i, j): group for group in groups for i, j in all_pairs(group)}
    if not found:
        raise DataError("no group has two different answers, so there is nothing to compare")
    return found


def priorities(
    strategy: Strategy, pairs: Mapping[PairKey, Group], scores: Mapping[PairKey, float] | None = None
) -> dict[PairKey, float]:
    """The priority of each pair.

    ``random``: all the same. ``uncertain`` and ``certain``: by the distance of the score from 0, as of an implicit
    reward's margin, the smallest or the largest first. ``change``: the highest score first, as of an expected change of
    the model. ``disagreed``: pairs first on which the judgments that the data bring differ most; votes change it as
    they come. ``diverse``: each pair as far as possible from those before it, by the words in which its answers differ.

    Args:
        strategy: which.
        pairs: see ``pairs_of``.
        scores: of the pairs, for the strategies that need them. A pair without one comes last.

    Raises:
        ConfigError: scores are missing, or mean nothing to the strategy.
    """
    if (strategy in SCORED) != (scores is not None):
        if strategy in SCORED:
            raise ConfigError(f"'{strategy}' goes by scores of the pairs", where="--strategy", remedy="Give --scores")
        raise ConfigError(f"'{strategy}' doesn't go by scores", where="--scores", remedy=f"Use one of {list(SCORED)}")
    if strategy == "disagreed":
        return {key: disagreement(sides) for key, sides in sides_in_data(pairs).items()}
    if strategy == "diverse":
        return _spread(pairs)
    if scores is None:
        return dict.fromkeys(pairs, 0.0)
    sign = -1 if strategy == "uncertain" else 1
    distance = abs if strategy != "change" else float
    last = min((sign * distance(score) for score in scores.values()), default=0.0) - 1
    return {key: sign * distance(scores[key]) if key in scores else last for key in pairs}


def disagreement(sides: Sequence[int]) -> float:
    """The chance that the next two who judge a pair differ, see ``active.strategies.disagreed``.

    Args:
        sides: of each vote: 1 for completion i, −1 for j, 0 for a tie.
    """
    wins = sum((side + 1) / 2 for side in sides)
    return float(disagreed(np.array([wins]), np.array([float(len(sides))]))[0])


def sides_in_data(pairs: Mapping[PairKey, Group]) -> dict[PairKey, tuple[int, ...]]:
    """What the judgments that the data bring say of each pair, in the form that ``disagreement`` takes."""
    found: dict[PairKey, list[int]] = {key: [] for key in pairs}
    for group in {id(group): group for group in pairs.values()}.values():
        for judged in as_comparisons(group):
            i, j = sorted(judged.indices())
            if judged.weight > 0 and (group.id, i, j) in found:
                side = (judged.p > 0.5) - (judged.p < 0.5)
                found[group.id, i, j].append(side if judged.i == i else -side)
    return {key: tuple(sides) for key, sides in found.items()}


def load_scores(path: Path, pairs: Mapping[PairKey, Group]) -> dict[PairKey, float]:
    """Scores of pairs from a file of lines such as ``{"id": "g1", "i": 0, "j": 1, "score": 0.3}``.

    A score is from the side of completion i: turned around, it has the other sign where it is a margin.

    Raises:
        DataError: a line is no such object, or names no pair of the data.
    """
    scores: dict[PairKey, float] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"can't be read ({error})", where=str(path)) from error
    for number, line in enumerate(lines, start=1):
        where = f"{path}:{number}"
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            i, j = sorted((int(row["i"]), int(row["j"])))
            key, score = (str(row["id"]), i, j), float(row["score"])
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                "isn't the score of a pair", where=where, remedy='Write {"id": "g1", "i": 0, "j": 1, "score": 0.3}'
            ) from error
        if key not in pairs:
            raise DataError(f"group '{key[0]}' has no two different answers {i} and {j}", where=where)
        if not math.isfinite(score):
            raise DataError("the score has to be a finite number", where=where)
        scores[key] = score
    return scores


def _spread(pairs: Mapping[PairKey, Group]) -> dict[PairKey, float]:
    """Each pair as far as possible from those before it, by the words in which its answers differ."""
    from sklearn.feature_extraction.text import HashingVectorizer

    vectors = HashingVectorizer(n_features=2**16, alternate_sign=False)
    texts = [(plain(group.completions[i].text), plain(group.completions[j].text)) for (_, i, j), group in pairs.items()]
    first, second = (vectors.transform(side) for side in zip(*texts, strict=True))
    return dict(zip(pairs, diverse(first - second, limit=SPREAD).tolist(), strict=True))
