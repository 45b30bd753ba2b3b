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
from dipole.data.formats import load_groups, read_groups, save_groups, save_pairs, save_unpaired
from dipole.errors import DataError
from dipole.group import Approval, Comparison, Completion, Group, Judgment, Ranking, Rating

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


# Round trips

TEXT = st.text(max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
META = st.dictionaries(TEXT, JSON, max_size=2)
PLAIN = TEXT.filter(lambda text: not text.lstrip().startswith(('{"role"', '[{"role"')))
MESSAGE = st.builds(
    lambda role, content, extra: {**extra, "role": role, "content": content},
    TEXT,
    TEXT | st.lists(st.fixed_dictionaries({"type": TEXT, "text": TEXT}), max_size=2),
    st.dictionaries(TEXT, JSON, max_size=1),
)
PROMPT = PLAIN | st.lists(MESSAGE, min_size=1, max_size=3).map(tuple)
WEIGHT = st.floats(0, 1e6)
NAME = st.none() | TEXT


@st.composite
def any_groups(draw: st.DrawFn) -> list[Group]:
    return [
        draw(any_group(id))
        for id in draw(st.lists(st.text(st.characters(), max_size=5), unique=True, min_size=1, max_size=3))
    ]


@st.composite
def any_group(draw: st.DrawFn, id: str) -> Group:
    count = draw(st.integers(0, 4))
    completions = tuple(Completion(text=draw(PROMPT), source=draw(NAME), meta=draw(META)) for _ in range(count))
    index = st.integers(0, max(0, count - 1))
    one = [
        st.builds(Rating, i=index, value=st.floats(-1e9, 1e9), annotator=NAME, weight=WEIGHT),
        st.builds(Approval, i=index, value=st.booleans(), annotator=NAME, weight=WEIGHT),
    ]
    many = [
        st.permutations(range(count)).map(lambda order: Ranking(order=tuple(order[: max(2, count - 1)]))),
        st.builds(
            lambda order, p, who: Comparison(i=order[0], j=order[1], p=p, annotator=who),
            st.permutations(range(count)),
            st.floats(0, 1),
            NAME,
        ),
    ]
    kinds: list[st.SearchStrategy[Judgment]] = [*(one if count else []), *(many if count > 1 else [])]
    judgments = draw(st.lists(st.one_of(*kinds), max_size=4)) if kinds else []
    return Group(
        id=id,
        prompt=draw(PROMPT),
        completions=completions,
        judgments=tuple(judgments),
        split=draw(NAME),
        meta=draw(META),
    )


@settings(max_examples=60, deadline=None)
@given(any_groups(), st.sampled_from([".jsonl", ".jsonl.gz"]))
def test_what_is_saved_is_loaded(tmp_path_factory: pytest.TempPathFactory, groups: list[Group], suffix: str) -> None:
    folder = tmp_path_factory.mktemp("groups")
    assert save_groups(groups, folder / f"a{suffix}") == len(groups)
    assert load_groups(folder / f"a{suffix}") == groups
    save_groups(load_groups(folder / f"a{suffix}"), folder / f"b{suffix}")
    assert (folder / f"a{suffix}").read_bytes() == (folder / f"b{suffix}").read_bytes()


ROW_SHAPES = st.sampled_from(
    [
        ("prompt", "chosen", "rejected", "p"),
        ("chosen", "rejected", "weight", "meta"),
        ("prompt", "completion", "label", "system"),
        ("prompt", "responses", "scores", "ranks", "ranking"),
        ("instruction", "completions", "annotator"),
        ("schema", "id", "prompt", "completions", "judgments", "split"),
        ("prompt", "chosen", "rejected", "score_chosen", "score_rejected", "id", "split", "question"),
    ]
)
ALMOST = (
    JSON
    | MESSAGE
    | st.lists(MESSAGE, max_size=3)
    | st.lists(TEXT, max_size=3)
    | st.lists(st.integers(-1, 3), max_size=3)
    | st.lists(
        st.dictionaries(st.sampled_from(["text", "response", "kind", "i", "j", "annotations"]), JSON), max_size=2
    )
    | st.sampled_from(["Human: a\n\nAssistant: b", "Human: a\n\nAssistant:", "two words", 0, 1])
)
ALMOST_ROWS = ROW_SHAPES.flatmap(
    lambda columns: st.lists(st.fixed_dictionaries({}, optional=dict.fromkeys(columns, ALMOST)), min_size=1, max_size=2)
)


@settings(max_examples=300, deadline=None)
@given(ALMOST_ROWS)
def test_rows_are_read_or_refused_and_what_is_read_can_be_saved(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]
) -> None:
    path = tmp_path_factory.mktemp("rows") / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    faults: list[DataError] = []
    groups = load_groups(path, on_bad_row=faults.append)
    assert len(groups) + len(faults) == len(rows)
    assert all(fault.where and fault.where.startswith(str(path)) and fault.remedy for fault in faults)
    save_groups(groups, path.with_name("b.jsonl"))
    if groups:
        assert load_groups(path.with_name("b.jsonl")) == groups


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


