"""``dipole convert``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dipole.errors import ConfigError
from dipole.verbs.verb import Verb


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertOptions:
    """Reads preferences in any dialect and writes one."""

    data: str
    """A file of preferences in any dialect, a folder of such files, or a hub dataset."""
    to: Literal["groups", "pairs", "unpaired"]
    """``groups`` keeps everything; ``pairs`` is prompt, chosen, rejected; ``unpaired`` is prompt, completion, label."""
    output: str
    """The file to write, .jsonl or .jsonl.gz."""


def run(options: ConvertOptions) -> int:
    """Says how much was written and what was left out."""
    from dipole import terminal
    from dipole.data.formats import load_groups, save_groups, save_pairs, save_unpaired

    if Path(options.output).resolve() == Path(options.data).resolve():
        raise ConfigError("this is the file that is read", where=f"--output {options.output}", remedy="Name another")
    groups = load_groups(options.data)
    if options.to == "groups":
        counts = {"groups": save_groups(groups, options.output)}
    else:
        save = save_pairs if options.to == "pairs" else save_unpaired
        counts = save(groups, options.output)
    written = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in counts.items())
    terminal.show(f"{options.output}: {written}")
    return 0


VERB = Verb(run, ConvertOptions, "dipole convert pairs.csv --to groups --output groups.jsonl", ("data",))
