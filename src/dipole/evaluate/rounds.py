"""What rounds of an iteration changed, measured on prompts that none of them was trained on. Numbers only, no models.

Of each evaluated prompt there are as many completions of the round's policy as of round 0's, drawn with the same random
numbers; a judge saw them side by side. Everything is clustered by prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from dipole.errors import DataError
from dipole.evaluate.stats import Estimate, kl, mean, paired_difference, share, verdict
from dipole.group import Comparison, Group, Rating, plain


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a judge says of one completion of a round.

    Args:
        prompt: the group's id.
        number: of the completion, from 0.
        reward: its rating; its probability of being better than round 0's, where the judge compares.
        first: the reward of round 0's; ½ where the judge compares.
        win: 1, ½ or 0 against round 0's, or that probability.
    """

    prompt: str
    number: int
    reward: float
    first: float
    win: float


def outcomes(judged: Sequence[Group]) -> list[Outcome]:
    """Of groups with K completions of a round and, after them, K of round 0; pairs without a verdict are left out."""
    found = []
    for group in judged:
        half = len(group.completions) // 2
        ratings = {item.i: item.value for item in group.judgments if isinstance(item, Rating)}
        wins = {
            item.i: item.p
            for item in group.judgments
            if isinstance(item, Comparison) and item.weight > 0 and item.j == item.i + half
        }
        for number in range(half):
            if number in ratings and number + half in ratings:
                mine, first = ratings[number], ratings[number + half]
                win = 0.5 if mine == first else float(mine > first)
                found.append(Outcome(group.id, number, mine, first, win))
            elif number in wins:
                found.append(Outcome(group.id, number, wins[number], 0.5, wins[number]))
    return found


def measure_round(
    samples: Sequence[Group],
    judged: Mapping[str, Sequence[Group]],
    ref_logps: Sequence[Sequence[float]] | None,
) -> dict[str, Any]:
    """The numbers of one round.

    Args:
        samples: of the round's policy, at temperature 1.
        judged: by name of the judge's part, groups as ``outcomes`` takes them; empty for round 0.
        ref_logps: of each sample under the first model; ``None`` for round 0.

    Raises:
        DataError: a judge gave no verdict at all.
    """
    rows = [(group.id, completion) for group in samples for completion in group.completions]
    prompts = [id for id, _ in rows]
    numbers: dict[str, Any] = {
        "prompts": len(samples),
        "samples": len(rows),
        "tokens": asdict(mean([completion.meta["tokens"] for _, completion in rows], prompts)),
        "finished": asdict(share([float(completion.meta["finished"]) for _, completion in rows], prompts)),
        "distinct_pairs": distinct_pairs([plain(completion.text) for _, completion in rows]),
        "different": sum(len({plain(c.text) for c in group.completions}) for group in samples) / len(rows),
        "kl": None,
        "judges": {},
    }
    if ref_logps is not None:
        logps = [completion.meta["logps"] for _, completion in rows]
        numbers["kl"] = asdict(kl(logps, [value for group in ref_logps for value in group], prompts))
    for part, groups in judged.items():
        seen = outcomes(groups)
        if not seen:
            raise DataError(f"the {part} judge gave no verdict on any evaluated completion")
        names = [item.prompt for item in seen]
        numbers["judges"][part] = {
            "name": _annotator(groups),
            "reward": asdict(mean([item.reward for item in seen], names)),
            "gain": asdict(paired_difference([item.reward for item in seen], [item.first for item in seen], names)),
            "win_rate": asdict(share([item.win for item in seen], names)),
            "without_verdict": len(rows) - len(seen),
        }
    return numbers


def change(after: Sequence[Outcome], before: Sequence[Outcome] | None) -> Estimate:
    """How much more reward a round has than the one before it; ``None`` for round 0, whose rewards are at hand."""
    if before is None:
        return paired_difference([x.reward for x in after], [x.first for x in after], [x.prompt for x in after])
    old = {(item.prompt, item.number): item.reward for item in before}
    both = [item for item in after if (item.prompt, item.number) in old]
    return paired_difference(
        [item.reward for item in both],
        [old[item.prompt, item.number] for item in both],
        [item.prompt for item in both],
    )


def overoptimised(training: Estimate, held_out: Estimate) -> str | None:
    """A warning where the training judge sees a gain and the held-out judge a loss; ``None`` where there is none."""
    if verdict(training) != "better" or held_out.value is None or held_out.value >= 0:
        return None
    sure = "falls" if verdict(held_out) == "worse" else "seems to fall (its interval holds 0)"
    return f"the training judge's reward rises while the held-out judge's {sure}"


def distinct_pairs(texts: Sequence[str]) -> float | None:
    """The share of different ones among all pairs of neighbouring words (Li et al. 2016, arXiv 1510.03055)."""
    pairs = [pair for text in texts for pair in pairwise(text.split())]
    return len(set(pairs)) / len(pairs) if pairs else None


def _annotator(groups: Sequence[Group]) -> str | None:
    return next((judgment.annotator for group in groups for judgment in group.judgments), None)
