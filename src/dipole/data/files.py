"""Bytes to rows: opens what a person names and yields its rows, each with the place that a message can point at.

Knows suffixes, encodings, compression and damage; knows nothing of prompts or completions. Everything is streamed but
``.json``, which has to be read whole. A line ends at a line feed and nowhere else, so
that text may hold any other separator.
"""

from __future__ import annotations

import csv
import gzip
import os
import re
import uuid
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from json import JSONDecodeError
from pathlib import Path
from typing import IO, Any, NamedTuple

from dipole.data.arrow import hub_rows, load_hub, parquet_rows
from dipole.data.rows import Row, as_row, parse_json
from dipole.errors import DataError

LINE_LIMIT = 64 * 2**20
"""Bytes a line may have. A line has to be in memory whole, so something has to bound it."""

JSON_FILE_LIMIT = 2**30
"""Bytes a ``.json`` file may have."""

BOMB_SIZE = 2**30
"""Bytes from which on a compressed file is suspected when it grows by more than ``BOMB_RATIO``."""

BOMB_RATIO = 200
"""Text compresses tenfold, very repetitive text fiftyfold; gzip itself ends at a thousand."""

HELD_OUT = frozenset({"eval", "evaluation", "test", "validation", "valid", "val", "dev"})
"""Names of splits that are kept from training."""

_SPLITS = HELD_OUT | {"train"}
_MAGIC = {b"PAR1": ".parquet", b"\x1f\x8b": ".gz", b"PK\x03\x04": ".zip"}
_HUB_NAME = re.compile(r"(?P<name>[\w-][\w.-]*/[\w-][\w.-]*)(?::(?P<split>[\w.-]+))?")


class Table(NamedTuple):
    """One file, or one split of a hub dataset; all of its rows have to be of one dialect.

    Args:
        name: the file, for messages.
        split: the split that its name tells, if any.
        rows: a ``DataError`` stands for a row that can't be parsed while the rows after it can.
        untyped: whether all values are strings, as in CSV.
    """

    name: str
    split: str | None
    rows: Iterator[Row | DataError]
    untyped: bool = False


def open_tables(source: str | Path) -> Iterator[Table]:
    """The tables of a file, of a folder (its data files, by name), or of a hub dataset.

    Args:
        source: a path; or, where no such path exists, ``"owner/name"`` or ``"owner/name:split"`` of a hub dataset.

    Raises:
        DataError: nothing is there, or it is of no known kind.
    """
    path = Path(source)
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if _kind(file) and file.is_file() and file.name[0] != ".")
        if not files:
            raise DataError("the folder holds no data file", where=str(path), remedy=f"Dipole reads {_known()}.")
        for file in files:
            yield _table(file)
    elif path.exists():
        yield _table(path)
    else:
        hub = _HUB_NAME.fullmatch(str(source))
        if hub is None or _kind(path) or path.parent.exists():
            raise DataError("there is no such file or folder", where=str(source), remedy="Check the path.")
        yield from _hub_tables(hub["name"], hub["split"])


def folder_of(source: str | Path) -> Path | None:
    """The folder that a data file's references are relative to; ``None`` for a dataset of the hub."""
    path = Path(source)
    if not path.exists():
        return None
    return path if path.is_dir() else path.parent


def split_of_name(name: str) -> str | None:
    """The split that the name of a file or a hub split begins with: ``"train"`` for ``train-00000-of-00002``."""
    word = re.split(r"[-_.]", name.lower(), maxsplit=1)[0]
    return word if word in _SPLITS else None


@lru_cache(maxsize=64)  # asked of every group, and there are few names
def is_held_out(split: str | None) -> bool:
    """Whether groups of that split are kept from training."""
    return split is not None and split_of_name(split) in HELD_OUT


