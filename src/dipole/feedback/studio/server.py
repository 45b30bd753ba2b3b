"""From groups and a store to a server that listens."""

from __future__ import annotations

import asyncio
import secrets
import signal
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from dipole.errors import ConfigError
from dipole.feedback.active.pool import PairKey, pool_of
from dipole.feedback.active.strategies import MODEL
from dipole.feedback.assign import priorities, with_scores
from dipole.feedback.export import export_groups
from dipole.feedback.queue import Queue, Rules
from dipole.feedback.store import Item, Store, digest
from dipole.feedback.studio.app import Studio
from dipole.feedback.studio.content import Gallery
from dipole.feedback.studio.guard import Guard, Passes, is_loopback, known_hosts, person_name, with_port
from dipole.feedback.votes import current_votes
from dipole.group import Group

EVERYWHERE = ("0.0.0.0", "::")
"""Addresses that stand for all of the machine's."""


def open_studio(
    groups: Sequence[Group],
    folder: Path,
    store: Store,
    rules: Rules,
    *,
    scores: Mapping[PairKey, float] | None = None,
    predictions: str | None = None,
    people: Sequence[str] | None = None,
    guide: str = "",
) -> tuple[Studio, Passes, str]:
    """The page for these groups.

    Args:
        groups: what people are asked about.
        folder: of the data file; images lie within.
        store: takes the votes.
        rules: how pairs are handed out.
        scores: a model's log-odds of pairs, for strategies that go by them.
        predictions: an annotator whose judgments in the data are a model's, see ``active.pool.pool_of``. Without scores
            and predictions, these strategies go by a learner of all judgments so far, those on the page included.
        people: names that get a token each; without it, whoever has the start token says their name.
        guide: what people should go by, in Markdown.

    Returns:
        The page, the passes to it, and the start token.

    Raises:
        ConfigError: the strategy goes by no scores, or a name can't be used.
        DataError: there is nothing to compare, an image is missing, or texts have changed since people judged them.
    """
    before = _register(groups, store, rules, scores, predictions)
    start_token = secrets.token_urlsafe(24)
    passes = Passes(store.secret, start_token, None if people is None else _people(people))
    studio = Studio(
        {group.id: group for group in groups},
        Queue(store, rules, before),
        Gallery(groups, folder, store.secret),
        passes,
        guide=guide,
    )
    return studio, passes, start_token


def _register(
    groups: Sequence[Group],
    store: Store,
    rules: Rules,
    scores: Mapping[PairKey, float] | None,
    predictions: str | None,
) -> dict[PairKey, tuple[float, float]]:
    """Tells the store what is asked about, and in which order; returns what ``Queue.before`` wants to know."""
    if scores is not None and predictions is not None:
        raise ConfigError("says the same as --predictions", where="--scores", remedy="Leave one of them out")
    for name, given in (("--scores", scores), ("--predictions", predictions)):
        if given is not None and rules.strategy not in MODEL:
            raise ConfigError(
                f"'{rules.strategy}' asks no model",
                where=name,
                remedy=f"Leave it out, or use one of {', '.join(MODEL)}",
            )
    data = pool_of(groups, predictions)
    keys = data.keys
    texts = {group.id: group for group in groups}
    with store.read() as connection:
        votes = current_votes(connection)
    answered = {(vote.group_id, min(vote.left, vote.right), max(vote.left, vote.right)) for vote in votes}
    pool = data
    if answered:  # a restart: what was said on the page counts as what the data say
        pool = pool_of(list(export_groups(store, groups, slightly=rules.slightly)), predictions)
    if scores is not None:
        pool = with_scores(pool, scores)
    has_odds = scores is not None or predictions is not None
    order = priorities(pool, rules.strategy, has_odds=has_odds, answered=answered)
    store.register(
        [Item(group_id=id, i=i, j=j, digest=digest(texts[id], i, j), priority=order[id, i, j]) for id, i, j in keys]
    )
    if rules.strategy != "disagreed":
        return {}
    return dict(zip(keys, zip(data.wins.tolist(), data.votes.tolist(), strict=True), strict=True))


def _people(names: Sequence[str]) -> list[str]:
    people = [person_name(name) for name in names]
    if not people or len(set(people)) < len(people):
        raise ConfigError("names one person or more, each once", where="--people")
    return people


@dataclass(frozen=True, slots=True)
class Place:
    """Where a server listens.

    Args:
        listener: an open socket.
        address: under which a browser reaches it, as in ``http://127.0.0.1:8420``.
        hosts: all that requests may name as their host.
    """

    listener: socket.socket
    address: str
    hosts: frozenset[str]


def listen(host: str, port: int, known_as: Sequence[str] = (), *, has_people: bool = False) -> Place:
    """Opens a port.

    Args:
        host: the address to listen on; one of ``EVERYWHERE`` for all.
        port: 0 takes any that is free.
        known_as: further names under which browsers reach this machine, see ``guard.known_hosts``.
        has_people: whether everyone has a token of their own, without which nobody else may come in.

    Raises:
        ConfigError: others could come in without a token of their own, or the port can't be had.
    """
    if not is_loopback(host) and not has_people:
        raise ConfigError(
            "others on the network could come in, so everyone needs an address of their own",
            where=f"--host {host}",
            remedy="Name them, as in --people 'Anna,Ben'",
        )
    # With the protocol named, asyncio sends what it has at once (TCP_NODELAY); otherwise the second part of every reply
    # waits 40 ms for the browser to acknowledge the first.
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"can't listen there ({error.strerror})",
            where=f"--host {host} --port {port}",
            remedy="Is it running already? Otherwise give another --port; 0 takes any that is free",
        ) from error
    port = listener.getsockname()[1]
    names = [host] if host not in EVERYWHERE else _own_names()
    if is_loopback(host) or host in EVERYWHERE:
        names += ["127.0.0.1", "localhost", "::1"]
    hosts = known_hosts(names, port, known_as=known_as)
    return Place(listener, f"http://{with_port([*known_as, *names][0], port)}", hosts)


def _own_names() -> list[str]:
    """The machine's address on its network, and its name."""
    names = [socket.gethostname()]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # an address for examples; nothing is sent
            names.insert(0, probe.getsockname()[0])
        except OSError:
            pass
    return names


class _Server(uvicorn.Server):
    """Ends in good order at the first signal, and remembers which."""

    stopped_by: int = 0

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """SIGINT and SIGTERM let requests end; the process goes on afterwards."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop, number)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)

    def _stop(self, number: int) -> None:
        self.force_exit = self.should_exit
        self.should_exit, self.stopped_by = True, number


def serve(app: Guard, listener: socket.socket) -> int:
    """Serves until a signal comes, and returns its number. Every vote that was acknowledged is on the disk by then."""
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        ws="none",
        lifespan="off",
        proxy_headers=False,
        timeout_graceful_shutdown=3,
    )
    server = _Server(config)
    server.run(sockets=[listener])
    return server.stopped_by
