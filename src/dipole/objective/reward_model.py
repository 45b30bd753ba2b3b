"""Losses of explicit rewards: the Bradley–Terry likelihood, with ties, soft labels and margins.

A reward model gives every completion a score s(x, y). Its scores stand where a policy has log-probabilities, so that
the loop, its labels and its metrics are the same for both: here ``logps`` are the scores.
"""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn.functional import logsigmoid

from dipole.errors import ConfigError, nearest
from dipole.objective.completions import Completions
from dipole.objective.row import HyperParameter, Loss, Reward


def bradley_terry(chosen: Completions, rejected: Completions, *, prob: Tensor, tie_width: float) -> Tensor:
    """−p logσ(Δ − τ) − (1−p) logσ(−Δ − τ) with Δ = s_w − s_l; of a tie (p = ½, τ > 0) −log(σ(Δ + τ) − σ(Δ − τ)).

    Bradley and Terry 1952, with the ties of Rao and Kupper 1967, τ = log θ; as the loss of a reward model Ouyang et al.
    2022, arXiv 2203.02155, eq. 1.

    With τ = 0 there are no ties in the model, and p = ½ is a label like any other: its cross-entropy.
    """
    return _likelihood(chosen.logps - rejected.logps, prob, tie_width)


def bradley_terry_margin(
    chosen: Completions, rejected: Completions, *, prob: Tensor, tie_width: float, score_scale: float
) -> Tensor:
    """The loss bradley_terry of Δ = s_w − s_l − m, with the margin m = (score_w − score_l) / scale of the data.

    Touvron et al. 2023 (Llama 2), arXiv 2307.09288, eq. 2.
    """
    margin = (chosen["scores"] - rejected["scores"]) / score_scale
    return _likelihood(chosen.logps - rejected.logps - margin, prob, tie_width)


def _likelihood(delta: Tensor, prob: Tensor, tie_width: float) -> Tensor:
    decided = -prob * logsigmoid(delta - tie_width) - (1 - prob) * logsigmoid(-delta - tie_width)
    if tie_width == 0:
        return decided
    # σ(a) − σ(b) = σ(a) σ(−b) (1 − e^{b−a}): a product has a logarithm that doesn't cancel.
    tie = -logsigmoid(delta + tie_width) - logsigmoid(tie_width - delta) - math.log(-math.expm1(-2 * tie_width))
    return tie.where(prob == 0.5, decided)


SCORE = Reward("s(x, y)", lambda c, s: c.logps)
TIE_WIDTH = HyperParameter("tie_width", 0.0, "τ: how close two scores are where ties are likely", low_open=False)

REWARD_LOSSES: dict[str, Loss] = {
    row.name: row
    for row in (
        Loss(
            name="bradley_terry",
            formula=bradley_terry,
            hyper=(TIE_WIDTH,),
            reward=SCORE,
            needs_reference=False,
            soft="own",
            when="A reward model of pairs, whatever their labels.",
            traps="Scores are known up to a constant of the prompt: compare them within a prompt.",
        ),
        Loss(
            name="bradley_terry_margin",
            formula=bradley_terry_margin,
            hyper=(TIE_WIDTH, HyperParameter("score_scale", 1.0, "what differences of ratings are divided by")),
            reward=SCORE,
            needs_reference=False,
            inputs=("scores",),
            soft="own",
            when="Ratings say by how much one completion is better.",
            traps="The scores learn to exceed the ratings' differences, so these set their scale.",
        ),
    )
}
"""The losses of ``--objective reward_model``."""


def resolve_reward_loss(name: str) -> Loss:
    """The row of a reward model's loss.

    ``dpo``, the default name, gives ``bradley_terry``: DPO is that likelihood with an implicit reward.

    Raises:
        ConfigError: nothing is called that, or it is the loss of a policy.
    """
    name = "bradley_terry" if name == "dpo" else name
    if name not in REWARD_LOSSES:
        raise ConfigError(
            f"'{name}' isn't the loss of a reward model", where="--loss.name", remedy=nearest(name, REWARD_LOSSES)
        )
    return REWARD_LOSSES[name]
