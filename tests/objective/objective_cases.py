"""What the tests of this room share: the vectors' input, and random completions that any row can be run on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dipole.objective import (
    INPUTS,
    LOSSES,
    Completions,
    ListIndex,
    Loss,
    Outcome,
    PairIndex,
    Relations,
    UnaryIndex,
    batch_sums,
    evaluate,
    initial_state,
    settle,
)

VECTORS = json.loads((Path(__file__).parent / "loss_vectors.json").read_text(encoding="utf-8"))
INPUT = VECTORS["input"]
NUM_OBJECTIVES = 3
ROWS = list(LOSSES.values())
every_row = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)


def run(row: Loss, settings: dict[str, Any], completions: Completions, relations: Relations) -> Outcome:
    """The loss of relations that are a whole batch, the first of training."""
    sums = batch_sums(row, settings, completions, relations)
    constants, _ = settle(row, settings, sums, initial_state(row))
    return evaluate(row, settings, completions, relations, constants)


def settings_of(row: Loss) -> dict[str, Any]:
    """Defaults, but with as many weights as the random completions have objectives."""
    others = {"weights": (0.5, 0.3, 0.2)} if any(p.simplex for p in row.hyper) else {}
    return row.settings(**others)


def relations_of(row: Loss) -> Relations:
    """Relations of the row's kind among eight completions, with labels of every sort that it takes."""
    if row.relation == "pair":
        prob = None if row.soft == "refused" else torch.tensor([1.0, 0.8, 0.5, 1.0, 0.0])
        return PairIndex(i=torch.tensor([0, 1, 2, 3, 0]), j=torch.tensor([4, 5, 6, 7, 1]), prob=prob)
    if row.relation == "unary":
        return UnaryIndex(i=torch.tensor([0, 3, 5, 6]), desirable=torch.tensor([True, False, True, False]))
    order = torch.tensor([[0, 4, 2, 1], [3, 6, -1, -1], [5, 7, 1, -1]])
    return ListIndex(order=order, num_ranked=torch.tensor([4, 1, 2]))


def take(relations: Relations, rows: Tensor) -> Relations:
    """Some of the relations, in this order."""
    if isinstance(relations, PairIndex):
        prob = None if relations.prob is None else relations.prob[rows]
        return PairIndex(i=relations.i[rows], j=relations.j[rows], prob=prob)
    if isinstance(relations, UnaryIndex):
        return UnaryIndex(i=relations.i[rows], desirable=relations.desirable[rows])
    num_ranked = None if relations.num_ranked is None else relations.num_ranked[rows]
    return ListIndex(order=relations.order[rows], num_ranked=num_ranked)


def count(relations: Relations) -> int:
    return len(relations.order) if isinstance(relations, ListIndex) else len(relations.i)


def renumbered(relations: Relations, where: Tensor) -> Relations:
    """The same relations when completion c has moved to ``where[c]``."""
    if isinstance(relations, PairIndex):
        return PairIndex(i=where[relations.i], j=where[relations.j], prob=relations.prob)
    if isinstance(relations, UnaryIndex):
        return UnaryIndex(i=where[relations.i], desirable=relations.desirable)
    order = torch.where(relations.order >= 0, where[relations.order.clamp(min=0)], -1)
    return ListIndex(order=order, num_ranked=relations.num_ranked)


