"""Choices among alternatives, and the one fit behind every estimator of this room.

Someone chose one of several alternatives; the log-odds of an alternative are linear in the parameters. A comparison is
a choice among *first*, *second* and *tie*; a ranking is a choice among what is left, stage by stage; an annotator's
vote is a choice among *right*, *wrong* and *tie*. With normal priors the log-posterior is strictly concave, so Newton's
method with step halving finds its one maximum whatever the data are: an answer that always wins, ties alone, two
parts that were never compared.

Written by hand, since no library has ties, sides, priors and clusters together: choix has no ties and no intervals,
evalica no prior (one undefeated item takes all its scores to the floor), crowd-kit's Bradley–Terry stops after its
second step. Tests hold this one against them where they are right.

Shapes: R alternatives in S stages, P parameters, B ballots.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import splu

from dipole.data.audit.intervals import Floats, Ints

Sparse = Any
"""A matrix of scipy.sparse, which has no types."""

SMALL = 200_000
"""Entries of a matrix up to which it isn't kept sparse while a maximum is looked for."""

STEPS = 100
HALVINGS = 40


class Prior(NamedTuple):
    """Independent normal priors.

    Args:
        mean: (P)
        precision: (P) one over the variance, above 0.
    """

    mean: Floats
    precision: Floats

    def log_density(self, parameters: Floats) -> float:
        """Up to a constant."""
        return float(-0.5 * np.sum(self.precision * (parameters - self.mean) ** 2))


@dataclass(frozen=True, slots=True)
class Choices:
    """What can be chosen.

    Args:
        design: (R, P) sparse; an alternative's log-odds are its row times the parameters.
        starts: (S) the first alternative of each stage; the alternatives of a stage stand side by side.
    """

    design: Sparse
    starts: Ints

    def log_probabilities(self, parameters: Floats) -> Floats:
        """(R) of each alternative in its stage."""
        odds = np.asarray(self.design @ parameters)
        odds -= self._of_stage(np.maximum.reduceat(odds, self.starts))
        result: Floats = odds - self._of_stage(np.log(np.add.reduceat(np.exp(odds), self.starts)))
        return result

    def times(self, chosen: Floats) -> Floats:
        """(R) how often something was chosen in each alternative's stage."""
        return self._of_stage(np.add.reduceat(chosen, self.starts))

    def centred(self, probabilities: Floats) -> Sparse:
        """(R, P) each alternative's row less the mean of its stage: the gradient of its log-probability."""
        widths = np.diff(np.append(self.starts, self.design.shape[0]))
        stage = np.repeat(np.arange(len(self.starts)), widths)
        return self.design - self._means(probabilities)[stage]

    def information(self, chosen: Floats, probabilities: Floats) -> Sparse:
        """(P, P) minus the second derivative of Σ chosen · log-probability."""
        means = self._means(probabilities)
        spread = self.design.T @ _scaled(self.design, self.times(chosen) * probabilities)
        return spread - means.T @ _scaled(means, np.add.reduceat(chosen, self.starts))

    def small(self) -> Choices:
        """The same as a full matrix, where that is quicker than a sparse one."""
        return replace(self, design=self.design.toarray()) if np.prod(self.design.shape) <= SMALL else self

    def _of_stage(self, values: Floats) -> Floats:
        """(R) from (S)."""
        return np.repeat(values, np.diff(np.append(self.starts, self.design.shape[0])))

    def _means(self, probabilities: Floats) -> Sparse:
        """(S, P) the mean row of each stage."""
        if isinstance(self.design, np.ndarray):
            return np.add.reduceat(self.design * probabilities[:, None], self.starts, axis=0)
        ends = np.append(self.starts, self.design.shape[0])
        shape = (len(self.starts), len(probabilities))
        return sparse.csr_array((probabilities, np.arange(len(probabilities)), ends), shape=shape) @ self.design


def _scaled(matrix: Sparse, rows: Floats) -> Sparse:
    """Each row times a number."""
    if isinstance(matrix, np.ndarray):
        return matrix * rows[:, None]
    values = matrix.data * np.repeat(rows, np.diff(matrix.indptr))
    return sparse.csr_array((values, matrix.indices, matrix.indptr), shape=matrix.shape)


def fit(choices: Choices, chosen: Floats, prior: Prior, start: Floats | None = None) -> Floats:
    """(P) the parameters of the largest posterior.

    Args:
        choices: what could be chosen.
        chosen: (R) how often each alternative was, fractions allowed.
        prior: of the parameters.
        start: (P) where to begin; the prior's mean by default. Never changes the result by more than rounding.
    """
    choices = choices.small() if not isinstance(choices.design, np.ndarray) else choices
    parameters = prior.mean.copy() if start is None else start
    value = log_posterior(choices, chosen, prior, parameters)
    times = choices.times(chosen)
    for _ in range(STEPS):
        probabilities = np.exp(choices.log_probabilities(parameters))
        gradient = choices.design.T @ (chosen - times * probabilities) - prior.precision * (parameters - prior.mean)
        step = _solve(choices.information(chosen, probabilities), prior.precision, gradient)
        gain = float(gradient @ step)
        if gain <= 1e-12 * (1 + abs(value)):  # so near that a whole step is exact to rounding
            return np.asarray(parameters + step)
        parameters, value = _uphill(choices, chosen, prior, parameters, value, step, gain)
    return parameters


def _solve(information: Sparse, precision: Floats, gradient: Floats) -> Floats:
    if isinstance(information, np.ndarray):
        return np.linalg.solve(information + np.diag(precision), gradient)
    curvature = (information + sparse.diags_array(precision)).tocsc()
    return np.asarray(splu(curvature, permc_spec="MMD_AT_PLUS_A").solve(gradient))


def _uphill(
    choices: Choices, chosen: Floats, prior: Prior, parameters: Floats, value: float, step: Floats, gain: float
) -> tuple[Floats, float]:
    """The longest of step, step/2, step/4 … that rises by enough (Armijo)."""
    share = 1.0
    for _ in range(HALVINGS):
        candidate = parameters + share * step
        found = log_posterior(choices, chosen, prior, candidate)
        if found >= value + 1e-4 * share * gain:
            return candidate, found
        share /= 2
    return parameters, value


def log_posterior(choices: Choices, chosen: Floats, prior: Prior, parameters: Floats) -> float:
    """Σ chosen · log-probability, and the prior's, up to a constant."""
    return float(chosen @ choices.log_probabilities(parameters)) + prior.log_density(parameters)
