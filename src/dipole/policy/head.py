"""The language-model head: from hidden states to numbers a token, in chunks, without ever keeping the logits.

Shape letters: T completion tokens · H hidden units · V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

HEAD_BYTES = 256 * 2**20
"""Memory for the logits of one chunk; the chunk is as many tokens as fit."""

BYPRODUCTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "entropy": lambda log_probs, target: -(log_probs.exp() * log_probs).sum(-1),
    "top1": lambda log_probs, target: (log_probs.argmax(-1) == target).to(log_probs.dtype),
    "log_sum_sq_probs": lambda log_probs, target: (2 * log_probs).logsumexp(-1),
}
"""What can be had of each token's distribution besides the target's log-probability, by name; never with a gradient.

From log-probabilities (T, V) and targets (T,) to (T,): the entropy in nats, 1 where the target is the likeliest token,
and log Σ_v p(v)².
"""


class HeadInput(NamedTuple):
    """What logits are computed from: z = hidden · weightᵀ + bias, or softcap · tanh(z / softcap).

    Args:
        hidden: (T, H) states that predict the completion tokens.
        weight: (V, H).
        bias: (V,) or ``None``.
        softcap: the largest logit, as in Gemma 2 (arXiv 2408.00118); ``None`` for no limit.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    softcap: float | None = None


def chunked_logprobs(
    head: HeadInput, target: Tensor, byproducts: Sequence[str] = ()
) -> tuple[Tensor, dict[str, Tensor]]:
    """Log-probabilities of ``target`` under softmax(logits).

    Args:
        head: of the model.
        target: (T,) token ids.
        byproducts: names of ``BYPRODUCTS``; each costs a pass over the chunk's logits.

    Returns:
        (T,) with graph, and the by-products (T,) without; float32, or float64 when ``hidden`` is. Matrix products
        accumulate in it too.
    """
    return _in_chunks(head, _LogProb(target), tuple(byproducts), target)


def chunked_kl(head: HeadInput, reference: HeadInput) -> Tensor:
    """(T,) KL(π_ref ‖ π) of the next token's distribution, summed over the whole vocabulary, in nats.

    Args:
        head: of the policy, which gets the gradient.
        reference: of the reference, which gets none.
    """
    return _in_chunks(head, _KL(reference))[0]


@torch.no_grad()
def chunked_divergence(head: HeadInput, reference: HeadInput, target: Tensor) -> tuple[Tensor, Tensor]:
    """How far a policy is from a reference at tokens of the policy's own, with each one's logits made once.

    Args:
        head: of the policy.
        reference: of the reference.
        target: (T,) token ids.

    Returns:
        (T,) KL(π ‖ π_ref) of the next token's distribution, summed over the whole vocabulary, in nats; and (T,)
        log π(target) − log π_ref(target). Neither has a graph; both are as wide as log-probabilities.
    """
    wide = torch.promote_types(head.hidden.dtype, torch.float32)
    own_weight, other_weight = head.weight.to(wide), reference.weight.to(wide)
    kl, gap = (head.hidden.new_empty(target.shape[0], dtype=wide) for _ in range(2))
    for part in _chunks(target.shape[0], head.weight.shape[0], wide):
        own, _ = _log_probs(head.hidden[part], own_weight, head.bias, head.softcap)
        other, _ = _log_probs(reference.hidden[part], other_weight, reference.bias, reference.softcap)
        gaps = own - other
        gap[part] = gaps.gather(1, target[part].unsqueeze(1)).squeeze(1)
        kl[part] = own.exp_().mul_(gaps).sum(-1)
    return kl, gap


