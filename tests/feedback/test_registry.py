"""Judges by name, and the verb that runs them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from fake_server import Call, FakeServer, fail, fake_server, say
from judging import GROUPS

from dipole.data.formats import load_groups, save_groups
from dipole.errors import ConfigError
from dipole.feedback.registry import constitution_of, open_judge, parse_spelling
from dipole.group import Comparison

Command = Callable[..., tuple[int, str, str]]
KEY = "sk-canary-0987654321"


@pytest.mark.parametrize(
    ("spelling", "kind", "what", "name"),
    [
        ("rule:longer", "rule", "longer", "rule:longer"),
        ("vader", "vader", "", "vader"),
        ("vader?as=comparisons&name=mood", "vader", "", "mood"),
        ("python:a.b.c", "python", "a.b.c", "python:a.b.c"),
        ("folder/my file.py:score", "file", "folder/my file.py:score", "my file.py:score"),
        ("reward_model:/models/rm", "reward_model", "/models/rm", "reward_model:rm"),
        ("implicit:runs/a/final+SmolLM2?beta=0.2", "implicit", "runs/a/final+SmolLM2", "implicit:final+SmolLM2"),
        ("model:/models/SmolLM2?label=agreement", "model", "/models/SmolLM2", "model:SmolLM2"),
        ("server:http://127.0.0.1:8000/v1#org/m-7B?key=K", "server", "http://127.0.0.1:8000/v1#org/m-7B", "org/m-7B"),
    ],
)
def test_spellings(spelling: str, kind: str, what: str, name: str) -> None:
    parts = parse_spelling(spelling)
    assert (parts.kind, parts.what, parts.name) == (kind, what, name)


def test_values_may_be_escaped() -> None:
    parts = parse_spelling("server:http://h/v1#m?rubric=Which is better%3F A%26B%23 = C")
    assert parts.settings == {"rubric": "Which is better? A&B# = C"}


@pytest.mark.parametrize(
    ("spelling", "said"),
    [
        ("ruel:longer", "Did you mean 'rule'"),
        ("", "no judge ''"),
        ("rule", "something is missing"),
        ("rule:", "something is missing"),
        ("rule:long", "Did you mean 'longer'"),
        ("vader:x", "nothing after it"),
        ("vader?az=ratings", "Did you mean 'as'"),
        ("vader?as", "no setting"),
        ("vader?as=rating", "one of ratings, comparisons"),
        ("rule:longer?beta=1", "no setting 'beta'"),
        ("server:http://127.0.0.1:1/v1", "model's name is missing"),
        ("server:#m", "model's name is missing"),
        ("server:http://127.0.0.1:1/v1#m?temperature=hot", "has to be a number"),
        ("server:http://127.0.0.1:1/v1#m?temperature=nan", "finite"),
        ("server:http://127.0.0.1:1/v1#m?max_tokens=-1", "at least 0"),
        ("server:http://127.0.0.1:1/v1#m?key=NO_SUCH_VARIABLE", "NO_SUCH_VARIABLE"),
        ("server:http://127.0.0.1:1/v1#m?rubric=missing.txt", "no file 'missing.txt'"),
        ("server:http://127.0.0.1:1/v1#m?rubric=x&constitution=general", "both"),
        ("server:http://127.0.0.1:1/v1#m?constitution=genral", "general"),
        ("server:http://127.0.0.1:1/v1#m?label=hard", "one of soft, agreement"),
        ("model:/nowhere/at/all", "/nowhere/at/all"),
    ],
)
def test_mistakes_are_named(spelling: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        open_judge(spelling)


def test_a_rubric_is_a_sentence_or_a_file(tmp_path: Path) -> None:
    file = tmp_path / "rubric.txt"
    file.write_text("Prefer the shorter one.\n")
    given = constitution_of(parse_spelling(f"model:m?rubric={file}"))
    written = constitution_of(parse_spelling("model:m?rubric=Prefer the shorter one."))
    assert given == written
    assert given.principles[0].compare == "Prefer the shorter one."
    assert constitution_of(parse_spelling("model:m")).hash != given.hash
    file.write_text("  \n")
    with pytest.raises(ConfigError, match="characters"):
        constitution_of(parse_spelling(f"model:m?rubric={file}"))


# --- the verb


@pytest.fixture
def data(tmp_path: Path) -> Path:
    file = tmp_path / "groups.jsonl"
    save_groups([replace(item, judgments=(Comparison(i=0, j=1, annotator="ann"),)) for item in GROUPS], file)
    return file


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with fake_server() as running:
        running.answer = prefers_wonderful  # type: ignore[assignment]
        yield running


def prefers_wonderful(call: Call) -> object:
    shown = call.asked.split("answer A, begin")[1].split("answer A, end")[0]
    return say(f"It is warmer.\nVERDICT: {'A' if 'wonderful' in shown else 'B'}")


def test_judgments_are_added_to_those_that_are_there(command: Command, data: Path, tmp_path: Path) -> None:
    output = tmp_path / "judged.jsonl"
    status, said, _ = command("judge", "--data", data, "--judge", "rule:longer", "--output", output)
    assert status == 0
    assert "40 groups, 80 judgments by rule:longer" in said
    for item in load_groups(output):
        assert [judgment.annotator for judgment in item.judgments] == ["ann", "rule:longer", "rule:longer"]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["groups.jsonl", "judged.jsonl"]


def test_a_server_judges_and_a_second_run_asks_nothing(
    command: Command, data: Path, tmp_path: Path, server: FakeServer
) -> None:
    arguments = ("judge", "--data", data, "--judge", f"server:{server.url}#tiny", "--output", tmp_path / "judged.jsonl")
    assert command(*arguments)[0] == 0
    first = (tmp_path / "judged.jsonl").read_bytes()
    status, said, _ = command(*arguments)
    assert status == 0
    assert len(server.calls) == 80
    assert (tmp_path / "judged.jsonl").read_bytes() == first
    assert "80 calls, 1,200 tokens; prices aren't known" in said


def test_what_is_paid_is_said(command: Command, data: Path, tmp_path: Path, server: FakeServer) -> None:
    prices = ("--prompt_price", "1000", "--completion_price", "2000", "--max_cost", "10")
    judge = ("--judge", f"server:{server.url}#tiny")
    status, said, _ = command("judge", "--data", data, *judge, "--output", tmp_path / "j.jsonl", *prices)
    assert status == 0
    assert "1.60 in money" in said


def test_a_spent_budget_keeps_what_is_done(command: Command, data: Path, tmp_path: Path, server: FakeServer) -> None:
    output = tmp_path / "judged.jsonl"
    arguments = ("judge", "--data", data, "--judge", f"server:{server.url}#tiny", "--output", output, "--threads", "2")
    status, _, errors = command(*arguments, "--max_calls", "31")
    assert status == 5
    assert "--max_calls" in errors
    assert not output.exists()
    partial = load_groups(tmp_path / "judged.jsonl.partial.jsonl")
    assert len(partial) == 15, "a pair takes two calls"
    assert [item.id for item in partial] == [item.id for item in GROUPS[:15]]
    assert len(server.calls) == 31
    assert command(*arguments, "--max_calls", "80")[0] == 0
    assert len(server.calls) == 80, "nothing is asked twice"
    assert not (tmp_path / "judged.jsonl.partial.jsonl").exists()


def test_a_server_of_nonsense_ends_with_5(command: Command, data: Path, tmp_path: Path, server: FakeServer) -> None:
    server.answer = lambda call: say("I like both.")
    judge = ("--judge", f"server:{server.url}#tiny")
    status, _, errors = command("judge", "--data", data, *judge, "--output", tmp_path / "j.jsonl")
    assert status == 5
    assert "40 of 40 pairs have no valid verdict" in errors
    status, said, _ = command("judge", "--data", data, *judge, "--output", tmp_path / "j.jsonl", "--max_invalid", "1")
    assert status == 0
    assert "40 without a valid verdict, which have no weight" in said


def test_a_name_that_can_t_be_written_is_said_before_anything_is_asked(
    command: Command, data: Path, tmp_path: Path, server: FakeServer
) -> None:
    judge = ("--judge", f"server:{server.url}#tiny")
    status, _, errors = command("judge", "--data", data, *judge, "--output", tmp_path / "judged.csv")
    assert (status, ".jsonl" in errors) == (3, True)
    assert not server.calls


def test_a_check_shows_a_table(command: Command, data: Path) -> None:
    status, said, _ = command("judge", "--data", data, "--judge", "vader", "--check", "--num_pairs", "30")
    table = said.splitlines()
    assert table[0].split() == ["check", "share", "of", "share", "should", "be", "n"]
    assert [line.split()[0] for line in table[1:10]] == [
        "order",
        "length",
        "padding",
        "consistency",
        "identical",
        "empty",
        "injection",
        "people",
        "validity",
    ]
    assert status == (5 if "FAILED" in said else 0)
    assert ("vader fails: " in said) == (status == 5)


def test_a_check_asks_a_model_again_and_not_the_cache(command: Command, data: Path, server: FakeServer) -> None:
    status, said, _ = command(
        "judge", "--data", data, "--judge", f"server:{server.url}#tiny", "--check", "--num_pairs", "10"
    )
    assert "consistency" in said
    plain_pairs = [call for call in server.calls if call.body["messages"] == server.calls[0].body["messages"]]
    assert len(plain_pairs) == 2, "once, and once again"
    assert status in (0, 5)


def test_revisions_are_judged_with_the_rest(command: Command, data: Path, tmp_path: Path, server: FakeServer) -> None:
    def answer(call: Call) -> object:
        if "Write the new answer" in call.asked:
            return say("A wonderful, wonderful film.")
        return prefers_wonderful(call) if "answer A, begin" in call.asked else say("It is cold.")

    server.answer = answer  # type: ignore[assignment]
    judge = f"server:{server.url}#tiny?constitution=general"
    output = tmp_path / "judged.jsonl"
    status, _, _ = command("judge", "--data", data, "--judge", judge, "--output", output, "--revise")
    assert status == 0
    judged = load_groups(output)
    assert all(len(item.completions) == 4 for item in judged)
    assert judged[0].completions[2].meta["revision_of"] == 0
    assert len(judged[0].judgments) == 1 + 5, "two revisions are alike, so of 6 pairs one isn't judged"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "--output"),
        (("--output", "{data}"), "the file that is read"),
        (("--check", "--output", "x.jsonl"), "a check writes nothing"),
        (("--output", "x.jsonl", "--max_invalid", "2"), "between 0 and 1"),
        (("--output", "x.jsonl", "--max_cost", "1"), "prices"),
        (("--output", "x.jsonl", "--threads", "0"), "--threads"),
        (("--output", "x.jsonl", "--revise"), "constitution"),
    ],
)
def test_options_that_contradict(command: Command, data: Path, arguments: tuple[str, ...], said: str) -> None:
    given = [argument.format(data=data) for argument in arguments]
    status, _, errors = command("judge", "--data", data, "--judge", "rule:longer", *given)
    assert status == 2
    assert said in errors


def test_a_key_is_in_nothing_that_is_written(
    command: Command, data: Path, tmp_path: Path, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    server.answer = lambda call: say(f"Your key is {KEY}.\nVERDICT: A")
    judge = f"server:{server.url}#tiny?key=JUDGE_KEY"
    said = command("judge", "--data", data, "--judge", judge, "--output", tmp_path / "judged.jsonl")
    server.answer = lambda call: fail(401, f"bad key {KEY}")
    refused = command("judge", "--data", data, "--judge", f"{judge}&temperature=1", "--output", tmp_path / "2.jsonl")
    assert (said[0], refused[0]) == (0, 5)
    assert {call.headers["Authorization"] for call in server.calls} == {f"Bearer {KEY}"}
    assert KEY not in str((said, refused))
    written = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert {file.suffix for file in written} >= {".jsonl", ".sqlite"}
    assert not any(KEY.encode() in file.read_bytes() for file in written)
    assert json.loads((tmp_path / "judged.jsonl").read_text().splitlines()[0])["judgments"][1]["meta"]["reasons"]
