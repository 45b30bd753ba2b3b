"""Signals that ask a run to stop: they are noted at once and obeyed between two steps."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dipole.errors import Stopped


class Stop:
    """What a run was asked, and whether it may be left as it is.

    Args:
        number: of the signal; 0 for none.
        at_once: there is nothing to save yet, so a signal ends the run where it is.
    """

    def __init__(self) -> None:
        self.number = 0
        self.at_once = True
        self._held = False

    @contextmanager
    def held(self) -> Iterator[None]:
        """For a save: no signal, however often it comes, cuts it short."""
        self._held = True
        try:
            yield
        finally:
            self._held = False

    def note(self, number: int, frame: Any = None) -> None:
        """Handles a signal.

        Launchers and schedulers repeat SIGTERM, so that counts once. A second SIGINT is a person who won't wait.
        """
        impatient = self.number == number == signal.SIGINT and not self._held
        self.number = self.number or number
        if impatient:
            raise KeyboardInterrupt
        if self.at_once:
            raise before_first_step(self.number)


def before_first_step(number: int) -> Stopped:
    """The end of a run that has nothing to save."""
    return Stopped(
        f"stopped by {signal.Signals(number).name} before the first step; there was nothing to save",
        signal_number=number,
        remedy="The same command with --resume starts it",
    )


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """SIGTERM and SIGINT are noted from here on; afterwards they do what they did before."""
    stop = Stop()
    try:
        before = {number: signal.signal(number, stop.note) for number in (signal.SIGTERM, signal.SIGINT)}
    except ValueError:  # not in the main thread: then whoever owns it handles signals
        before = {}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
