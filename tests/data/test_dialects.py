"""Every layout that preference data come in, read from rows written by hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dipole.data.formats import load_groups
from dipole.errors import DataError
from dipole.group import Approval, Comparison, Group, Ranking, Rating, Text


def user(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: str) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


def system(content: str) -> dict[str, Any]:
    return {"role": "system", "content": content}


@pytest.fixture
def read(tmp_path: Path):  # type: ignore[no-untyped-def]
    def read_rows(*rows: dict[str, Any]) -> list[Group]:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return load_groups(path)

    return read_rows


def texts(group: Group) -> list[Text]:
    return [completion.text for completion in group.completions]


# Pairs


def test_pairs_as_text(read) -> None:  # type: ignore[no-untyped-def]
    (group,) = read({"prompt": "Q", "chosen": "yes", "rejected": "no"})
    assert (group.id, group.prompt, texts(group)) == ("rows.jsonl:1", "Q", ["yes", "no"])
    assert group.judgments == (Comparison(i=0, j=1),)


def test_pairs_as_messages(read) -> None:  # type: ignore[no-untyped-def]
    (group,) = read({"prompt": [user("Q")], "chosen": [assistant("yes")], "rejected": [assistant("no")]})
    assert group.prompt == (user("Q"),)
    assert texts(group) == [(assistant("yes"),), (assistant("no"),)]


def test_a_chat_prompt_makes_text_answers_messages(read) -> None:  # type: ignore[no-untyped-def]
    (group,) = read({"prompt": [user("Q")], "chosen": "yes", "rejected": assistant("no")})
    assert texts(group) == [(assistant("yes"),), (assistant("no"),)]


def test_optional_columns(read) -> None:  # type: ignore[no-untyped-def]
    (group,) = read(
        {
            "id": 7,
            "prompt": "Q",
            "chosen": "yes",
            "rejected": "no",
            "pair_prob": 0.8,
            "weight": 2,
            "annotator": "ann",
            "split": "test",
            "system": " ",
            "margin": 1.5,
            "nothing": None,
            "meta": {"category": "safety"},
        }
    )
    assert (group.id, group.split, group.prompt) == ("7", "test", "Q")
    assert group.judgments == (Comparison(i=0, j=1, p=0.8, weight=2.0, annotator="ann"),)
    assert group.meta == {"category": "safety", "margin": 1.5}


@pytest.mark.parametrize("name", ["p", "pair_prob", "chosen_prob"])
def test_names_of_the_probability(read, name: str) -> None:  # type: ignore[no-untyped-def]
    (group,) = read({"prompt": "Q", "chosen": "yes", "rejected": "no", name: 0.25})
    assert group.judgments == (Comparison(i=0, j=1, p=0.25),)


def test_scores_of_a_pair_are_ratings(read) -> None:  # type: ignore[no-untyped-def]
    (group,) = read({"prompt": "Q", "chosen": "yes", "rejected": "no", "score_chosen": 8, "score_rejected": 3.5})
    assert group.judgments == (Comparison(i=0, j=1), Rating(i=0, value=8.0), Rating(i=1, value=3.5))


def test_several_rejected(read) -> None:  # type: ignore[no-untyped-def]
    (group,) = read({"prompt": "Q", "chosen": "yes", "rejected": ["no", "never"], "p": [0.9, 1]})
    assert texts(group) == ["yes", "no", "never"]
    assert group.judgments == (Comparison(i=0, j=1, p=0.9), Comparison(i=0, j=2))


def test_several_rejected_chats(read) -> None:  # type: ignore[no-untyped-def]
    rows = {"prompt": [user("Q")], "chosen": [assistant("yes")], "rejected": [[assistant("no")], [assistant("never")]]}
    assert texts(read(rows)[0]) == [(assistant("yes"),), (assistant("no"),), (assistant("never"),)]


def test_a_system_column_becomes_the_system_message(read) -> None:  # type: ignore[no-untyped-def]
    (group,) = read({"system": "Be brief.", "prompt": "Q", "chosen": "yes", "rejected": "no"})
    assert group.prompt == (system("Be brief."), user("Q"))
    assert texts(group) == [(assistant("yes"),), (assistant("no"),)]


# The prompt inside


def test_prompt_inside_of_chats(read) -> None:  # type: ignore[no-untyped-def]
    shared = [system("S"), user("one"), assistant("two"), user("three")]
    (group,) = read({"chosen": [*shared, assistant("yes")], "rejected": [*shared, assistant("no")]})
    assert group.prompt == tuple(shared)
    assert texts(group) == [(assistant("yes"),), (assistant("no"),)]


def test_prompt_inside_of_transcripts(read) -> None:  # type: ignore[no-untyped-def]
    start = "\n\nHuman: Hi: there\n\nAssistant: Hello!\n\nHuman: Why?\n\nIn two lines\n\nAssistant:"
    (group,) = read({"chosen": f"{start} Because.\n\nSo.", "rejected": f"{start} Bye."})
    assert group.prompt == (user("Hi: there"), assistant("Hello!"), user("Why?\n\nIn two lines"))
    assert texts(group) == [(assistant("Because.\n\nSo."),), (assistant("Bye."),)]


def test_transcript_prompt_with_the_answers_apart(read) -> None:  # type: ignore[no-untyped-def]
    (group,) = read({"prompt": "\n\nHuman: Why?\n\nAssistant:", "chosen": " So.", "rejected": " No."})
    assert group.prompt == (user("Why?"),)
    assert texts(group) == [(assistant("So."),), (assistant("No."),)]


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt", "answers"),
    [
        ("Q: 6·7? A: 42", "Q: 6·7? A: 4", "Q: 6·7? A:", [" 42", " 4"]),  # "4" is in both, yet words stay whole
        ("Why?\nBecause", "Why?\nNo", "Why?\n", ["Because", "No"]),
        (
            "Say yes or no: yes",
            "Say yes or no: yes, sir",
            "Say yes or no:",
            [" yes", " yes, sir"],
        ),  # one begins the other
        ("same words here", "same words here", "same words", [" here", " here"]),
        ("Now trailing: a  ", "Now trailing: b", "Now trailing:", [" a  ", " b"]),
    ],
)
def test_prompt_inside_of_text(  # type: ignore[no-untyped-def]
    read, chosen: str, rejected: str, prompt: str, answers: list[str]
) -> None:
    (group,) = read({"chosen": chosen, "rejected": rejected})
    assert (group.prompt, texts(group)) == (prompt, answers)


@pytest.mark.parametrize(
    ("chosen", "rejected", "problem"),
    [
        ("yes", "no", "no beginning in common"),
        ("word", "words", "no beginning in common"),
        ([user("Q"), assistant("a")], [user("R"), assistant("b")], "no first message in common"),
        ([user("Q"), assistant("a")], "Q b", "one answer is text"),
        (
            [user("Q"), assistant("a"), user("R"), assistant("b")],
            [user("Q"), assistant("a"), user("S"), assistant("c")],
            "part at message 3",
        ),
    ],
)
def test_answers_without_a_common_prompt(read, chosen: Any, rejected: Any, problem: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(DataError, match=problem):
        read({"chosen": chosen, "rejected": rejected})


# UltraFeedback


MIXED = {
    "prompt": "Q",
    "prompt_id": "abc",
    "chosen": [user("Q"), assistant("yes")],
    "rejected": [user("Q"), assistant("no")],
    "messages": [user("Q"), assistant("yes")],
    "score_chosen": 8.5,
    "score_rejected": 8.5,
}


def test_the_mixed_layout_holds_the_prompt_once(read) -> None:  # type: ignore[no-untyped-def]
    (group,) = read(MIXED)
    assert group.prompt == (user("Q"),)
    assert texts(group) == [(assistant("yes"),), (assistant("no"),)]
    assert group.meta == {"prompt_id": "abc", "messages": MIXED["messages"]}


def test_the_mixed_layout_reads_the_same_for_every_hash_seed(tmp_path: Path) -> None:
    path = tmp_path / "mixed.jsonl"
    path.write_text(json.dumps(MIXED) + "\n")
    program = f"from dipole.data.formats import load_groups; print(load_groups({str(path)!r}))"
    printed = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in (1, 2, 3)
    }
    assert len(printed) == 1
    assert printed.pop().count("'user'") == 2  # the prompt, and the note


def test_the_mixed_layout_with_a_system_message_inside(read) -> None:  # type: ignore[no-untyped-def]
    start = [system("S"), user("Q")]
    (group,) = read({"prompt": "Q ", "chosen": [*start, assistant("a")], "rejected": [*start, assistant("b")]})
    assert group.prompt == tuple(start)


def test_the_mixed_layout_with_one_answer(read) -> None:  # type: ignore[no-untyped-def]
    (group,) = read({"prompt": "Q", "completion": [user("Q"), assistant("a")], "label": True})
    assert (group.prompt, texts(group)) == ((user("Q"),), [(assistant("a"),)])


def test_the_original_layout_is_rated(read) -> None:  # type: ignore[no-untyped-def]
    (group,) = read(
        {
            "source": "sharegpt",
            "instruction": "Q",
            "models": ["m", "n"],
            "completions": [
                {"model": "m", "response": "a", "overall_score": 7.5, "critique": "fine"},
                {"model": "n", "response": "b", "overall_score": 5},
            ],
        }
    )
    assert group.prompt == "Q"
    assert [(c.text, c.source, c.meta) for c in group.completions] == [
        ("a", "m", {"critique": "fine"}),
        ("b", "n", {}),
    ]
    assert group.judgments == (Rating(i=0, value=7.5), Rating(i=1, value=5.0))
    assert group.meta == {"source": "sharegpt", "models": ["m", "n"]}


def test_aspects_are_annotators_of_their_own(read) -> None:  # type: ignore[no-untyped-def]
    def rated(text: str, helpful: str, honest: str) -> dict[str, Any]:
        return {
            "response": text,
            "annotations": {"helpfulness": {"Rating": helpful, "Rationale": "…"}, "honesty": [{"Rating": honest}]},
        }

    (group,) = read({"instruction": "Q", "completions": [rated("a", "4", "N/A"), rated("b", "2", "5")]})
    assert group.judgments == (
        Rating(i=0, value=4.0, annotator="helpfulness"),
        Rating(i=1, value=2.0, annotator="helpfulness"),
        Rating(i=1, value=5.0, annotator="honesty"),
    )


# Approvals, scores, ranks, prompts


@pytest.mark.parametrize(("label", "value"), [(True, True), (False, False), (1, True), (0, False)])
def test_approvals(read, label: Any, value: bool) -> None:  # type: ignore[no-untyped-def]
    (group,) = read({"prompt": "Q", "completion": "a", "label": label, "annotator": 3})
    assert group.judgments == (Approval(i=0, value=value, annotator="3"),)


@pytest.mark.parametrize("name", ["responses", "completions", "answers"])
def test_scored_answers(read, name: str) -> None:  # type: ignore[no-untyped-def]
    (group,) = read({"prompt": "Q", name: ["a", "b", "c"], "scores": [1, 3.5, -2], "annotator": "ann"})
    assert texts(group) == ["a", "b", "c"]
    assert group.judgments == tuple(Rating(i=i, value=v, annotator="ann") for i, v in enumerate([1.0, 3.5, -2.0]))


def test_answers_without_a_judgment(read) -> None:  # type: ignore[no-untyped-def]
    assert read({"prompt": "Q", "responses": ["a", "b"]})[0].judgments == ()


def test_a_ranking_names_answers_by_place(read) -> None:  # type: ignore[no-untyped-def]
    (group,) = read({"prompt": "Q", "responses": ["a", "b", "c"], "ranking": [2, 0, 1]})
    assert group.judgments == (Ranking(order=(2, 0, 1)),)


def test_ranks_are_of_the_answers_in_their_order(read) -> None:  # type: ignore[no-untyped-def]
    (group,) = read({"prompt": "Q", "responses": ["a", "b", "c"], "ranks": [2, 3, 1]})
    assert group.judgments == (Ranking(order=(2, 0, 1)),)


def test_shared_ranks_are_ties(read) -> None:  # type: ignore[no-untyped-def]
    (group,) = read({"prompt": "Q", "responses": ["a", "b", "c"], "ranks": [2, 1, 2]})
    assert group.judgments == (Comparison(i=1, j=0), Comparison(i=1, j=2), Comparison(i=0, j=2, p=0.5))


def test_prompts_alone(read) -> None:  # type: ignore[no-untyped-def]
    (group,) = read({"prompt": "Q", "system": "S"})
    assert (group.prompt, group.completions) == ((system("S"), user("Q")), ())


def test_the_native_format(read) -> None:  # type: ignore[no-untyped-def]
    (group,) = read(
        {
            "id": "g1",
            "prompt": [user("Q")],
            "completions": [{"text": "a", "source": "m"}, {"text": [assistant("b")], "meta": {"x": 1}}, "c"],
            "judgments": [
                {"kind": "comparison", "i": 0, "j": 1, "p": 0.8, "annotator": "ann-3"},
                {"kind": "ranking", "order": [2, 0]},
                {"kind": "rating", "i": 1, "value": 4, "weight": 0.5},
                {"kind": "approval", "i": 1, "value": False},
            ],
            "split": "train",
            "meta": {"category": "safety"},
        }
    )
    assert (group.id, group.split, group.meta) == ("g1", "train", {"category": "safety"})
    assert texts(group) == ["a", (assistant("b"),), "c"]
    assert group.judgments == (
        Comparison(i=0, j=1, p=0.8, annotator="ann-3"),
        Ranking(order=(2, 0)),
        Rating(i=1, value=4.0, weight=0.5),
        Approval(i=1, value=False),
    )


def test_optional_columns_may_come_and_go(read) -> None:  # type: ignore[no-untyped-def]
    row = {"prompt": "Q", "chosen": "yes", "rejected": "no"}
    assert [group.meta for group in read(row, row | {"note": "x"}, row)] == [{}, {"note": "x"}, {}]
