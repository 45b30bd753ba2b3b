"""Agreement against evalica and scikit-learn, on data mirrored beforehand; areas and shares against scikit-learn."""

from __future__ import annotations

import math

import evalica
import numpy as np
import pandas
import pytest
from sklearn.metrics import cohen_kappa_score, roc_auc_score

from dipole.data.audit.agreement import agreement, vote_pairs
from dipole.data.audit.intervals import preference_auc, share


def votes(people: int, units: int, *, seed: int, coverage: float = 0.7, ties: float = 0.1) -> np.ndarray:
    """(units, people) of 0, ½, 1, NaN where nobody voted; four in five votes follow the unit's truth."""
    random = np.random.default_rng(seed)
    truth = random.integers(0, 2, size=(units, 1))
    said = np.where(random.random((units, people)) < 0.8, truth, 1 - truth).astype(float)
    said[random.random((units, people)) < ties] = 0.5
    said[random.random((units, people)) > coverage] = np.nan
    return said


def as_rows(said: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    unit, person = np.nonzero(~np.isnan(said))
    return unit, person, said[unit, person]


def mirrored(said: np.ndarray) -> np.ndarray:
    return np.concatenate([said, 1 - said])


@pytest.mark.parametrize("seed", range(5))
def test_alpha_is_that_of_evalica_on_mirrored_votes(seed: int) -> None:
    said = votes(4, 60, seed=seed)
    pairs = vote_pairs(*as_rows(said))
    table = pandas.DataFrame(mirrored(said).T)  # people by units
    expected = evalica.alpha(table, distance="nominal").alpha
    assert agreement(pairs, pairs.unit).alpha == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_kappa_of_two_is_that_of_scikit_learn_on_mirrored_votes(seed: int) -> None:
    said = votes(2, 80, seed=seed)
    pairs = vote_pairs(*as_rows(said))
    both = mirrored(said[~np.isnan(said).any(axis=1)])
    expected = cohen_kappa_score((2 * both[:, 0]).astype(int), (2 * both[:, 1]).astype(int))
    assert agreement(pairs, pairs.unit).kappa == pytest.approx(expected, abs=1e-12)


def test_raw_agreement_by_hand() -> None:
    """Three agree on one unit (3 pairs of votes), two differ on another: 3 of 4."""
    pairs = vote_pairs(np.array([7, 7, 7, 9, 9]), np.array([0, 1, 2, 0, 1]), np.array([1.0, 1, 1, 1, 0]))
    assert agreement(pairs, pairs.unit).raw == 0.75


def test_who_wrote_the_preferred_answer_first_doesnt_matter() -> None:
    said = votes(3, 50, seed=1)
    turned = np.where(np.arange(50)[:, None] % 2 == 0, said, 1 - said)
    one, other = (agreement(pairs, pairs.unit) for pairs in (vote_pairs(*as_rows(said)), vote_pairs(*as_rows(turned))))
    assert one == other


def test_the_interval_covers_in_95_of_100() -> None:
    """α of the population is that of 100,000 units; 200 samples of 100 units give 200 intervals."""

    def found(units: int, seed: int):
        pairs = vote_pairs(*as_rows(votes(3, units, seed=seed)))
        return agreement(pairs, pairs.unit)

    truth = found(100_000, 0).alpha
    intervals = [found(100, seed).alpha_interval for seed in range(1, 201)]
    covered = sum(low <= truth <= high for low, high in intervals)
    assert 181 <= covered <= 198  # 190 ± 2.9 standard deviations below, above at most as many as a binomial gives


def test_one_vote_of_an_annotator_counts_on_a_unit() -> None:
    pairs = vote_pairs(np.array([1, 1, 1]), np.array([0, 0, 1]), np.array([0.0, 1.0, 1.0]))
    assert pairs.agree.tolist() == [1.0]


def test_nobody_to_agree_with() -> None:
    assert len(vote_pairs(np.array([1, 2]), np.array([0, 0]), np.array([0.0, 1.0])).agree) == 0


@pytest.mark.parametrize("seed", range(3))
def test_the_area_is_that_of_scikit_learn_on_both_sides(seed: int) -> None:
    scores = np.random.default_rng(seed).normal(0.3, 1, size=200).round(1)  # with ties
    area, (low, high) = preference_auc(scores, np.arange(200))
    expected = roc_auc_score([1] * 200 + [0] * 200, np.concatenate([scores, -scores]))
    assert area == pytest.approx(expected, abs=1e-12)
    assert low < area < high


def test_the_areas_interval_covers_in_95_of_100_with_clusters() -> None:
    """Four pairs of a prompt share half of their score's variance; the true area is that of N(0.5, 1)."""
    truth = 0.5 * (1 + math.erf(0.5))  # P(s + t > 0) = Φ(2·0.5 / √2)
    covered = 0
    for seed in range(300):
        random = np.random.default_rng(seed)
        shared = np.repeat(random.normal(0, 0.5**0.5, 60), 4)
        low, high = preference_auc(0.5 + shared + random.normal(0, 0.5**0.5, 240), np.repeat(np.arange(60), 4))[1]
        covered += low <= truth <= high
    assert 274 <= covered <= 297


def test_a_share_takes_a_cluster_as_one_observation() -> None:
    value, interval = share(np.array([1, 1, 1, 1, 0]), np.array([5, 5, 5, 5, 9]))
    assert value == 0.5
    assert interval == share(np.array([1, 0]), np.array([0, 1]))[1]
