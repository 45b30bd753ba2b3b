"""Chat templates that loop for ever, fill the memory or the disk, or aren't there: refused, soon, with what to do."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import pytest

from conftest import CHAT_TEMPLATE, build_tokenizer
from dipole.data import template
from dipole.data.audit.tokens import TokenCheck
from dipole.data.reduce import LabeledGroup, PairRelation
from dipole.data.template import render
from dipole.data.tokenize import TokenizeOptions, tokenize_groups
from dipole.errors import ConfigError, DataError
from dipole.group import Comparison, Completion, Group

HELLO = ({"role": "user", "content": "hello"},)
ANSWERS = [({"role": "assistant", "content": text},) for text in ("yes", "no")]
EVIL = ({"role": "user", "content": "now"},)
# Constants would be computed when a template is compiled, within the same limits.
NESTED = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
DOUBLED = "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}"


def tokenizer(chat_template: Any) -> Any:
    built = build_tokenizer()
    built.chat_template = chat_template
    return built


def group(prompt: Any = HELLO) -> Group:
    return Group(
        id="g",
        prompt=prompt,
        completions=tuple(Completion(text=answer) for answer in ANSWERS),
        judgments=(Comparison(i=0, j=1),),
    )


@pytest.mark.parametrize(
    ("hostile", "said", "seconds"),
    [
        (NESTED, "more than 1 s of computing", 1),
        ("{{ 9 ** (messages | length * 10 ** 9) }}", "more than 1 s of computing", 1),  # nothing in Python stops it
        (DOUBLED, "more than 1,024 MiB of memory", 20),
        ("{{ 'a' * (messages | length * 10 ** 8) }}", "writes far more than it is given", 20),
    ],
    ids=["endless", "one long operation", "doubled", "long"],
)
def test_a_template_that_takes_too_much_is_refused(
    hostile: str, said: str, seconds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It behaves until it sees a certain message, so that no trial at the start would show it."""
    monkeypatch.setattr(template, "SECONDS", seconds)
    bad = tokenizer(f"{{% if messages[0]['content'] == 'now' %}}{hostile}{{% endif %}}{CHAT_TEMPLATE}")
    began = time.monotonic()
    with pytest.raises(ConfigError, match=said) as caught:
        render([(HELLO, ANSWERS), (EVIL, ANSWERS)], bad)
    assert time.monotonic() - began < 60
    assert "'now'" in (caught.value.where or "")
    assert "use another model" in (caught.value.remedy or "")
    assert caught.value.exit_status == 2
    assert len(render([(HELLO, ANSWERS)], tokenizer(CHAT_TEMPLATE))[0]) == 3  # and others are rendered as before


def test_an_audit_meets_a_hostile_template_within_the_same_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template, "SECONDS", 1)
    check = TokenCheck(tokenizer(NESTED), max_length=100)
    check.add(group())
    with pytest.raises(ConfigError, match="chat template needs more than"):
        list(check.errors())


@pytest.mark.parametrize(
    "escape", ["{{ ''.__class__.__mro__ }}", "{{ messages.__class__.__base__.__subclasses__() }}", "{% include 'x' %}"]
)
def test_a_template_that_reaches_for_python_is_refused(escape: str) -> None:
    with pytest.raises(DataError, match="the chat template refuses these messages"):
        render([(HELLO, ANSWERS)], tokenizer(escape))


def test_what_is_rendered_is_what_transformers_renders() -> None:
    """Also special tokens, absent fields, and text that is no valid Unicode."""
    ours = tokenizer(
        "{{ bos_token }}{{ eos_token }}{% for m in messages %}{{ m | tojson }}{% endfor %}" + CHAT_TEMPLATE
    )
    odd = ({"role": "user", "content": "ä\ud800\u2028\x85\n<b>", "name": None},)
    for prompt in (HELLO, odd):
        first, *full = render([(prompt, ANSWERS)], ours)[0]
        assert first == ours.apply_chat_template(list(prompt), tokenize=False, add_generation_prompt=True)
        for answer, text in zip(ANSWERS, full, strict=True):
            assert text == ours.apply_chat_template([*prompt, *answer], tokenize=False)


def test_the_default_of_several_templates_is_used_and_none_is_refused() -> None:
    several = tokenizer({"default": CHAT_TEMPLATE, "tool_use": "other"})
    assert render([(HELLO, ())], several) == render([(HELLO, ())], tokenizer(CHAT_TEMPLATE))
    with pytest.raises(ConfigError, match="none is the default"):
        render([(HELLO, ())], tokenizer({"tool_use": "other"}))


def test_a_renderer_that_was_killed_is_started_again() -> None:
    good = tokenizer(CHAT_TEMPLATE)
    before = render([(HELLO, ANSWERS)], good)
    os.kill(template._worker(os.getpid())._process.pid, signal.SIGKILL)
    with pytest.raises(ConfigError, match="memory"):  # who kills such a process is a system that is short of it
        render([(HELLO, ANSWERS)], good)
    assert render([(HELLO, ANSWERS)], good) == before


def test_a_chunk_of_conversations_is_one_question_to_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Starting a process or waiting for one, conversation by conversation, would cost more than rendering does."""
    good = tokenizer(CHAT_TEMPLATE)
    before = render([(HELLO, ANSWERS)], good)
    worker = template._worker(os.getpid())
    asked: list[int] = []
    ask = template._Worker.ask

    def counted(self: template._Worker, request: dict[str, Any], count: int) -> list[dict[str, str]]:
        assert self is worker
        asked.append(count)
        return ask(self, request, count)

    monkeypatch.setattr(template._Worker, "ask", counted)
    assert render([(HELLO, ANSWERS)] * 256, good) == before * 256
    assert asked == [256 * (1 + len(ANSWERS))]


def test_chats_need_a_template() -> None:
    labeled = LabeledGroup(group(), (PairRelation(0, 1),))
    with pytest.raises(ConfigError, match="the tokenizer has no chat template") as caught:
        tokenize_groups([labeled], build_tokenizer(chat=False), TokenizeOptions())
    assert "Use a model whose tokenizer has one" in (caught.value.remedy or "")
    plain = LabeledGroup(
        Group(id="g", prompt="a", completions=(Completion(text="b"), Completion(text="c"))), (PairRelation(0, 1),)
    )
    with pytest.raises(ConfigError, match="no chat template"):
        tokenize_groups([plain], build_tokenizer(chat=False), TokenizeOptions(prompt_format="chat"))
