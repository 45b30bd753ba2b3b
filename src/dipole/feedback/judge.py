"""What a judge is, and how one is named on a command line or in a file.

A judge looks at pairs of completions of a group and returns judgments, each signed with its name. It has one method;
whatever has it is a judge:

    class Longer:
        name = "longer"

        def judge(self, group, pairs):
            sizes = [len(plain(completion.text)) for completion in group.completions]
            return tuple(Comparison(i=i, j=j, p=float(sizes[i] > sizes[j]), annotator=self.name) for i, j in pairs)

``dipole.feedback.registry`` opens those that come with Dipole by a name, such as ``rule:longer``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Literal, Protocol, runtime_checkable

from dipole.errors import JudgeError
from dipole.group import Comparison, Group, Judgment
from dipole.progress import Progress, Silent

MAX_INVALID = 0.2
"""Share of pairs without a verdict above which a judge is stopped."""

ENOUGH = 50
"""Pairs that have to be judged before a judge is stopped for that; at the end any number will do."""

Pair = tuple[int, int]
"""Positions of two completions of a group."""

Task = tuple[Group, tuple[Pair, ...]]
"""A group, and the pairs of it to be judged."""

Verdict = Literal["first", "second", "tie", "both bad", "invalid"]
"""What a judge may say of a pair (i, j): ``first`` is i. ``invalid`` is no verdict, and never counts as a tie."""


class Judge(Protocol):
    """Judges completions. See the module's docstring for the names of those that come with Dipole."""

    @property
    def name(self) -> str:
        """The annotator of its judgments."""

    def judge(self, group: Group, pairs: Sequence[Pair]) -> tuple[Judgment, ...]:
        """What the judge says of these pairs.

        Comparisons of (i, j) in the order given; or ratings of the completions that the pairs name. A pair on which
        no verdict could be had is a comparison of weight 0 whose ``meta`` has ``{"verdict": "invalid"}``.

        Raises:
            JudgeError: the judge can't go on, or its budget is spent.
        """


@runtime_checkable
class BatchJudge(Judge, Protocol):
    """A judge that is faster with many groups at a time: one with batches, or with many requests on their way."""

    def judge_many(self, tasks: Iterable[Task]) -> Iterator[tuple[Judgment, ...]]:
        """What ``judge`` says of each task, in order, as soon as it is known.

        A ``JudgeError`` is raised only after the judgments of all tasks before the one that failed.
        """


def all_pairs(group: Group) -> tuple[Pair, ...]:
    """Every two completions whose texts differ: of equal ones there is nothing to say."""
    texts = [completion.text for completion in group.completions]
    return tuple((i, j) for i, j in combinations(range(len(texts)), 2) if texts[i] != texts[j])


@dataclass(slots=True)
class Tally:
    """What became of the pairs that a judge was asked about.

    Args:
        judgments: all of them.
        comparisons: those that compare two completions, with or without a verdict.
        ties: comparisons at ½, those of two bad answers included.
        both_bad: comparisons in which neither answer was acceptable.
        invalid: comparisons without a verdict; they have no weight and are no ties.
        unscored: completions that were to be judged and of which nothing was said, as where they are too long.
        talks_to_judges: comparisons in which an answer seems to address the judge.
    """

    judgments: int = 0
    comparisons: int = 0
    ties: int = 0
    both_bad: int = 0
    invalid: int = 0
    unscored: int = 0
    talks_to_judges: int = 0

    def add(self, judgments: Sequence[Judgment], pairs: Sequence[Pair]) -> None:
        """Counts the judgments of a group, of which these pairs were asked about."""
        spoken_of = {position for judgment in judgments for position in judgment.indices()}
        self.unscored += len({position for pair in pairs for position in pair} - spoken_of)
        self.judgments += len(judgments)
        for judgment in judgments:
            if not isinstance(judgment, Comparison):
                continue
            invalid = is_invalid(judgment)
            self.comparisons += 1
            self.invalid += invalid
            self.ties += judgment.p == 0.5 and not invalid
            self.both_bad += judgment.meta.get("verdict") == "both bad"
            self.talks_to_judges += "talks_to_judges" in judgment.meta

    def check(self, most_invalid: float, *, least: int) -> None:
        """Stops where the judge had too little to say.

        Args:
            most_invalid: the largest share of verdicts that may be invalid, or completions unscored.
            least: how many there have to be, or chance would decide.

        Raises:
            JudgeError: there are more.
        """
        missing, asked = self.invalid + self.unscored, self.judgments + self.unscored
        if asked >= least and missing > most_invalid * asked:
            what = "pairs have no valid verdict" if self.invalid else "answers couldn't be scored"
            raise JudgeError(
                f"{missing} of {asked} {what}",
                where="--judge",
                remedy="See the reasons in the output; use a more capable judge, or one that takes longer texts, or "
                f"raise --max_invalid (now {most_invalid:g})",
            )


def is_invalid(judgment: Judgment) -> bool:
    """Whether it says that no verdict could be had."""
    return judgment.meta.get("verdict") == "invalid"


def judge_groups(
    judge: Judge,
    groups: Iterable[Group],
    pairs: Callable[[Group], Sequence[Pair]] = all_pairs,
    progress: Progress | None = None,
    *,
    tally: Tally | None = None,
    max_invalid: float = MAX_INVALID,
) -> Iterator[Group]:
    """The same groups with the judge's judgments added, one by one and in order.

    Groups are read a little ahead where the judge takes many at a time.

    Args:
        judge: who judges.
        groups: what to judge.
        pairs: which pairs of a group. Groups without any are passed on as they are.
        progress: is told of each group.
        tally: counts what became of the pairs.
        max_invalid: the largest share of pairs that may be without a verdict.

    Raises:
        JudgeError: the judge can't go on, or too many pairs have no verdict. Every group before has been yielded.
    """
    progress, tally = progress or Silent(), tally or Tally()
    waiting: deque[Task] = deque()

    def tasks() -> Iterator[Task]:
        for group in groups:
            waiting.append((group, tuple(pairs(group))))
            yield waiting[-1]

    many = judge.judge_many(tasks()) if isinstance(judge, BatchJudge) else _one_by_one(judge, tasks())
    for judgments in many:
        group, asked = waiting.popleft()
        tally.add(judgments, asked)
        yield replace(group, judgments=(*group.judgments, *judgments))
        progress.advance(note=f"{tally.invalid} without a verdict" if tally.invalid else "")
        tally.check(max_invalid, least=ENOUGH)
    tally.check(max_invalid, least=1)


def _one_by_one(judge: Judge, tasks: Iterable[Task]) -> Iterator[tuple[Judgment, ...]]:
    for group, pairs in tasks:
        yield judge.judge(group, pairs) if pairs else ()
