"""Every way to compute a step gives the same losses and the same gradient as padded rows with full logits.

The slow twin is written here with nothing of the engine: one padded row a completion, ordinary attention, log_softmax
over all logits, DPO from its definition.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import combinations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PhiForCausalLM

from conftest import build_exact_model, build_groups
from dipole.data.batch import Pairs, in_chunks, pack, total_weight
from dipole.data.reduce import PairRelation
from dipole.data.tokenize import TokenizedGroup
from dipole.policy import head
from dipole.policy.logprobs import Policy, sum_by_completion

BETA = 0.3
GROUPS = build_groups((5, [4, 1, 9]), (12, [3, 8]), (1, [2, 2, 6, 1]), (7, [1, 5]), (12, [30, 2]))
WEIGHT = total_weight(GROUPS)

Losses = dict[tuple[str, int, int], float]
"""The weighted loss of each relation, by group and completions."""


def weighted_losses(logps: Tensor, ref_logps: Tensor, relations: Pairs) -> Tensor:
    """(R,) DPO with soft labels (Rafailov et al. 2023, eq. 7)."""
    margin = BETA * ((logps - ref_logps)[relations.chosen] - (logps - ref_logps)[relations.rejected])
    p = relations.prob
    return -relations.weight * (p * logsigmoid(margin) + (1 - p) * logsigmoid(-margin)) / WEIGHT


def names_of(groups: Sequence[TokenizedGroup]) -> list[tuple[str, int, int]]:
    return [(group.id, relation.i, relation.j) for group in groups for relation in pairs_of(group)]


def pairs_of(group: TokenizedGroup) -> list[PairRelation]:
    return [relation for relation in group.relations if isinstance(relation, PairRelation)]


def padded_logps(model: nn.Module, groups: Sequence[TokenizedGroup]) -> Tensor:
    """(C,) summed log-probabilities of all completions, each a row of its own."""
    rows = [(len(group.prompt_ids), [*group.prompt_ids, *ids]) for group in groups for ids in group.completion_ids]
    ids = nn.utils.rnn.pad_sequence([torch.tensor(row) for _, row in rows], batch_first=True)
    real = nn.utils.rnn.pad_sequence([torch.ones(len(row)) for _, row in rows], batch_first=True)
    logps = model(input_ids=ids, attention_mask=real.long()).logits[:, :-1].log_softmax(-1)
    of_targets = logps.gather(2, ids[:, 1:, None]).squeeze(2)
    place = torch.arange(1, ids.shape[1])
    starts = torch.tensor([start for start, _ in rows])
    return (of_targets * real[:, 1:] * (place >= starts[:, None])).sum(1)


def padded(model: PhiForCausalLM, reference: PhiForCausalLM, groups: Sequence[TokenizedGroup]) -> Losses:
    """The slow twin."""
    model.set_attn_implementation("sdpa")
    with torch.no_grad():
        ref_logps = padded_logps(reference, groups)
    losses = weighted_losses(padded_logps(model, groups), ref_logps, pack(groups).relations)  # type: ignore[arg-type]
    losses.sum().backward()
    return dict(zip(names_of(groups), losses.tolist(), strict=True))


def engine(
    cut: Callable[[Sequence[TokenizedGroup]], Iterator[list[TokenizedGroup]]],
) -> Callable[[PhiForCausalLM, PhiForCausalLM, Sequence[TokenizedGroup]], Losses]:
    """The engine, over micro-batches that ``cut`` makes."""

    def run(model: PhiForCausalLM, reference: PhiForCausalLM, groups: Sequence[TokenizedGroup]) -> Losses:
        policy, frozen = Policy(model), Policy(reference)
        found: Losses = {}
        for part in cut(groups):
            batch = pack(part)
            with torch.no_grad():
                ref_logps = sum_by_completion(frozen(batch).logps, batch)
            logps = sum_by_completion(policy(batch).logps, batch)
            losses = weighted_losses(logps, ref_logps, batch.relations)  # type: ignore[arg-type]
            losses.sum().backward()
            found |= dict(zip(names_of(part), losses.tolist(), strict=True))
        return found

    return run


def whole(groups: Sequence[TokenizedGroup]) -> Iterator[list[TokenizedGroup]]:
    yield list(groups)


def one_by_one(groups: Sequence[TokenizedGroup]) -> Iterator[list[TokenizedGroup]]:
    return ([group] for group in groups)


def by_budget(tokens: int) -> Callable[[Sequence[TokenizedGroup]], Iterator[list[TokenizedGroup]]]:
    def cut(groups: Sequence[TokenizedGroup]) -> Iterator[list[TokenizedGroup]]:
        of = {group.id: group for group in groups}
        return ([of[name] for name in batch.group_ids] for batch in in_chunks(groups, tokens))

    return cut


def pair_by_pair(model: PhiForCausalLM, reference: PhiForCausalLM, groups: Sequence[TokenizedGroup]) -> Losses:
    """K(K−1)/2 groups of two for each group of K, which is what others train on."""
    found: Losses = {}
    for group in groups:
        for i, j in combinations(range(len(group.completion_ids)), 2):
            (relation,) = (item for item in pairs_of(group) if {item.i, item.j} == {i, j})
            pair = TokenizedGroup(
                id=group.id,
                prompt_ids=group.prompt_ids,
                completion_ids=(group.completion_ids[relation.i], group.completion_ids[relation.j]),
                relations=(replace(relation, i=0, j=1),),
            )
            (loss,) = engine(whole)(model, reference, [pair]).values()
            found[group.id, relation.i, relation.j] = loss
    return found


WAYS = {
    "packed": engine(whole),
    "one by one": engine(one_by_one),
    "pair by pair": pair_by_pair,
    **{f"micro-batches of {tokens} tokens": engine(by_budget(tokens)) for tokens in (1, 30, 45)},
}


def step(
    way: Callable[[PhiForCausalLM, PhiForCausalLM, Sequence[TokenizedGroup]], Losses], dtype: torch.dtype
) -> tuple[Losses, dict[str, Tensor]]:
    model, reference = (build_exact_model(seed=seed).to(dtype) for seed in (0, 1))
    losses = way(model, reference, GROUPS)
    return losses, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("head_tokens", [3, 1000])
@pytest.mark.parametrize("way", WAYS)
def test_in_float64_all_ways_are_one(monkeypatch: pytest.MonkeyPatch, way: str, head_tokens: int) -> None:
    monkeypatch.setattr(head, "HEAD_BYTES", head_tokens * 64 * 8)
    expected, gradients = step(padded, torch.float64)
    found, ours = step(WAYS[way], torch.float64)
    assert found == pytest.approx(expected, abs=1e-10, rel=0)
    torch.testing.assert_close(ours, gradients, rtol=0, atol=1e-10)


@pytest.mark.parametrize("way", WAYS)
def test_in_float32_all_ways_are_one_to_its_precision(way: str) -> None:
    expected, gradients = step(padded, torch.float64)
    found, ours = step(WAYS[way], torch.float32)
    assert found == pytest.approx(expected, rel=1e-5)
    assert ours.keys() == gradients.keys()
    scale = max(float(gradient.abs().max()) for gradient in gradients.values())
    for name, gradient in gradients.items():
        assert float((ours[name].double() - gradient).abs().max()) < 1e-5 * scale, name


def test_the_padded_twin_is_sensitive_to_what_these_tests_compare() -> None:
    """Another token, another loss: the comparison isn't between constants."""
    changed = [replace(GROUPS[0], completion_ids=((9,), *GROUPS[0].completion_ids[1:])), *GROUPS[1:]]
    models = [build_exact_model(seed=seed) for seed in (0, 1)]
    before, after = (padded(*models, groups) for groups in (GROUPS, changed))  # type: ignore[arg-type]
    assert [name for name in before if abs(before[name] - after[name]) > 1e-6] == [("g0", 0, 1), ("g0", 0, 2)]


