"""One run at a time in a folder.

The operating system holds the lock and drops it when the process ends, however that happens. The file says who has it.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dipole.errors import ConfigError
from dipole.train.track import now

NAME = "run.lock"


@contextmanager
def locked(folder: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Makes a run folder this process's own. One that was made here and stays empty is removed again.

    Args:
        folder: of the run.
        say: is told of a lock that a killed process left behind.

    Raises:
        ConfigError: another run has the folder, or nobody can write to it.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    path = folder / NAME
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = _open(path)
    except OSError as fault:
        raise ConfigError(
            f"nothing can be written there: {fault.strerror}", where=str(folder), remedy="Choose another --output"
        ) from fault
    try:
        if owner := os.read(handle, 1000).decode(errors="replace").strip():
            say(f"The run before ({_described(owner)}) didn't come to its end; its lock is taken over.")
        _write_owner(handle)
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)
        with suppress(OSError):
            for place in made:
                place.rmdir()


def _open(path: Path) -> int:
    """A handle of the lock's file, with the lock.

    Raises:
        ConfigError: somebody else has it.
    """
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(handle, 1000).decode(errors="replace").strip()
            os.close(handle)
            raise ConfigError(
                f"another run is writing to this folder: {_described(owner)}",
                where=f"--output {path.parent}",
                remedy="Wait for it, stop it, or choose another --output",
            ) from None
        except OSError:
            os.close(handle)
            raise
        if path.exists() and os.path.samestat(os.fstat(handle), path.stat()):
            return handle
        os.close(handle)  # its owner removed the file between our two calls


def _write_owner(handle: int) -> None:
    os.ftruncate(handle, 0)
    os.lseek(handle, 0, os.SEEK_SET)
    os.write(handle, json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": now()}).encode() + b"\n")


def _described(owner: str) -> str:
    try:
        facts = json.loads(owner)
        return f"process {facts['pid']} on {facts['host']}, since {facts['since']}"
    except (ValueError, KeyError, TypeError):
        return "an unknown process"
