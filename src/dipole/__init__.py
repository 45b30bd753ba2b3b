"""Dipole: preference optimization for language models. Collect, audit, train, evaluate, iterate."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING, Any

import dipole.train as _train_room
from dipole.group import Approval, Comparison, Completion, Group, Judgment, Ranking, Rating

if TYPE_CHECKING:
    from dipole.api import audit, generate, train
    from dipole.data.formats import load_groups, save_groups
    from dipole.objective import LOSSES, indexed_preference_loss, preference_loss
    from dipole.train.trainers import (
        ConstitutionalDPOTrainer,
        DPOTrainer,
        DPOTrainerWithLoRA,
        ProbabilisticDPOTrainer,
    )

__version__ = "0.1.0"

__all__ = [
    "LOSSES",
    "Approval",
    "Comparison",
    "Completion",
    "ConstitutionalDPOTrainer",
    "DPOTrainer",
    "DPOTrainerWithLoRA",
    "Group",
    "Judgment",
    "ProbabilisticDPOTrainer",
    "Ranking",
    "Rating",
    "audit",
    "generate",
    "indexed_preference_loss",
    "load_groups",
    "preference_loss",
    "save_groups",
    "train",
]

_LAZY = {
    "audit": "dipole.api",
    "generate": "dipole.api",
    "load_groups": "dipole.data.formats",
    "save_groups": "dipole.data.formats",
    "LOSSES": "dipole.objective",
    "indexed_preference_loss": "dipole.objective",
    "preference_loss": "dipole.objective",
    "ConstitutionalDPOTrainer": "dipole.train.trainers",
    "DPOTrainer": "dipole.train.trainers",
    "DPOTrainerWithLoRA": "dipole.train.trainers",
    "ProbabilisticDPOTrainer": "dipole.train.trainers",
}
"""What is imported when it is first used, since it needs numpy or torch."""


class _Room(ModuleType):
    """A package of modules whose name is also a verb: ``dipole.train`` holds ``dipole.train.loop``, and can be called.

    A function of that name couldn't stay: importing any module of the package puts the package in its place.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the function of ``dipole.api`` that has the package's name."""
        return getattr(importlib.import_module("dipole.api"), self.__name__.rpartition(".")[2])(*args, **kwargs)


_train_room.__class__ = _Room


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'dipole' has no attribute '{name}'")
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
