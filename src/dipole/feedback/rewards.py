"""Judges that score completions with a model: a reward model, and what a policy has learnt."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Protocol

import torch

from dipole.data.tokenize import PromptFormat, TokenizedGroup, TokenizeOptions
from dipole.errors import ConfigError
from dipole.feedback.judge import Pair, Task
from dipole.feedback.local import DEFAULT_LENGTH, LocalModel, as_tokens
from dipole.feedback.rules import Form
from dipole.group import Comparison, Group, Judgment, Rating
from dipole.policy.reward import load_reward_model, reward_scores

GROUPS_AT_A_TIME = 32

Scores = list[list[float | None]]
"""Of each group a score of each completion; ``None`` where there is none."""


class GroupScorer(Protocol):
    """Scores all completions of groups."""

    def __call__(self, groups: Sequence[Group]) -> Scores:
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


class TrainedReward:
    """The scores of a reward model.

    Args:
        folder: a local folder or hub id of a transformers model for sequence classification with one label.
        max_length: tokens of a prompt with one completion; longer completions are cut, as in training.
        prompt_format: as in its training.

    Raises:
        ConfigError: there is none.
    """

    def __init__(self, folder: str, *, max_length: int = DEFAULT_LENGTH, prompt_format: PromptFormat = "as_is") -> None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model, self._tokenizer = load_reward_model(folder, device=device)
        self._options = TokenizeOptions(max_length=max_length, prompt_format=prompt_format)

    def __call__(self, groups: Sequence[Group]) -> Scores:
        """The score of each completion."""
        tokenized = as_tokens(groups, self._tokenizer, self._options)
        prompts = [item.prompt_ids for item in tokenized for _ in item.completion_ids]
        completions = [ids for item in tokenized for ids in item.completion_ids]
        return _placed(groups, tokenized, iter(reward_scores(self._model, prompts, completions)))


class ImplicitReward:
    """β · (log π(y|x) − log π_ref(y|x)), what DPO makes a policy's reward (Rafailov et al. 2023, equation 5).

    Args:
        policy: a local folder or hub id of the trained model, or of its adapter.
        reference: of the model that it was trained from; ``None`` switches the adapter off.
        beta: as in training.
        max_length: tokens of a prompt with one completion; longer completions are cut, as in training.
        prompt_format: as in training.

    Raises:
        ConfigError: a model can't be loaded, the two read text differently, or there is no reference.
    """

    def __init__(
        self,
        policy: str,
        reference: str | None,
        *,
        beta: float = 0.1,
        max_length: int | None = None,
        prompt_format: PromptFormat = "as_is",
    ) -> None:
        self._policy = LocalModel(policy, max_length=max_length)
        self._reference = None if reference is None else LocalModel(reference, max_length=max_length)
        where = f"implicit:{policy}" + (f"+{reference}" if reference else "")
        if self._reference is None and not self._policy.has_adapter:
            raise ConfigError(
                "the reference is missing", where=where, remedy="Write implicit:PATH+REFERENCE, or name an adapter"
            )
        if self._reference and self._policy.tokenizer.get_vocab() != self._reference.tokenizer.get_vocab():
            raise ConfigError(
                "policy and reference have different vocabularies",
                where=where,
                remedy="The reference is the model that the policy was trained from",
            )
        self._beta = beta
        self._options = TokenizeOptions(max_length=self._policy.max_length, prompt_format=prompt_format)

    def __call__(self, groups: Sequence[Group]) -> Scores:
        """The implicit reward of each completion, in nats times β."""
        tokenized = as_tokens(groups, self._policy.tokenizer, self._options)
        logps = self._policy.logps(tokenized)
        ref_logps = (
            self._policy.logps(tokenized, adapter=False)
            if self._reference is None
            else self._reference.logps(tokenized)
        )
        rewards = (
            self._beta * (logp - ref_logp)
            for item in tokenized
            for logp, ref_logp in zip(logps[item.id], ref_logps[item.id], strict=True)
        )
        return _placed(groups, tokenized, rewards)


def _placed(groups: Sequence[Group], tokenized: Sequence[TokenizedGroup], values: Iterator[float]) -> Scores:
    """Values of all tokenized completions, in order, put to the completions that they are of."""
    scores: Scores = [[None] * len(group.completions) for group in groups]
    for item in tokenized:
        for position in item.facts["position"]:
            scores[int(item.id)][position] = next(values)
    return scores


def sigmoid(value: float) -> float:
    """1 / (1 + e^−value), without overflow."""
    if value >= 0:
        return 1 / (1 + math.exp(-value))
    return math.exp(value) / (1 + math.exp(value))
