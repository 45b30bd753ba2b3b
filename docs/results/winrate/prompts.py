"""Writes prompts.jsonl: beginnings of film-review sentences that a sweep of the frontier never saw, and how they go on.

    python docs/results/winrate/prompts.py runs/frontier prompts.jsonl

How the person who wrote the sentence went on is the first completion, which is what answers are compared with.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from dipole.data.formats import load_groups, save_groups
from dipole.group import Completion, Group
from dipole.sweep.texts import read_texts

SEED = 1
NUMBER = 120
WORDS = (2, 5)
"""Fewest and most words of a beginning."""


def main(sweep: str, output: str) -> None:
    """Takes sentences at random of which the sweep used none."""
    imitated = load_groups(str(Path(sweep) / "imitated.jsonl"))
    used = {f"{group.prompt}{group.completions[0].text}" for group in imitated}
    beginnings = {str(group.prompt) for group in load_groups(str(Path(sweep) / "preferences.jsonl"))}
    random = np.random.default_rng(SEED)
    texts = read_texts(None)
    groups: list[Group] = []
    for index in random.permutation(len(texts)):
        text = texts[index]
        words = text.split()
        beginning = " ".join(words[: int(random.integers(WORDS[0], WORDS[1] + 1))])
        known = text in used or any(text.startswith(seen) for seen in beginnings)
        if not known and text.isascii() and text.startswith(beginning):
            rest = Completion(text=text[len(beginning) :], source="people")
            groups.append(Group(id=f"review-{len(groups)}", prompt=beginning, completions=(rest,)))
        if len(groups) == NUMBER:
            break
    save_groups(groups, output)


if __name__ == "__main__":
    main(*sys.argv[1:])
