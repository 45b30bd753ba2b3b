"""Log-probabilities of completions: the one numerical path for policy, reference, cache and evaluation.

Shape letters: N tokens of the row · T completion tokens · C completions · H hidden units · V vocabulary.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from dipole.data.batch import PackedBatch
from dipole.errors import ConfigError
from dipole.policy.attention import plain_attention, plan_attention, use_shared_prompt_attention

HEAD_BYTES = 256 * 2**20
"""Memory for the logits of one chunk of the head; the chunk is as many tokens as fit."""


class Policy(nn.Module):
    """A causal language model that answers with the log-probability of every completion token of a packed batch.

    Args:
        model: a transformers model, or a PEFT model around one.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        use_shared_prompt_attention(self.transformer)

    @property
    def transformer(self) -> PreTrainedModel:
        """The transformers model, without a PEFT wrapper."""
        model: Any = self.model
        return cast(PreTrainedModel, model.get_base_model() if hasattr(model, "get_base_model") else model)

    @property
    def device(self) -> torch.device:
        """Where the inputs have to be."""
        return self.transformer.device

    def forward(self, batch: PackedBatch) -> Tensor:
        """Float32 (or float64) log-probabilities of shape (T,), one a completion token."""
        transformer = self.transformer
        output = transformer.get_decoder()(
            input_ids=batch.input_ids.unsqueeze(0),
            position_ids=batch.position_ids.unsqueeze(0),
            use_cache=False,
            plan=plan_attention(batch),
        )
        hidden = output.last_hidden_state.squeeze(0).index_select(0, batch.predictor)
        if (scale := logit_scale(transformer.config)) != 1:
            hidden = hidden * scale
        head = transformer.get_output_embeddings()
        return chunked_logprobs(hidden, head.weight, getattr(head, "bias", None), batch.target)


def logit_scale(config: PretrainedConfig) -> float:
    """What a model multiplies its logits with: ``logit_scale`` of Cohere's, 1 / ``logits_scaling`` of Granite's."""
    return float(getattr(config, "logit_scale", 1.0) / getattr(config, "logits_scaling", 1.0))


def sum_by_completion(values: Tensor, batch: PackedBatch) -> Tensor:
    """(C,) sums of (T,) values over the tokens of each completion."""
    return values.new_zeros(batch.num_completions).index_add(0, batch.owner, values)


def chunked_logprobs(hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor) -> Tensor:
    """Log-probabilities of ``target`` under softmax(hidden · weightᵀ + bias), without ever keeping the logits.

    Args:
        hidden: (T, H) states that predict the targets.
        weight: (V, H) of the language-model head.
        bias: (V,) or ``None``.
        target: (T,) token ids.

    Returns:
        (T,) in float32, or float64 when ``hidden`` is; matrix products accumulate in it too.
    """
    with torch.autocast(hidden.device.type, enabled=False):  # else the products would be half precision after all
        result: Tensor = _ChunkedLogProbs.apply(hidden, weight, bias, target)  # type: ignore[no-untyped-call]
    return result


