"""Rows to groups: the layouts that preference data come in, each recognised by its columns.

All rows of a table have to be of one dialect, so that a row that lacks a column is an error and not something else.
``DIALECTS`` says what each means. Columns that any of them may have besides: ``id``, ``split``, ``system`` (becomes the
system message), ``annotator``, ``weight``, ``meta``; whatever else a row holds goes to the group's ``meta``.
"""

from __future__ import annotations

from collections.abc import Callable, Set
from difflib import get_close_matches
from itertools import combinations
from typing import Any, NamedTuple

from dipole.data.chats import join_prompt, split_pieces
from dipole.data.fields import Fields, is_plain
from dipole.data.files import Table
from dipole.data.native import group_from_json
from dipole.data.rows import Row, parse_json
from dipole.errors import DataError
from dipole.group import Approval, Comparison, Completion, Group, Judgment, Ranking, Rating, Text

ANSWERS = ("responses", "completions", "answers")
"""Names of a column with K completions."""

PROBABILITIES = ("p", "pair_prob", "chosen_prob")
"""Names of a column with the probability that the chosen one is better."""

_PROMPT_ALONE = frozenset({"prompt", "id", "split", "system", "meta"})
_PROMPT_LIKE = ("question", "instruction", "input", "query", "context", "messages", "conversation", "conversations")
_NUMBERS = frozenset({*PROBABILITIES, "weight", "score_chosen", "score_rejected"})
_LISTS = frozenset({*ANSWERS, "scores", "ranks", "ranking", "meta"})
_PLAIN_PAIR = frozenset({"prompt", "chosen", "rejected", "id"})
_CHOSEN_WINS = (Comparison(i=0, j=1),)
_TEXTS = frozenset({"prompt", "chosen", "rejected", "completion"})
_TRUTH = {"true": True, "1": True, "false": False, "0": False}


class Parts(NamedTuple):
    """What a dialect finds in a row."""

    prompt: Text
    completions: list[Completion]
    judgments: list[Judgment]


ReadRow = Callable[[dict[str, Any], Row, str | None], Group]
"""Values, their row and the table's split → the group."""


class Dialect(NamedTuple):
    """A layout.

    Args:
        name: for messages.
        columns: those that it can't be without.
        read: reads any row that is of it.
    """

    name: str
    columns: frozenset[str]
    read: ReadRow


class GroupReader:
    """Turns the rows of one table into groups. The first row says which dialect it is.

    What columns mean is asked once, and again only where they change.
    """

    def __init__(self, table: Table) -> None:
        self._table = table
        self._dialect: Dialect | None = None
        self._columns: tuple[str, ...] | None = None
        self._read: ReadRow

    def group(self, row: Row) -> Group:
        """The group that a row holds.

        Raises:
            DataError: the row is of no dialect or of another than the rows before, or a value is missing or wrong.
        """
        values = _typed(row) if self._table.untyped else row.values
        columns = tuple(values)
        if columns != self._columns:
            self._choose(columns, row.where)
        return self._read(values, row, self._table.split)

    def _choose(self, columns: tuple[str, ...], where: str) -> None:
        dialect = recognise(frozenset(columns), where)
        if self._dialect is not None and dialect is not self._dialect:
            raise DataError(
                f"this row is {dialect.name}, but the rows before it are {self._dialect.name}",
                where=where,
                remedy="Write the two kinds of rows to two files.",
            )
        self._dialect, self._columns = dialect, columns
        self._read = _read_plain_pair if dialect is PAIRS and _PLAIN_PAIR.issuperset(columns) else dialect.read


def recognise(columns: Set[str], where: str) -> Dialect:
    """The one dialect that the columns fit.

    Raises:
        DataError: they fit none, or several.
    """
    if "completions" in columns and columns & {"schema", "judgments"}:
        return NATIVE
    fits = [dialect for dialect in DIALECTS if dialect.columns <= columns]
    if PAIRS in fits:  # its columns hold those of the dialect without a prompt
        fits.remove(PIECES)
    if fits == [PIECES]:
        _refuse_prompt_by_another_name(columns, where)
    if not fits and "prompt" in columns and columns <= _PROMPT_ALONE:
        return PROMPTS
    if len(fits) == 1:
        return fits[0]
    if fits:
        names = " and ".join(dialect.name for dialect in fits)
        raise DataError(f"the columns fit {names}", where=where, remedy="Drop those of the one that isn't meant.")
    raise _unknown(columns, where)


