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
from dipole.feedback.assign import PairKey, pairs_of, priorities, sides_in_data
from dipole.feedback.export import SLIGHTLY
from dipole.feedback.queue import Queue, Rules
from dipole.feedback.store import Item, Store, digest
from dipole.feedback.studio.app import Studio
from dipole.feedback.studio.content import Gallery
from dipole.feedback.studio.guard import Guard, Passes, is_loopback, known_hosts, person_name
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
    people: Sequence[str] | None = None,
    guide: str = "",
    slightly: float = SLIGHTLY,
) -> tuple[Studio, Passes, str]:
    """The page for these groups.

    Args:
        groups: what people are asked about.
        folder: of the data file; images lie within.
        store: takes the votes.
        rules: how pairs are handed out.
        scores: of pairs, for strategies that go by them; see ``assign.priorities``.
        people: names that get a token each; without it, whoever has the start token says their name.
        guide: what people should go by, in Markdown.
        slightly: see ``export.export_groups``.

    Returns:
        The page, the passes to it, and the start token.

    Raises:
        ConfigError: the strategy doesn't fit the scores, or a name can't be used.
        DataError: there is nothing to compare, an image is missing, or texts have changed since people judged them.
    """
    pairs = pairs_of(groups)
    order = priorities(rules.strategy, pairs, scores)
    store.register(
        [
            Item(group_id=group.id, i=i, j=j, digest=digest(group, i, j), priority=order[group.id, i, j])
            for (_, i, j), group in pairs.items()
        ]
    )
    before = sides_in_data(pairs) if rules.strategy == "disagreed" else {}
    start_token = secrets.token_urlsafe(24)
    passes = Passes(store.secret, start_token, None if people is None else _people(people))
    studio = Studio(
        {group.id: group for group in groups},
        Queue(store, rules, before),
        Gallery(groups, folder, store.secret),
        passes,
        guide=guide,
        slightly=slightly,
    )
    return studio, passes, start_token


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
        known_as: further names under which browsers reach this machine.
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
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
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
    names = [*known_as, *([host] if host not in EVERYWHERE else _own_names())]
    if is_loopback(host) or host in EVERYWHERE:
        names += ["127.0.0.1", "localhost", "::1"]
    shown = f"[{names[0]}]" if ":" in names[0] else names[0]
    return Place(listener, f"http://{shown}:{port}", known_hosts(names, port))


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
