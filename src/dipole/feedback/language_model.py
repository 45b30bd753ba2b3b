"""A language model as a judge: each pair in both orders, by a rubric or by the principles of a constitution.

A model tends to prefer what it is shown first (Zheng et al. 2023, arXiv 2306.05685), so every question is asked twice,
with the answers changed over. ``soft`` labels are the mean of both orders; ``agreement`` makes a tie of two orders that
disagree. Probabilities are then averaged over principles by their weights. A pair stays *invalid* only if no principle
gave a verdict in both orders; it is kept as a comparison of weight 0, and is no tie.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, Protocol

from dipole.feedback.cache import Cache, content_key
from dipole.feedback.constitution import Constitution, Principle
from dipole.feedback.judge import Pair, Task, Verdict
from dipole.feedback.prompting import (
    Question,
    comparison_messages,
    grading_messages,
    parse_verdict,
    rationale,
    repair_messages,
    talks_to_judges,
)
from dipole.group import Comparison, Group, Judgment, Message

if TYPE_CHECKING:
    from dipole.feedback.client import ChatClient
    from dipole.feedback.local import LocalModel

Label = Literal["soft", "agreement"]

QUESTIONS_AT_A_TIME = 64
LEAST_MASS = 0.01
"""Where "A" and "B" together are less likely than this, a model wasn't answering the question."""

_PROBABILITY: dict[Verdict, float] = {"first": 1.0, "second": 0.0, "tie": 0.5, "both bad": 0.5}
_MIRRORED: dict[Verdict, Verdict] = {"first": "second", "second": "first"}


@dataclass(frozen=True, slots=True)
class Reading:
    """What a model says of one question.

    Args:
        verdict: on the answer that was shown as A.
        p: probability that A is better; ``None`` if the verdict is invalid.
        reasons: what it gave as reasons, or why there is no verdict.
    """

    verdict: Verdict
    p: float | None
    reasons: str = ""

    def mirrored(self) -> Reading:
        """The same with the answers changed over."""
        p = None if self.p is None else 1 - self.p
        return Reading(_MIRRORED.get(self.verdict, self.verdict), p, self.reasons)


class Reader(Protocol):
    """Asks a model."""

    def read(self, questions: Iterable[Question]) -> Iterator[Reading]:
        """Answers in order."""


class WrittenVerdicts:
    """Lets a model behind a URL write its reasons and a verdict; asks once more where the verdict has no valid form.

    Args:
        client: asks.
        threads: how many questions are on their way at a time.
        max_tokens: of a reply.
        settings: sent with each question, such as ``temperature``.
    """

    def __init__(self, client: ChatClient, *, threads: int = 8, max_tokens: int = 512, **settings: Any) -> None:
        self._client, self._threads, self._settings = client, threads, {"max_tokens": max_tokens, **settings}

    def read(self, questions: Iterable[Question]) -> Iterator[Reading]:
        """Many at a time."""
        from dipole.feedback.client import in_order

        return in_order(self._read, questions, self._threads)

    def _read(self, question: Question) -> Reading:
        from dipole.feedback.client import Refused

        messages = comparison_messages(question)
        try:
            first = self._client.complete(messages, sample=question.sample, **self._settings).text
            verdict = parse_verdict(first)
            if verdict == "invalid":
                again = repair_messages(messages, first)
                verdict = parse_verdict(self._client.complete(again, sample=question.sample, **self._settings).text)
        except Refused as fault:
            return Reading("invalid", None, str(fault))
        return Reading(verdict, _PROBABILITY.get(verdict), rationale(first))


class LogitReader:
    """Reads off a model's logits which of two words it would answer with, each chat once in the life of its cache.

    Args:
        model: in this process.
        words: the two answers.
        begin: what the answer begins with, before either word.
        cache: of what was read.
    """

    def __init__(
        self, model: LocalModel, words: tuple[str, str], *, begin: str = "", cache: Cache | None = None
    ) -> None:
        self._model, self._begin, self._cache = model, begin, cache or Cache()
        self._kind = {"model": model.fingerprint(), "begin": begin, "words": list(words)}
        self._options = tuple(model.text_ids(word) for word in words)

    def read(self, chats: Sequence[Sequence[Message]]) -> list[tuple[float, float] | None]:
        """The log-probabilities of both words for each chat; ``None`` for one that is too long for the model."""
        keys = [content_key({**self._kind, "chat": list(chat)}) for chat in chats]
        known = {key: self._cache.get(key) for key in keys}
        missing = {key: chat for key, chat in zip(keys, chats, strict=True) if known[key] is None}
        for key, logps in self._ask(missing).items():
            known[key] = logps
            self._cache.put(key, logps)
        return [None if known[key] is None else (known[key][0], known[key][1]) for key in keys]

    def _ask(self, chats: Mapping[str, Sequence[Message]]) -> dict[str, list[float]]:
        ids = dict(zip(chats, self._model.chat_ids(list(chats.values()), begin=self._begin), strict=True))
        room = self._model.max_length - max(map(len, self._options))
        return self._model.option_logps({key: row for key, row in ids.items() if len(row) <= room}, self._options)


