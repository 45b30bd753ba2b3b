"""What aggregation gives: a probability a pair, a reliability an annotator, and what couldn't be told."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from dipole.data.audit.intervals import Floats, Interval, Ints


@dataclass(frozen=True, slots=True)
class PairLabels:
    """P(first ≻ second) of U pairs.

    Args:
        group: (U) number of the group.
        first: (U) a completion.
        second: (U) another one, of a higher position.
        p: (U) the probability that the first is the better one, or is preferred.
        low: (U) lower end of its 95 % interval, NaN where there is none.
        high: (U) upper end.
        num_votes: (U) 0 where the label follows from other pairs alone.
    """

    group: Ints
    first: Ints
    second: Ints
    p: Floats
    low: Floats
    high: Floats
    num_votes: Ints


@dataclass(frozen=True, slots=True, kw_only=True)
class Annotator:
    """How far an annotator can be relied on.

    Args:
        name: of the annotator.
        num_votes: on pairs.
        reliability: the chance of being right on a pair that isn't a tie (``one_coin``), or of saying what most of the
            others say (other methods); ``None`` where nothing tells it.
        reliability_interval: 95 %; ``None`` where there is none.
        side_bias: the share of answers taken because they were shown first, were both equally good; ½ is none. ``None``
            where nobody noted what was shown first.
        side_bias_interval: 95 %.
        tie_share: ties among the votes.
        identified: whether the votes tell the reliability; otherwise it is the prior's, or missing.
    """

    name: str
    num_votes: int
    reliability: float | None
    reliability_interval: Interval | None
    side_bias: float | None
    side_bias_interval: Interval | None
    tie_share: float
    identified: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """How strong the completions of one source are.

    Args:
        name: who wrote them, such as a model.
        strength: log-odds against the average of the sources that it can be compared with.
        interval: 95 %, from whole prompts.
        part: sources of different parts were never compared, not even through others.
        num_votes: that it took part in.
        finite: whether the strength would be finite without a prior: it has won and lost.
    """

    name: str
    strength: float
    interval: Interval | None
    part: int
    num_votes: int
    finite: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Aggregation:
    """What a method made of the votes.

    Args:
        method: its name.
        pairs: the labels.
        annotators: the busiest first.
        notes: what can't be told, and what to be careful about, in sentences.
        objective: the log-posterior after each round, for methods that go in rounds; it never falls.
    """

    method: str
    pairs: PairLabels
    annotators: tuple[Annotator, ...]
    notes: tuple[str, ...] = ()
    objective: tuple[float, ...] = ()

    def with_notes(self, *notes: str) -> Aggregation:
        """The same with more to say."""
        return replace(self, notes=(*self.notes, *notes))


def interval(low: float, high: float) -> Interval | None:
    """``None`` where an end isn't known."""
    return (float(low), float(high)) if np.isfinite(low) and np.isfinite(high) else None


def counted(count: int, noun: str) -> str:
    """``"1 pair"``, ``"2,000 pairs"``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
