"""What a loss is given: log-probabilities of C completions, and R relations that point into them.

Shapes: C completions, R relations, K places of a list, L tokens of the longest completion.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dipole.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Completions:
    """Log-probabilities of completions, and whatever else is known of each.

    A field is ``None`` when nobody computed it. Gathering with ``take`` gives the same class in another shape, so a
    formula reads ``chosen.logratio - rejected.logratio`` whether it is called with (R,) or (R, K) tensors.

    Args:
        logps: (C,) log π(y|x) in nats, *summed* over the completion's tokens, the prompt excluded.
        ref_logps: (C,) the same under the reference.
        lengths: (C,) tokens that entered the sum.
        extras: further facts by name, first dimension C; ``INPUTS`` in ``dipole.objective.row`` says what each is.
    """

    logps: Tensor
    ref_logps: Tensor | None = None
    lengths: Tensor | None = None
    extras: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def logratio(self) -> Tensor:
        """The log-ratio log π(y|x) − log π_ref(y|x), in nats."""
        if self.ref_logps is None:
            raise ConfigError("the loss needs log-probabilities of the reference, and there are none")
        return self.logps - self.ref_logps

    @property
    def num_tokens(self) -> Tensor:
        """Tokens of each completion, at least 1, so that an empty completion has average 0 and not 0/0.

        In the dtype of ``logps``: an integer times a Python float would be float32 whatever that is.
        """
        if self.lengths is None:
            raise ConfigError("the loss needs the lengths of the completions, and there are none")
        return self.lengths.clamp(min=1).to(self.logps.dtype)

    @property
    def mean_logps(self) -> Tensor:
        """The average over tokens, log π(y|x) / |y|."""
        return self.logps / self.num_tokens

    @property
    def mean_logratio(self) -> Tensor:
        """The average over tokens of the log-ratio."""
        return self.logratio / self.num_tokens

    def __getitem__(self, name: str) -> Tensor:
        """The extra of that name."""
        if name not in self.extras:
            raise ConfigError(f"the loss needs '{name}' of every completion, and it was not given")
        return self.extras[name]

    def tokens(self, name: str) -> tuple[Tensor, Tensor]:
        """The extra of that name, (…, L) one a token, and a mask that is true where there is a token."""
        values = self[name]
        if self.lengths is None:
            raise ConfigError("the loss needs the lengths of the completions, and there are none")
        return values, torch.arange(values.shape[-1], device=values.device) < self.lengths[..., None]

    def take(self, index: Tensor) -> Completions:
        """The completions at ``index``, of whatever shape. A completion taken twice gets the sum of both gradients."""
        return self._map(lambda tensor: tensor[index])

    def upcast(self) -> Completions:
        """Half-precision tensors as float32: bfloat16 has a spacing of 2 at 300 nats. Others stay what they are."""
        return self._map(lambda tensor: tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor)

    def _map(self, function: Callable[[Tensor], Tensor]) -> Completions:
        return Completions(
            logps=function(self.logps),
            ref_logps=None if self.ref_logps is None else function(self.ref_logps),
            lengths=None if self.lengths is None else function(self.lengths),
            extras={name: function(tensor) for name, tensor in self.extras.items()},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PairIndex:
    """Pairs of completions, i preferred to j with probability ``prob``.

    Args:
        i: (R,) integers, the first of each pair: the chosen one where ``prob`` is 1.
        j: (R,) integers, the other.
        prob: (R,) P(i ≻ j); ``None`` when every label is certain.
    """

    i: Tensor
    j: Tensor
    prob: Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class UnaryIndex:
    """Completions that were approved of or not.

    Args:
        i: (R,) integers.
        desirable: (R,) booleans.
    """

    i: Tensor
    desirable: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class ListIndex:
    """Lists of completions of one prompt.

    Args:
        order: (R, K) integers, best first, −1 after the last when the lists differ in length.
        num_ranked: (R,) how many of the first places are in a known order; those after are only known to be worse.
            ``None`` when all are.
    """

    order: Tensor
    num_ranked: Tensor | None = None


Relations = PairIndex | UnaryIndex | ListIndex
