"""Errors that stop training, and findings against numbers worked out by hand."""

from __future__ import annotations

import json
import unicodedata
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from dipole.data import validate
from dipole.data.audit import AuditReport, Finding, audit, wilson_interval
from dipole.data.media import media_faults
from dipole.data.validate import faults, fold, plainly_sound
from dipole.errors import DataError
from dipole.group import Approval, Comparison, Completion, Group, Judgment, Rating, Text

ANSWERS = ("first", "the second one")


def group(
    id: str = "g",
    *judgments: Judgment,
    prompt: Text = "A prompt",
    answers: tuple[Text, ...] = ANSWERS,
    split: str | None = None,
) -> Group:
    return Group(
        id=id,
        prompt=prompt,
        completions=tuple(Completion(text=answer) for answer in answers),
        judgments=judgments or (Comparison(i=0, j=1),),
        split=split,
    )


def chat(*roles: str) -> Text:
    return tuple({"role": role, "content": f"{role} speaks"} for role in roles)


def found(report: AuditReport, name: str) -> Finding:
    (finding,) = [item for item in (*report.errors, *report.findings) if item.name == name]
    return finding


def names(findings: tuple[Finding, ...]) -> list[str]:
    return [finding.name for finding in findings]


# Single groups


def test_a_sound_group_has_no_faults() -> None:
    assert faults(group()) == []
    assert faults(group(prompt=chat("system", "user"), answers=(chat("assistant"), "text"))) == []


@pytest.mark.parametrize(
    ("answers", "is_fault"),
    [
        (("Yes.", "Yes."), True),
        (("Yes.", "  yes.\n"), True),
        (("ﬁne", "fine"), True),  # NFKC takes ligatures apart
        (("Yes.", "Yes!"), False),
        ((chat("assistant"), chat("assistant")), True),
        (
            (
                ({"role": "assistant", "content": "Look", "tool_calls": [{"name": "a"}]},),
                ({"role": "assistant", "content": "Look", "tool_calls": [{"name": "b"}]},),
            ),
            False,
        ),
    ],
)
def test_identical_completions(answers: tuple[Text, ...], is_fault: bool) -> None:
    assert [fault.name for fault in faults(group(answers=answers))] == ["identical_completions"] * is_fault


def test_a_tie_between_equals_is_no_fault() -> None:
    assert faults(group("g", Comparison(i=0, j=1, p=0.5), answers=("a", "a"))) == []
    assert faults(group("g", Rating(i=0, value=1), Rating(i=1, value=2), answers=("a", "a"))) != []


@pytest.mark.parametrize(
    "blank", ["", " \n", "\u200b", "\x00", "\u3164", "\ufe0f\u2800", ({"role": "assistant", "content": ""},)]
)
def test_blank_completions(blank: Text) -> None:
    assert "empty_completion" in {fault.name for fault in faults(group(answers=("a", blank)))}


