"""Where votes are kept: one SQLite file, or a Postgres database where several hosts share it, by the same code.

What people say is a list of events that only ever grows (``vote``): a vote, a skip, an undo. Everything else says what
there is to ask (``pair``), who was asked what and in which order of sides (``assignment``), and what the last event on
an assignment was, so that the next question is found without reading the whole list.

SQLite runs with a write-ahead log and full synchronisation: an event that was acknowledged is on the disk. All writers
take turns (``Store.write``), readers see one moment of the store and disturb nobody (``Store.read``).
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sql
from sqlalchemy import Boolean, Column, Float, ForeignKey, Index, Integer, MetaData, String, Table, UniqueConstraint
from sqlalchemy.engine import URL, Connection, Engine, make_url

from dipole.data.native import text_to_json
from dipole.errors import ConfigError, DataError
from dipole.group import Group

SCHEMA = 1
"""Of the tables; a store of a later one is refused."""

BUSY_SECONDS = 5.0
"""How long a writer waits for its turn before it says that nothing was saved."""

_TURN = 4_217_604_201
"""Name of the lock by which writers take turns in Postgres; any number does."""

TABLES = MetaData()

setting = Table("setting", TABLES, Column("name", String, primary_key=True), Column("value", String, nullable=False))

pair = Table(
    "pair",
    TABLES,
    Column("id", Integer, primary_key=True),
    Column("group_id", String, nullable=False),
    Column("i", Integer, nullable=False),
    Column("j", Integer, nullable=False),
    Column("digest", String, nullable=False),
    Column("active", Boolean, nullable=False, default=True),
    Column("priority", Float, nullable=False, default=0.0),
    Column("opened", Integer, unique=True),
    Column("votes", Integer, nullable=False, default=0),
    UniqueConstraint("group_id", "i", "j"),
    Index("pair_by_turn", "active", "opened", "votes", "priority"),
)
"""Two completions of a group, i < j. ``opened`` counts the pairs that were asked about, in order."""

person = Table(
    "person",
    TABLES,
    Column("id", Integer, primary_key=True),
    Column("name", String, nullable=False, unique=True),
)

selection = Table(
    "selection",
    TABLES,
    Column("pair_id", ForeignKey("pair.id"), primary_key=True),
    Column("strategy", String, nullable=False),
    Column("arm", String, nullable=False),
    Column("probability", Float, nullable=False),
    Column("eligible", Integer, nullable=False),
    Column("at", Float, nullable=False),
)
"""How a pair came to be asked about: never changed, and exported with its votes."""

assignment = Table(
    "assignment",
    TABLES,
    Column("id", Integer, primary_key=True),
    Column("key", String, nullable=False, unique=True),
    Column("pair_id", ForeignKey("pair.id"), nullable=False),
    Column("person_id", ForeignKey("person.id"), nullable=False),
    Column("swapped", Boolean, nullable=False),
    Column("state", String, nullable=False),
    Column("expires", Float, nullable=False),
    Column("turn", Float, nullable=False),
    Column("last", String),
    UniqueConstraint("pair_id", "person_id"),
    Index("assignment_of_person", "person_id", "state", "turn", "pair_id"),
    Index("assignment_of_pair", "pair_id", "person_id", "state", "expires"),
)
"""A pair before a person. ``swapped``: completion j stands left; drawn once. ``state``: held, voted or skipped."""

vote = Table(
    "vote",
    TABLES,
    Column("seq", Integer, primary_key=True, autoincrement=True),
    Column("id", String, nullable=False, unique=True),
    Column("assignment_id", ForeignKey("assignment.id"), nullable=False),
    Column("choice", String, nullable=False),
    Column("slightly", Boolean, nullable=False, default=False),
    Column("reason", String, nullable=False, default=""),
    Column("ms", Integer, nullable=False, default=0),
    Column("at", Float, nullable=False),
    Column("supersedes", String),
    Index("vote_of_assignment", "assignment_id"),
)
"""Events, never changed and never removed. ``id`` is drawn by the browser, so that what is sent twice counts once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """A pair to ask about.

    Args:
        group_id: of its group.
        i: position of a completion.
        j: position of another one, i < j.
        digest: of the texts, see ``digest``.
        priority: the higher, the sooner it is asked about.
    """

    group_id: str
    i: int
    j: int
    digest: str
    priority: float = 0.0


