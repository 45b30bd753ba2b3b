"""Merging: an adapter's update is added to the weights of its model, which then needs nothing beside it."""

from __future__ import annotations

import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import AutoConfig

from dipole.errors import ConfigError, TrainingFault
from dipole.policy.load import DType, load_model, load_tokenizer, quietly
from dipole.policy.saved_adapter import SavedAdapter

PROBE = (4, 32)
"""Sequences and tokens that the merged model is compared on."""
TOLERANCE = 1e-3
"""Largest difference of a token's log-probability, in nats, computed in float32; rounding alone gives some 1e-5."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """What was merged.

    Args:
        model: the adapter's base.
        dtype: of the weights that were written.
        difference: largest difference between the log-probabilities of the two in float32, in nats a token.
    """

    model: str
    dtype: str
    difference: float


def merge_adapter(adapter: str, output: str, *, model: str | None = None, dtype: DType = "auto") -> Merged:
    """Merges an adapter into its model and writes that with its tokenizer: a folder that loads with transformers.

    It is computed in float32 and compared with model and adapter on random tokens before anything is written.

    Args:
        adapter: its folder, or that of a run.
        output: the folder to write.
        model: the adapter's model; by default the one that its settings name.
        dtype: of the weights that are written; ``auto`` is the model's own.

    Raises:
        ConfigError: the adapter can't be merged, or the output is there already.
        TrainingFault: the merged model isn't the same.
    """
    folder = Path(output)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError("it is there already", where=f"--output {output}", remedy="Name a new folder")
    saved = SavedAdapter.of(adapter)
    if saved.settings.is_prompt_learning:
        raise ConfigError(
            f"{saved.options()['method']} learns virtual tokens before every prompt, which no weights can stand for",
            where=str(saved.folder),
            remedy="Load it with PEFT beside its model",
        )
    base = model or saved.base()
    loaded: Any = load_model(base, dtype=torch.float32)
    tokenizer = load_tokenizer(str(saved.folder) if (saved.folder / "tokenizer_config.json").exists() else base)
    adapted = saved.put_on(loaded, "default").eval()
    probe = _probe(loaded.config.get_text_config().vocab_size)
    before = _log_probs(adapted, probe)
    _untie(loaded)
    merged = _merged(adapted, str(saved.folder))
    difference = float((_log_probs(merged, probe) - before).abs().max())
    if not difference <= TOLERANCE:
        raise TrainingFault(
            f"the merged model's log-probabilities differ by up to {difference:.3g} nats a token",
            where=str(saved.folder),
            remedy="Use the adapter beside its model",
        )
    written = AutoConfig.from_pretrained(base).dtype or torch.float32 if dtype == "auto" else getattr(torch, dtype)
    _save(merged.to(written), tokenizer, folder)
    return Merged(model=base, dtype=str(written).removeprefix("torch."), difference=difference)


def _merged(adapted: Any, where: str) -> nn.Module:
    try:
        merged: nn.Module = adapted.merge_and_unload(safe_merge=True)
    except ValueError as fault:  # not-a-number in the sum
        raise TrainingFault(f"the merged weights aren't finite: {fault}", where=where) from fault
    return merged


def _untie(model: Any) -> None:
    """Gives the head weights of its own where an adapter changes it or the embeddings, and they have one tensor."""
    modules: list[Any] = [model.get_output_embeddings(), model.get_input_embeddings()]
    if not any(isinstance(module, BaseTunerLayer) for module in modules):
        return
    head, words = (getattr(module, "base_layer", module) for module in modules)
    if head.weight is words.weight:
        head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)
        model.config.tie_word_embeddings = model.config.get_text_config().tie_word_embeddings = False


def _probe(vocabulary: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, vocabulary, PROBE, generator=generator)


@torch.no_grad()
def _log_probs(model: Any, ids: Tensor) -> Tensor:
    logits: Tensor = model(input_ids=ids, use_cache=False).logits
    return logits.float().log_softmax(-1)


def _save(model: Any, tokenizer: Any, folder: Path) -> None:
    """Beside its place first, so that it is never half there."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = folder.parent / f".{folder.name}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        with quietly():
            model.save_pretrained(str(scratch))
        tokenizer.save_pretrained(str(scratch))
        if folder.exists():
            folder.rmdir()
        scratch.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
