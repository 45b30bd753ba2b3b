"""From probabilities back to groups: how the doubt about a pair reaches the loss."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from dipole.errors import ConfigError
from dipole.feedback.aggregate.result import Aggregation
from dipole.feedback.aggregate.votes import AGGREGATED
from dipole.group import Approval, Comparison, Group

Labels = Literal["soft", "weighted", "hard"]


def with_labels(
    groups: Sequence[Group], aggregation: Aggregation, *, labels: Labels = "soft", min_p: float = 0.5
) -> tuple[list[Group], dict[str, int]]:
    """The groups with one comparison a pair in the place of their votes.

    Every pair has the weight 1, however many voted on it: what their number is worth is in p. Approvals stay, since
    they say something else; groups with nothing else, or without judgments, stay as they are.

    Args:
        groups: that were aggregated.
        aggregation: of them.
        labels: ``"soft"`` keeps p: the loss is the expectation over the label. ``"weighted"`` takes the likelier side
            for certain with a weight of |2p − 1|. ``"hard"`` takes it for certain.
        min_p: pairs whose likelier side is less likely than this are left out.

    Returns:
        Groups with a label, in order; and what was written and left out, by name.

    Raises:
        ConfigError: ``min_p`` isn't a probability of at least ½.
    """
    if not 0.5 <= min_p <= 1:
        raise ConfigError(f"{min_p} is outside of 0.5 to 1", where="--min_p")
    counts: Counter[str] = Counter()
    found: dict[int, list[Comparison]] = {}
    pairs = aggregation.pairs
    columns = (pairs.group, pairs.first, pairs.second, pairs.p, pairs.low, pairs.high, pairs.num_votes)
    for group, i, j, p, low, high, num_votes in zip(*(column.tolist() for column in columns), strict=True):
        meta = {"votes": num_votes} | ({"p_interval": [low, high]} if low == low and high == high else {})
        label = Comparison(i=i, j=j, p=p, annotator=f"{AGGREGATED}{aggregation.method}", meta=meta)
        if max(p, 1 - p) < min_p:
            counts["pairs_below_min_p"] += 1
        elif labels != "soft" and p == 0.5:
            counts["ties"] += 1
        else:
            counts["pairs"] += 1
            found.setdefault(group, []).append(_decided(label, labels))
    written = []
    for number, group in enumerate(groups):
        approvals = tuple(judged for judged in group.judgments if isinstance(judged, Approval))
        if number in found:
            written.append(replace(group, judgments=(*found[number], *approvals)))
        elif len(approvals) == len(group.judgments):
            written.append(group)
            counts["groups_without_votes"] += 1
        else:
            counts["groups_without_a_label"] += 1
    counts["groups"] = len(written)
    return written, dict(counts)


def _decided(label: Comparison, labels: Labels) -> Comparison:
    if labels == "soft":
        return label
    meta = {**label.meta, "p": label.p}
    weight = abs(2 * label.p - 1) if labels == "weighted" else 1.0
    return replace(label, p=float(label.p > 0.5), weight=weight, meta=meta)
