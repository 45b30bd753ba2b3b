"""Real servers on real ports: killed between request and answer, and asked by many people at once.

``FAULTS=long`` (``make faults``) kills 200 times.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
import sqlalchemy as sql
from studio_site import event, make_groups

from dipole.data.formats import save_groups
from dipole.feedback.store import open_store, vote
from dipole.feedback.votes import current_votes

LONG = os.environ.get("FAULTS") == "long"
KILLS = 200 if LONG else 20
MOMENTS = ("before", "written", "reply", "")


class Servers:
    """Servers on one port, one after the other."""

    def __init__(self, folder: Path, votes_per_pair: int = 1) -> None:
        self.folder = folder
        self.votes_per_pair = votes_per_pair
        self.port = 0
        self.pid = 0
        self._driver = subprocess.Popen(
            [sys.executable, str(Path(__file__).parent / "studio_driver.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self, moment: str = "", number: int = 0) -> dict[str, Any]:
        order = {"folder": str(self.folder), "port": self.port, "votes_per_pair": self.votes_per_pair}
        assert self._driver.stdin is not None
        assert self._driver.stdout is not None
        self._driver.stdin.write(json.dumps(order | {"moment": moment, "number": number}) + "\n")
        self._driver.stdin.flush()
        said = json.loads(self._driver.stdout.readline())
        self.port, self.pid = int(said["address"].rpartition(":")[2]), said["pid"]
        assert isinstance(said, dict)
        return said

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def close(self) -> None:
        self.kill()
        assert self._driver.stdin is not None
        self._driver.stdin.close()
        self._driver.wait()


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[Servers]:
    found = Servers(tmp_path)
    yield found
    found.close()


def person(said: dict[str, Any], name: str) -> httpx.Client:
    client = httpx.Client(base_url=said["address"], headers={"origin": said["address"]}, timeout=60)
    client.post("/api/enter", json={"token": said["token"]}).raise_for_status()
    client.post("/api/name", json={"name": name}).raise_for_status()
    return client


def test_every_acknowledged_vote_survives_a_kill_once(servers: Servers, tmp_path: Path) -> None:
    """The server is killed at some moment of a vote; the browser sends again what wasn't acknowledged."""
    save_groups(make_groups(2 * KILLS), tmp_path / "groups.jsonl")
    draw = random.Random(0)
    acknowledged: dict[str, str] = {}
    unsure: set[str] = set()
    client = person(servers.start(), "Anna")
    servers.kill()
    for round_ in range(KILLS):
        moment = MOMENTS[round_ % len(MOMENTS)]
        servers.start(moment, 2)
        lying = client.post("/api/pairs", json={}).json()["pairs"]
        for pair in lying[:2]:
            said = {"id": event(), "key": pair["key"], "choice": draw.choice(["left", "right", "tie"]), "ms": 5}
            if not moment and pair is lying[1]:  # at any time, not at one that was thought of
                threading.Timer(draw.uniform(0, 0.03), servers.kill).start()
            try:
                client.post("/api/vote", json=said).raise_for_status()
            except httpx.TransportError:
                unsure.add(said["id"])
                servers.kill()
                servers.start()
                client.post("/api/vote", json=said).raise_for_status()
            acknowledged[said["id"]] = said["choice"]
        servers.kill()
    store = open_store(str(tmp_path / "votes.db"))
    with store.read() as connection:
        events = list(connection.execute(sql.select(vote.c.id, vote.c.choice)))
        counted = current_votes(connection)
    assert len(unsure) >= KILLS * 3 // 4
    assert {row.id: row.choice for row in events} == acknowledged
    assert len(events) == len(acknowledged) == 2 * KILLS, "each once"
    assert {vote.id for vote in counted} == set(acknowledged)
    assert len({vote.group_id for vote in counted}) == 2 * KILLS


def test_eight_people_at_once(tmp_path: Path) -> None:
    pairs, overlap = (500, 2) if LONG else (100, 2)
    save_groups(make_groups(pairs), tmp_path / "groups.jsonl")
    servers = Servers(tmp_path, votes_per_pair=overlap)
    said = servers.start()
    problems: list[str] = []
    finished: list[str] = []

    def judge(name: str) -> None:
        draw = random.Random(name)
        client = person(said, name)
        desk = client.post("/api/pairs", json={}).json()
        deadline = time.monotonic() + 300
        while desk["left"] and time.monotonic() < deadline:
            if not desk["pairs"]:  # others hold the last ones
                time.sleep(0.1)
                desk = client.post("/api/pairs", json={}).json()
                continue
            values = {"id": event(), "key": desk["pairs"][0]["key"], "choice": draw.choice(["left", "right"]), "ms": 1}
            reply = client.post("/api/vote", json=values)
            if reply.status_code != 200:
                problems.append(reply.text)
                return
            desk = reply.json()
        finished.append(name)

    people = [threading.Thread(target=judge, args=(f"person {number}",)) for number in range(8)]
    for one in people:
        one.start()
    for one in people:
        one.join(timeout=400)
    servers.close()
    assert not problems
    assert len(finished) == 8
    with open_store(str(tmp_path / "votes.db")).read() as connection:
        votes = current_votes(connection)
    by_pair = Counter(vote.pair_id for vote in votes)
    assert len(by_pair) == pairs
    assert set(by_pair.values()) == {overlap}
    assert len({(vote.pair_id, vote.annotator) for vote in votes}) == overlap * pairs
    assert len({vote.annotator for vote in votes}) == 8, "everybody had something to do"


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 0), (signal.SIGTERM, 143)])
def test_the_command_ends_in_good_order(tmp_path: Path, number: signal.Signals, status: int) -> None:
    save_groups(make_groups(3), tmp_path / "groups.jsonl")
    arguments = ["--data", tmp_path / "groups.jsonl", "--store", tmp_path / "votes.db", "--port", "0"]
    server = subprocess.Popen(
        [sys.executable, "-m", "dipole", "annotate", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    address, _, token = server.stdout.readline().removeprefix("Open: ").strip().partition("/#")
    said = server.stdout.readline()  # by lines, since what communicate reads leaves out what is buffered here
    client = person({"address": address, "token": token}, "Anna")
    key = client.post("/api/pairs", json={}).json()["pairs"][0]["key"]
    client.post("/api/vote", json={"id": event(), "key": key, "choice": "tie", "ms": 1}).raise_for_status()
    server.send_signal(number)
    _, problems = server.communicate(timeout=60)
    assert (server.returncode, problems) == (status, "")
    assert "nothing is lost" in said
    with open_store(str(tmp_path / "votes.db")).read() as connection:
        assert [vote.choice for vote in current_votes(connection)] == ["tie"]
