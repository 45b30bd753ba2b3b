"""What makes a single group unfit for training, whatever the model and the loss."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple

from dipole.data.reduce import pair_labels
from dipole.group import Group, Message, Text, plain

_MAY_FOLLOW = {
    "nothing": ("system", "developer", "user"),
    "system": ("user",),
    "developer": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("tool", "assistant"),
}

_HEAD = 32
"""Letters by which completions are told apart before they are compared as a whole."""

_GLANCE = 63
"""Characters of a completion that a glance takes in."""

_UNSEEN = frozenset("\u034f\u115f\u1160\u2800\u3164\uffa0\ufe0e\ufe0f")
"""Letters and marks by Unicode that nobody sees: fillers, an empty braille cell, joiners, selectors of a variant."""


class Fault(NamedTuple):
    """One thing that is wrong with one group.

    Args:
        name: a key of ``REMEDIES``.
        detail: what it is, in words.
    """

    name: str
    detail: str


REMEDIES = {
    "empty_prompt": "Give every row a prompt, or leave the row out.",
    "no_completion": "Give every prompt its answers; a file of prompts alone is for generating them.",
    "empty_completion": "Leave the row out: nothing can be learned from an empty answer.",
    "no_judgment": "Have the answers judged first, or leave the group out.",
    "identical_completions": "Leave the row out: no answer can be better than itself.",
    "roles_out_of_order": "Messages go: system (once, first), user, assistant, user, … ; an answer is the assistant's.",
    "broken_text": "Write the text again from its source: half of a character is missing.",
}


def faults(group: Group) -> list[Fault]:
    """All that is wrong with a group; empty if it can be trained on."""
    return [] if plainly_sound(group) else [fault for check in _CHECKS for fault in check(group)]


def plainly_sound(group: Group) -> bool:
    """Whether a glance shows that nothing is wrong and that no message needs a look; ``False`` says nothing.

    By far most groups are judged plain text that begins with something to be seen, in each answer with something else.
    """
    if not group.judgments or not _plainly_readable(group.prompt):
        return False
    heads = set()
    for completion in group.completions:
        text = completion.text
        if not (isinstance(text, str) and _plainly_readable(text)):
            return False
        # What NFKC makes of ASCII that ASCII follows doesn't depend on what comes after: one more has to be ASCII too.
        if not text[: _GLANCE + 1].isascii():
            return False
        head = "".join(text[:_GLANCE].lower().split())[:_HEAD]
        if len(head) < _HEAD and len(text) > _GLANCE:
            return False
        heads.add(head)
    return len(heads) == len(group.completions)


def _plainly_readable(text: Text) -> bool:
    """Whether it is plain text of whole characters of which the first can be seen."""
    if not isinstance(text, str):
        return False
    first = text[:1]
    return ("!" <= first <= "~" or _is_seen(first)) and not _is_broken(text)


def fold(text: Text) -> str:
    """What is left of a text when its form doesn't count: NFKC, no case, every run of white space one space."""
    if isinstance(text, str):
        if text.isascii() and text.isprintable() and "  " not in text and " " not in (text[:1], text[-1:]):
            return text.lower()  # most texts: no white space but single spaces between words
        normal = text if text.isascii() else unicodedata.normalize("NFKC", text)
        return " ".join(normal.casefold().split())
    return "\n".join(f"{_beside_text(message)} {fold(plain((message,)))}" for message in text)


def _beside_text(message: Message) -> str:
    """What a message holds besides its words: role, tool calls, images."""
    rest = {name: value for name, value in message.items() if name != "content"}
    content = message.get("content")
    if isinstance(content, list):
        rest["content"] = [part for part in content if isinstance(part, dict) and not isinstance(part.get("text"), str)]
    return json.dumps(rest, sort_keys=True, default=str)