def _in_chunks(
    head: HeadInput, function: _OfLogits, byproducts: tuple[str, ...] = (), target: Tensor | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    with torch.autocast(head.hidden.device.type, enabled=False):  # else the products would be half precision after all
        values, *others = _ChunkedHead.apply(*head, function, byproducts, target)  # type: ignore[no-untyped-call]
    return values, dict(zip(byproducts, others, strict=True))


class _OfLogits(Protocol):
    """A number a token that is a function of its logits."""

    def __call__(self, log_probs: Tensor, part: slice) -> tuple[Tensor, Callable[[], Tensor]]:
        """(t,) values of a chunk's tokens, and what makes (t, V) their slopes in the logits out of ``log_probs``."""


class _LogProb:
    """log p(target), whose slope in the logits is onehot(target) − p."""

    def __init__(self, target: Tensor) -> None:
        self._target = target

    def __call__(self, log_probs: Tensor, part: slice) -> tuple[Tensor, Callable[[], Tensor]]:
        target = self._target[part].unsqueeze(1)
        values = log_probs.gather(1, target)
        ones = torch.ones_like(values)
        return values.squeeze(1), lambda: log_probs.exp_().neg_().scatter_add_(1, target, ones)


class _KL:
    """Σ_v r(v) (log r(v) − log p(v)), whose slope in the logits of p is p − r."""

    def __init__(self, reference: HeadInput) -> None:
        self._reference = reference

    def __call__(self, log_probs: Tensor, part: slice) -> tuple[Tensor, Callable[[], Tensor]]:
        hidden, weight, bias, softcap = self._reference
        reference, _ = _log_probs(hidden[part], weight.to(log_probs.dtype), bias, softcap)
        probs = reference.exp()
        values = (probs * (reference - log_probs)).sum(-1)
        return values, lambda: log_probs.exp_().sub_(probs)


class _ChunkedHead(torch.autograd.Function):
    """A function of the logits of every token, with a backward pass of its own.

    Its gradient in the hidden state is slope · W. With a frozen head this vector is all that backward needs, and
    forward has the probabilities at hand: made there, it saves computing the logits twice. With a trained head backward
    computes the logits again, since the head's gradient needs the slopes themselves.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        softcap: float | None,
        function: _OfLogits,
        byproducts: tuple[str, ...],
        target: Tensor | None,
    ) -> tuple[Tensor, ...]:
        """(T,) values, and one (T,) tensor a by-product."""
        wide = torch.promote_types(hidden.dtype, torch.float32)
        head = weight.to(wide)
        needs_hidden, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        ctx.recompute = needs_weight or needs_bias
        direction = torch.empty_like(hidden, dtype=wide) if needs_hidden and not ctx.recompute else None
        values, *others = (hidden.new_empty(hidden.shape[0], dtype=wide) for _ in range(1 + len(byproducts)))
        for part in _chunks(hidden.shape[0], weight.shape[0], wide):
            log_probs, cap_slope = _log_probs(hidden[part], head, bias, softcap)
            for name, row in zip(byproducts, others, strict=True):
                assert target is not None
                row[part] = BYPRODUCTS[name](log_probs, target[part])
            values[part], slopes = function(log_probs, part)
            if direction is not None:
                direction[part] = _through_cap(slopes(), cap_slope) @ head
        ctx.save_for_backward(direction, *((hidden, weight, bias) if ctx.recompute else (None,) * 3))
        ctx.hidden_dtype, ctx.function, ctx.softcap = hidden.dtype, function, softcap
        ctx.mark_non_differentiable(*others)
        return (values, *others)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the hidden states, the head's weight and its bias."""
        upstream = gradients[0]
        direction, hidden, weight, bias = ctx.saved_tensors
        if not ctx.recompute:
            scaled = None if direction is None else (upstream.unsqueeze(1) * direction).to(ctx.hidden_dtype)
            return scaled, None, None, None, None, None, None
        wide = upstream.dtype
        head = weight.to(wide)
        grad_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        grad_weight = torch.zeros_like(weight, dtype=wide)
        grad_bias = None if bias is None else torch.zeros_like(bias, dtype=wide)
        for part in _chunks(hidden.shape[0], weight.shape[0], wide):
            log_probs, cap_slope = _log_probs(hidden[part], head, bias, ctx.softcap)
            _, slopes = ctx.function(log_probs, part)
            grad_logits = _through_cap(slopes(), cap_slope).mul_(upstream[part].unsqueeze(1))
            grad_weight.addmm_(grad_logits.T, hidden[part].to(wide))
            if grad_hidden is not None:
                grad_hidden[part] = (grad_logits @ head).to(hidden.dtype)
            if grad_bias is not None:
                grad_bias += grad_logits.sum(0)
        grad_bias = None if grad_bias is None else grad_bias.to(bias.dtype)
        return grad_hidden, grad_weight.to(weight.dtype), grad_bias, None, None, None, None


def logits_of(head: HeadInput) -> Tensor:
    """(T, V) the logits themselves, as wide as log-probabilities: for the few tokens that are sampled at a time."""
    hidden, weight, bias, softcap = head
    wide = torch.promote_types(hidden.dtype, torch.float32)
    return _logits(hidden, weight.to(wide), bias, softcap)[0]


def _log_probs(
    hidden: Tensor, head: Tensor, bias: Tensor | None, softcap: float | None
) -> tuple[Tensor, Tensor | None]:
    """(t, V) log-probabilities of a chunk, and the slope of the cap at each logit, 1 − tanh²; ``None`` without one."""
    logits, cap_slope = _logits(hidden, head, bias, softcap)
    # One pass over the chunk, in place: a fifth of the time of logsumexp, which makes a second chunk, and subtraction.
    return torch.log_softmax(logits, -1, out=logits), cap_slope


def _logits(hidden: Tensor, head: Tensor, bias: Tensor | None, softcap: float | None) -> tuple[Tensor, Tensor | None]:
    logits, cap_slope = hidden.to(head.dtype) @ head.T, None
    if bias is not None:
        logits += bias
    if softcap is not None:
        logits.div_(softcap).tanh_()
        cap_slope = 1 - logits.square()
        logits.mul_(softcap)
    return logits, cap_slope


def _through_cap(slopes: Tensor, cap_slope: Tensor | None) -> Tensor:
    return slopes if cap_slope is None else slopes.mul_(cap_slope)


def _chunks(tokens: int, vocabulary: int, dtype: torch.dtype) -> list[slice]:
    size = max(1, HEAD_BYTES // (vocabulary * dtype.itemsize))
    return [slice(start, start + size) for start in range(0, tokens, size)]
