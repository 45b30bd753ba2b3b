"""The film-review sentences that come with Dipole, each rated by 15 to 29 people (Hutto and Gilbert 2014)."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from importlib import resources


@dataclass(frozen=True, slots=True, kw_only=True)
class Sentence:
    """A film-review sentence and what people made of it, from −4 to 4."""

    id: str
    text: str
    ratings: tuple[int, ...]


def film_reviews(*, words: tuple[int, int]) -> list[Sentence]:
    """The sentences of this many words, shortest and longest."""
    packed = resources.files("dipole").joinpath("assets/movie_reviews.jsonl.gz").read_bytes()
    rows = [json.loads(line) for line in gzip.decompress(packed).decode("utf-8").splitlines()]
    sentences = [Sentence(id=row["id"], text=row["text"], ratings=tuple(row["ratings"])) for row in rows]
    return [sentence for sentence in sentences if words[0] <= len(sentence.text.split()) <= words[1]]
