"""What makes a pair worth a judgment: a number each, from arrays alone. The highest are asked about first.

Whether the pairs that a model is least or most certain of teach it more isn't settled: Muldrew, Hayes, Zhang and Barber
(2024, arXiv 2402.08114) gained from certain ones, Ji, He and Gu (2024, arXiv 2402.09401) ask only about uncertain ones.
So both are here, and ``dipole active --simulate`` tells which serves the data at hand.

Shapes: n pairs, d features.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np

from dipole.data.audit.intervals import Floats, Ints

Strategy = Literal["random", "uncertain", "certain", "disagreed", "diverse", "change"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)

CHUNK = 256


def random(count: int, *, seed: int = 0) -> Floats:
    """(n,) the same chance for all."""
    return np.random.default_rng(seed).random(count)


def uncertain(probabilities: Floats) -> Floats:
    """(n,) 1 − |2p − 1|: how near the model is to a coin.

    Args:
        probabilities: (n,) P(i ≻ j) by the model, such as σ of the difference of implicit rewards.
    """
    return 1 - certain(probabilities)


def certain(probabilities: Floats) -> Floats:
    """(n,) |2p − 1|: how far the model is from a coin."""
    result: Floats = np.abs(2 * np.asarray(probabilities, dtype=np.float64) - 1)
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


def change(probabilities: Floats, sizes: Floats) -> Floats:
    """(n,) 2 p (1 − p) ‖x‖: the expected length of the gradient that a label gives (Settles 2009, section 3.3).

    The gradient of −log σ(w·x) is (p − y) x; y is 1 with the probability p.

    Args:
        probabilities: (n,) P(i ≻ j) by the model.
        sizes: (n,) ‖x‖, the length of the difference of both completions' features.
    """
    p = np.asarray(probabilities, dtype=np.float64)
    result: Floats = 2 * p * (1 - p) * np.asarray(sizes)
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