def _unknown(columns: Set[str], where: str) -> DataError:
    nearest = max(DIALECTS, key=lambda dialect: len(dialect.columns & columns) / len(dialect.columns))
    missing = ", ".join(f"'{name}'" for name in sorted(nearest.columns - columns))
    if (nearest.columns & columns) - {"prompt", "instruction"}:
        return DataError(
            f"there is no {missing}", where=where, remedy=f"A row of {nearest.name} can't be without the column."
        )
    return DataError(
        f"the columns {', '.join(sorted(columns)) or '(none)'} are those of no known layout",
        where=where,
        remedy=f"Known are: {', '.join(dialect.name for dialect in (NATIVE, *DIALECTS))}.",
    )


def _refuse_prompt_by_another_name(columns: Set[str], where: str) -> None:
    for name in sorted(columns):
        if name in _PROMPT_LIKE or get_close_matches(name.lower(), ["prompt"], cutoff=0.83):
            raise DataError(
                f"there is no column 'prompt', but one '{name}'",
                where=where,
                remedy="Rename it to 'prompt' if it is the prompt; drop it if the answers hold the prompt.",
            )


def _dialect(name: str, columns: str, read: Callable[[Fields, str | None], Parts]) -> Dialect:
    """A dialect, given by what it takes from a row; the second argument of ``read`` is the system message."""

    def read_row(values: dict[str, Any], row: Row, split: str | None) -> Group:
        try:
            return _group(read, values, row, split)
        except DataError:
            raise
        except ValueError as error:  # what a group and its judgments refuse
            raise DataError(str(error), where=row.where, remedy="Correct the row or leave it out.") from error

    return Dialect(name, frozenset(columns.split()), read_row)


def _group(read: Callable[[Fields, str | None], Parts], values: dict[str, Any], row: Row, split: str | None) -> Group:
    fields = Fields(values, row.where)
    id, given_split, system = fields.name("id"), fields.string("split"), fields.string("system")
    meta = fields.mapping("meta") if isinstance(values.get("meta"), dict) else {}
    prompt, completions, judgments = read(fields, system)
    left = {name: value for name, value in fields.left().items() if value is not None}
    for name in left:
        if name in meta:
            raise fields.fault(name, "is a column and also a key of the column 'meta'", "Rename one.")
    return Group(
        id=row.id if id is None else id,
        prompt=prompt,
        completions=tuple(completions),
        judgments=tuple(judgments),
        split=split if given_split is None else given_split,
        meta=meta | left,
    )


def _read_native(values: dict[str, Any], row: Row, split: str | None) -> Group:
    return group_from_json(values, row.where, id=row.id, split=split)


def _typed(row: Row) -> dict[str, Any]:
    """The cells of a CSV row by what their columns mean; what can't be converted stays text and fails as such."""
    typed: dict[str, Any] = {}
    for name, cell in row.values.items():
        value: Any = cell
        if name not in _TEXTS and cell == "":
            value = None
        elif name == "label":
            value = _TRUTH.get(cell.strip().lower(), cell)
        elif name in _NUMBERS:
            try:
                value = float(cell)
            except ValueError:
                value = cell
        elif name in _LISTS and cell.lstrip()[:1] in ("[", "{"):
            value = parse_json(cell, row.where)
        typed[name] = value
    return typed


def _common(fields: Fields) -> dict[str, Any]:
    """Who judged, and how much it counts."""
    return {"annotator": fields.name("annotator"), "weight": fields.number("weight", 1.0)}


