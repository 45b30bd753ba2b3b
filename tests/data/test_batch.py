"""Packing, cutting into micro-batches, and the order of the data: invariants for any sizes."""

from __future__ import annotations

from collections import Counter
from itertools import count, pairwise, permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dipole.data.batch import Lists, Order, PackedBatch, Pairs, Unaries, in_chunks, micro_batches, pack, total_weight
from dipole.data.reduce import ListRelation, PairRelation, Relation, UnaryRelation
from dipole.data.tokenize import TokenizedGroup

PROMPTS = ((1, 2, 3), (1, 2), (4,), (5, 6, 7, 8))
SHAPES = st.lists(
    st.tuples(st.sampled_from(PROMPTS), st.lists(st.integers(1, 5), min_size=1, max_size=8)), min_size=1, max_size=8
)
FEW = settings(max_examples=40)


def build(shapes: list[tuple[tuple[int, ...], list[int]]]) -> list[TokenizedGroup]:
    """A group for each prompt and lengths of completions, with every third pair of completions as a relation."""
    token = count(10)
    return [
        TokenizedGroup(
            id=f"g{number}",
            prompt_ids=prompt,
            completion_ids=tuple(tuple(next(token) for _ in range(length)) for length in lengths),
            relations=tuple(
                PairRelation(i, j, p=0.75, weight=0.5 + number) for i, j in permutations(range(len(lengths)), 2)
            )[::3],
        )
        for number, (prompt, lengths) in enumerate(shapes)
    ]


groups = SHAPES.map(build)


def group(
    *relations: Relation, rows: int = 3, id: str = "g", scores: tuple[float, ...] | None = None
) -> TokenizedGroup:
    completion_ids = tuple((10 + row, 9) for row in range(rows))
    return TokenizedGroup(id=id, prompt_ids=(1, 2), completion_ids=completion_ids, relations=relations, scores=scores)


def sequences(batch: PackedBatch) -> list[tuple[list[int], list[int]]]:
    """Prompt and completion of every completion, read back from the packed row."""
    found = []
    for completion in range(batch.num_completions):
        prompt = int(batch.prompt_of[completion])
        start, length = int(batch.prompt_start[prompt]), int(batch.prompt_length[prompt])
        found.append(
            (batch.input_ids[start : start + length].tolist(), batch.target[batch.owner == completion].tolist())
        )
    return found


# pack


@FEW
@given(groups)
def test_every_completion_can_be_read_back_with_its_prompt(many: list[TokenizedGroup]) -> None:
    batch = pack(many)
    expected = [(list(item.prompt_ids), list(row)) for item in many for row in item.completion_ids]
    assert sequences(batch) == expected
    assert batch.num_targets.tolist() == [len(row) for _, row in expected]
    assert batch.group_ids == tuple(item.id for item in many)


@FEW
@given(groups)
def test_the_row_holds_each_prompt_once_and_no_padding(many: list[TokenizedGroup]) -> None:
    batch = pack(many)
    different = {item.prompt_ids for item in many}
    inputs = sum(map(len, different)) + sum(len(row) - 1 for item in many for row in item.completion_ids)
    assert batch.input_ids.shape == batch.position_ids.shape == (inputs,)
    assert len(batch.prompt_start) == len(different)
    starts = [*batch.prompt_start.tolist(), *batch.completion_start.tolist(), inputs]
    lengths = [*batch.prompt_length.tolist(), *batch.completion_length.tolist()]
    assert [right - left for left, right in pairwise(starts)] == lengths
    assert batch.num_tokens == inputs + batch.num_completions


@FEW
@given(groups)
def test_each_target_is_predicted_from_the_token_before_it(many: list[TokenizedGroup]) -> None:
    batch = pack(many)
    before = batch.input_ids[batch.predictor].tolist()
    position = batch.position_ids[batch.predictor].tolist()
    expected = [
        (([*prompt, *row])[len(prompt) + place - 1], len(prompt) + place - 1)
        for prompt, row in sequences(batch)
        for place in range(len(row))
    ]
    assert list(zip(before, position, strict=True)) == expected


@FEW
@given(groups)
def test_relations_point_at_the_completions_of_their_group(many: list[TokenizedGroup]) -> None:
    batch = pack(many)
    assert isinstance(batch.relations, Pairs)
    read = sequences(batch)
    found = [
        (read[i], read[j], p, weight)
        for i, j, p, weight in zip(
            batch.relations.chosen.tolist(),
            batch.relations.rejected.tolist(),
            batch.relations.prob.tolist(),
            batch.relations.weight.tolist(),
            strict=True,
        )
    ]
    expected = []
    for item in many:
        for relation in item.relations:
            assert isinstance(relation, PairRelation)
            sides = [(list(item.prompt_ids), list(item.completion_ids[side])) for side in (relation.i, relation.j)]
            expected.append((*sides, relation.p, relation.weight))
    assert found == expected
    assert total_weight(many) == pytest.approx(float(batch.relations.weight.sum()))


