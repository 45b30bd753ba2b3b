"""What is minimised: pure functions of log-probabilities, one value a relation.

``losses`` has the formulas, ``LOSSES`` a row of facts for each, ``evaluate`` is what the training loop calls, and
``preference_loss`` and ``indexed_preference_loss`` are for everybody else.
"""

from dipole.objective.apply import Outcome, batch_sums, evaluate, initial_state, settle
from dipole.objective.check import check
from dipole.objective.completions import Completions, ListIndex, PairIndex, Relations, UnaryIndex
from dipole.objective.functional import IndexedLosses, PairLosses, indexed_preference_loss, preference_loss
from dipole.objective.mix import mix
from dipole.objective.row import INPUTS, Coupling, HyperParameter, Input, Loss, Reward
from dipole.objective.table import LOSSES, resolve

__all__ = [
    "INPUTS",
    "LOSSES",
    "Completions",
    "Coupling",
    "HyperParameter",
    "IndexedLosses",
    "Input",
    "ListIndex",
    "Loss",
    "Outcome",
    "PairIndex",
    "PairLosses",
    "Relations",
    "Reward",
    "UnaryIndex",
    "batch_sums",
    "check",
    "evaluate",
    "indexed_preference_loss",
    "initial_state",
    "mix",
    "preference_loss",
    "resolve",
    "settle",
]
