"""A process that has imported everything and forks a run for each order it reads, so that a run costs no start.

Each run is a real process. An order may arrange for it to be killed, to get a signal, or to meet an error of the
operating system at the n-th call of a named function: the production code knows nothing of it.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent.parent / "train"), str(Path(__file__).parent.parent)]

import torch  # noqa: E402
from poison import poison  # noqa: E402

from dipole.config import train_config  # noqa: E402
from dipole.errors import DipoleError  # noqa: E402
from dipole.progress import Silent  # noqa: E402
from dipole.train import checkpoint, run  # noqa: E402

WRITES = (
    "shutil.rmtree",
    "pathlib.Path.mkdir",
    "pathlib.Path.rename",
    *(f"dipole.train.checkpoint.{name}" for name in ("save_file", "_sync", "write_json")),
)
"""What a save does to the disk."""


class Speaking(Silent):
    """Writes down what a run says."""

    def say(self, text: str) -> None:
        print(text, flush=True)


def replaced(name: str, around: Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]) -> None:
    """Puts ``around(function, args, kwargs)`` in place of a function, given by its full name."""
    path, _, attribute = name.rpartition(".")
    try:
        owner: Any = importlib.import_module(path)
    except ModuleNotFoundError:  # a class
        module, _, kind = path.rpartition(".")
        owner = getattr(importlib.import_module(module), kind)
    function = getattr(owner, attribute)
    setattr(owner, attribute, lambda *args, **kwargs: around(function, args, kwargs))


def arrange(event: dict[str, Any]) -> None:
    """Has something happen at a call of a function.

    Args:
        event: ``at`` the function's full name; ``call`` which one, from 1 (0: every); ``when`` before or after it;
            ``signals`` to send to this process, or ``errno`` to raise.
    """
    calls = 0

    def around(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        nonlocal calls
        calls += 1
        due = event["call"] in (0, calls)
        if due and event.get("errno"):
            raise OSError(event["errno"], os.strerror(event["errno"]), str(args[-1]))
        if due and event["when"] == "before":
            send(event["signals"])
        result = function(*args, **kwargs)
        if due and event["when"] == "after":
            send(event["signals"])
        return result

    replaced(event["at"], around)


def send(signals: list[int]) -> None:
    for number in signals:
        os.kill(os.getpid(), number)


def count_writes(kill_at: int, record: Path | None) -> None:
    """Numbers everything that saves do to the disk, from 1, and kills the process before the one with a number.

    An odd ``save_file`` dies in its middle: half of the file is there.
    """
    number, inside = 0, 0

    def saving(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        nonlocal inside
        inside += 1
        try:
            return function(*args, **kwargs)
        finally:
            inside -= 1

    def write(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        nonlocal number
        if not inside:
            return function(*args, **kwargs)
        number += 1
        path = Path(next(item for item in reversed(args) if isinstance(item, Path)))
        if record is not None:
            with record.open("a") as file:
                file.write(f"{function.__name__} {path.name}\n")
        if number == kill_at:
            if function.__name__ == "save_file" and number % 2:
                function(*args, **kwargs)
                os.truncate(path, path.stat().st_size // 2)
            send([signal.SIGKILL])
        return function(*args, **kwargs)

    for name in WRITES:
        replaced(name, write)
    for name in ("save_checkpoint", "save_final"):
        replaced(f"dipole.train.run.{name}", saving)


def prepare_child(order: dict[str, Any], rank: int, output: Path) -> None:
    """What is special about this process, before it trains."""
    handle = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    if order["ranks"] > 1:
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(order["ranks"]),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(order["port"]),
        }
    for event in order["events"]:
        if event.get("rank", 0) == rank:
            arrange(event)
    if order["kill_at_write"] or order["record"]:
        count_writes(order["kill_at_write"], Path(order["record"]) if order["record"] else None)
    if order["poison"]:
        poison(order["poison"], "logps", setattr)
    if order["file_limit"]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (order["file_limit"], order["file_limit"]))


def child(order: dict[str, Any], rank: int, output: Path) -> int:
    """A run; its exit status is the command line's."""
    try:
        prepare_child(order, rank, output)
        run.train(train_config(**order["config"]), Speaking())
    except DipoleError as fault:
        print(f"error: {fault}", flush=True)
        return fault.exit_status
    except KeyboardInterrupt:
        return 130
    except BaseException:
        traceback.print_exc(file=sys.stdout)
        sys.stdout.flush()
        return 1
    return 0


def obey(order: dict[str, Any]) -> dict[str, Any]:
    """Runs all ranks of an order to their ends."""
    began = time.monotonic()
    outputs = [Path(order["folder"]) / f"rank-{rank}.txt" for rank in range(order["ranks"])]
    running = {}
    for rank, output in enumerate(outputs):
        if not (pid := os.fork()):
            status = 1
            try:
                status = child(order, rank, output)
            finally:
                os._exit(status)
        running[pid] = rank
    pids, statuses = list(running), [0] * order["ranks"]
    kill_after = order["kill_after"]
    while running:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid:
            statuses[running.pop(pid)] = os.waitstatus_to_exitcode(status)
            continue
        spent = time.monotonic() - began
        if kill_after is not None and spent >= kill_after:
            os.kill(pids[0], signal.SIGKILL)
            kill_after = None
        if spent > order["timeout"]:
            for left in running:
                os.kill(left, signal.SIGKILL)
        time.sleep(0.002)
    said = [output.read_text(errors="replace") if output.exists() else "" for output in outputs]
    return {"statuses": statuses, "said": said, "seconds": time.monotonic() - began}


def main() -> None:
    torch.set_num_threads(1)
    assert checkpoint.save_file
    for line in sys.stdin:
        print(json.dumps(obey(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
