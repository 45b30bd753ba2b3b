"""``dipole merge``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dipole.verbs.verb import Verb


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeOptions:
    """Adds an adapter to the weights of its model: one model, with the same log-probabilities."""

    adapter: str
    """The folder of a run that trained an adapter, or of the adapter itself."""
    output: str
    """The folder to write: loads with transformers, tokenizer included."""
    model: str | None = None
    """The adapter's model, where it isn't at the place any more that the adapter names."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of the weights that are written; ``auto`` is the model's own."""


def run(options: MergeOptions) -> int:
    """Says where the model is and how close it is to model and adapter."""
    from dipole import terminal

    with terminal.progress() as progress:
        progress.stage("Merging")
        from dipole.policy.merge import merge_adapter

        merged = merge_adapter(options.adapter, options.output, model=options.model, dtype=options.dtype)
    terminal.show(f"Largest difference of a log-probability, in float32: {merged.difference:.1e} nats")
    terminal.show(f"Model: {options.output} ({merged.dtype})")
    return 0


VERB = Verb(run, MergeOptions, "dipole merge runs/a --output models/a", ("adapter",))
