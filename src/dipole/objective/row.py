"""The row that says everything about a loss that its formula doesn't: what it takes, what it logs, who published it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from dipole.errors import ConfigError, nearest
from dipole.objective.completions import Completions

Relation = Literal["pair", "unary", "list"]
Settings = Mapping[str, Any]
"""A value for every hyper-parameter of one loss, as ``Loss.settings`` returns them."""


@dataclass(frozen=True, slots=True)
class HyperParameter:
    """One number, switch or list of weights that a loss takes.

    Args:
        name: the keyword.
        default: what it is when nobody says otherwise; its type is the type that is accepted.
        meaning: in a few words.
        low: smallest value.
        high: largest value.
        low_open: ``low`` itself is not allowed.
        high_open: ``high`` itself is not allowed.
    """

    name: str
    default: float | bool | tuple[float, ...]
    meaning: str
    low: float = 0.0
    high: float = math.inf
    low_open: bool = True
    high_open: bool = True

    @property
    def range(self) -> str:
        """The allowed values, such as ``(0, ∞)``, ``[0, 1]`` or ``true or false``."""
        if isinstance(self.default, bool):
            return "true or false"
        low = "−∞" if self.low == -math.inf else f"{self.low:g}"
        high = "∞" if self.high == math.inf else f"{self.high:g}"
        return f"{'(' if self.low_open else '['}{low}, {high}{')' if self.high_open else ']'}"

    def check(self, value: Any, loss: str) -> float | bool | tuple[float, ...]:
        """The value, when it is allowed.

        Raises:
            ConfigError: wrong type, not finite, or out of range.
        """
        if isinstance(self.default, bool):
            if isinstance(value, bool):
                return value
            raise self._refusal(value, loss)
        if isinstance(self.default, tuple):
            if not isinstance(value, (list, tuple)) or not value:
                raise self._refusal(value, loss)
            return tuple(self._number(item, loss) for item in value)
        return self._number(value, loss)

    def _number(self, value: Any, loss: str) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise self._refusal(value, loss)
        above = value > self.low if self.low_open else value >= self.low
        below = value < self.high if self.high_open else value <= self.high
        if not (above and below):
            raise self._refusal(value, loss)
        return float(value)

    def _refusal(self, value: Any, loss: str) -> ConfigError:
        return ConfigError(
            f"{self.name} is {value!r}, but has to be in {self.range}: {self.meaning}", where=f"loss {loss}"
        )


@dataclass(frozen=True, slots=True)
class Reward:
    """The one definition of the reward that a loss logs.

    Args:
        text: as a formula.
        of: from completions (C,) and settings to rewards (C,).
    """

    text: str
    of: Callable[[Completions, Settings], Tensor]


@dataclass(frozen=True, slots=True)
class Coupling:
    """How a loss depends on the whole batch of an optimizer step: through a few sums, and nothing else.

    Sums add up over micro-batches and ranks, so the result doesn't depend on how the batch was cut.

    Args:
        sums: from completions, relations and settings to scalars that are added up over the global batch.
        settle: from those sums, the moving state and settings to the formula's constants and the next state.
        initial: the moving state at step 0; empty when nothing moves. It belongs to the checkpoint.
        constants: names of what ``settle`` gives the formula.
    """

    sums: Callable[[Completions, Any, Settings], dict[str, Tensor]]
    settle: Callable[[Mapping[str, Tensor], Mapping[str, Tensor], Settings], tuple[dict[str, Tensor], dict[str, Tensor]]]
    constants: tuple[str, ...]
    initial: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """A row of the table.

    Args:
        formula: the pure function in ``losses.py``. The first paragraph of its docstring is the formula, the second
            its source.
        relation: what it is a function of.
        hyper: its hyper-parameters.
        reward: the logged reward.
        needs_reference: whether it reads ``ref_logps``.
        tokens: whether its log-probabilities are a ``"sum"`` or a ``"mean"`` over tokens.
        needs_lengths: whether it reads ``lengths``.
        inputs: names of the ``extras`` that it reads.
        soft: what a label of probability p does. ``"expected"``: the loss is the expectation p L(i, j) + (1−p) L(j, i).
            ``"own"``: the formula takes p itself. ``"refused"``: ``why_not_soft`` says why.
        coupling: how it depends on the rest of the batch; ``None`` when it doesn't.
        whole_batch: it can't be computed when the batch of a step is cut, nor with weights a relation.
        when: when to use it.
        traps: what goes wrong.
        aliases: other spellings, TRL's among them.
    """

    name: str
    formula: Callable[..., Tensor]
    relation: Relation = "pair"
    hyper: tuple[HyperParameter, ...] = ()
    reward: Reward
    needs_reference: bool = True
    tokens: Literal["sum", "mean"] = "sum"
    needs_lengths: bool = False
    inputs: tuple[str, ...] = ()
    soft: Literal["expected", "own", "refused"] = "expected"
    why_not_soft: str = ""
    coupling: Coupling | None = None
    whole_batch: bool = False
    when: str
    traps: str = ""
    aliases: tuple[str, ...] = ()

    @property
    def formula_text(self) -> str:
        """The formula, as its function's docstring has it."""
        return self._paragraph(0)

    @property
    def source(self) -> str:
        """Authors, year, arXiv number and equation."""
        return self._paragraph(1)

    def settings(self, **given: Any) -> dict[str, Any]:
        """Every hyper-parameter with its value: the given one, else the default.

        Raises:
            ConfigError: one that the loss doesn't take, or a value out of range.
        """
        known = {parameter.name: parameter for parameter in self.hyper}
        for name in given:
            if name not in known:
                takes = nearest(name, known) if known else "It takes none."
                raise ConfigError(f"'{name}' is no hyper-parameter of {self.name}", where="loss", remedy=takes)
        return {name: known[name].check(given.get(name, known[name].default), self.name) for name in known}

    def _paragraph(self, number: int) -> str:
        paragraphs = (self.formula.__doc__ or "").split("\n\n")
        return " ".join(paragraphs[number].split()).rstrip(".") if number < len(paragraphs) else ""
