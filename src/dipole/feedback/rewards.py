"""Judges that score completions with a model: a reward model, and what a policy has learnt."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Protocol

from dipole.data.tokenize import PromptFormat
from dipole.errors import ConfigError
from dipole.feedback.judge import Pair, Task
from dipole.feedback.local import LocalModel
from dipole.feedback.rules import Form
from dipole.group import Comparison, Group, Judgment, Rating

GROUPS_AT_A_TIME = 32


class GroupScorer(Protocol):
    """Scores all completions of groups."""

    def __call__(self, groups: Sequence[Group]) -> list[list[float | None]]:
        """A score of each completion of each group; ``None`` where one can't be had."""


class RewardJudge:
    """Judges by a model's score of each completion.

    Args:
        scorer: the model.
        name: the annotator.
        form: ``"ratings"`` gives the scores; ``"comparisons"`` gives P(i better) = σ(score i − score j), the
            Bradley–Terry model that such scores are fitted by.
    """

    def __init__(self, scorer: GroupScorer, name: str, form: Form = "ratings") -> None:
        self.name = name
        self._scorer, self._form = scorer, form

    def judge(self, group: Group, pairs: Sequence[Pair]) -> tuple[Judgment, ...]:
        """Ratings of the completions that are in a pair, or a comparison of each pair."""
        (judgments,) = self.judge_many([(group, tuple(pairs))])
        return judgments

    def judge_many(self, tasks: Iterable[Task]) -> Iterator[tuple[Judgment, ...]]:
        """In batches of ``GROUPS_AT_A_TIME``."""
        stream = iter(tasks)
        while part := list(islice(stream, GROUPS_AT_A_TIME)):
            asked = [(group, pairs) for group, pairs in part if pairs]
            scored = iter(self._scorer([group for group, _ in asked]) if asked else ())
            for _, pairs in part:
                yield self._judgments(pairs, next(scored)) if pairs else ()

    def _judgments(self, pairs: Sequence[Pair], scores: Sequence[float | None]) -> tuple[Judgment, ...]:
        if self._form == "ratings":
            wanted = sorted({position for pair in pairs for position in pair})
            rated = ((i, scores[i]) for i in wanted)
            return tuple(Rating(i=i, value=score, annotator=self.name) for i, score in rated if score is not None)
        return tuple(self._comparison(pair, scores) for pair in pairs)

    def _comparison(self, pair: Pair, scores: Sequence[float | None]) -> Comparison:
        i, j = pair
        left, right = scores[i], scores[j]
        if left is None or right is None:
            return Comparison(i=i, j=j, p=0.5, weight=0.0, annotator=self.name, meta={"verdict": "invalid"})
        return Comparison(i=i, j=j, p=sigmoid(left - right), annotator=self.name)


class ImplicitReward:
    """β · (log π(y|x) − log π_ref(y|x)), what DPO makes a policy's reward (Rafailov et al. 2023, equation 5).

    Args:
        policy: a local folder or hub id of the trained model.
        reference: of the model that it was trained from.
        beta: as in training.
        max_length: tokens of a prompt with one completion.
        prompt_format: as in training.

    Raises:
        ConfigError: a model can't be loaded, or the two read text differently.
    """

    def __init__(
        self,
        policy: str,
        reference: str,
        *,
        beta: float = 0.1,
        max_length: int | None = None,
        prompt_format: PromptFormat = "as_is",
    ) -> None:
        self._policy, self._reference = (LocalModel(path, max_length=max_length) for path in (policy, reference))
        if self._policy.tokenizer.get_vocab() != self._reference.tokenizer.get_vocab():
            raise ConfigError(
                "policy and reference have different vocabularies",
                where=f"implicit:{policy}+{reference}",
                remedy="The reference is the model that the policy was trained from",
            )
        self._beta, self._format = beta, prompt_format

    def __call__(self, groups: Sequence[Group]) -> list[list[float | None]]:
        """The implicit reward of each completion, in nats times β."""
        numbered = [replace_id(group, str(number)) for number, group in enumerate(groups)]
        tokenized = list(self._policy.tokenize(numbered, self._format))
        logps, ref_logps = self._policy.logps(tokenized), self._reference.logps(tokenized)
        scores: list[list[float | None]] = [[None] * len(group.completions) for group in groups]
        for item in tokenized:
            for position, logp, ref_logp in zip(
                item.facts["position"], logps[item.id], ref_logps[item.id], strict=True
            ):
                scores[int(item.id)][position] = self._beta * (logp - ref_logp)
        return scores


def sigmoid(value: float) -> float:
    """1 / (1 + e^−value), without overflow."""
    if value >= 0:
        return 1 / (1 + math.exp(-value))
    return math.exp(value) / (1 + math.exp(value))
