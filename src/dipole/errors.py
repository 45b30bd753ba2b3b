"""The faults that Dipole reports to a person, each with the exit status of the command line.

A person's mistake is answered with what is wrong, where, and what to do; never with a traceback. Whatever is not a
``DipoleError`` is a bug in Dipole and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DipoleError(Exception):
    """Base of every fault that is reported to a person rather than to a developer.

    Args:
        problem: what is wrong, in one sentence without its final full stop.
        where: the place, such as ``"pairs.jsonl:17"`` or ``"--loss.beta"``.
        remedy: what to do about it, in one sentence.
    """

    exit_status = 1

    def __init__(self, problem: str, *, where: str | None = None, remedy: str | None = None) -> None:
        self.problem = problem
        self.where = where
        self.remedy = remedy
        super().__init__(problem, where, remedy)

    def __str__(self) -> str:
        head = f"{self.where}: {self.problem}" if self.where else self.problem
        if not self.remedy:
            return head
        return f"{head.rstrip('.')}. {self.remedy}{'' if self.remedy[-1] in '.?!' else '.'}"


class ConfigError(DipoleError, ValueError):
    """An option is unknown, missing, or can't be combined with another."""

    exit_status = 2


class DataError(DipoleError, ValueError):
    """A data file can't be read, or what it holds can't be trained on."""

    exit_status = 3


class TrainingFault(DipoleError, RuntimeError):
    """Training can't go on, or its result is not what it has to be."""

    exit_status = 4


class JudgeError(DipoleError, RuntimeError):
    """A judge failed, or its budget is spent."""

    exit_status = 5


class Stopped(DipoleError):
    """The run was asked to stop by a signal and has saved its state.

    Args:
        signal_number: 2 for SIGINT (exit status 130), 15 for SIGTERM (143).
    """

    def __init__(
        self, problem: str, *, signal_number: int, where: str | None = None, remedy: str | None = None
    ) -> None:
        super().__init__(problem, where=where, remedy=remedy)
        self.exit_status = 128 + signal_number


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint for a misspelt name: ``" Did you mean 'beta'?"``, or the list of what is known when nothing is close."""
    options = sorted(known)
    close = difflib.get_close_matches(name, options, n=1, cutoff=0.5)
    return f"Did you mean '{close[0]}'?" if close else f"Known are: {', '.join(options)}."
