"""KL by three estimators against a slow twin and against each other; rows of samples and of best-of-N."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from conftest import build_groups, build_model
from dipole.data.batch import pack
from dipole.policy.logprobs import Policy
from dipole.policy.reference import FrozenCopy
from dipole.sweep.measured import divergences, drawn, rows_of_best, rows_of_policy
from dipole.sweep.texts import Prompt

PROMPTS = [Prompt("one", (5, 6, 7)), Prompt("two", (9, 10))]


def two_models(vocabulary: int = 260) -> tuple[Policy, FrozenCopy]:
    policy = Policy(build_model(vocabulary)).eval()
    reference = FrozenCopy(copy.deepcopy(policy))
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in policy.parameters():
            value += 0.03 * torch.randn(value.shape, generator=draw)
    return policy, reference


def test_the_estimators_are_their_definitions() -> None:
    policy, reference = two_models()
    batch = pack(build_groups((3, [4, 2]), (2, [5])))
    found = divergences(policy, reference, batch)
    for number, (prompt, ids) in enumerate(batch.sequences):
        row = torch.tensor([[*prompt, *ids[:-1]]])
        with torch.no_grad():
            own, other = (
                model.model(input_ids=row).logits[0, len(prompt) - 1 :].double().log_softmax(-1)
                for model in (policy, reference.policy)
            )
        exact = (own.exp() * (own - other)).sum()
        d = (own - other)[range(len(ids)), list(ids)]
        assert float(found["kl"][number]) == pytest.approx(float(exact), abs=1e-4)
        assert float(found["k1"][number]) == pytest.approx(float(d.sum()), abs=1e-4)
        assert float(found["k3"][number]) == pytest.approx(float(((-d).exp() - 1 + d).sum()), abs=1e-4)


def test_on_the_policys_samples_all_estimate_the_same(tokenizer: Any) -> None:
    policy, reference = two_models(16)
    rows = rows_of_policy(
        policy, reference, tokenizer, PROMPTS, lambda *_: 0.0, completions=400, max_new_tokens=3, seed=0
    )
    means = {name: sum(row[name] for row in rows) / len(rows) for name in ("kl", "k1", "k3")}
    assert means["kl"] > 0.05
    for name in ("k1", "k3"):
        spread = (sum((row[name] - means[name]) ** 2 for row in rows) / len(rows)) ** 0.5
        assert means[name] == pytest.approx(means["kl"], abs=4 * spread / len(rows) ** 0.5)


def test_rows_say_what_was_sampled(tokenizer: Any) -> None:
    policy, _ = two_models()
    asked: list[tuple[str, str]] = []

    def score(prompt: str, completion: str) -> float:
        asked.append((prompt, completion))
        return len(completion)

    rows = rows_of_policy(
        policy, FrozenCopy(policy), tokenizer, PROMPTS, score, completions=2, max_new_tokens=5, seed=0
    )
    assert [row["prompt"] for row in rows] == ["one", "one", "two", "two"]
    assert [(row["prompt"], row["completion"]) for row in rows] == asked
    assert all(row["reward"] == len(row["completion"]) and 1 <= row["tokens"] <= 5 for row in rows)
    assert all(abs(row[name]) < 1e-4 for row in rows for name in ("kl", "k1", "k3")), "the reference is the policy"
    samples = drawn(policy, tokenizer, PROMPTS, 2, max_new_tokens=5, seed=0)
    assert [item.verbatim for item in samples] == [row["completion"] for row in rows]


def test_a_draw_does_not_depend_on_what_else_is_drawn(tokenizer: Any) -> None:
    policy, _ = two_models()
    all_of_it = drawn(policy, tokenizer, PROMPTS, 3, max_new_tokens=5, seed=0)
    later = drawn(policy, tokenizer, PROMPTS[1:], 3, max_new_tokens=5, seed=0)
    assert [item.ids for item in all_of_it[3:]] == [item.ids for item in later]


def test_best_of_n_has_a_row_a_prompt() -> None:
    rows = rows_of_best(PROMPTS, [[0.0, 1.0], [2.0, 2.0]], [[1.0, 0.0], [0.0, 1.0]], 2)
    assert [(row["prompt"], row["reward"]) for row in rows] == [("one", 0.0), ("two", 2.0)]
