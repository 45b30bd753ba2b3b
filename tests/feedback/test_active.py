"""Selection: strategies and batches as functions of arrays, pools of groups, the simulation, the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations, permutations
from pathlib import Path

import numpy as np
import pytest
from crowds import group, pair, vote
from scipy import sparse
from scipy.special import expit

import dipole
from dipole.data.formats import save_groups
from dipole.errors import ConfigError, DataError
from dipole.feedback.active import learner, strategies
from dipole.feedback.active.choose import choose, selection_probabilities
from dipole.feedback.active.pool import pool_of, scored, unjudged
from dipole.feedback.active.simulate import compare_labels, learning_curves, sizes_of
from dipole.group import Approval, Comparison, Completion, Group, Rating

Say = Callable[..., tuple[int, str, str]]


def test_doubt_and_certainty() -> None:
    odds = np.array([0.0, 2.0, -1.5, 800.0, -900.0])
    assert np.argsort(-strategies.uncertain(odds)).tolist() == [0, 2, 1, 3, 4]
    assert np.argsort(-strategies.certain(odds)).tolist() == [4, 3, 1, 2, 0], "also where p is 0 or 1 to rounding"


def test_split_votes_come_before_none_and_those_before_agreement() -> None:
    scores = strategies.disagreed(np.array([5.0, 1.0, 0.0, 1.0, 3.0, 0.0]), np.array([10.0, 2.0, 0.0, 1.0, 3.0, 3.0]))
    assert scores[0] > scores[1] > scores[2] == scores[3] > scores[4] == scores[5]


def test_disagreement_is_the_expected_one() -> None:
    """2 E[q(1−q)] under the Beta posterior, by simulation."""
    draws = np.random.default_rng(0).beta(2.5, 1.5, size=400_000)
    assert strategies.disagreed(np.array([2.0]), np.array([3.0]))[0] == pytest.approx(
        2 * np.mean(draws * (1 - draws)), abs=1e-3
    )


def test_expected_change_is_the_expected_gradient() -> None:
    x, w = np.array([0.6, -0.3]), np.array([1.0, 0.5])
    p = expit(x @ w)
    lengths = [np.linalg.norm((p - y) * x) for y in (1, 0)]
    expected = p * lengths[0] + (1 - p) * lengths[1]
    assert strategies.change(np.array([x @ w]), np.array([np.linalg.norm(x)]))[0] == pytest.approx(expected)


@pytest.mark.parametrize("make", [np.asarray, sparse.csr_array])
def test_diverse_is_greedy_k_centre(make: Callable[[np.ndarray], object]) -> None:
    points = np.array([[1.0, 0.0], [0.9, 0.1], [-1.0, 0.0], [0.0, 2.0], [0.0, 0.1]])
    order = np.argsort(-strategies.diverse(make(points)))
    assert order[0] == 3
    assert order[1] in (0, 2)  # a pair turned round is the same pair
    assert {order[1], order[-1]} == {0, 2} or order[-1] in (0, 2)
    after = strategies.diverse(make(points), np.array([3]))
    assert np.argmin(after) == 3
    assert np.argmax(after) in (0, 2)


@pytest.mark.parametrize("seed", range(3))
def test_diverse_against_plain_loops(seed: int) -> None:
    points = np.random.default_rng(seed).normal(size=(12, 3))
    known = [0, 5]

    def distance(a: int, b: int) -> float:
        return min(np.sum((points[a] - points[b]) ** 2), np.sum((points[a] + points[b]) ** 2))

    chosen = list(known)
    while len(chosen) < 12:
        left = [k for k in range(12) if k not in chosen]
        chosen.append(max(left, key=lambda k: min(distance(k, other) for other in chosen)))
    found = np.argsort(-strategies.diverse(points, np.array(known)))
    assert found[:10].tolist() == chosen[2:]
    some = np.argsort(-strategies.diverse(points, np.array(known), limit=4))
    assert some[:4].tolist() == chosen[2:6]
    assert sorted(some[:10].tolist()) == sorted(chosen[2:])


def test_a_batch_has_its_random_share_and_the_best() -> None:
    scores = np.arange(100.0)
    found = choose(scores, 20, random_share=0.25, seed=1)
    assert len(set(found.places.tolist())) == 20
    assert found.at_random.sum() == 5
    best = [place for place in range(99, -1, -1) if place not in found.places[:5]][:15]
    assert found.places[5:].tolist() == best
    assert choose(scores, 20, random_share=0.25, seed=1).places.tolist() == found.places.tolist()


def test_equal_scores_are_a_random_sample() -> None:
    counts = np.zeros(10)
    for seed in range(500):
        found = choose(np.zeros(10), 3, random_share=0.1, seed=seed)
        counts[found.places] += 1
        np.testing.assert_allclose(found.probability, 0.3)
    assert np.all(np.abs(counts / 500 - 0.3) < 0.085)


def test_probabilities_of_equal_scores_are_exact() -> None:
    """By going through every order of those that are equal and every possible random part."""
    scores, budget, drawn = np.array([2.0, 1.0, 1.0, 1.0, 0.0]), 3, 1
    times = np.zeros(5)
    ways = list(permutations([1, 2, 3]))
    for middle in ways:
        ranking = [0, *middle, 4]
        for part in range(5):
            times[[part, *[place for place in ranking if place != part][: budget - drawn]]] += 1
    expected = times / (5 * len(ways))
    for seed in range(20):
        found = choose(scores, budget, random_share=0.3, seed=seed)
        np.testing.assert_allclose(found.probability, expected[found.places])


@pytest.mark.parametrize(
    ("count", "budget", "share"), [(8, 3, 0.3), (6, 4, 0.5), (5, 5, 0.2), (7, 2, 1.0), (1, 1, 0.1)]
)
def test_probabilities_of_selection_are_exact(count: int, budget: int, share: float) -> None:
    """By going through every possible random part."""
    drawn = int(np.ceil(share * budget - 1e-9))
    times = np.zeros(count)
    ways = list(combinations(range(count), drawn))
    for part in ways:
        rest = [rank for rank in range(count) if rank not in part][: budget - drawn]
        times[[*part, *rest]] += 1
    np.testing.assert_allclose(selection_probabilities(count, budget, drawn), times / len(ways), atol=1e-12)


def test_estimates_weighted_by_the_probability_are_unbiased() -> None:
    """What is selected for being high would give too high a mean; weighted with 1/probability it doesn't."""
    random = np.random.default_rng(0)
    values = random.random(60)
    scores = values + 0.1 * random.normal(size=60)
    plain, weighted = [], []
    for seed in range(500):
        found = choose(scores, 15, random_share=0.4, seed=seed)
        plain.append(values[found.places].mean())
        weighted.append(np.sum(values[found.places] / found.probability) / 60)
    assert np.mean(plain) > values.mean() + 0.1
    error = np.std(weighted) / np.sqrt(len(weighted))
    assert abs(np.mean(weighted) - values.mean()) < 4 * error


