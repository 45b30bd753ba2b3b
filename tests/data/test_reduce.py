"""Labels and relations, by hand and by property."""

from __future__ import annotations

import pytest

from dipole.data.reduce import (
    ListRelation,
    PairRelation,
    UnaryRelation,
    pair_labels,
    reduce_groups,
)
from dipole.errors import ConfigError, DataError
from dipole.group import Approval, Comparison, Completion, Group, Judgment, Ranking, Rating


def group_of(*judgments: Judgment, count: int = 2, id: str = "g") -> Group:
    return Group(
        id=id, prompt="Q", completions=tuple(Completion(text=f"a{i}") for i in range(count)), judgments=judgments
    )


def relations(group: Group, kind: str, **options: object) -> tuple[object, ...]:
    labeled, _ = reduce_groups([group], kind, **options)  # type: ignore[arg-type]
    return labeled[0].relations


def ratings(values: list[float], annotator: str | None = None) -> list[Rating]:
    return [Rating(i=i, value=value, annotator=annotator) for i, value in enumerate(values)]


# Pairs


def test_one_comparison_is_one_pair() -> None:
    assert pair_labels(group_of(Comparison(i=1, j=0))) == (PairRelation(1, 0, 1.0, 1.0),)


def test_a_pair_is_turned_so_that_p_is_at_least_one_half() -> None:
    (label,) = pair_labels(group_of(Comparison(i=0, j=1, p=0.2)))
    assert (label.i, label.j) == (1, 0)
    assert label.p == pytest.approx(0.8)


def test_a_tie_keeps_the_order_of_first_mention() -> None:
    assert pair_labels(group_of(Comparison(i=1, j=0, p=0.5))) == (PairRelation(1, 0, 0.5, 1.0),)


def test_several_comparisons_are_averaged_by_weight_and_their_weights_add_up() -> None:
    group = group_of(
        Comparison(i=0, j=1, annotator="a"),
        Comparison(i=1, j=0, annotator="b", weight=0.5),
        Comparison(i=0, j=1, p=0.5, annotator="c", weight=2),
    )
    # (1·1 + 0.5·0 + 2·0.5) / 3.5
    assert pair_labels(group) == (PairRelation(0, 1, pytest.approx(2 / 3.5), 3.5),)


def test_a_comparison_of_no_weight_makes_no_pair() -> None:
    assert pair_labels(group_of(Comparison(i=0, j=1, weight=0))) == ()


def test_the_pairs_of_a_ranking() -> None:
    expected = {(2, 0): 1.0, (2, 1): 1.0, (0, 1): 1.0}
    assert {(r.i, r.j): r.p for r in pair_labels(group_of(Ranking(order=(2, 0, 1)), count=3))} == expected


def test_ratings_are_compared_within_an_annotator_only() -> None:
    group = group_of(
        Rating(i=0, value=9, annotator="generous"),
        Rating(i=1, value=2, annotator="strict"),
        Rating(i=2, value=3, annotator="strict"),
        count=3,
    )
    assert pair_labels(group) == (PairRelation(2, 1, 1.0, 1.0),)


def test_equal_ratings_are_a_tie() -> None:
    assert pair_labels(group_of(*ratings([3, 3]))) == (PairRelation(0, 1, 0.5, 1.0),)


def test_scales_never_meet() -> None:
    """The mean rating prefers 0 (one annotator shouts), but two of three annotators prefer 1."""
    group = group_of(*ratings([100, 0], "a"), *ratings([1, 2], "b"), *ratings([1, 2], "c"))
    assert pair_labels(group) == (PairRelation(1, 0, pytest.approx(2 / 3), 3.0),)


def test_many_ratings_of_one_pool_give_the_share_of_rating_pairs() -> None:
    """0 is rated 3 and 1, and 1 is rated 2, 1 and 0: of six pairs of ratings, four above, one equal, one below."""
    group = group_of(
        *(Rating(i=0, value=value) for value in (3, 1)), *(Rating(i=1, value=value) for value in (2, 1, 0))
    )
    assert pair_labels(group) == (PairRelation(0, 1, pytest.approx(4.5 / 6), 2.0),)


