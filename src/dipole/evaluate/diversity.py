"""How different texts are from each other: shares of different word sequences, and self-BLEU.

Both depend on how many texts are looked at, so it is always the same number: a *set* of four. A set is one observation.
Words are what stands between white space.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

SET = 4
"""Texts of a set."""
ORDER = 4
"""Words of the longest sequences that BLEU compares."""
UNSEEN = 0.1
"""What BLEU counts for a length of which no sequence is shared: method 1 of Chen and Cherry 2014 (W14-3346)."""

Words = Sequence[str]


def word_sequences(words: Words, n: int) -> list[tuple[str, ...]]:
    """All sequences of ``n`` neighbouring words, in order."""
    return list(zip(*(words[start:] for start in range(n)), strict=False))


def distinct(texts: Sequence[str], n: int) -> float | None:
    """Distinct-n: the share of different ones among all sequences of ``n`` words of all texts together.

    Li et al. 2016, arXiv 1510.03055. ``None`` where there are no such sequences.
    """
    found = [item for text in texts for item in word_sequences(text.split(), n)]
    return len(set(found)) / len(found) if found else None


def self_bleu(texts: Sequence[str]) -> float | None:
    """The mean BLEU of each text with all others as its references: 1 where all are the same.

    Zhu et al. 2018, arXiv 1802.01886. ``None`` where there are fewer than two texts.
    """
    if len(texts) < 2:
        return None
    words = [text.split() for text in texts]
    return sum(bleu(own, [*words[:i], *words[i + 1 :]]) for i, own in enumerate(words)) / len(words)


def bleu(words: Words, references: Sequence[Words]) -> float:
    """BLEU of one text, from 0 to 1: sequences of up to four words, weighed alike (Papineni et al. 2002, section 2).

    Lengths of which the text has no sequence at all are left out, so that short texts can be alike too.

    Args:
        words: of the text.
        references: words of those that it is compared with, at least one.
    """
    if not words:
        return float(any(not reference for reference in references))
    logs = []
    for n in range(1, min(ORDER, len(words)) + 1):
        own = Counter(word_sequences(words, n))
        most: Counter[tuple[str, ...]] = Counter()
        for reference in references:
            most |= Counter(word_sequences(reference, n))
        shared = (own & most).total()
        if n == 1 and not shared:
            return 0.0
        logs.append(math.log((shared or UNSEEN) / own.total()))
    nearest = min((abs(len(reference) - len(words)), len(reference)) for reference in references)[1]
    brevity = min(0.0, 1 - nearest / len(words))
    return math.exp(brevity + sum(logs) / len(logs))


def sets_of(prompts: Sequence[str]) -> list[list[int]]:
    """Places of texts in sets of ``SET``: of one prompt where it has as many, in the order given; the rest is left out.

    Where no prompt has as many, sets are neighbours of any prompts.
    """
    by_prompt: dict[str, list[int]] = {}
    for place, prompt in enumerate(prompts):
        by_prompt.setdefault(prompt, []).append(place)
    rows = [places for places in by_prompt.values() if len(places) >= SET] or [list(range(len(prompts)))]
    return [row[start : start + SET] for row in rows for start in range(0, len(row) - SET + 1, SET)]
