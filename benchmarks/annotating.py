"""From the key to the next pair, at the server of ``dipole annotate``; writes results/annotating.json and .md.

A real server in a process of its own, on a real port, with a store on the disk. One person votes, again and again;
half of the pairs have a first vote by somebody else already. Measured is what a browser waits for, from sending a
vote to the whole reply, in which the texts of the next pair are; and how long the server's process computed, which is
what remains comparable when other work shares the machine.

    python benchmarks/annotating.py [--pairs 500,10000] [--votes 200]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import statistics
import sys
import tempfile
import time
import uuid
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import sqlalchemy as sql

from dipole.feedback.queue import Rules
from dipole.feedback.store import assignment, open_store, pair
from dipole.feedback.studio.server import listen, open_studio, serve
from dipole.group import Completion, Group

RESULTS = Path(__file__).parent / "results"
PARAGRAPH = "It pumps **blood**, about `5` litres a minute:\n\n1. in at the *right*\n2. out at the left\n\n"
TICK = os.sysconf("SC_CLK_TCK")


def groups_of(count: int, paragraphs: int) -> list[Group]:
    """Pairs of answers in Markdown; a paragraph has some 90 characters."""
    return [
        Group(
            id=f"g{number}",
            prompt=f"What does a heart do? ({number})",
            completions=tuple(Completion(text=f"{number}{side} {PARAGRAPH * paragraphs}") for side in "ab"),
        )
        for number in range(count)
    ]


def start(groups: list[Group], folder: Path) -> tuple[int, str, str]:
    """Forks a server; returns its process, address and token."""
    hear, tell = os.pipe()
    process = os.fork()
    if process:
        os.close(tell)
        with os.fdopen(hear) as said:
            address, token = said.read().split()
        return process, address, token
    store = open_store(str(folder / "votes.db"))
    studio, _, token = open_studio(groups, folder, store, Rules(votes_per_pair=2))
    with store.write() as connection:
        half = len(groups) // 2
        other = store_person(connection)
        connection.execute(sql.update(pair).where(pair.c.id <= half).values(opened=pair.c.id, votes=1))
        columns = (sql.cast(pair.c.id, sql.String), pair.c.id, other, sql.false(), sql.literal("voted"), 0.0, pair.c.id)
        names = ["key", "pair_id", "person_id", "swapped", "state", "expires", "turn"]
        connection.execute(sql.insert(assignment).from_select(names, sql.select(*columns).where(pair.c.id <= half)))
    place = listen("127.0.0.1", 0)
    os.write(tell, f"{place.address} {token}".encode())
    os.close(tell)
    serve(studio.app(place.hosts), place.listener)
    os._exit(0)


def store_person(connection: Any) -> int:
    """The number of somebody else."""
    connection.exec_driver_sql("INSERT INTO person (name) VALUES ('Ben')")
    return int(connection.exec_driver_sql("SELECT max(id) FROM person").scalar())


def computed(process: int) -> float:
    """Milliseconds that a process has computed so far."""
    fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return 1000 * (int(fields[11]) + int(fields[12])) / TICK


def measure(count: int, paragraphs: int, votes: int) -> dict[str, Any]:
    """Milliseconds a vote."""
    with tempfile.TemporaryDirectory() as folder:
        process, address, token = start(groups_of(count, paragraphs), Path(folder))
        line = HTTPConnection(address.removeprefix("http://"), timeout=60)
        headers = {"Origin": address, "Content-Type": "application/json"}

        def post(path: str, values: dict[str, Any]) -> dict[str, Any]:
            line.request("POST", path, json.dumps(values), headers)
            reply = line.getresponse()
            said = json.loads(reply.read())
            assert reply.status == 200, said
            if cookie := reply.headers.get("set-cookie"):
                headers["Cookie"] = cookie.partition(";")[0]
            assert isinstance(said, dict)
            return said

        post("/api/enter", {"token": token})
        post("/api/name", {"name": "Anna"})
        lying = post("/api/pairs", {})["pairs"]
        waited: list[float] = []
        before = computed(process)
        for number in range(votes):
            said = {"id": str(uuid.uuid4()), "key": lying[0]["key"], "choice": ("left", "right", "tie")[number % 3]}
            have = [item["key"] for item in lying]
            began = time.perf_counter()
            lying = post("/api/vote", {**said, "ms": 1000, "have": have})["pairs"]
            waited.append(1000 * (time.perf_counter() - began))
        used = (computed(process) - before) / votes
        os.kill(process, signal.SIGTERM)
        os.waitpid(process, 0)
    waited.sort()
    return {
        "pairs": count,
        "characters": len(PARAGRAPH) * paragraphs,
        "votes": votes,
        "median": statistics.median(waited),
        "95 of 100": waited[int(0.95 * votes)],
        "longest": waited[-1],
        "server computes": used,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", default="500,10000,100000")
    parser.add_argument("--paragraphs", default="5,50")
    parser.add_argument("--votes", type=int, default=200)
    options = parser.parse_args()
    rows = [
        measure(int(count), int(paragraphs), options.votes)
        for count in options.pairs.split(",")
        for paragraphs in options.paragraphs.split(",")
    ]
    about = {
        "command": f"python benchmarks/annotating.py {' '.join(sys.argv[1:])}".strip(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "others": f"{os.getloadavg()[0]:.1f} processes wanted to run at the end",
    }
    columns = list(rows[0])
    lines = [
        "Milliseconds from a vote to the next pair, at the server.",
        "",
        f"| {' | '.join(columns)} |",
        f"|{'---|' * len(columns)}",
        *(
            f"| {' | '.join(f'{value:,.1f}' if isinstance(value, float) else f'{value:,}' for value in row.values())} |"
            for row in rows
        ),
        "",
        *(f"{name}: {value}" + ("  " if name != "others" else "") for name, value in about.items()),
    ]
    (RESULTS / "annotating.json").write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "annotating.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