def random_completions(seed: int = 0, *, dtype: torch.dtype = torch.float64, scale: float = 3.0) -> Completions:
    """Eight completions with everything that a row may ask for. Scores fall, so that i < j is the right order."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64).to(dtype)

    lengths = torch.tensor([5, 3, 8, 4, 7, 2, 6, 4])
    tokens, ref_tokens = -scale * uniform(8, 8) - 0.01, -scale * uniform(8, 8) - 0.01
    is_token = torch.arange(8) < lengths[:, None]
    known = {
        "token_logps": tokens,
        "ref_token_logps": ref_tokens,
        "log_sum_sq_probs": -uniform(8) * lengths,
        "seq_kl": uniform(8),
        "mismatched_logratio": uniform(8) - 0.2,
        "scores": torch.linspace(3, 0, 8, dtype=dtype),
        "unsafe": torch.tensor([1, 0, 1, 0, 0, 1, 1, 0]),
        "from_policy": torch.tensor([1, 0, 1, 0, 0, 1, 0, 1]),
        "margin_rewards": uniform(8, NUM_OBJECTIVES - 1),
        "imageless_logps": -10 * uniform(8),
        "ref_imageless_logps": -10 * uniform(8),
    }
    assert known.keys() == INPUTS.keys(), "a new input needs random values here"
    return Completions(
        logps=torch.where(is_token, tokens, 0.0).sum(-1),
        ref_logps=torch.where(is_token, ref_tokens, 0.0).sum(-1),
        lengths=lengths,
        extras=known,
    )


def extreme_completions(row: Loss, size: float, dtype: torch.dtype) -> tuple[Completions, Relations]:
    """Sixteen completions with log-ratios of 0 and ±size in every combination of two, and relations among them."""
    completions = random_completions(dtype=dtype).take(torch.arange(8).repeat(2))
    signs = torch.tensor([[1, 1], [1, -1], [-1, 1], [-1, -1], [0, 1], [1, 0], [0, -1], [-1, 0]])
    logps = torch.full((16,), -1.5 * size, dtype=dtype)
    relations = relations_of(row)
    if isinstance(relations, PairIndex):
        relations = PairIndex(i=torch.arange(8), j=torch.arange(8, 16))
    return replaced(
        completions,
        logps=logps,
        ref_logps=logps - size * signs.T.flatten().to(dtype),
        scores=torch.linspace(3, 0, 16, dtype=dtype),
        token_logps=completions.extras["token_logps"] - size / 8,
    ), relations


def with_graph(completions: Completions) -> list[Tensor]:
    """Makes everything a leaf that a loss may have a gradient through, and returns it."""
    leaves = [completions.logps, *(completions.extras[name] for name, item in INPUTS.items() if item.differentiable)]
    return [leaf.detach_().requires_grad_() for leaf in leaves]


def gradients(losses: Tensor, leaves: list[Tensor]) -> Tensor:
    """The gradient of the sum of losses by all leaves, in one vector; an error when there is no graph."""
    parts = torch.autograd.grad(losses.sum(), leaves, allow_unused=True, materialize_grads=True)
    return torch.cat([part.flatten() for part in parts])


def replaced(completions: Completions, **changes: Any) -> Completions:
    """Completions with other fields; a name of ``INPUTS`` changes that extra."""
    extras = {name: changes.pop(name, tensor) for name, tensor in completions.extras.items()}
    kept = {"logps": completions.logps, "ref_logps": completions.ref_logps, "lengths": completions.lengths}
    return Completions(**{**kept, "extras": extras, **changes})


def vector_completions(dtype: torch.dtype = torch.float64) -> Completions:
    """The eight completions of the vectors: chosen of four pairs, then rejected."""

    def both(name: str) -> Tensor:
        return torch.tensor(INPUT[f"{name[0]}chosen{name[1]}"] + INPUT[f"{name[0]}rejected{name[1]}"], dtype=dtype)

    def padded(model: str) -> Tensor:
        rows = INPUT[f"{model}_chosen_token_logps"] + INPUT[f"{model}_rejected_token_logps"]
        return torch.tensor([row + [float("nan")] * (8 - len(row)) for row in rows], dtype=dtype)

    sum_sq = INPUT["policy_chosen_log_sum_sq_probs"] + INPUT["policy_rejected_log_sum_sq_probs"]
    nothing = [0.0] * 4
    return Completions(
        logps=torch.tensor(INPUT["policy_chosen_logps"] + INPUT["policy_rejected_logps"], dtype=dtype),
        ref_logps=torch.tensor(INPUT["reference_chosen_logps"] + INPUT["reference_rejected_logps"], dtype=dtype),
        lengths=torch.tensor(INPUT["chosen_lengths"] + INPUT["rejected_lengths"]),
        extras={
            "token_logps": padded("policy"),
            "ref_token_logps": padded("reference"),
            "log_sum_sq_probs": torch.tensor([sum(row) for row in sum_sq], dtype=dtype),
            "seq_kl": both(("", "_seq_kl_ref_policy")),
            "mismatched_logratio": torch.tensor(INPUT["kl_policy_logps"], dtype=dtype)
            - torch.tensor(INPUT["kl_reference_logps"], dtype=dtype),
            "scores": both(("", "_scores")),
            "unsafe": both(("", "_unsafe")),
            "from_policy": torch.tensor(
                INPUT["xpo_chosen_is_policy_sample"] + [not it for it in INPUT["xpo_chosen_is_policy_sample"]]
            ),
            "margin_rewards": both(("modpo_margin_", "")),
            "imageless_logps": torch.tensor(INPUT["mdpo_policy_imageless_chosen_logps"] + nothing, dtype=dtype),
            "ref_imageless_logps": torch.tensor(INPUT["mdpo_reference_imageless_chosen_logps"] + nothing, dtype=dtype),
        },
    )
