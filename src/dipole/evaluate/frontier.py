"""Reward against KL: what each method gets for how far it moves from the reference. Numbers only, no models.

A *point* is one policy: a method at one strength after some training, with rows of what was sampled from it. Everything
is clustered by prompt, since completions of one prompt resemble each other.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dipole.errors import DataError
from dipole.evaluate.stats import Estimate, Verdict, mean, paired_difference, share, verdict

Row = Mapping[str, Any]
"""What was measured of one completion; of best-of-N, of one prompt.

``prompt`` names its cluster, ``reward``, ``tokens`` and ``finished`` say what they are. ``kl`` is Σ_t KL(π_t‖π_ref,t),
the exact sum over the vocabulary at every sampled step; ``k1`` and ``k3`` estimate it from the sampled tokens alone,
Σ_t d_t and Σ_t (exp(−d_t) − 1 + d_t) with d = log π − log π_ref. What can't be had is ``None``.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One policy on the plane of reward and KL.

    Args:
        method: such as ``"dpo"``.
        strength: such as ``"β = 0.1"``; empty where a method has none.
        step: optimizer steps, or rounds, of training so far.
        samples: completions of the training budget that it has seen.
        reward: mean reward.
        kl: mean KL(policy‖reference), nats a completion, from the exact sums over the vocabulary.
        k1, k3: the same from the sampled tokens alone.
        tokens: mean length.
        finished: share that ended by themselves.
        bound: the most that the KL can be, where that is known.
        rewards_by_prompt: mean reward of each prompt, for paired comparisons.
    """

    method: str
    strength: str
    step: int
    samples: int
    reward: Estimate
    kl: Estimate
    k1: Estimate | None
    k3: Estimate | None
    tokens: Estimate | None
    finished: Estimate | None
    bound: float | None
    rewards_by_prompt: Mapping[str, float]

    @property
    def name(self) -> str:
        """The method and its strength."""
        return f"{self.method} {self.strength}".strip()

    @property
    def at(self) -> tuple[float, float]:
        """(KL, reward)."""
        assert self.kl.value is not None
        assert self.reward.value is not None
        return self.kl.value, self.reward.value


def read_points(folder: Path) -> list[Point]:
    """The points of a folder, a file each, in the order of their names.

    Raises:
        DataError: a file isn't a point.
    """
    points = []
    for path in sorted(folder.glob("*.json")):
        try:
            points.append(point_of(json.loads(path.read_text(encoding="utf-8"))))
        except (ValueError, KeyError, TypeError) as fault:
            raise DataError(f"this isn't a point of a frontier: {fault!r}", where=str(path)) from fault
    return points


def point_of(record: Mapping[str, Any]) -> Point:
    """A point from its record: ``method``, ``strength``, ``step``, ``samples``, ``rows`` and maybe ``bound``."""
    rows: Sequence[Row] = record["rows"]
    prompts = [str(row["prompt"]) for row in rows]
    by_prompt: dict[str, list[float]] = {}
    for prompt, row in zip(prompts, rows, strict=True):
        by_prompt.setdefault(prompt, []).append(row["reward"])

    def values(name: str) -> list[float] | None:
        known = [float(row[name]) for row in rows if row.get(name) is not None]
        return known if len(known) == len(rows) else None

    def estimate(name: str) -> Estimate | None:
        known = values(name)
        return None if known is None else mean(known, prompts)

    reward, kl = estimate("reward"), estimate("kl")
    assert reward is not None
    assert kl is not None
    ended = values("finished")
    return Point(
        method=record["method"],
        strength=record["strength"],
        step=record["step"],
        samples=record["samples"],
        reward=reward,
        kl=kl,
        k1=estimate("k1"),
        k3=estimate("k3"),
        tokens=estimate("tokens"),
        finished=None if ended is None else share(ended, prompts),
        bound=record.get("bound"),
        rewards_by_prompt={prompt: float(np.mean(values)) for prompt, values in by_prompt.items()},
    )


def pareto_front(points: Iterable[Point]) -> list[Point]:
    """The points that no other beats: less KL with at least the reward, or more reward with at most the KL.

    In the order of their KL. It goes by the estimates, and so is partly chance where intervals overlap.
    """
    front: list[Point] = []
    for point in sorted(points, key=lambda point: (point.at[0], -point.at[1])):
        if not front or point.at[1] > front[-1].at[1]:
            front.append(point)
    return front


def best_of_n_bound(n: int) -> float:
    """The bound log N − (N−1)/N: what KL(best of N‖reference) is at most, and is where no two rewards are equal.

    Beirami et al. 2024, arXiv 2401.01879.
    """
    return math.log(n) - (n - 1) / n


def best_of_n(selector: Sequence[float], rewards: Sequence[float], n: int) -> tuple[float, float]:
    """Expected reward and KL of taking the best of N, from M samples of the reference for one prompt.

    The reward is the mean over all sets of N of the M samples, so it is unbiased. The KL is that of the distribution of
    the selector's values: given the highest value, the completion is a draw of the reference, so nothing else differs.
    With q(v) the share of samples of value v and F the share of at most v, best-of-N has F(v)^N − F(v−)^N in its place.
    Plugging in shares of M samples needs M well above N.

    Args:
        selector: (M,) by which the best is chosen; equals are drawn from at random.
        rewards: (M,) what is reported.
        n: of which the best is taken, at most M.

    Returns:
        The expected reward, and the KL to the reference in nats.
    """
    m = len(selector)
    if not 1 <= n <= m:
        raise DataError(f"the best of {n} can't be had from {m} samples")
    values, level, counts = np.unique(np.asarray(selector), return_inverse=True, return_counts=True)
    up_to = counts.cumsum()
    sets = np.array([math.comb(int(count), n) for count in up_to], dtype=object)
    chosen = np.diff(sets, prepend=0) / math.comb(m, n)
    level_reward = np.bincount(level, weights=np.asarray(rewards, dtype=np.float64)) / counts
    shares, below = counts / m, (up_to - counts) / m
    tilted = (up_to / m) ** n - below**n
    kl = float(np.sum(tilted * np.log(tilted / shares)))
    assert len(values) == len(chosen)
    return float(chosen.astype(np.float64) @ level_reward), max(0.0, kl)


@dataclass(frozen=True, slots=True, kw_only=True)
class Challenge:
    """A point of another method's front, and the best that the champion has without more KL.

    Args:
        point: of the other method.
        champion: its point of the highest reward among those with at most the KL of ``point``; ``None`` if there is
            none.
        difference: reward of the champion minus that of ``point``, paired by prompt.
        verdict: ``"better"`` if the champion's reward is higher by the interval, ``"worse"``, or ``"unclear"``.
    """

    point: Point
    champion: Point | None
    difference: Estimate | None
    verdict: Verdict | None


def challenges(points: Sequence[Point], champion: str = "dpo") -> list[Challenge]:
    """Every point of the other methods' fronts against the champion: where it doesn't dominate is what is looked for.

    The champion's point is chosen by the same rewards that are then compared, which favours the champion.
    """
    own = [point for point in points if point.method == champion]
    found = []
    for method in dict.fromkeys(point.method for point in points if point.method != champion):
        for point in pareto_front(point for point in points if point.method == method):
            nearer = [candidate for candidate in own if candidate.at[0] <= point.at[0]]
            if not nearer:
                found.append(Challenge(point=point, champion=None, difference=None, verdict=None))
                continue
            best = max(nearer, key=lambda candidate: candidate.at[1])
            gap = _difference(best, point)
            found.append(Challenge(point=point, champion=best, difference=gap, verdict=verdict(gap)))
    return found


def _difference(left: Point, right: Point) -> Estimate:
    prompts = [prompt for prompt in left.rewards_by_prompt if prompt in right.rewards_by_prompt]
    return paired_difference(*([side.rewards_by_prompt[prompt] for prompt in prompts] for side in (left, right)))
