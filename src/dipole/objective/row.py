"""The row that says everything about a loss that its formula doesn't: what it takes, what it logs, who published it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from dipole.errors import ConfigError, nearest
from dipole.objective.completions import Completions

Relation = Literal["pair", "unary", "list"]
Settings = Mapping[str, Any]
"""A value for every hyper-parameter of one loss, as ``Loss.settings`` returns them."""
Scalars = dict[str, Tensor]
"""Plain 0-dimensional tensors by name."""


@dataclass(frozen=True, slots=True)
class Input:
    """Something that a loss may need of every completion besides its log-probabilities and length.

    Args:
        maker: ``"policy"`` or ``"reference"``: a by-product of that model's forward pass; ``"data"``: it comes with
            the completions.
        shape: C completions, L tokens.
        meaning: what it is.
        differentiable: whether the loss has a gradient through it.
    """

    maker: Literal["policy", "reference", "data"]
    shape: str
    meaning: str
    differentiable: bool = False


INPUTS: dict[str, Input] = {
    "token_logps": Input("policy", "(C, L)", "log-probability of every token, any value after the last", True),
    "ref_token_logps": Input("reference", "(C, L)", "the same under the reference"),
    "log_sum_sq_probs": Input("policy", "(C,)", "Σ_t log Σ_v π_t(v)², over the completion's tokens t"),
    "seq_kl": Input("policy", "(C,)", "Σ_t KL(π_ref,t ‖ π_t) over the whole vocabulary, reference first", True),
    "mismatched_logratio": Input("policy", "(C,)", "log-ratio of the completion after the prompt of another group"),
    "scores": Input("data", "(C,)", "score of a rater or reward model, higher is better"),
    "unsafe": Input("data", "(C,)", "1 or true where the completion is unsafe"),
    "from_policy": Input("data", "(C,)", "1 or true where the policy sampled it, else the reference did"),
    "margin_rewards": Input("data", "(C, M−1)", "rewards of the M−1 other objectives"),
    "imageless_logps": Input("policy", "(C,)", "log-probability when the image is removed or corrupted", True),
    "ref_imageless_logps": Input("reference", "(C,)", "the same under the reference"),
}


@dataclass(frozen=True, slots=True)
class HyperParameter:
    """A number, a switch or a list of weights that a loss takes.

    Args:
        name: the keyword.
        default: what it is when nobody says otherwise. Its type is the type that is accepted; a tuple of weights has
            to keep its length, unless ``simplex``.
        meaning: in a few words.
        low: smallest value.
        high: largest value.
        low_open: ``low`` itself is not allowed.
        high_open: ``high`` itself is not allowed.
        simplex: the weights sum to 1 and may be as many as there are objectives.
        undecided: why there is no default after all, so that the value has to be given; empty when there is one.
    """

    name: str
    default: float | bool | tuple[float, ...]
    meaning: str
    low: float = 0.0
    high: float = math.inf
    low_open: bool = True
    high_open: bool = True
    simplex: bool = False
    undecided: str = ""

    @property
    def range(self) -> str:
        """The allowed values, such as ``(0, ∞)``, ``[0, 1]`` or ``true or false``."""
        if isinstance(self.default, bool):
            return "true or false"
        low = "−∞" if self.low == -math.inf else f"{self.low:g}"
        high = "∞" if self.high == math.inf else f"{self.high:g}"
        interval = f"{'(' if self.low_open else '['}{low}, {high}{')' if self.high_open else ']'}"
        if not isinstance(self.default, tuple):
            return interval
        return f"weights in {interval} that sum to 1" if self.simplex else f"{len(self.default)} weights in {interval}"

    def check(self, value: Any, loss: str) -> float | bool | tuple[float, ...]:
        """The value as this parameter's type, when it is allowed.

        Raises:
            ConfigError: wrong type, not finite, or out of range.
        """
        if isinstance(self.default, bool):
            allowed = isinstance(value, bool)
        elif isinstance(self.default, tuple):
            allowed = isinstance(value, (list, tuple)) and all(self._allows(item) for item in value)
            allowed = allowed and (
                len(value) > 1 and math.isclose(sum(value), 1, abs_tol=1e-6)
                if self.simplex
                else len(value) == len(self.default)
            )
        else:
            allowed = self._allows(value)
        if not allowed:
            problem = f"{self.name} is {value!r}, but has to be {self.range} ({self.meaning})"
            raise ConfigError(problem, where=f"loss {loss}", remedy=f"The default is {self.default}.")
        if isinstance(self.default, bool):
            return bool(value)
        return tuple(float(item) for item in value) if isinstance(self.default, tuple) else float(value)

    def _allows(self, value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            return False
        above = value > self.low if self.low_open else value >= self.low
        below = value < self.high if self.high_open else value <= self.high
        return above and below


@dataclass(frozen=True, slots=True)
class Reward:
    """The one definition of the reward that a loss logs.

    Args:
        text: as a formula.
        of: from completions (C,) and settings to rewards (C,).
    """

    text: str
    of: Callable[[Completions, Settings], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Coupling:
    """How a loss depends on the whole batch of an optimizer step: through a few sums, and nothing else.

    Sums add up over micro-batches and ranks, so the result doesn't depend on how the batch was cut.

    Args:
        sums: from completions, relations and settings to what is added up over the global batch.
        settle: from those sums, the moving state and settings to the formula's constants and the next state.
        constants: names and meanings of what ``settle`` gives the formula.
        initial: the moving state at step 0; empty when nothing moves. It belongs to the checkpoint.
        hyper: hyper-parameters that ``settle`` reads and the formula doesn't.
        learns_from_batch: whether held-out relations, which train nothing, leave the constants at what training has
            made of the moving state: then ``settle`` is called with sums of zero.
    """

    sums: Callable[[Completions, Any, Settings], Scalars]
    settle: Callable[[Mapping[str, Tensor], Mapping[str, Tensor], Settings], tuple[Scalars, Scalars]]
    constants: Mapping[str, str]
    initial: Mapping[str, float]
    hyper: tuple[HyperParameter, ...] = ()
    learns_from_batch: bool = False


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
        inputs: names of the ``extras`` that it reads, from ``INPUTS``.
        soft: what a label of probability p does. ``"expected"``: the loss is p L(i, j) + (1−p) L(j, i), its expectation
            over the label. ``"own"``: the formula takes p itself. ``"refused"``: ``why_not_soft`` says why.
        coupling: how it depends on the rest of the batch; ``None`` when it doesn't.
        whole_batch: the values belong to ranks within the batch, so the batch of a step can't be cut and relations
            can't be weighted.
        check_values: raises a ``DipoleError`` on values that the formula can't take; looks at the data, on the host.
        watch: from the formula's arguments to further tensors worth logging.
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
    check_values: Callable[..., None] | None = None
    watch: Callable[..., dict[str, Tensor]] | None = None
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

    @property
    def all_hyper(self) -> dict[str, HyperParameter]:
        """Its hyper-parameters and its coupling's, by name."""
        return {parameter.name: parameter for parameter in self.hyper + (self.coupling.hyper if self.coupling else ())}

    def settings(self, **given: Any) -> dict[str, Any]:
        """Every hyper-parameter with its value: the given one, else the default.

        Raises:
            ConfigError: one that the loss doesn't take, or a value out of range.
        """
        known = self.all_hyper
        for name in given:
            if name not in known:
                remedy = nearest(name, known) if known else "It has none."
                raise ConfigError(f"'{name}' is no hyper-parameter of {self.name}", where="loss", remedy=remedy)
        for name, parameter in known.items():
            if parameter.undecided and name not in given:
                raise ConfigError(parameter.undecided, where=f"loss {self.name}", remedy=f"Say which {name} to use.")
        return {name: known[name].check(given.get(name, known[name].default), self.name) for name in known}

    def keywords(self, given: Settings) -> dict[str, Any]:
        """Of settings and constants, those that the formula takes."""
        names = [parameter.name for parameter in self.hyper] + list(self.coupling.constants if self.coupling else ())
        return {name: given[name] for name in names}

    def pair_losses(
        self, chosen: Completions, rejected: Completions, prob: Tensor | None, keywords: Settings
    ) -> Tensor:
        """The formula on pairs of which the first is preferred with probability ``prob`` (R,), ``None`` for 1.

        Where the formula doesn't take the probability itself, the result is its expectation over the label: then one
        pair with p = 0.8 and four votes for it with one against give the same gradient.
        """
        if self.soft == "own":
            certain = torch.ones_like(chosen.logps)
            return self.formula(chosen, rejected, prob=certain if prob is None else prob, **keywords)
        losses = self.formula(chosen, rejected, **keywords)
        if prob is None:
            return losses
        if self.soft == "refused":
            # ``check`` refuses these with the reason. Whoever doesn't call it gets NaN, not a label that is ignored.
            return torch.where(prob == 1, losses, torch.nan)
        return prob * losses + (1 - prob) * self.formula(rejected, chosen, **keywords)

    def _paragraph(self, number: int) -> str:
        paragraphs = (self.formula.__doc__ or "").split("\n\n")
        return " ".join(paragraphs[number].split()).rstrip(".") if number < len(paragraphs) else ""