def test_a_comparison_overrides_the_same_annotators_ratings_of_that_pair() -> None:
    group = group_of(Comparison(i=0, j=1), *ratings([1, 5]))
    assert pair_labels(group) == (PairRelation(0, 1, 1.0, 1.0),)
    other = group_of(Comparison(i=0, j=1, annotator="x"), *ratings([1, 5], "y"))
    assert pair_labels(other) == (PairRelation(0, 1, 0.5, 2.0),)


def test_approvals_make_pairs_where_there_is_nothing_else() -> None:
    approvals = [Approval(i=0, value=True), Approval(i=1, value=False), Approval(i=2, value=True)]
    assert {(r.i, r.j) for r in pair_labels(group_of(*approvals, count=3))} == {(0, 1), (2, 1)}
    assert pair_labels(group_of(*approvals, Comparison(i=1, j=0), count=3)) == (PairRelation(1, 0, 1.0, 1.0),)


def test_approvals_go_by_majority() -> None:
    votes = [Approval(i=0, value=value) for value in (True, True, False)] + [Approval(i=1, value=False)]
    assert pair_labels(group_of(*votes)) == (PairRelation(0, 1, 1.0, 1.0),)


def test_hard_labels_take_the_majority_and_drop_ties() -> None:
    group = group_of(Comparison(i=0, j=1, p=0.6), Comparison(i=2, j=1, p=0.5), count=3)
    labeled, dropped = reduce_groups([group], "pair", soft=False)
    assert labeled[0].relations == (PairRelation(0, 1, 1.0, 1.0),)
    assert dropped == {"ties": 1}


def test_min_agreement() -> None:
    group = group_of(Comparison(i=0, j=1, p=0.6), Comparison(i=0, j=2, p=0.9), count=3)
    labeled, dropped = reduce_groups([group], "pair", min_agreement=0.8)
    assert labeled[0].relations == (PairRelation(0, 2, 0.9, 1.0),)
    assert dropped == {"pairs_of_low_agreement": 1}


# Policies. The ranking 2 ≻ 0 ≻ 3 ≻ 1 has expected wins 1, ⅔, ⅓, 0.

RANKED = group_of(Ranking(order=(2, 0, 3, 1)), count=4)


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("all_pairs", {(2, 0), (2, 3), (2, 1), (0, 3), (0, 1), (3, 1)}),
        ("best_worst", {(2, 1)}),
        ("adjacent", {(2, 0), (0, 3), (3, 1)}),
    ],
)
def test_policies_on_a_ranking(policy: str, expected: set[tuple[int, int]]) -> None:
    assert {(r.i, r.j) for r in relations(RANKED, "pair", policy=policy)} == expected  # type: ignore[attr-defined]


def test_best_worst_takes_a_pair_that_was_judged() -> None:
    """0 wins most and 3 least, but nobody compared them. Expected wins: 1, ½, ½, 0."""
    group = group_of(
        Comparison(i=0, j=1), Comparison(i=1, j=3, p=1.0), Comparison(i=0, j=2), Comparison(i=2, j=3), count=4
    )
    (relation,) = relations(group, "pair", policy="best_worst")
    assert relation in pair_labels(group)
    assert relation == PairRelation(0, 1, 1.0, 1.0)


def test_margin_is_measured_within_annotators() -> None:
    """a: 0 is 4 above 1; b: 2 above. Mean gap 3. Between 0 and 2, rated by a alone, 1."""
    group = group_of(
        *ratings([5, 1, 4], "a"), Rating(i=0, value=12, annotator="b"), Rating(i=1, value=10, annotator="b"), count=3
    )
    for min_margin, expected in ((1.0, {(0, 1), (0, 2), (2, 1)}), (1.5, {(0, 1), (2, 1)}), (3.0, {(0, 1), (2, 1)})):
        found = relations(group, "pair", policy="margin", min_margin=min_margin)
        assert {(r.i, r.j) for r in found} == expected  # type: ignore[attr-defined]


