"""Whatever a file holds, a reader answers with groups or with a ``DataError``; it never reads half of a file."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from dipole.data import arrow, files
from dipole.data.audit import audit
from dipole.data.dialects import PAIRS, GroupReader
from dipole.data.formats import load_groups, save_groups
from dipole.data.rows import Row, parse_json
from dipole.errors import DataError
from dipole.group import Group

quick = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
HOSTILE = ["\ufeff", "\x00", "\ud83d", "\u202e\u05d0\u05d1", "e\u0301", "\u2028", "\r\n", "\x1b[2J", "👩‍👩‍👧", '"', ","]
text = st.one_of(
    st.text(st.characters(), min_size=1, max_size=30),
    st.lists(st.sampled_from([*HOSTILE, "a", " "]), min_size=1, max_size=6).map("".join),
)
encodable = text.filter(lambda value: not any(0xD800 <= ord(c) < 0xE000 for c in value))
"""UTF-8 holds no half of a surrogate pair; JSON can, escaped."""
rows = st.lists(
    st.fixed_dictionaries({"prompt": text, "chosen": text, "rejected": text}, optional={"annotator": text}),
    min_size=1,
    max_size=5,
)


def as_jsonl(values: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in values).encode()


def as_json(values: list[dict[str, Any]]) -> bytes:
    return json.dumps(values, indent=1).encode()


def as_csv(values: list[dict[str, Any]]) -> bytes:
    names = ["prompt", "chosen", "rejected"]
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer)
    writer.writerows([names, *([row[name] for name in names] for row in values)])
    return buffer.getvalue().encode()


def as_parquet(values: list[dict[str, Any]]) -> bytes:
    buffer = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(values), buffer)
    return buffer.getvalue()


GOOD = [{"prompt": f"Prompt {n}", "chosen": "é" * 20 + f" {n}", "rejected": f"{n}"} for n in range(20)]
WRITERS: dict[str, Callable[[list[dict[str, Any]]], bytes]] = {
    ".jsonl": as_jsonl,
    ".jsonl.gz": lambda values: gzip.compress(as_jsonl(values)),
    ".json": as_json,
    ".csv": as_csv,
    ".parquet": as_parquet,
}


def read(folder: Path, name: str, data: bytes) -> list[Group] | DataError:
    """What comes of a file; any other fault fails the test."""
    path = folder / name
    path.write_bytes(data)
    try:
        return load_groups(path)
    except DataError as error:
        fault = error
    assert str(fault).startswith(str(path))
    return fault


@pytest.mark.parametrize("suffix", WRITERS)
@quick
@given(data=st.binary(max_size=200))
def test_any_bytes(suffix: str, data: bytes, tmp_path: Path) -> None:
    read(tmp_path, f"a{suffix}", data)


@pytest.mark.parametrize("suffix", WRITERS)
@quick
@given(place=st.integers(0, 10**6), byte=st.integers(0, 255))
def test_any_byte_changed(suffix: str, place: int, byte: int, tmp_path: Path) -> None:
    data = bytearray(WRITERS[suffix](GOOD))
    data[place % len(data)] = byte
    read(tmp_path, f"a{suffix}", bytes(data))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
COLUMNS = """prompt chosen rejected completions judgments completion label responses scores ranks ranking
instruction schema id split meta weight p annotator system"""
columns = st.sampled_from(COLUMNS.split())


@quick
@given(values=st.lists(st.dictionaries(columns, json_values, max_size=6), max_size=3))
def test_any_values_in_known_columns(values: list[dict[str, Any]], tmp_path: Path) -> None:
    read(tmp_path, "a.jsonl", as_jsonl(values))


@pytest.mark.parametrize("suffix", WRITERS)
@quick
@given(place=st.floats(0, 1, exclude_max=True))
def test_a_file_cut_short_is_never_half_read(suffix: str, place: float, tmp_path: Path) -> None:
    """Text that ends with a whole row can't be told from a shorter file, and then all of its rows are read.

    Nor can a CSV that is cut within its last cell: the format has no end.
    """
    data = WRITERS[suffix](GOOD)
    cut = data[: int(place * len(data))]
    found = read(tmp_path, f"a{suffix}", cut)
    if isinstance(found, list):
        assert suffix in (".jsonl", ".csv")
        whole = cut.removesuffix(b"\n").removesuffix(b"\r").count(b"\n") + 1
        assert len(found) == whole - (suffix == ".csv")
        if suffix == ".jsonl":
            assert data[len(cut.rstrip(b"\n")) :].startswith(b"\n")


@pytest.mark.parametrize("suffix", WRITERS)
@quick
@given(values=rows)
def test_what_is_accepted_makes_the_round_trip(suffix: str, values: list[dict[str, Any]], tmp_path: Path) -> None:
    needs_utf8 = suffix in (".csv", ".parquet")
    if needs_utf8:
        keep = [
            {name: "".join(c for c in value if c.isprintable()) or "x" for name, value in row.items()} for row in values
        ]
        values = [{name: row[name] for name in ("prompt", "chosen", "rejected")} for row in keep]
    found = read(tmp_path, f"a{suffix}", WRITERS[suffix](values))
    if isinstance(found, DataError):
        assert "chat written as text" in str(found) or "turn" in str(found), found
        return
    assert [group.id for group in found] == [group.id for group in load_groups(tmp_path / f"a{suffix}")]
    save_groups(found, tmp_path / "b.jsonl.gz")
    assert load_groups(tmp_path / "b.jsonl.gz") == found
    if all(isinstance(group.prompt, str) for group in found):
        assert [(group.prompt, *(answer.text for answer in group.completions)) for group in found] == [
            (row["prompt"], row["chosen"], row["rejected"]) for row in values
        ]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=rows)
def test_an_audit_takes_whatever_was_read(values: list[dict[str, Any]], tmp_path: Path) -> None:
    found = read(tmp_path, "a.jsonl", as_jsonl(values))
    if isinstance(found, list):
        report = audit(found, eval_groups=found, depth="full")
        json.dumps(report.to_json(), allow_nan=False).encode()


# Load and malice


def test_windows_line_ends_and_a_byte_order_mark(tmp_path: Path) -> None:
    plain = read(tmp_path, "a.jsonl", as_jsonl(GOOD))
    assert read(tmp_path, "a.jsonl", b"\xef\xbb\xbf" + as_jsonl(GOOD).replace(b"\n", b"\r\n")) == plain


def test_ten_thousand_turns(tmp_path: Path) -> None:
    turns = [{"role": ("user", "assistant")[n % 2], "content": f"turn {n}"} for n in range(9_999)]
    row = {"prompt": turns, "chosen": [{"role": "assistant", "content": "a"}], "rejected": "b"}
    (group,) = load_groups(write(tmp_path / "a.jsonl", as_jsonl([row])))
    assert len(group.prompt) == 9_999
    assert audit([group]).errors == ()


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def test_a_gzip_bomb_is_refused_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "BOMB_SIZE", 2**20)
    line = json.dumps({"prompt": "x" * 1000, "chosen": "a", "rejected": "b"}).encode() + b"\n"
    path = write(tmp_path / "a.jsonl.gz", gzip.compress(line * 20_000))
    with pytest.raises(DataError, match=r"a\.jsonl\.gz:\d+: grows by more than 200 times"):
        load_groups(path)


def test_a_parquet_bomb_is_refused_before_it_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrow, "BOMB_SIZE", 2**20)
    table = pyarrow.table({"prompt": ["x" * 2**22], "chosen": ["a"], "rejected": ["b"]})
    parquet.write_table(table, tmp_path / "a.parquet", compression="zstd", use_dictionary=False)
    with pytest.raises(DataError, match=r"a\.parquet: grows by more than 500 times"):
        load_groups(tmp_path / "a.parquet")


def test_a_footer_damaged_in_a_column_is_a_message(tmp_path: Path) -> None:
    """Byte by byte; the library that reads Parquet ends the process when asked for a column at nine of these places."""
    table = pyarrow.table({"prompt": ["p"], "chosen": ["a"], "rejected": ["b"]})
    parquet.write_table(table, tmp_path / "a.parquet", compression="none")
    whole = (tmp_path / "a.parquet").read_bytes()
    start = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    for place in range(start, start + 300):
        path = write(tmp_path / "b.parquet", whole[:place] + b")" + whole[place + 1 :])
        with suppress(DataError):
            load_groups(path)


BEGINNINGS = [
    "",
    " ",
    "\u2003",
    "[",
    "{",
    "[{'role': ",
    '\n{"role": ',
    "Human: a\n\nAssistant: b",
    "\n\nHuman: a\n\nAssistant:",
]
side: st.SearchStrategy[Any] = st.builds("{}{}".format, st.sampled_from(BEGINNINGS), text) | st.sampled_from(
    [None, 3, [], ["a", "b"], {}]
)
names = st.sampled_from(["", "x", 7, None, 1.5, True])


@settings(max_examples=500, deadline=None)
@given(values=st.fixed_dictionaries({"prompt": side, "chosen": side, "rejected": side}, optional={"id": names}))
def test_the_short_way_gives_what_the_long_one_does(values: dict[str, Any]) -> None:
    def outcome(read: Callable[[], Group]) -> Group | str:
        try:
            return read()
        except DataError as error:
            return str(error)

    row = Row("a.jsonl:1", "1", values)
    reader = GroupReader(files.Table("a.jsonl", "train", iter(())))
    assert outcome(lambda: reader.group(row)) == outcome(lambda: PAIRS.read(values, row, "train"))


@pytest.mark.parametrize("before", ["", " ", "\t\r\n"])
@pytest.mark.parametrize("after", ["", "\n", "\r\n", " ", "\n\n \t", "\u2003", "}", "\n}", " {}", "\r\nx"])
def test_only_white_space_may_surround_an_object(before: str, after: str) -> None:
    line = f'{before}{{"a": [1]}}{after}'
    if after.strip(" \t\r\n"):
        with pytest.raises(DataError, match=f"at column {json_fault(line).colno}: Extra data"):
            parse_json(line, "a.jsonl:1")
    else:
        assert parse_json(line, "a.jsonl:1") == {"a": [1]}


def json_fault(line: str) -> json.JSONDecodeError:
    with pytest.raises(json.JSONDecodeError) as caught:
        json.loads(line)
    return caught.value


@pytest.mark.parametrize("depth", [100, 101])
@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
def test_the_depth_limit_is_exact(depth: int, opening: str, closing: str) -> None:
    line = opening * depth + closing * depth if opening == "[" else opening * (depth - 1) + "{}" + closing * (depth - 1)
    if depth > 100:
        with pytest.raises(DataError, match="nested deeper"):
            parse_json(line, "a.jsonl:1")
    else:
        parse_json(line, "a.jsonl:1")
