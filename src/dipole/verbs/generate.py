"""``dipole generate``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dipole.verbs.verb import Verb


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateOptions:
    """Samples completions for prompts: groups without judgments. Run again, it writes only what is missing."""

    model: str
    """A local folder or a hub id of a model, or a folder with an adapter; with --server the server's name of it."""
    prompts: str
    """A file with prompts: rows with a prompt alone, or preferences in any dialect, of which the prompts are taken."""
    output: str
    """The file of groups to write, .jsonl or .jsonl.gz."""
    adapter: str | None = None
    """A folder with an adapter for the model, or a run's that trained one."""
    server: str | None = None
    """URL of an OpenAI-compatible server, up to its version, such as http://127.0.0.1:8000/v1."""
    key: str | None = None
    """The *name* of the environment variable that holds the server's key."""
    num_completions: int = 4
    """Completions of each prompt."""
    temperature: float = 1.0
    """1 samples from the model itself, 0 takes the most likely token."""
    top_p: float = 1.0
    """Sample from the smallest set of tokens with this much probability."""
    top_k: int = 0
    """Sample from that many of the likeliest tokens; 0 for all."""
    repetition_penalty: float = 1.0
    """Above 1, tokens that are there already become less likely."""
    stop: tuple[str, ...] = ()
    """Texts that end a completion and aren't part of it, as '["###", "User:"]'."""
    max_new_tokens: int = 256
    """Most tokens of a completion."""
    seed: int = 0
    """Of the samples. Each has random numbers of its own, whatever is drawn beside it."""
    batch_size: int = 64
    """Completions, or requests to a server, at a time."""
    prompt_format: Literal["as_is", "chat"] = "as_is"
    """``chat`` makes a plain prompt a user's message."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of a local model's weights; ``auto`` is bfloat16 on a GPU that has it."""


def run(options: GenerateOptions) -> int:
    """Says how many completions there are, and how many ended by themselves."""
    from dataclasses import asdict

    from dipole import terminal

    with terminal.progress() as progress:
        from dipole.api import generate

        groups = generate(**asdict(options), progress=progress)
    completions = [completion for group in groups for completion in group.completions]
    ended = sum(bool(completion.meta.get("finished")) for completion in completions)
    different = sum(len({str(completion.text) for completion in group.completions}) for group in groups)
    count = len(completions)
    terminal.show(
        f"{options.output}: {count:,} completions of {len(groups):,} prompts; {different:,} are different within their"
        f" prompt, {ended:,} ended by themselves, {count - ended:,} were cut at {options.max_new_tokens} tokens"
    )
    return 0


VERB = Verb(
    run,
    GenerateOptions,
    "dipole generate --model path/to/model --prompts prompts.jsonl --num_completions 8 --output groups.jsonl",
)