def is_blank(text: Text) -> bool:
    """Whether nothing in it can be seen: white space, control characters, and characters of no width."""
    if isinstance(text, str):
        return not any(map(_is_seen, text))  # nearly always the first is
    return all(is_blank(plain((message,))) and not _holds_more(message) for message in text)


def _is_seen(character: str) -> bool:
    """Whether there is a character and it leaves a mark on the screen."""
    return character.isprintable() and not character.isspace() and character not in _UNSEEN and character != ""


def _holds_more(message: Message) -> bool:
    content = message.get("content")
    parts = content if isinstance(content, list) else []
    return bool(message.get("tool_calls")) or any(isinstance(part, dict) and "text" not in part for part in parts)


def _empty(group: Group) -> Iterator[Fault]:
    if is_blank(group.prompt):
        yield Fault("empty_prompt", "the prompt is empty")
    if not group.completions:
        yield Fault("no_completion", "there is no completion")
    for index, completion in enumerate(group.completions):
        if is_blank(completion.text):
            yield Fault("empty_completion", f"completion {index} is empty")


def _unjudged(group: Group) -> Iterator[Fault]:
    if group.completions and not group.judgments:
        yield Fault("no_judgment", "there is no judgment")


def _identical(group: Group) -> Iterator[Fault]:
    """Equal completions of which one is preferred; a tie between them is no fault, and its gradient is zero."""
    heads = [_head(completion.text) for completion in group.completions]
    if len(set(heads)) == len(heads):  # nearly always, and then neither labels nor whole texts are looked at
        return
    for label in pair_labels(group):
        i, j = group.completions[label.i].text, group.completions[label.j].text
        if label.p > 0.5 and heads[label.i] == heads[label.j] and fold(i) == fold(j):
            form = "" if i == j else " but for case, white space or the form of letters"
            first, second = sorted((label.i, label.j))
            yield Fault("identical_completions", f"completions {first} and {second} are equal{form}")


def _head(text: Text) -> str:
    """The first letters of the folded text, without white space: equal wherever the folded texts are."""
    if isinstance(text, str) and text.isascii():
        head = "".join(text[: 2 * _HEAD].casefold().split())
        if len(head) >= _HEAD:
            return head[:_HEAD]
    return "".join(fold(text).split())[:_HEAD]


def _roles(group: Group) -> Iterator[Fault]:
    if not isinstance(group.prompt, str):
        roles = [str(message.get("role")) for message in group.prompt]
        yield from _out_of_order("the prompt", ["nothing", *roles])
        if roles and roles[-1] not in ("user", "tool"):
            yield Fault("roles_out_of_order", f"the prompt ends with a message of '{roles[-1]}'")
    for index, completion in enumerate(group.completions):
        if isinstance(completion.text, str):
            continue
        roles = [str(message.get("role")) for message in completion.text]
        if "user" in roles or "system" in roles or roles[:1] != ["assistant"] or roles[-1] != "assistant":
            yield Fault("roles_out_of_order", f"completion {index} is of {', '.join(roles) or 'no message'}")
        else:
            yield from _out_of_order(f"completion {index}", roles)


def _out_of_order(name: str, roles: list[str]) -> Iterator[Fault]:
    for before, role in pairwise(roles):
        if role not in _MAY_FOLLOW.get(before, ()):
            yield Fault("roles_out_of_order", f"in {name}, a message of '{role}' follows {before}")
            return


def _broken(group: Group) -> Iterator[Fault]:
    if _is_broken(group.prompt):
        yield Fault("broken_text", "the prompt holds half of a surrogate pair")
    for index, completion in enumerate(group.completions):
        if _is_broken(completion.text):
            yield Fault("broken_text", f"completion {index} holds half of a surrogate pair")


def _is_broken(text: Text) -> bool:
    words = plain(text)
    if words.isascii():
        return False
    try:
        words.encode()
    except UnicodeEncodeError:
        return True
    return False


_CHECKS: tuple[Callable[[Group], Iterator[Fault]], ...] = (_empty, _unjudged, _identical, _roles, _broken)
