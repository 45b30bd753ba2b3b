"""Selections: best of N, rejection sampling as the paper has it, pairing policies, and what is dropped."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

from dipole.data.audit import audit
from dipole.data.select import Pairing, accepted, best_of_n, scores, select_pairs
from dipole.errors import ConfigError, DataError
from dipole.group import Comparison, Completion, Group, Judgment, Rating


def rated(values: Sequence[float], *, id: str = "g", texts: Sequence[str] | None = None) -> Group:
    texts = texts or [f"answer {i}" for i in range(len(values))]
    return Group(
        id=id,
        prompt="p",
        completions=tuple(Completion(text=text) for text in texts),
        judgments=tuple(Rating(i=i, value=value, annotator="judge") for i, value in enumerate(values)),
    )


def pairs(group: Group, **options: Any) -> list[tuple[int, int]]:
    chosen = select_pairs([group], Pairing(**options)).groups
    return [(item.i, item.j) for found in chosen for item in found.judgments if isinstance(item, Comparison)]


def test_policies_choose_their_pairs() -> None:
    group = rated([0.2, 0.9, -0.5, 0.6])
    assert pairs(group, policy="best_worst") == [(1, 2)]
    assert pairs(group, policy="all_pairs") == [(1, 3), (1, 0), (1, 2), (3, 0), (3, 2), (0, 2)]
    assert pairs(group, policy="gap", min_gap=0.7) == [(1, 0), (1, 2), (3, 2), (0, 2)]
    assert pairs(group, policy="gap", min_gap=1.5) == []


def test_equal_scores_and_equal_texts_are_dropped_and_counted() -> None:
    groups = [
        rated([1, 1, 1], id="a"),
        rated([3, 1, 1], id="b", texts=["same", "other", "same"]),
        rated([2], id="c"),
    ]
    found = select_pairs(groups, Pairing(policy="all_pairs"))
    assert [group.id for group in found.groups] == ["b"]
    assert found.counts == {
        "pairs": 1,
        "pairs_of_equal_score": 4,
        "pairs_of_equal_text": 1,
        "groups_without_pairs": 2,
    }
    assert found.groups[0].judgments == (Comparison(i=0, j=1, annotator="judge"),)
    assert found.groups[0].completions == groups[1].completions


def test_what_was_only_compared_is_scored_by_its_wins_and_keeps_its_probability() -> None:
    judgments: list[Judgment] = [
        Comparison(i=0, j=1, p=0.75, annotator="j"),
        Comparison(i=1, j=2, p=1.0, annotator="j"),
        Comparison(i=2, j=0, p=0.375, annotator="j"),
        Comparison(i=2, j=3, p=0.5, annotator="j"),
        Comparison(i=0, j=3, p=1.0, weight=0.0, annotator="j"),
    ]
    group = Group(
        id="g", prompt="p", completions=tuple(Completion(text=str(i)) for i in range(4)), judgments=tuple(judgments)
    )
    values = scores(group)
    assert values == {0: 0.6875, 1: 0.625, 2: pytest.approx((0 + 0.375 + 0.5) / 3), 3: 0.5}
    found = select_pairs([group], Pairing(policy="all_pairs"))
    assert [(item.i, item.j, item.p) for item in found.groups[0].judgments] == [
        (0, 1, 0.75),
        (0, 2, 0.625),
        (1, 2, 1.0),
    ]  # type: ignore[attr-defined]
    assert found.counts == {"pairs": 3, "pairs_not_judged": 2, "pairs_of_equal_score": 1}


def test_one_annotator_counts_and_scales_are_never_mixed() -> None:
    group = rated([1, 2])
    other = tuple(Rating(i=i, value=-value, annotator="people") for i, value in enumerate([1.0, 2.0]))
    both = Group(id="g", prompt="p", completions=group.completions, judgments=(*group.judgments, *other))
    with pytest.raises(DataError, match="2 annotators"):
        select_pairs([both], Pairing())
    for annotator, better in (("judge", 1), ("people", 0)):
        (chosen,) = select_pairs([both], Pairing(), annotator=annotator).groups
        assert chosen.judgments == (Comparison(i=better, j=1 - better, annotator=annotator),)


def test_best_of_n() -> None:
    best = best_of_n([rated([1, 5, 5]), Group(id="x", prompt="p", completions=(Completion(text="a"),))])
    assert [group.completions for group in best] == [(Completion(text="answer 1"),)]
    assert best[0].judgments == ()


def paper(candidates: dict[int, float], count: int, beta: float, draw: random.Random) -> list[int]:
    """Algorithm 1 of arXiv 2309.06657, literally: probability against the best of what is left, pass by pass."""
    chosen: list[int] = []
    while len(chosen) < count:
        highest = max(candidates.values())
        removed = []
        for candidate, reward in candidates.items():
            u = draw.uniform(0, 1)
            if u >= math.exp((reward - highest) / beta):
                continue
            chosen.append(candidate)
            removed.append(candidate)
            if len(chosen) == count:
                break
        for candidate in removed:
            candidates.pop(candidate)
    return chosen


@pytest.mark.parametrize("beta", [0.05, 0.5, 5.0])
def test_rejection_sampling_is_that_of_the_paper(beta: float) -> None:
    draw = random.Random(1)
    for seed in range(50):
        values = {i: draw.gauss(0, 1) for i in range(9)}
        found = accepted(values, 4, beta, random.Random(seed))
        assert found == paper(dict(values), 4, beta, random.Random(seed))
        assert len(set(found)) == 4


def test_better_completions_are_accepted_first_more_often_and_all_of_few() -> None:
    values, beta, draw = {0: 0.0, 1: math.log(2), 2: math.log(4)}, 1.0, random.Random(0)
    counts: Counter[int] = Counter()
    for _ in range(6000):
        order = list(values)
        draw.shuffle(order)
        taken = accepted({i: values[i] for i in order}, 3, beta, draw)
        counts[taken[0]] += 1
    assert counts[2] > counts[1] > counts[0]
    assert sorted(accepted(values, 5, beta, draw)) == [0, 1, 2]


def test_pairs_of_rejection_sampling_are_neighbours_of_those_accepted_the_better_first() -> None:
    group = rated([0.1 * i for i in range(10)])
    first = pairs(group, policy="rejection", accept=6, beta=0.5)
    assert first == pairs(group, policy="rejection", accept=6, beta=0.5)
    assert first != pairs(group, policy="rejection", accept=6, beta=0.5, seed=1)
    assert len(first) == 3
    assert all(i > j for i, j in first)
    taken = accepted(scores(group), 6, 0.5, random.Random("0:g"))
    assert [set(pair) for pair in first] == [set(taken[:2]), set(taken[2:4]), set(taken[4:])]


@pytest.mark.parametrize(
    ("options", "where"),
    [
        ({"policy": "gap"}, "min_gap"),
        ({"policy": "best_worst", "min_gap": 1.0}, "min_gap"),
        ({"policy": "rejection", "accept": 4}, "beta"),
        ({"policy": "rejection", "accept": 1, "beta": 1.0}, "accept"),
        ({"policy": "rejection", "accept": 4, "beta": 0.0}, "beta"),
        ({"policy": "best"}, "policy"),
    ],
)
def test_options_that_mean_nothing_are_refused(options: dict[str, Any], where: str) -> None:
    with pytest.raises(ConfigError, match=where):
        Pairing(**options)


def test_empty_answers_and_answers_that_look_alike_are_never_paired() -> None:
    texts = ["", " Good", "good\n", "bad", " \t", "worse"]
    group = rated([9, 3, 1, 2, -9, -5], texts=texts)
    best = select_pairs([group], Pairing())
    assert [completion.text for completion in best.groups[0].completions] == [" Good", "good\n", "bad", "worse"]
    assert best.groups[0].judgments == (Comparison(i=0, j=3, annotator="judge"),)
    assert best.counts == {"pairs": 1, "empty_completions": 2}
    assert select_pairs([group], Pairing(policy="all_pairs")).counts == {
        "pairs": 5,
        "empty_completions": 2,
        "pairs_of_equal_text": 1,
    }
    for policy in (Pairing(), Pairing(policy="all_pairs"), Pairing(policy="rejection", accept=4, beta=9.0)):
        audit(select_pairs([group], policy).groups).raise_for_errors(where="pairs")
    assert [item.completions[0].text for item in best_of_n([group])] == [" Good"]
    nothing = select_pairs([rated([1, 2], texts=["", "  "])], Pairing())
    assert (nothing.groups, nothing.counts) == ([], {"pairs": 0, "empty_completions": 2, "groups_without_pairs": 1})
