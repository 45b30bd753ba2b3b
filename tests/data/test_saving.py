"""What is saved is loaded, what is read can be saved, and conversion to what other programs read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dipole.data.formats import load_groups, save_groups, save_pairs, save_unpaired
from dipole.errors import DataError
from dipole.group import Approval, Comparison, Completion, Group, Judgment, Ranking, Rating

# Round trips

TEXT = st.text(max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
META = st.dictionaries(TEXT, JSON, max_size=2)
PLAIN = TEXT | st.just('[{"role": "user"}]')
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


CHAT = st.lists(st.sampled_from(["user", "assistant"]), min_size=1, max_size=3).map(
    lambda roles: [{"role": role, "content": f"{role} speaks"} for role in roles]
)
ANSWER = st.sampled_from(["one word", "one more", "Human: a\n\nAssistant: b", "Human: a\n\nAssistant:"]) | PLAIN | CHAT
RATED = st.fixed_dictionaries({"response": ANSWER}, optional={"overall_score": st.floats(-9, 9) | JSON})
COLUMNS: dict[str, st.SearchStrategy[Any]] = {
    **dict.fromkeys(["prompt", "instruction", "chosen", "completion"], ANSWER),
    "rejected": ANSWER | st.lists(ANSWER, max_size=3),
    "responses": st.lists(ANSWER, min_size=2, max_size=2),
    "completions": st.lists(RATED, max_size=2),
    "scores": st.lists(st.integers(-1, 3), min_size=2, max_size=2),
    "ranks": st.lists(st.integers(0, 2), min_size=2, max_size=2),
    "ranking": st.permutations([0, 1]),
    "label": st.booleans(),
    "p": st.floats(0, 1),
    "score_chosen": st.integers(0, 3),
    "weight": WEIGHT,
    "system": TEXT,
    "meta": META,
    "id": TEXT,
    "note": JSON,
}
OPTIONAL = ("weight", "system", "meta", "id", "note")


def rows_of_shape(required: str, optional: str = "") -> st.SearchStrategy[list[dict[str, Any]]]:
    """One or two rows, most of their values of the right type."""
    anything = {name: st.one_of(*[right] * 15, JSON) for name, right in COLUMNS.items()}
    row = st.fixed_dictionaries(
        {name: anything[name] for name in required.split()},
        optional={name: anything[name] for name in (*optional.split(), *OPTIONAL)},
    )
    return st.lists(row, min_size=1, max_size=2)


ALMOST_ROWS = (
    rows_of_shape("prompt chosen rejected", "p score_chosen")
    | rows_of_shape("chosen rejected", "p")
    | rows_of_shape("prompt completion label")
    | rows_of_shape("prompt responses", "scores ranks ranking")
    | rows_of_shape("instruction completions")
    | rows_of_shape("prompt")
)


@settings(max_examples=150, deadline=None)
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
