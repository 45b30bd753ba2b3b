"""What a verb of the command line is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Verb:
    """A verb of the command line: what runs it, what it takes, and a command that shows it.

    Args:
        run: takes the options; returns the exit status.
        options: a dataclass; see ``dipole.options.parse``.
        example: a command, for the help.
        positional: options that are given without their name.
    """

    run: Callable[[Any], int]
    options: type[Any]
    example: str
    positional: tuple[str, ...] = ()

    @property
    def summary(self) -> str:
        """The first line of the options' docstring."""
        return (self.options.__doc__ or "").splitlines()[0]
