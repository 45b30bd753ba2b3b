"""What a tokenizer makes of the data, with a tokenizer of single bytes: a character is a token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import dipole
from conftest import build_tokenizer
from dipole.data.audit import AuditReport, Finding, audit
from dipole.data.audit.likelihood import ScoredPair, check_likelihood
from dipole.data.audit.tokens import TokenCheck
from dipole.errors import ConfigError
from dipole.group import Comparison, Completion, Group, Text


def group(id: str, prompt: Text, *answers: Text) -> Group:
    completions = tuple(Completion(text=answer) for answer in answers)
    return Group(id=id, prompt=prompt, completions=completions, judgments=(Comparison(i=0, j=1),))


def tried(*groups: Group, max_length: int = 20, tokenizer: Any = None, **options: Any) -> AuditReport:
    check = TokenCheck(tokenizer or build_tokenizer(), max_length=max_length, **options)
    return audit(groups, depth="errors", tokens=check)


def found(report: AuditReport, name: str) -> Finding:
    (finding,) = [item for item in (*report.errors, *report.findings) if item.name == name]
    return finding


def test_truncation_is_counted_by_side() -> None:
    """A prompt of 10 leaves 10 tokens, the end among them: answers of 9 characters fit, one of 12 loses 3 tokens."""
    report = tried(group("a", "p" * 10, "x" * 12, "y" * 9), group("b", "p" * 10, "x" * 9, "y" * 9))
    finding = found(report, "truncation")
    assert finding.value == {"all": 0.25, "tokens": 3, "preferred": 0.5, "other": 0}
    assert report.errors == ()


def test_a_prompt_without_room_for_an_answer() -> None:
    report = tried(group("a", "p" * 20, "x", "y"), group("b", "p", "x", "y"))
    assert found(report, "prompt_too_long").examples == ("a: 'pppppppppppppppppppp'",)
    assert [error.name for error in report.errors] == ["prompt_too_long"]


def test_answers_that_differ_beyond_the_limit() -> None:
    report = tried(group("a", "p" * 10, "same " * 5 + "x", "same " * 5 + "y"))
    assert [error.name for error in report.errors] == ["equal_when_cut"]


def test_shared_beginnings() -> None:
    """Of the shorter answer's 5 tokens, its end among them, 4 are shared; of 2, none."""
    finding = found(tried(group("a", "p", "abcdx", "abcd"), group("b", "p", "x", "yz")), "shared_prefix")
    assert finding.value == pytest.approx((4 / 5 + 0) / 2)


def test_the_cost() -> None:
    """Prompt 2, answers 3 and 4 with their ends."""
    finding = found(tried(group("a", "pp", "xx", "yyy"), parameters=1000), "num_tokens")
    assert finding.value == 9
    assert "7.2e+04 operations" in finding.message


def test_suggested_settings_leave_nearly_all_whole() -> None:
    report = tried(*(group(f"g{n}", "p" * 60, "x" * 30, "y" * 40) for n in range(10)))
    assert found(report, "suggested_settings").value == {"max_length": 128, "max_tokens_per_microbatch": 192}


def test_a_template_that_drops_a_message() -> None:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "{% for message in messages %}", "{% for message in messages if message.role != 'system' %}"
    )
    prompt = ({"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"})
    answers = [({"role": "assistant", "content": text},) for text in ("Hello", "Go")]
    finding = found(tried(group("a", prompt, *answers), tokenizer=tokenizer, max_length=500), "template_damage")
    assert (finding.severity, finding.examples) == ("severe", ("a: message 1 (system) isn't where it should be",))
    assert found(tried(group("a", prompt, *answers), max_length=500), "template_damage").value == 0


def test_a_template_that_refuses_is_an_error_of_the_group() -> None:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('no such role') if messages[0].role == 'system' }}" + str(
        tokenizer.chat_template
    )
    user = {"role": "user", "content": "Hi"}
    groups = [group("bad", ({"role": "system", "content": "S"}, user), "a", "b"), group("good", (user,), "a", "b")]
    report = tried(*groups, tokenizer=tokenizer, max_length=500)
    (error,) = report.errors
    assert (error.name, error.value) == ("template_refuses", 1)
    assert error.examples[0].startswith("bad: ")


def test_special_tokens_in_the_text() -> None:
    finding = found(tried(group("a", "p <|start|>system", "x", "y")), "special_tokens")
    assert (finding.severity, finding.examples) == ("severe", ("a: holds <|start|> as text",))


def test_messages_need_a_template() -> None:
    prompt = ({"role": "user", "content": "Hi"},)
    with pytest.raises(ConfigError, match="no chat template"):
        tried(group("a", prompt, "x", "y"), tokenizer=build_tokenizer(chat=False))


# Likelihood


def scored(*gaps: float) -> list[ScoredPair]:
    return [ScoredPair(group(f"g{n}", f"P{n}", "x", "y"), 0, 1, gap, 0.0) for n, gap in enumerate(gaps)]


def test_pairs_that_are_absurd_to_the_reference() -> None:
    likelier, absurd = check_likelihood(scored(*(n / 100 for n in range(-50, 50)), -9.0))
    assert likelier.value == pytest.approx(51 / 101)
    assert absurd.value == pytest.approx(1 / 101)
    assert absurd.examples == ("g100: 'x' preferred to 'y' (-9.0 nats a token)",)


def test_nothing_is_absurd_where_all_is_alike() -> None:
    assert [finding.value for finding in check_likelihood(scored(*[0.5] * 20))] == [0, 0]


def test_a_real_audit_asks_the_model(tiny_folder: Path) -> None:
    groups = [group(f"g{n}", f"Prompt {n}", f"one {n}", f"another {n}") for n in range(12)]
    report = dipole.audit(groups, model=tiny_folder, max_length=64, model_pairs=8, depth="cheap")
    assert "of 8 pairs" in found(report, "rejected_likelier").message
    assert found(report, "num_tokens").value == sum(len(f"Prompt {n}one {n}another {n}") + 2 for n in range(12))