def test_margin_drops_unrated_pairs_and_says_so() -> None:
    rated = group_of(*ratings([1, 2]), id="rated")
    unrated = group_of(Comparison(i=0, j=1), id="unrated")
    labeled, dropped = reduce_groups([rated, unrated], "pair", policy="margin")
    assert [item.group.id for item in labeled] == ["rated"]
    assert dropped == {"pairs_below_margin_or_unrated": 1, "groups_without_relations": 1}


# Weights and scores


def test_weighting_by_prompt_makes_each_group_count_once() -> None:
    labeled, _ = reduce_groups([RANKED, group_of(Comparison(i=0, j=1, weight=7))], "pair", weighting="prompt")
    assert [sum(r.weight for r in item.relations) for item in labeled] == pytest.approx([1, 1])
    assert labeled[0].relations[0].weight == pytest.approx(1 / 6)


def test_scores_are_mean_ratings_and_only_if_all_are_rated() -> None:
    labeled, _ = reduce_groups(
        [
            group_of(*ratings([1, 3], "a"), *ratings([2, 5], "b"), id="all"),
            group_of(*ratings([1, 3]), count=3, id="some"),
        ],
        "pair",
    )
    assert [item.scores for item in labeled] == [(1.5, 4.0), None]


def test_scored_lists_keep_equals_and_are_one_a_group() -> None:
    groups = [
        group_of(*ratings([5, 5, 1], "a"), count=3, id="tie"),
        group_of(*ratings([1, 3], "a"), *ratings([2, 5], "b"), id="two annotators"),
        group_of(*ratings([4, 4], "a"), id="all tied"),
        group_of(*ratings([1, 3]), count=3, id="some"),
    ]
    labeled, dropped = reduce_groups(groups, "scored")
    assert [item.relations for item in labeled] == [
        (ListRelation((0, 1, 2)),),
        (ListRelation((1, 0), weight=2.0),),
        (ListRelation((0, 1)),),
    ]
    assert dropped == {"groups_without_relations": 1}


def test_a_weighted_score() -> None:
    group = group_of(Rating(i=0, value=1, weight=3), Rating(i=0, value=5), Rating(i=1, value=0))
    assert reduce_groups([group], "pair")[0][0].scores == (2.0, 0.0)


# Unary relations


def test_approvals_are_unary_relations() -> None:
    group = group_of(Approval(i=0, value=True), Approval(i=1, value=False, weight=2))
    assert relations(group, "unary") == (UnaryRelation(0, True, 1.0), UnaryRelation(1, False, 2.0))


def test_disputed_approvals_keep_both_sides_or_the_majority() -> None:
    group = group_of(*(Approval(i=0, value=value) for value in (True, True, False)), count=1)
    assert relations(group, "unary") == (UnaryRelation(0, True, 2.0), UnaryRelation(0, False, 1.0))
    assert relations(group, "unary", soft=False) == (UnaryRelation(0, True, 3.0),)


def test_a_pair_is_a_desirable_and_an_undesirable_completion() -> None:
    assert relations(group_of(Comparison(i=1, j=0)), "unary") == (
        UnaryRelation(0, False, 1.0),
        UnaryRelation(1, True, 1.0),
    )


def test_a_soft_pair_splits_its_weight() -> None:
    found = relations(group_of(Comparison(i=0, j=1, p=0.75, weight=4)), "unary")
    assert found == (
        UnaryRelation(0, True, 3.0),
        UnaryRelation(0, False, 1.0),
        UnaryRelation(1, False, 3.0),
        UnaryRelation(1, True, 1.0),
    )