# Memory


class LargestTensor(TorchDispatchMode):
    """Elements of the largest tensor that any operation gives."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


@pytest.mark.parametrize("trained", [True, False])
def test_no_tensor_grows_with_vocabulary_times_tokens(monkeypatch: pytest.MonkeyPatch, trained: bool) -> None:
    vocabulary, at_once = 4000, 20
    monkeypatch.setattr(head, "HEAD_BYTES", at_once * vocabulary * 8)
    policy = Policy(build_exact_model(vocabulary))
    for parameter in policy.transformer.get_output_embeddings().parameters():
        parameter.requires_grad_(trained)
    for targets in (40, 400):
        batch = pack(build_groups((3, [targets // 4] * 4), vocabulary=vocabulary))
        with LargestTensor() as largest:
            policy(batch).logps.sum().backward()
        weights = 32 * vocabulary
        assert largest.elements == max(at_once * vocabulary, weights), targets


PEAKS = """
import resource, sys, torch
from dipole.policy import head
torch.set_num_threads(1)
vocabulary = 32768
head.HEAD_BYTES = 16 * 2**20
for tokens in 256, 2048:
    hidden = torch.randn(tokens, 8, requires_grad=True)
    weight = torch.randn(vocabulary, 8, requires_grad=sys.argv[1] == "trained")
    head.chunked_logprobs(head.HeadInput(hidden, weight, None), torch.arange(tokens))[0].sum().backward()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024))
"""


@pytest.mark.parametrize("head_is", ["trained", "frozen"])
def test_the_process_does_not_grow_with_vocabulary_times_tokens(head_is: str) -> None:
    done = subprocess.run([sys.executable, "-c", PEAKS, head_is], capture_output=True, text=True, check=True)
    few, many = map(int, done.stdout.split())
    logits = (2048 - 256) * 32768 * 4  # bytes by which the logits grow: 235 MB
    assert many - few < 0.1 * logits
