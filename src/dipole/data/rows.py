"""One row of a file, and the strict JSON that most rows come in."""

from __future__ import annotations

import json
import math
from typing import Any, NamedTuple

from dipole.errors import DataError

DEPTH_LIMIT = 100
"""Levels of nesting that a row may have."""


class Row(NamedTuple):
    """One row of a table.

    Args:
        where: its place, as in ``"data/pairs.jsonl:17"``, for messages.
        id: a name that is unique within its source, for a group that brings none.
        values: column → value.
    """

    where: str
    id: str
    values: dict[str, Any]


def as_row(values: Any, where: str, id: str) -> Row:
    """The row that a JSON value is.

    Raises:
        DataError: it isn't an object.
    """
    if not isinstance(values, dict):
        raise DataError(
            f"is a JSON {type(values).__name__}, but a row is an object",
            where=where,
            remedy='Write rows as {"prompt": …}; a whole list of them belongs in a .json file.',
        )
    return Row(where, id, values)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number that JSON knows")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text[:20]} is too large for a number")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key '{next(name for name in names if names.count(name) > 1)}' is there twice")
    return result


_LINE_ENDS = ("", "\n", "\r\n")
_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_float=_finite, parse_constant=_no_constant)


def parse_json(text: str, where: str) -> Any:
    """JSON, strictly: no NaN, no key twice, and no nesting that something later would stumble over."""
    try:
        value = _decode(text)
        deep = _may_be_deep(text) and _depth(value) > DEPTH_LIMIT
    except json.JSONDecodeError as error:
        raise DataError(
            f"isn't JSON (at column {error.colno}: {error.msg.removesuffix(' at')})",
            where=where,
            remedy="The row may be cut short, or the file isn't what its suffix says.",
        ) from error
    except RecursionError:
        deep = True
    except ValueError as error:
        raise DataError(str(error), where=where, remedy="Correct the row or leave it out.") from error
    if deep:
        raise DataError(f"is nested deeper than {DEPTH_LIMIT} levels", where=where, remedy="Leave the row out.")
    return value


def _decode(text: str) -> Any:
    """The value that a text holds; with no search for white space around it where it is an object that fills a line."""
    if text.startswith("{"):
        value, end = _DECODER.raw_decode(text)
        if text[end : end + 3] in _LINE_ENDS:
            return value
    return _DECODER.decode(text)


def _may_be_deep(text: str) -> bool:
    """Whether it has as many brackets as that takes. Most rows have one; to search is faster than to count."""
    return ("[" in text or text.find("{", 1) > 0) and text.count("[") + text.count("{") > DEPTH_LIMIT


def _depth(value: Any) -> int:
    level, depth = [value], 0
    while level:
        depth += 1
        inner = [item.values() if isinstance(item, dict) else item for item in level if isinstance(item, dict | list)]
        level = [item for items in inner for item in items]
    return depth
