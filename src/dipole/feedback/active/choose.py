"""A batch within a budget: mostly the highest scores, a fixed share at random, each with a probability that is known.

What is estimated from selected pairs (a win rate, an agreement) is biased, since they were selected for being unusual.
Every pair has some chance here, and that chance is known exactly: weighting with its inverse makes estimates unbiased
(Horvitz and Thompson 1952). The random part alone is an unbiased sample too.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dipole.data.audit.intervals import Floats, Ints
from dipole.errors import ConfigError


class Selection(NamedTuple):
    """Which pairs to have judged.

    Args:
        places: (B) positions, those drawn at random first, then by their score.
        at_random: (B) whether the pair was drawn at random.
        probability: (B) with which the pair was to be selected, one way or the other; above 0.
    """

    places: Ints
    at_random: NDArray[np.bool_]
    probability: Floats


def choose(scores: Floats, budget: int, *, random_share: float = 0.1, seed: int = 0) -> Selection:
    """Selects a batch: ⌈share · budget⌉ pairs at random among all, then the highest scores of the rest.

    Args:
        scores: (n,) of the pairs that could be asked about; equal ones are put in random order.
        budget: how many to select; all of them where there are fewer.
        random_share: above 0, so that every pair can be selected; 1 for a random sample.
        seed: the same one gives the same batch.

    Raises:
        ConfigError: the budget or the share is out of range.
    """
    if budget < 1:
        raise ConfigError(f"has to be at least 1, not {budget}", where="--budget")
    if not 0 < random_share <= 1:
        raise ConfigError(
            f"has to be above 0 and at most 1, not {random_share}",
            where="--random_share",
            remedy="Without a random share nothing can be estimated from the judgments",
        )
    count = len(scores)
    budget = min(budget, count)
    drawn = min(budget, int(np.ceil(random_share * budget - 1e-9)))
    random = np.random.default_rng(seed)
    by_chance = random.permutation(count)
    at_random = by_chance[:drawn]
    shuffled = random.permutation(count)
    ranking = shuffled[np.argsort(-np.asarray(scores)[shuffled], kind="stable")]
    best = ranking[~np.isin(ranking, at_random)][: budget - drawn]
    places = np.concatenate([at_random, best])
    rank = np.empty(count, dtype=np.int64)
    rank[ranking] = np.arange(count)
    probability = selection_probabilities(count, budget, drawn)[rank[places]]
    return Selection(places, np.arange(budget) < drawn, probability)


def selection_probabilities(count: int, budget: int, drawn: int) -> Floats:
    """(n,) the probability with which ``choose`` selects the pair of each rank, the highest score first.

    A pair is among those drawn with the probability m/n. If it isn't, it is taken for its score if, of the r pairs
    above it, so many were drawn that it is among the first B − m of the rest; how many were is hypergeometric.

    Args:
        count: n pairs.
        budget: B.
        drawn: m of them at random.
    """
    from scipy.stats import hypergeom

    rank = np.arange(count)
    share = drawn / count
    enough = hypergeom.sf(rank - (budget - drawn), max(count - 1, 0), rank, drawn) if drawn < count else np.ones(count)
    result: Floats = share + (1 - share) * enough
    return result
