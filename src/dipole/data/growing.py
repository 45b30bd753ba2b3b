"""Groups that are written down one by one while the work goes on; a process may be killed at any time."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

from dipole.data.native import group_from_json, group_to_json
from dipole.errors import DataError
from dipole.group import Group


class GrowingGroups:
    """A file of groups in the native format, to which whole lines are added.

    What was added before is in ``groups``; half a line, which a killed process leaves, is cut off.

    Args:
        path: of the file; nothing is written before the first group is, and by one process at a time.

    Raises:
        DataError: the file holds something else, or can't be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.groups = list(_cut_to_whole_lines(path)) if path.exists() else []

    def append(self, groups: Iterable[Group]) -> None:
        """Adds groups; they're on the disk when it returns.

        Raises:
            DataError: there is no room.
        """
        added = list(groups)
        lines = "".join(json.dumps(group_to_json(group), ensure_ascii=True, allow_nan=False) + "\n" for group in added)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                file.write(lines.encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as fault:
            raise DataError(f"can't be written ({fault.strerror or fault})", where=str(self.path)) from fault
        self.groups += added

    def remove(self) -> None:
        """Removes the file, once its groups are somewhere else."""
        self.path.unlink(missing_ok=True)


def _cut_to_whole_lines(path: Path) -> Iterable[Group]:
    try:
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            os.truncate(path, len(whole))
    except OSError as fault:
        raise DataError(f"can't be read ({fault.strerror or fault})", where=str(path)) from fault
    for number, line in enumerate(whole.splitlines(), start=1):
        where = f"{path}:{number}"
        try:
            values = json.loads(line)
        except ValueError as fault:
            raise DataError("the line isn't JSON", where=where, remedy="Delete the file to start anew") from fault
        yield group_from_json(values, where, id=where)
