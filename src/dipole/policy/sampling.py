"""How the next token is chosen from the model's logits.

Every sample has a stream of uniform numbers of its own, and a token is the inverse of the cumulative distribution at
the next of them. So a sample depends on its prompt, its seed and its number, and on nothing that is drawn beside it.

Shape letters: N samples · V vocabulary.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from torch import Tensor

from dipole.errors import ConfigError

NUCLEUS_GUESS = 256
"""Tokens that are sorted at first to find a nucleus; seldom does one need more, and sorting all is slow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How completions are drawn.

    Args:
        temperature: 1 samples from the model itself; 0 takes the most likely token.
        top_p: smallest set of tokens with this much probability (Holtzman et al. 2020, arXiv 1904.09751); 1 for all.
        top_k: that many of the likeliest tokens; 0 for all.
        repetition_penalty: by how much a token that is there already, in prompt or completion, is made less likely: its
            logit is divided by this if positive and multiplied otherwise (Keskar et al. 2019, arXiv 1909.05858). 1 for
            not at all.
        stop: texts that end a completion; they aren't part of it.
        max_new_tokens: where an answer is cut if it doesn't end by itself.
        seed: of the draws.
        batch_size: samples at a time.

    Raises:
        ConfigError: a number is outside of its range.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    max_new_tokens: int = 128
    seed: int = 0
    batch_size: int = 64

    def __post_init__(self) -> None:
        ranges = {
            "temperature": (self.temperature >= 0, "at least 0"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1"),
            "top_k": (self.top_k >= 0, "at least 0"),
            "repetition_penalty": (self.repetition_penalty > 0, "above 0"),
            "max_new_tokens": (self.max_new_tokens >= 1, "at least 1"),
            "batch_size": (self.batch_size >= 1, "at least 1"),
            "seed": (self.seed >= 0, "at least 0"),
        }
        for name, (holds, wanted) in ranges.items():
            if not holds:
                raise ConfigError(f"has to be {wanted}, not {getattr(self, name)}", where=f"--{name}")
        if "" in self.stop:
            raise ConfigError("an empty text would end every completion at once", where="--stop")


Stream = tuple[int, ...]
"""What tells a sample's random numbers apart from those of others with the same seed."""


def uniform_numbers(seed: int, stream: Stream, count: int) -> list[float]:
    """The first ``count`` numbers in [0, 1) of a sample's own stream; the same on every machine."""
    draw = random.Random(f"{seed}:{','.join(map(str, stream))}")
    return [draw.random() for _ in range(count)]


def choose(logits: Tensor, uniform: Tensor, sampling: Sampling, seen: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The next token of each sample, and its log-probability under the model itself, whatever the sampling is.

    Args:
        logits: (N, V).
        uniform: (N,) float64 in [0, 1).
        sampling: how to draw.
        seen: (N, V) true for tokens that are there already; needed with a repetition penalty.

    Returns:
        (N,) token ids and (N,) log-probabilities.
    """
    shaped = logits
    if sampling.repetition_penalty != 1:
        assert seen is not None
        penalty = sampling.repetition_penalty
        shaped = torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)
    if sampling.temperature == 0:
        tokens = shaped.argmax(-1)
    else:
        probs = (shaped.double() / sampling.temperature).softmax(-1)
        cumulative = truncated(probs, sampling.top_k, sampling.top_p).cumsum(-1)
        reached = (uniform * cumulative[:, -1]).unsqueeze(-1)
        # The first token whose cumulative probability is above: one without probability is never it.
        tokens = torch.searchsorted(cumulative, reached, right=True).squeeze(-1).clamp_max(logits.shape[1] - 1)
    return tokens, logits.log_softmax(-1).gather(1, tokens.unsqueeze(1)).squeeze(1)


def truncated(probs: Tensor, top_k: int, top_p: float) -> Tensor:
    """(N, V) probabilities with 0 for tokens outside of the ``top_k`` likeliest and of the nucleus of those.

    They don't sum to 1. Tokens as likely as the last that is kept are kept too, since nothing tells them apart.
    """
    if 0 < top_k < probs.shape[1]:
        probs = probs * (probs >= probs.topk(top_k).values[:, -1:])
    if top_p < 1:
        probs = probs * (probs >= _least_of_nucleus(probs, top_p * probs.sum(-1, keepdim=True)))
    return probs


def _least_of_nucleus(probs: Tensor, mass: Tensor) -> Tensor:
    """(N, 1) the smallest probability in the smallest set of tokens that has ``mass``, (N, 1), together."""
    size = min(NUCLEUS_GUESS, probs.shape[1])
    while True:
        likeliest = probs.topk(size).values
        before = likeliest.cumsum(-1) - likeliest
        if size == probs.shape[1] or bool((before[:, -1:] >= mass).all()):
            return likeliest.masked_fill(before >= mass, torch.inf).amin(-1, keepdim=True)
        size = min(8 * size, probs.shape[1])
