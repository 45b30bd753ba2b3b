"""Where a prompt ends and an answer begins, in data that write both in one piece."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import takewhile

from dipole.errors import DataError
from dipole.group import Message, Text, plain

_TURN = re.compile(r"(?:\A|\n\n)(Human|Assistant):")
_ROLE = {"Human": "user", "Assistant": "assistant"}


def split_pieces(pieces: Sequence[Text], where: str) -> tuple[Text, list[Text]]:
    """The prompt that all pieces begin with, and what follows it in each.

    Messages, and transcripts whose turns begin with ``Human:`` and ``Assistant:`` after an empty line, are compared
    message by message, plain text character by character; then the prompt ends at white space, so that no word is cut.

    Args:
        pieces: at least two, each a prompt and its completion in one.
        where: the place of the row, for messages.

    Raises:
        DataError: they have no beginning in common, or are of different forms.
    """
    chats = [_as_chat(piece) for piece in pieces]
    if all(isinstance(chat, tuple) for chat in chats):
        prompt, answers = _split_chats([chat for chat in chats if isinstance(chat, tuple)], where)
        return prompt, list(answers)
    texts = [chat for chat in chats if isinstance(chat, str)]
    if len(texts) < len(chats):
        raise DataError("one answer is text and another is a chat", where=where, remedy="Write both in one form.")
    return _split_texts(texts, where)


def join_prompt(prompt: Text, answers: Sequence[Text], system: str | None, where: str) -> tuple[Text, list[Text]]:
    """Prompt and completions in one form: all plain text, or all messages.

    It is a chat as soon as any part of it is, or there is a system message; then plain text becomes the message of the
    user or of the assistant. Where the answers are whole chats that hold the prompt, as UltraFeedback writes them, it
    is taken out of them, and has to be the prompt that the row names.

    Raises:
        DataError: the answers hold another prompt than the row names.
    """
    begin, pieces = _as_chat(prompt), [_as_chat(answer) for answer in answers]
    has_system = system is not None and system.strip() != ""
    if not has_system and not any(isinstance(piece, tuple) for piece in (begin, *pieces)):
        return prompt, list(answers)
    if isinstance(prompt, str) and isinstance(begin, tuple):  # a transcript puts a space between marker and answer
        pieces = [piece.strip() if isinstance(piece, str) else piece for piece in pieces]
        begin = _without_open_turn(begin)
    messages, chats = as_messages(begin, "user"), [as_messages(piece, "assistant") for piece in pieces]
    if chats and all(chat[0].get("role") != "assistant" for chat in chats):
        messages, chats = _take_prompt_out(messages, chats, where)
    return _with_system(messages, system, where), list(chats)


def as_messages(text: Text, role: str) -> tuple[Message, ...]:
    """Messages as they are; plain text as the one message of ``role``."""
    return ({"role": role, "content": text},) if isinstance(text, str) else text


def _as_chat(text: Text) -> Text:
    """The messages of a Human/Assistant transcript; anything else unchanged."""
    if not isinstance(text, str) or not text.lstrip().startswith("Human:"):
        return text
    stripped = text.lstrip()
    marks = list(_TURN.finditer(stripped))
    if not any(mark[1] == "Assistant" for mark in marks):
        return text
    ends = [mark.start() for mark in marks[1:]] + [len(stripped)]
    return tuple(
        {"role": _ROLE[mark[1]], "content": stripped[mark.end() : end].strip()}
        for mark, end in zip(marks, ends, strict=True)
    )


def _without_open_turn(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """Without the empty turn of the assistant that ends a transcript's prompt."""
    last = messages[-1]
    return messages[:-1] if last.get("role") == "assistant" and last.get("content") == "" else messages


def _same(left: Message, right: Message) -> bool:
    return bool(left.get("role") == right.get("role") and left.get("content") == right.get("content"))


def _split_chats(chats: list[tuple[Message, ...]], where: str) -> tuple[tuple[Message, ...], list[tuple[Message, ...]]]:
    shortest = min(map(len, chats))
    # Each keeps its last message, the answer, even if that is the same in all.
    columns = list(zip(*(chat[: shortest - 1] for chat in chats), strict=True))
    shared = len(list(takewhile(lambda column: all(_same(column[0], other) for other in column), columns)))
    if shared == 0:
        raise DataError(
            "the answers have no first message in common, so there is no prompt",
            where=where,
            remedy="Give the prompt in a column 'prompt', or begin every answer with its messages.",
        )
    rest = [chat[shared:] for chat in chats]
    if any(chat[0].get("role") != "assistant" for chat in rest):
        raise DataError(
            f"the answers part at message {shared + 1}, which isn't the assistant's",
            where=where,
            remedy="Two answers can be compared only if they answer the same prompt; leave the row out.",
        )
    return chats[0][:shared], rest


def _split_texts(texts: list[str], where: str) -> tuple[str, list[Text]]:
    # Each answer has to keep a word, and words stay whole: the prompt ends at the last white space that all share.
    shorn = [text.rstrip() for text in texts]
    low, high = min(shorn), max(shorn)  # what the first and the last in order share, all share
    length = next((index for index, pair in enumerate(zip(low, high, strict=False)) if pair[0] != pair[1]), len(low))
    shared = low[:length]
    end = next((index for index in reversed(range(length)) if shared[index].isspace()), 0)
    if shared[end : end + 1] == "\n":  # a line break ends the prompt, a space begins the answer
        end += 1
    if not shared[:end].strip():
        raise DataError(
            "chosen and rejected have no beginning in common, so there is no prompt",
            where=where,
            remedy="Give the prompt in a column 'prompt', or begin both sides with it.",
        )
    return shared[:end], [text[end:] for text in texts]


def _take_prompt_out(
    prompt: tuple[Message, ...], chats: list[tuple[Message, ...]], where: str
) -> tuple[tuple[Message, ...], list[tuple[Message, ...]]]:
    if len(chats) == 1:
        asked = [index for index, message in enumerate(chats[0]) if message.get("role") not in ("assistant", "tool")]
        end = asked[-1] + 1 if asked else 0
        shared, rest = chats[0][:end], [chats[0][end:]]
    else:
        shared, rest = _split_chats(chats, where)
    named = [plain((message,)).strip() for message in prompt]
    held = [plain((message,)).strip() for message in shared]
    if not any(held[start : start + len(named)] == named for start in range(len(held))):
        raise DataError(
            "the answers begin with another prompt than the column 'prompt' holds",
            where=where,
            remedy="Leave the prompt out of the answers, or leave the column out.",
        )
    if not all(rest):
        raise DataError("an answer ends with the prompt", where=where, remedy="Leave the row out.")
    return shared, rest


def _with_system(messages: tuple[Message, ...], system: str | None, where: str) -> tuple[Message, ...]:
    if not system or not system.strip():
        return messages
    if messages[0].get("role") != "system":
        return ({"role": "system", "content": system}, *messages)
    if plain(messages[:1]).strip() != system.strip():
        raise DataError("the row holds two different system messages", where=where, remedy="Leave one out.")
    return messages
