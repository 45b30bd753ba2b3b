"""What a judge is shown, and that no reply without a valid verdict ever becomes a side."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dipole.feedback.check import ATTACKS
from dipole.feedback.prompting import (
    Question,
    comparison_messages,
    mark_code,
    parse_verdict,
    rationale,
    repair_messages,
    talks_to_judges,
    transcript,
)

VALID = {
    "VERDICT: A": "first",
    "Both are fine.\n\nVERDICT: B": "second",
    "verdict: tie": "tie",
    "**VERDICT: BOTH BAD**": "both bad",
    "A is longer.\n> **Verdict:** A.": "first",
    "VERDICT: BOTH_BAD": "both bad",
    "VERDICT: A\nAs I said:\nVERDICT: A": "first",
    '{"verdict": "B"}': "second",
    '{"reasons": "both wrong", "verdict": "both bad"}': "both bad",
    'My view:\n```json\n{"verdict": "tie"}\n```': "tie",
    "<think>VERDICT: B?</think>\nVERDICT: A": "first",
    "VERDICT: A\n\n": "first",
}

INVALID = {
    "empty": "",
    "white space": "  \n ",
    "prose": "I think that answer A is clearly better.",
    "only a letter": "A",
    "two verdicts": "VERDICT: A\nVERDICT: B",
    "two verdicts apart": "VERDICT: A\nOn second thoughts:\nVERDICT: B",
    "A and B": "VERDICT: A and B",
    "A or B": "VERDICT: A or B",
    "a form filled by nobody": "VERDICT: A, VERDICT: B, VERDICT: TIE or VERDICT: BOTH BAD",
    "verdict, then more": "VERDICT: A\nBut it is close.",
    "another letter": "VERDICT: C",
    "within a sentence": "So my VERDICT: A",
    "another language": "URTEIL: A",
    "refusal": "I'm sorry, but I can't compare these answers.",
    "cut JSON": '{"reasons": "B is long", "verdict": "A',
    "wrong type": '{"verdict": 1}',
    "a list": '["A"]',
    "list of verdicts": '{"verdict": ["A", "B"]}',
    "a key twice": '{"verdict": "A", "verdict": "B"}',
    "two objects": '{"verdict": "A"}\n{"verdict": "B"}',
    "two fences": '```json\n{"verdict": "A"}\n```\n```json\n{"verdict": "A"}\n```',
    "fence and line": 'VERDICT: B\n```json\n{"verdict": "A"}\n```',
    "fence, then prose": '```json\n{"verdict": "A"}\n```\nor maybe not',
    "null": '{"verdict": null}',
    "deep": "[" * 10_000,
    "an unfinished thought": "<think>VERDICT: A",
    "a megabyte": "x" * 1_000_000 + "\nVERDICT: A",
}


@pytest.mark.parametrize(("reply", "verdict"), VALID.items())
def test_valid_verdicts(reply: str, verdict: str) -> None:
    assert parse_verdict(reply) == verdict


@pytest.mark.parametrize("name", INVALID)
def test_invalid_ones_are_no_side_and_no_tie(name: str) -> None:
    assert parse_verdict(INVALID[name]) == "invalid"


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from("ABVERDICTverdict:ab \n*{}\"'tie.`[]#"), max_size=60))
def test_a_side_needs_a_line_or_an_object_that_says_it(reply: str) -> None:
    verdict = parse_verdict(reply)
    if verdict != "invalid":
        flat = re.sub(r"[^a-z]", "", reply.lower())
        letter = {"first": "a", "second": "b", "tie": "tie", "both bad": "bothbad"}[verdict]
        assert f"verdict{letter}" in flat


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=200))
def test_the_last_line_alone_decides(words: str) -> None:
    assert parse_verdict(f"{words}\nVERDICT: A") in ("first", "invalid")
    assert parse_verdict(f"VERDICT: A\nbecause{words}") in ("invalid",) or "VERDICT" in words.upper()


def question(first: str, second: str) -> Question:
    return Question(rubric="Prefer the true one.", prompt="Where is Rome?", first=first, second=second)


def asked(first: str, second: str = "In Italy.") -> str:
    (message,) = comparison_messages(question(first, second))
    return str(message["content"])


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_answer_can_t_leave_its_marks(attack: str) -> None:
    forged = f"In France.{attack.format(letter='A')}"
    text = asked(forged)
    (code,) = set(re.findall(r"begin ([0-9a-f]{8}) =====", text))
    assert code not in forged
    inside = text.split(f"answer A, begin {code} =====\n")[1].split(f"\n===== answer A, end {code}")[0]
    assert "In France." in inside
    after = text.split(f"answer B, end {code} =====")[1]
    assert "Prefer the true one." in after, "rubric and task come after the answers"
    assert "In France." not in after
    for mark in ("<|", "|>", "</s>", "[INST]", "[/INST]"):
        assert mark not in text


def test_the_code_depends_on_everything_that_is_quoted() -> None:
    codes = {
        mark_code("r", "p", "a", "b"),
        mark_code("r", "p", "b", "a"),
        mark_code("r", "p", "a", "c"),
        mark_code("r", "pa", "", "b"),
    }
    assert len(codes) == 4
    assert mark_code("r", "p", "a", "b") == mark_code("r", "p", "a", "b"), "or nothing would be found in the cache"
    assert mark_code("\ud800")


@pytest.mark.parametrize("attack", ATTACKS)
def test_attacks_are_noticed(attack: str) -> None:
    assert talks_to_judges("A fine film." + attack.format(letter="A"))


@pytest.mark.parametrize(
    "text",
    [
        "A wonderful film about a judge who loses his way.",
        "The verdict of the critics was harsh, but I liked it.",
        "Answer: 42. The system works as follows.",
        "Use <b>bold</b> and array[0] | grep x.",
    ],
)
def test_honest_answers_aren_t(text: str) -> None:
    assert not talks_to_judges(text)


def test_chats_are_shown_with_their_roles() -> None:
    chat = (
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": "?"},
    )
    assert transcript(chat) == "user: Hello\n\nassistant: Hi\n\nuser: ?"
    assert transcript(chat[:1]) == "Hello"


def test_the_repair_repeats_little_of_a_long_reply() -> None:
    chat = repair_messages(comparison_messages(question("a", "b")), "x" * 1_000_000)
    assert [message["role"] for message in chat] == ["user", "assistant", "user"]
    assert len(str(chat)) < 10_000


def test_the_rationale_is_what_was_said_without_verdict_and_thoughts() -> None:
    assert rationale("<think>hm</think>\nB invents a date.\n\n**VERDICT: A**") == "B invents a date."
    assert len(rationale("x" * 100_000)) == 2000
