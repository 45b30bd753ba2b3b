"""Aggregation: what goes in, what comes out, and data that no estimate should be trusted on."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from crowds import crowd, group, pair, vote

from dipole.data.formats import load_groups, save_groups
from dipole.data.reduce import reduce_groups
from dipole.errors import ConfigError, DataError
from dipole.feedback.aggregate import METHODS, aggregate, majority, one_coin, source_strengths, with_labels
from dipole.feedback.aggregate.votes import SHOWN_FIRST, votes_of
from dipole.group import Approval, Completion, Group, Ranking, Rating

EVERY = sorted(METHODS)


def labels(groups: list[Group], method: str = "one_coin") -> dict[tuple[str, int, int], float]:
    found = aggregate(groups, method).aggregation.pairs  # type: ignore[arg-type]
    columns = (found.group, found.first, found.second, found.p)
    return {
        (groups[number].id, i, j): p for number, i, j, p in zip(*(column.tolist() for column in columns), strict=True)
    }


def test_votes_become_columns() -> None:
    votes = votes_of(
        [
            pair("a", vote(1.0, "ann", **{SHOWN_FIRST: 0}), vote(0.75, "ben", i=1, j=0, **{SHOWN_FIRST: 1}), vote(0.5)),
            group("b", 3, Ranking(order=(2, 0), annotator="ann"), Rating(i=0, value=1, annotator="cleo")),
        ]
    )
    assert votes.annotators == ("ann", "ben", "(no name)")
    assert votes.pair.tolist() == [0, 0, 0, 1]
    assert votes.p.tolist() == [1.0, 0.25, 0.5, 0.0]
    assert votes.side.tolist() == [1, -1, 0, 0]
    assert (votes.group.tolist(), votes.first.tolist(), votes.second.tolist()) == ([0, 1], [0, 0], [1, 2])


def test_both_orders_of_a_judge_are_two_halves() -> None:
    judged = vote(0.6, "judge", orders={"helpful": [0.9, 0.3]})
    votes = votes_of([pair("a", judged)])
    assert votes.p.tolist() == [0.9, 0.3]
    assert votes.side.tolist() == [1, -1]
    assert votes.weight.tolist() == [0.5, 0.5]


@pytest.mark.parametrize("orders", [{"x": [0.9, 0.1]}, {"x": [None, 0.6]}, {"x": 0.6}, [0.6, 0.6], {}])
def test_orders_that_do_not_give_the_verdict_stay_with_it(orders: object) -> None:
    votes = votes_of([pair("a", vote(0.6, "judge", orders=orders))])
    assert votes.p.tolist() == [0.6]
    assert votes.side.tolist() == [0]


def test_one_person_twice_counts_once() -> None:
    votes = votes_of([pair("a", vote(1.0, "ann"), vote(0.0, "ann"), vote(1.0), vote(1.0))])
    assert votes.weight.tolist() == [0.5, 0.5, 1.0, 1.0]
    assert majority([pair("a", vote(1.0, "ann"), vote(1.0, "ann"), vote(0.0, "ben"))]).pairs.p.tolist() == [0.5]


def test_majority_by_hand() -> None:
    groups = [pair("a", vote(1.0, "x"), vote(1.0, "y"), vote(0.5, "z"))]
    assert majority(groups).pairs.p[0] == pytest.approx((2.5 + 1) / (3 + 2))
    assert majority(groups, smoothing=0.0).pairs.p[0] == pytest.approx(2.5 / 3)
    found = majority(groups).pairs
    assert 0 < found.low[0] < found.p[0] < found.high[0] < 1


@pytest.mark.parametrize("method", EVERY)
def test_turning_every_pair_round_turns_the_labels(method: str) -> None:
    data = crowd(pairs=30, ties=0.1, biases=(0.5, 0, 0, -0.5, 0), seed=1).groups
    turned = [
        Group(
            id=item.id,
            prompt=item.prompt,
            completions=item.completions[::-1],
            judgments=tuple(
                vote(
                    judged.p,
                    judged.annotator,
                    i=1 - judged.i,
                    j=1 - judged.j,
                    **{SHOWN_FIRST: 1 - judged.meta[SHOWN_FIRST]},
                )
                for judged in item.judgments
            ),
        )
        for item in data
    ]
    there, back = labels(data, method), labels(turned, method)
    assert there.keys() == back.keys()
    for key, p in there.items():
        assert back[key] == pytest.approx(1 - p, abs=1e-6)


@pytest.mark.parametrize("method", EVERY)
@pytest.mark.parametrize(
    "groups",
    [
        [pair(f"g{n}", vote(1.0, "ann")) for n in range(4)],
        [pair(f"g{n}", vote(1.0, "ann"), vote(0.0, "ben")) for n in range(4)],
        [pair(f"g{n}", *[vote(0.5, f"a{k}") for k in range(3)]) for n in range(4)],
        [pair(f"g{n}", *[vote(1.0, f"a{k}") for k in range(4)]) for n in range(4)],
        [group("g", 3, *[vote(1.0, f"a{k}", i=0, j=j) for k in range(5) for j in (1, 2)])],
        [group("g", 4, vote(1.0, "a"), vote(1.0, "a", i=2, j=3))],
        [pair("g", vote(1.0))],
        [group("g", 3, Ranking(order=(0, 1, 2)))],
        [group("g", 3, *[Rating(i=i, value=1.0, annotator="a") for i in range(3)])],
    ],
    ids=[
        "one annotator",
        "two who contradict each other",
        "ties alone",
        "all agree",
        "undefeated",
        "disconnected",
        "one vote",
        "one ranking",
        "ratings all alike",
    ],
)
def test_degenerate_data_stay_finite(method: str, groups: list[Group]) -> None:
    found = aggregate(groups, method).aggregation  # type: ignore[arg-type]
    assert np.isfinite(found.pairs.p).all()
    assert np.all((found.pairs.p > 0) & (found.pairs.p < 1))
    known = np.isfinite(found.pairs.low)
    assert np.all((found.pairs.low[known] >= 0) & (found.pairs.high[known] <= 1))
    for person in found.annotators:
        assert person.reliability is None or 0 <= person.reliability <= 1
        assert person.identified == (person.reliability is not None)


def test_one_annotator_alone_is_said() -> None:
    found = one_coin([pair(f"g{n}", vote(1.0, "ann")) for n in range(20)])
    assert found.annotators[0].reliability is None
    assert any("not identifiable" in note and "ann" in note for note in found.notes)
    assert any("1.00 votes a pair" in note for note in found.notes)
    np.testing.assert_allclose(found.pairs.p, found.pairs.p[0])
    assert 0.7 < found.pairs.p[0] < 0.95


def test_two_who_contradict_each_other_are_not_judged() -> None:
    found = one_coin([pair(f"g{n}", vote(1.0, "ann"), vote(0.0, "ben")) for n in range(20)])
    assert [person.reliability for person in found.annotators] == [None, None]
    np.testing.assert_allclose(found.pairs.p, 0.5, atol=1e-6)
    assert any("two opposite" in note for note in found.notes)


def test_ties_alone_are_ties() -> None:
    found = one_coin([pair(f"g{n}", *[vote(0.5, f"a{k}") for k in range(3)]) for n in range(20)])
    np.testing.assert_allclose(found.pairs.p, 0.5, atol=1e-9)
    assert all(person.reliability is None and person.tie_share == 1 for person in found.annotators)


def test_four_ties_outweigh_one_vote() -> None:
    others = [pair(f"o{n}", *[vote(1.0, f"a{k}") for k in range(5)]) for n in range(20)]
    ties = [pair(f"t{n}", *[vote(0.5, f"a{k}") for k in range(5)]) for n in range(10)]
    mixed = pair("m", vote(1.0, "a0"), *[vote(0.5, f"a{k}") for k in range(1, 5)])
    p = labels([*others, *ties, mixed])
    assert 0.5 < p["m", 0, 1] < 0.75
    assert p["o0", 0, 1] > 0.95


def test_parts_that_were_never_compared_get_no_label() -> None:
    groups = [group("g", 4, vote(1.0, "a"), vote(1.0, "b", i=2, j=3))]
    for method in ("bradley_terry", "plackett_luce"):
        assert set(labels(groups, method)) == {("g", 0, 1), ("g", 2, 3)}
        found = aggregate(groups, method).aggregation  # type: ignore[arg-type]
        assert any("4 pairs" in note and "no chain" in note for note in found.notes)


def test_a_spammer_is_known_as_one() -> None:
    data = crowd((0.9, 0.85, 0.8, 0.5), pairs=300, coverage=1.0, seed=2)
    (spammer,) = (person for person in one_coin(data.groups).annotators if person.name == "a3")
    assert spammer.reliability_interval is not None
    assert spammer.reliability_interval[0] < 0.5 < spammer.reliability_interval[1]


def test_an_adversary_counts_the_other_way() -> None:
    here, without = [], []
    for seed in range(4):
        data = crowd((0.9, 0.85, 0.8, 0.1), pairs=300, coverage=1.0, seed=seed)
        found = one_coin(data.groups)
        (adversary,) = (person for person in found.annotators if person.name == "a3")
        assert adversary.reliability is not None
        assert adversary.reliability < 0.2
        here.append(data.accuracy(found.pairs.p, found.pairs.group))
        alone = one_coin([replace(item, judgments=item.judgments[:3]) for item in data.groups]).pairs
        without.append(data.accuracy(alone.p, alone.group))
    assert np.mean(here) > np.mean(without)


def test_an_adversary_without_evidence_is_not_turned_round() -> None:
    """One vote against the rest: too little to say that the person is always wrong."""
    groups = [pair(f"g{n}", vote(1.0, "a"), vote(1.0, "b"), vote(1.0, "c")) for n in range(30)]
    groups.append(pair("last", vote(1.0, "a"), vote(1.0, "b"), vote(0.0, "new")))
    groups.append(pair("alone", vote(0.0, "new")))
    assert labels(groups)["alone", 0, 1] < 0.5


def test_a_side_bias_does_not_become_a_preference() -> None:
    """A judge that always takes the first shown says nothing; without the side it seems to know everything."""
    data = crowd((0.9, 0.85, 0.8), pairs=150, coverage=1.0, biases=(0.0, 0.0, 8.0), seed=4)
    found = {person.name: person for person in one_coin(data.groups).annotators}
    assert (found["a2"].side_bias or 0) > 0.9
    assert (found["a0"].side_bias_interval or (1, 0))[0] < 0.5 < (found["a0"].side_bias_interval or (1, 0))[1]


def test_an_undefeated_source_is_finite_and_said_to_be_held_by_the_prior() -> None:
    groups = [
        Group(
            id=f"{n}-{other}",
            prompt=f"p{n}",
            completions=(Completion(text="x", source="best"), Completion(text="y", source=other)),
            judgments=(vote(1.0, "ann"),),
        )
        for n in range(10)
        for other in ("b", "c")
    ]
    groups += [
        Group(
            id=f"far-{n}",
            prompt=f"q{n}",
            completions=(Completion(text="x", source="d"), Completion(text="y", source="e")),
            judgments=(vote(float(n % 2), "ann"),),
        )
        for n in range(6)
    ]
    found = {source.name: source for source in source_strengths(groups)}
    assert found["best"].strength > found["b"].strength
    assert not found["best"].finite
    assert found["d"].finite
    assert found["d"].part != found["best"].part
    assert all(source.interval and np.isfinite(source.interval).all() for source in found.values())


def test_labels_keep_their_doubt() -> None:
    groups = [
        pair("clear", *[vote(0.0, f"a{k}") for k in range(8)]),
        pair("split", vote(1.0, "a0"), vote(0.0, "a1")),
        pair("none"),
        Group(
            id="thumb",
            prompt="p",
            completions=(Completion(text="x"),),
            judgments=(Approval(i=0, value=True, annotator="a"),),
        ),
    ]
    found = aggregate(groups, "majority").aggregation
    soft, counts = with_labels(groups, found)
    assert counts == {"pairs": 2, "groups_without_votes": 2, "groups": 4}
    (label,) = soft[0].judgments
    assert label.p == pytest.approx(0.1)  # type: ignore[attr-defined]
    assert label.annotator == "aggregate/majority"
    assert label.meta["votes"] == 8
    assert label.meta["p_interval"][0] < 0.1 < label.meta["p_interval"][1]
    weighted, counts = with_labels(groups, found, labels="weighted")
    (label,) = weighted[0].judgments
    assert (label.p, label.weight) == (0.0, pytest.approx(0.8))  # type: ignore[attr-defined]
    assert counts["ties"] == 1
    assert counts["groups_without_a_label"] == 1
    hard, counts = with_labels(groups, found, labels="hard", min_p=0.85)
    assert hard[0].judgments[0].weight == 1
    assert counts["pairs_below_min_p"] == 1
    with pytest.raises(ConfigError, match="min_p"):
        with_labels(groups, found, min_p=0.3)


def test_what_a_loss_gets(tmp_path: Path) -> None:
    data = crowd(pairs=40, seed=6).groups
    written, _ = with_labels(data, aggregate(data).aggregation)
    save_groups(written, tmp_path / "labels.jsonl")
    read = load_groups(tmp_path / "labels.jsonl")
    relations = [relation for item in reduce_groups(read, "pair")[0] for relation in item.relations]
    p = np.array([relation.p for relation in relations])
    expected = aggregate(data).aggregation.pairs.p
    np.testing.assert_allclose(np.sort(p), np.sort(np.maximum(expected, 1 - expected)))
    assert {relation.weight for relation in relations} == {1.0}


def test_aggregating_twice_is_refused() -> None:
    groups = [pair("g", vote(1.0, "a"), vote(1.0, "b"))]
    written, _ = with_labels(groups, aggregate(groups).aggregation)
    with pytest.raises(DataError, match="aggregated already"):
        aggregate(written)


@pytest.mark.parametrize("groups", [[], [pair("g")], [pair("g", vote(1.0, "a").__class__(i=0, j=1, weight=0.0))]])
def test_without_votes_there_is_nothing_to_say(groups: list[Group]) -> None:
    with pytest.raises(DataError, match="no judgment of a pair"):
        aggregate(groups)


def test_a_wrong_note_of_what_was_shown_first() -> None:
    with pytest.raises(DataError, match="shown_first is 2"):
        votes_of([pair("g", vote(1.0, "a", **{SHOWN_FIRST: 2}))])


def test_options_that_mean_nothing_are_refused() -> None:
    groups = [pair("g", vote(1.0, "a"))]
    with pytest.raises(ConfigError, match="majority alone"):
        aggregate(groups, "one_coin", smoothing=1.0)
    with pytest.raises(ConfigError, match="--smoothing"):
        aggregate(groups, "majority", smoothing=-1.0)
    with pytest.raises(ConfigError, match="annotator_groups"):
        aggregate(groups, kind_weights="equal")


def test_too_many_ties_in_a_ranking() -> None:
    ratings = [Rating(i=i, value=float(i > 10), annotator="a") for i in range(20)]
    with pytest.raises(DataError, match="bradley_terry"):
        aggregate([group("g", 20, *ratings)], "plackett_luce")


def many_votes(count: int) -> Callable[[], None]:
    """One-coin on arrays of this many votes, as after reading."""
    from dipole.feedback.aggregate import skills
    from dipole.feedback.aggregate.votes import Votes

    random = np.random.default_rng(0)
    pairs, people = count // 5, 200
    skill = random.uniform(0.55, 0.95, size=people)
    pair_of = np.repeat(np.arange(pairs), 5)
    annotator = random.integers(people, size=len(pair_of))
    right = random.random(len(pair_of)) < skill[annotator]
    zeros = np.zeros(len(pair_of), dtype=np.int64)
    votes = Votes(
        pair_of,
        annotator,
        right.astype(float),
        np.ones(len(pair_of)),
        zeros,
        np.arange(pairs),
        np.zeros(pairs, dtype=np.int64),
        np.ones(pairs, dtype=np.int64),
        np.arange(pairs),
        np.full(pairs, 2),
        tuple(f"a{k}" for k in range(people)),
    )

    def run() -> None:
        assert np.mean(skills.one_coin_of(votes).pairs.p > 0.5) > 0.85

    return run


def test_a_hundred_thousand_votes_take_seconds() -> None:
    run = many_votes(100_000)
    began = time.process_time()
    run()
    assert time.process_time() - began < 10
