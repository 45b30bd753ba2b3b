"""Knowing the data before training on it: errors that stop training, and findings that should worry.

Every check is a function of the whole data that yields findings; a new one is a new function and a place in ``audit``.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from dipole.data.files import is_held_out
from dipole.data.reduce import as_comparisons, pair_labels
from dipole.data.validate import REMEDIES, faults, fold
from dipole.errors import DataError
from dipole.group import Group, Text, plain

Severity = Literal["error", "info", "warning", "severe"]

NUM_EXAMPLES = 3

LENGTH_LIMITS = (0.60, 0.75)
"""Share of pairs won by the longer answer beyond which it is a warning, and severe. Where people judge, the longer one
wins a little more often than not for good reasons."""

DISAGREEMENT_LIMITS = (0.40, 0.48)
"""Share of contradicting judgments of one pair; ½ is what tossing a coin gives."""

REPEATED_LIMITS = (0.0, 0.05)
"""Share of completions that begin with their prompt."""

MIN_REPEATED_CHARACTERS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One fact about the data.

    Args:
        name: of the check.
        severity: ``"error"`` stops training.
        message: what was found, in a sentence.
        value: the number behind it; several where one says too little.
        interval: 95 % confidence interval of a single number that is an estimate.
        examples: up to three, each beginning with the id of its group.
        remedy: what to do about it.
    """

    name: str
    severity: Severity
    message: str
    value: float | dict[str, float] | None = None
    interval: tuple[float, float] | None = None
    examples: tuple[str, ...] = ()
    remedy: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditReport:
    """What an audit found."""

    errors: tuple[Finding, ...]
    findings: tuple[Finding, ...]

    def to_json(self) -> dict[str, Any]:
        """``{"errors": [...], "findings": [...]}`` of plain objects."""
        return {"errors": [asdict(item) for item in self.errors], "findings": [asdict(item) for item in self.findings]}

    def raise_for_errors(self, where: str) -> None:
        """Raises if there are errors.

        Raises:
            DataError: names every error with its examples.
        """
        if self.errors:
            said = [f"{error.message} ({'; '.join(error.examples)})" for error in self.errors]
            remedies = dict.fromkeys(error.remedy for error in self.errors if error.remedy)
            raise DataError("; ".join(said), where=where, remedy=" ".join(remedies))

    def summary(self) -> tuple[str, str, str]:
        """Three lines for a log: how much there is, errors, and what should worry."""
        sizes = " · ".join(item.message for item in self.findings if item.name.startswith("num_"))
        errors = "; ".join(item.message for item in self.errors) or "none"
        worries = "; ".join(item.message for item in self.findings if item.severity in ("warning", "severe"))
        return sizes, f"errors: {errors}", f"warnings: {worries or 'none'}"


def audit(
    groups: Sequence[Group], *, eval_groups: Sequence[Group] | None = None, allow_shared_prompts: bool = False
) -> AuditReport:
    """Checks preference data.

    Args:
        groups: the training data. Those of a held-out split among them (``files.is_held_out``) are evaluation data.
        eval_groups: evaluation data; looked at for leaks alone.
        allow_shared_prompts: training and evaluation may have prompts in common, as where there is only one prompt;
            then only a prompt together with one of its completions is a leak.
    """
    train = [group for group in groups if not is_held_out(group.split)]
    held_out = [*(group for group in groups if is_held_out(group.split)), *(eval_groups or ())]
    errors = [*_unfit(groups), *_mixed_forms(groups), *_leaks(train, held_out, allow_shared_prompts)]
    findings = [
        *_sizes(groups),
        *_lengths(groups),
        *_duplicate_prompts(groups),
        *_ties(groups),
        *_contradictions(groups),
        *_longer_preferred(groups),
        *_prompts_repeated(groups),
    ]
    return AuditReport(errors=tuple(errors), findings=tuple(findings))


