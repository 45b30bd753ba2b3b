"""Selection: mostly the pairs worth most, always a share at random, each with a probability that is known.

What is estimated from selected pairs (a win rate, an agreement) is biased, since they were selected for being unusual.
Every pair has some chance here, and that chance is known exactly: weighting with its inverse makes estimates unbiased.
The random part alone is an unbiased sample too.

``choose`` selects a batch at once, and its probability is that of being in the batch (Horvitz and Thompson 1952).
``draw`` selects the next pair while people vote and worths change; its probability is that of being drawn next, given
what was drawn before (levelled weights for these: Farquhar, Gal and Rainforth 2021). Both write down an ``Origin``.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from random import Random
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dipole.data.audit.intervals import Floats, Ints
from dipole.errors import ConfigError

Arm = Literal["random", "strategy"]
"""``random``: drawn from all pairs, whatever they are worth; ``strategy``: for what it is worth."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """How a pair came to be asked about.

    Args:
        strategy: by which.
        arm: how.
        probability: with which it was selected, by whichever arm; above 0.
        eligible: among how many.
    """

    strategy: str
    arm: str
    probability: float
    eligible: int

    def to_json(self) -> dict[str, Any]:
        """As it is exported."""
        return asdict(self)


def check_share(random_share: float) -> None:
    """Refuses a random share that leaves some pairs without a chance.

    Raises:
        ConfigError: it isn't above 0 and at most 1.
    """
    if not 0 < random_share <= 1:
        raise ConfigError(
            f"has to be above 0 and at most 1, not {random_share}",
            where="--random_share",
            remedy="Without a random share nothing can be estimated from the judgments",
        )


class Draw(NamedTuple):
    """Which pair was drawn.

    Args:
        arm: from which pairs: all eligible ones, or those worth most.
        offset: which of them, from 0.
    """

    arm: Arm
    offset: int


def draw(eligible: int, best: int, random_share: float, random: Random) -> Draw:
    """Draws one pair.

    Args:
        eligible: how many pairs haven't been asked about, at least 1.
        best: how many of them are worth most, at least 1.
        random_share: the chance of being drawn from all eligible pairs.
        random: where chance comes from.
    """
    if random.random() < random_share:
        return Draw("random", random.randrange(eligible))
    return Draw("strategy", random.randrange(best))


def draw_probability(is_best: bool, eligible: int, best: int, random_share: float) -> float:
    """The probability with which ``draw`` draws a pair, given whether it is one of those worth most."""
    return random_share / eligible + (1 - random_share) / best * is_best


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
        scores: (n,) of the pairs that could be asked about; equal ones are put in random order, and have the same
            probability.
        budget: how many to select; all of them where there are fewer.
        random_share: above 0, so that every pair can be selected; 1 for a random sample.
        seed: the same one gives the same batch.

    Raises:
        ConfigError: the budget or the share is out of range.
    """
    if budget < 1:
        raise ConfigError(f"has to be at least 1, not {budget}", where="--budget")
    check_share(random_share)
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
    by_rank = selection_probabilities(count, budget, drawn)
    # Equal scores are in random order, so each of them has had the chance of all of their ranks.
    _, level = np.unique(np.asarray(scores), return_inverse=True)
    by_level = np.bincount(level[ranking], weights=by_rank) / np.bincount(level)
    probability = by_level[level[places]]
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
