"""Log-probabilities of completions: the one numerical path for policy, reference, cache and evaluation.

Shape letters: N tokens of the row · T completion tokens · C completions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from dipole.data.batch import PackedBatch
from dipole.errors import ConfigError
from dipole.policy.adapters import head_parameters
from dipole.policy.attention import (
    AttentionPlan,
    plain_attention,
    plan_attention,
    planned_mask,
    use_shared_prompt_attention,
)
from dipole.policy.head import HeadInput, chunked_kl, chunked_logprobs
from dipole.policy.virtual import VirtualTokens, virtual_tokens


@dataclass(frozen=True, slots=True)
class TokenValues:
    """What a model says of the T completion tokens of a batch.

    Args:
        logps: (T,) log-probabilities, float32 or float64.
        byproducts: (T,) others by name: those of ``policy.head.BYPRODUCTS``, and ``"kl"``, KL(π_ref ‖ π).
    """

    logps: Tensor
    byproducts: Mapping[str, Tensor]


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

    def forward(
        self, batch: PackedBatch, byproducts: Sequence[str] = (), reference: HeadInput | None = None
    ) -> TokenValues:
        """Log-probabilities of all completion tokens, and by-products of them.

        Args:
            batch: on the model's device.
            byproducts: names of ``policy.head.BYPRODUCTS``.
            reference: of a reference on the same batch: then ``"kl"`` is among the by-products, with its graph.
        """
        head = self.head_input(batch)
        logps, others = chunked_logprobs(head, batch.target, byproducts)
        return TokenValues(logps, others if reference is None else others | {"kl": chunked_kl(head, reference)})

    def slow_twin(self, batch: PackedBatch) -> Tensor:
        """(T,) what ``forward`` has to give, by the model's own forward pass."""
        return plain_logprobs(self, batch)

    def for_saving(self) -> nn.Module:
        """What a person gets in the end."""
        return self.model

    def head_input(self, batch: PackedBatch) -> HeadInput:
        """The hidden states that predict completion tokens, and the head's parameters."""
        virtual = virtual_tokens(self.model)
        hidden = self.hidden(batch.input_ids, batch.position_ids, plan_attention(batch, virtual), virtual)
        return self.head_of(hidden.index_select(0, batch.predictor))

    def hidden(
        self, input_ids: Tensor, position_ids: Tensor, plan: AttentionPlan, virtual: VirtualTokens | None = None
    ) -> Tensor:
        """(N, hidden units) of a flat row of N tokens, of which the plan says what each sees.

        Virtual tokens lie before all of them, unless the plan has their keys and values already.
        """
        row: dict[str, Any] = {"input_ids": input_ids.unsqueeze(0), "position_ids": position_ids.unsqueeze(0)}
        if virtual is not None:
            row = {**virtual.inputs(self.model, input_ids, position_ids), "virtual": virtual}
        output = self.transformer.get_decoder()(
            **row, attention_mask=planned_mask(input_ids.device), use_cache=False, plan=plan
        )
        states: Tensor = output.last_hidden_state.squeeze(0)[: len(input_ids)]
        return states

    def head_of(self, hidden: Tensor) -> HeadInput:
        """What logits are computed from: (n, hidden units), scaled as the model does, and the head's parameters."""
        config = self.transformer.config
        if (scale := logit_scale(config)) != 1:
            hidden = hidden * scale
        softcap = getattr(config.get_text_config(), "final_logit_softcapping", None)
        return HeadInput(hidden, *head_parameters(self.transformer.get_output_embeddings()), softcap)


def logit_scale(config: PretrainedConfig) -> float:
    """What a model multiplies its logits with: ``logit_scale`` of Cohere's, 1 / ``logits_scaling`` of Granite's."""
    return float(getattr(config, "logit_scale", 1.0) / getattr(config, "logits_scaling", 1.0))


def sum_by_completion(values: Tensor, batch: PackedBatch) -> Tensor:
    """(C,) sums of (T,) values over the tokens of each completion."""
    return values.new_zeros(batch.num_completions).index_add(0, batch.owner, values)


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
    slow = policy.slow_twin(batch)
    try:
        fast = policy(batch).logps
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
            # From the end, since there may be virtual tokens before the prompt.
            logits = policy.model(input_ids=ids[:-1].unsqueeze(0), use_cache=False).logits[0, -len(targets) :]
            wide = torch.promote_types(logits.dtype, torch.float32)
            pieces.append(logits.to(wide).log_softmax(-1).gather(1, targets.unsqueeze(1)).squeeze(1))
    return torch.cat(pieces)
