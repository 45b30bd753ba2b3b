"""One pass over the groups, and what it keeps of them: numbers in columns, a bounded sample of texts.

A file of 2 GB doesn't fit as objects in twice its size, so groups are looked at once and let go. What the checks need
of all of them is a few numbers a completion; what needs words works on a sample that is drawn uniformly as the groups
go by (Vitter 1985, algorithm R), so that it doesn't depend on how the file is ordered.
"""

from __future__ import annotations

import random
from array import array
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dipole.data.audit.finding import head, quoted
from dipole.data.audit.intervals import Floats, Ints
from dipole.data.reduce import PairRelation, as_comparisons, pair_labels
from dipole.data.validate import fold
from dipole.group import Group, Text, plain

SAMPLE = 2_000
"""Groups whose texts are kept for what needs words."""

SAMPLE_CHARACTERS = 4_000
"""Of one text in the sample."""

MIN_REPEATED_CHARACTERS = 20
"""Of a prompt that an answer is said to repeat."""


class Sampled(NamedTuple):
    """A group of the sample, its texts cut to ``SAMPLE_CHARACTERS``.

    Args:
        number: of the group in the columns.
        prompt: its words.
        answers: their words.
        labels: of its pairs.
    """

    number: int
    prompt: str
    answers: tuple[str, ...]
    labels: tuple[PairRelation, ...]


class Columns(NamedTuple):
    """What is kept of G groups with C completions, L labelled pairs and V votes (judgments as comparisons).

    Args:
        ids: (G) names.
        heads: (G) how each prompt begins, for examples.
        prompt: (G) a hash of the prompt, equal where prompts are equal but for their form.
        prompt_length: (G) in characters.
        turns: (G) messages of the user in the prompt, 1 for plain text.
        category: (G) position in ``categories``, −1 without one.
        cluster: (G) what counts as one observation: the prompt; the group itself where all have the same prompt.
        group: (C) number of the completion's group.
        length: (C) in characters.
        answer: (C) a hash of the completion.
        source: (C) position in ``sources``, −1 without one.
        repeats: (C) whether it begins with its prompt.
        winner: (L) completion that is preferred; either one in a tie.
        loser: (L) the other one.
        p: (L) probability of that preference, at least ½.
        left: (V) completion ``i`` of a comparison.
        right: (V) completion ``j``.
        vote: (V) the comparison's probability.
        annotator: (V) position in ``annotators``, −1 without one.
        seconds: (V) how long the judgment took, NaN where the data doesn't say.
        categories: names.
        sources: names.
        annotators: names.
        sample: a uniform sample of the groups that have a decided pair.
        sampled_from: how many those were.
        judgments: how many there are, of any kind.
    """

    ids: list[str]
    heads: list[str]
    prompt: Ints
    prompt_length: Ints
    turns: Ints
    category: Ints
    cluster: Ints
    group: Ints
    length: Ints
    answer: Ints
    source: Ints
    repeats: NDArray[np.bool_]
    winner: Ints
    loser: Ints
    p: Floats
    left: Ints
    right: Ints
    vote: Floats
    annotator: Ints
    seconds: Floats
    categories: list[str]
    sources: list[str]
    annotators: list[str]
    sample: list[Sampled]
    sampled_from: int
    judgments: int

    def example(self, number: int) -> str:
        """A group as an example shows it: its id and how its prompt begins."""
        return f"{self.ids[number]}: {quoted(self.heads[number])}"


