"""What a judge thinks of a pair when it is shown in both orders."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from dipole.feedback.judge import BatchJudge, Judge, Pair, Task, is_invalid
from dipole.group import Comparison, Group, Judgment, Rating


@dataclass(frozen=True, slots=True)
class Opinion:
    """Of a pair (i, j).

    Args:
        p: probability that i is better, the mean over both orders; ``None`` where neither has a verdict.
        consistent: whether both orders have the same winner; ``None`` where one of them has no verdict.
    """

    p: float | None
    consistent: bool | None


def opinions(judge: Judge, tasks: Sequence[Task]) -> Iterator[list[Opinion]]:
    """An opinion of each pair of each task, in order.

    Pairs of equal texts are ties without asking.

    Raises:
        JudgeError: the judge can't go on.
    """
    doubled: list[Task] = [
        (group, tuple(order for i, j in pairs if not _equal(group, (i, j)) for order in ((i, j), (j, i))))
        for group, pairs in tasks
    ]
    for (group, pairs), judgments in zip(tasks, _judged(judge, doubled), strict=True):
        yield [Opinion(0.5, True) if _equal(group, pair) else _opinion(judgments, pair) for pair in pairs]


def _judged(judge: Judge, tasks: list[Task]) -> Iterator[tuple[Judgment, ...]]:
    if isinstance(judge, BatchJudge):
        return judge.judge_many(tasks)
    return (judge.judge(group, pairs) if pairs else () for group, pairs in tasks)


def _equal(group: Group, pair: Pair) -> bool:
    return group.completions[pair[0]].text == group.completions[pair[1]].text


def _opinion(judgments: Sequence[Judgment], pair: Pair) -> Opinion:
    i, j = pair
    found = [_probability(judgments, i, j), _probability(judgments, j, i)]
    known = [p if order == 0 else 1 - p for order, p in enumerate(found) if p is not None]
    consistent = bool(np.sign(known[0] - 0.5) == np.sign(known[1] - 0.5)) if len(known) == 2 else None
    return Opinion(float(np.mean(known)) if known else None, consistent)


def _probability(judgments: Sequence[Judgment], i: int, j: int) -> float | None:
    """That i is better, as judged in the order (i, j); by their scores where the judge gives any."""
    scores = {judgment.i: judgment.value for judgment in judgments if isinstance(judgment, Rating)}
    if i in scores and j in scores:
        return 0.5 + 0.5 * float(np.sign(scores[i] - scores[j]))
    for judgment in judgments:
        if isinstance(judgment, Comparison) and (judgment.i, judgment.j) == (i, j) and not is_invalid(judgment):
            return judgment.p
    return None
