"""How a long piece of work tells its caller where it is. The library itself prints nothing."""

from __future__ import annotations

import os
from typing import Protocol


class Progress(Protocol):
    """Receives what a long piece of work has to say; the command line draws it, everyone else may ignore it."""

    def stage(self, text: str, total: int | None = None) -> None:
        """A new stage begins, of ``total`` units when that is known. It ends the stage before."""

    def advance(self, units: int = 1, note: str = "") -> None:
        """``units`` more of the present stage are done; ``note`` is a short status such as ``"loss 0.61"``."""

    def say(self, text: str) -> None:
        """One sentence that a person should read."""


class Silent:
    """A ``Progress`` that says nothing; the default everywhere in the library."""

    def stage(self, text: str, total: int | None = None) -> None:
        """Ignored."""

    def advance(self, units: int = 1, note: str = "") -> None:
        """Ignored."""

    def say(self, text: str) -> None:
        """Ignored."""


def is_first_process() -> bool:
    """Whether this is the one of several processes that speaks and writes, as launchers number them."""
    return os.environ.get("RANK", "0") == "0"