def write_lines(lines: Iterable[str], path: str | Path) -> int:
    """Writes lines to ``path``, compressed if it ends in ``.gz``, all of them or none: a reader never sees half a file.

    The same lines give the same bytes: the gzip header holds neither a time nor a name.

    Returns:
        How many lines were written.

    Raises:
        DataError: the name doesn't end in ``.jsonl`` or ``.jsonl.gz``, or the file can't be written.
    """
    path = Path(path)
    if not path.name.endswith((".jsonl", ".jsonl.gz")):
        raise DataError("only JSON Lines are written", where=str(path), remedy="Name it .jsonl or .jsonl.gz.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _replacing(path) as file:
            compressed = gzip.GzipFile("", "wb", fileobj=file, mtime=0) if path.suffix == ".gz" else None
            count = 0
            for line in lines:
                (compressed or file).write(line.encode() + b"\n")
                count += 1
            if compressed:
                compressed.close()
    except OSError as error:
        raise DataError(f"can't be written ({error.strerror or error})", where=str(path)) from error
    return count


@contextmanager
def _replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file beside ``path`` that takes its place when all has gone well, and is gone when not."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    with open(temporary, "xb") as file:
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def _known() -> str:
    return f"{', '.join(_READERS)} (all but .parquet also with .gz)"


def _kind(path: Path) -> str | None:
    """The suffix that says how to read a file, without ``.gz``; ``None`` if there is no way."""
    packed = path.suffix.lower() == ".gz"
    suffix = (path.with_suffix("") if packed else path).suffix.lower()
    return suffix if suffix in _READERS and not (packed and suffix == ".parquet") else None


def _table(path: Path) -> Table:
    kind = _kind(path)
    if kind is None:
        raise DataError(f"'{path.suffix}' is no known kind of data file", where=str(path), remedy=f"Use {_known()}.")
    return Table(str(path), split_of_name(path.name), _guarded(path, _READERS[kind]), untyped=kind == ".csv")


def _guarded(path: Path, reader: Callable[[Path], Iterator[Row | DataError]]) -> Iterator[Row | DataError]:
    """The reader's rows; what the operating system has to say becomes a ``DataError``, and so does an empty file."""
    try:
        _check_magic(path)
        empty = True
        for row in reader(path):
            empty = False
            yield row
    except OSError as error:
        raise DataError(f"can't be read ({error.strerror or error})", where=str(path)) from error
    if empty:
        raise DataError("the file holds no rows", where=str(path), remedy="Check that it was written to its end.")


def _check_magic(path: Path) -> None:
    with open(path, "rb") as file:
        head = file.read(4)
    for magic, suffix in _MAGIC.items():
        if head.startswith(magic) and path.suffix.lower() != suffix:
            raise DataError(
                f"the name ends in '{path.suffix}', but by its first bytes it is a '{suffix}' file",
                where=str(path),
                remedy="Rename it, or unpack it." if suffix == ".zip" else f"Rename it to end in '{suffix}'.",
            )


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Number, from 1, and bytes of every line, its end included."""
    number, size = 0, 0
    packed = path.stat().st_size if path.suffix.lower() == ".gz" else None
    try:
        with gzip.open(path, "rb") if path.suffix.lower() == ".gz" else open(path, "rb") as file:
            while line := file.readline(LINE_LIMIT + 1):
                number += 1
                if len(line) > LINE_LIMIT:
                    raise DataError(
                        f"the line is longer than {LINE_LIMIT // 2**20} MiB",
                        where=f"{path}:{number}",
                        remedy="Write one row a line; a whole JSON list belongs in a .json file.",
                    )
                size += len(line)
                if packed is not None and size > BOMB_SIZE and size > BOMB_RATIO * packed:
                    raise DataError(
                        f"grows by more than {BOMB_RATIO} times when it is unpacked, as a decompression bomb does",
                        where=f"{path}:{number}",
                        remedy="Unpack it yourself, look at it, and give the unpacked file.",
                    )
                yield number, line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"the compressed data are damaged or cut short ({error})",
            where=f"{path}:{number + 1}",
            remedy="Copy or download the file again.",
        ) from error


def _decode(raw: bytes, where: str) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise DataError(
            f"the text isn't UTF-8 (byte 0x{raw[error.start]:02x} at byte {error.start + 1} of the line)",
            where=where,
            remedy="Save the file as UTF-8; if it was UTF-8, it is damaged here.",
        ) from error


def _json_lines(path: Path) -> Iterator[Row | DataError]:
    place, name = str(path), path.name
    for number, raw in _lines(path):
        if raw.isspace():
            continue
        where = f"{place}:{number}"
        try:
            yield as_row(parse_json(_decode(raw, where), where), where, f"{name}:{number}")
        except DataError as error:
            yield error


def _json_file(path: Path) -> Iterator[Row | DataError]:
    lines = []
    size = 0
    for number, raw in _lines(path):
        size += len(raw)
        if size > JSON_FILE_LIMIT:
            raise DataError("a .json file this large can't be read whole", where=str(path), remedy="Use .jsonl.")
        lines.append(_decode(raw, f"{path}:{number}"))
    text = "".join(lines)
    if not text.strip():
        return
    try:
        value = parse_json(text, str(path))
    except DataError as error:
        cause = error.__cause__
        if not isinstance(cause, JSONDecodeError):
            raise
        if cause.msg == "Extra data":  # several values, one after the other: JSON Lines by another name
            yield from _json_lines(path)
            return
        raise DataError(error.problem, where=f"{path}:{cause.lineno}", remedy=error.remedy) from cause
    for number, values in enumerate(_list_in(value, path), start=1):
        yield as_row(values, f"{path}:row {number}", f"{path.name}:{number}")


def _list_in(value: Any, path: Path) -> list[Any]:
    """The rows of a JSON file: the list that it is, or the one list of objects in the object that it is."""
    if isinstance(value, list):
        return value
    if isinstance(value, dict):
        lists = [item for item in value.values() if isinstance(item, list) and item and isinstance(item[0], dict)]
        if len(lists) == 1:
            return lists[0]
    raise DataError(
        "holds neither a list of rows nor an object with one such list",
        where=str(path),
        remedy='Write [{"prompt": …}, …], or one row a line in a .jsonl file.',
    )


def _csv(path: Path) -> Iterator[Row | DataError]:
    # The limit is the module's own, for the whole process; raising it harms nobody.
    csv.field_size_limit(max(csv.field_size_limit(), LINE_LIMIT))
    reader = csv.reader((_csv_line(raw, f"{path}:{number}") for number, raw in _lines(path)), strict=True)
    header: list[str] | None = None
    while True:
        start = reader.line_num + 1
        where = f"{path}:{start}"
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise DataError(f"isn't CSV ({error})", where=where, remedy="Check the quotes from here on.") from error
        if cells is None:
            return
        if not cells:
            continue
        if header is None:
            header = cells
            if len(set(header)) < len(header):
                raise DataError("two columns have the same name", where=where, remedy="Rename one.")
        elif len(cells) != len(header):
            yield DataError(
                f"has {len(cells)} cells, but the header names {len(header)} columns",
                where=where,
                remedy="Check for an unquoted comma, a missing cell, or a file cut short.",
            )
        else:
            yield Row(where, f"{path.name}:{start}", dict(zip(header, cells, strict=True)))


def _csv_line(raw: bytes, where: str) -> str:
    if b"\0" in raw:
        raise DataError("the line holds a NUL byte", where=where, remedy="The file is damaged; write it again.")
    return _decode(raw, where)


def _hub_tables(name: str, split: str | None) -> Iterator[Table]:
    splits = load_hub(name, split)
    words = [split_of_name(key) or key for key in splits]
    if len(set(words)) < len(words):
        raise DataError(
            f"the dataset has the splits {', '.join(splits)}, and several mean the same",
            where=name,
            remedy=f"Name the one you want, as in {name}:{next(iter(splits))}.",
        )
    for key, word in zip(splits, words, strict=True):
        yield Table(f"{name}:{key}", word, hub_rows(splits[key], f"{name}:{key}", key))


_READERS: dict[str, Callable[[Path], Iterator[Row | DataError]]] = {
    ".jsonl": _json_lines,
    ".json": _json_file,
    ".csv": _csv,
    ".parquet": parquet_rows,
}
