"""What models have been asked and what they answered, in one SQLite file: replies by content, and a ledger of calls.

A reply's key is a hash of everything that it depends on, so a stale hit is impossible; whoever asks the same again gets
the same reply without a call. Every call is in the ledger before it is sent: after ``kill -9`` the ledger has all that
reached the server, and all replies but those on their way. SQLite runs with a write-ahead log and full synchronisation.
Values are JSON, never pickles, and each has a checksum; a damaged one is asked for again.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from time import time
from typing import Any, Self

from dipole.errors import JudgeError

FORMAT = 1
BUSY_SECONDS = 30.0

_TABLES = """
CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, value TEXT NOT NULL, checksum TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS calls (
    id INTEGER PRIMARY KEY, key TEXT NOT NULL, sent REAL NOT NULL, state TEXT NOT NULL,
    tokens INTEGER NOT NULL, cost REAL NOT NULL
);
"""


@dataclass(frozen=True, slots=True)
class Spent:
    """What calls have used: how many there were, tokens (prompts and replies), and money."""

    calls: int = 0
    tokens: int = 0
    cost: float = 0.0


def content_key(content: Mapping[str, Any]) -> str:
    """A hash of JSON values, whatever the order of their keys."""
    canonical = json.dumps(content, sort_keys=True, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


class Cache:
    """Replies and the ledger of calls. Threads may share one, and processes may share its file.

    Args:
        file: made, with its folder, if it isn't there, and readable by its owner alone; ``None`` keeps everything in
            memory.

    Raises:
        JudgeError: the file is no such cache, is damaged, or can't be opened.
    """

    def __init__(self, file: str | Path | None = None) -> None:
        self.file = None if file is None else Path(file)
        self._lock = threading.Lock()
        try:
            if self.file is not None:
                self.file.parent.mkdir(parents=True, exist_ok=True)
                os.close(os.open(self.file, os.O_CREAT | os.O_RDWR, 0o600))
            self._connection = sqlite3.connect(
                self.file or ":memory:", timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = FULL")
            self._check_format()
            self._connection.executescript(_TABLES)
        except (sqlite3.Error, OSError) as fault:
            raise self._fault(fault) from fault

    def _check_format(self) -> None:
        (found,) = self._connection.execute("PRAGMA user_version").fetchone()
        if found > FORMAT:
            raise JudgeError(
                f"was written by a newer Dipole (format {found}, this one knows {FORMAT})",
                where=str(self.file),
                remedy="Use that one, or name another file",
            )
        tables = {name for (name,) in self._connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if found == 0 and tables:
            raise JudgeError(
                "is a database of something else", where=str(self.file), remedy="Name another file for the cache"
            )
        self._connection.execute(f"PRAGMA user_version = {FORMAT}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file."""
        with self._lock:
            self._connection.close()

    def get(self, key: str) -> Any:
        """The value kept under a key; ``None`` if there is none, or it is damaged."""
        row = self._run("SELECT value, checksum FROM replies WHERE key = ?", key).fetchone()
        if row is None or _checksum(key, row[0]) != row[1]:
            return None
        return json.loads(row[0])

    def put(self, key: str, value: Any) -> None:
        """Keeps a JSON value; it is on the disk when this returns."""
        text = json.dumps(value, ensure_ascii=True, allow_nan=False)
        self._run("INSERT OR REPLACE INTO replies VALUES (?, ?, ?)", key, text, _checksum(key, text))

    def begin(self, key: str, spent: Spent) -> int:
        """Writes down a call that is about to be sent, with what it may use at most. Returns its number."""
        row = (key, time(), "sent", spent.tokens, spent.cost)
        number = self._run("INSERT INTO calls (key, sent, state, tokens, cost) VALUES (?, ?, ?, ?, ?)", *row).lastrowid
        assert number is not None
        return number

    def finish(self, number: int, state: str, spent: Spent | None = None) -> None:
        """Writes down how a call ended, ``answered`` or why it failed, and what it used, where that is known."""
        used = (None, None) if spent is None else (spent.tokens, spent.cost)
        statement = "UPDATE calls SET state = ?, tokens = COALESCE(?, tokens), cost = COALESCE(?, cost) WHERE id = ?"
        self._run(statement, state, *used, number)

    def spent(self) -> Spent:
        """What all calls in the ledger have used, those of earlier runs included."""
        row = self._run("SELECT COUNT(*), COALESCE(SUM(tokens), 0), COALESCE(SUM(cost), 0) FROM calls").fetchone()
        return Spent(int(row[0]), int(row[1]), float(row[2]))

    def _run(self, statement: str, *values: Any) -> sqlite3.Cursor:
        try:
            with self._lock:
                return self._connection.execute(statement, values)
        except sqlite3.Error as fault:
            raise self._fault(fault) from fault

    def _fault(self, fault: Exception) -> JudgeError:
        reason = fault.strerror if isinstance(fault, OSError) else str(fault)
        return JudgeError(
            f"the cache of replies can't be used ({reason})",
            where=str(self.file),
            remedy="Name another file, or remove this one: its replies will be asked for again",
        )


def _checksum(key: str, text: str) -> str:
    return hashlib.sha256(f"{key}\n{text}".encode()).hexdigest()[:32]