def test_ties_say_nothing_about_desirability() -> None:
    group = group_of(Comparison(i=0, j=1, p=0.5), Comparison(i=0, j=2), count=3)
    labeled, dropped = reduce_groups([group], "unary")
    assert labeled[0].relations == (UnaryRelation(0, True, 1.0), UnaryRelation(2, False, 1.0))
    assert dropped == {"ties": 1}


def test_the_middle_of_a_ranking_is_undecided() -> None:
    labeled, dropped = reduce_groups([group_of(Ranking(order=(1, 0, 2)), count=3)], "unary", soft=False)
    assert labeled[0].relations == (UnaryRelation(1, True, 2.0), UnaryRelation(2, False, 2.0))
    assert dropped == {"completions_undecided": 1}


# Lists


def test_rankings_are_lists_and_equal_ones_add_up() -> None:
    group = group_of(
        Ranking(order=(0, 1, 2), annotator="a"), Ranking(order=(0, 1, 2), annotator="b"), Ranking(order=(2, 1)), count=3
    )
    assert relations(group, "list") == (ListRelation((0, 1, 2), 2.0), ListRelation((2, 1), 1.0))


def test_ratings_make_a_list_of_the_first_of_equals() -> None:
    labeled, dropped = reduce_groups([group_of(*ratings([3, 5, 3]), count=3)], "list")
    assert labeled[0].relations == (ListRelation((1, 0), 1.0),)
    assert dropped == {"completions_tied": 1}


def test_comparisons_that_agree_on_an_order_are_a_list() -> None:
    group = group_of(Comparison(i=2, j=0), Comparison(i=0, j=1), Comparison(i=1, j=2, p=0.1), count=3)
    assert relations(group, "list") == (ListRelation((2, 0, 1), 1.0),)


@pytest.mark.parametrize(
    "judgments",
    [
        [Comparison(i=0, j=1), Comparison(i=1, j=2), Comparison(i=2, j=0)],  # a cycle
        [Comparison(i=0, j=1), Comparison(i=1, j=2)],  # one pair is missing
        [Comparison(i=0, j=1), Comparison(i=1, j=2), Comparison(i=0, j=2, p=0.5)],  # a tie
        [Approval(i=0, value=True)],
    ],
)
def test_judgments_that_make_no_list(judgments: list[Judgment]) -> None:
    with pytest.raises(DataError, match="no list relation"):
        reduce_groups([group_of(*judgments, count=3)], "list")


# What is dropped, and what is refused


def test_groups_without_relations_are_dropped_and_counted() -> None:
    groups = [
        group_of(Comparison(i=0, j=1), id="good"),
        group_of(id="unjudged"),
        group_of(Approval(i=0, value=True), id="approved"),
    ]
    labeled, dropped = reduce_groups(groups, "pair")
    assert [item.group.id for item in labeled] == ["good"]
    assert dropped == {"groups_without_judgments": 1, "groups_without_relations": 1}


def test_no_relation_at_all_is_an_error_that_gives_the_reasons() -> None:
    with pytest.raises(DataError, match=r"2 groups make no pair relation \(groups without judgments: 2\)"):
        reduce_groups([group_of(id="a"), group_of(id="b")], "pair")


def test_no_groups_are_no_relations() -> None:
    assert reduce_groups([], "pair") == ([], {})


@pytest.mark.parametrize(
    "options",
    [
        {"kind": "pears"},
        {"kind": "pair", "policy": "worst_best"},
        {"kind": "pair", "weighting": "row"},
        {"kind": "pair", "min_margin": 1.0},
        {"kind": "pair", "min_agreement": 0.3},
        {"kind": "unary", "policy": "adjacent"},
        {"kind": "list", "min_agreement": 0.9},
        {"kind": "list", "soft": False},
    ],
)
def test_options_that_mean_nothing_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        reduce_groups([RANKED], **options)  # type: ignore[arg-type]
