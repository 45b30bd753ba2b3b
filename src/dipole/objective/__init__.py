"""What is minimised: pure functions of log-probabilities, one value a relation."""

from dipole.objective.apply import Outcome, evaluate
from dipole.objective.completions import Completions, ListIndex, PairIndex, Relations, UnaryIndex
from dipole.objective.row import HyperParameter, Loss
from dipole.objective.table import LOSSES, resolve

__all__ = [
    "LOSSES",
    "Completions",
    "HyperParameter",
    "ListIndex",
    "Loss",
    "Outcome",
    "PairIndex",
    "Relations",
    "UnaryIndex",
    "evaluate",
    "resolve",
]