class _ChunkedLogProbs(torch.autograd.Function):
    """Cross-entropy over a large vocabulary with a backward pass of its own.

    The gradient of log p(y) in the hidden state is W[y] − Σ_v p(v) W[v]. With a frozen head this vector is all that
    backward needs, and forward has the probabilities at hand: computed there, it saves computing the logits twice.
    With a trained head backward computes the logits again, since the head's gradient needs them.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor) -> Tensor:
        """(T,) log-probabilities."""
        wide = torch.promote_types(hidden.dtype, torch.float32)
        head = weight.to(wide)
        needs_hidden, needs_weight, needs_bias, _ = ctx.needs_input_grad
        ctx.recompute = needs_weight or needs_bias
        direction = torch.empty_like(hidden, dtype=wide) if needs_hidden and not ctx.recompute else None
        logps = torch.empty(target.shape, dtype=wide, device=hidden.device)
        for part in _chunks(target.numel(), weight.shape[0], wide):
            logits = _logits(hidden[part], head, bias, wide)
            normalizer = logits.logsumexp(-1, keepdim=True)
            logps[part] = (logits.gather(1, target[part].unsqueeze(1)) - normalizer).squeeze(1)
            if direction is not None:
                probabilities = logits.sub_(normalizer).exp_()
                direction[part] = head[target[part]] - probabilities @ head
        ctx.save_for_backward(direction, *((hidden, weight, bias, target) if ctx.recompute else (None,) * 4))
        ctx.hidden_dtype = hidden.dtype
        return logps

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        """Gradients of the hidden states, the head's weight and its bias."""
        (upstream,) = gradients
        direction, hidden, weight, bias, target = ctx.saved_tensors
        if not ctx.recompute:
            scaled = None if direction is None else (upstream.unsqueeze(1) * direction).to(ctx.hidden_dtype)
            return scaled, None, None, None
        needs_hidden = ctx.needs_input_grad[0]
        wide = upstream.dtype
        head = weight.to(wide)
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=wide)
        grad_bias = None if bias is None else torch.zeros_like(bias, dtype=wide)
        for part in _chunks(target.numel(), weight.shape[0], wide):
            logits = _logits(hidden[part], head, bias, wide)
            grad_logits = logits.sub_(logits.logsumexp(-1, keepdim=True)).exp_().mul_(-upstream[part].unsqueeze(1))
            grad_logits.scatter_add_(1, target[part].unsqueeze(1), upstream[part].unsqueeze(1))
            grad_weight.addmm_(grad_logits.T, hidden[part].to(wide))
            if grad_hidden is not None:
                grad_hidden[part] = (grad_logits @ head).to(hidden.dtype)
            if grad_bias is not None:
                grad_bias += grad_logits.sum(0)
        return grad_hidden, grad_weight.to(weight.dtype), None if grad_bias is None else grad_bias.to(bias.dtype), None


def _logits(hidden: Tensor, head: Tensor, bias: Tensor | None, wide: torch.dtype) -> Tensor:
    logits = hidden.to(wide) @ head.T
    return logits if bias is None else logits.add_(bias)


def _chunks(tokens: int, vocabulary: int, dtype: torch.dtype) -> list[slice]:
    size = max(1, HEAD_BYTES // (vocabulary * dtype.itemsize))
    return [slice(start, start + size) for start in range(0, tokens, size)]


@torch.no_grad()
def check_engine(policy: Policy, batch: PackedBatch, *, tolerance: float) -> None:
    """Compares the engine with the model's own forward pass on a small batch, one completion at a time.

    Architectures differ in ways that no list of names can keep up with; a wrong result can't hide from this.

    Args:
        policy: the model, before any training.
        batch: two short groups or so.
        tolerance: largest difference of a token's log-probability, in nats.

    Raises:
        ConfigError: they differ, or the engine can't run the model at all.
    """
    name = type(policy.transformer).__name__
    slow = plain_logprobs(policy, batch)
    try:
        fast = policy(batch)
    except ConfigError:
        raise
    except Exception as fault:  # the model itself runs, so whatever is raised here is about the engine
        raise ConfigError(
            f"the shared-prompt engine can't run {name} ({type(fault).__name__}: {fault})",
            where="--model",
            remedy="Use another architecture; this one isn't built as the engine expects",
        ) from fault
    difference = float((fast - slow).abs().max())
    if not difference <= tolerance:
        raise ConfigError(
            f"the shared-prompt engine doesn't compute {name} correctly: its log-probabilities differ from the model's"
            f" own by up to {difference:.3g} nats a token (allowed: {tolerance:.3g})",
            where="--model",
            remedy="Use another architecture; this one has parts that the engine doesn't know",
        )


def plain_logprobs(policy: Policy, batch: PackedBatch) -> Tensor:
    """(T,) the slow twin of ``Policy.forward``: whole sequences one by one, full logits, ordinary attention."""
    pieces = []
    with plain_attention(policy.transformer):
        for completion in range(batch.num_completions):
            prompt = int(batch.prompt_of[completion])
            start, length = int(batch.prompt_start[prompt]), int(batch.prompt_length[prompt])
            targets = batch.target[batch.owner == completion]
            ids = torch.cat([batch.input_ids[start : start + length], targets])
            logits = policy.model(input_ids=ids[:-1].unsqueeze(0), use_cache=False).logits[0, length - 1 :]
            wide = torch.promote_types(logits.dtype, torch.float32)
            pieces.append(logits.to(wide).log_softmax(-1).gather(1, targets.unsqueeze(1)).squeeze(1))
    return torch.cat(pieces)
