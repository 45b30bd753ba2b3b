"""Writes pairs of film-review sentences with one comparison for each two of their raters.

    python docs/results/agreement/pairs.py all.jsonl
    python docs/results/agreement/pairs.py unseen.jsonl runs/reviewer/groups.jsonl

The sentences come with Dipole; each was rated by 15 to 29 people from −4 to 4. No sentence is in two pairs. The raters
of both sentences are matched at random: each two of them give a preference, or a tie where they gave the same number.
With a second file, pairs are left out that have a sentence which is an answer in a training group of that file. The
category says how far apart the two mean ratings are.
"""

from __future__ import annotations

import sys

import numpy as np

from dipole.data.formats import load_groups, save_groups
from dipole.data.reviews import Sentence, film_reviews
from dipole.demo import PROMPT
from dipole.group import Comparison, Completion, Group

SEED = 0
EVERY_LENGTH = (0, 1000)
CLOSE, FAR = 1.0, 2.5


def main(output: str, trained: str | None = None) -> None:
    """Writes the file."""
    known = set() if trained is None else trained_on(trained)
    sentences = film_reviews(words=EVERY_LENGTH)
    random = np.random.default_rng(SEED)
    order = random.permutation(len(sentences)).tolist()
    groups = [
        pair(sentences[left], sentences[right], random) for left, right in zip(order[::2], order[1::2], strict=False)
    ]
    save_groups([group for group in groups if not known & {str(item.text) for item in group.completions}], output)


def trained_on(file: str) -> set[str]:
    """The answers of a file's training groups."""
    return {str(item.text) for group in load_groups(file) if group.split == "train" for item in group.completions}


def pair(left: Sentence, right: Sentence, random: np.random.Generator) -> Group:
    """Two sentences, and what raters matched at random say of them."""
    ratings = (random.permutation(sentence.ratings) for sentence in (left, right))
    gaps = [int(x) - int(y) for x, y in zip(*ratings, strict=False)]
    apart = abs(float(np.mean(left.ratings)) - float(np.mean(right.ratings)))
    category = f"means {'0 to 1' if apart < CLOSE else '1 to 2.5' if apart < FAR else 'over 2.5'} apart"
    return Group(
        id=f"{left.id}-{right.id}",
        prompt=({"role": "user", "content": PROMPT},),
        completions=(Completion(text=left.text), Completion(text=right.text)),
        judgments=tuple(Comparison(i=0, j=1, p=(np.sign(gap) + 1) / 2) for gap in gaps),
        meta={"category": category},
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
