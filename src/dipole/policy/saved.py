"""Policies from folders: whole models, and adapters on the model that they were trained on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from dipole.config import PeftConfig
from dipole.policy.adapters import add_adapter, settled
from dipole.policy.load import DType, fingerprint, load_model, load_tokenizer, weights_dtype
from dipole.policy.logprobs import Policy
from dipole.policy.saved_adapter import SETTINGS, SavedAdapter


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedPolicy:
    """A policy that was read from somewhere.

    Args:
        name: as it was asked for.
        policy: in evaluation mode, on its device.
        tokenizer: its own.
        fingerprint: of all weights, the adapter's included.
    """

    name: str
    policy: Policy
    tokenizer: PreTrainedTokenizerBase
    fingerprint: str


def load_policy(
    name: str, *, adapter: str | None = None, dtype: DType = "auto", device: torch.device | None = None
) -> SavedPolicy:
    """Loads a model, or a model with an adapter.

    Args:
        name: a local folder or a hub id of a model; or a folder with an adapter, whose settings name its model.
        adapter: a folder with an adapter for the model ``name``, or a run's that trained one.
        dtype: of the weights; ``auto`` is bfloat16 on a GPU that has it and float32 elsewhere.
        device: a GPU if there is one, when ``None``.

    Raises:
        ConfigError: something isn't there, or can't be loaded safely.
    """
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    base = name
    if adapter is None and (Path(name) / SETTINGS).exists():
        base, adapter = SavedAdapter.of(name).base(), name
    model = load_model(base, dtype=weights_dtype(dtype, device))
    tokenizer = load_tokenizer(base)
    config = PeftConfig() if adapter is None else settled(PeftConfig(start_from=adapter))
    policy = Policy(add_adapter(model, config, seed=0)).to(device).eval().requires_grad_(False)
    return SavedPolicy(name=adapter or name, policy=policy, tokenizer=tokenizer, fingerprint=fingerprint(policy))
