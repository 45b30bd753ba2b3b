"""Files: every kind of source, round trips, conversion, and how damage is passed on."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dipole.data.files import is_held_out, split_of_name
from dipole.data.formats import load_groups, read_groups
from dipole.errors import DataError
from dipole.group import Approval, Comparison, Completion, Group, Rating

ROWS = [
    {"prompt": "Wie geht's?\n", "chosen": "gut, «danke» 🙂", "rejected": 'so "lala"', "weight": 2.0},
    {"prompt": "שלום", "chosen": "e\u0301\u2028\u0085x", "rejected": "a,b\r\nc", "weight": 1.0},
]


def lines(rows: list[dict[str, Any]], end: str = "\n") -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + end for row in rows).encode()


def csv_bytes(rows: list[dict[str, Any]]) -> bytes:
    cells = [[*rows[0]], *([str(value) for value in row.values()] for row in rows)]
    return "".join(",".join('"' + cell.replace('"', '""') + '"' for cell in row) + "\r\n" for row in cells).encode()


def parquet_bytes(rows: list[dict[str, Any]]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return bytes(sink.getvalue())


def content(groups: list[Group]) -> list[tuple[Any, ...]]:
    """All but ids, which name the file."""
    return [(group.prompt, group.completions, group.judgments, group.split, group.meta) for group in groups]


EXPECTED = [
    (
        row["prompt"],
        (Completion(text=str(row["chosen"])), Completion(text=str(row["rejected"]))),
        (Comparison(i=0, j=1, weight=float(str(row["weight"]))),),
        None,
        {},
    )
    for row in ROWS
]


# Sources


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.jsonl", lines(ROWS)),
        ("a.jsonl.gz", gzip.compress(lines(ROWS))),
        ("two-members.jsonl.gz", gzip.compress(lines(ROWS[:1])) + gzip.compress(lines(ROWS[1:]))),
        ("no-last-line-end.jsonl", lines(ROWS).rstrip()),
        ("windows.jsonl", lines(ROWS, "\r\n")),
        ("byte-order-mark.jsonl", b"\xef\xbb\xbf" + lines(ROWS)),
        ("blank-lines.jsonl", b"\n \n" + lines(ROWS, "\n\n")),
        ("list.json", json.dumps(ROWS, indent=2).encode()),
        ("list.json.gz", gzip.compress(json.dumps(ROWS).encode())),
        ("object.json", json.dumps({"version": 1, "tags": ["a"], "data": ROWS}).encode()),
        ("really-lines.json", lines(ROWS)),
        ("a.csv", csv_bytes(ROWS)),
        ("byte-order-mark.csv", b"\xef\xbb\xbf" + csv_bytes(ROWS)),
        ("a.parquet", parquet_bytes(ROWS)),
        ("UPPER.JSONL", lines(ROWS)),
        ("spaces and ünïcode.jsonl", lines(ROWS)),
    ],
)
def test_kinds_of_file(tmp_path: Path, name: str, data: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    groups = load_groups(path)
    assert content(groups) == EXPECTED
    assert all(group.id.startswith(name) for group in groups)


def test_csv_cells_take_the_type_of_their_column(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('prompt,completion,label,id,weight,note\nQ,"[1, 2]",TRUE,7,,\n\nQ,b,0,8,0.5,x\n')
    first, second = load_groups(path)
    assert (first.id, first.completions[0].text, first.meta) == ("7", "[1, 2]", {})
    assert first.judgments == (Approval(i=0, value=True),)
    assert (second.judgments, second.meta) == ((Approval(i=0, value=False, weight=0.5),), {"note": "x"})


def test_lists_in_csv(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('prompt,responses,scores\nQ,"[""a"", ""b""]","[1, 2]"\n')
    (group,) = load_groups(path)
    assert [completion.text for completion in group.completions] == ["a", "b"]
    assert group.judgments == (Rating(i=0, value=1.0), Rating(i=1, value=2.0))


def test_null_fields_of_parquet_messages_are_absent(tmp_path: Path) -> None:
    answers = [{"role": "assistant", "content": "a", "name": None}, {"role": "assistant", "content": "b", "name": "x"}]
    rows = [
        {"prompt": [{"role": "user", "content": "Q"}], "chosen": answers[:1], "rejected": answers[1:], "score": None}
    ]
    (tmp_path / "a.parquet").write_bytes(parquet_bytes(rows))
    (group,) = load_groups(tmp_path / "a.parquet")
    assert [c.text for c in group.completions] == [({"role": "assistant", "content": "a"},), (answers[1],)]
    assert group.meta == {}


def test_a_folder_is_its_data_files_with_the_split_of_their_names(tmp_path: Path) -> None:
    (tmp_path / "train-00000-of-00001.jsonl").write_bytes(lines(ROWS))
    (tmp_path / "test.csv").write_bytes(csv_bytes(ROWS))
    (tmp_path / "README.md").write_text("not data")
    (tmp_path / ".hidden.jsonl").write_text("not data")
    assert [group.split for group in load_groups(tmp_path)] == ["test", "test", "train", "train"]


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train.jsonl", "train"),
        ("Validation-00000.parquet", "validation"),
        ("eval_v2.json", "eval"),
        ("training.jsonl", None),
        ("pairs.jsonl", None),
    ],
)
def test_splits_of_names(name: str, split: str | None) -> None:
    assert split_of_name(name) == split


def test_held_out_splits() -> None:
    assert [is_held_out(name) for name in ("test", "eval", "test_prefs", "train", "other", None)] == [
        True,
        True,
        True,
        False,
        False,
        False,
    ]


def test_reading_streams(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines(ROWS) + b"{broken\n")
    groups = read_groups(path)
    assert [next(groups).id, next(groups).id] == ["a.jsonl:1", "a.jsonl:2"]
    with pytest.raises(DataError, match=r"a\.jsonl:3"):
        next(groups)


def test_bad_rows_can_be_skipped_but_not_silently(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = lines(ROWS).splitlines(keepends=True)
    path.write_bytes(rows[0] + b"{broken\n" + b'{"prompt": "Q", "chosen": "a"}\n' + b"\xff\n" + rows[1])
    faults: list[DataError] = []
    assert content(load_groups(path, on_bad_row=faults.append)) == EXPECTED
    assert [fault.where for fault in faults] == [f"{path}:2", f"{path}:3", f"{path}:4"]


# The hub


def hub(rows: list[dict[str, Any]], *splits: str) -> Callable[..., Any]:
    def load_dataset(name: str, split: str | None = None) -> Any:
        assert name == "owner/name"
        loaded = datasets.DatasetDict({key: datasets.Dataset.from_list(rows) for key in splits})
        return loaded if split is None else loaded[split]

    return load_dataset


def test_a_dataset_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "load_dataset", hub(ROWS, "train", "test"))
    groups = load_groups("owner/name")
    assert [(group.id, group.split) for group in groups] == [
        ("train:1", "train"),
        ("train:2", "train"),
        ("test:1", "test"),
        ("test:2", "test"),
    ]
    assert groups[0].completions == EXPECTED[0][1]


def test_one_split_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "load_dataset", hub(ROWS, "train_prefs", "train_sft"))
    assert [group.split for group in load_groups("owner/name:train_prefs")] == ["train", "train"]
    with pytest.raises(DataError, match="owner/name:train_prefs"):
        load_groups("owner/name")


def test_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(name: str, split: str | None = None) -> Any:
        raise ConnectionError("Couldn't reach the hub")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(DataError, match=r"owner/name: .*Couldn't reach.* download it first"):
        load_groups("owner/name")


@pytest.mark.parametrize("source", ["nowhere.jsonl", "owner/missing.parquet", "nowhere", "a/b/c"])
def test_a_missing_path_isnt_looked_for_on_the_hub(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("asked the hub"))
    with pytest.raises(DataError, match="no such file"):
        load_groups(source)


# Damage


def bytes_of(name: str) -> bytes:
    plain = {"csv": csv_bytes, "parquet": parquet_bytes, "json": lambda rows: json.dumps(rows).encode()}
    data = plain.get(name.split(".")[1], lines)(ROWS * 3)
    return gzip.compress(data) if name.endswith(".gz") else data


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(["a.jsonl", "a.json", "a.csv", "a.parquet", "a.jsonl.gz"]),
    st.floats(0, 1),
    st.none() | st.binary(max_size=4),
)
def test_no_damage_crashes_a_reader(
    tmp_path_factory: pytest.TempPathFactory, name: str, place: float, patch: bytes | None
) -> None:
    """A file is cut short, or some of its bytes are overwritten."""
    data = bytes_of(name)
    cut = int(place * len(data))
    path = tmp_path_factory.mktemp("damage") / name
    path.write_bytes(data[:cut] if patch is None else data[:cut] + patch + data[cut + len(patch) :])
    faults: list[DataError] = []
    try:
        groups = load_groups(path, on_bad_row=faults.append)
    except DataError as fault:
        groups, faults = [], [fault]
    assert len(groups) <= 6
    assert all(fault.where and fault.where.startswith(str(path)) for fault in faults)


@settings(deadline=None)
@given(data=st.binary(max_size=200))
def test_no_bytes_crash_a_reader(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    folder = tmp_path_factory.mktemp("bytes")
    for name in ("a.jsonl", "a.json", "a.csv", "a.parquet", "a.jsonl.gz"):
        (folder / name).write_bytes(data)
        with pytest.raises(DataError, match=name):
            load_groups(folder / name)
