"""What is asked next, and with which probability it was selected."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import sqlalchemy as sql
from hypothesis import given
from hypothesis import strategies as st
from studio_site import ballot, make_groups, open_site

from dipole.errors import ConfigError, DataError
from dipole.feedback.active.strategies import STRATEGIES
from dipole.feedback.assign import (
    disagreement,
    draw,
    load_scores,
    pairs_of,
    priorities,
    selection_probability,
)
from dipole.feedback.store import pair, selection
from dipole.group import Comparison, Completion, Group, Rating

KEYS = [("g0", 0, 1), ("g1", 0, 1), ("g2", 0, 1)]


@given(st.integers(1, 50).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n))), st.floats(0, 1))
def test_probabilities_of_all_pairs_sum_to_one(sizes: tuple[int, int], share: float) -> None:
    eligible, best = sizes
    total = best * selection_probability(True, eligible, best, share)
    total += (eligible - best) * selection_probability(False, eligible, best, share)
    assert total == pytest.approx(1, abs=1e-9)


def test_pairs_are_drawn_as_often_as_their_probability_says() -> None:
    random, eligible, best, share, times = Random(0), 5, 2, 0.3, 40_000
    drawn: Counter[int] = Counter()
    for _ in range(times):
        found = draw(eligible, best, share, random)
        drawn[found.offset] += 1  # the best ones are numbered first
        assert found.offset < (eligible if found.arm == "random" else best)
    for place in range(eligible):
        p = selection_probability(place < best, eligible, best, share)
        assert abs(drawn[place] / times - p) < 4 * (p * (1 - p) / times) ** 0.5


@pytest.mark.parametrize(
    ("strategy", "expected"), [("uncertain", [1, 2, 0]), ("certain", [0, 2, 1]), ("change", [2, 1, 0])]
)
def test_scores_put_pairs_in_order(strategy: str, expected: list[int]) -> None:
    scores = dict(zip(KEYS, (-3.0, 0.1, 2.0), strict=True))
    found = priorities(strategy, pairs_of(make_groups(3)), scores)
    assert sorted(KEYS, key=lambda key: -found[key]) == [KEYS[place] for place in expected]


@pytest.mark.parametrize("strategy", ["uncertain", "certain", "change"])
def test_pairs_without_a_score_come_last(strategy: str) -> None:
    found = priorities(strategy, pairs_of(make_groups(3)), {KEYS[0]: 5.0, KEYS[2]: -1.0})
    assert min(found, key=lambda key: found[key]) == KEYS[1]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_scores_are_given_where_they_mean_something(strategy: str) -> None:
    pairs = pairs_of(make_groups(2))
    needs = strategy in ("uncertain", "certain", "change")
    with pytest.raises(ConfigError, match="--scores" if needs else "doesn't go by scores"):
        priorities(strategy, pairs, None if needs else dict.fromkeys(pairs, 0.0))


def test_split_votes_come_before_none_and_those_before_unanimous_ones() -> None:
    split, tie, none, one, two = map(disagreement, ([1, -1], [0], [], [1], [1, 1]))
    assert split > tie > none == one > two
    assert disagreement([1, -1]) == pytest.approx(3 / 8), "2 ab / ((a + b)(a + b + 1)) with a = b = 3/2"
    assert disagreement([-1, -1, 1]) == disagreement([1, 1, -1])


def test_what_the_data_disagree_on_comes_first() -> None:
    calm, torn, silent = make_groups(3)
    calm = replace(calm, judgments=(Comparison(i=0, j=1), Comparison(i=1, j=0, p=0.0)))
    ratings = (("a", 0, 1), ("a", 1, 2), ("b", 0, 2), ("b", 1, 1))
    torn = replace(torn, judgments=tuple(Rating(annotator=who, i=i, value=value) for who, i, value in ratings))
    found = priorities("disagreed", pairs_of([calm, torn, silent]))
    assert sorted(KEYS, key=lambda key: -found[key]) == [KEYS[1], KEYS[2], KEYS[0]]


def test_diverse_pairs_come_from_every_topic_first() -> None:
    topics = ("trains run on rails", "bread needs some yeast", "stars are far away")
    groups = [
        Group(
            id=f"{topic}-{number}",
            prompt="Tell me something",
            completions=(Completion(text=f"{topics[topic]} {number}"), Completion(text="no idea")),
        )
        for number in range(4)
        for topic in range(3)
    ]
    found = priorities("diverse", pairs_of(groups))
    first = sorted(found, key=lambda key: -found[key])[:3]
    assert {key[0][0] for key in first} == {"0", "1", "2"}
    assert len(set(found.values())) == len(groups)


def test_the_first_pairs_are_those_of_the_strategy(tmp_path: Path) -> None:
    groups = make_groups(8)
    scores = {(group.id, 0, 1): float(number) for number, group in enumerate(groups)}
    site = open_site(tmp_path, groups, strategy="uncertain", scores=scores, random_share=0.0)
    anna = site.store.person("Anna")
    order = []
    while lying := site.queue.desk(anna).assignments:
        order.append(lying[0].group_id)
        site.queue.answer(anna, ballot(lying[0].key))
    assert order == [group.id for group in groups]


@pytest.mark.parametrize(("strategy", "share"), [("random", 0.1), ("certain", 0.25), ("certain", 1.0)])
def test_selections_are_written_down_with_their_probability(tmp_path: Path, strategy: str, share: float) -> None:
    groups = make_groups(40)
    scores = None if strategy == "random" else {(group.id, 0, 1): float(n) for n, group in enumerate(groups)}
    site = open_site(tmp_path, groups, strategy=strategy, scores=scores, random_share=share)
    anna = site.store.person("Anna")
    while lying := site.queue.desk(anna).assignments:
        site.queue.answer(anna, ballot(lying[0].key))
    with site.store.read() as connection:
        rows = list(
            connection.execute(
                sql.select(selection, pair.c.priority).select_from(selection.join(pair)).order_by(pair.c.opened)
            )
        )
    assert len(rows) == 40
    for number, row in enumerate(rows):
        best = [row.priority for row in rows[number:]]
        expected = selection_probability(
            row.priority == max(best), 40 - number, sum(value == max(best) for value in best), share
        )
        assert (row.eligible, row.strategy) == (40 - number, strategy)
        assert row.probability == pytest.approx(expected)
    if strategy == "certain":
        assert sum(row.arm == "random" for row in rows) == pytest.approx(40 * share, abs=8)


def test_a_weighted_mean_of_what_was_selected_is_unbiased(tmp_path: Path) -> None:
    """Farquhar et al. 2021, eq. 8: the levelled mean of a sample that prefers some pairs, drawn many times."""
    random, values, share, drawn_each = Random(1), [0.0, 1.0, 5.0, 9.0, 2.0, 4.0], 0.4, 3
    estimates = []
    for _ in range(6_000):
        left, total = dict(enumerate(values)), 0.0
        count = len(values)
        for number in range(1, drawn_each + 1):
            order = sorted(left, key=lambda place: -left[place])
            found = draw(len(order), 1, share, random)
            place = order[found.offset]
            p = selection_probability(place == order[0], len(order), 1, share)
            weight = 1 + (count - drawn_each) / (count - number) * (1 / ((count - number + 1) * p) - 1)
            total += weight * left.pop(place) / drawn_each
        estimates.append(total)
    mean = sum(estimates) / len(estimates)
    spread = (sum((value - mean) ** 2 for value in estimates) / len(estimates) / len(estimates)) ** 0.5
    assert abs(mean - sum(values) / len(values)) < 4 * spread
    assert abs(mean - max(values)) > 10 * spread, "the plain mean would be far off"


def test_scores_are_read(tmp_path: Path) -> None:
    file = tmp_path / "scores.jsonl"
    file.write_text('{"id": "g0", "i": 1, "j": 0, "score": 0.5}\n\n{"id": "g1", "i": 0, "j": 1, "score": -2}\n')
    assert load_scores(file, pairs_of(make_groups(2))) == {KEYS[0]: 0.5, KEYS[1]: -2.0}


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("nonsense", "isn't the score of a pair"),
        ('{"id": "g0", "i": 0, "j": 1}', "isn't the score of a pair"),
        ('{"id": "g0", "i": 0, "j": 1, "score": "high"}', "isn't the score of a pair"),
        ('["g0", 0, 1, 2]', "isn't the score of a pair"),
        ('{"id": "g9", "i": 0, "j": 1, "score": 1}', "group 'g9' has no two different answers"),
        ('{"id": "g0", "i": 0, "j": 0, "score": 1}', "no two different answers"),
        ('{"id": "g0", "i": 0, "j": 1, "score": NaN}', "finite"),
    ],
)
def test_scores_that_arent_any_are_refused_with_their_line(tmp_path: Path, line: str, problem: str) -> None:
    file = tmp_path / "scores.jsonl"
    file.write_text(f'{{"id": "g1", "i": 0, "j": 1, "score": 1}}\n{line}\n')
    with pytest.raises(DataError, match=problem) as caught:
        load_scores(file, pairs_of(make_groups(2)))
    assert caught.value.where == f"{file}:2"


def test_groups_without_two_different_answers_are_refused() -> None:
    same = Group(id="g", prompt="p", completions=(Completion(text="a"), Completion(text="a")))
    with pytest.raises(DataError, match="nothing to compare"):
        pairs_of([same])
