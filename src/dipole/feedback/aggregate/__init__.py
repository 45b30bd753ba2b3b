"""Many judgments a pair, from people and judges alike, become one probability; and what that is worth.

``aggregate`` is the whole of it. ``majority`` gives the share of people who prefer an answer; ``one_coin`` the
probability that it is the better one, given who is right how often; ``bradley_terry`` and ``plackett_luce`` strengths
of all answers to a prompt, from comparisons and from rankings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

from dipole.errors import ConfigError
from dipole.feedback.aggregate.labels import Labels, with_labels
from dipole.feedback.aggregate.result import Aggregation, Annotator, PairLabels, Source, counted
from dipole.feedback.aggregate.shares import majority
from dipole.feedback.aggregate.skills import OneCoinPriors, one_coin
from dipole.feedback.aggregate.strengths import bradley_terry, plackett_luce, source_strengths
from dipole.feedback.aggregate.subgroups import (
    Difference,
    Method,
    check_kinds,
    differences,
    parse_weights,
    read_kinds,
    weighted,
)
from dipole.group import Group

__all__ = [
    "METHODS",
    "Aggregation",
    "Annotator",
    "Difference",
    "Labels",
    "OneCoinPriors",
    "PairLabels",
    "Source",
    "Summary",
    "aggregate",
    "bradley_terry",
    "majority",
    "one_coin",
    "plackett_luce",
    "read_kinds",
    "source_strengths",
    "with_labels",
]

MethodName = Literal["majority", "one_coin", "bradley_terry", "plackett_luce"]

METHODS: dict[str, Method] = {
    "majority": majority,
    "one_coin": one_coin,
    "bradley_terry": bradley_terry,
    "plackett_luce": plackett_luce,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What came of the votes.

    Args:
        aggregation: labels, annotators, notes.
        sources: how the sources of completions compare.
        differences: between kinds of annotators, where kinds were given.
    """

    aggregation: Aggregation
    sources: tuple[Source, ...] = ()
    differences: tuple[Difference, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Everything but the labels, of which it has the number: those are in the file of groups."""
        found = self.aggregation
        return {
            "method": found.method,
            "num_pairs": len(found.pairs.p),
            "num_votes": int(found.pairs.num_votes.sum()),
            "annotators": [asdict(item) for item in found.annotators],
            "sources": [asdict(item) for item in self.sources],
            "differences": [asdict(item) for item in self.differences],
            "notes": list(found.notes),
        }


def aggregate(
    groups: Sequence[Group],
    method: MethodName = "one_coin",
    *,
    smoothing: float | None = None,
    kinds: Mapping[str, str] | None = None,
    kind_weights: str | None = None,
) -> Summary:
    """Aggregates the judgments of groups.

    Args:
        groups: with their judgments.
        method: of ``METHODS``.
        smoothing: of ``majority``.
        kinds: the kind of each annotator; how far kinds differ is measured then.
        kind_weights: ``"equal"``, or ``"nurses=2,doctors=1"``: each kind is aggregated by itself and counts this much.

    Raises:
        ConfigError: an option means nothing for the method.
        DataError: there are no votes, or they are aggregated already.
    """
    run = METHODS[method]
    if smoothing is not None:
        if method != "majority":
            raise ConfigError("is an option of majority alone", where="--smoothing", remedy="Leave it out")
        if not 0 <= smoothing < float("inf"):
            raise ConfigError(f"has to be at least 0, not {smoothing}", where="--smoothing")
        run = partial(majority, smoothing=smoothing)
    if kinds is None:
        if kind_weights is not None:
            raise ConfigError(
                "nobody is in a group", where="--group_weights", remedy="Give --annotator_groups FILE as well"
            )
        return Summary(aggregation=run(groups), sources=source_strengths(groups))
    check_kinds(groups, kinds)
    apart = differences(groups, kinds)
    found = run(groups) if kind_weights is None else weighted(run, groups, kinds, parse_weights(kind_weights, kinds))
    return Summary(aggregation=_warned(found, apart, kind_weights), sources=source_strengths(groups), differences=apart)


def _warned(found: Aggregation, apart: Sequence[Difference], kind_weights: str | None) -> Aggregation:
    clear = [item for item in apart if item.clear]
    if not clear or kind_weights is not None:
        return found
    worst = clear[0]
    return found.with_notes(
        f"{worst.kinds[0]} and {worst.kinds[1]} differ: of {counted(worst.num_pairs, 'pair')} that both voted on, they"
        f" prefer opposite answers on {worst.contrary}. One label for both hides that; see --group_weights"
    )
