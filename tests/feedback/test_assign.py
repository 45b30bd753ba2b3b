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
from dipole.feedback.active.choose import draw, draw_probability
from dipole.feedback.active.pool import PairKey, pool_of, scored, unjudged
from dipole.feedback.active.strategies import MODEL, STRATEGIES, Strategy
from dipole.feedback.assign import disagreement, load_scores, priorities, with_scores
from dipole.feedback.export import export_groups
from dipole.feedback.store import Store, pair, selection
from dipole.group import Comparison, Completion, Group, Rating

KEYS = [("g0", 0, 1), ("g1", 0, 1), ("g2", 0, 1)]

ALWAYS = 1e-12
"""A random share that leaves chance nothing to say."""


@given(st.integers(1, 50).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n))), st.floats(0, 1))
def test_probabilities_of_all_pairs_sum_to_one(sizes: tuple[int, int], share: float) -> None:
    eligible, best = sizes
    total = best * draw_probability(True, eligible, best, share)
    total += (eligible - best) * draw_probability(False, eligible, best, share)
    assert total == pytest.approx(1, abs=1e-9)


def test_pairs_are_drawn_as_often_as_their_probability_says() -> None:
    random, eligible, best, share, times = Random(0), 5, 2, 0.3, 40_000
    drawn: Counter[int] = Counter()
    for _ in range(times):
        found = draw(eligible, best, share, random)
        drawn[found.offset] += 1  # the best ones are numbered first
        assert found.offset < (eligible if found.arm == "random" else best)
    for place in range(eligible):
        p = draw_probability(place < best, eligible, best, share)
        assert abs(drawn[place] / times - p) < 4 * (p * (1 - p) / times) ** 0.5


def answers(count: int) -> list[Group]:
    """Pairs of an answer with a good word and one with a bad word; neither says how good."""
    good, bad = ("warm", "kind", "bright", "lovely"), ("dull", "grey", "odd", "slow")
    return [
        Group(
            id=f"g{number}",
            prompt=f"p{number}",
            completions=tuple(
                Completion(text=f"{words[number % 4]} {words[number // 4 % 4]}") for words in (good, bad)
            ),
        )
        for number in range(count)
    ]


@pytest.mark.parametrize(
    ("strategy", "expected"), [("uncertain", [1, 2, 0]), ("certain", [0, 2, 1]), ("change", [1, 2, 0])]
)
def test_scores_put_pairs_in_order(strategy: Strategy, expected: list[int]) -> None:
    pool = with_scores(pool_of(make_groups(3)), dict(zip(KEYS, (-300.0, 0.1, 200.0), strict=True)))
    found = priorities(pool, strategy, has_odds=True)
    assert sorted(KEYS, key=lambda key: -found[key]) == [KEYS[place] for place in expected]


@pytest.mark.parametrize("strategy", MODEL)
def test_pairs_without_a_score_come_last(strategy: Strategy) -> None:
    pool = with_scores(pool_of(make_groups(3)), {KEYS[0]: 5.0, KEYS[2]: -1.0})
    found = priorities(pool, strategy, has_odds=True)
    assert min(found, key=lambda key: found[key]) == KEYS[1]


def test_a_file_of_no_scores_is_no_learner(tmp_path: Path) -> None:
    site = open_site(tmp_path, strategy="uncertain", scores={})
    assert len(set(kept_priorities(site.store).values())) == 1


@pytest.mark.parametrize("strategy", sorted(set(STRATEGIES) - set(MODEL)))
def test_a_model_is_asked_where_it_means_something(tmp_path: Path, strategy: Strategy) -> None:
    with pytest.raises(ConfigError, match=f"'{strategy}' asks no model"):
        open_site(tmp_path, strategy=strategy, scores={})
    with pytest.raises(ConfigError, match=f"'{strategy}' asks no model"):
        open_site(tmp_path, strategy=strategy, predictions="model")
    with pytest.raises(ConfigError, match="--predictions"):
        open_site(tmp_path, strategy="uncertain", scores={}, predictions="model")


@pytest.mark.parametrize(
    ("strategy", "by"),
    [
        *((name, "learner") for name in STRATEGIES),
        *((name, by) for name in MODEL for by in ("ratings", "probabilities")),
    ],
)
def test_the_page_and_the_command_put_pairs_in_the_same_order(tmp_path: Path, strategy: Strategy, by: str) -> None:
    """One mechanism: what the page does with votes as they come, the command does with the votes exported."""
    random, groups = Random(3), answers(40)
    if by == "ratings":
        said = [[Rating(annotator="model", i=i, value=random.gauss(0, 2)) for i in (0, 1)] for _ in groups]
        groups = [replace(group, judgments=tuple(judged)) for group, judged in zip(groups, said, strict=True)]
    if by == "probabilities":
        groups = [replace(g, judgments=(Comparison(annotator="model", i=1, j=0, p=random.random()),)) for g in groups]
    judged = [replace(g, judgments=(*g.judgments, Comparison(i=0, j=1, p=n % 3 / 2))) for n, g in enumerate(groups[:5])]
    groups = [*judged, *groups[5:]]
    predictions = None if by == "learner" else "model"
    site = open_site(tmp_path, groups, votes_per_pair=2)
    for name, votes in (("Anna", 24), ("Ben", 15)):
        person = site.store.person(name)
        for _ in range(votes):
            key = site.queue.desk(person).assignments[0].key
            site.queue.answer(person, ballot(key, random.choice(["left", "right", "tie"])))
    exported = list(export_groups(site.store, groups))

    # The command, on everything that was said:
    pool = pool_of(exported, predictions)
    asked = unjudged(pool, strategy, has_odds=predictions is not None)
    worths, _ = scored(pool, strategy, asked, has_odds=predictions is not None)
    keys = pool.keys
    expected = [keys[place] for place in asked[(-worths).argsort(kind="stable")]]

    # The page, opened again on what it was opened with at first:
    open_site(tmp_path, groups, store=site.store, strategy=strategy, predictions=predictions)
    kept = kept_priorities(site.store)
    assert [key for key in sorted(kept, key=lambda key: -kept[key]) if key in set(expected)] == expected
    assert len(expected) >= 10


