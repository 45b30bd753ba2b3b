"""What is planned for one micro-batch: both plans against the definition of who sees whom."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_mask

from conftest import build_groups
from dipole.data.batch import PackedBatch, pack
from dipole.policy import attention
from dipole.policy.attention import PaddedPlan, plan_attention
from dipole.policy.flex import FlexPlan

BATCH = pack(build_groups((5, [4, 1, 9]), (12, [3, 8]), (1, [2, 2]), (12, [3])))
WINDOWS = [None, 100, 6, 1]
INPUTS = {"scaling": 0.4}


def seen_by_definition(batch: PackedBatch, window: int | None) -> Tensor:
    """(N, N), true where a query sees a key, written down pair by pair."""
    prompts = [range(a, a + n) for a, n in zip(batch.prompt_start.tolist(), batch.prompt_length.tolist(), strict=True)]
    seen = torch.zeros(len(batch.input_ids), len(batch.input_ids), dtype=torch.bool)
    sequences = [list(prompt) for prompt in prompts]
    for start, length, prompt in zip(
        batch.completion_start.tolist(), batch.completion_length.tolist(), batch.prompt_of.tolist(), strict=True
    ):
        sequences.append([*prompts[prompt], *range(start, start + length)])
    for sequence in sequences:
        for place, query in enumerate(sequence):
            for distance, key in enumerate(reversed(sequence[: place + 1])):
                seen[query, key] = window is None or distance < window
    return seen


def plain(query: Tensor, key: Tensor, value: Tensor, seen: Tensor, softcap: float | None) -> Tensor:
    key, value = (tensor.repeat_interleave(query.shape[1] // key.shape[1], 1) for tensor in (key, value))
    scores = query @ key.transpose(2, 3) * INPUTS["scaling"]
    if softcap is not None:
        scores = softcap * (scores / softcap).tanh()
    return (scores.masked_fill(~seen, -torch.inf).softmax(-1) @ value).transpose(1, 2)


def heads() -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(1, number, len(BATCH.input_ids), 8, dtype=torch.float64) for number in (4, 2, 2)]


@pytest.mark.parametrize("window", WINDOWS)
def test_the_mask_for_one_kernel_is_the_definition(window: int | None) -> None:
    size = len(BATCH.input_ids)
    mask = create_mask(FlexPlan.of(BATCH).sees(window), None, None, size, size, "cpu")[0, 0]
    assert torch.equal(mask, seen_by_definition(BATCH, window))


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("softcap", [None, 0.5])
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("kind", [PaddedPlan, FlexPlan])
def test_a_plan_computes_attention(
    kind: type[PaddedPlan] | type[FlexPlan], window: int | None, softcap: float | None
) -> None:
    inputs = heads()
    with torch.no_grad():
        found = kind.of(BATCH).attend(*inputs, window=window, softcap=softcap, **INPUTS)
    expected = plain(*inputs, seen_by_definition(BATCH, window), softcap)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("call_cost", [0, 60, 10**9])
@pytest.mark.parametrize("window", [None, 6])
def test_the_number_of_calls_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, call_cost: int, window: int | None
) -> None:
    monkeypatch.setattr(attention, "CALL_COST", call_cost)
    plan = PaddedPlan.of(BATCH)
    inputs = [tensor.requires_grad_() for tensor in heads()]
    upstream = torch.randn(1, len(BATCH.input_ids), 4, 8, dtype=torch.float64)
    found = torch.autograd.grad(plan.attend(*inputs, window=window, softcap=None, **INPUTS), inputs, upstream)
    slow = plain(*inputs, seen_by_definition(BATCH, window), None)
    torch.testing.assert_close(found, torch.autograd.grad(slow, inputs, upstream), rtol=0, atol=1e-12)
    if call_cost:
        assert len(plan.blocks) < 9
    assert call_cost < 10**9 or len(plan.blocks) == 2


def test_padding_costs_less_than_the_calls_that_it_saves() -> None:
    batch = pack(build_groups((40, [300, 10, 11, 12]), (300, [20, 250])))
    blocks = PaddedPlan.of(batch).blocks
    padded = sum(block.query.numel() * block.key.shape[1] for block in blocks)
    useful = int(seen_by_definition(batch, None).sum())
    assert len(blocks) < 8
    assert padded - len(blocks) * attention.CALL_COST < 2 * useful  # a call computes squares, of which half is seen


def test_the_device_chooses_the_plan() -> None:
    assert isinstance(plan_attention(BATCH), PaddedPlan)


def test_masks_are_built_once_a_window() -> None:
    for plan in (PaddedPlan.of(BATCH).blocks[-1].mask, FlexPlan.of(BATCH).block_mask):
        assert plan(None) is plan(None)
        assert plan(6) is plan(6)
        assert plan(6) is not plan(None)
