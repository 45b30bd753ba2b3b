"""Runs several trainings in this process, one of several: ``torchrun several_runs.py CONFIGS``; a config a line."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from dipole.config import train_config
from dipole.objective.constraints import Lagrangian, Penalty, reward_bounds
from dipole.train.run import train


def shrink(model: Any, *_: Any) -> torch.Tensor:
    """A constraint on the model itself."""
    return 0.01 * sum(parameter.square().sum() for parameter in model.parameters() if parameter.requires_grad)


CONSTRAINTS: tuple[Any, ...] = (
    shrink,
    Penalty(name="bounds", function=reward_bounds(0.1, -0.001, 0.001), limit=1e-3, weight=2.0),
    Lagrangian(name="near", function=reward_bounds(0.1, -0.01, 0.01), limit=1e-3, step=0.5, initial=0.25),
)


def main(file: str) -> None:
    """Trains by every configuration of the file."""
    torch.set_num_threads(1)
    for line in Path(file).read_text(encoding="utf-8").splitlines():
        options = json.loads(line)
        constraints = CONSTRAINTS if options.pop("constrained", False) else ()
        train(train_config(**options), constraints=constraints)


if __name__ == "__main__":
    main(sys.argv[1])