def _one_or_more(fields: Fields, name: str, count: int) -> list[float]:
    """A list of ``count`` numbers, or one number for all."""
    if not isinstance(fields.left().get(name), list):
        return [fields.number(name)] * count
    return _as_many(fields, name, fields.numbers(name), count)


def _as_many(fields: Fields, name: str, items: list[Any], count: int) -> list[Any]:
    if len(items) != count:
        raise fields.fault(name, f"has {len(items)} items for {count} answers")
    return items


def _sides(fields: Fields) -> list[Text]:
    """The chosen answer, and the one or several that were rejected."""
    chosen, rejected = fields.text("chosen"), fields.left().get("rejected")
    if not isinstance(rejected, list) or (rejected and isinstance(rejected[0], dict)):
        return [chosen, fields.text("rejected")]
    if not rejected:
        raise fields.fault("rejected", "is an empty list, so an answer is missing")
    return [chosen, *fields.texts("rejected")]


def _pair_parts(fields: Fields, prompt: Text, answers: list[Text]) -> Parts:
    rejected = range(1, len(answers))
    if not fields.left():  # the commonest row has nothing else, and then there is nothing to look for
        return Parts(prompt, [Completion(text=text) for text in answers], [Comparison(i=0, j=j) for j in rejected])
    common = _common(fields)
    names = [name for name in PROBABILITIES if fields.has(name)]
    if len(names) > 1:
        raise fields.fault(names[1], f"says the same as '{names[0]}'", "Keep one of them.")
    probabilities = _one_or_more(fields, names[0], len(rejected)) if names else [1.0] * len(rejected)
    judgments: list[Judgment] = [
        Comparison(i=0, j=j, p=p, **common) for j, p in zip(rejected, probabilities, strict=True)
    ]
    if fields.has("score_chosen"):
        judgments.append(Rating(i=0, value=fields.number("score_chosen"), **common))
    if fields.has("score_rejected"):
        values = _one_or_more(fields, "score_rejected", len(rejected))
        judgments += [Rating(i=j, value=value, **common) for j, value in zip(rejected, values, strict=True)]
    sources = [fields.string("chosen_source"), *[None] * len(rejected)]
    if fields.has("rejected_source") and len(rejected) == 1:
        sources[1] = fields.string("rejected_source")
    completions = [Completion(text=text, source=source) for text, source in zip(answers, sources, strict=True)]
    return Parts(prompt, completions, judgments)


def _read_pairs(fields: Fields, system: str | None) -> Parts:
    return _pair_parts(fields, *join_prompt(fields.text("prompt"), _sides(fields), system, fields.where))


def _read_plain_pair(values: dict[str, Any], row: Row, split: str | None) -> Group:
    """What ``PAIRS.read`` makes of the row; at once for the commonest, which holds plain text and nothing else."""
    prompt, chosen, rejected, id = values["prompt"], values["chosen"], values["rejected"], values.get("id", row.id)
    if not (is_plain(prompt) and is_plain(chosen) and is_plain(rejected) and isinstance(id, str)):
        return PAIRS.read(values, row, split)
    completions = (Completion(text=chosen), Completion(text=rejected))
    return Group(id=id, prompt=prompt, completions=completions, judgments=_CHOSEN_WINS, split=split)


def _read_pieces(fields: Fields, system: str | None) -> Parts:
    prompt, answers = split_pieces(_sides(fields), fields.where)
    return _pair_parts(fields, *join_prompt(prompt, answers, system, fields.where))


def _read_unary(fields: Fields, system: str | None) -> Parts:
    prompt, answers = join_prompt(fields.text("prompt"), [fields.text("completion")], system, fields.where)
    return Parts(prompt, [Completion(text=answers[0])], [Approval(i=0, value=fields.flag("label"), **_common(fields))])


def _read_prompts(fields: Fields, system: str | None) -> Parts:
    return Parts(join_prompt(fields.text("prompt"), [], system, fields.where)[0], [], [])