class LogitVerdicts:
    """Takes the odds of "A" and "B" as a soft label, without sampling.

    Args:
        model: in this process.
        cache: of what was read.
    """

    def __init__(self, model: LocalModel, cache: Cache | None = None) -> None:
        self._reader = LogitReader(model, (" A", " B"), begin="VERDICT:", cache=cache)

    def read(self, questions: Iterable[Question]) -> Iterator[Reading]:
        """In batches. ``sample`` changes nothing: there is no chance in it."""
        stream = iter(questions)
        while part := list(islice(stream, QUESTIONS_AT_A_TIME)):
            chats = [comparison_messages(question, letters_only=True) for question in part]
            yield from map(_reading, self._reader.read(chats))


class LogitGrades:
    """Asks of each answer by itself whether it satisfies a principle; the score is the log-odds of Yes against No.

    No answer is shown beside another, so there is no order to prefer, and a model too small to compare two answers may
    still tell a good one from a bad one. Of several principles it is the mean by weight.

    Args:
        model: in this process.
        constitution: by whose principles.
        cache: of what was read.
    """

    def __init__(self, model: LocalModel, constitution: Constitution, cache: Cache | None = None) -> None:
        self._reader = LogitReader(model, ("Yes", "No"), cache=cache)
        self._constitution = constitution

    def __call__(self, groups: Sequence[Group]) -> list[list[float | None]]:
        """The score of each completion of each group; ``None`` where the model can't say."""
        chats = [
            grading_messages(principle.compare, group.prompt, completion.text)
            for group in groups
            for completion in group.completions
            for principle in self._constitution.principles
        ]
        odds = iter([None if logps is None else _log_odds(logps) for logps in self._reader.read(chats)])
        return [[self._mean(odds) for _ in group.completions] for group in groups]

    def _mean(self, odds: Iterator[float | None]) -> float | None:
        """Of the next odds, one a principle."""
        given = [(principle.weight, next(odds)) for principle in self._constitution.principles]
        known = [(weight, value) for weight, value in given if value is not None]
        return sum(weight * value for weight, value in known) / sum(weight for weight, _ in known) if known else None


def _log_odds(logps: tuple[float, float]) -> float | None:
    """``None`` where neither word is an answer that the model would give."""
    return logps[0] - logps[1] if math.exp(logps[0]) + math.exp(logps[1]) >= LEAST_MASS else None


def _reading(logps: tuple[float, float] | None) -> Reading:
    if logps is None:
        return Reading("invalid", None, "the question is too long for the model")
    odds = _log_odds(logps)
    if odds is None:
        return Reading("invalid", None, f"the model gives A and B a probability below {LEAST_MASS:g} together")
    p = 1 / (1 + math.exp(max(-700.0, min(700.0, -odds))))
    return Reading("first" if p > 0.5 else "second" if p < 0.5 else "tie", p)


