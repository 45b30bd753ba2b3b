"""Virtual tokens: what prompt-learning adapters put before every prompt. The row holds them once, for all prompts.

Prompt tuning (Lester et al. 2021, arXiv 2104.08691) learns their embeddings, and the model computes them like other
tokens. Prefix tuning (Li and Liang 2021, arXiv 2101.00190) learns their keys and values in every layer. Either way
every token of the row sees them, and its position is theirs farther on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from dipole.errors import ConfigError

KINDS = ("PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING")
"""Adapters with virtual tokens that the engine computes, as PEFT calls them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VirtualTokens:
    """V tokens that aren't words, at positions 0 to V − 1.

    Args:
        count: V, at least 1.
        embeddings: (V, hidden units) of prompt tuning.
        past: keys and values of every layer, (1, H_kv, V, D) each, of prefix tuning.
    """

    count: int
    embeddings: Tensor | None = None
    past: Sequence[tuple[Tensor, Tensor]] = ()

    @property
    def in_row(self) -> bool:
        """Whether the model computes them, as it does the row's tokens."""
        return self.embeddings is not None

    def inputs(self, model: nn.Module, input_ids: Tensor, position_ids: Tensor) -> dict[str, Tensor]:
        """What the decoder takes, (1, …) each: the row's tokens, moved on by V, and those of prompt tuning after them.

        Args:
            model: PEFT's, which knows how words are embedded.
            input_ids: (N,) of the row.
            position_ids: (N,) of the row, as if there were no virtual tokens.
        """
        positions = position_ids + self.count
        if self.embeddings is None:
            return {"input_ids": input_ids.unsqueeze(0), "position_ids": positions.unsqueeze(0)}
        words: Any = model.word_embeddings
        embedded = words(input_ids)
        own = torch.arange(self.count, device=positions.device)
        return {
            "inputs_embeds": torch.cat([embedded, self.embeddings.to(embedded.dtype)]).unsqueeze(0),
            "position_ids": torch.cat([positions, own]).unsqueeze(0),
        }

    def after(self, layer: nn.Module, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of the row, (1, H_kv, N, D) each, with those that prefix tuning gives this layer after them.

        Args:
            layer: of attention, which knows its number.
            key: of the row.
            value: likewise.
        """
        if not self.past:
            return key, value
        number: Any = layer.layer_idx
        past_key, past_value = self.past[number]
        return torch.cat([key, past_key.to(key.dtype)], dim=2), torch.cat([value, past_value.to(value.dtype)], dim=2)


def virtual_tokens(model: nn.Module) -> VirtualTokens | None:
    """Those of the model's active adapter, with graph; ``None`` if it has none, or is switched off.

    Raises:
        ConfigError: the adapter is of another kind, or the model's layers take prefixes of different sizes.
    """
    if not isinstance(model, PeftModel) or not has_virtual_tokens(model) or not model.has_active_enabled_adapter:
        return None
    config = model.active_peft_config
    if config.peft_type not in KINDS:
        raise ConfigError(
            f"the shared-prompt engine doesn't compute adapters of the kind {config.peft_type.value}",
            where="model",
            remedy=f"It computes {', '.join(KINDS)}, and those that change weights",
        )
    count: int = config.num_virtual_tokens
    prompt: Any = model.get_prompt(1)
    if config.peft_type != "PREFIX_TUNING":
        return VirtualTokens(count=count, embeddings=prompt[0])
    past = [(layer.keys, layer.values) for layer in prompt.layers]
    if any(key is None or key.shape[2] != count for key, _ in past):
        raise ConfigError(
            f"not all layers of {type(model.get_base_model()).__name__} take a prefix of {count} virtual tokens",
            where="--peft.num_virtual_tokens",
            remedy="Use fewer than its attention window has, or --peft.method prompt_tuning",
        )
    return VirtualTokens(count=count, past=past)


def has_virtual_tokens(model: nn.Module) -> bool:
    """Whether it has an adapter that learns virtual tokens, on or off; such a one never starts as the model itself."""
    return isinstance(model, PeftModel) and bool(model.active_peft_config.is_prompt_learning)
