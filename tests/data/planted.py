"""Groups of real sentences with judgments drawn from their real ratings, clean or with one fault planted.

Two film-review sentences answer a prompt that quotes a third one. Each of five annotators judges three in five groups:
whoever does draws one of the 15 to 29 ratings that people gave to each sentence and prefers the higher one, so that
annotators disagree as much as people did.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from importlib import resources

import numpy as np

from dipole.group import Comparison, Completion, Group

ANNOTATORS = ("ann", "ben", "cleo", "dan", "eve")
GAP = 1.0
"""Least difference of the mean ratings of two sentences that are compared."""


@cache
def sentences() -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Text and ratings of every sentence of 5 to 40 words."""
    packed = resources.files("dipole").joinpath("assets/movie_reviews.jsonl.gz").read_bytes()
    rows = [json.loads(line) for line in gzip.decompress(packed).decode().splitlines()]
    return tuple((row["text"], tuple(row["ratings"])) for row in rows if 5 <= len(row["text"].split()) <= 40)


def clean_groups(count: int, *, seed: int) -> list[Group]:
    """Groups without a planted fault; no sentence is in two of them."""
    random = np.random.default_rng(seed)
    order = iter(random.permutation(len(sentences())).tolist())
    groups: list[Group] = []
    while len(groups) < count:
        quoted, left, right = (sentences()[next(order)] for _ in range(3))
        if abs(np.mean(left[1]) - np.mean(right[1])) >= GAP:
            groups.append(_group(f"g{len(groups)}", quoted[0], left, right, random))
    return groups


def _group(
    id: str,
    quoted: str,
    left: tuple[str, Sequence[int]],
    right: tuple[str, Sequence[int]],
    random: np.random.Generator,
) -> Group:
    judgments = []
    for annotator in random.permutation(len(ANNOTATORS))[:3].tolist():
        ratings = [random.choice(left[1]), random.choice(right[1])]
        p = 0.5 if ratings[0] == ratings[1] else float(ratings[0] > ratings[1])
        judgments.append(Comparison(i=0, j=1, p=p, annotator=ANNOTATORS[annotator]))
    return Group(
        id=id,
        prompt=f"Someone said of a film: {quoted} What do you say of yours?",
        completions=(Completion(text=left[0]), Completion(text=right[0])),
        judgments=tuple(judgments),
    )


def with_length_shortcut(groups: Sequence[Group], *, seed: int, share: float = 0.8) -> list[Group]:
    """In that share of the groups everybody prefers the longer answer."""
    random = np.random.default_rng(seed)
    planted = []
    for group in groups:
        longer = float(len(group.completions[0].text) > len(group.completions[1].text))
        if random.random() < share:
            group = replace(group, judgments=tuple(replace(vote, p=longer) for vote in group.judgments))
        planted.append(group)
    return planted


def with_flipped_labels(groups: Sequence[Group], annotator: str, *, seed: int, share: float = 0.15) -> list[Group]:
    """That share of one annotator's labels is turned round."""
    random = np.random.default_rng(seed)

    def flipped(vote: Comparison) -> Comparison:
        return replace(vote, p=1 - vote.p) if vote.annotator == annotator and random.random() < share else vote

    return [replace(group, judgments=tuple(map(flipped, group.judgments))) for group in groups]


def with_leak(groups: Sequence[Group], held_out: Sequence[Group], count: int) -> list[Group]:
    """The training groups, with the prompts of some held-out ones among theirs."""
    stolen = [replace(group, prompt=other.prompt) for group, other in zip(groups, held_out[:count], strict=False)]
    return [*stolen, *groups[count:]]