class Store:
    """An open store; ``open_store`` makes one.

    Args:
        engine: of SQLAlchemy.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._turn = threading.Lock()
        self._reader: Engine
        self._writer: Engine = engine
        if engine.dialect.name == "sqlite":
            self._reader = engine.execution_options(begin="BEGIN")
            self._writer = engine.execution_options(begin="BEGIN IMMEDIATE")
        else:
            self._reader = engine.execution_options(isolation_level="REPEATABLE READ")

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A connection that sees one moment of the store, however long it is used."""
        with self._reader.begin() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A connection that nobody else writes beside; what it wrote is on the disk when the block ends, or nothing is.

        Raises:
            sqlalchemy.exc.OperationalError: another process didn't let go in time, or the disk is full.
        """
        # SQLite's own waiting is a loop of short sleeps, in which an unlucky thread may never get its turn.
        with self._turn, self._writer.begin() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(sql.select(sql.func.pg_advisory_xact_lock(_TURN)))
            yield connection

    def close(self) -> None:
        """Lets go of the file."""
        self._engine.dispose()

    @property
    def secret(self) -> str:
        """Random characters that were drawn when the store was made, and are known to nobody else."""
        with self.read() as connection:
            return str(connection.scalar(sql.select(setting.c.value).where(setting.c.name == "secret")))

    def register(self, items: Sequence[Item]) -> None:
        """Makes these the pairs that are asked about, with their priorities; others are kept but rest.

        Raises:
            DataError: a pair that was asked about has other texts now.
        """
        with self.write() as connection:
            known = {(row.group_id, row.i, row.j): row for row in connection.execute(sql.select(pair))}
            new, old = [], []
            for item in items:
                row = known.pop((item.group_id, item.i, item.j), None)
                values = {"digest": item.digest, "priority": item.priority, "active": True}
                if row is None:
                    new.append(values | {"group_id": item.group_id, "i": item.i, "j": item.j})
                    continue
                if row.opened is not None and row.digest != item.digest:
                    raise other_texts(item.group_id)
                if (row.digest, row.priority, row.active) != (item.digest, item.priority, True):
                    old.append(values | {"row": row.id})
            old += [
                {"row": row.id, "digest": row.digest, "priority": row.priority, "active": False}
                for row in known.values()
                if row.active
            ]
            if new:
                connection.execute(sql.insert(pair), new)
            if old:
                changed: dict[str, Any] = {name: sql.bindparam(name) for name in ("digest", "priority", "active")}
                connection.execute(sql.update(pair).where(pair.c.id == sql.bindparam("row")).values(changed), old)

    def person(self, name: str) -> int:
        """The number of a person, who is written down when new."""
        with self.read() as connection:
            found = connection.scalar(sql.select(person.c.id).where(person.c.name == name))
        if found is not None:
            return int(found)
        with self.write() as connection:
            found = connection.scalar(sql.select(person.c.id).where(person.c.name == name))
            if found is None:
                found = connection.execute(sql.insert(person).values(name=name)).inserted_primary_key[0]  # type: ignore[index]
        return int(found)

    def names(self) -> list[str]:
        """Everyone who was here, in order of arrival."""
        with self.read() as connection:
            return list(connection.scalars(sql.select(person.c.name).order_by(person.c.id)))


def other_texts(group_id: str) -> DataError:
    """The error to raise where votes are of other texts than a group has."""
    return DataError(
        "people were asked about other texts under this id",
        where=f"group '{group_id}'",
        remedy="Give the changed group a new id, or use a new store.",
    )


def digest(group: Group, i: int, j: int) -> str:
    """A fingerprint of what people see of a pair."""
    texts = [text_to_json(text) for text in (group.prompt, group.completions[i].text, group.completions[j].text)]
    return hashlib.sha256(json.dumps(texts, sort_keys=True).encode()).hexdigest()


def open_store(where: str) -> Store:
    """Opens a store, and makes one where there is none.

    Args:
        where: a file, which only its owner may read; or ``postgresql://host/name``, with the password where Postgres
            looks for it (``PGPASSWORD`` or ``~/.pgpass``).

    Raises:
        ConfigError: the address holds a password, or names another kind of database.
        DataError: the file is damaged, of a later Dipole, or can't be written.
    """
    engine = _postgres(make_url(where)) if "://" in where else _sqlite(Path(where))
    try:
        _prepare(engine, where)
    except sql.exc.DBAPIError as error:
        engine.dispose()
        raise DataError(
            f"can't be used as a store of votes ({error.orig})",
            where=where,
            remedy=f"If it is damaged, {_backup(Path(where))} is how it was when it was last opened"
            if _backup(Path(where)).exists()
            else "Check that it is a store, not damaged, and that you may write it",
        ) from error
    return Store(engine)


def _postgres(url: URL) -> Engine:
    if url.get_backend_name() != "postgresql":
        raise ConfigError(
            f"'{url.get_backend_name()}' is no database that Dipole knows",
            where="--store",
            remedy="Name a file, or postgresql://host/name",
        )
    if url.password is not None:
        raise ConfigError(
            "the address holds a password, which everybody on this machine can see",
            where="--store",
            remedy="Leave it out, and set PGPASSWORD or write it into ~/.pgpass",
        )
    try:
        return sql.create_engine(url.set(drivername="postgresql+psycopg"))
    except ModuleNotFoundError as error:
        raise ConfigError(
            "Postgres needs the package psycopg", where="--store", remedy="Install 'psycopg[binary]'"
        ) from error


def _sqlite(path: Path) -> Engine:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))  # the log beside it takes over who may read it
    except OSError as error:
        raise DataError(f"can't be written ({error.strerror})", where=str(path), remedy="Name another file") from error
    engine = sql.create_engine(URL.create("sqlite", database=str(path)), connect_args={"timeout": BUSY_SECONDS})

    @sql.event.listens_for(engine, "connect")
    def connected(connection: Any, _: object) -> None:
        connection.isolation_level = None  # transactions begin below, where it is known whether they write
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    @sql.event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql(connection.get_execution_options().get("begin", "BEGIN IMMEDIATE"))

    return engine


def _prepare(engine: Engine, where: str) -> None:
    """Checks a store, keeps a copy of a good one, and makes the tables of a new one."""
    if not sql.inspect(engine).has_table("setting"):
        if engine.dialect.name == "sqlite" and sql.inspect(engine).get_table_names():
            raise DataError("is a database of something else", where=where, remedy="Name another file")
        _create(engine)
        return
    with engine.begin() as connection:
        schema = int(connection.scalar(sql.select(setting.c.value).where(setting.c.name == "schema")) or 0)
    if schema > SCHEMA:
        raise DataError(
            f"was made by a newer Dipole (schema {schema}, this one knows {SCHEMA})",
            where=where,
            remedy="Use a newer Dipole.",
        )
    if engine.dialect.name == "sqlite":
        _check_and_copy(engine, where)


def _create(engine: Engine) -> None:
    values: Mapping[str, str] = {"schema": str(SCHEMA), "secret": secrets.token_hex(32), "made": str(time.time())}
    with engine.begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(sql.select(sql.func.pg_advisory_xact_lock(_TURN)))
        TABLES.create_all(connection)
        if connection.scalar(sql.select(setting.c.value).where(setting.c.name == "schema")) is None:
            connection.execute(sql.insert(setting), [{"name": name, "value": value} for name, value in values.items()])


def _check_and_copy(engine: Engine, where: str) -> None:
    """Refuses a damaged file; a good one is copied, so that there is something to go back to."""
    backup = _backup(Path(where))
    draft = backup.with_name(f"{backup.name}.{secrets.token_hex(4)}")
    with closing(engine.raw_connection()) as connection:
        sqlite = connection.cursor()
        fault, *_ = sqlite.execute("PRAGMA quick_check(1)").fetchone()
        if fault != "ok":
            raise DataError(f"is damaged ({fault})", where=where, remedy=f"Go back to {backup}, if it is there")
        try:
            os.close(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
            sqlite.execute("VACUUM INTO ?", (str(draft),))
            os.replace(draft, backup)
        except (OSError, sqlite3.Error):
            draft.unlink(missing_ok=True)  # a full disk is no reason to refuse a store that is in order


def _backup(path: Path) -> Path:
    return path.with_name(f"{path.name}.backup")
