"""Points, fronts and best-of-N, against enumeration and simulation."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dipole.errors import DataError
from dipole.evaluate.frontier import (
    Point,
    best_of_n,
    best_of_n_bound,
    challenges,
    pareto_front,
    point_of,
    read_points,
)


def record(
    method: str, kl: float, reward: float, *, strength: str = "", prompts: int = 20, noise: float = 0.1, seed: int = 0
) -> dict[str, Any]:
    """Rows of two completions a prompt around the given means; the same seed gives the same prompts."""
    random = np.random.default_rng(seed)
    shift = random.normal(0, noise, prompts)
    shift -= shift.mean()
    rows = [
        {
            "prompt": number,
            "reward": reward + shift[number] + side,
            "kl": kl,
            "k1": kl,
            "k3": kl,
            "tokens": 7,
            "finished": True,
        }
        for number in range(prompts)
        for side in (-0.01, 0.01)
    ]
    return {"method": method, "strength": strength, "step": 1, "samples": 8, "rows": rows}


def point(method: str, kl: float, reward: float, **options: Any) -> Point:
    return point_of(record(method, kl, reward, **options))


def test_a_point_has_the_means_of_its_rows_clustered_by_prompt() -> None:
    found = point("dpo", 2.0, 0.5, strength="β = 0.1")
    assert found.name == "dpo β = 0.1"
    assert found.at == (pytest.approx(2.0), pytest.approx(0.5))
    assert (found.reward.n, found.reward.clusters) == (40, 20)
    assert found.finished is not None
    assert found.finished.value == 1
    assert len(found.rewards_by_prompt) == 20
    without = record("best_of_n", 1.0, 0.5)
    for row in without["rows"]:
        row |= {"k1": None, "k3": None, "finished": None}
    assert (point_of(without).k1, point_of(without).finished) == (None, None)


def test_a_front_holds_what_nothing_beats() -> None:
    places = [(0.0, 0.1), (1.0, 0.5), (1.0, 0.4), (2.0, 0.45), (3.0, 0.9), (4.0, 0.9), (0.5, 0.1)]
    front = [found.at for found in pareto_front(point("dpo", *place) for place in places)]
    expected = [
        place
        for place in places
        if not any(other != place and other[0] <= place[0] and other[1] >= place[1] for other in places)
    ]
    assert front == [pytest.approx(place) for place in sorted(expected)]


def test_a_champion_is_held_against_every_front() -> None:
    points = [
        point("dpo", 1.0, 0.5),
        point("dpo", 3.0, 0.8),
        point("ppo", 1.5, 0.3, seed=1),
        point("ppo", 4.0, 1.2, seed=2),
        point("ipo", 0.5, 0.2),
        point("kto", 3.5, 0.8001, noise=3.0, seed=5),
    ]
    found = {(item.point.method, round(item.point.at[0], 1)): item for item in challenges(points)}
    assert found["ppo", 1.5].verdict == "better"
    assert found["ppo", 1.5].champion is points[0]
    assert found["ppo", 4.0].verdict == "worse"
    assert found["ppo", 4.0].champion is points[1]
    assert found["ipo", 0.5].champion is None
    assert found["kto", 3.5].verdict == "unclear"
    difference = found["ppo", 1.5].difference
    assert difference is not None
    assert difference.value == pytest.approx(0.2)
    assert difference.n == 20, "one value a prompt"


@pytest.mark.parametrize("n", [1, 2, 4])
def test_the_reward_of_best_of_n_is_the_mean_over_all_sets(n: int) -> None:
    selector = [0.3, -1.0, 0.3, 2.0, 0.0, 0.3]
    rewards = [1.0, 5.0, 2.0, -3.0, 0.5, 9.0]

    def chosen(index: tuple[int, ...]) -> float:
        top = max(selector[i] for i in index)
        return float(np.mean([rewards[i] for i in index if selector[i] == top]))

    expected = np.mean([chosen(index) for index in itertools.combinations(range(6), n)])
    assert best_of_n(selector, rewards, n)[0] == pytest.approx(expected)


def test_the_kl_of_best_of_n_is_that_of_its_distribution() -> None:
    """Of a bandit with a tie: what is chosen in simulation has the distribution whose KL is returned."""
    values, counts = np.array([0.0, 1.0, 3.0]), np.array([50, 30, 20])
    selector = np.repeat(values, counts)
    _, kl = best_of_n(selector.tolist(), selector.tolist(), 4)
    draws = np.random.default_rng(0).choice(values, size=(400_000, 4), p=counts / 100).max(1)
    shares = np.array([(draws == value).mean() for value in values])
    assert kl == pytest.approx(float(np.sum(shares * np.log(shares / (counts / 100)))), abs=0.01)
    assert kl < best_of_n_bound(4)


def test_without_ties_the_kl_is_the_bound() -> None:
    many = np.random.default_rng(1).permutation(5000).tolist()
    for n in (1, 2, 8):
        _, kl = best_of_n(many, many, n)
        assert kl == pytest.approx(best_of_n_bound(n), abs=0.003)
        assert kl <= best_of_n_bound(n) + 1e-12
    assert best_of_n_bound(1) == 0
    assert best_of_n_bound(4) == pytest.approx(math.log(4) - 0.75)


def test_where_all_are_equal_nothing_is_chosen() -> None:
    assert best_of_n([0.0] * 5, [1.0, 2.0, 3.0, 4.0, 5.0], 3) == (pytest.approx(3.0), 0.0)
    with pytest.raises(DataError, match="best of 6"):
        best_of_n([0.0] * 5, [0.0] * 5, 6)


def test_points_are_read_from_a_folder(tmp_path: Path) -> None:
    for name, kl in (("b", 1.0), ("a", 2.0)):
        (tmp_path / f"{name}.json").write_text(json.dumps(record("dpo", kl, 0.5)), encoding="utf-8")
    assert [found.at[0] for found in read_points(tmp_path)] == [pytest.approx(2.0), pytest.approx(1.0)]
    (tmp_path / "c.json").write_text("{}", encoding="utf-8")
    with pytest.raises(DataError, match="isn't a point"):
        read_points(tmp_path)
