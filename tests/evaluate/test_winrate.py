"""Win rates: what judges with known faults come out as, and the statistics against truth by simulation."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from scipy import special

from dipole.evaluate.opinion import Opinion, opinions
from dipole.evaluate.stats import share
from dipole.evaluate.winrate import (
    Match,
    detectable,
    difference_from_json,
    difference_to_json,
    differences,
    length_controlled,
    matches_of,
    rate_from_json,
    rate_to_json,
    win_rates,
)
from dipole.feedback.judge import Pair
from dipole.group import Comparison, Completion, Group, Judgment, Rating, plain


class Says:
    """A judge that compares by a function of (first text, second text)."""

    def __init__(self, p: Callable[[str, str], float | None]) -> None:
        self.name = "says"
        self._p = p

    def judge(self, group: Group, pairs: Sequence[Pair]) -> tuple[Judgment, ...]:
        found = []
        for i, j in pairs:
            p = self._p(plain(group.completions[i].text), plain(group.completions[j].text))
            invalid = {"weight": 0.0, "meta": {"verdict": "invalid"}} if p is None else {}
            found.append(Comparison(i=i, j=j, p=0.5 if p is None else p, annotator=self.name, **invalid))  # type: ignore[arg-type]
        return tuple(found)


class Scores:
    """A judge that rates by length."""

    name = "scores"

    def judge(self, group: Group, pairs: Sequence[Pair]) -> tuple[Judgment, ...]:
        return tuple(Rating(i=i, value=float(len(plain(c.text)))) for i, c in enumerate(group.completions))


def groups(count: int, texts: tuple[str, str] = ("good", "bad!!")) -> list[Group]:
    answers = tuple(Completion(text=text) for text in texts)
    return [Group(id=f"g{number}", prompt=f"prompt {number}", completions=answers) for number in range(count)]


def a_match(win: float | None, prompt: int, method: str = "dpo", temperature: float = 1.0, gap: int = 0) -> Match:
    return Match(
        prompt=str(prompt),
        method=method,
        temperature=temperature,
        win=win,
        consistent=None if win is None else True,
        length=100 + gap,
        other_length=100,
    )


def test_a_judge_that_always_takes_the_first_finds_no_winner_and_is_never_consistent() -> None:
    (rate,) = win_rates(matches_of(Says(lambda a, b: 1.0), groups(40), method="dpo", temperature=0.0))
    assert rate.rate.value == 0.5
    assert rate.consistent.value == 0.0
    assert rate.ties == 40


def test_a_judge_that_knows_the_better_one_finds_it_in_both_orders() -> None:
    (rate,) = win_rates(matches_of(Says(lambda a, b: float(a == "good")), groups(40), method="dpo", temperature=0.0))
    assert (rate.rate.value, rate.consistent.value, rate.ties, rate.invalid) == (1.0, 1.0, 0, 0)
    (flipped,) = win_rates(matches_of(Says(lambda a, b: float(a != "good")), groups(40), method="x", temperature=0.0))
    assert (flipped.rate.value, flipped.consistent.value) == (0.0, 1.0)


def test_a_judge_that_flips_is_consistent_and_wrong() -> None:
    (rate,) = win_rates(matches_of(Says(lambda a, b: float(len(a) > len(b))), groups(30), method="m", temperature=1.0))
    assert rate.rate.value == 0.0, "the shorter one is the better one, and it says the longer"
    assert rate.consistent.value == 1.0
    assert rate.rate.high is not None
    assert rate.rate.high < 0.2


def test_a_random_judge_is_consistent_half_of_the_time_and_finds_no_winner() -> None:
    covered, consistent = 0, []
    for seed in range(40):
        random = np.random.default_rng(seed)
        judge = Says(lambda a, b, random=random: float(random.random() < 0.5))  # type: ignore[misc]
        (rate,) = win_rates(matches_of(judge, groups(100), method="dpo", temperature=0.0), resamples=20)
        assert rate.rate.low is not None
        assert rate.rate.high is not None
        covered += rate.rate.low < 0.5 < rate.rate.high
        consistent.append(rate.consistent.value)
    assert covered >= 35
    assert np.mean(consistent) == pytest.approx(0.5, abs=0.03)


def test_a_pair_without_a_verdict_counts_for_nobody() -> None:
    found = list(matches_of(Says(lambda a, b: None), groups(5), method="dpo", temperature=0.0))
    (rate,) = win_rates(found)
    assert (rate.invalid, rate.rate.value, rate.rate.n) == (5, None, 0)


def test_one_order_without_a_verdict_leaves_the_other() -> None:
    (opinion,) = next(opinions(Says(lambda a, b: 1.0 if a == "good" else None), [(groups(1)[0], ((0, 1),))]))
    assert opinion == Opinion(1.0, None)


def test_scores_and_equal_texts() -> None:
    longer = list(matches_of(Scores(), groups(3), method="dpo", temperature=0.0))
    assert {(item.win, item.consistent) for item in longer} == {(0.0, True)}
    equal = list(matches_of(Says(lambda a, b: 1.0), groups(3, ("same", "same")), method="dpo", temperature=0.0))
    assert {item.win for item in equal} == {0.5}


def test_the_length_controlled_rate_recovers_the_rate_at_equal_length() -> None:
    random = np.random.default_rng(1)
    gap = random.normal(40, 30, size=20_000)  # the method writes longer answers, and the judge likes length
    p = special.expit(0.3 + 1.2 * np.tanh(gap / gap.std()))
    rows = np.stack([(random.random(len(gap)) < p).astype(float), gap], axis=1)
    assert rows[:, 0].mean() > 0.7
    assert length_controlled(rows) == pytest.approx(float(special.expit(0.3)), abs=0.02)


def test_the_length_controlled_rate_stays_finite() -> None:
    assert 0.9 < length_controlled(np.array([[1.0, float(gap)] for gap in range(20)])) < 1
    assert length_controlled(np.array([[0.5, 0.0]] * 4)) == pytest.approx(0.5)
    separated = np.array([[float(gap > 0), float(gap)] for gap in (-30, -20, -10, 10, 20, 30)])
    assert length_controlled(separated) == pytest.approx(0.5, abs=1e-6)


def test_the_detectable_difference_is_found_in_eight_of_ten_samples() -> None:
    random = np.random.default_rng(2)
    reach = detectable(share((random.random(400) < 0.5).astype(float)))
    assert reach is not None
    draws = [share((random.random(400) < 0.5 + reach).astype(float)) for _ in range(400)]
    found = np.mean([draw.low is not None and draw.low > 0.5 for draw in draws])
    assert 0.72 < found < 0.88


def test_differences_are_paired_by_prompt_and_corrected() -> None:
    random = np.random.default_rng(3)
    base = random.integers(0, 2, size=60)
    better = [a_match(1.0, n, "dpo") for n in range(60)]
    other = [a_match(float(win), n, "sft") for n, win in enumerate(base)]
    third = [a_match(float(win), n, "ppo") for n, win in enumerate(base)]
    missing = [a_match(None, 60, "ppo"), a_match(1.0, 60, "dpo")]
    found = {(item.first, item.second): item for item in differences([*better, *other, *third, *missing])}
    assert found["dpo", "sft"].difference.value == pytest.approx(1 - base.mean())
    assert found["dpo", "ppo"].difference.n == 60
    assert found["sft", "ppo"].adjusted == 1.0
    first = found["dpo", "sft"]
    assert first.adjusted is not None
    assert first.test.p_value is not None
    assert first.test.p_value < first.adjusted < 0.01


def test_rates_and_differences_survive_their_file() -> None:
    matches = [a_match(float(n % 2), n, method) for n in range(8) for method in ("dpo", "sft")]
    for rate in win_rates(matches, resamples=50):
        assert rate_from_json(json.loads(json.dumps(rate_to_json(rate)))) == rate
    for found in differences(matches):
        assert difference_from_json(json.loads(json.dumps(difference_to_json(found)))) == found
