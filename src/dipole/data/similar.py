"""Texts that are nearly the same: MinHash signatures (Broder 1997), and which of them are close.

The permutations are datasketch's. Which texts are close is found here by sorting bands of signatures with numpy instead
of in its index, whose dictionaries take a kilobyte a text where a signature takes 256 bytes.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from dipole.data.validate import fold
from dipole.group import Text, plain

NUM_PERMUTATIONS = 64
BAND = 4
"""Values of a band: with 16 bands of 4, texts of similarity 0.8 share a band with a probability of 0.9998."""

SHINGLE = 5
"""Bytes of text that make one element of the sets that are compared."""

CHARACTERS = 4_000
"""Of a text that are looked at."""

THRESHOLD = 0.8
"""Jaccard similarity from which two texts are near-duplicates. Its estimate has a standard error of 0.05 there."""

_WHOLE_BUCKET = 50
_CHUNK = 64
_WEIGHTS = np.array([1, 0x01000193, 0x1B873593, 0xCC9E2D51, 0x9E3779B1], dtype=np.uint32)
"""Of the bytes in a shingle; odd, and otherwise anything."""


class Signatures:
    """Signatures of texts, one by one; ``matrix`` is (n, ``NUM_PERMUTATIONS``).

    Args:
        keep: one in how many shingles is looked at, always the same ones, so that similarities stay what they are.
            1 for short texts; for long ones a larger number saves time and loses little.
    """

    def __init__(self, keep: int = 1) -> None:
        from datasketch import MinHash

        # datasketch's own permutations; its update takes hashes one by one, at ten times the cost of an array of them
        self._multiply, self._add = MinHash(num_perm=NUM_PERMUTATIONS, scheme="affine32").permutations
        self._keep = keep
        self._values = array("I")
        self._waiting: list[bytes] = []

    def __len__(self) -> int:
        return len(self._values) // NUM_PERMUTATIONS + len(self._waiting)

    def add(self, *texts: Text) -> None:
        """Adds the signature of a text, or of several as one."""
        folded = " ".join(fold(plain(text)[:CHARACTERS]) for text in texts)
        self._waiting.append(folded.encode("utf-8", "surrogatepass").ljust(SHINGLE))
        if len(self._waiting) == _CHUNK:
            self._work_off()

    def matrix(self) -> NDArray[np.uint32]:
        """All signatures, in the order in which they were added."""
        self._work_off()
        return np.frombuffer(self._values, dtype=np.uint32).reshape(-1, NUM_PERMUTATIONS)

    def _work_off(self) -> None:
        if self._waiting:
            hashes, starts = shingles(self._waiting, self._keep)
            permuted = hashes[:, None] * self._multiply + self._add
            self._values.frombytes(np.minimum.reduceat(permuted, starts, axis=0).tobytes())
            self._waiting = []


def shingles(texts: Sequence[bytes], keep: int) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """A hash of every ``SHINGLE`` bytes in a row, of one in ``keep`` of them, and where each text's begin.

    Args:
        texts: each of at least ``SHINGLE`` bytes.
        keep: see ``Signatures``; the first shingle of a text is always kept, so that each has one.
    """
    letters = np.frombuffer(b"".join(texts), dtype=np.uint8).astype(np.uint32)
    hashes = np.zeros(len(letters) - SHINGLE + 1, dtype=np.uint32)
    for place, weight in enumerate(_WEIGHTS):
        hashes += letters[place : place + len(hashes)] * weight
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):  # mixes the bits (MurmurHash3's finalizer)
        hashes = (hashes ^ (hashes >> np.uint32(shift))) * np.uint32(factor)
    hashes ^= hashes >> np.uint32(16)
    lengths = np.array([len(text) for text in texts])
    ends = np.cumsum(lengths)
    kept = hashes % np.uint32(keep) == 0
    for end in ends[:-1].tolist():  # shingles that reach into the next text
        kept[end - SHINGLE + 1 : end] = False
    kept[ends - lengths] = True
    starts = np.cumsum(kept)[ends - lengths] - 1
    return hashes[kept], starts


def close_pairs(signatures: NDArray[np.uint32], threshold: float = THRESHOLD) -> NDArray[np.int64]:
    """Pairs of rows whose estimated similarity is at least ``threshold``: (n, 2), the smaller number first."""
    found = [np.empty((0, 2), dtype=np.int64)]
    for start in range(0, NUM_PERMUTATIONS, BAND):
        candidates = _in_one_bucket(np.ascontiguousarray(signatures[:, start : start + BAND]))
        for part in np.array_split(candidates, len(candidates) // 100_000 + 1):
            alike = (signatures[part[:, 0]] == signatures[part[:, 1]]).mean(axis=1)
            found.append(part[alike >= threshold])
    return np.unique(np.concatenate(found), axis=0)


def _in_one_bucket(band: NDArray[np.uint32]) -> NDArray[np.int64]:
    """Pairs of rows that are equal; of a large bucket, neighbours and those with its first member."""
    rows = band.view([("", band.dtype)] * band.shape[1]).ravel()
    _, labels = np.unique(rows, return_inverse=True)
    order = np.argsort(labels, kind="stable")
    ends = np.flatnonzero(np.diff(labels[order], append=-1)) + 1
    starts = np.concatenate([[0], ends[:-1]])
    pairs = [
        pair
        for start, end in zip(starts[ends - starts > 1], ends[ends - starts > 1], strict=True)
        for pair in _pairs(order[start:end])
    ]
    return np.sort(np.concatenate(pairs), axis=1) if pairs else np.empty((0, 2), dtype=np.int64)


def _pairs(members: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    if len(members) <= _WHOLE_BUCKET:
        left, right = np.triu_indices(len(members), 1)
        yield np.stack([members[left], members[right]], axis=1)
    else:
        yield np.stack([members[:-1], members[1:]], axis=1)
        yield np.stack([np.full(len(members) - 2, members[0]), members[2:]], axis=1)


def clusters(count: int, pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each of ``count`` texts the first one that a chain of pairs connects it with; itself if there is none."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(len(pairs), dtype=bool), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    _, labels = connected_components(graph, directed=False)
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    members: NDArray[np.int64] = first[inverse]
    return members