def wilson_interval(successes: float, trials: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's score interval of a proportion (1927), 95 % by default; (0, 1) without trials."""
    if trials == 0:
        return 0.0, 1.0
    share, spread = successes / trials, z * z / trials
    half = z * math.sqrt(share * (1 - share) / trials + spread / (4 * trials))
    low, high = ((share + spread / 2 + side * half) / (1 + spread) for side in (-1, 1))
    return max(0.0, low), min(1.0, high)


def _unfit(groups: Sequence[Group]) -> Iterator[Finding]:
    """What ``validate`` finds, one error a kind."""
    counts: Counter[str] = Counter()
    examples: dict[str, list[str]] = defaultdict(list)
    for group in groups:
        found = faults(group)
        counts.update({fault.name for fault in found})
        for fault in found:
            examples[fault.name].append(f"{group.id}: {fault.detail}")
            del examples[fault.name][NUM_EXAMPLES:]
    for name, count in counts.items():
        yield Finding(
            name=name,
            severity="error",
            message=f"{name.replace('_', ' ')} in {count} of {len(groups)} groups",
            value=count,
            examples=tuple(examples[name]),
            remedy=REMEDIES[name],
        )


def _mixed_forms(groups: Sequence[Group]) -> Iterator[Finding]:
    texts = [group for group in groups if isinstance(group.prompt, str)]
    chats = [group for group in groups if not isinstance(group.prompt, str)]
    if texts and chats:
        yield Finding(
            name="mixed_forms",
            severity="error",
            message=f"{len(texts)} prompts are plain text and {len(chats)} are chats",
            value=min(len(texts), len(chats)),
            examples=(f"{texts[0].id}: text", f"{chats[0].id}: chat"),
            remedy="A model would learn two formats at once; write all prompts in one form.",
        )


def _digest(*texts: Text) -> bytes:
    """A short stand-in for texts; equal for texts that are equal when their form doesn't count."""
    folded = "\0".join(map(fold, texts))
    return hashlib.blake2b(folded.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _leaks(train: Sequence[Group], held_out: Sequence[Group], allow_shared_prompts: bool) -> Iterator[Finding]:
    if not (train and held_out):
        return
    if allow_shared_prompts:
        what = "answers of evaluation groups, with their prompts,"
        seen = {_digest(group.prompt, answer.text) for group in train for answer in group.completions}
        leaked = [
            group
            for group in held_out
            if any(_digest(group.prompt, answer.text) in seen for answer in group.completions)
        ]
    else:
        what = "prompts of evaluation groups"
        seen = {_digest(group.prompt) for group in train}
        leaked = [group for group in held_out if _digest(group.prompt) in seen]
    if leaked:
        yield Finding(
            name="leak",
            severity="error",
            message=f"{what} are in the training data, in {len(leaked)} of {len(held_out)}",
            value=len(leaked),
            examples=tuple(f"{group.id}: {_excerpt(group.prompt)}" for group in leaked[:NUM_EXAMPLES]),
            remedy="Take them out of the training data, or evaluation measures what was learned by heart.",
        )


def _excerpt(text: Text) -> str:
    words = " ".join(plain(text).split())
    return repr(words if len(words) <= 60 else f"{words[:59]}…")


def _sizes(groups: Sequence[Group]) -> Iterator[Finding]:
    for noun, count in (
        ("groups", len(groups)),
        ("completions", sum(len(group.completions) for group in groups)),
        ("judgments", sum(len(group.judgments) for group in groups)),
    ):
        yield Finding(name=f"num_{noun}", severity="info", message=f"{count:,} {noun}", value=count)


def _lengths(groups: Sequence[Group]) -> Iterator[Finding]:
    for noun, lengths in (
        ("prompt", [len(plain(group.prompt)) for group in groups]),
        ("completion", [len(plain(answer.text)) for group in groups for answer in group.completions]),
    ):
        if lengths:
            points = {"5%": 0.05, "50%": 0.5, "95%": 0.95, "max": 1.0}
            value = {name: float(np.quantile(lengths, point)) for name, point in points.items()}
            message = ", ".join(f"{name} {length:.0f}" for name, length in value.items())
            yield Finding(
                name=f"{noun}_length", severity="info", message=f"characters a {noun}: {message}", value=value
            )


def _duplicate_prompts(groups: Sequence[Group]) -> Iterator[Finding]:
    seen: set[bytes] = set()
    repeated = []
    for group in groups:
        digest = _digest(group.prompt)
        if digest in seen:
            repeated.append(group)
        seen.add(digest)
    if groups:
        yield Finding(
            name="duplicate_prompts",
            severity="info",
            message=f"{len(repeated)} of {len(groups)} prompts were there before",
            value=len(repeated) / len(groups),
            examples=tuple(f"{group.id}: {_excerpt(group.prompt)}" for group in repeated[:NUM_EXAMPLES]),
        )


def _ties(groups: Sequence[Group]) -> Iterator[Finding]:
    ties = [[label.p == 0.5 for label in pair_labels(group)] for group in groups]
    if any(ties):
        share, interval = _share(ties)
        yield Finding(
            name="ties", severity="info", message=f"{share:.0%} of the pairs are ties", value=share, interval=interval
        )


def _contradictions(groups: Sequence[Group]) -> Iterator[Finding]:
    """Judgments of one pair that contradict each other, in one group or in several with the same texts."""
    votes: dict[frozenset[bytes], Counter[bytes]] = defaultdict(Counter)
    last: dict[frozenset[bytes], str] = {}
    for group in groups:
        prompt = _digest(group.prompt)
        digests = [prompt + _digest(answer.text) for answer in group.completions]
        for judged in as_comparisons(group):
            pair = frozenset((digests[judged.i], digests[judged.j]))
            if judged.p != 0.5 and len(pair) == 2:
                votes[pair][digests[judged.i if judged.p > 0.5 else judged.j]] += 1
                last[pair] = group.id
    # The chance that two judgments of a pair, drawn without replacement, contradict each other.
    chances = {
        pair: (count.total() ** 2 - sum(n * n for n in count.values())) / (count.total() * (count.total() - 1))
        for pair, count in votes.items()
        if count.total() > 1
    }
    contradicted = [pair for pair, chance in chances.items() if chance > 0]
    if not chances:
        return
    share = sum(chances.values()) / len(chances)
    interval = wilson_interval(share * len(chances), len(chances))
    yield Finding(
        name="contradictions",
        severity=_severity(interval[0], DISAGREEMENT_LIMITS),
        message=f"{share:.0%} of the judgments of one pair contradict each other "
        f"({len(contradicted)} of {len(chances)} pairs that were judged more than once)",
        value=share,
        interval=interval,
        examples=tuple(f"{last[pair]}: judged {_tally(votes[pair])}" for pair in contradicted[:NUM_EXAMPLES]),
        remedy="Give more judgments to such pairs, clarify the guideline, or train on soft labels.",
    )


def _tally(votes: Counter[bytes]) -> str:
    """For and against, as in ``3 to 2``."""
    return " to ".join(str(count) for count in sorted(votes.values(), reverse=True))


def _longer_preferred(groups: Sequence[Group]) -> Iterator[Finding]:
    wins = []
    for group in groups:
        lengths = [len(plain(answer.text)) for answer in group.completions]
        decided = [label for label in pair_labels(group) if label.p > 0.5 and lengths[label.i] != lengths[label.j]]
        wins.append([lengths[label.i] > lengths[label.j] for label in decided])
    if any(wins):
        share, interval = _share(wins)
        # A preference for the shorter is as much of a shortcut.
        away = interval[0] if share > 0.5 else 1 - interval[1]
        yield Finding(
            name="longer_preferred",
            severity=_severity(away, LENGTH_LIMITS),
            message=f"the longer answer is preferred in {share:.0%} of the pairs",
            value=share,
            interval=interval,
            remedy="Compare with a length-controlled win rate, or use a length-normalised loss.",
        )


def _prompts_repeated(groups: Sequence[Group]) -> Iterator[Finding]:
    repeated = [[_begins_with(answer.text, group.prompt) for answer in group.completions] for group in groups]
    found = [group for group, flags in zip(groups, repeated, strict=True) if any(flags)]
    if not found:
        return
    share, interval = _share(repeated)
    yield Finding(
        name="prompt_repeated",
        severity=_severity(share, REPEATED_LIMITS),
        message=f"{share:.1%} of the completions begin with their prompt",
        value=share,
        interval=interval,
        examples=tuple(f"{group.id}: {_excerpt(group.prompt)}" for group in found[:NUM_EXAMPLES]),
        remedy="Take the prompt out of the answers; otherwise the model learns to repeat it.",
    )


def _begins_with(completion: Text, prompt: Text) -> bool:
    words = plain(prompt if isinstance(prompt, str) else prompt[-1:]).strip()
    return len(words) >= MIN_REPEATED_CHARACTERS and plain(completion).lstrip().startswith(words)


def _share(flags: Sequence[Sequence[bool]]) -> tuple[float, tuple[float, float]]:
    """The mean share of true flags over groups that have any; for its interval, a group is one observation."""
    shares = [sum(group) / len(group) for group in flags if group]
    return sum(shares) / len(shares), wilson_interval(sum(shares), len(shares))


def _severity(value: float, limits: tuple[float, float]) -> Severity:
    return "severe" if value > limits[1] else "warning" if value > limits[0] else "info"
