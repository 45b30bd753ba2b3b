"""Chat templates, rendered in a process of their own: a template is a program of the model's author.

Jinja's sandbox keeps it away from files and from Python, but two nested loops run for days and a string that is doubled
forty times fills any memory. So another process renders, within limits of the operating system; it gets whole chunks of
conversations, which costs about as much as writing and reading them as JSON. See ``template_worker``.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from dipole.errors import ConfigError, DataError
from dipole.group import Message

SECONDS = 10
"""Of computing that a template gets for one conversation; usual ones take a thousandth."""
MEMORY = 2**30
"""Bytes that it gets."""

Messages = Sequence[Message]
_TRUST = "A template is a program: use another model, or put a template that you trust into its chat_template.jinja"


class HasTemplate(Protocol):
    """What is asked of a tokenizer; those of ``transformers`` have it."""

    @property
    def special_tokens_map(self) -> Any:
        """Special tokens as text, by name."""

    def get_chat_template(self) -> str:
        """The template, or the default one of several."""


def render(groups: Sequence[tuple[Messages, Sequence[Messages]]], tokenizer: HasTemplate) -> list[list[str]]:
    """Of each group the prompt, which ends in asking for an answer, and then the prompt with each of its answers.

    Args:
        groups: a prompt's messages, and those of each answer.
        tokenizer: has the template.

    Raises:
        DataError: the template refuses the messages, in its own words.
        ConfigError: it computes too long, takes too much memory, or writes too much.
    """
    if not groups:
        return []
    try:
        template = tokenizer.get_chat_template()
    except ValueError as fault:
        raise ConfigError("the tokenizer has several chat templates and none is the default", remedy=_TRUST) from fault
    request = {
        "template": template,
        "special_tokens": tokenizer.special_tokens_map,
        "seconds": SECONDS,
        "bytes": MEMORY,
        "groups": [[list(prompt), [list(answer) for answer in answers]] for prompt, answers in groups],
    }
    sizes = [1 + len(answers) for _, answers in groups]
    with _ONE_AT_A_TIME:
        answers = _worker(os.getpid()).ask(request, sum(sizes))
    texts = iter(answers)
    return [[_text(next(texts), prompt) for _ in range(size)] for size, (prompt, _) in zip(sizes, groups, strict=True)]


def _text(answer: dict[str, str], prompt: Messages) -> str:
    if "text" in answer:
        return answer["text"]
    where = f"prompt beginning with {str(list(prompt[:1]))[:80]}"
    if "refused" in answer:
        raise DataError(
            f"the chat template refuses these messages: {answer['refused']}",
            where=where,
            remedy="Check the roles and their order",
        )
    reached = {
        "time": f"needs more than {SECONDS} s of computing",
        "memory": f"needs more than {MEMORY / 2**20:,.0f} MiB of memory",
        "length": "writes far more than it is given",
    }
    raise ConfigError(f"the chat template {reached[answer['limit']]} for one conversation", where=where, remedy=_TRUST)


class _Worker:
    """The other process, and how it is spoken with."""

    def __init__(self) -> None:
        self._owner = os.getpid()
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(Path(__file__).with_name("template_worker.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="ascii",
            env=os.environ | {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""},
            start_new_session=True,  # a Ctrl-C is for this process alone
        )

    def ask(self, request: dict[str, Any], count: int) -> list[dict[str, str]]:
        """As many answers; fewer, if the last one isn't a text."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        # JSON in ASCII holds any string, and a value of another kind is nothing that a template could use.
        text = json.dumps(request, default=lambda value: f"<{type(value).__name__}>")
        with suppress(BrokenPipeError):  # then reading finds out
            self._process.stdin.write(f"{text}\n")
            self._process.stdin.flush()
        answers: list[dict[str, str]] = []
        while len(answers) < count and (not answers or "text" in answers[-1]):
            line = self._process.stdout.readline()
            answers.append(json.loads(line) if line else self._end())
        return answers

    def _end(self) -> dict[str, str]:
        """The answer of a process that died."""
        status = self._process.wait()
        self.close()
        if status == -signal.SIGXCPU:
            return {"limit": "time"}
        if status < 0:  # out of memory where it can't be raised
            return {"limit": "memory"}
        raise RuntimeError(f"the process that renders chat templates ended with status {status}")

    def close(self) -> None:
        """Ends the process, if it hasn't ended yet; the next request starts another."""
        if os.getpid() != self._owner:  # a fork of ours, and the process isn't its own
            return
        _worker.cache_clear()
        self._process.kill()
        self._process.communicate()


@lru_cache(maxsize=1)
def _worker(pid: int) -> _Worker:
    """The process that renders for this one; a fork of this one gets another."""
    worker = _Worker()
    atexit.register(worker.close)
    return worker


_ONE_AT_A_TIME = threading.Lock()