@given(data=st.binary(max_size=200))
def test_no_bytes_crash_a_reader(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    folder = tmp_path_factory.mktemp("bytes")
    for name in ("a.jsonl", "a.json", "a.csv", "a.parquet", "a.jsonl.gz"):
        (folder / name).write_bytes(data)
        with pytest.raises(DataError, match=name):
            load_groups(folder / name)


def test_a_lone_surrogate_survives(tmp_path: Path) -> None:
    groups = [Group(id="g", prompt="half \ud83d", completions=(Completion(text="é"),))]
    save_groups(groups, tmp_path / "a.jsonl")
    assert load_groups(tmp_path / "a.jsonl") == groups


def group(id: str = "g", *judgments: Judgment, **options: Any) -> Group:
    completions = options.pop("completions", (Completion(text="a"), Completion(text="b"), Completion(text="c")))
    return Group(id=id, prompt=options.pop("prompt", "Q"), completions=completions, judgments=judgments, **options)


# Writing


def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    save_groups([group()], path)
    before = path.read_bytes()
    with pytest.raises(DataError, match="group 'bad'"):
        save_groups([group("new"), group("bad", meta={"x": object()})], path)
    with pytest.raises(DataError, match="two groups have the id 'g'"):
        save_groups([group(), group()], path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.jsonl"]


def test_saving_refuses_other_suffixes_and_impossible_places(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"only JSON Lines .* \.jsonl"):
        save_groups([group()], tmp_path / "a.json")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="can't be written"):
        save_groups([group()], tmp_path / "file" / "a.jsonl")


def test_saving_makes_the_folder(tmp_path: Path) -> None:
    save_groups([group()], tmp_path / "new" / "folder" / "a.jsonl.gz")
    assert len(load_groups(tmp_path / "new" / "folder" / "a.jsonl.gz")) == 1


# Conversion


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_pairs_of_a_ranking_and_of_a_soft_comparison(tmp_path: Path) -> None:
    groups = [
        group("r", Ranking(order=(2, 0, 1)), split="train", meta={"category": "x"}),
        group(
            "s",
            Comparison(i=1, j=0, p=0.75, weight=2),
            completions=(Completion(text="a", source="m"), Completion(text="b")),
        ),
        group("tie", Comparison(i=0, j=1, p=0.5)),
        group("none"),
    ]
    counts = save_pairs(groups, tmp_path / "pairs.jsonl")
    assert counts == {"rows": 4, "judgments": 2, "groups_without_judgments": 1, "ties": 1}
    rows = rows_of(tmp_path / "pairs.jsonl")
    assert rows[0] == {
        "id": "r:2>0",
        "prompt": "Q",
        "chosen": "c",
        "rejected": "a",
        "split": "train",
        "meta": {"category": "x"},
    }
    assert rows[3] == {
        "id": "s",
        "prompt": "Q",
        "chosen": "b",
        "rejected": "a",
        "pair_prob": 0.75,
        "weight": 2.0,
        "rejected_source": "m",
    }


def test_pairs_are_read_back(tmp_path: Path) -> None:
    save_pairs([group("s", Comparison(i=1, j=0, p=0.75, weight=2), meta={"k": 1})], tmp_path / "pairs.jsonl")
    (back,) = load_groups(tmp_path / "pairs.jsonl")
    assert (back.id, back.prompt, back.meta) == ("s", "Q", {"k": 1})
    assert [completion.text for completion in back.completions] == ["b", "a"]
    assert back.judgments == (Comparison(i=0, j=1, p=0.75, weight=2.0),)


def test_converted_chats_are_messages_throughout(tmp_path: Path) -> None:
    prompt = ({"role": "user", "content": "Q"},)
    save_pairs([group("g", Comparison(i=0, j=1), prompt=prompt)], tmp_path / "pairs.jsonl")
    (row,) = rows_of(tmp_path / "pairs.jsonl")
    assert (row["prompt"], row["chosen"]) == ([*prompt], [{"role": "assistant", "content": "a"}])


def test_unpaired(tmp_path: Path) -> None:
    groups = [
        group("a", Approval(i=0, value=True), Approval(i=2, value=False)),
        group("p", Comparison(i=1, j=0)),
    ]
    assert save_unpaired(groups, tmp_path / "kto.jsonl") == {"rows": 4, "judgments": 3}
    assert [(row["id"], row["completion"], row["label"]) for row in rows_of(tmp_path / "kto.jsonl")] == [
        ("a:0", "a", True),
        ("a:2", "c", False),
        ("p:0", "a", False),
        ("p:1", "b", True),
    ]
    assert [type(judged).__name__ for back in load_groups(tmp_path / "kto.jsonl") for judged in back.judgments] == [
        "Approval"
    ] * 4


def test_nothing_to_convert_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="tie"):
        save_pairs([group("g", Comparison(i=0, j=1, p=0.5))], tmp_path / "pairs.jsonl")
    with pytest.raises(DataError, match="no pair relation"):
        save_pairs([group("g", Approval(i=0, value=True))], tmp_path / "pairs.jsonl")
    assert list(tmp_path.iterdir()) == []