class Collector:
    """Takes groups one by one; ``columns`` gives what was kept.

    Args:
        sample: how many groups to keep texts of.
    """

    def __init__(self, sample: int = SAMPLE) -> None:
        self._ids: list[str] = []
        self._heads: list[str] = []
        self._whole = {name: array("q") for name in ("prompt", "group", "answer", "winner", "loser", "left", "right")}
        self._small = {name: array("i") for name in ("prompt_length", "turns", "category", "length", "source")}
        self._small["annotator"] = array("i")
        self._real = {name: array("f") for name in ("p", "vote", "seconds")}
        self._repeats = array("b")
        self._names: dict[str, dict[str, int]] = {"category": {}, "source": {}, "annotator": {}}
        self._sample: list[Sampled] = []
        self._size = sample
        self._seen = 0
        self._judgments = 0
        self._random = random.Random(0)

    def add(self, group: Group) -> None:
        """Takes one group."""
        number, base = len(self._ids), len(self._small["length"])
        prompt = text_key(group.prompt)
        category = group.meta.get("category")
        self._judgments += len(group.judgments)
        self._ids.append(group.id)
        self._heads.append(head(group.prompt))
        self._whole["prompt"].append(prompt)
        self._small["prompt_length"].append(len(plain(group.prompt)))
        self._small["turns"].append(_turns(group.prompt))
        self._small["category"].append(self._code("category", category if isinstance(category, str) else None))
        for completion in group.completions:
            self._whole["group"].append(number)
            self._whole["answer"].append(text_key(completion.text))
            self._small["length"].append(len(plain(completion.text)))
            self._small["source"].append(self._code("source", completion.source))
            self._repeats.append(_begins_with(completion.text, group.prompt))
        labels = pair_labels(group)
        for label in labels:
            self._whole["winner"].append(base + label.i)
            self._whole["loser"].append(base + label.j)
            self._real["p"].append(label.p)
        self._add_votes(group, base)
        if any(label.p > 0.5 for label in labels):
            self._consider(number, group, labels)

    def _add_votes(self, group: Group, base: int) -> None:
        seconds = group.meta.get("seconds")
        for judged in as_comparisons(group):
            self._whole["left"].append(base + judged.i)
            self._whole["right"].append(base + judged.j)
            self._real["vote"].append(judged.p)
            self._small["annotator"].append(self._code("annotator", judged.annotator))
            taken = seconds.get(judged.annotator) if isinstance(seconds, dict) else seconds
            self._real["seconds"].append(taken if isinstance(taken, int | float) else float("nan"))

    def _code(self, kind: str, name: str | None) -> int:
        names = self._names[kind]
        return -1 if name is None else names.setdefault(name, len(names))

    def _consider(self, number: int, group: Group, labels: tuple[PairRelation, ...]) -> None:
        """Algorithm R: the n-th group replaces a kept one with probability size/n."""
        self._seen += 1
        place = len(self._sample) if len(self._sample) < self._size else self._random.randrange(self._seen)
        if place >= self._size:
            return
        prompt, *answers = (
            plain(text)[:SAMPLE_CHARACTERS]
            for text in (group.prompt, *(completion.text for completion in group.completions))
        )
        kept = Sampled(number, prompt, tuple(answers), labels)
        if place == len(self._sample):
            self._sample.append(kept)
        else:
            self._sample[place] = kept

    def columns(self) -> Columns:
        """What was kept of the groups so far."""
        whole: dict[str, Any] = {
            name: np.array(values, dtype=np.int64) for name, values in (self._whole | self._small).items()
        }
        real: dict[str, Any] = {name: np.array(values, dtype=np.float64) for name, values in self._real.items()}
        one_prompt = len(np.unique(whole["prompt"])) < 2
        return Columns(
            ids=self._ids,
            heads=self._heads,
            **whole,
            **real,
            cluster=np.arange(len(self._ids)) if one_prompt else whole["prompt"],
            repeats=np.array(self._repeats, dtype=bool),
            categories=list(self._names["category"]),
            sources=list(self._names["source"]),
            annotators=list(self._names["annotator"]),
            sample=self._sample,
            sampled_from=self._seen,
            judgments=self._judgments,
        )


def text_key(text: Text) -> int:
    """A number that stands for a text whose form doesn't count.

    Python's own hash of strings: 64 bits, keyed anew in each process, so that nobody can write texts that collide. Two
    of a million texts collide with a probability of 3·10⁻⁸.
    """
    return hash(fold(text))


def combined(*keys: Ints) -> Ints:
    """One hash for several in order."""
    total = np.zeros(len(keys[0]), dtype=np.uint64)
    for key in keys:
        total = (total ^ key.astype(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
        total ^= total >> np.uint64(29)
    return total.astype(np.int64)


def _turns(prompt: Text) -> int:
    return 1 if isinstance(prompt, str) else sum(message.get("role") == "user" for message in prompt)


def _begins_with(completion: Text, prompt: Text) -> bool:
    words = plain(prompt if isinstance(prompt, str) else prompt[-1:]).strip()
    return len(words) >= MIN_REPEATED_CHARACTERS and plain(completion).lstrip().startswith(words)
