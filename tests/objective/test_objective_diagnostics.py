"""What is logged besides the loss."""

from __future__ import annotations

import pytest
import torch
from objective_cases import random_completions, replaced, run

from dipole.objective import Completions, ListIndex, PairIndex, UnaryIndex, resolve
from dipole.objective.diagnostics import list_metrics, pair_metrics, unary_metrics

COMPLETIONS = Completions(
    logps=torch.tensor([-3.0, -8.0, -5.0, -5.0]).requires_grad_(),
    ref_logps=torch.tensor([-4.0, -6.0, -3.0, -5.0]),
    lengths=torch.tensor([3, 4, 5, 1]),
)
REWARDS = torch.tensor([1.0, -2.0, -2.0, 0.0])


def test_metrics_of_pairs():
    metrics = pair_metrics(COMPLETIONS, REWARDS, PairIndex(i=torch.tensor([0, 1, 2]), j=torch.tensor([1, 2, 3])))
    assert {name: values.tolist() for name, values in metrics.items()} == {
        "rewards/chosen": [1, -2, -2],
        "rewards/rejected": [-2, -2, 0],
        "rewards/margins": [3, 0, -2],
        "rewards/accuracies": [1, 0, 0],
        "rewards/ties": [0, 1, 0],
        "logps/chosen": [-3, -8, -5],
        "logps/rejected": [-8, -5, -5],
        "logps/displacement": [1, -2, -2],
        "logps/chosen_mean": [-1, -2, -1],
        "logps/rejected_mean": [-2, -1, -5],
    }
    assert not any(values.requires_grad for values in metrics.values())


def test_the_likelier_side_is_the_chosen_one():
    pairs = PairIndex(i=torch.tensor([0, 0, 0]), j=torch.tensor([1, 1, 1]), prob=torch.tensor([0.9, 0.5, 0.1]))
    metrics = pair_metrics(COMPLETIONS, REWARDS, pairs)
    assert metrics["rewards/margins"].tolist() == [3, 3, -3]
    assert metrics["rewards/accuracies"].tolist() == [1, 1, 0]


def test_metrics_without_reference_and_lengths():
    bare = Completions(logps=COMPLETIONS.logps)
    metrics = pair_metrics(bare, REWARDS, PairIndex(i=torch.tensor([0]), j=torch.tensor([1])))
    assert "logps/displacement" not in metrics
    assert "logps/chosen_mean" not in metrics
    assert metrics["logps/chosen"].tolist() == [-3]


PAIRS = PairIndex(i=torch.tensor([0, 1, 2, 3]), j=torch.tensor([4, 5, 6, 7]))


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("ipo", {"ipo/target_distance"}),
        ("ipo_avg", {"ipo/target_distance"}),
        ("cdpo", {"implied_prob"}),
        ("rdpo", {"implied_prob"}),
        ("orpo", {"orpo/nll", "orpo/log_odds_ratio"}),
        ("tdpo1", {"tdpo/kl_chosen", "tdpo/kl_rejected"}),
        ("tdpo2", {"tdpo/kl_chosen", "tdpo/kl_rejected"}),
        ("wpo", {"wpo/weight", "wpo/above_one"}),
        ("safedpo", {"safedpo/swapped", "safedpo/dropped"}),
        ("adpo", {"adpo/queried", "adpo/flipped"}),
        ("dpo", set()),
    ],
)
def test_losses_say_more(name: str, keys: set[str]):
    row = resolve(name)
    assert run(row, row.settings(), random_completions(), PAIRS).logged.keys() == keys


def test_target_distance_is_zero_where_the_loss_is():
    completions = random_completions()
    for name, beta in (("ipo", 0.1), ("ipo_avg", 0.5)):
        row = resolve(name)
        outcome = run(row, row.settings(beta=beta), completions, PAIRS)
        torch.testing.assert_close(outcome.losses, outcome.logged["ipo/target_distance"].square())


def test_orpo_terms_add_up_to_its_loss():
    row = resolve("orpo")
    outcome = run(row, row.settings(odds_weight=0.1), random_completions(), PAIRS)
    term = torch.nn.functional.softplus(-outcome.logged["orpo/log_odds_ratio"])
    torch.testing.assert_close(outcome.losses, outcome.logged["orpo/nll"] + 0.1 * term)


def test_safety_is_counted():
    unsafe = torch.tensor([1, 0, 1, 0, 0, 1, 1, 0])
    row = resolve("safedpo")
    logged = run(row, row.settings(), replaced(random_completions(), unsafe=unsafe), PAIRS).logged
    assert logged["safedpo/swapped"].tolist() == [1, 0, 0, 0]
    assert logged["safedpo/dropped"].tolist() == [0, 0, 1, 0]


def test_queries_are_counted():
    h = torch.tensor([0.5, -0.5, 3.0, -3.0], dtype=torch.float64)
    zero = torch.zeros(8, dtype=torch.float64)
    completions = Completions(logps=torch.cat([h, zero[:4]]), ref_logps=zero)
    row = resolve("adpo")
    logged = run(row, row.settings(beta=1.0, gamma=1.0), completions, PAIRS).logged
    assert logged["adpo/queried"].tolist() == [1, 1, 0, 0]
    assert logged["adpo/flipped"].tolist() == [0, 0, 0, 1]


def test_wpo_weights_stop_at_one():
    completions = random_completions()
    heavy = replaced(completions, log_sum_sq_probs=-10.0 * completions.lengths)
    row = resolve("wpo")
    logged = run(row, row.settings(), heavy, PAIRS).logged
    assert logged["wpo/weight"].tolist() == [1] * 4
    assert logged["wpo/above_one"].tolist() == [1] * 4


def test_of_single_completions_the_sign_of_the_reward_is_the_guess():
    rewards = torch.tensor([0.5, -0.1, 0.0, 2.0])
    unaries = UnaryIndex(i=torch.tensor([0, 1, 2, 3]), desirable=torch.tensor([True, False, True, False]))
    metrics = unary_metrics(rewards, unaries)
    assert metrics["rewards/accuracies"].tolist() == [1, 1, 0, 0]
    assert metrics["rewards/ties"].tolist() == [0, 0, 1, 0]


def test_of_a_ranking_the_best_stands_against_the_mean_of_the_others():
    completions = random_completions()
    rewards = torch.tensor([3.0, 1.0, 2.0, 0.0, 4.0, 4.0, 0.0, 0.0], dtype=torch.float64)
    lists = ListIndex(order=torch.tensor([[0, 1, 2, 3], [4, 5, -1, -1], [1, 2, 3, -1]]))
    metrics = list_metrics(completions, rewards, lists)
    assert metrics["rewards/chosen"].tolist() == [3, 4, 1]
    assert metrics["rewards/rejected"].tolist() == [1, 4, 1]
    assert metrics["rewards/margins"].tolist() == [2, 0, 0]
    assert metrics["rewards/accuracies"].tolist() == [1, 0, 0]
    assert metrics["rewards/ties"].tolist() == [0, 1, 0]
    torch.testing.assert_close(metrics["logps/displacement"], completions.logratio[[0, 4, 1]])
    torch.testing.assert_close(metrics["logps/rejected"][1], completions.logps[5])
