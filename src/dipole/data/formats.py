"""Preference files: reading every dialect, writing groups, pairs and single approvals."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from dipole.data.chats import as_messages
from dipole.data.dialects import GroupReader
from dipole.data.files import open_tables, write_lines
from dipole.data.native import group_to_json, text_to_json
from dipole.data.reduce import LabeledGroup, PairRelation, Relation, UnaryRelation, reduce_groups
from dipole.errors import DataError
from dipole.group import Completion, Group


def read_groups(source: str | Path, *, on_bad_row: Callable[[DataError], None] | None = None) -> Iterator[Group]:
    """Reads groups one by one, without holding the file in memory (a ``.json`` file excepted).

    Args:
        source: a ``.jsonl``, ``.json``, ``.csv`` (each also with ``.gz``) or ``.parquet`` file, a folder of such, or,
            where no such path exists, a dataset of the hub: ``"owner/name"`` or ``"owner/name:split"``.
        on_bad_row: receives the fault of a row that can't be read, and the row is left out; without it the first such
            fault is raised. Damage that hides where the next row begins is always raised.

    Yields:
        Groups in the order of the source. A group that brings no id is named after its file and line.

    Raises:
        DataError: with file and line, what is wrong, and what to do.
    """
    places: dict[str, str] = {}
    for table in open_tables(source):
        reader = GroupReader(table)
        for row in table.rows:
            try:
                if isinstance(row, DataError):
                    raise row
                group = reader.group(row)
                if group.id in places:
                    raise DataError(
                        f"the id '{group.id}' is also that of {places[group.id]}",
                        where=row.where,
                        remedy="Make ids unique, or rename the column 'id' to have it kept as a note.",
                    )
            except DataError as fault:
                if on_bad_row is None:
                    raise
                on_bad_row(fault)
                continue
            places[group.id] = row.where
            yield group


def load_groups(source: str | Path, *, on_bad_row: Callable[[DataError], None] | None = None) -> list[Group]:
    """All groups of a source at once; see ``read_groups``."""
    return list(read_groups(source, on_bad_row=on_bad_row))


def check_name(path: str | Path) -> None:
    """Says before hours of work what saving would say after them.

    Raises:
        DataError: the name doesn't end in ``.jsonl`` or ``.jsonl.gz``.
    """
    if not Path(path).name.endswith((".jsonl", ".jsonl.gz")):
        raise DataError("only JSON Lines are written", where=str(path), remedy="Name it .jsonl or .jsonl.gz.")


def save_groups(groups: Iterable[Group], path: str | Path) -> int:
    """Writes groups in the native format, one a line; ``load_groups`` gives equal ones.

    The file appears whole or not at all, and the same groups give the same bytes.

    Args:
        groups: what to write.
        path: ends in ``.jsonl`` or ``.jsonl.gz``.

    Returns:
        The number of groups.

    Raises:
        DataError: two have the same id, a note isn't JSON, or the file can't be written.
    """

    def lines() -> Iterator[str]:
        seen: set[str] = set()
        for group in groups:
            if group.id in seen:
                raise DataError(f"two groups have the id '{group.id}'", where=str(path), remedy="Make ids unique.")
            seen.add(group.id)
            yield _line(group_to_json(group), group.id)

    return write_lines(lines(), path)


def save_pairs(groups: Sequence[Group], path: str | Path) -> dict[str, int]:
    """Writes every judged pair as a row of prompt, chosen and rejected, as other programs read it.

    A row is the label of a pair, see ``reduce.pair_labels``: several judgments of one pair become one row, and neither
    annotators nor ratings are kept. ``pair_prob`` and ``weight`` are written where they aren't 1. Ties are dropped,
    since whoever doesn't know ``pair_prob`` would take them for a preference.

    Returns:
        ``rows`` written, ``judgments`` behind them, and what was dropped, by reason.

    Raises:
        DataError: nothing can be written as a pair.
    """
    decided = []
    labeled, counts = reduce_groups(groups, "pair")
    for item in labeled:
        relations = [relation for relation in item.relations if isinstance(relation, PairRelation)]
        decided += [(item, relation) for relation in relations if relation.p > 0.5]
        counts["ties"] = counts.get("ties", 0) + sum(relation.p == 0.5 for relation in relations)
    return _save_relations(decided, _pair_row, counts, path)


def save_unpaired(groups: Sequence[Group], path: str | Path) -> dict[str, int]:
    """Writes every completion with a label of its own as a row of prompt, completion and label (true: desirable).

    Approvals are taken as they are, by majority. Without any, a completion is desirable if it won most of its pairs;
    see ``reduce.reduce_groups``. ``weight`` is written where it isn't 1.

    Returns:
        ``rows`` written, ``judgments`` behind them, and what was dropped, by reason.

    Raises:
        DataError: no completion has a label.
    """
    labeled, counts = reduce_groups(groups, "unary", soft=False)
    return _save_relations(
        [(item, relation) for item in labeled for relation in item.relations], _unary_row, counts, path
    )


def _save_relations(
    found: Sequence[tuple[LabeledGroup, Any]],
    columns: Callable[[LabeledGroup, Any], dict[str, Any]],
    counts: dict[str, int],
    path: str | Path,
) -> dict[str, int]:
    if not found:
        raise DataError("every pair is a tie, so nothing is chosen over anything", where=str(path))
    groups = {item.group.id: item.group for item, _ in found}
    rows = write_lines((_line(columns(item, relation), item.group.id) for item, relation in found), path)
    judgments = sum(len(group.judgments) for group in groups.values())
    return {"rows": rows, "judgments": judgments, **{reason: count for reason, count in counts.items() if count}}


def _pair_row(item: LabeledGroup, relation: PairRelation) -> dict[str, Any]:
    chosen, rejected = item.group.completions[relation.i], item.group.completions[relation.j]
    row = _row(item, relation, f"{relation.i}>{relation.j}", {"chosen": chosen, "rejected": rejected})
    if relation.p != 1:
        row["pair_prob"] = relation.p
    for side, completion in (("chosen", chosen), ("rejected", rejected)):
        if completion.source is not None:
            row[f"{side}_source"] = completion.source
    return row


def _unary_row(item: LabeledGroup, relation: UnaryRelation) -> dict[str, Any]:
    row = _row(item, relation, str(relation.i), {"completion": item.group.completions[relation.i]})
    return row | {"label": relation.desirable}


def _row(item: LabeledGroup, relation: Relation, name: str, completions: dict[str, Completion]) -> dict[str, Any]:
    """What rows of both kinds have; prompt and completions all as text, or all as messages."""
    group = item.group
    texts = [group.prompt, *(completion.text for completion in completions.values())]
    if not all(isinstance(text, str) for text in texts):
        texts = [as_messages(texts[0], "user"), *(as_messages(text, "assistant") for text in texts[1:])]
    row: dict[str, Any] = {"id": group.id if len(item.relations) == 1 else f"{group.id}:{name}"}
    row |= zip(("prompt", *completions), map(text_to_json, texts), strict=True)
    if relation.weight != 1:
        row["weight"] = relation.weight
    if group.split is not None:
        row["split"] = group.split
    if group.meta:
        row["meta"] = dict(group.meta)
    return row


def _line(values: dict[str, Any], id: str) -> str:
    try:
        line = json.dumps(values, ensure_ascii=False, allow_nan=False)
        try:
            line.encode()
        except UnicodeEncodeError:  # half a surrogate pair: UTF-8 can't hold it, an escape can
            line = json.dumps(values, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise DataError(
            f"can't be written as JSON ({error})",
            where=f"group '{id}'",
            remedy="Notes in 'meta' have to be text, numbers, lists and objects.",
        ) from error
    return line