def test_a_message_with_a_tool_call_or_an_image_isnt_blank() -> None:
    call = ({"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]},)
    image = ({"role": "assistant", "content": [{"type": "image", "path": "a.png"}]},)
    assert faults(group(answers=(call, image))) == []


@pytest.mark.parametrize(
    ("prompt", "answer", "is_fault"),
    [
        (("user",), ("assistant",), False),
        (("developer", "user", "assistant", "tool", "assistant", "user"), ("assistant", "tool", "assistant"), False),
        (("user", "assistant", "tool"), ("assistant",), False),
        (("user", "user"), ("assistant",), True),
        (("assistant", "user"), ("assistant",), True),
        (("user", "system", "user"), ("assistant",), True),
        (("system",), ("assistant",), True),
        (("user", "assistant"), ("assistant",), True),
        (("narrator",), ("assistant",), True),
        (("user",), ("user",), True),
        (("user",), ("assistant", "user", "assistant"), True),
        (("user",), ("assistant", "tool"), True),
        (("user",), ("assistant", "assistant"), True),
    ],
)
def test_roles(prompt: tuple[str, ...], answer: tuple[str, ...], is_fault: bool) -> None:
    names = {fault.name for fault in faults(group(prompt=chat(*prompt), answers=(chat(*answer), "other")))}
    assert names == ({"roles_out_of_order"} if is_fault else set())


def test_fold() -> None:
    assert fold(" Ａ\tGroße\n\nStraße ") == "a grosse strasse"
    assert fold(chat("user")) != fold(chat("system"))


PIECES = ["a", "A", " ", "\t", "  ", "\x00", "x" * 30, "X" * 31, "y" * 32, " z" * 16, "é", "e", "\u0301", "\ud83d", "ﬁ"]
pieces = st.lists(st.sampled_from([*PIECES, "\u3164", "\u200b", "ß", "*"]), max_size=5).map("".join)
answers = st.lists(pieces | st.sampled_from([chat("assistant"), chat("user")]), min_size=1, max_size=3)


@settings(max_examples=600, deadline=None)
@given(prompt=pieces | st.just(chat("assistant")), answers=answers, judged=st.booleans(), twin=st.booleans())
def test_a_glance_passes_nothing_that_a_look_finds(prompt: Text, answers: list[Text], judged: bool, twin: bool) -> None:
    if twin and isinstance(answers[0], str):
        answers = [answers[0], f" {answers[0].swapcase()}", *answers[1:]]
    votes = tuple(Rating(i=i, value=i) for i in range(len(answers))) if judged else ()
    looked_at = Group(
        id="g", prompt=prompt, completions=tuple(Completion(text=answer) for answer in answers), judgments=votes
    )
    found = [fault for check in validate._CHECKS for fault in check(looked_at)]
    assert faults(looked_at) == found
    if plainly_sound(looked_at):
        assert found == []
        assert list(media_faults(looked_at, None)) == []


def test_a_glance_passes_common_groups() -> None:
    assert plainly_sound(group())
    assert plainly_sound(group(answers=("* " + "a word " * 20 + "é", "A word " * 20 + "👩‍👩‍👧")))
    assert not plainly_sound(group(answers=("a", "A ")))


@given(text=pieces)
def test_folding_takes_no_short_cut_that_changes_anything(text: str) -> None:
    assert fold(text) == " ".join(unicodedata.normalize("NFKC", text).casefold().split())


# Errors of the whole


def test_sound_data_have_no_errors() -> None:
    report = audit([group("a"), group("b", prompt="Another")])
    assert report.errors == ()
    report.raise_for_errors("pairs.jsonl")


def test_errors_are_counted_with_three_examples() -> None:
    groups = [group(f"g{i}", answers=("same", "same")) for i in range(5)] + [group("good")]
    error = found(audit(groups), "identical_completions")
    assert (error.severity, error.value) == ("severe", 5)
    assert error.examples == tuple(f"g{i}: completions 0 and 1 are equal" for i in range(3))


def test_raising_names_file_examples_and_remedy() -> None:
    with pytest.raises(
        DataError, match=r"^pairs.jsonl: empty prompt in 1 of 1 groups \(g: the prompt is empty\)\. Give"
    ):
        audit([group(prompt="")]).raise_for_errors("pairs.jsonl")


def test_forms_must_not_be_mixed() -> None:
    error = found(audit([group("t"), group("c", prompt=chat("user"))]), "mixed_forms")
    assert error.examples == ("t: text", "c: chat")


def test_a_prompt_in_both_sets_is_a_leak() -> None:
    train, held_out = (
        [group("a"), group("b", prompt="Other")],
        [group("e", prompt=" a PROMPT"), group("f", prompt="New")],
    )
    error = found(audit(train, eval_groups=held_out), "leak")
    assert (error.value, error.examples) == (1, ("e: 'a PROMPT'",))
    assert audit(train, eval_groups=held_out[1:]).errors == ()


def test_held_out_splits_are_evaluation_data() -> None:
    groups = [group("a", split="train"), group("b", split="test", answers=("new", "answers"))]
    assert names(audit(groups).errors) == ["leak"]
    assert audit(groups, allow_shared_prompts=True).errors == ()


def test_shared_prompts_still_leak_by_their_answers() -> None:
    report = audit([group("a")], eval_groups=[group("b", answers=("FIRST", "new"))], allow_shared_prompts=True)
    assert found(report, "leak").examples[0].startswith("b: ")


# Findings


def test_sizes_and_lengths() -> None:
    report = audit([group("a"), group("b", Comparison(i=0, j=1), Comparison(i=1, j=0))])
    assert [found(report, f"num_{noun}").value for noun in ("groups", "completions", "judgments")] == [2, 4, 3]
    assert found(report, "completion_length").value == {"5%": 5.0, "50%": 9.5, "95%": 14.0, "max": 14.0}
    assert found(report, "prompt_length").value == dict.fromkeys(("5%", "50%", "95%", "max"), 8.0)


def test_duplicate_prompts() -> None:
    finding = found(audit([group("a"), group("b", prompt="a  prompt"), group("c", prompt="New")]), "duplicate_prompts")
    assert (finding.value, finding.severity) == (pytest.approx(1 / 3), "info")
    assert finding.examples == ("b: 'a prompt'",)


def test_the_share_of_ties_takes_a_group_as_one_observation() -> None:
    tied = group("a", Comparison(i=0, j=1, p=0.5))
    half = group("b", Comparison(i=0, j=1, p=0.5), Comparison(i=0, j=2), answers=("a", "b", "c"))
    finding = found(audit([tied, half]), "ties")
    assert finding.value == 0.75
    assert finding.interval == pytest.approx(wilson_interval(1.5, 2))


def longer_wins(wins: int, of: int) -> list[Group]:
    return [group(f"g{n}", Comparison(i=n < wins, j=n >= wins), prompt=f"P{n}") for n in range(of)]


@pytest.mark.parametrize(
    ("wins", "severity"), [(50, "info"), (60, "info"), (75, "warning"), (95, "severe"), (25, "warning"), (5, "severe")]
)
def test_the_longer_answer(wins: int, severity: str) -> None:
    """The whole interval has to lie beyond a limit; at 60 of 100 it begins at 0.50, at 75 at 0.66, at 95 at 0.89."""
    finding = found(audit(longer_wins(wins, 100)), "longer_preferred")
    assert (finding.value, finding.severity) == (wins / 100, severity)
    assert finding.interval == pytest.approx(wilson_interval(wins, 100))


def test_equal_lengths_and_ties_say_nothing_about_length() -> None:
    groups = [group("a", answers=("ab", "cd")), group("b", Comparison(i=0, j=1, p=0.5))]
    assert "longer_preferred" not in names(audit(groups).findings)


def test_contradictions_within_and_across_groups() -> None:
    """One pair is judged 2 to 1: two of three pairs of judgments contradict. Another, in two groups, 1 to 1: all do."""
    judged = group("a", *(Comparison(i=i, j=1 - i, annotator=str(n)) for n, i in enumerate((0, 0, 1))))
    twice = [group("b", prompt="Other"), group("c", Comparison(i=0, j=1), prompt="other", answers=ANSWERS[::-1])]
    finding = found(audit([judged, *twice]), "contradictions")
    assert finding.value == pytest.approx((2 / 3 + 1) / 2)
    assert finding.examples == ("a: judged 2 to 1", "c: judged 1 to 1")
    assert "2 of 2 pairs" in finding.message


def test_agreeing_annotators_are_no_worry() -> None:
    groups = [
        group(f"g{n}", Comparison(i=0, j=1, annotator="a"), Comparison(i=0, j=1, annotator="b"), prompt=f"P{n}")
        for n in range(20)
    ]
    finding = found(audit(groups), "contradictions")
    assert (finding.value, finding.severity) == (0, "info")


def test_many_contradictions_are_severe() -> None:
    groups = [
        group(f"g{n}", Comparison(i=0, j=1, annotator="a"), Comparison(i=1, j=0, annotator="b"), prompt=f"P{n}")
        for n in range(20)
    ]
    assert found(audit(groups), "contradictions").severity == "severe"


def test_prompts_repeated_in_answers() -> None:
    prompt = "What is the capital of France?"
    finding = found(audit([group(prompt=prompt, answers=(f"{prompt} Paris", "Lyon"))]), "prompt_repeated")
    assert (finding.value, finding.severity) == (0.5, "severe")
    assert "prompt_repeated" not in names(audit([group(prompt="Hi", answers=("Hi there", "Hi"))]).findings)


# The report


def test_the_report_is_json() -> None:
    report = audit([group("a"), group("b", answers=("x", "x"))])
    loaded = json.loads(json.dumps(report.to_json()))
    assert {"name", "severity", "message", "value", "interval", "examples", "remedy"} == loaded["errors"][0].keys()
    assert loaded["errors"][0]["name"] == "identical_completions"


def test_the_summary_is_three_lines() -> None:
    sizes, errors, warnings = audit([*longer_wins(95, 100), group("x", answers=("", "b"))]).summary()
    assert sizes == "101 groups · 202 completions · 101 judgments"
    assert errors == "errors: empty completion in 1 of 101 groups"
    assert warnings.startswith("warnings: the longer answer is preferred in 9")


def test_groups_of_approvals_can_be_audited() -> None:
    report = audit([group("a", Approval(i=0, value=True), answers=("a",))])
    assert report.errors == ()


def test_no_groups() -> None:
    assert audit([]).errors == ()


@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (3, 10), (10, 10), (71, 100)])
def test_wilson_interval(successes: int, trials: int) -> None:
    oracle = stats.binomtest(successes, trials).proportion_ci(method="wilson")
    z: Any = stats.norm.ppf(0.975)
    assert wilson_interval(successes, trials, z) == pytest.approx((oracle.low, oracle.high))
    assert wilson_interval(0, 0) == (0, 1)
