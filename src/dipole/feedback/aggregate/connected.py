"""What votes can't tell, whatever the model: completions that no chain of votes joins, annotators nobody checks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from dipole.data.audit.intervals import Ints


def parts(count: int, left: Ints, right: Ints) -> Ints:
    """(count) the number of the connected part that each node lies in.

    Args:
        count: of nodes.
        left: one end of each edge.
        right: the other.
    """
    edges = sparse.coo_array((np.ones(len(left), dtype=np.int8), (left, right)), shape=(count, count))
    labels: Ints = connected_components(edges, directed=False)[1].astype(np.int64)
    return labels


def can_be_rated(count: int, unit: Ints, annotator: Ints) -> NDArray[np.bool_]:
    """(count) whether an annotator's reliability follows from how often annotators agree, up to the sign of all.

    The agreement of two people says how large the product of their skills is. From the products of all pairs who share
    units the skills follow only if people stand in a circle of odd length: with two people, or two camps who share
    units only across, one side may be better and the other worse by the same factor.

    Args:
        count: of annotators.
        unit: (V) what each vote is about.
        annotator: (V) whose it is. One who stands for several people, and votes on a unit twice, checks themselves.
    """
    units = np.unique(unit, return_inverse=True)[1]
    shape = (int(units.max(initial=-1)) + 1, count)
    seen = sparse.csr_array((np.ones(len(units)), (units, annotator)), shape=shape)
    shared = (seen.T @ seen).tocoo()
    (left, right), times = shared.coords, shared.data
    alone = np.bincount(left[left == right], weights=times[left == right], minlength=count)
    once = np.bincount(annotator, minlength=count)
    edge = (left != right) | (alone[left] > once[left])
    left, right = left[edge], right[edge]
    # Each person twice, every edge from one copy to the other: only circles of odd length join the two copies.
    doubled = parts(2 * count, left, right + count)
    result: NDArray[np.bool_] = doubled[:count] == doubled[count:]
    return result


def with_a_circle_of_wins(count: int, winner: Ints, loser: Ints) -> Ints:
    """(count) parts in which everyone has, through others, beaten and been beaten by everyone.

    Only within these do strengths have a finite estimate without a prior (Ford 1957).
    """
    edges = sparse.coo_array((np.ones(len(winner), dtype=np.int8), (winner, loser)), shape=(count, count))
    labels: Ints = connected_components(edges, directed=True, connection="strong")[1].astype(np.int64)
    return labels
