"""The process that renders chat templates: a request a line on standard input, an answer a line on standard output.

A template is a program of the model's author. It runs in Jinja's sandbox, which keeps it away from files and from
Python, but not from endless loops, nor from filling the memory. Here the operating system does that.
``dipole.data.template`` starts this file by its path and speaks with it; nothing of Dipole is imported.
"""

from __future__ import annotations

import json
import math
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SPARE_LENGTH = 2**22
"""Characters that a template may write beyond a multiple of what it is given."""


def main() -> None:
    """Obeys requests until there are no more."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="ascii")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library prints is no answer
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    from transformers.utils.chat_template_utils import render_jinja_template

    for line in sys.stdin:
        request = json.loads(line)
        with limited_memory(request["bytes"]):
            for messages, asks in conversations(request["groups"]):
                limit_time(request["seconds"])
                longest = SPARE_LENGTH + 4 * len(line)
                answer = answered(request, messages, asks, render_jinja_template, longest)
                answers.write(json.dumps(answer) + "\n")
                answers.flush()  # if the process is killed, its answers tell how far it came
                if "text" not in answer:
                    break


def conversations(groups: list[Any]) -> Iterator[tuple[list[Any], bool]]:
    """Of each group the prompt, which asks for an answer, and then the prompt with each of its answers."""
    for prompt, answers in groups:
        yield prompt, True
        yield from ((prompt + answer, False) for answer in answers)


def answered(
    request: Mapping[str, Any], messages: list[dict[str, Any]], asks: bool, render: Callable[..., Any], longest: int
) -> dict[str, str]:
    """A conversation as ``text``; or why the template ``refused`` it; or which ``limit`` it reached."""
    try:
        if not messages:
            raise ValueError("there are no messages")
        # Many templates would write out an absent field as "None".
        present = [{name: value for name, value in message.items() if value is not None} for message in messages]
        rendered, _ = render(
            [present], chat_template=request["template"], add_generation_prompt=asks, **request["special_tokens"]
        )
    except MemoryError:
        return {"limit": "memory"}
    except Exception as fault:  # whatever a program raises
        return {"refused": str(fault)[:1000]}
    return {"text": rendered[0]} if len(rendered[0]) <= longest else {"limit": "length"}


def limit_time(seconds: int) -> None:
    """From now on, after so many seconds of computing the process is killed."""
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (_within(math.ceil(time.process_time()) + seconds, hard), hard))


@contextmanager
def limited_memory(amount: int) -> Iterator[None]:
    """For a while, taking so many more bytes is a MemoryError."""
    size = address_space()
    if size is None:
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_within(size + amount, hard), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _within(amount: int, hard: int) -> int:
    return amount if hard == resource.RLIM_INFINITY else min(amount, hard)


def address_space() -> int | None:
    """Bytes that this process has mapped; ``None`` where the system doesn't say (there memory isn't limited)."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    except OSError:
        return None
    return pages * resource.getpagesize()


if __name__ == "__main__":
    main()