class LanguageModelJudge:
    """Compares pairs by asking a model in both orders.

    Args:
        reader: asks the model.
        name: the annotator.
        constitution: by whose principles; a rubric is a constitution of one.
        label: what becomes of both orders.
        sample: which of several answers of the model to the same question; a check asks twice.
    """

    def __init__(
        self, reader: Reader, name: str, constitution: Constitution, *, label: Label = "soft", sample: int = 0
    ) -> None:
        self.name = name
        self._reader, self._constitution, self._label, self._sample = reader, constitution, label, sample

    def judge(self, group: Group, pairs: Sequence[Pair]) -> tuple[Judgment, ...]:
        """A comparison of each pair; its ``meta`` has verdict, orders, reasons and, if there are any, principles."""
        (judgments,) = self.judge_many([(group, tuple(pairs))])
        return judgments

    def judge_many(self, tasks: Iterable[Task]) -> Iterator[tuple[Judgment, ...]]:
        """Asks about many groups at a time; see ``judge``."""
        waiting: deque[Task] = deque()

        def questions() -> Iterator[Question]:
            for task in tasks:
                waiting.append(task)
                yield from self._questions(*task)

        collected: list[Reading] = []
        for reading in self._reader.read(questions()):
            while not waiting[0][1]:  # groups of which nothing was asked
                waiting.popleft()
                yield ()
            collected.append(reading)
            group, pairs = waiting[0]
            if len(collected) == self._num_questions(len(pairs)):
                waiting.popleft()
                yield self._judgments(group, pairs, collected)
                collected = []
        yield from (() for _ in waiting)

    def _num_questions(self, num_pairs: int) -> int:
        return 2 * num_pairs * len(self._constitution.principles)

    def _questions(self, group: Group, pairs: Sequence[Pair]) -> Iterator[Question]:
        """Of each pair, for each principle, both orders side by side."""
        for i, j in pairs:
            for principle in self._constitution.principles:
                for first, second in ((i, j), (j, i)):
                    yield Question(
                        rubric=principle.compare,
                        prompt=group.prompt,
                        first=group.completions[first].text,
                        second=group.completions[second].text,
                        sample=self._sample,
                    )

    def _judgments(self, group: Group, pairs: Sequence[Pair], readings: Sequence[Reading]) -> tuple[Judgment, ...]:
        size = self._num_questions(1)
        return tuple(
            self._comparison(group, pair, readings[number * size : (number + 1) * size])
            for number, pair in enumerate(pairs)
        )

    def _comparison(self, group: Group, pair: Pair, readings: Sequence[Reading]) -> Comparison:
        i, j = pair
        orders = [(readings[k], readings[k + 1].mirrored()) for k in range(0, len(readings), 2)]
        judged = list(zip(self._constitution.principles, orders, strict=True))
        verdict, p = self._overall(judged)
        return Comparison(
            i=i,
            j=j,
            p=0.5 if p is None else p,
            weight=0.0 if p is None else 1.0,
            annotator=self.name,
            meta={"verdict": verdict} | self._notes(group, pair, judged),
        )

    def _overall(self, judged: Sequence[tuple[Principle, tuple[Reading, Reading]]]) -> tuple[Verdict, float | None]:
        """Averages over the principles that gave a verdict in both orders."""
        valid = [(principle.weight, *combine(*orders, self._label)) for principle, orders in judged]
        counted = [(weight, verdict, p) for weight, verdict, p in valid if p is not None]
        if not counted:
            return "invalid", None
        p = sum(weight * p for weight, _, p in counted) / sum(weight for weight, _, _ in counted)
        if all(verdict == "both bad" for _, verdict, _ in counted):
            return "both bad", p
        return ("tie" if abs(p - 0.5) < 1e-9 else "first" if p > 0.5 else "second"), p

    def _notes(
        self, group: Group, pair: Pair, judged: Sequence[tuple[Principle, tuple[Reading, Reading]]]
    ) -> dict[str, Any]:
        """What stays with a judgment: constitution, both orders, reasons, and who talks to the judge."""
        notes: dict[str, Any] = {
            "constitution": f"{self._constitution.name} {self._constitution.hash}",
            "orders": {principle.name: [reading.p for reading in orders] for principle, orders in judged},
        }
        reasons = {principle.name: [reading.reasons for reading in orders] for principle, orders in judged}
        if any(words for pair_of_words in reasons.values() for words in pair_of_words):
            notes["reasons"] = reasons
        if talking := [k for k in pair if talks_to_judges(group.completions[k].text)]:
            notes["talks_to_judges"] = talking
        return notes


def combine(there: Reading, back: Reading, label: Label) -> tuple[Verdict, float | None]:
    """One verdict of both orders, both of the pair's first answer; invalid if either is.

    Args:
        there: as asked.
        back: asked with the answers changed over, and mirrored.
        label: ``"soft"`` takes the mean; ``"agreement"`` gives 1, 0, or ½ where the orders don't agree.
    """
    if there.p is None or back.p is None:
        return "invalid", None
    agreed = there.verdict if there.verdict == back.verdict else "tie"
    if label == "agreement":
        return agreed, _PROBABILITY[agreed]
    p = (there.p + back.p) / 2
    if agreed == "both bad":
        return agreed, p
    return ("first" if p > 0.5 else "second" if p < 0.5 else "tie"), p