def _read_responses(fields: Fields, system: str | None) -> Parts:
    name = next(name for name in ANSWERS if name in fields.left())
    prompt, answers = join_prompt(fields.text("prompt"), fields.texts(name), system, fields.where)
    if not answers:
        raise fields.fault(name, "is an empty list, so there is no answer")
    common = _common(fields)
    judgments: list[Judgment] = []
    if fields.has("scores"):
        scores = _as_many(fields, "scores", fields.numbers("scores"), len(answers))
        judgments += [Rating(i=i, value=value, **common) for i, value in enumerate(scores)]
    if fields.has("ranks"):
        judgments += _from_ranks(_as_many(fields, "ranks", fields.wholes("ranks"), len(answers)), fields, common)
    if fields.has("ranking"):
        order = fields.wholes("ranking")
        if max(order, default=0) >= len(answers) or min(order, default=0) < 0:
            raise fields.fault(
                "ranking",
                f"is {order}, but names answers by place, from 0 to {len(answers) - 1}, best first",
                "If it holds the rank of each answer, name it 'ranks'.",
            )
        judgments.append(Ranking(order=tuple(order), **common))
    return Parts(prompt, [Completion(text=answer) for answer in answers], judgments)


def _from_ranks(ranks: list[int], fields: Fields, common: dict[str, Any]) -> list[Judgment]:
    """One ranking; comparisons if ranks are shared, which no ranking can say."""
    if min(ranks) < 0:
        raise fields.fault("ranks", f"holds {min(ranks)}, but the best answer has rank 0 or 1")
    order = sorted(range(len(ranks)), key=lambda i: ranks[i])
    if len(set(ranks)) == len(ranks) > 1:
        return [Ranking(order=tuple(order), **common)]
    return [Comparison(i=i, j=j, p=0.5 if ranks[i] == ranks[j] else 1.0, **common) for i, j in combinations(order, 2)]


def _read_ultrafeedback(fields: Fields, system: str | None) -> Parts:
    rated = fields.items("completions", lambda name, value: fields.inside(name, value))
    texts = [item.text("response") for item in rated]
    prompt, answers = join_prompt(fields.text("instruction"), texts, system, fields.where)
    common = _common(fields)
    completions, judgments = [], list[Judgment]()
    for i, (item, answer) in enumerate(zip(rated, answers, strict=True)):
        source = item.string("model")
        if item.has("overall_score"):
            judgments.append(Rating(i=i, value=item.number("overall_score"), **common))
        else:
            judgments += _aspect_ratings(item, i, common["weight"])
        completions.append(Completion(text=answer, source=source, meta=item.left()))
    return Parts(prompt, completions, judgments)


def _aspect_ratings(item: Fields, i: int, weight: float) -> list[Judgment]:
    """Ratings of single aspects. Each aspect has a scale of its own, so it counts as an annotator of its own."""
    ratings: list[Judgment] = []
    for aspect, value in (item.left().get("annotations") or {}).items():
        for annotation in value if isinstance(value, list) else [value]:
            given = str(annotation.get("Rating") if isinstance(annotation, dict) else None)
            if given not in ("N/A", "None"):
                try:
                    ratings.append(Rating(i=i, value=float(given), annotator=aspect, weight=weight))
                except ValueError as error:
                    raise item.fault(f"annotations.{aspect}.Rating", f"is {given!r}, but no number") from error
    return ratings


NATIVE = Dialect("native groups (schema, id, prompt, completions, judgments)", frozenset(), _read_native)
PROMPTS = _dialect("prompt alone", "prompt", _read_prompts)
PAIRS = _dialect("prompt/chosen/rejected", "prompt chosen rejected", _read_pairs)
PIECES = _dialect("chosen/rejected with the prompt inside", "chosen rejected", _read_pieces)
DIALECTS = (
    PAIRS,
    PIECES,
    _dialect("prompt/completion/label", "prompt completion label", _read_unary),
    *(_dialect(f"prompt/{name} with scores or ranks", f"prompt {name}", _read_responses) for name in ANSWERS),
    _dialect("instruction/completions (UltraFeedback)", "instruction completions", _read_ultrafeedback),
)
