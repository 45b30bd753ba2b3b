"""Plans with virtual tokens, against the definition: every prompt begins with them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_mask

from conftest import build_groups
from dipole.data.batch import pack
from dipole.policy.attention import PaddedPlan
from dipole.policy.flex import FlexPlan
from dipole.policy.virtual import VirtualTokens

BATCH = pack(build_groups((5, [4, 1, 9]), (12, [3, 8]), (1, [2, 2])))
SIZE, COUNT = len(BATCH.input_ids), 3
WINDOWS = [None, 100, 6, 1]
PREFIX = VirtualTokens(count=COUNT, past=[(torch.zeros(1, 2, COUNT, 8), torch.zeros(1, 2, COUNT, 8))])
PROMPT = VirtualTokens(count=COUNT, embeddings=torch.zeros(COUNT, 8))
KINDS = {"keys alone": PREFIX, "computed": PROMPT}


def seen_by_definition(virtual: VirtualTokens, window: int | None) -> Tensor:
    """(queries, N + V), true where a query sees a key, written down pair by pair."""
    ahead = list(range(SIZE, SIZE + COUNT))
    sequences = [ahead]
    for start, length, prompt in zip(
        BATCH.completion_start.tolist(), BATCH.completion_length.tolist(), BATCH.prompt_of.tolist(), strict=True
    ):
        begin, size = int(BATCH.prompt_start[prompt]), int(BATCH.prompt_length[prompt])
        sequences.append([*ahead, *range(begin, begin + size), *range(start, start + length)])
    seen = torch.zeros(SIZE + COUNT, SIZE + COUNT, dtype=torch.bool)
    for sequence in sequences:
        for place, query in enumerate(sequence):
            for distance, key in enumerate(reversed(sequence[: place + 1])):
                seen[query, key] = window is None or distance < window
    return seen if virtual.in_row else seen[:SIZE]


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_mask_for_one_kernel_is_the_definition(kind: str, window: int | None) -> None:
    expected = seen_by_definition(KINDS[kind], window)
    plan = FlexPlan.of(BATCH, KINDS[kind])
    mask = create_mask(plan.sees(window), None, None, plan.queries, SIZE + COUNT, "cpu")[0, 0]
    assert torch.equal(mask, expected)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("plan", [PaddedPlan, FlexPlan])
def test_a_plan_computes_attention(plan: type[PaddedPlan] | type[FlexPlan], kind: str, window: int | None) -> None:
    torch.manual_seed(0)
    seen = seen_by_definition(KINDS[kind], window)
    query = torch.randn(1, 4, seen.shape[0], 8, dtype=torch.float64)
    key, value = torch.randn(2, 1, 2, seen.shape[1], 8, dtype=torch.float64)
    with torch.no_grad():
        found = plan.of(BATCH, KINDS[kind]).attend(query, key, value, scaling=0.4, window=window, softcap=None)
    key, value = (tensor.repeat_interleave(2, 1) for tensor in (key, value))
    scores = (query @ key.transpose(2, 3) * 0.4).masked_fill(~seen, -torch.inf)
    torch.testing.assert_close(found, (scores.softmax(-1) @ value).transpose(1, 2), rtol=0, atol=1e-12)
