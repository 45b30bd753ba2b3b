"""Writes groups of two film-review sentences with one comparison for each two of their raters, as hidden labels.

    python docs/results/active/review_pairs.py pairs.jsonl

The sentences come with Dipole; each was rated by 15 to 29 people from −4 to 4. No sentence is in two pairs. The raters
of both sentences are matched at random: each two of them give a preference, or a tie where they gave the same number.
"""

from __future__ import annotations

import gzip
import json
import sys
from importlib import resources

import numpy as np

from dipole.data.formats import save_groups
from dipole.demo import PROMPT
from dipole.group import Comparison, Completion, Group

SEED = 0


def main(output: str) -> None:
    """Writes the file."""
    packed = resources.files("dipole").joinpath("assets/movie_reviews.jsonl.gz").read_bytes()
    rows = [json.loads(line) for line in gzip.decompress(packed).decode("utf-8").splitlines()]
    random = np.random.default_rng(SEED)
    order = random.permutation(len(rows)).tolist()
    groups = []
    for left, right in zip(order[::2], order[1::2], strict=False):
        a, b = (random.permutation(rows[place]["ratings"]) for place in (left, right))
        gaps = [int(x) - int(y) for x, y in zip(a, b, strict=False)]
        groups.append(
            Group(
                id=f"{rows[left]['id']}-{rows[right]['id']}",
                prompt=({"role": "user", "content": PROMPT},),
                completions=(Completion(text=rows[left]["text"]), Completion(text=rows[right]["text"])),
                judgments=tuple(Comparison(i=0, j=1, p=(np.sign(gap) + 1) / 2) for gap in gaps),
            )
        )
    save_groups(groups, output)


if __name__ == "__main__":
    main(sys.argv[1])
