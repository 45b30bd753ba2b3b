"""The one data structure: a prompt, its completions, and the judgments made of them.

A *judgment* is one act of one annotator (a person or a model) and is never edited. What a loss consumes, its
*relations*, is computed from judgments by ``dipole.data.reduce``. All classes here are immutable.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

Message = dict[str, Any]
"""A chat message: ``{"role": "user", "content": "..."}``, as chat templates take it. Treated as immutable."""

Text = str | tuple[Message, ...]
"""Plain text, or the messages of a chat."""

SCHEMA = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """One answer to the prompt.

    Args:
        text: plain text, or messages (usually one, of the assistant).
        source: who wrote it, such as the name of a model.
        meta: anything else that belongs to it.
    """

    text: Text
    source: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgment:
    """One act of one annotator; the base of ``Comparison``, ``Ranking``, ``Rating`` and ``Approval``.

    Args:
        annotator: who judged.
        weight: how much the judgment counts, at least 0.
        meta: anything else that belongs to it, such as a judge's reasons.
    """

    kind: ClassVar[str] = ""
    annotator: str | None = None
    weight: float = 1.0
    meta: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if not (math.isfinite(self.weight) and self.weight >= 0):
            raise ValueError(f"weight is {self.weight}, but has to be a finite number of at least 0")

    def indices(self) -> tuple[int, ...]:
        """The completions that the judgment speaks of."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison(Judgment):
    """Completion ``i`` against completion ``j``; ``p`` is the probability that ``i`` is better, ½ a tie."""

    kind: ClassVar[str] = "comparison"
    i: int
    j: int
    p: float = 1.0

    def __post_init__(self) -> None:
        Judgment.__post_init__(self)
        if not 0 <= self.p <= 1:
            raise ValueError(f"p is {self.p}, but a probability lies between 0 and 1")
        if self.i == self.j:
            raise ValueError(f"completion {self.i} is compared with itself")

    def indices(self) -> tuple[int, ...]:
        """Both sides."""
        return (self.i, self.j)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking(Judgment):
    """Completions in order, best first. Completions that are left out were not ranked."""

    kind: ClassVar[str] = "ranking"
    order: tuple[int, ...]

    def __post_init__(self) -> None:
        Judgment.__post_init__(self)
        if len(self.order) < 2:
            raise ValueError("a ranking needs at least two completions")
        if len(set(self.order)) != len(self.order):
            raise ValueError(f"the ranking {list(self.order)} names a completion twice")

    def indices(self) -> tuple[int, ...]:
        """All that are ranked."""
        return self.order


@dataclass(frozen=True, slots=True, kw_only=True)
class Rating(Judgment):
    """A score for one completion; higher is better, and only scores of the same annotator are on the same scale."""

    kind: ClassVar[str] = "rating"
    i: int
    value: float

    def __post_init__(self) -> None:
        Judgment.__post_init__(self)
        if not math.isfinite(self.value):
            raise ValueError(f"the rating is {self.value}, but has to be a finite number")

    def indices(self) -> tuple[int, ...]:
        """The one that is rated."""
        return (self.i,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Approval(Judgment):
    """Thumbs up (``True``, desirable) or down (``False``, undesirable) for one completion."""

    kind: ClassVar[str] = "approval"
    i: int
    value: bool

    def indices(self) -> tuple[int, ...]:
        """The one that is approved of or not."""
        return (self.i,)


JUDGMENTS: dict[str, type[Judgment]] = {kind.kind: kind for kind in (Comparison, Ranking, Rating, Approval)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """One prompt, its K completions, and the judgments made of them.

    Args:
        id: unique in its file.
        prompt: plain text, or the messages of a chat.
        completions: the K answers; judgments refer to them by position.
        judgments: zero or more.
        split: ``"train"``, ``"eval"`` or any other name; ``None`` when the file doesn't say.
        meta: anything else, such as ``{"category": "safety"}``.

    Raises:
        ValueError: a judgment speaks of a completion that isn't there.
    """

    id: str
    prompt: Text
    completions: tuple[Completion, ...]
    judgments: tuple[Judgment, ...] = ()
    split: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        count = len(self.completions)
        for position, judgment in enumerate(self.judgments):
            for index in judgment.indices():
                if not 0 <= index < count:
                    raise ValueError(
                        f"judgments[{position}] names completion {index}, but the group has {count} (0 to {count - 1})"
                    )


def with_completions(group: Group, kept: Sequence[int]) -> Group:
    """The group with these completions alone, in this order, and the judgments that still say something of them."""
    place = {old: new for new, old in enumerate(kept)}
    judgments = [moved for judgment in group.judgments if (moved := _moved(judgment, place)) is not None]
    return replace(group, completions=tuple(group.completions[old] for old in kept), judgments=tuple(judgments))


def _moved(judgment: Judgment, place: Mapping[int, int]) -> Judgment | None:
    """The judgment with completions at their new places, as far as they are still there."""
    match judgment:
        case Comparison() if judgment.i in place and judgment.j in place:
            return replace(judgment, i=place[judgment.i], j=place[judgment.j])
        case Rating() | Approval() if judgment.i in place:
            return replace(judgment, i=place[judgment.i])
        case Ranking():
            order = tuple(place[number] for number in judgment.order if number in place)
            return replace(judgment, order=order) if len(order) > 1 else None
    return None


def plain(text: Text) -> str:
    """The words alone, whatever the form: what statistics and reports look at, never what a model reads."""
    if isinstance(text, str):
        return text
    return "\n".join(_content(message) for message in text)


def _content(message: Message) -> str:
    content = message.get("content")
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence):
        parts = [part.get("text", "") if isinstance(part, Mapping) else str(part) for part in content]
        return " ".join(part for part in parts if isinstance(part, str) and part)
    return ""
