"""``dipole audit``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dipole.errors import ConfigError, DataError
from dipole.verbs.verb import Verb


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditOptions:
    """Checks preferences: errors that stop training, and findings that should worry."""

    data: str
    """A file of preferences in any dialect, a folder of such files, or a hub dataset."""
    eval_data: str | None = None
    """Held-out preferences, checked for prompts and answers that are also trained on, and for what reaches them."""
    allow_shared_prompts: bool = False
    """Training and held-out data may share prompts."""
    depth: Literal["errors", "cheap", "full"] = "full"
    """``errors`` alone; ``cheap`` adds what training looks at by itself; ``full`` everything."""
    model: str | None = None
    """A local folder or a hub id: tries its tokenizer and chat template on the data."""
    max_length: int | None = None
    """Most tokens of a prompt with one answer, with a model; by default what training takes."""
    prompt_format: Literal["as_is", "chat"] = "as_is"
    """``chat`` makes a plain prompt a user's message, with a model."""
    model_pairs: int = 64
    """How many pairs the model is asked about for the likelihood of their answers; 0 loads no weights."""
    embeddings: str | None = None
    """A local folder of a sentence-embedding model, for topics and reach; without it TF-IDF tells them."""
    output: str | None = None
    """A folder for audit.json and audit.html."""
    fix: str | None = None
    """A file to write without the errors (.jsonl or .jsonl.gz), beside it FILE.changes.jsonl; never the data itself."""
    eval_share: float | None = None
    """With --fix, the share of prompts to hold out where a group has no split: near-duplicates together."""


def run(options: AuditOptions) -> int:
    """Prints what was found; status 3 when there are errors."""
    from dipole import api, terminal
    from dipole.auditing import fix_data

    if options.eval_share is not None and options.fix is None:
        raise ConfigError("a file is needed to write splits to", where="--eval_share", remedy="Give --fix FILE")
    _refuse_without_model(options)
    with terminal.progress() as progress:
        report = api.audit(
            options.data,
            eval_data=options.eval_data,
            allow_shared_prompts=options.allow_shared_prompts,
            depth=options.depth,
            model=options.model,
            max_length=options.max_length,
            prompt_format=options.prompt_format,
            model_pairs=options.model_pairs,
            embeddings=options.embeddings,
            progress=progress,
        )
    terminal.show_audit(report)
    if options.output is not None:
        for file in api.write_audit(report, Path(options.output), name=Path(options.data).name):
            terminal.show(f"Written: {file}")
    if options.fix is not None:
        counts = fix_data(
            options.data,
            Path(options.fix),
            eval_data=options.eval_data,
            allow_shared_prompts=options.allow_shared_prompts,
            eval_share=options.eval_share,
        )
        terminal.show(f"{options.fix}: {counts['groups']:,} groups, {counts['changes']:,} changes")
    return DataError.exit_status if report.errors else 0


def _refuse_without_model(options: AuditOptions) -> None:
    if options.embeddings is not None and options.depth != "full":
        raise ConfigError("topics are part of the full audit", where="--embeddings", remedy="Leave out --depth")
    if options.model is None:
        given = {"max_length": options.max_length is not None, "prompt_format": options.prompt_format != "as_is"}
        for name, is_given in given.items():
            if is_given:
                raise ConfigError("means something with a model alone", where=f"--{name}", remedy="Give --model")


VERB = Verb(run, AuditOptions, "dipole audit pairs.jsonl --output runs/audit", ("data",))
