"""Groups as JSON objects: the one format that holds everything a group can hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dipole.data.fields import Fields
from dipole.errors import DataError, nearest
from dipole.group import (
    JUDGMENTS,
    SCHEMA,
    Approval,
    Comparison,
    Completion,
    Group,
    Judgment,
    Ranking,
    Rating,
    Text,
)

KEYS = ("schema", "id", "prompt", "completions", "judgments", "split", "meta")


def group_to_json(group: Group) -> dict[str, Any]:
    """The object to write; ``group_from_json`` gives an equal group."""
    result: dict[str, Any] = {
        "schema": SCHEMA,
        "id": group.id,
        "prompt": text_to_json(group.prompt),
        "completions": [_completion_to_json(completion) for completion in group.completions],
        "judgments": [_judgment_to_json(judgment) for judgment in group.judgments],
    }
    if group.split is not None:
        result["split"] = group.split
    if group.meta:
        result["meta"] = dict(group.meta)
    return result


def group_from_json(values: dict[str, Any], where: str, *, id: str, split: str | None = None) -> Group:
    """The group that an object of the native format holds.

    Args:
        values: the object.
        where: its place, for messages.
        id: for a group that brings none.
        split: for a group that names none.

    Raises:
        DataError: a key is missing, unknown, or of a wrong type, or the schema is of a newer Dipole.
    """
    fields = Fields(values, where, verbatim=True)
    schema = fields.take("schema")
    if schema not in (None, SCHEMA) or isinstance(schema, bool):
        raise fields.fault("schema", f"is {schema}, but this Dipole reads {SCHEMA}", "Use a newer Dipole.")
    given_id = fields.name("id")
    prompt = fields.text("prompt")
    completions = fields.items("completions", lambda name, value: _completion(fields, name, value))
    judgments = fields.items("judgments", lambda name, value: _judgment(fields.inside(name, value)))
    given_split = fields.string("split")
    meta = fields.mapping("meta")
    _refuse_unknown(fields, KEYS)
    try:
        return Group(
            id=id if given_id is None else given_id,
            prompt=prompt,
            completions=tuple(completions),
            judgments=tuple(judgments),
            split=split if given_split is None else given_split,
            meta=meta,
        )
    except ValueError as error:
        raise DataError(str(error), where=where, remedy="Completions are counted from 0.") from error


def text_to_json(text: Text) -> Any:
    """Plain text, or a list of messages."""
    return text if isinstance(text, str) else list(text)


def _completion_to_json(completion: Completion) -> dict[str, Any]:
    result: dict[str, Any] = {"text": text_to_json(completion.text)}
    if completion.source is not None:
        result["source"] = completion.source
    if completion.meta:
        result["meta"] = dict(completion.meta)
    return result


def _judgment_to_json(judgment: Judgment) -> dict[str, Any]:
    result: dict[str, Any] = {"kind": judgment.kind}
    match judgment:
        case Comparison():
            result |= {"i": judgment.i, "j": judgment.j, "p": judgment.p}
        case Ranking():
            result |= {"order": list(judgment.order)}
        case Rating() | Approval():
            result |= {"i": judgment.i, "value": judgment.value}
    if judgment.annotator is not None:
        result["annotator"] = judgment.annotator
    if judgment.weight != 1:
        result["weight"] = judgment.weight
    if judgment.meta:
        result["meta"] = dict(judgment.meta)
    return result


def _completion(fields: Fields, name: str, value: Any) -> Completion:
    if not (isinstance(value, dict) and "text" in value):
        value = {"text": value}
    inner = fields.inside(name, value)
    completion = Completion(text=inner.text("text"), source=inner.string("source"), meta=inner.mapping("meta"))
    _refuse_unknown(inner, ("text", "source", "meta"))
    return completion


_OWN_FIELDS: dict[str, Callable[[Fields], dict[str, Any]]] = {
    "comparison": lambda fields: {"i": fields.whole("i"), "j": fields.whole("j"), "p": fields.number("p", 1.0)},
    "ranking": lambda fields: {"order": tuple(fields.wholes("order"))},
    "rating": lambda fields: {"i": fields.whole("i"), "value": fields.number("value")},
    "approval": lambda fields: {"i": fields.whole("i"), "value": fields.flag("value")},
}


def _judgment(fields: Fields) -> Judgment:
    kind = fields.take("kind")
    if not isinstance(kind, str) or kind not in JUDGMENTS:
        raise fields.fault("kind", f"is {kind!r}", nearest(str(kind), JUDGMENTS))
    values = _OWN_FIELDS[kind](fields)
    values |= {
        "annotator": fields.name("annotator"),
        "weight": fields.number("weight", 1.0),
        "meta": fields.mapping("meta"),
    }
    _refuse_unknown(fields, (*values, "kind"))
    try:
        return JUDGMENTS[kind](**values)
    except ValueError as error:
        raise fields.fault("", str(error)) from error


def _refuse_unknown(fields: Fields, known: tuple[str, ...]) -> None:
    for name in fields.left():
        raise fields.fault(
            name, "is unknown to the native format", f"{nearest(name, known)} Notes belong under 'meta'."
        )
