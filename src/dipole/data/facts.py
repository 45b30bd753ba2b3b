"""What some losses need to know of every completion besides its tokens, from the ``meta`` of the data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from dipole.data.reduce import LabeledGroup
from dipole.errors import DataError
from dipole.group import Completion


def with_facts(groups: Sequence[LabeledGroup], names: Sequence[str]) -> list[LabeledGroup]:
    """The groups with these facts of all their completions.

    Args:
        groups: with their relations.
        names: keys of ``Completion.meta``, such as ``unsafe``; the values are numbers, true or false, or rows of them.

    Raises:
        DataError: a completion lacks one, or has something else there.
    """
    return [
        replace(
            labeled,
            facts={
                name: tuple(
                    _fact(completion, name, where=f"group {labeled.group.id}, completion {index}")
                    for index, completion in enumerate(labeled.group.completions)
                )
                for name in names
            },
        )
        for labeled in groups
    ]


def _fact(completion: Completion, name: str, where: str) -> float | tuple[float, ...]:
    value: Any = completion.meta.get(name)
    row: Any = value if isinstance(value, list | tuple) else [value]
    if not row or not all(isinstance(number, int | float) for number in row):  # a bool is an int
        raise DataError(
            f"its meta has {'no' if value is None else 'an unusable'} '{name}', which the loss needs",
            where=where,
            remedy=f'Write it beside the text: {{"text": "…", "meta": {{"{name}": …}}}}',
        )
    return float(row[0]) if row is not value else tuple(map(float, row))
