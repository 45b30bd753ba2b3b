"""Whether the judgments go together: contradictions about one pair, and preferences that go round in a circle."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from dipole.data.audit.columns import Columns, combined
from dipole.data.audit.finding import Finding, first, severity
from dipole.data.audit.intervals import Floats, Ints, share

DISAGREEMENT_LIMITS = (0.40, 0.48)
"""Share of contradicting judgments of one pair; ½ is what tossing a coin gives."""

CYCLE_LIMITS = (0.10, 0.20)
"""Share of cyclic triples; ¼ is what tossing a coin gives."""


def pair_of_vote(columns: Columns) -> tuple[Ints, Floats]:
    """For each vote a hash of the pair that it is about, and the probability that it gives to the pair's first answer.

    Pairs are the same in whatever group they are, if prompt and answers are. Which of two answers is the first follows
    from their hashes, not from the file, where the preferred one often stands first.
    """
    prompt = columns.prompt[columns.group[columns.left]]
    left, right = columns.answer[columns.left], columns.answer[columns.right]
    pair = combined(prompt, np.minimum(left, right), np.maximum(left, right))
    return pair, np.where(left <= right, columns.vote, 1 - columns.vote)


def check_contradictions(columns: Columns) -> Iterator[Finding]:
    """The chance that two judgments of a pair, drawn without replacement, contradict each other."""
    pairs, votes = pair_of_vote(columns)
    different = columns.answer[columns.left] != columns.answer[columns.right]
    decided = np.flatnonzero((votes != 0.5) & different)
    _, last, labels = np.unique(pairs[decided][::-1], return_index=True, return_inverse=True)
    counts = np.bincount(labels).astype(float)
    wins = np.bincount(labels, weights=votes[decided][::-1] > 0.5)
    repeated = np.flatnonzero(counts > 1)
    if not len(repeated):
        return
    groups = columns.group[columns.left[decided][::-1][last]][repeated]
    wins, counts = wins[repeated], counts[repeated]
    chances = 2 * wins * (counts - wins) / (counts * (counts - 1))
    value, interval = share(chances, columns.cluster[groups])
    contradicted = np.flatnonzero(chances > 0)
    contradicted = contradicted[np.argsort(groups[contradicted], kind="stable")]
    yield Finding(
        name="contradictions",
        severity=severity(interval[0], DISAGREEMENT_LIMITS),
        message=f"{value:.0%} of the judgments of one pair contradict each other "
        f"({len(contradicted)} of {len(chances)} pairs that were judged more than once)",
        value=value,
        interval=interval,
        examples=first(
            f"{columns.ids[groups[n]]}: judged {max(wins[n], counts[n] - wins[n]):.0f} to "
            f"{min(wins[n], counts[n] - wins[n]):.0f}"
            for n in contradicted
        ),
        remedy="Give more judgments to such pairs, clarify the guideline, or train on soft labels.",
    )


def check_cycles(columns: Columns) -> Iterator[Finding]:
    """The share of cyclic triples (A over B over C over A) among those whose three pairs are all decided.

    It is what Kendall and Babington Smith's coefficient of consistence (1940) is made of. With W the matrix of wins
    and U that of compared pairs, a triple is cyclic once in the trace of W³/3, and there once in that of U³/6.
    """
    from scipy.sparse import csr_array

    decided = np.flatnonzero(columns.p > 0.5)
    winners, losers = columns.winner[decided], columns.loser[decided]
    prompt = columns.prompt[columns.group]
    nodes, codes = np.unique(combined(prompt, columns.answer), return_inverse=True)
    node_cluster = np.zeros(len(nodes), dtype=np.int64)
    node_group = np.zeros(len(nodes), dtype=np.int64)
    node_cluster[codes], node_group[codes] = columns.cluster[columns.group], columns.group
    different = codes[winners] != codes[losers]
    edges = np.unique(np.stack([codes[winners], codes[losers]], axis=1)[different], axis=0)
    shape = (len(nodes), len(nodes))
    wins = csr_array((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), shape=shape)
    compared = wins + wins.T
    compared.data[:] = 1.0
    triples = (compared @ compared * compared).sum(axis=1) / 2  # of each answer; each triple counts at all three
    cyclic = (wins @ wins * wins.T).sum(axis=1)
    known = np.flatnonzero(triples > 0)
    if not len(known):
        return
    _, clusters = np.unique(node_cluster[known], return_inverse=True)
    shares = np.bincount(clusters, weights=cyclic[known]) / np.bincount(clusters, weights=triples[known])
    value, interval = share(shares, np.arange(len(shares)))
    circular = np.unique(node_group[known[cyclic[known] > 0]])
    yield Finding(
        name="cycles",
        severity=severity(interval[0], CYCLE_LIMITS),
        message=f"{value:.1%} of the triples of answers are preferred in a circle",
        value=value,
        interval=interval,
        examples=first(columns.example(group) for group in circular),
        remedy="No score can explain a circle: give such answers more judgments, or leave them out.",
    )
