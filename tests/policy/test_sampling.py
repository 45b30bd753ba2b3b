"""Choosing a token: the right distribution, the right truncation, the same numbers everywhere."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
import torch
from transformers import (
    RepetitionPenaltyLogitsProcessor,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from dipole.errors import ConfigError
from dipole.policy import sampling as module
from dipole.policy.sampling import Sampling, choose, truncated, uniform_numbers

LOGITS = torch.tensor([[2.0, -1.0, 0.5, 1.5, -3.0], [0.0, 0.1, 0.2, 0.3, 0.4]], dtype=torch.float64)


def chosen(logits: torch.Tensor, uniform: list[float], **options: Any) -> list[int]:
    tokens, _ = choose(logits, torch.tensor(uniform, dtype=torch.float64), Sampling(**options))
    found: list[int] = tokens.tolist()
    return found


def test_a_token_is_where_the_cumulative_probability_passes_the_number() -> None:
    probs = LOGITS[0].softmax(-1)
    edges = probs.cumsum(-1).tolist()
    for token, (low, high) in enumerate(zip([0.0, *edges], edges, strict=False)):
        for number in (low + 1e-9, high - 1e-9):
            assert chosen(LOGITS[:1], [number]) == [token]
    assert chosen(LOGITS[:1], [0.0]) == [0]
    assert chosen(LOGITS[:1], [math.nextafter(1, 0)]) == [4]


def test_draws_follow_the_distribution() -> None:
    count = 4000
    numbers = [uniform_numbers(0, (index,), 1)[0] for index in range(count)]
    drawn = torch.bincount(torch.tensor(chosen(LOGITS[:1].expand(count, -1), numbers, temperature=1.5)), minlength=5)
    expected = (LOGITS[0] / 1.5).softmax(-1) * count
    assert float(((drawn - expected) ** 2 / expected).sum()) < 18.5  # χ² of 4 degrees of freedom: 1 in 1000


def test_temperature_zero_takes_the_likeliest_and_log_probabilities_are_of_the_model() -> None:
    tokens, logps = choose(LOGITS, torch.tensor([0.9, 0.1]).double(), Sampling(temperature=0))
    assert tokens.tolist() == [0, 4]
    assert logps.tolist() == pytest.approx([float(LOGITS[i].log_softmax(-1)[t]) for i, t in enumerate((0, 4))])


@pytest.mark.parametrize("guess", [2, 256])
def test_truncation_is_that_of_transformers(guess: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "NUCLEUS_GUESS", guess)
    logits = torch.randn(30, 100, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2
    for top_k, top_p in ((0, 0.9), (7, 1.0), (20, 0.5), (0, 0.01), (100, 0.999), (500, 0.3)):
        expected = logits
        if top_k:
            expected = TopKLogitsWarper(top_k)(None, expected)
        if top_p < 1:
            expected = TopPLogitsWarper(top_p)(None, expected)
        found = truncated(logits.softmax(-1), top_k, top_p)
        assert torch.equal(found > 0, expected > -torch.inf), (top_k, top_p)
        torch.testing.assert_close(found / found.sum(-1, keepdim=True), expected.softmax(-1))


def test_the_repetition_penalty_is_that_of_transformers() -> None:
    logits = torch.randn(3, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ids = torch.tensor([[1, 2, 3], [4, 4, 4], [0, 19, 7]])
    seen = torch.zeros(3, 20, dtype=torch.bool).scatter_(1, ids, True)
    expected = RepetitionPenaltyLogitsProcessor(1.7)(ids, logits.clone()).softmax(-1).cumsum(-1)
    uniform = torch.tensor([0.3, 0.6, 0.9], dtype=torch.float64)
    tokens, logps = choose(logits, uniform, Sampling(repetition_penalty=1.7), seen)
    assert tokens.tolist() == [int((row <= number).sum()) for row, number in zip(expected, uniform, strict=True)]
    assert logps.tolist() == pytest.approx(logits.log_softmax(-1).gather(1, tokens.unsqueeze(1)).squeeze(1).tolist())


def test_streams_are_their_own_and_begin_alike() -> None:
    assert uniform_numbers(1, (2, 3), 5) == uniform_numbers(1, (2, 3), 50)[:5]
    starts = {tuple(uniform_numbers(*key, 2)) for key in ((0, (1, 2)), (0, (2, 1)), (1, (1, 2)), (0, (12,)), (0, ()))}
    assert len(starts) == 5
    random.seed(0)
    state = random.getstate()
    uniform_numbers(0, (0,), 3)
    assert random.getstate() == state
    assert uniform_numbers(0, (0, 0), 1) == [0.9513684853666383], "samples of a seed would change"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_k", -1),
        ("repetition_penalty", 0.0),
        ("max_new_tokens", 0),
        ("batch_size", 0),
        ("seed", -1),
        ("stop", ("a", "")),
    ],
)
def test_settings_out_of_range_are_named(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"--{name}"):
        Sampling(**{name: value})
