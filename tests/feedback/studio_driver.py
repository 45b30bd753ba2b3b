"""A process that has imported everything and forks a server for each order it reads, so that a start costs no import.

Each server is a real process on a real port. An order may have it killed at the n-th vote: before the vote is written,
after it is on the disk but before anybody is told, or when the answer is about to be sent. The production code knows
nothing of it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from dipole.data.formats import load_groups
from dipole.feedback.queue import Queue, Rules
from dipole.feedback.store import open_store
from dipole.feedback.studio import app as module
from dipole.feedback.studio.server import listen, open_studio, serve


def arrange(moment: str, number: int) -> None:
    """Kills this process at a moment of the n-th vote."""
    votes = 0
    answer, desk = Queue.answer, module.Studio._desk

    def answering(self: Queue, *args: Any) -> Any:
        nonlocal votes
        votes += 1
        if votes == number and moment == "before":
            die()
        done = answer(self, *args)
        if votes == number and moment == "written":
            die()
        return done

    async def replying(self: module.Studio, *args: Any) -> Any:
        done = await desk(self, *args)
        if votes == number and moment == "reply":
            die()
        return done

    Queue.answer = answering  # type: ignore[method-assign]
    module.Studio._desk = replying  # type: ignore[method-assign]


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def child(order: dict[str, Any], tell: int) -> None:
    folder = Path(order["folder"])
    store = open_store(str(folder / "votes.db"))
    groups = load_groups(folder / "groups.jsonl")
    rules = Rules(votes_per_pair=order["votes_per_pair"])
    studio, _, token = open_studio(groups, folder, store, rules)
    place = listen("127.0.0.1", order["port"])
    if order["moment"]:
        arrange(order["moment"], order["number"])
    os.write(tell, json.dumps({"address": place.address, "token": token, "pid": os.getpid()}).encode())
    os.close(tell)
    serve(studio.app(place.hosts), place.listener)


def main() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # whoever died needs no wait
    for line in sys.stdin:
        hear, tell = os.pipe()
        if not os.fork():
            os.close(hear)
            try:
                child(json.loads(line), tell)
            finally:
                os._exit(1)
        os.close(tell)
        with os.fdopen(hear) as said:
            print(said.read(), flush=True)


if __name__ == "__main__":
    main()
