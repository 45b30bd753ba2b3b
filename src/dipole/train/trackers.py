"""Trackers: TensorBoard, Trackio or Weights & Biases show a run's metrics, and the run goes on whatever they do.

``metrics.jsonl`` is what counts; a tracker gets a copy. It works in a thread of its own, so that one that is slow or
waits for a network doesn't hold up training, and its first fault is its last: a sentence, and no more rows for it.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any, Protocol

from dipole.config import TrainConfig
from dipole.errors import ConfigError

PATIENCE = 15.0
"""Seconds that a tracker has at the end of a run to write what it hasn't written yet."""

Row = Mapping[str, Any]


class Sink(Protocol):
    """Where a tracker's rows go."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Takes the numbers of a step."""

    def close(self) -> None:
        """There will be no more."""


class TensorBoard:
    """Event files in the run folder's ``tensorboard``."""

    def __init__(self, config: TrainConfig) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(Path(config.output) / "tensorboard"))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """A point of each curve."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Writes what is left."""
        self._writer.close()


class Service:
    """Trackio (on this machine) or Weights & Biases (uploads), which take the same calls.

    Args:
        name: of the package.
        config: of the run. The run folder's name is that of the tracker's run.
    """

    def __init__(self, name: str, config: TrainConfig) -> None:
        self._package = importlib.import_module(name)
        self._package.init(project="dipole", name=Path(config.output).resolve().name, config=asdict(config))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """A row."""
        self._package.log(dict(values), step=step)

    def close(self) -> None:
        """Ends the tracker's run."""
        self._package.finish()


class Tracker:
    """Hands rows to a sink in another thread.

    Args:
        name: of the tracker, for the sentence about its fault.
        open_sink: makes the sink, in that thread.
        say: is told of the fault, in the thread that calls ``log`` and ``close``.
    """

    def __init__(self, name: str, open_sink: Callable[[], Sink], say: Callable[[str], None]) -> None:
        self._name, self._open, self._say = name, open_sink, say
        self._rows: SimpleQueue[Row | None] = SimpleQueue()
        self._fault: BaseException | None = None
        self._told = False
        # A daemon, or one that hangs would keep the finished process from ending.
        self._thread = Thread(target=self._work, name=f"tracker {name}", daemon=True)
        self._thread.start()

    def log(self, row: Row) -> None:
        """Takes a row of metrics; its numbers go to the sink when the sink has time."""
        self._tell()
        if self._fault is None:
            self._rows.put(row)

    def close(self) -> None:
        """Waits for the sink to write what it has, but not for long."""
        self._rows.put(None)
        self._thread.join(PATIENCE)
        self._tell()
        if self._thread.is_alive():
            self._say(f"{self._name} hasn't written everything after {PATIENCE:g} s and is left; {_WHERE}")

    def _tell(self) -> None:
        if self._fault is not None and not self._told:
            self._told = True
            problem = " ".join(str(self._fault).split())[:200] or type(self._fault).__name__
            self._say(f"{self._name} failed ({problem}); training goes on without it. {_WHERE}")

    def _work(self) -> None:
        try:
            sink = self._open()
            while (row := self._rows.get()) is not None:
                sink.log(row["step"], numbers(row))
            sink.close()
        except BaseException as fault:  # also a sys.exit of somebody else's code
            self._fault = fault


_WHERE = "metrics.jsonl has every row."


def numbers(row: Row) -> dict[str, float]:
    """The finite numbers of a row of metrics but its step."""
    return {
        name: float(value)
        for name, value in row.items()
        if name != "step" and isinstance(value, int | float) and math.isfinite(value)
    }


@contextmanager
def tracking(config: TrainConfig, say: Callable[[str], None]) -> Iterator[Tracker | None]:
    """The tracker of a run for as long as it lasts; ``None`` if there is none.

    Raises:
        ConfigError: its package isn't installed.
    """
    if config.track == "none":
        yield None
        return
    if find_spec(config.track) is None:
        raise ConfigError(
            "it isn't installed",
            where=f"--track {config.track}",
            remedy=f"'pip install {config.track}', or 'pip install dipole[track]' for all trackers",
        )

    def open_sink() -> Sink:
        return TensorBoard(config) if config.track == "tensorboard" else Service(config.track, config)

    tracker = Tracker(config.track, open_sink, say)
    try:
        yield tracker
    finally:
        tracker.close()