def test_a_completion_of_one_token_has_a_target_and_no_input() -> None:
    batch = pack([TokenizedGroup(id="g", prompt_ids=(1, 2), completion_ids=((9,), (8,)), relations=())])
    assert batch.input_ids.tolist() == [1, 2]
    assert batch.completion_length.tolist() == [0, 0]
    assert batch.predictor.tolist() == [1, 1]
    assert batch.target.tolist() == [9, 8]


def test_unary_relations_and_lists_are_moved_to_the_batch() -> None:
    unary = pack([group(UnaryRelation(2, True)), group(UnaryRelation(0, False, weight=2.0), UnaryRelation(1, True))])
    assert isinstance(unary.relations, Unaries)
    assert unary.relations.completion.tolist() == [2, 3, 4]
    assert unary.relations.desirable.tolist() == [True, False, True]
    assert unary.relations.weight.tolist() == [1.0, 2.0, 1.0]
    lists = pack([group(ListRelation((1, 0))), group(ListRelation((2, 0, 1), weight=0.5))])
    assert isinstance(lists.relations, Lists)
    assert lists.relations.order.tolist() == [[1, 0, -1], [5, 3, 4]]
    assert lists.relations.weight.tolist() == [1.0, 0.5]


def test_relations_of_two_kinds_and_no_groups_are_refused() -> None:
    with pytest.raises(ValueError, match="one kind"):
        pack([group(UnaryRelation(0, True)), group(PairRelation(0, 1))])
    with pytest.raises(ValueError, match="at least one group"):
        pack([])


def test_scores_are_nan_where_there_are_none() -> None:
    batch = pack([group(rows=2, scores=(0.0, 1.5)), group(rows=1)])
    assert batch.scores[:2].tolist() == [0.0, 1.5]
    assert torch.isnan(batch.scores[2])


def test_moving_to_a_device_moves_every_tensor_and_leaves_the_original() -> None:
    batch = pack([group(PairRelation(0, 1))])
    moved = batch.to("meta")
    assert moved.input_ids.device.type == moved.relations.weight.device.type == "meta"
    assert batch.input_ids.device.type == "cpu"
    assert moved.group_ids == batch.group_ids


# micro_batches


@FEW
@given(groups, st.integers(1, 60))
def test_micro_batches_partition_the_groups_within_the_budget(many: list[TokenizedGroup], budget: int) -> None:
    parts = micro_batches(many, budget)
    assert Counter(item.id for part in parts for item in part) == Counter(item.id for item in many)
    for part in parts:
        assert len(part) == 1 or pack(part).num_tokens <= budget
    assert [batch.group_ids for batch in in_chunks(many, budget)] == [tuple(item.id for item in part) for part in parts]


@FEW
@given(groups, st.integers(1, 60))
def test_no_two_neighbouring_micro_batches_would_have_fitted_into_one(many: list[TokenizedGroup], budget: int) -> None:
    for left, right in pairwise(micro_batches(many, budget)):
        assert pack([*left, right[0]]).num_tokens > budget


def test_no_groups_make_no_micro_batches() -> None:
    assert micro_batches([], 10) == []


# Order


@FEW
@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 3))
def test_every_epoch_sees_every_group_once(num_groups: int, batch_size: int, seed: int) -> None:
    order = Order(num_groups, batch_size, seed)
    assert order.steps_per_epoch == len(range(0, num_groups, batch_size))
    for epoch in range(2):
        steps = [order.step(epoch * order.steps_per_epoch + within) for within in range(order.steps_per_epoch)]
        assert sorted(index for step in steps for index in step) == list(range(num_groups))
        assert all(len(step) == batch_size for step in steps[:-1])
        assert 0 < len(steps[-1]) <= batch_size


def test_the_order_depends_on_seed_and_epoch_and_nothing_else() -> None:
    torch.manual_seed(0)
    first = Order(50, 50, seed=7).step(0)
    torch.manual_seed(1)
    again = Order(50, 50, seed=7)
    again.step(3)
    assert again.step(0) == first
    assert Order(50, 50, seed=7).step(1) != first
    assert Order(50, 50, seed=8).step(0) != first
    halves = Order(50, 25, seed=7)
    assert halves.step(0) + halves.step(1) == first
