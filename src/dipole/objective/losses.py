"""Every preference loss as a pure function of log-probabilities: one value a relation, nothing reduced over the batch.

How to read it: ``chosen`` and ``rejected`` are the two sides of R pairs, each a ``Completions`` of (R,) tensors.

    logps         log π(y|x), summed over the completion's tokens, the prompt excluded
    logratio      log π(y|x) − log π_ref(y|x)
    mean_*        the same divided by the number of tokens |y|
    h             logratio of chosen − logratio of rejected, in nats (``delta`` below)
    beta  β       the strength of the tie to the reference: higher stays closer. IPO's τ is ``beta`` here too

A docstring's first paragraph is the formula, its second the source; the documentation is made from them. What each
loss takes, its defaults and its traps are in its row, ``rows_reference.py`` and ``rows_other.py``.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid

from dipole.objective.completions import Completions


def delta(chosen: Completions, rejected: Completions) -> Tensor:
    """H: how much more the policy prefers chosen to rejected than the reference does, in nats."""
    return chosen.logratio - rejected.logratio


def dpo(chosen: Completions, rejected: Completions, *, beta: float) -> Tensor:
    """−log σ(β h).

    Rafailov et al. 2023, arXiv 2305.18290, Eq. 7.
    """
    return -logsigmoid(beta * delta(chosen, rejected))


def cdpo(chosen: Completions, rejected: Completions, *, beta: float, label_smoothing: float) -> Tensor:
    """−(1−ε) log σ(β h) − ε log σ(−β h).

    Mitchell 2023, "A note on DPO with noisy preferences & relationship to IPO", Eq. 2.
    """
    return (1 - label_smoothing) * dpo(chosen, rejected, beta=beta) + label_smoothing * dpo(rejected, chosen, beta=beta)


def ipo(chosen: Completions, rejected: Completions, *, beta: float) -> Tensor:
    """(h − 1/(2β))².

    Azar et al. 2023, arXiv 2310.12036, Eq. 17; β is the paper's τ.
    """
    return (delta(chosen, rejected) - 1 / (2 * beta)).square()


def simpo(chosen: Completions, rejected: Completions, *, beta: float, gamma_beta_ratio: float) -> Tensor:
    """−log σ(β (log π(y_w)/|y_w| − log π(y_l)/|y_l|) − γ), γ = β · gamma_beta_ratio.

    Meng, Xia, Chen 2024, arXiv 2405.14734, Eq. 6.
    """
    return -logsigmoid(beta * (chosen.mean_logps - rejected.mean_logps - gamma_beta_ratio))