@pytest.mark.parametrize(("budget", "share"), [(0, 0.1), (5, 0.0), (5, 1.5), (5, float("nan"))])
def test_impossible_batches(budget: int, share: float) -> None:
    with pytest.raises(ConfigError, match="--"):
        choose(np.zeros(10), budget, random_share=share)


def test_the_learner_learns_and_takes_soft_labels() -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=(400, 3))
    true = np.array([1.0, -0.5, 0.0])
    soft = learner.fit(x, expit(x @ true))
    np.testing.assert_allclose(soft, true, atol=0.05)
    np.testing.assert_allclose(learner.fit(-x, 1 - expit(x @ true)), soft, atol=1e-3)
    np.testing.assert_allclose(learner.fit(sparse.csr_array(x), expit(x @ true)), soft, atol=1e-3)


GOOD, BAD = ("warm", "kind", "bright", "lovely"), ("dull", "grey", "odd", "slow")


def reviews(count: int, *, judged: int, seed: int = 0, votes: int = 1, noise: float = 0.0) -> list[Group]:
    """Pairs of one good and one bad answer of two words, the first ones judged."""
    random = np.random.default_rng(seed)
    groups = []
    for number in range(count):
        words = [" ".join(random.choice(kind, 2)) for kind in (GOOD, BAD)]
        first = int(random.integers(2))
        said = [float(first == 0) if random.random() >= noise else float(first == 1) for _ in range(votes)]
        judgments = tuple(Comparison(i=0, j=1, p=p) for p in said) if number < judged else ()
        texts = words if first == 0 else words[::-1]
        groups.append(
            Group(
                id=f"r{number}",
                prompt=f"p{number}",
                completions=tuple(Completion(text=text) for text in texts),
                judgments=judgments,
            )
        )
    return groups


