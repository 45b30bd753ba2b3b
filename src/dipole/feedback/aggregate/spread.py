"""Variances of what was estimated: the posterior's own, and one that doesn't trust the model (the sandwich).

Shapes: P parameters, C clusters, M contrasts.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse

from dipole.data.audit.intervals import Floats, Ints, Z
from dipole.feedback.aggregate.choice import Sparse

WHOLE = 300
"""Parameters up to which one matrix is inverted. Above, each block is, as if what all blocks share were known."""

CHUNK = 4096


def covariance(information: Sparse, block: Ints, scores: Sparse | None = None) -> Sparse:
    """(P, P) sparse; blocks where it isn't positive definite are NaN.

    Args:
        information: (P, P) minus the second derivative of the log-posterior at its maximum, A.
        block: (P) parameters of different blocks are taken for independent where P exceeds ``WHOLE``.
        scores: (C, P) the gradient of each cluster's log-likelihood. With it the result is the sandwich A⁻¹ J A⁻¹ with
            J = C/(C−1) Σ s sᵀ (Huber 1967; Liang and Zeger 1986), which holds when the votes of a cluster go together.
    """
    size = information.shape[0]
    if size <= WHOLE:
        block = np.zeros(size, dtype=np.int64)
    _, number, counts = np.unique(block, return_inverse=True, return_counts=True)
    order = np.argsort(number, kind="stable")
    first = np.concatenate([[0], np.cumsum(counts)[:-1]])
    position = np.empty(size, dtype=np.int64)
    position[order] = np.arange(size) - first[number[order]]
    meat = None if scores is None else (scores.T @ scores) * _few_clusters(scores.shape[0])
    rows, columns, values = [], [], []
    for width in np.unique(counts).tolist():
        members = np.flatnonzero(counts == width)
        inverse = _inverse(_dense(information, number, position, members, width))
        if meat is not None:
            inverse = inverse @ _dense(meat, number, position, members, width) @ inverse
        where = order[first[members][:, None] + np.arange(width)]
        rows.append(np.repeat(where, width, axis=1).ravel())
        columns.append(np.tile(where, (1, width)).ravel())
        values.append(inverse.ravel())
    entries = (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns)))
    return sparse.csr_array(entries, shape=(size, size))


def _few_clusters(count: int) -> float:
    return count / (count - 1) if count > 1 else float("nan")


def _dense(matrix: Sparse, number: Ints, position: Ints, members: Ints, width: int) -> Floats:
    """(members, width, width) the blocks of one size."""
    entries = matrix.tocoo()
    place = np.full(number.max(initial=0) + 1, -1)
    place[members] = np.arange(len(members))
    row, column = entries.coords
    inside = (number[row] == number[column]) & (place[number[row]] >= 0)
    row, column = row[inside], column[inside]
    blocks = np.zeros((len(members), width, width))
    np.add.at(blocks, (place[number[row]], position[row], position[column]), entries.data[inside])
    return blocks


def _inverse(blocks: Floats) -> Floats:
    positive = np.linalg.eigvalsh(blocks)[:, 0] > 1e-10
    safe = np.where(positive[:, None, None], blocks, np.eye(blocks.shape[1]))
    result: Floats = np.where(positive[:, None, None], np.linalg.inv(safe), np.nan)
    return result


def standard_errors(contrasts: Sparse, *covariances: Sparse) -> Floats:
    """(M) of linear functions of the parameters: under several covariances the largest.

    The sandwich of a handful of votes is far too small (a perfect fit has no residuals), the posterior's own too small
    where votes go together. The larger of the two errs on the safe side.

    Args:
        contrasts: (M, P) sparse.
        covariances: (P, P) each.
    """
    rows = contrasts.tocsr()
    found = np.zeros(rows.shape[0])
    for matrix in covariances:
        for begin in range(0, rows.shape[0], CHUNK):
            part = rows[begin : begin + CHUNK]
            variance = np.asarray((part @ matrix).multiply(part).sum(axis=1)).ravel()
            found[begin : begin + CHUNK] = np.fmax(found[begin : begin + CHUNK], variance)
    result: Floats = np.sqrt(np.where(found > 0, found, np.nan))
    return result


def ends(centre: Floats, error: Floats) -> tuple[Floats, Floats]:
    """Both ends of the 95 % interval on the scale of the centre; NaN without an error."""
    return centre - Z * error, centre + Z * error
