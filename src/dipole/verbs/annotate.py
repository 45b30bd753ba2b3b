"""``dipole annotate``."""

from __future__ import annotations

import signal
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from dipole.errors import ConfigError, DataError
from dipole.verbs.verb import Verb


@dataclass(frozen=True, slots=True, kw_only=True)
class AnnotateOptions:
    """Opens a page where people compare answers, and exports what they said."""

    data: str
    """A file of groups, or of preferences in any dialect; their answers are shown two by two."""
    store: str
    """The file that takes the votes, made when there is none; or postgresql://host/name."""
    export: str | None = None
    """Write the groups with all votes to this file (.jsonl or .jsonl.gz) and end, whether or not a page is open."""
    strategy: Literal["random", "uncertain", "certain", "change", "disagreed", "diverse"] = "random"
    """Which pairs come first: those a model is least or most certain about, or that would change it most; those that
    the data's judgments and the votes disagree on; those unlike the ones before. The same as of ``dipole active``."""
    predictions: str | None = None
    """An annotator in the data whose judgments are a model's predictions, as ``dipole judge`` writes those of an
    implicit reward. Without it and --scores, a quick learner of all judgments so far predicts, anew at each start."""
    scores: str | None = None
    """A file with a model's log-odds, of lines such as {"id": "g1", "i": 0, "j": 1, "score": 0.3}."""
    random_share: float = 0.1
    """Share of the pairs that is drawn at random whatever the strategy, so that estimates can be made unbiased."""
    votes_per_pair: int = 1
    """How many people judge each pair."""
    lease_minutes: float = 15.0
    """How long a pair is kept for a person who looks at it, before others may have it."""
    slightly: float = 0.75
    """The probability of being better that "slightly better" stands for in the export."""
    people: str | None = None
    """Names with commas between; each gets an address of their own. Without it, people say their name."""
    guide: str | None = None
    """A Markdown file that tells people what to go by; the page shows it."""
    host: str = "127.0.0.1"
    """The address to listen on; 0.0.0.0 for the whole network, with --people alone."""
    port: int = 8420
    """The port; 0 takes any that is free."""
    known_as: str | None = None
    """Further names or addresses under which browsers reach this machine, with commas between."""

    def __post_init__(self) -> None:
        if not 0.5 <= self.slightly <= 1:
            raise ConfigError("has to lie between 0.5 and 1", where="--slightly")
        if self.votes_per_pair < 1:
            raise ConfigError("has to be at least 1", where="--votes_per_pair")
        if not self.lease_minutes > 0:
            raise ConfigError("has to be more than 0", where="--lease_minutes")
        if not 0 <= self.port < 2**16:
            raise ConfigError("has to lie between 0 and 65535", where="--port")


def run(options: AnnotateOptions) -> int:
    """Says where the page is, and serves it until it is stopped; or exports."""
    from dipole import terminal
    from dipole.data.formats import load_groups
    from dipole.feedback.active.pool import pool_of
    from dipole.feedback.assign import load_scores
    from dipole.feedback.queue import Rules
    from dipole.feedback.store import open_store
    from dipole.feedback.studio.server import listen, open_studio, serve

    if options.export is not None:
        return _export(options, options.export)
    groups = load_groups(options.data)
    people = _listed(options.people) if options.people is not None else None
    rules = Rules(
        strategy=options.strategy,
        random_share=options.random_share,
        votes_per_pair=options.votes_per_pair,
        lease_seconds=60 * options.lease_minutes,
        slightly=options.slightly,
    )
    store = open_store(options.store)
    studio, passes, start_token = open_studio(
        groups,
        _folder(options.data),
        store,
        rules,
        scores=load_scores(Path(options.scores), pool_of(groups).keys) if options.scores is not None else None,
        predictions=options.predictions,
        people=people,
        guide=_read(options.guide) if options.guide is not None else "",
    )
    place = listen(options.host, options.port, _listed(options.known_as or ""), has_people=people is not None)
    for name in passes.people or ():
        terminal.show(f"{name}: {place.address}/#{passes.token(name)}")
    whose = "You, to see how it goes" if people is not None else "Open"
    terminal.show(f"{whose}: {place.address}/#{start_token}")
    terminal.show(f"Votes go to {options.store}. Ctrl-C ends it; nothing is lost, and the same command goes on.")
    sys.stdout.flush()  # whoever reads this from a file or a pipe waits for it
    stopped_by = serve(studio.app(place.hosts), place.listener)
    store.close()
    return 128 + stopped_by if stopped_by == signal.SIGTERM else 0


def _export(options: AnnotateOptions, file: str) -> int:
    from dipole import terminal
    from dipole.data.formats import load_groups, save_groups
    from dipole.feedback.export import export_groups
    from dipole.feedback.store import open_store

    for item in fields(AnnotateOptions):
        if item.name not in ("data", "store", "export", "slightly") and getattr(options, item.name) != item.default:
            raise ConfigError("means nothing in an export", where=f"--{item.name}", remedy="Leave it out")
    if Path(file).resolve() == Path(options.data).resolve():
        raise ConfigError("this is the file that is read", where=f"--export {file}", remedy="Name another")
    if "://" not in options.store and not Path(options.store).exists():
        raise DataError("there is no such store", where=options.store, remedy="Check the path")
    groups = load_groups(options.data)
    judged = list(export_groups(open_store(options.store), groups, slightly=options.slightly))
    votes = sum("vote" in judgment.meta for group in judged for judgment in group.judgments)
    terminal.show(f"{file}: {save_groups(judged, file):,} groups, {votes:,} votes")
    return 0


def _folder(data: str) -> Path:
    """Where the data's images lie."""
    path = Path(data)
    return path if path.is_dir() else path.parent


def _listed(text: str) -> list[str]:
    return [name for item in text.split(",") if (name := item.strip())]


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError("isn't UTF-8", where=path, remedy="Save it as UTF-8") from error


VERB = Verb(run, AnnotateOptions, "dipole annotate --data groups.jsonl --store votes.db")
