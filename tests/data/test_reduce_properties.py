"""What holds for the labels and relations of any judgments."""

from __future__ import annotations

import itertools
from math import exp, log1p

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dipole.data.reduce import LabeledGroup, ListRelation, PairRelation, pair_labels, reduce_groups
from dipole.group import Approval, Comparison, Completion, Group, Judgment, Ranking, Rating


def group_of(*judgments: Judgment, count: int = 2, id: str = "g") -> Group:
    completions = tuple(Completion(text=f"a{i}") for i in range(count))
    return Group(id=id, prompt="Q", completions=completions, judgments=judgments)


@st.composite
def judged_groups(draw: st.DrawFn) -> Group:
    count = draw(st.integers(2, 5))
    index = st.integers(0, count - 1)
    annotator = st.sampled_from([None, "a", "b"])
    weight = st.sampled_from([0.0, 0.5, 1.0, 3.0])
    pair = st.permutations(range(count)).map(lambda order: order[:2])
    kinds = st.one_of(
        st.builds(
            lambda sides, p, who, w: Comparison(i=sides[0], j=sides[1], p=p, annotator=who, weight=w),
            pair,
            st.floats(0, 1),
            annotator,
            weight,
        ),
        st.builds(
            lambda order, who: Ranking(order=tuple(order), annotator=who), st.permutations(range(count)), annotator
        ),
        st.builds(
            lambda i, value, who, w: Rating(i=i, value=value, annotator=who, weight=w),
            index,
            st.integers(1, 5),
            annotator,
            weight,
        ),
        st.builds(lambda i, value, w: Approval(i=i, value=value, weight=w), index, st.booleans(), weight),
    )
    return group_of(*draw(st.lists(kinds, max_size=8)), count=count)


@settings(deadline=None)
@given(st.permutations(range(6)))
def test_all_pairs_of_a_ranking(order: list[int]) -> None:
    found = reduce_groups([group_of(Ranking(order=tuple(order)), count=6)], "pair")[0][0].relations
    assert {(r.i, r.j) for r in found} == set(itertools.combinations(order, 2))  # type: ignore[attr-defined]


@settings(max_examples=60, deadline=None)
@given(judged_groups())
def test_labels_are_probabilities_of_distinct_pairs(group: Group) -> None:
    labels = pair_labels(group)
    assert all(0.5 <= label.p <= 1 and label.weight > 0 and label.i != label.j for label in labels)
    assert len({frozenset((label.i, label.j)) for label in labels}) == len(labels)


@settings(max_examples=60, deadline=None)
@given(judged_groups(), st.data())
def test_renaming_completions_renames_relations(group: Group, data: st.DataObject) -> None:
    """Nothing but the order of ties may depend on how completions are numbered."""
    new = data.draw(st.permutations(range(len(group.completions))))
    renamed = group_of(*(_renamed(judgment, new) for judgment in group.judgments), count=len(group.completions))
    before = {frozenset((new[r.i], new[r.j])): (r.p, r.weight, r.p == 0.5 or new[r.i]) for r in pair_labels(group)}
    after = {frozenset((r.i, r.j)): (r.p, r.weight, r.p == 0.5 or r.i) for r in pair_labels(renamed)}
    assert before.keys() == after.keys()
    for pair, (p, weight, first) in before.items():
        assert after[pair] == (pytest.approx(p), pytest.approx(weight), first) or p == pytest.approx(0.5)


def _renamed(judgment: Judgment, new: list[int]) -> Judgment:
    common = {"annotator": judgment.annotator, "weight": judgment.weight}
    match judgment:
        case Comparison(i=i, j=j, p=p):
            return Comparison(i=new[i], j=new[j], p=p, **common)
        case Ranking(order=order):
            return Ranking(order=tuple(new[i] for i in order), **common)
        case Rating(i=i, value=value):
            return Rating(i=new[i], value=value, **common)
        case Approval(i=i, value=value):
            return Approval(i=new[i], value=value, **common)
    raise AssertionError(judgment)


@settings(max_examples=60, deadline=None)
@given(judged_groups(), st.sampled_from(["pair", "unary", "list"]), st.sampled_from(["pair", "prompt"]))
def test_reduction_never_fails_but_for_want_of_relations(group: Group, kind: str, weighting: str) -> None:
    spare = {
        "pair": group_of(Comparison(i=0, j=1), id="spare"),
        "unary": group_of(Approval(i=0, value=True), id="spare"),
        "list": group_of(Ranking(order=(0, 1)), id="spare"),
    }[kind]
    labeled, _ = reduce_groups([group, spare], kind, weighting=weighting)  # type: ignore[arg-type]
    assert labeled[-1].group is spare
    assert all(_well_formed(item) for item in labeled)


def _well_formed(item: LabeledGroup) -> bool:
    count = len(item.group.completions)
    indices = [
        index
        for relation in item.relations
        for index in (
            relation.order
            if isinstance(relation, ListRelation)
            else (relation.i, relation.j)
            if isinstance(relation, PairRelation)
            else (relation.i,)
        )
    ]
    return bool(indices) and all(0 <= index < count for index in indices)


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.sampled_from([0.5, 1.0, 2.0])), min_size=1, max_size=6), st.floats(-3, 3))
def test_cross_entropy_on_the_label_is_that_on_the_judgments(votes: list[tuple[float, float]], margin: float) -> None:
    """The rule that weights add up exists for this equality."""

    def loss(p: float, i_over_j: float) -> float:
        return p * log1p(exp(-i_over_j)) + (1 - p) * log1p(exp(i_over_j))

    (label,) = pair_labels(group_of(*(Comparison(i=0, j=1, p=p, weight=weight) for p, weight in votes)))
    signed = margin if label.i == 0 else -margin
    assert label.weight * loss(label.p, signed) == pytest.approx(sum(weight * loss(p, margin) for p, weight in votes))
