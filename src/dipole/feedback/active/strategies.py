"""What makes a pair worth a judgment: a number each, from arrays alone. The highest are asked about first.

The page, ``dipole active`` and its simulation all ask ``worth``; they differ in where the evidence comes from alone.

Whether the pairs that a model is least or most certain of teach it more isn't settled: Muldrew, Hayes, Zhang and Barber
(2024, arXiv 2402.08114) gained from certain ones, Ji, He and Gu (2024, arXiv 2402.09401) ask only about uncertain ones.
So both are here, and ``dipole active --simulate`` tells which serves the data at hand.

Shapes: n pairs, d features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from scipy.special import expit

from dipole.data.audit.intervals import Floats, Ints

Strategy = Literal["random", "uncertain", "certain", "disagreed", "diverse", "change"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)

MODEL: tuple[Strategy, ...] = ("uncertain", "certain", "change")
"""Those that go by a model's log-odds."""

TEXTS: tuple[Strategy, ...] = ("diverse", "change")
"""Those that go by what the texts of a pair differ in."""

DIVERSE = 2000
"""How many pairs ``diverse`` puts in order; more would take minutes, and whatever is left is near one of these."""

CHUNK = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What is known of n pairs before they are judged; each strategy needs some of it.

    Args:
        count: n.
        odds: (n,) for ``MODEL``: log-odds of i ≻ j, NaN where the model has no opinion.
        wins: (n,) for ``disagreed``: votes for i, ties half; of annotators, or of a committee of models.
        votes: (n,) for ``disagreed``: all of them.
        differences: (n, d), dense or sparse, for ``TEXTS``: features of i less those of j.
        labelled: (m, d) of other pairs, which are labelled already.
    """

    count: int
    odds: Floats | None = None
    wins: Floats | None = None
    votes: Floats | None = None
    differences: Any = None
    labelled: Any = None


def worth(strategy: Strategy, evidence: Evidence, *, limit: int = DIVERSE) -> Floats:
    """(n,) what a judgment of each pair is worth. Equal ones are all the same; whoever selects draws among them.

    Args:
        strategy: which.
        evidence: what it needs.
        limit: how many pairs ``diverse`` puts in order.

    Returns:
        Finite numbers, but NaN where ``MODEL`` has no opinion.
    """
    if strategy == "random":
        return np.zeros(evidence.count)
    if strategy == "disagreed":
        assert evidence.wins is not None
        assert evidence.votes is not None
        return disagreed(evidence.wins, evidence.votes)
    if strategy == "diverse":
        return _apart(evidence, limit)
    assert evidence.odds is not None
    if strategy == "change":
        return change(evidence.odds, np.sqrt(_row_squares(evidence.differences)))
    return uncertain(evidence.odds) if strategy == "uncertain" else certain(evidence.odds)


def uncertain(odds: Floats) -> Floats:
    """(n,) −|log-odds|: how near the model is to a coin.

    Args:
        odds: (n,) of i ≻ j by the model, such as differences of implicit rewards. In the order of 1 − |2p − 1|, and
            still different where every p is 0 or 1 to rounding.
    """
    return -certain(odds)


def certain(odds: Floats) -> Floats:
    """(n,) |log-odds|: how far the model is from a coin."""
    result: Floats = np.abs(np.asarray(odds, dtype=np.float64))
    return result


def disagreed(wins: Floats, votes: Floats) -> Floats:
    """(n,) the chance that the next two who judge a pair differ, given who has judged it.

    2 E[q (1 − q)] where the share q of people who prefer i has the posterior Beta(wins + ½, losses + ½). A pair on
    which votes are split comes before one without votes, and that before one on which all agree.

    Args:
        wins: (n,) votes for i, ties half; of annotators, or of a committee of models.
        votes: (n,) all of them.
    """
    a, b = np.asarray(wins) + 0.5, np.asarray(votes) - np.asarray(wins) + 0.5
    result: Floats = 2 * a * b / ((a + b) * (a + b + 1))
    return result


def change(odds: Floats, sizes: Floats) -> Floats:
    """(n,) 2 p (1 − p) ‖x‖: the expected length of the gradient that a label gives (Settles 2009, section 3.3).

    The gradient of −log σ(w·x) is (p − y) x; y is 1 with the probability p.

    Args:
        odds: (n,) log-odds of i ≻ j by the model.
        sizes: (n,) ‖x‖, the length of the difference of both completions' features.
    """
    z = np.asarray(odds, dtype=np.float64)
    result: Floats = 2 * expit(z) * expit(-z) * np.asarray(sizes)
    return result


def diverse(differences: Any, labelled: Ints | None = None, *, limit: int | None = None) -> Floats:
    """(n,) each pair as far as possible from all before it: greedy k-centre (Gonzalez 1985; Sener and Savarese 2018).

    A pair is the difference of its completions' features, and which of the two is called the first doesn't count: x and
    −x are the same place. Labelled pairs come last; the first of the others is the farthest from them.

    Args:
        differences: (n, d) dense or sparse.
        labelled: positions of the pairs that are labelled already.
        limit: how many are put in order; the rest follow by their distance from those.

    Returns:
        n for the first, then one less each.
    """
    points = differences if hasattr(differences, "multiply") else np.asarray(differences, dtype=np.float64)
    squares = _row_squares(points)
    known = np.zeros(len(squares), dtype=bool)
    # With nothing to be far from, the longest difference is the farthest from no difference at all.
    nearest = squares.copy()
    if labelled is not None and len(labelled):
        known[labelled] = True
        nearest = np.full(len(squares), np.inf)
        for begin in range(0, len(labelled), CHUNK):
            nearest = np.minimum(nearest, _distances(points, squares, labelled[begin : begin + CHUNK]))
    chosen, left = known.copy(), int((~known).sum())
    order: list[int] = []
    for _ in range(left if limit is None else min(left, limit)):
        place = int(np.argmax(np.where(chosen, -np.inf, nearest)))
        order.append(place)
        chosen[place] = True
        nearest = np.minimum(nearest, _distances(points, squares, np.array([place])))
    rest = np.argsort(-nearest, kind="stable")
    ranking = np.concatenate([np.array(order, dtype=np.int64), rest[~chosen[rest]], np.flatnonzero(known)])
    scores = np.empty(len(squares))
    scores[ranking] = np.arange(len(squares), 0, -1)
    return scores


def _apart(evidence: Evidence, limit: int) -> Floats:
    points: Any = evidence.differences
    known: Ints | None = None
    if evidence.labelled is not None and evidence.labelled.shape[0]:
        from scipy import sparse

        stack = sparse.vstack if sparse.issparse(points) else np.vstack
        points, known = stack([points, evidence.labelled]), np.arange(evidence.labelled.shape[0]) + evidence.count
        points = points.tocsr() if sparse.issparse(points) else points
    return diverse(points, known, limit=limit)[: evidence.count]


def _row_squares(points: Any) -> Floats:
    squared = points.multiply(points) if hasattr(points, "multiply") else points**2
    result: Floats = np.asarray(squared.sum(axis=1), dtype=np.float64).ravel()
    return result


def _distances(points: Any, squares: Floats, places: Ints) -> Floats:
    """(n,) squared distance of ±x from the nearest of some of them."""
    rows = points[places]
    if len(places) == 1:
        along = (points @ (rows.toarray() if hasattr(rows, "toarray") else rows).ravel())[:, None]
    else:
        products = points @ rows.T
        along = products.toarray() if hasattr(products, "toarray") else products
    distances = squares[:, None] + squares[places][None, :] - 2 * np.abs(along)
    result: Floats = np.maximum(distances.min(axis=1), 0.0)
    return result