def test_a_pool_has_every_pair_of_different_texts() -> None:
    groups = [group("a", 3, vote(1.0, "ann"), vote(0.0, "ben"), vote(0.8, "model", i=2, j=0))]
    pool = pool_of(groups, "model")
    assert list(zip(pool.first.tolist(), pool.second.tolist(), strict=True)) == [(0, 1), (0, 2), (1, 2)]
    assert pool.wins.tolist() == [1.0, 0.0, 0.0]
    assert pool.votes.tolist() == [2.0, 0.0, 0.0]
    np.testing.assert_allclose(expit(pool.odds), [np.nan, 0.2, np.nan])
    same = Group(id="b", prompt="p", completions=(Completion(text="x"), Completion(text="x")))
    with pytest.raises(DataError, match="nothing to compare"):
        pool_of([same])
    with pytest.raises(DataError, match="no pair has a judgment by 'nobody'"):
        pool_of(groups, "nobody")


@pytest.mark.parametrize("strategy", strategies.STRATEGIES)
def test_judged_pairs_are_not_asked_about_again(strategy: strategies.Strategy) -> None:
    pool = pool_of(reviews(60, judged=30))
    places = unjudged(pool, strategy)
    scores, _ = scored(pool, strategy, places)
    assert len(places) == len(scores) == (60 if strategy == "disagreed" else 30)
    assert np.isfinite(scores).all()


def test_predictions_go_before_the_learner() -> None:
    groups = [pair(f"g{n}", vote(p, "model")) for n, p in enumerate((0.5, 0.9, 0.2))]
    pool = pool_of(groups, "model")
    scores, odds = scored(pool, "uncertain", unjudged(pool, "uncertain", has_odds=True), has_odds=True)
    assert np.argmax(scores) == 0
    np.testing.assert_allclose(expit(odds), [0.5, 0.9, 0.2])


def test_ratings_of_a_model_are_rewards_whose_differences_are_log_odds() -> None:
    """As ``dipole judge --judge implicit:…`` writes them, and people's approvals beside them stay people's."""
    said = tuple(Rating(annotator="implicit:a+b", i=i, value=value) for i, value in ((0, 0.3), (1, -0.4), (2, 0.1)))
    people = (Approval(annotator="ann", i=0, value=True), Approval(annotator="ann", i=1, value=False))
    pool = pool_of([replace(group("a", 4), judgments=(*said, *people))], "implicit:a+b")
    assert pool.keys[:2] == [("a", 0, 1), ("a", 0, 2)]
    np.testing.assert_allclose(pool.odds, [0.7, 0.2, np.nan, -0.5, np.nan, np.nan])
    assert pool.votes.tolist() == [1.0, 0, 0, 0, 0, 0]
    assert pool.wins.tolist() == [1.0, 0, 0, 0, 0, 0]
    assert unjudged(pool, "uncertain", has_odds=True).tolist() == [1, 3], "only those that the model knows"


def test_too_few_judgments_to_learn_from() -> None:
    with pytest.raises(DataError, match="too few"):
        scored(pool_of(reviews(30, judged=5)), "uncertain", np.arange(10))
    with pytest.raises(DataError, match="nothing left"):
        unjudged(pool_of(reviews(30, judged=30)), "random")


def test_sizes_grow_to_the_whole_pool() -> None:
    assert sizes_of(200, 50, 1.5) == [50, 75, 113, 170, 200]
    assert sizes_of(20, 50, 1.5) == [20]


def test_curves_begin_and_end_together() -> None:
    points = learning_curves(reviews(110, judged=110, noise=0.1), strategies.STRATEGIES, repeats=2)
    for repeat in (0, 1):
        rows = {arm: [p for p in points if p.arm == arm and p.repeat == repeat] for arm in strategies.STRATEGIES}
        first, last = ({row[k].accuracy for row in rows.values()} for k in (0, -1))
        assert len(first) == len(last) == 1
        assert {len(row) for row in rows.values()} == {len(rows["random"])}
        assert last.pop() > 0.8


def test_a_given_split_is_kept() -> None:
    groups = reviews(150, judged=150)
    split = [
        Group(
            id=g.id,
            prompt=g.prompt,
            completions=g.completions,
            judgments=g.judgments,
            split="eval" if n < 40 else "train",
        )
        for n, g in enumerate(groups)
    ]
    assert learning_curves(split, ["random"], repeats=2)[-1].num_labels == 110


