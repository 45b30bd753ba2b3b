"""Judges beside people: judges with known faults, the ceiling by its definition, coefficients against scikit-learn."""

from __future__ import annotations

import json
from itertools import combinations

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from dipole.errors import DataError
from dipole.evaluate.agreement import JudgeAgreement, human_ceiling, judge_agreement, people_of
from dipole.evaluate.opinion import Opinion
from dipole.group import Comparison, Completion, Group, Rating


def votes_on_pairs(count: int, raters: int, skill: float, seed: int = 0) -> tuple[list[Group], list[int]]:
    """Pairs with a known better completion; every rater names it with probability ``skill``."""
    random = np.random.default_rng(seed)
    groups, truth = [], []
    for number in range(count):
        better = int(random.integers(2))
        right = random.random(raters) < skill
        judgments = tuple(
            Comparison(i=0, j=1, p=float((better == 0) == bool(ok)), annotator=f"r{rater}")
            for rater, ok in enumerate(right)
        )
        completions = (Completion(text="a"), Completion(text="b"))
        category = "short" if number % 2 else "long"
        groups.append(
            Group(
                id=str(number),
                prompt=f"p{number}",
                completions=completions,
                judgments=judgments,
                meta={"category": category},
            )
        )
        truth.append(better)
    return groups, truth


GROUPS, TRUTH = votes_on_pairs(300, 5, 0.8)
PEOPLE = people_of(GROUPS)


def test_a_perfect_judge_agrees_with_one_person_as_often_as_a_person_is_right() -> None:
    found = judge_agreement(PEOPLE, "perfect", [Opinion(float(better == 0), True) for better in TRUTH])
    assert found.without_ties.raw.value == pytest.approx(0.8, abs=0.03)
    assert found.majority.value == pytest.approx(0.94, abs=0.03)  # 5 raters of 0.8: 94 % of majorities are right
    assert found.consistent is not None
    assert found.consistent.value == 1
    assert set(found.by_category) == {"long", "short"}
    assert found.pairs == 300


def test_a_judge_that_flips_and_one_that_always_says_first() -> None:
    flips = judge_agreement(PEOPLE, "flips", [Opinion(float(better == 1), True) for better in TRUTH])
    assert flips.without_ties.raw.value == pytest.approx(0.2, abs=0.03)
    assert flips.without_ties.kappa.value is not None
    assert flips.without_ties.kappa.value < -0.4
    first = judge_agreement(PEOPLE, "first", [Opinion(0.5, False) for _ in TRUTH])
    assert first.consistent is not None
    assert first.consistent.value == 0
    assert first.without_ties.raw.value is None
    assert first.without_ties.left_out == 1500
    assert first.majority.value == 0.5


def test_a_random_judge_agrees_by_chance() -> None:
    random = np.random.default_rng(1)
    found = judge_agreement(PEOPLE, "random", [Opinion(float(random.random() < 0.5), None) for _ in TRUTH])
    assert found.without_ties.kappa.low is not None
    assert found.without_ties.kappa.high is not None
    assert found.without_ties.kappa.low < 0 < found.without_ties.kappa.high


def test_the_ceiling_is_the_agreement_of_two_people() -> None:
    found = human_ceiling(PEOPLE)
    assert found is not None
    assert found.without_ties.raw.value == pytest.approx(0.8**2 + 0.2**2, abs=0.03)
    by_hand = [
        a.p == b.p
        for group in GROUPS
        for a, b in combinations((j for j in group.judgments if isinstance(j, Comparison)), 2)
    ]
    assert found.without_ties.raw.value == pytest.approx(np.mean(by_hand))
    assert human_ceiling(people_of(votes_on_pairs(5, 1, 0.8)[0])) is None


def test_kappa_is_scikit_learns_on_mirrored_votes() -> None:
    random = np.random.default_rng(2)
    said = [
        Opinion(float(random.random() < 0.7) if better == 0 else float(random.random() < 0.3), None) for better in TRUTH
    ]
    found = judge_agreement(PEOPLE, "judge", said)
    judge = np.array([said[unit].p for unit in PEOPLE.unit])
    oracle = cohen_kappa_score(np.concatenate([judge, 1 - judge]), np.concatenate([PEOPLE.vote, 1 - PEOPLE.vote]))
    assert found.with_ties.kappa.value == pytest.approx(oracle, abs=1e-9)


def test_a_calibrated_judge_is_found_calibrated_and_brier_is_the_mean_square() -> None:
    random = np.random.default_rng(3)
    p = random.random(3000)
    groups = [
        Group(
            id=str(number),
            prompt=f"p{number}",
            completions=(Completion(text="a"), Completion(text="b")),
            judgments=(Comparison(i=0, j=1, p=float(random.random() < q), annotator="r"),),
        )
        for number, q in enumerate(p)
    ]
    people = people_of(groups)
    found = judge_agreement(people, "knows", [Opinion(float(q), True) for q in p])
    assert found.brier is not None
    assert found.brier.value == pytest.approx(float(np.mean((p - people.vote) ** 2)))
    for part in found.calibration:
        assert part.found.value == pytest.approx(part.said, abs=0.06)


def test_ratings_of_anonymous_raters_are_votes_and_ties_are_counted() -> None:
    ratings = [(3, 1), (2, 2), (0, 4)]
    judgments = tuple(
        Rating(i=i, value=float(value), annotator=f"r{rater}")
        for rater, pair in enumerate(ratings)
        for i, value in enumerate(pair)
    )
    group = Group(id="g", prompt="p", completions=(Completion(text="a"), Completion(text="b")), judgments=judgments)
    people = people_of([group])
    assert sorted(people.vote) == [0.0, 0.5, 1.0]
    found = judge_agreement(people, "first", [Opinion(1.0, True)])
    assert (found.without_ties.raw.value, found.without_ties.left_out) == (0.5, 1)
    assert found.with_ties.raw.value == pytest.approx(1 / 3)


def test_without_verdicts_and_without_people() -> None:
    found = judge_agreement(PEOPLE, "silent", [Opinion(None, None)] * 150 + [Opinion(1.0, True)] * 150)
    assert (found.pairs, found.invalid) == (150, 150)
    with pytest.raises(DataError, match="nobody has judged"):
        people_of([Group(id="g", prompt="p", completions=(Completion(text="a"),))])


def test_what_was_found_survives_its_file() -> None:
    judge = judge_agreement(PEOPLE, "first", [Opinion(0.75, False)] * 300)
    ceiling = human_ceiling(PEOPLE)
    assert ceiling is not None
    for found in (judge, ceiling):
        assert JudgeAgreement.from_json(json.loads(json.dumps(found.to_json()))) == found
