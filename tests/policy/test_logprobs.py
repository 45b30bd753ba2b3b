"""Log-probabilities a token, and the head alone; that all ways of computing a step agree is in test_equivalence."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from conftest import build_exact_model, build_groups, build_model
from dipole.data.batch import pack
from dipole.data.tokenize import TokenizedGroup
from dipole.errors import ConfigError
from dipole.policy import head
from dipole.policy.head import BYPRODUCTS, HeadInput, chunked_kl, chunked_logprobs
from dipole.policy.logprobs import Policy, TokenValues, check_engine, plain_logprobs, sum_by_completion

GROUPS = build_groups((5, [4, 1, 9]), (12, [3, 8]), (1, [2, 2, 6, 1]), (7, [1]))


def padded_logps(model: nn.Module, groups: Sequence[TokenizedGroup]) -> list[Tensor]:
    """(L,) log-probabilities of each completion from one padded batch of whole sequences."""
    rows = [(group.prompt_ids, ids) for group in groups for ids in group.completion_ids]
    longest = max(len(prompt) + len(ids) for prompt, ids in rows)
    ids = torch.tensor([[*prompt, *ids, *[0] * (longest - len(prompt) - len(ids))] for prompt, ids in rows])
    mask = torch.tensor(
        [[1] * (len(prompt) + len(ids)) + [0] * (longest - len(prompt) - len(ids)) for prompt, ids in rows]
    )
    logps = model(input_ids=ids, attention_mask=mask).logits.log_softmax(-1)
    return [
        logps[number, len(prompt) - 1 : len(prompt) + len(row) - 1].gather(1, torch.tensor(row)[:, None]).squeeze(1)
        for number, (prompt, row) in enumerate(rows)
    ]


def gradients(model: nn.Module) -> dict[str, Tensor]:
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad()
    return found


def logprobs_of(hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor) -> Tensor:
    return chunked_logprobs(HeadInput(hidden, weight, bias), target)[0]


def capped(logits: Tensor, softcap: float | None) -> Tensor:
    return logits if softcap is None else softcap * (logits / softcap).tanh()


def largest_gap(left: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    assert left.keys() == right.keys()
    assert left
    return max(float((left[name] - right[name]).abs().max()) for name in left)


# Packed, one by one, padded


def test_packed_equals_one_by_one_equals_padded() -> None:
    model = build_exact_model()
    padded = torch.cat(padded_logps(model, GROUPS))
    batch = pack(GROUPS)
    policy = Policy(model)
    with torch.no_grad():
        assert policy(batch).logps.dtype == torch.float64
        torch.testing.assert_close(policy(batch).logps, plain_logprobs(policy, batch), rtol=0, atol=1e-10)
        torch.testing.assert_close(policy(batch).logps, padded, rtol=0, atol=1e-10)


def test_llama_with_a_tied_head_agrees_too() -> None:
    model = build_model(64).double()  # its norms and rotations are float32 inside
    torch.cat(padded_logps(model, GROUPS)).sin().sum().backward()
    padded = gradients(model)
    assert "lm_head.weight" not in padded
    Policy(model)(pack(GROUPS)).logps.sin().sum().backward()
    packed = gradients(model)
    scale = max(float(value.abs().max()) for value in padded.values())
    assert largest_gap(packed, padded) < 1e-6 * scale


def test_a_completion_is_blind_to_all_others() -> None:
    one, other = build_groups((5, [4, 6])), build_groups((5, [4, 6]), (3, [2, 9]), seed=1)
    changed = TokenizedGroup(
        id="c", prompt_ids=one[0].prompt_ids, completion_ids=(one[0].completion_ids[0], (7, 7, 7)), relations=()
    )
    policy = Policy(build_exact_model())
    with torch.no_grad():
        alone = policy(pack(one)).logps[:4]
        torch.testing.assert_close(policy(pack([changed, *other])).logps[:4], alone, rtol=0, atol=1e-12)


def test_completions_of_one_token_need_no_second_attention_call() -> None:
    batch = pack(build_groups((4, [1, 1]), (2, [1])))
    policy = Policy(build_exact_model())
    with torch.no_grad():
        torch.testing.assert_close(policy(batch).logps, plain_logprobs(policy, batch), rtol=0, atol=1e-10)


def test_sums_are_by_completion() -> None:
    batch = pack(build_groups((2, [3, 1]), (2, [2])))
    assert sum_by_completion(torch.tensor([1.0, 2, 4, 8, 16, 32]), batch).tolist() == [7.0, 8.0, 48.0]


# The head


HEADS = [(False, False), (True, False), (False, True), (True, True)]


@pytest.mark.parametrize("tokens_a_chunk", [1, 2, 5, 100])
@pytest.mark.parametrize(("trained", "biased"), HEADS)
@pytest.mark.parametrize("softcap", [None, 1.5])
def test_the_head_equals_log_softmax(
    monkeypatch: pytest.MonkeyPatch, softcap: float | None, tokens_a_chunk: int, trained: bool, biased: bool
) -> None:
    monkeypatch.setattr(head, "HEAD_BYTES", tokens_a_chunk * 11 * 8)
    torch.manual_seed(0)
    hidden = torch.randn(7, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(11, 4, dtype=torch.float64, requires_grad=trained)
    bias = torch.randn(11, dtype=torch.float64, requires_grad=trained) if biased else None
    target = torch.tensor([0, 10, 3, 3, 7, 1, 0])
    upstream = torch.randn(7, dtype=torch.float64)
    inputs = [tensor for tensor in (hidden, weight, bias) if tensor is not None and tensor.requires_grad]
    logits = capped(nn.functional.linear(hidden, weight, bias), softcap)
    slow = logits.log_softmax(-1).gather(1, target[:, None]).squeeze(1)
    expected = torch.autograd.grad(slow, inputs, upstream)
    fast = chunked_logprobs(HeadInput(hidden, weight, bias, softcap), target)[0]
    torch.testing.assert_close(fast, slow, rtol=0, atol=1e-12)
    for left, right in zip(torch.autograd.grad(fast, inputs, upstream), expected, strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=1e-12)


@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("tokens_a_chunk", [1, 3, 100])
def test_the_kl_to_a_reference_equals_its_definition(
    monkeypatch: pytest.MonkeyPatch, tokens_a_chunk: int, trained: bool, softcap: float | None
) -> None:
    monkeypatch.setattr(head, "HEAD_BYTES", tokens_a_chunk * 11 * 8)
    torch.manual_seed(0)
    hidden, weight, bias = (torch.randn(*shape, dtype=torch.float64) for shape in ((7, 4), (11, 4), (11,)))
    reference = HeadInput(*(tensor + 0.3 * torch.randn_like(tensor) for tensor in (hidden, weight, bias)), softcap)
    leaves = [tensor.requires_grad_() for tensor in ((hidden, weight, bias) if trained else (hidden,))]
    p, r = (
        capped(nn.functional.linear(*inputs), softcap).log_softmax(-1)
        for inputs in ((hidden, weight, bias), reference[:3])
    )
    slow = (r.exp() * (r - p)).sum(-1)
    fast = chunked_kl(HeadInput(hidden, weight, bias, softcap), reference)
    torch.testing.assert_close(fast, slow, rtol=0, atol=1e-12)
    assert (fast > 0).all()
    upstream = torch.randn(7, dtype=torch.float64)
    pairs = zip(*(torch.autograd.grad(values, leaves, upstream) for values in (fast, slow)), strict=True)
    for left, right in pairs:
        torch.testing.assert_close(left, right, rtol=0, atol=1e-12)


@pytest.mark.parametrize("tokens_a_chunk", [2, 100])
def test_byproducts_equal_their_definitions_and_have_no_graph(
    monkeypatch: pytest.MonkeyPatch, tokens_a_chunk: int
) -> None:
    monkeypatch.setattr(head, "HEAD_BYTES", tokens_a_chunk * 11 * 8)
    torch.manual_seed(0)
    hidden, weight = torch.randn(5, 4, dtype=torch.float64).requires_grad_(), torch.randn(11, 4, dtype=torch.float64)
    probs = (hidden @ weight.T).softmax(-1).detach()
    target = probs.argmax(-1)
    target[1] = (target[1] + 1) % 11
    logps, found = chunked_logprobs(HeadInput(hidden, weight, None), target, list(BYPRODUCTS))
    expected = {
        "entropy": -(probs * probs.log()).sum(-1),
        "top1": torch.tensor([1.0, 0.0, 1.0, 1.0, 1.0], dtype=torch.float64),
        "log_sum_sq_probs": (probs**2).sum(-1).log(),
    }
    assert logps.requires_grad
    assert not any(tensor.requires_grad for tensor in found.values())
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(logps.detach(), probs.log().gather(1, target[:, None]).squeeze(1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("only", ["weight", "bias"])
def test_a_head_may_be_trained_on_frozen_states(only: str) -> None:
    torch.manual_seed(0)
    hidden, target = torch.randn(3, 4, dtype=torch.float64), torch.tensor([0, 2, 4])
    weight = torch.randn(5, 4, dtype=torch.float64, requires_grad=only == "weight")
    bias = torch.randn(5, dtype=torch.float64, requires_grad=only == "bias")
    wanted = weight if only == "weight" else bias
    slow = nn.functional.linear(hidden, weight, bias).log_softmax(-1).gather(1, target[:, None]).sum()
    (expected,) = torch.autograd.grad(slow, wanted)
    (found,) = torch.autograd.grad(logprobs_of(hidden, weight, bias, target).sum(), wanted)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_large_logits_stay_finite() -> None:
    hidden = torch.tensor([[1e4], [-1e4]], requires_grad=True)
    logps = logprobs_of(hidden, torch.tensor([[1.0], [-1.0]]), None, torch.tensor([0, 0]))
    assert logps.tolist() == [0.0, -2e4]
    logps.sum().backward()
    assert hidden.grad is not None
    assert hidden.grad.tolist() == [[0.0], [2.0]]


# Precision


def test_bfloat16_weights_give_finite_float32_log_probabilities() -> None:
    model = build_model(64)
    batch = pack(GROUPS)
    with torch.no_grad():
        exact = Policy(model)(batch).logps
        rough = Policy(model.bfloat16())(batch).logps
    assert rough.dtype == torch.float32
    assert torch.isfinite(rough).all()
    assert 0 < float((rough - exact).abs().max()) < 0.5


def test_the_head_is_float32_under_autocast() -> None:
    torch.manual_seed(0)
    hidden = torch.randn(6, 32).bfloat16().requires_grad_()
    weight, target = torch.randn(64, 32), torch.arange(6)
    expected = logprobs_of(hidden, weight, None, target)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = logprobs_of(hidden, weight, None, target)
    assert torch.equal(found, expected)


# The check


def test_the_check_passes_a_right_engine_and_names_a_wrong_one(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, batch = Policy(build_exact_model()), pack(GROUPS)
    check_engine(policy, batch, tolerance=1e-10)
    monkeypatch.setattr(Policy, "forward", lambda self, batch: TokenValues(plain_logprobs(self, batch) + 1e-3, {}))
    with pytest.raises(ConfigError, match="PhiForCausalLM"):
        check_engine(policy, batch, tolerance=1e-4)
    monkeypatch.setattr(Policy, "forward", lambda self, batch: plain_logprobs(self, batch) * torch.nan)
    with pytest.raises(ConfigError, match="PhiForCausalLM"):
        check_engine(policy, batch, tolerance=1e-4)


def test_the_check_leaves_attention_as_it_was() -> None:
    policy = Policy(build_exact_model())
    before = policy.transformer.config._attn_implementation
    plain_logprobs(policy, pack(GROUPS))
    assert policy.transformer.config._attn_implementation == before == "dipole"
