"""``dipole convert``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dipole.errors import ConfigError
from dipole.verbs.verb import Verb

if TYPE_CHECKING:
    from dipole.group import Group


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertOptions:
    """Reads preferences in any dialect and writes one."""

    data: str
    """A file of preferences in any dialect, a folder of such files, or a hub dataset."""
    to: Literal["groups", "pairs", "unpaired"]
    """``groups`` keeps everything; ``pairs`` is prompt, chosen, rejected; ``unpaired`` is prompt, completion, label."""
    output: str
    """The file to write, .jsonl or .jsonl.gz."""
    select: Literal["best_worst", "all_pairs", "gap", "rejection", "best_of_n"] | None = None
    """Of groups that were judged, keep one pair a prompt (best_worst), all pairs, those whose scores differ by at least
    min_gap (gap), those of completions that statistical rejection sampling accepts (rejection), or the best completion
    alone (best_of_n). Equal scores, equal texts and empty completions are left out and counted."""
    min_gap: float | None = None
    """gap: on the scale of the judge's scores."""
    accept: int | None = None
    """rejection: how many completions of a prompt are accepted."""
    beta: float | None = None
    """rejection: how little scores decide; near 0 the best alone are accepted."""
    annotator: str | None = None
    """Whose judgments count in a selection, where several rated."""
    seed: int = 0
    """rejection: of its draws."""

    def __post_init__(self) -> None:
        given = {"min_gap": self.min_gap, "accept": self.accept, "beta": self.beta, "annotator": self.annotator}
        for name, value in given.items():
            if value is not None and (self.select is None or (self.select == "best_of_n" and name != "annotator")):
                raise ConfigError("it belongs to a selection of pairs", where=f"--{name}", remedy="Add --select")
        if self.select == "best_of_n" and self.to != "groups":
            raise ConfigError("one completion has no pair and no label", where="--select", remedy="Use --to groups")


def run(options: ConvertOptions) -> int:
    """Says how much was written and what was left out."""
    from dipole import terminal
    from dipole.data.formats import load_groups, save_groups, save_pairs, save_unpaired

    if Path(options.output).resolve() == Path(options.data).resolve():
        raise ConfigError("this is the file that is read", where=f"--output {options.output}", remedy="Name another")
    groups = load_groups(options.data)
    selected: dict[str, int] = {}
    if options.select is not None:
        groups, selected = _selected(groups, options)
    if options.to == "groups":
        counts = {"groups": save_groups(groups, options.output)}
    else:
        save = save_pairs if options.to == "pairs" else save_unpaired
        counts = save(groups, options.output)
    terminal.show(f"{options.output}: {_counted(counts)}")
    if selected:
        terminal.show(f"Selected: {_counted(selected)}")
    return 0


def _selected(groups: list[Group], options: ConvertOptions) -> tuple[list[Group], dict[str, int]]:
    """The selection, and what became of the rest.

    Raises:
        ConfigError: a number is missing or means nothing for it.
        DataError: nothing is left, or several rated and none is named.
    """
    from dipole.data.select import Pairing, best_of_n, select_pairs
    from dipole.errors import DataError

    assert options.select is not None
    if options.select == "best_of_n":
        kept = best_of_n(groups, annotator=options.annotator)
        counts = {"best completions": len(kept), "groups without a score": len(groups) - len(kept)}
    else:
        pairing = Pairing(
            policy=options.select,
            min_gap=options.min_gap,
            accept=options.accept,
            beta=options.beta,
            seed=options.seed,
        )
        found = select_pairs(groups, pairing, annotator=options.annotator)
        kept, counts = found.groups, found.counts
    if not kept:
        raise DataError(
            f"nothing is left ({_counted(counts)})",
            where=options.data,
            remedy="Have the completions judged first (dipole judge), or choose another --select",
        )
    return kept, counts


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in counts.items())


VERB = Verb(run, ConvertOptions, "dipole convert pairs.csv --to groups --output groups.jsonl", ("data",))
