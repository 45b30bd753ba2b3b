"""A reference whose log-probabilities are computed once and kept on disk: later steps, epochs and runs read them.

A value is filed under what it depends on and nothing else: the model's weights and configuration, the precision, and
the tokens. So neither another loss, β, learning rate or output folder invalidates it, nor can it ever be stale. Files
are written beside and renamed when whole, under the hash of their content: several processes may fill one folder at a
time, and a damaged file is seen and skipped. The folder can be copied to another machine, or deleted.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from array import array
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor
from transformers import PreTrainedModel

from dipole.data.batch import PackedBatch, PromptAndCompletion
from dipole.errors import ConfigError
from dipole.policy.head import HeadInput
from dipole.policy.reference import Reference

FORMAT = 1
SHARD_TOKENS = 2**18
"""PromptAndCompletion of completions after which a file is written, so that an interrupted start loses little."""


class LogpStore:
    """Log-probabilities of completion tokens in a folder, by prompt and completion.

    Args:
        folder: of one model at one precision; made when something is saved.
        wanted: the completions that will be asked for; others in the folder are left there.
    """

    def __init__(self, folder: Path, wanted: Iterable[PromptAndCompletion]) -> None:
        self.folder = folder
        self.damaged: list[Path] = []
        self._values: dict[bytes, Tensor] = {}
        keys = {key_of(sequence) for sequence in wanted}
        for path in sorted(folder.glob("*.safetensors")):
            if not keys.difference(self._values):
                break
            self._read(path, keys)

    def __contains__(self, sequence: PromptAndCompletion) -> bool:
        return key_of(sequence) in self._values

    def get(self, sequence: PromptAndCompletion) -> Tensor:
        """(t,) float32 log-probabilities of a completion's tokens."""
        return self._values[key_of(sequence)]

    def save(self, found: Sequence[tuple[PromptAndCompletion, Tensor]]) -> None:
        """Keeps log-probabilities, each (t,), in memory and in a new file."""
        values = {key_of(sequence): tensor.float().cpu() for sequence, tensor in found}
        self._values |= values
        content = save_tensors(
            {
                "keys": torch.tensor(list(b"".join(values)), dtype=torch.uint8).view(-1, 16),
                "lengths": torch.tensor([len(tensor) for tensor in values.values()]),
                "logps": torch.cat(list(values.values())),
            }
        )
        self.folder.mkdir(parents=True, exist_ok=True)
        scratch = self.folder / f".{uuid.uuid4().hex}.tmp"
        try:
            scratch.write_bytes(content)
            scratch.rename(self.folder / f"{hashlib.sha256(content).hexdigest()[:32]}.safetensors")
        finally:
            scratch.unlink(missing_ok=True)

    def _read(self, path: Path, wanted: set[bytes]) -> None:
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest()[:32] != path.stem:
            self.damaged.append(path)
            return
        tensors = load_tensors(content)
        keys = tensors["keys"].numpy().tobytes()
        pieces = tensors["logps"].split(tensors["lengths"].tolist())
        for number, piece in enumerate(pieces):
            if (key := keys[16 * number : 16 * number + 16]) in wanted:
                self._values[key] = piece.clone()  # else the whole file would stay in memory


class Cached:
    """The reference as what is known of it.

    Args:
        store: its log-probabilities.
        live: makes the reference itself, for completions that nobody computed in advance, such as samples.
        anyone: of several processes that make the same passes, whether something holds for any of them.
    """

    def __init__(
        self, store: LogpStore, live: Callable[[], Reference], anyone: Callable[[bool], bool] = lambda holds: holds
    ) -> None:
        self._store = store
        self._live = live
        self._anyone = anyone

    def token_logps(self, batch: PackedBatch) -> Tensor:
        """(T,) in float32; batches with a completion that isn't there are computed anew, and kept in memory no more."""
        if self._anyone(not all(sequence in self._store for sequence in batch.sequences)):
            return self._live().token_logps(batch)
        return torch.cat([self._store.get(sequence) for sequence in batch.sequences]).to(batch.target.device)

    def head_input(self, batch: PackedBatch) -> HeadInput:
        """Not kept: whole distributions would take thousands of times the space."""
        raise ConfigError(
            "the loss compares whole distributions, and the cache keeps log-probabilities of tokens",
            where="--reference cached",
            remedy="Use copy or adapter_off",
        )


def fill(
    store: LogpStore,
    batches: Iterable[PackedBatch],
    token_logps: Callable[[PackedBatch], Tensor],
    advance: Callable[[int], None],
) -> None:
    """Computes what the store lacks, saving now and then.

    Args:
        store: is filled.
        batches: of what it lacks, on the reference's device.
        token_logps: of the live reference.
        advance: is told how many completions have been dealt with.
    """
    found: list[tuple[PromptAndCompletion, Tensor]] = []
    tokens = 0
    for batch in batches:
        found += zip(batch.sequences, token_logps(batch).split(batch.num_targets.tolist()), strict=True)
        tokens += batch.target.numel()
        if tokens >= SHARD_TOKENS:
            store.save(found)
            found, tokens = [], 0
        advance(batch.num_completions)
    if found:
        store.save(found)


def key_of(sequence: PromptAndCompletion) -> bytes:
    """16 bytes of a hash of prompt and completion."""
    prompt, completion = sequence
    digest = hashlib.sha256(len(prompt).to_bytes(8, "little"))
    digest.update(array("q", (*prompt, *completion)).tobytes())
    return digest.digest()[:16]


def model_key(model: PreTrainedModel, weights: str, precision: str) -> str:
    """What the values of a model depend on besides tokens.

    Args:
        model: its configuration counts, without names and versions.
        weights: their fingerprint.
        precision: in which products are computed.
    """
    facts: dict[str, Any] = model.config.to_dict()
    kept = {name: value for name, value in facts.items() if name[0] != "_" and name != "transformers_version"}
    text = json.dumps([FORMAT, weights, precision, kept], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
