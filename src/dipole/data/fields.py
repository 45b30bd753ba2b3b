"""Values of a row, each checked for its type as it is taken, with messages that name the place and the column."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from dipole.errors import DataError
from dipole.group import Message, Text

Item = TypeVar("Item")

_CHAT_BEGINNINGS = ("[", "{", "Human:")
_CHAT_AS_TEXT = re.compile(r"""\s*(\[\s*)?\{\s*["']role["']\s*:""")


def is_plain(value: Any) -> bool:
    """Whether a value is text that begins neither as messages do nor as a transcript does, nor with white space.

    By far most text is of that kind, and then there is no chat to look for in it. What begins otherwise may still be
    plain text.
    """
    return isinstance(value, str) and not value.startswith(_CHAT_BEGINNINGS) and not value[:1].isspace()


class Fields:
    """The values of a row or of an object in it. What was never taken is left over, for the caller to judge.

    Args:
        values: name → value.
        where: the place of the row, for messages.
        path: where in the row the object lies, as in ``"completions[0]."``.
        verbatim: text is taken as it is, even where it looks like messages that were written as a string.
    """

    def __init__(self, values: Any, where: str, path: str = "", *, verbatim: bool = False) -> None:
        self.where = where
        self._path = path
        self._verbatim = verbatim
        if not isinstance(values, Mapping):
            raise self.fault("", f"is {_kind(values)}, but has to be an object")
        self._left = dict(values)

    def fault(self, name: str, problem: str, remedy: str | None = None) -> DataError:
        """The error to raise about the field ``name``."""
        return DataError(
            f"'{(self._path + name).removesuffix('.')}' {problem}",
            where=self.where,
            remedy=remedy or "Correct the row or leave it out.",
        )

    def left(self) -> dict[str, Any]:
        """Whatever hasn't been taken."""
        return self._left

    def has(self, name: str) -> bool:
        """Whether there is a value, and it isn't null."""
        return self._left.get(name) is not None

    def take(self, name: str) -> Any:
        """The value as it is; ``None`` if there is none or it is null."""
        return self._left.pop(name, None)

    def text(self, name: str) -> Text:
        """Plain text or messages."""
        return self._text(name, self.take(name))

    def texts(self, name: str) -> list[Text]:
        """A list, each item plain text or messages."""
        return self.items(name, self._text)

    def string(self, name: str) -> str | None:
        """Text alone; nothing and null are ``None``."""
        value = self.take(name)
        if value is None or isinstance(value, str):
            return value
        raise self.fault(name, f"is {_kind(value)}, but has to be text")

    def name(self, name: str) -> str | None:
        """What names something: text, or a whole number, taken as its digits; nothing and null are ``None``."""
        value = self.take(name)
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if value is None or isinstance(value, str):
            return value
        raise self.fault(name, f"is {_kind(value)}, but has to be text or a whole number")

    def number(self, name: str, default: float | None = None) -> float:
        """A finite number; ``default``, if there is one, for nothing and null."""
        value = self.take(name)
        return default if value is None and default is not None else self._number(name, value)

    def numbers(self, name: str) -> list[float]:
        """A list of finite numbers."""
        return self.items(name, self._number)

    def whole(self, name: str) -> int:
        """A whole number."""
        return self._whole(name, self.take(name))

    def wholes(self, name: str) -> list[int]:
        """A list of whole numbers."""
        return self.items(name, self._whole)

    def flag(self, name: str) -> bool:
        """True or false, or 1 or 0."""
        value = self.take(name)
        if value in (0, 1) and isinstance(value, bool | int):
            return bool(value)
        raise self.fault(name, f"is {_kind(value)}, but has to be true or false")

    def mapping(self, name: str) -> dict[str, Any]:
        """An object, empty if there is none."""
        value = self.take(name)
        if value is None or isinstance(value, dict):
            return value or {}
        raise self.fault(name, f"is {_kind(value)}, but has to be an object")

    def items(self, name: str, read: Callable[[str, Any], Item]) -> list[Item]:
        """A list, each item read by ``read(name of the item, item)``."""
        value = self.take(name)
        if not isinstance(value, list):
            raise self.fault(name, f"is {_kind(value)}, but has to be a list")
        return [read(f"{name}[{position}]", item) for position, item in enumerate(value)]

    def inside(self, name: str, value: Any) -> Fields:
        """The fields of an object in this one."""
        return Fields(value, self.where, f"{self._path}{name}.", verbatim=self._verbatim)

    def _number(self, name: str, value: Any) -> float:
        if isinstance(value, int | float) and not isinstance(value, bool):
            try:
                number = float(value)
            except OverflowError:
                number = math.inf
            if math.isfinite(number):
                return number
        raise self.fault(name, f"is {_kind(value)}, but has to be a finite number")

    def _whole(self, name: str, value: Any) -> int:
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        raise self.fault(name, f"is {_kind(value)}, but has to be a whole number")

    def _text(self, name: str, value: Any) -> Text:
        if isinstance(value, str):
            if not self._verbatim and not is_plain(value) and _CHAT_AS_TEXT.match(value):
                raise self.fault(
                    name,
                    f"is a chat written as text, {value[:20]!r}…",
                    "Write messages as a JSON list; text that is meant so needs the native format.",
                )
            return value
        if isinstance(value, dict) and "role" in value:
            return (self._message(name, value),)
        if isinstance(value, list) and value:
            return tuple(self._message(f"{name}[{position}]", item) for position, item in enumerate(value))
        raise self.fault(name, f"is {_kind(value)}, but has to be text or a list of messages")

    def _message(self, name: str, value: Any) -> Message:
        if not isinstance(value, dict) or not isinstance(value.get("role"), str):
            raise self.fault(
                name, f"is {_kind(value)}, but no message", 'A message is {"role": "user", "content": "…"}.'
            )
        content = value.get("content")
        parts = isinstance(content, list) and all(isinstance(part, dict | str) for part in content)
        if isinstance(content, str) or parts or (content is None and value.get("tool_calls")):
            return value
        raise self.fault(f"{name}.content", f"is {_kind(content)}, but has to be text or a list of parts")


def _kind(value: Any) -> str:
    """A value in a few words."""
    if value is None:
        return "missing or null"
    if isinstance(value, str):
        return f"the text {value[:30]!r}" if value.strip() else "empty text"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return f"an object with {', '.join(list(value)[:4]) or 'nothing in it'}"
    return str(value)[:30].lower() if isinstance(value, bool) else str(value)[:30]
