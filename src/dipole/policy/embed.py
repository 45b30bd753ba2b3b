"""Sentence embeddings of a model in a local folder: the mean of its last hidden states (Reimers and Gurevych 2019)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModel, AutoTokenizer

from dipole.errors import ConfigError
from dipole.policy.load import quietly

TOKENS = 256
BATCH = 32


class Embedder:
    """Texts to vectors of unit length.

    Args:
        folder: as ``save_pretrained`` or sentence-transformers write it, with safetensors. Nothing is fetched.

    Raises:
        ConfigError: it holds no such model.
    """

    def __init__(self, folder: str | Path) -> None:
        if not Path(folder, "config.json").is_file():
            raise ConfigError(
                "there is no model",
                where=f"--embeddings {folder}",
                remedy="Name a local folder with config.json, model.safetensors and a tokenizer",
            )
        with quietly():
            try:
                self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
                self._model = AutoModel.from_pretrained(
                    folder, local_files_only=True, trust_remote_code=False, use_safetensors=True
                ).eval()
            except (OSError, ValueError) as fault:
                reason = str(fault).splitlines()[0][:200]
                raise ConfigError(f"the model can't be loaded ({reason})", where=f"--embeddings {folder}") from fault

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> torch.Tensor:
        """(n, dimensions), float32, of texts, each cut to ``TOKENS`` tokens; texts of similar length share a batch."""
        order = sorted(range(len(texts)), key=lambda number: len(texts[number]))
        rows: list[torch.Tensor] = []
        for start in range(0, len(order), BATCH):
            part = [texts[number] for number in order[start : start + BATCH]]
            inputs = self._tokenizer(part, padding=True, truncation=True, max_length=TOKENS, return_tensors="pt")
            hidden = self._model(**inputs).last_hidden_state
            mask = inputs["attention_mask"].unsqueeze(-1).to(hidden.dtype)
            mean = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)
            rows.append(torch.nn.functional.normalize(mean, dim=-1))
        return torch.cat(rows)[torch.tensor(order).argsort()].float()
