"""What a frontier is made of: the methods with their strengths, and how much of everything."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from dipole.config import LossConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class LossArm:
    """A method that learns from preferences, at one strength.

    Args:
        method: as tables name it.
        strength: as tables name it.
        loss: with its hyper-parameters.
    """

    method: str
    strength: str
    loss: LossConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class PPOArm:
    """PPO at one target of the KL.

    Args:
        method: ``"ppo"`` learns from the reward model, ``"ppo_true"`` from the scorer itself.
        target_kl: nats a completion.
    """

    method: Literal["ppo", "ppo_true"]
    target_kl: float

    @property
    def strength(self) -> str:
        """As tables name it."""
        return f"KL → {self.target_kl:g}"


Arm = LossArm | PPOArm


def key(arm: Arm) -> str:
    """A name for files, such as ``dpo-0.1``."""
    number = "-".join(re.findall(r"[\d.]+", arm.strength))
    return f"{arm.method}-{number}" if number else arm.method


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How much of everything. Every method gets ``prompts`` · ``completions`` samples, and ``epochs`` passes over them.

    Args:
        arms: methods and strengths.
        imitated: texts that the base model is first fine-tuned on.
        imitated_per_step: of them an optimizer step.
        imitation_rate: its learning rate, of all weights.
        prompts: to train on.
        completions: of each, sampled from the fine-tuned model; by PPO, from the policy as it goes.
        max_new_tokens: where a completion is cut.
        epochs: passes over the samples.
        groups_per_step: prompts with their completions an optimizer step.
        rounds: of PPO.
        learning_rate: of the adapter, for all methods.
        rank: of the adapter.
        points: of each training, evenly along it.
        test_prompts: that are never trained on.
        test_completions: of each, for every point.
        best_of: sizes N of best-of-N.
        draws: completions of each test prompt from the fine-tuned model, of which the best of N are taken.
    """

    arms: tuple[Arm, ...]
    imitated: int
    imitated_per_step: int
    imitation_rate: float
    prompts: int
    completions: int
    max_new_tokens: int
    epochs: int
    groups_per_step: int
    rounds: int
    learning_rate: float
    rank: int
    points: int
    test_prompts: int
    test_completions: int
    best_of: tuple[int, ...]
    draws: int

    @property
    def samples(self) -> int:
        """The training budget of every method."""
        return self.prompts * self.completions

    def due(self, total: int) -> list[int]:
        """After which of ``total`` steps a point is measured."""
        return sorted({math.ceil(total * number / self.points) for number in range(1, self.points + 1)})

    def seen(self, step: int, total: int, *, online: bool) -> int:
        """How many of the samples a method has used after a step: one that samples as it goes has none in advance."""
        share = step / total if online else min(1.0, self.epochs * step / total)
        return round(share * self.samples)


def _arms(losses: dict[str, tuple[float, ...]], targets: tuple[float, ...]) -> tuple[Arm, ...]:
    """Losses with the values of the one hyper-parameter that is swept, and PPO with both rewards."""
    letters = {"sft": "", "unlikelihood": "alpha"}
    arms: list[Arm] = []
    for name, values in losses.items():
        parameter = letters.get(name, "beta")
        for value in values or (None,):
            strength = "" if value is None else f"{'α' if parameter == 'alpha' else 'β'} = {value:g}"
            given = {} if value is None else {parameter: value}
            arms.append(LossArm(method=name, strength=strength, loss=LossConfig(name=name, **given)))  # type: ignore[arg-type]
    arms += [PPOArm(method=method, target_kl=target) for method in ("ppo_true", "ppo") for target in targets]
    return tuple(arms)


PRESETS: dict[str, Sizes] = {
    "quick": Sizes(
        arms=_arms(
            {
                "dpo": (0.05, 0.5),
                "ipo": (0.1,),
                "kto": (0.1,),
                "simpo": (2.0,),
                "sft": (),
                "unlikelihood": (0.5,),
            },
            targets=(4.0,),
        ),
        imitated=64,
        imitated_per_step=16,
        imitation_rate=5e-5,
        prompts=12,
        completions=4,
        max_new_tokens=16,
        epochs=1,
        groups_per_step=8,
        rounds=2,
        learning_rate=1e-3,
        rank=8,
        points=1,
        test_prompts=8,
        test_completions=2,
        best_of=(2, 4),
        draws=16,
    ),
    "full": Sizes(
        arms=_arms(
            {
                "dpo": (0.05, 0.2, 1.0),
                "ipo": (0.05, 0.2),
                "kto": (0.05, 0.5),
                "simpo": (2.0,),
                "sft": (),
                "unlikelihood": (0.5,),
            },
            targets=(3.0,),
        ),
        imitated=960,
        imitated_per_step=32,
        imitation_rate=2e-5,
        prompts=96,
        completions=4,
        max_new_tokens=24,
        epochs=2,
        groups_per_step=8,
        rounds=8,
        learning_rate=5e-4,
        rank=16,
        points=2,
        test_prompts=48,
        test_completions=4,
        best_of=(2, 4, 8),
        draws=32,
    ),
}
"""Sized for two slow cores: ``quick`` shows that everything works, ``full`` is the real one."""
