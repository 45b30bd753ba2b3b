"""What people get wrong in files: each is answered with the file, the line, what is wrong, and what to do."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest

from dipole.data import files
from dipole.data.audit import audit
from dipole.data.formats import load_groups
from dipole.errors import DataError

GOOD = {"prompt": "Is it?", "chosen": "It is.", "rejected": "No."}
USER = {"role": "user", "content": "Is it?"}
YES = {"role": "assistant", "content": "It is."}
NO = {"role": "assistant", "content": "No."}
NATIVE = {
    "schema": 1,
    "id": "g",
    "prompt": "Is it?",
    "completions": [{"text": "It is."}, {"text": "No."}],
    "judgments": [{"kind": "comparison", "i": 0, "j": 1}],
}

DEEP: list[Any] = []
for _ in range(150):
    DEEP = [DEEP]


def rows(*values: Any) -> bytes:
    return "".join(json.dumps(value) + "\n" for value in values).encode()


def good_then(**changes: Any) -> bytes:
    """A good row, and on line 2 one with a fault."""
    return rows(GOOD, GOOD | changes)


def native(**changes: Any) -> bytes:
    return rows(NATIVE | changes)


def without(row: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != name}


BAD: dict[str, tuple[str, bytes, str, str]] = {
    # what is wrong: (file, its bytes, where the message points, what it says)
    "cut short in the last line": ("a.jsonl", rows(GOOD, GOOD)[:-9], ":2", "isn't JSON"),
    "cut short within a character": ("a.jsonl", rows(GOOD) + '{"prompt": "é'.encode()[:-1], ":2", "isn't UTF-8"),
    "Latin-1": ("a.jsonl", rows(GOOD) + '{"prompt": "café"}\n'.encode("latin-1"), ":2", "isn't UTF-8 .*0xe9"),
    "UTF-16": ("a.jsonl", json.dumps(GOOD).encode("utf-16"), ":1", "isn't UTF-8"),
    "a NUL byte": ("a.jsonl", rows(GOOD) + b'{"prompt": "\0"}\n', ":2", "isn't JSON"),
    "empty": ("a.jsonl", b"", "", "holds no rows"),
    "blank lines alone": ("a.jsonl", b"\n\n \n", "", "holds no rows"),
    "a list on a line": ("a.jsonl", rows([GOOD]), ":1", "is a JSON list"),
    "a pretty-printed list in .jsonl": ("a.jsonl", json.dumps([GOOD], indent=1).encode(), ":1", "isn't JSON"),
    "nested too deep": ("a.jsonl", b'{"prompt": ' + b"[" * 100_000 + b"\n", ":1", "nested deeper than 100"),
    "nested too deep, but closed": ("a.jsonl", good_then(meta=DEEP), ":2", "nested deeper"),
    "a key twice": ("a.jsonl", rows(GOOD) + b'{"prompt": "a", "prompt": "b"}\n', ":2", "'prompt' is there twice"),
    "NaN as a weight": ("a.jsonl", good_then(weight=float("nan")), ":2", "NaN is no number"),
    "a number too large": ("a.jsonl", rows(GOOD) + b'{"prompt": 1e999}\n', ":2", "1e999 is too large"),
    "a number of 5,000 digits": ("a.jsonl", rows(GOOD) + b'{"prompt": 1' + b"0" * 5000 + b"}\n", ":2", "digits"),
    "cut-short gzip": ("a.jsonl.gz", gzip.compress(rows(*[GOOD] * 99))[:-20], ":[0-9]+", "damaged or cut short"),
    "gzip by name alone": ("a.jsonl.gz", rows(GOOD), ":1", "damaged or cut short"),
    "gzip under another name": ("a.jsonl", gzip.compress(rows(GOOD)), "", "by its first bytes it is a '.gz' file"),
    "Parquet under another name": ("a.csv", b"PAR1rest", "", "by its first bytes it is a '.parquet' file"),
    "no Parquet": ("a.parquet", rows(GOOD), ":row 1", "isn't Parquet"),
    "an unknown suffix": ("a.txt", rows(GOOD), "", "'.txt' is no known kind"),
    "no suffix": ("a", rows(GOOD), "", "'' is no known kind"),
    "cut-short .json": ("a.json", json.dumps([GOOD, GOOD], indent=1).encode()[:-30], ":9", "isn't JSON"),
    "no list in .json": ("a.json", rows(GOOD), "", "neither a list of rows"),
    "two lists in .json": ("a.json", rows({"a": [GOOD], "b": [GOOD]}), "", "neither a list of rows"),
    "a string in the list of .json": ("a.json", rows([GOOD, "x"]), ":row 2", "is a JSON str"),
    "a CSV row with a cell too few": ("a.csv", b"prompt,chosen,rejected\nQ,a,b\nQ,a\n", ":3", "2 cells"),
    "an unclosed quote in CSV": ("a.csv", b'prompt,chosen,rejected\nQ,a,"b\n', ":2", "isn't CSV"),
    "a NUL byte in CSV": ("a.csv", b"prompt,chosen,rejected\nQ,a,\0\n", ":2", "NUL"),
    "a CSV column twice": ("a.csv", b"prompt,chosen,chosen\nQ,a,b\n", ":1", "two columns have the same name"),
    "text for a number in CSV": ("a.csv", b"prompt,chosen,rejected,p\nQ,a,b,high\n", ":2", "'p' is the text 'high'"),
    "unknown columns": ("a.jsonl", rows({"text": "a", "summary": "b"}), ":1", "summary, text are those of no known"),
    "no columns": ("a.jsonl", rows({}), ":1", "no known layout"),
    "a misspelt column": ("a.jsonl", rows({"promt": "Q", "chosen": "a", "rejected": "b"}), ":1", "but one 'promt'"),
    "the prompt by another name": (
        "a.jsonl",
        rows({"question": "Q", "chosen": "a", "rejected": "b"}),
        ":1",
        "but one 'question'",
    ),
    "a missing column": ("a.jsonl", rows(without(GOOD, "rejected")), ":1", "there is no 'rejected'"),
    "a missing label": ("a.jsonl", rows({"prompt": "Q", "completion": "a"}), ":1", "there is no 'label'"),
    "a missing column in one row": ("a.jsonl", rows(GOOD, without(GOOD, "rejected")), ":2", "no 'rejected'"),
    "two layouts in one file": (
        "a.jsonl",
        rows(GOOD, {"prompt": "Q", "completion": "a", "label": True}),
        ":2",
        "this row is prompt/completion/label, but the rows before it are prompt/chosen/rejected",
    ),
    "two layouts in one row": ("a.jsonl", rows(GOOD | {"completion": "a", "label": True}), ":1", "the columns fit"),
    "a null prompt": ("a.jsonl", good_then(prompt=None), ":2", "'prompt' is missing or null"),
    "a null answer": ("a.jsonl", good_then(rejected=None), ":2", "'rejected' is missing or null"),
    "a number for an answer": ("a.jsonl", good_then(chosen=7), ":2", "'chosen' is 7, but has to be text"),
    "no rejected answer in the list": ("a.jsonl", good_then(rejected=[]), ":2", "an answer is missing"),
    "a chat written as text": (
        "a.jsonl",
        good_then(chosen=json.dumps([YES])),
        ":2",
        "'chosen' is a chat written as text",
    ),
    "a message without a role": ("a.jsonl", good_then(chosen=[{"content": "a"}]), ":2", r"'chosen\[0\]' .* no message"),
    "a message without content": ("a.jsonl", good_then(chosen=[{"role": "assistant"}]), ":2", "content' is missing"),
    "another prompt in the answers": (
        "a.jsonl",
        good_then(prompt="Was it?", chosen=[USER, YES], rejected=[USER, NO]),
        ":2",
        "begin with another prompt",
    ),
    "a probability above 1": ("a.jsonl", good_then(p=1.5), ":2", "p is 1.5"),
    "a probability as text": ("a.jsonl", good_then(p="0.8"), ":2", "'p' is the text '0.8'"),
    "two probabilities": ("a.jsonl", good_then(p=0.8, pair_prob=0.8), ":2", "says the same as 'p'"),
    "a negative weight": ("a.jsonl", good_then(weight=-1), ":2", "weight is -1"),
    "a label that is no label": (
        "a.jsonl",
        rows({"prompt": "Q", "completion": "a", "label": 0.7}),
        ":1",
        "'label' is 0.7",
    ),
    "a score too few": (
        "a.jsonl",
        rows({"prompt": "Q", "responses": ["a", "b"], "scores": [1]}),
        ":1",
        "1 items for 2",
    ),
    "a null score": ("a.jsonl", rows({"prompt": "Q", "responses": ["a"], "scores": [None]}), ":1", r"'scores\[0\]'"),
    "a negative rank": ("a.jsonl", rows({"prompt": "Q", "responses": ["a", "b"], "ranks": [-1, 1]}), ":1", "holds -1"),
    "a ranking from 1": ("a.jsonl", rows({"prompt": "Q", "answers": ["a", "b"], "ranking": [1, 2]}), ":1", "0 to 1"),
    "a ranking with one twice": (
        "a.jsonl",
        rows({"prompt": "Q", "answers": ["a", "b"], "ranking": [1, 1]}),
        ":1",
        "twice",
    ),
    "an id twice": ("a.jsonl", rows(GOOD | {"id": "x"}, GOOD | {"id": "x"}), ":2", "the id 'x' is also that of .*:1"),
    "a newer schema": ("a.jsonl", native(schema=2), ":1", "'schema' is 2"),
    "an unknown key": ("a.jsonl", native(judgements=[]), ":1", "'judgements' .* Did you mean 'judgments'"),
    "an unknown kind of judgment": ("a.jsonl", native(judgments=[{"kind": "vote"}]), ":1", r"judgments\[0\].kind"),
    "a judgment of nothing": (
        "a.jsonl",
        native(judgments=[{"kind": "rating", "i": 2, "value": 1}]),
        ":1",
        "completion 2",
    ),
    "a comparison with itself": ("a.jsonl", native(judgments=[{"kind": "comparison", "i": 1, "j": 1}]), ":1", "itself"),
    "a half index": ("a.jsonl", native(judgments=[{"kind": "comparison", "i": 0.5, "j": 1}]), ":1", "a whole number"),
    # What can be read, but not trained on
    "identical answers": ("a.jsonl", good_then(rejected="It is."), ":2", "completions 0 and 1 are equal"),
    "answers that differ in form": ("a.jsonl", good_then(rejected=" it  IS.\n"), ":2", "equal but for case"),
    "an empty answer": ("a.jsonl", good_then(rejected=""), ":2", "completion 1 is empty"),
    "an answer that can't be seen": ("a.jsonl", good_then(chosen=" \u200b\n"), ":2", "completion 0 is empty"),
    "an empty prompt": ("a.jsonl", good_then(prompt=" "), ":2", "the prompt is empty"),
    "no judgment": ("a.jsonl", rows({"prompt": "Q", "responses": ["a", "b"]}), ":1", "there is no judgment"),
    "prompts alone": ("a.jsonl", rows({"prompt": "Q"}), ":1", "there is no completion"),
    "half a character": ("a.jsonl", good_then(chosen="\ud83d"), ":2", "half of a surrogate pair"),
    "a prompt that ends with the assistant": (
        "a.jsonl",
        rows({"prompt": [USER, YES], "chosen": [YES], "rejected": [NO]}),
        ":1",
        "ends with a message of 'assistant'",
    ),
    "a late system message": (
        "a.jsonl",
        rows({"prompt": [USER, {"role": "system", "content": "S"}, USER], "chosen": [YES], "rejected": [NO]}),
        ":1",
        "'system' follows user",
    ),
    "text and chats": ("a.jsonl", rows(GOOD, GOOD | {"prompt": [USER]}), ":2", "are chats"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file(case: str, tmp_path: Path) -> None:
    name, data, place, problem = BAD[case]
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(DataError) as caught:
        audit(load_groups(path)).raise_for_errors(str(path))
    assert caught.value.exit_status == 3
    assert caught.value.remedy, "every fault says what to do"
    assert_says(str(caught.value), str(tmp_path), name + place, problem)


def assert_says(message: str, folder: str, place: str, problem: str) -> None:
    assert message.startswith(folder)
    assert re.search(rf"(^|/|\(|; ){place.replace('.', '[.]')}: ", message), message
    assert re.search(problem, message), message
    assert "\n" not in message
    assert len(message) < 800


def test_a_line_that_is_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "LINE_LIMIT", 2**20)
    path = tmp_path / "a.jsonl"
    path.write_bytes(rows(GOOD) + b'{"prompt": "' + b"x" * 2**21)
    with pytest.raises(DataError, match=r"a\.jsonl:2: the line is longer than 1 MiB"):
        load_groups(path)


def test_ten_megabytes_on_a_line_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(rows(GOOD | {"chosen": "x" * 10_000_000}))
    assert len(str(load_groups(path)[0].completions[0].text)) == 10_000_000


def test_a_json_file_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "JSON_FILE_LIMIT", 100)
    path = tmp_path / "a.json"
    path.write_bytes(json.dumps([GOOD] * 9).encode())
    with pytest.raises(DataError, match=r"a\.json: .* Use \.jsonl"):
        load_groups(path)


def test_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("none here")
    with pytest.raises(DataError, match=r"holds no data file.*\.jsonl"):
        load_groups(tmp_path)


def test_a_bad_file_in_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(rows(GOOD))
    (tmp_path / "b.jsonl").write_bytes(b"")
    with pytest.raises(DataError, match=r"b\.jsonl: the file holds no rows"):
        load_groups(tmp_path)
