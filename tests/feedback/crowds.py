"""Votes of simulated annotators on pairs whose truth is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dipole.feedback.aggregate.votes import SHOWN_FIRST
from dipole.group import Comparison, Completion, Group

UNEQUAL = (0.95, 0.9, 0.75, 0.55, 0.5)
"""Accuracies of five annotators of very different skill."""


@dataclass(frozen=True, slots=True)
class Crowd:
    """Groups of two, and which completion of each is the better one."""

    groups: list[Group]
    better: np.ndarray

    def accuracy(self, p: np.ndarray, group: np.ndarray) -> float:
        """Share of pairs whose likelier side is the better one; ½ counts half."""
        right = np.where(p == 0.5, 0.5, (p > 0.5) == (self.better[group] == 0))
        return float(right.mean())


def crowd(
    accuracies: Sequence[float] = UNEQUAL,
    *,
    pairs: int = 300,
    coverage: float = 0.7,
    ties: float = 0.0,
    biases: Sequence[float] | None = None,
    seed: int = 0,
) -> Crowd:
    """Annotators who are right with a probability; with biases, what stands first is taken by log-odds.

    Args:
        accuracies: one an annotator.
        pairs: how many.
        coverage: the chance that an annotator votes on a pair.
        ties: the chance of a tie, whatever the truth.
        biases: log-odds for the side shown first, one an annotator; sides are drawn and noted then.
        seed: of all draws.
    """
    random = np.random.default_rng(seed)
    better = random.integers(2, size=pairs)
    groups = []
    for number in range(pairs):
        votes = []
        for k, accuracy in enumerate(accuracies):
            if random.random() >= coverage:
                continue
            shown = int(random.integers(2))
            odds = np.log(accuracy / (1 - accuracy)) * (1 if better[number] == 0 else -1)
            if biases is not None:
                odds += biases[k] * (1 if shown == 0 else -1)
            takes_first = random.random() < 1 / (1 + np.exp(-odds))
            p = 0.5 if random.random() < ties else float(takes_first)
            meta = {} if biases is None else {SHOWN_FIRST: shown}
            votes.append(Comparison(i=0, j=1, p=p, annotator=f"a{k}", meta=meta))
        groups.append(pair(f"g{number}", *votes))
    return Crowd(groups, better)


def pair(id: str, *votes: Comparison) -> Group:
    """A group of two completions."""
    return group(id, 2, *votes)


def group(id: str, size: int, *votes: object) -> Group:
    """A group of several completions with these judgments."""
    completions = tuple(Completion(text=f"answer {number}") for number in range(size))
    return Group(id=id, prompt=f"prompt {id}", completions=completions, judgments=votes)  # type: ignore[arg-type]


def vote(p: float, annotator: str | None = None, *, i: int = 0, j: int = 1, **meta: object) -> Comparison:
    """A comparison."""
    return Comparison(i=i, j=j, p=p, annotator=annotator, meta=meta)
