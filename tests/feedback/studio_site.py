"""A page to test: groups, a store, and people who come in."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from starlette.testclient import TestClient

from dipole.feedback.queue import Ballot, Queue, Rules
from dipole.feedback.store import Store, open_store
from dipole.feedback.studio.guard import known_hosts
from dipole.feedback.studio.server import open_studio
from dipole.group import Completion, Group

ADDRESS = "http://127.0.0.1:8420"


def make_groups(count: int, answers: int = 2) -> list[Group]:
    """Groups whose texts and sources all differ."""
    return [
        Group(
            id=f"g{number}",
            prompt=f"Question {number}?",
            completions=tuple(
                Completion(text=f"Answer {number}-{place}.", source=f"secret-model-{place}") for place in range(answers)
            ),
        )
        for number in range(count)
    ]


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def event() -> str:
    return str(uuid.uuid4())


def ballot(key: str, choice: str = "left", **values: Any) -> Ballot:
    return Ballot(id=event(), key=key, choice=choice, **values)


@dataclass
class Site:
    """An open page without a network, and what lies behind it."""

    app: Any
    store: Store
    queue: Queue
    clock: Clock
    tokens: dict[str, str]
    start_token: str
    cookie: str

    def stranger(self, **headers: str) -> TestClient:
        return TestClient(
            self.app,
            base_url=ADDRESS,
            headers={"origin": ADDRESS, **headers},
            follow_redirects=False,
            raise_server_exceptions=False,
        )

    def host(self) -> TestClient:
        client = self.stranger()
        assert client.post("/api/enter", json={"token": self.start_token}).status_code == 200
        return client

    def person(self, name: str) -> TestClient:
        client = self.host()
        assert client.post("/api/name", json={"name": name}).status_code == 200
        return client


def open_site(
    folder: Path,
    groups: Sequence[Group] | None = None,
    *,
    people: Sequence[str] | None = None,
    scores: dict[tuple[str, int, int], float] | None = None,
    predictions: str | None = None,
    store: Store | None = None,
    guide: str = "",
    **rules: Any,
) -> Site:
    store = store or open_store(str(folder / "votes.db"))
    groups = make_groups(6) if groups is None else groups
    studio, passes, start_token = open_studio(
        groups, folder, store, Rules(**rules), people=people, scores=scores, predictions=predictions, guide=guide
    )
    clock = Clock()
    studio._queue.clock = clock
    studio._queue.random = Random(0)
    return Site(
        app=studio.app(known_hosts(["127.0.0.1"], 8420)),
        store=store,
        queue=studio._queue,
        clock=clock,
        tokens={name: passes.token(name) for name in passes.people or ()},
        start_token=start_token,
        cookie=passes.cookie,
    )


def answer(client: TestClient, key: str, choice: str = "left", **values: Any) -> Any:
    return client.post("/api/vote", json={"id": event(), "key": key, "choice": choice, "ms": 1500} | values)
