"""Rows of Arrow tables: Parquet files, and datasets of the hub."""

from __future__ import annotations

import datetime
import decimal
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dipole.data.rows import Row
from dipole.errors import DataError

_BATCH = 256

BOMB_SIZE = 2**28
"""Bytes from which on a file is suspected when it grows by more than ``BOMB_RATIO``."""

BOMB_RATIO = 500
"""By how much a file may grow when it is unpacked."""


def parquet_rows(path: Path) -> Iterator[Row | DataError]:
    """The rows of a Parquet file, a few hundred in memory at a time."""
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            _refuse_bomb(file.metadata, path)
            for batch in file.iter_batches(batch_size=_BATCH):
                for values in batch.to_pylist():
                    number += 1
                    yield _arrow_row(values, f"{path}:row {number}", f"{path.name}:{number}")
    # ValueError and OverflowError: text or dates that Python can't hold; an OSError with a number is the system's.
    except (pyarrow.ArrowException, ValueError, OverflowError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise DataError(
            f"isn't Parquet, or is damaged ({str(error).splitlines()[0]})",
            where=f"{path}:row {number + 1}",
            remedy="Write or download the file again.",
        ) from error


def _refuse_bomb(metadata: Any, path: Path) -> None:
    """By what the file says of itself, before anything is unpacked.

    Row groups alone are asked: asking for a column ends the whole process where its part of the footer is damaged.
    """
    unpacked = sum(metadata.row_group(number).total_byte_size for number in range(metadata.num_row_groups))
    if unpacked > BOMB_SIZE and unpacked > BOMB_RATIO * path.stat().st_size:
        raise DataError(
            f"grows by more than {BOMB_RATIO} times when it is unpacked, as a decompression bomb does",
            where=str(path),
            remedy="Write the file again in smaller row groups, or leave the column out that grows so.",
        )


def load_hub(name: str, split: str | None) -> dict[str, Any]:
    """The splits of a dataset of the hub, or only the one that is asked for.

    Raises:
        DataError: there is no such dataset, or no network.
    """
    import datasets

    try:
        loaded = datasets.load_dataset(name, split=split)
    except Exception as error:  # whatever the hub's client raises; its hierarchy isn't public
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"there is no such path, and no such dataset could be loaded from the hub ({reason})",
            where=name,
            remedy="Check the path or the dataset's name, or download it first where there is a network.",
        ) from error
    return dict(loaded) if split is None else {split: loaded}


def hub_rows(dataset: Any, name: str, split: str) -> Iterator[Row | DataError]:
    """The rows of one split."""
    number = 0
    for batch in dataset.with_format("arrow").iter(batch_size=_BATCH):
        for values in batch.to_pylist():
            number += 1
            yield _arrow_row(values, f"{name}:row {number}", f"{split}:{number}")


def _arrow_row(values: dict[str, Any], where: str, id: str) -> Row | DataError:
    try:
        return Row(where, id, {name: _plain_value(value, name) for name, value in values.items()})
    except ValueError as error:
        return DataError(str(error), where=where, remedy="Drop the column, or write it as text or numbers.")


def _plain_value(value: Any, column: str) -> Any:
    """An Arrow value as JSON has it. A null field of a struct is an absent one, and a NaN is a missing number."""
    if isinstance(value, dict):
        return {name: _plain_value(item, column) for name, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_plain_value(item, column) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        if math.isnan(value):
            return None
        raise ValueError(f"the column '{column}' holds an infinite number")
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, decimal.Decimal):
        return float(value)
    if value is None or isinstance(value, str | int | float):
        return value
    raise ValueError(f"the column '{column}' holds {type(value).__name__}, which has no place in a group")