def test_more_votes_make_better_labels() -> None:
    points = compare_labels(reviews(200, judged=200, votes=7, noise=0.4), (1, 7), repeats=3)
    entropy = {arm: np.mean([p.cross_entropy for p in points if p.arm == arm]) for arm in {p.arm for p in points}}
    assert len(entropy) == 8
    assert entropy["soft, 7 votes a pair"] < entropy["soft, 1 vote a pair"]
    assert {p.num_labels for p in points if p.arm.endswith("7 votes a pair")} <= set(range(7 * 100, 7 * 200))


def test_too_little_to_simulate_with() -> None:
    with pytest.raises(DataError, match="too few to simulate"):
        learning_curves(reviews(30, judged=30), ["random"])


def test_selection_from_the_command_line(command: Say, tmp_path: Path) -> None:
    data, output, scores = tmp_path / "data.jsonl", tmp_path / "ask.jsonl", tmp_path / "scores.jsonl"
    extra = group("big", 3, vote(1.0, "ann"))
    save_groups([*reviews(60, judged=30), extra], data)
    status, out, err = command(
        "active", "--data", data, "--strategy", "uncertain", "--budget", "10", "--output", output, "--scores", scores
    )
    assert (status, err) == (0, "")
    assert "10 of 32 pairs, 1 of them at random" in out
    chosen = dipole.load_groups(output)
    assert len(chosen) == 10
    for item in chosen:
        noted = item.meta["active"]
        assert item.id == (f"big#{noted['i']}-{noted['j']}" if noted["group"] == "big" else noted["group"])
        assert not item.judgments
        assert 0 < noted["probability"] <= 1
        assert noted["arm"] in ("random", "strategy")
    rows = [json.loads(line) for line in scores.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 32
    assert set(rows[0]) == {"id", "i", "j", "score"}


def test_split_votes_are_asked_about_with_their_votes(command: Say, tmp_path: Path) -> None:
    data, output = tmp_path / "data.jsonl", tmp_path / "ask.jsonl"
    save_groups(
        [
            pair("agree", vote(1.0, "a"), vote(1.0, "b")),
            group("split", 3, vote(1.0, "a", i=2, j=1), vote(0.0, "b", i=2, j=1)),
        ],
        data,
    )
    assert (
        command(
            "active",
            "--data",
            data,
            "--strategy",
            "disagreed",
            "--budget",
            "2",
            "--random_share",
            "0.5",
            "--output",
            output,
        )[0]
        == 0
    )
    found = {item.id: item for item in dipole.load_groups(output)}
    assert "split#1-2" in found
    assert [(judged.i, judged.j, judged.p) for judged in found["split#1-2"].judgments] == [(1, 0, 1.0), (1, 0, 0.0)]  # type: ignore[attr-defined]


def test_a_simulation_from_the_command_line(command: Say, tmp_path: Path) -> None:
    data, folder = tmp_path / "data.jsonl", tmp_path / "out"
    save_groups(reviews(110, judged=110, votes=3, noise=0.2), data)
    status, out, _ = command("active", "--data", data, "--simulate", "--repeats", "2", "--output", folder)
    assert status == 0
    assert "| uncertain |" in out
    assert {path.name for path in folder.iterdir()} == {"curves.json", "curves.svg", "curves.png", "curves.md"}
    found = json.loads((folder / "curves.json").read_text(encoding="utf-8"))
    assert found["command"] == "dipole active --data data.jsonl --simulate --output out --repeats 2"
    assert found["curves"][0]["arm"] == "random"
    assert (folder / "curves.svg").read_text(encoding="utf-8").count("<svg") == 1


@pytest.mark.parametrize(
    ("argv", "problem"),
    [
        (("--simulate", "--budget", "5"), "--budget"),
        (("--repeats", "5"), "--repeats"),
        (("--simulate", "--repeats", "1"), "--repeats"),
        (("--strategy", "random", "--scores", "s.jsonl"), "--scores"),
        (("--budget", "0", "--strategy", "random"), "--budget"),
    ],
)
def test_options_that_do_not_fit(command: Say, tmp_path: Path, argv: tuple[str, ...], problem: str) -> None:
    data = tmp_path / "data.jsonl"
    save_groups(reviews(60, judged=30), data)
    status, _, err = command("active", "--data", data, "--output", tmp_path / "o.jsonl", *argv)
    assert status == 2
    assert problem in err
