"""Losses of explicit scores: probabilities that sum to one, symmetries, margins, and the policy's DPO as a twin."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dipole.errors import ConfigError, DataError
from dipole.objective import Completions, PairIndex, check, evaluate, preference_loss, resolve
from dipole.objective.reward_model import REWARD_LOSSES, resolve_reward_loss

DELTA = torch.linspace(-30, 30, 61, dtype=torch.float64)


def losses(
    delta: Tensor, prob: float, name: str = "bradley_terry", scores: Tensor | None = None, **hyper: float
) -> Tensor:
    """The loss of pairs whose scores differ by ``delta``."""
    row, count = REWARD_LOSSES[name], delta.numel()
    completions = Completions(
        logps=torch.cat([delta, torch.zeros_like(delta)]), extras={} if scores is None else {"scores": scores}
    )
    index = PairIndex(i=torch.arange(count), j=torch.arange(count, 2 * count), prob=torch.full_like(delta, prob))
    return evaluate(row, row.settings(**hyper), completions, index).losses


def test_a_certain_label_is_the_negative_log_likelihood() -> None:
    torch.testing.assert_close(losses(DELTA, 1.0), -torch.sigmoid(DELTA).log())
    torch.testing.assert_close(
        losses(DELTA, 1.0).exp().pow(-1) + losses(-DELTA, 1.0).exp().pow(-1), torch.ones_like(DELTA)
    )


def test_it_is_dpo_with_an_explicit_reward() -> None:
    zeros = torch.zeros_like(DELTA)
    dpo = preference_loss("dpo", DELTA, zeros, zeros, zeros, beta=1.0, pair_prob=torch.full_like(DELTA, 0.7))
    torch.testing.assert_close(losses(DELTA, 0.7), dpo.losses)


@pytest.mark.parametrize("width", [0.1, 1.0, 5.0])
def test_win_tie_and_loss_are_all_there_is(width: float) -> None:
    win, tie, loss = (losses(sign * DELTA, prob, tie_width=width) for sign, prob in ((1, 1.0), (1, 0.5), (-1, 1.0)))
    torch.testing.assert_close((-win).exp() + (-tie).exp() + (-loss).exp(), torch.ones_like(DELTA))
    assert int(tie.argmin()) == 30, "a tie is likeliest at equal scores"


def test_the_best_score_of_a_soft_label_is_its_log_odds() -> None:
    at = torch.tensor([0.8]).logit().double().requires_grad_()
    losses(at, 0.8).sum().backward()
    assert at.grad is not None
    assert float(at.grad) == pytest.approx(0, abs=1e-6)
    tie = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    losses(tie, 0.5).sum().backward()
    assert tie.grad is not None
    assert float(tie.grad) == 0


def test_swapping_a_pair_and_its_label_changes_nothing() -> None:
    for width in (0.0, 0.7):
        torch.testing.assert_close(losses(DELTA, 0.7, tie_width=width), losses(-DELTA, 0.3, tie_width=width))


def test_values_and_gradients_stay_finite_far_out() -> None:
    for prob in (1.0, 0.5, 0.0):
        delta = torch.tensor([-1e4, -500.0, 500.0, 1e4], requires_grad=True)
        values = losses(delta, prob, tie_width=0.5)
        values.sum().backward()
        assert values.isfinite().all()
        assert delta.grad is not None
        assert delta.grad.isfinite().all()
        assert delta.grad.abs().max() <= 1


def test_a_margin_asks_for_a_lead() -> None:
    ratings = torch.cat([torch.full_like(DELTA, 4.0), torch.full_like(DELTA, 1.0)])
    found = losses(DELTA, 1.0, "bradley_terry_margin", ratings, score_scale=1.5)
    torch.testing.assert_close(found, losses(DELTA - 2.0, 1.0))
    assert (found > losses(DELTA, 1.0)).all()


def test_margins_need_ratings() -> None:
    row = REWARD_LOSSES["bradley_terry_margin"]
    pairs = PairIndex(i=torch.tensor([0]), j=torch.tensor([1]), prob=torch.ones(1))
    unrated = Completions(logps=torch.zeros(2), extras={"scores": torch.full((2,), torch.nan)})
    with pytest.raises(DataError, match="scores"):
        check(row, row.settings(), unrated, pairs)


def test_the_two_objectives_have_losses_of_their_own() -> None:
    assert resolve_reward_loss("dpo").name == "bradley_terry"
    with pytest.raises(ConfigError, match="'ipo' isn't the loss of a reward model"):
        resolve_reward_loss("ipo")
    with pytest.raises(ConfigError, match="no loss 'bradley_terry'"):
        resolve("bradley_terry")