def kept_priorities(store: Store) -> dict[PairKey, float]:
    with store.read() as connection:
        rows = connection.execute(sql.select(pair).order_by(pair.c.id))
        return {(row.group_id, row.i, row.j): row.priority for row in rows}


def test_votes_move_a_pair_as_a_new_start_would(tmp_path: Path) -> None:
    """``disagreed`` goes by votes as they come; a restart doesn't forget them."""
    data = [replace(g, judgments=(Comparison(i=0, j=1, p=0.9, annotator="j"),)) for g in make_groups(6)]
    site = open_site(tmp_path, data, strategy="disagreed", votes_per_pair=3, random_share=ALWAYS)
    random = Random(0)
    for name in ("Anna", "Ben", "Cleo"):
        person = site.store.person(name)
        for _ in range(5):
            key = site.queue.desk(person).assignments[0].key
            choice = random.choice(["left", "right", "tie"])
            site.queue.answer(person, ballot(key, choice, slightly=choice != "tie" and random.random() < 0.5))
    moved = kept_priorities(site.store)
    open_site(tmp_path, data, store=site.store, strategy="disagreed", votes_per_pair=3)
    assert len(set(moved.values())) > 3
    assert kept_priorities(site.store) == pytest.approx(moved)


def test_the_learner_of_the_page_learns_from_its_votes(tmp_path: Path) -> None:
    groups = answers(60)
    with pytest.raises(DataError, match="too few to learn from"):
        open_site(tmp_path, groups, strategy="certain")
    site = open_site(tmp_path, groups)
    anna = site.store.person("Anna")
    for _ in range(30):
        item = site.queue.desk(anna).assignments[0]
        site.queue.answer(anna, ballot(item.key, "left" if item.left == 0 else "right"))
    site = open_site(tmp_path, groups, store=site.store, strategy="certain", random_share=ALWAYS)
    kept = kept_priorities(site.store)
    assert len(set(kept.values())) > 3, "the learner has opinions"
    ben = site.store.person("Ben")
    shown = site.queue.desk(ben).assignments
    with site.store.read() as connection:
        fresh = {row.group_id for row in connection.execute(sql.select(pair).where(pair.c.votes == 0))}
    likely = sorted((kept[id, 0, 1] for id in fresh), reverse=True)
    held = {item.group_id for item in site.queue.desk(anna).assignments}
    assert all(item.group_id in fresh - held for item in shown)
    assert max(kept[item.group_id, 0, 1] for item in shown) >= likely[len(held) + 1]


def test_split_votes_come_before_none_and_those_before_unanimous_ones() -> None:
    split, tie, none, one, two = map(disagreement, ([1, 0], [0.5], [], [1], [1, 1]))
    assert split > tie > none == one > two
    assert disagreement([1, 0]) == pytest.approx(3 / 8), "2 ab / ((a + b)(a + b + 1)) with a = b = 3/2"
    assert disagreement([0, 0, 1]) == pytest.approx(disagreement([1, 1, 0]))
    assert disagreement([1], wins=0, votes=1) == disagreement([1, 0]), "what the data say counts as votes do"


def test_what_the_data_disagree_on_comes_first() -> None:
    calm, torn, silent = make_groups(3)
    calm = replace(calm, judgments=(Comparison(i=0, j=1), Comparison(i=1, j=0, p=0.0)))
    ratings = (("a", 0, 1), ("a", 1, 2), ("b", 0, 2), ("b", 1, 1))
    torn = replace(torn, judgments=tuple(Rating(annotator=who, i=i, value=value) for who, i, value in ratings))
    found = priorities(pool_of([calm, torn, silent]), "disagreed")
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
    found = priorities(pool_of(groups), "diverse")
    first = sorted(found, key=lambda key: -found[key])[:3]
    assert {key[0][0] for key in first} == {"0", "1", "2"}
    assert len(set(found.values())) == len(groups)


def test_the_first_pairs_are_those_of_the_strategy(tmp_path: Path) -> None:
    groups = make_groups(8)
    scores = {(group.id, 0, 1): float(number) for number, group in enumerate(groups)}
    site = open_site(tmp_path, groups, strategy="uncertain", scores=scores, random_share=ALWAYS)
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
        expected = draw_probability(
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
            p = draw_probability(place == order[0], len(order), 1, share)
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
    assert load_scores(file, KEYS) == {KEYS[0]: -0.5, KEYS[1]: -2.0}, "turned round, it has the other sign"


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
        load_scores(file, KEYS)
    assert caught.value.where == f"{file}:2"


def test_groups_without_two_different_answers_are_refused() -> None:
    same = Group(id="g", prompt="p", completions=(Completion(text="a"), Completion(text="a")))
    with pytest.raises(DataError, match="nothing to compare"):
        pool_of([same])


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1, float("nan")])
def test_a_random_share_there_is_always(tmp_path: Path, share: float) -> None:
    with pytest.raises(ConfigError, match="--random_share"):
        open_site(tmp_path, random_share=share)


def test_two_pictures_are_two_answers() -> None:
    shown = [({"role": "assistant", "content": [{"type": "image", "path": name}]},) for name in ("a.png", "b.png")]
    group = Group(id="g", prompt="Paint.", completions=tuple(Completion(text=text) for text in shown))
    assert pool_of([group]).keys == [("g", 0, 1)]
