"""Strengths from comparisons (Bradley and Terry 1952) and from rankings (Plackett 1975, Luce 1959), ties included.

Strengths of a group's completions have a normal prior of mean 0 and standard deviation 1: one vote then makes p = 0.69,
an answer that always wins stays finite, and hundreds of votes are hardly touched. Where a judgment says what was shown
first, a bias towards it is estimated with the rest. Completions that no chain of judgments joins get no label.

Shapes: M items, P parameters, C clusters of ballots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy import sparse

from dipole.data.audit.intervals import Floats, Ints
from dipole.feedback.aggregate.ballots import Ballot, choices_of, from_rankings, from_votes
from dipole.feedback.aggregate.choice import Prior, Sparse, fit
from dipole.feedback.aggregate.connected import parts, with_a_circle_of_wins
from dipole.feedback.aggregate.result import Aggregation, PairLabels, Source, counted, interval
from dipole.feedback.aggregate.shares import by_agreement, num_votes
from dipole.feedback.aggregate.spread import covariance, ends, standard_errors
from dipole.feedback.aggregate.votes import UNNAMED, Votes, votes_of
from dipole.group import Group

STRENGTH, SIDE, TIE = (0.0, 1.0), (0.0, 1.0), (-1.0, 2.0)
"""Mean and standard deviation of the priors, on the log-odds scale."""


@dataclass(frozen=True, slots=True)
class Strengths:
    """What was estimated.

    Args:
        strength: (M) log-strengths.
        log_tie: log δ of a tie of two; −∞ where nobody tied.
        posterior: (P, P) covariance if the model holds.
        sandwich: (P, P) covariance from how clusters differ.
    """

    strength: Floats
    log_tie: float
    posterior: Sparse
    sandwich: Sparse

    def probability(self, difference: Floats) -> Floats:
        """P(i ≻ j) + ½ P(tie) for a difference of strengths, whatever was shown first.

        (e^(d/2) + ν/2) / (e^(d/2) + e^(−d/2) + ν), both parts of the fraction over e^(|d|/2).
        """
        size = np.abs(difference)
        tied = np.exp(self.log_tie - size / 2)
        result: Floats = (np.exp((difference - size) / 2) + tied / 2) / (1 + np.exp(-size) + tied)
        return result

    def errors(self, contrasts: Sparse) -> Floats:
        """Standard errors of contrasts of strengths, (n, M) sparse; the larger of both covariances' ."""
        wide = sparse.csr_array(
            (contrasts.data, contrasts.indices, contrasts.indptr), shape=(contrasts.shape[0], self.posterior.shape[0])
        )
        return standard_errors(wide, self.posterior, self.sandwich)


def fit_strengths(ballots: Sequence[Ballot], num_items: int, block: Ints | None = None) -> Strengths:
    """The maximum of the posterior, and its spread.

    Args:
        ballots: at least one.
        num_items: M.
        block: (M) items of different blocks never meet; one block by default.
    """
    choices, clusters = choices_of(ballots, num_items)
    num_ties = choices.design.shape[1] - num_items - 1
    mean, deviation = (
        np.concatenate([np.full(num_items, strength), [side], np.full(num_ties, tie)])
        for strength, side, tie in zip(STRENGTH, SIDE, TIE, strict=True)
    )
    prior = Prior(mean, 1 / deviation**2)
    chosen = np.asarray(clusters.sum(axis=0)).ravel()
    parameters = fit(choices, chosen, prior)
    probabilities = np.exp(choices.log_probabilities(parameters))
    information = choices.information(chosen, probabilities) + sparse.diags_array(prior.precision)
    own = np.zeros(num_items, dtype=np.int64) if block is None else block
    blocks = np.concatenate([own, own.max(initial=0) + 1 + np.arange(1 + num_ties)])
    return Strengths(
        parameters[:num_items],
        float(parameters[num_items + 1]) if num_ties else float("-inf"),
        covariance(information.tocsc(), blocks),
        covariance(information.tocsc(), blocks, scores=clusters @ choices.centred(probabilities)),
    )


def bradley_terry(groups: Sequence[Group]) -> Aggregation:
    """P(i ≻ j) of every two completions of a group that a chain of comparisons joins; rankings become comparisons."""
    votes = votes_of(groups)
    offset = _offsets(votes)[votes.group[votes.pair]]
    left, right = offset + votes.first[votes.pair], offset + votes.second[votes.pair]
    return _labelled(
        "bradley_terry", votes, list(from_votes(votes, left.tolist(), right.tolist(), _by_annotator(votes).tolist()))
    )


def plackett_luce(groups: Sequence[Group]) -> Aggregation:
    """The same from whole rankings: first the best of all, then the best of the rest, and so on.

    Ratings of an annotator are a ranking with ties. Unlike comparisons one by one, the places of a ranking aren't taken
    for independent.
    """
    votes = votes_of(groups)
    return _labelled("plackett_luce", votes, list(from_rankings(groups, _offsets(votes).tolist())))


def _offsets(votes: Votes) -> Ints:
    result: Ints = np.cumsum(votes.sizes) - votes.sizes
    return result


def _by_annotator(votes: Votes) -> Ints:
    """(V) votes of one named annotator on one group go together."""
    key = votes.group[votes.pair] * len(votes.annotators) + votes.annotator
    if UNNAMED in votes.annotators:
        alone = votes.annotator == votes.annotators.index(UNNAMED)
        key[alone] = -1 - np.flatnonzero(alone)
    return key


def _labelled(method: str, votes: Votes, ballots: list[Ballot]) -> Aggregation:
    offsets, count = _offsets(votes), int(votes.sizes.sum())
    left, right = offsets[votes.group] + votes.first, offsets[votes.group] + votes.second
    part = parts(count, left, right)
    group, first, second, missing = _joined(votes, part)
    found = fit_strengths(ballots, count, np.repeat(np.arange(len(votes.sizes)), votes.sizes))
    i, j = offsets[group] + first, offsets[group] + second
    difference = found.strength[i] - found.strength[j]
    low, high = ends(difference, found.errors(_differences(i, j, count)))
    direct = dict(zip(zip(left.tolist(), right.tolist(), strict=True), num_votes(votes).tolist(), strict=True))
    labels = PairLabels(
        group,
        first,
        second,
        found.probability(difference),
        found.probability(low),
        found.probability(high),
        np.array([direct.get(pair, 0) for pair in zip(i.tolist(), j.tolist(), strict=True)], dtype=np.int64),
    )
    result = Aggregation(method=method, pairs=labels, annotators=by_agreement(votes))
    if missing:
        result = result.with_notes(
            f"not identifiable: {counted(missing, 'pair')} of completions that no chain of judgments joins; they"
            " have no label"
        )
    return result


def _joined(votes: Votes, part: Ints) -> tuple[Ints, Ints, Ints, int]:
    """Group, first and second of every two judged completions that a chain joins; and how many pairs none joins."""
    offsets = _offsets(votes).tolist()
    judged: dict[int, set[int]] = {}
    for group, first, second in zip(votes.group.tolist(), votes.first.tolist(), votes.second.tolist(), strict=True):
        judged.setdefault(group, set()).update((first, second))
    rows, missing = [], 0
    for group, members in judged.items():
        for i, j in combinations(sorted(members), 2):
            if part[offsets[group] + i] == part[offsets[group] + j]:
                rows.append((group, i, j))
            else:
                missing += 1
    table = np.array(rows, dtype=np.int64).reshape(-1, 3)
    return table[:, 0], table[:, 1], table[:, 2], missing


def _differences(i: Ints, j: Ints, count: int) -> Sparse:
    """(n, M): item i less item j."""
    rows = np.arange(len(i))
    values = np.concatenate([np.ones(len(i)), -np.ones(len(j))])
    places = (np.concatenate([rows, rows]), np.concatenate([i, j]))
    return sparse.coo_array((values, places), shape=(len(i), count)).tocsr()


def source_strengths(groups: Sequence[Group]) -> tuple[Source, ...]:
    """How the sources of completions compare, the strongest first in each part; empty with fewer than two.

    Intervals are from whole prompts. Sources of different parts were never compared, so nothing orders them.
    """
    votes = votes_of(groups)
    names: dict[str, int] = {}
    numbers = [
        [-1 if item.source is None else names.setdefault(item.source, len(names)) for item in group.completions]
        for group in groups
    ]
    source = np.array([number for row in numbers for number in row], dtype=np.int64)
    offset = _offsets(votes)[votes.group[votes.pair]]
    left, right = source[offset + votes.first[votes.pair]], source[offset + votes.second[votes.pair]]
    kept = np.flatnonzero((left >= 0) & (right >= 0) & (left != right))
    if not len(kept):
        return ()
    clusters = votes.prompt[votes.group[votes.pair]]
    ballots = list(from_votes(votes.taken(kept), left[kept].tolist(), right[kept].tolist(), clusters[kept].tolist()))
    return _ranked(list(names), left[kept], right[kept], votes.p[kept], fit_strengths(ballots, len(names)))


def _ranked(names: list[str], left: Ints, right: Ints, p: Floats, found: Strengths) -> tuple[Source, ...]:
    count = len(names)
    part = parts(count, left, right)
    members = np.bincount(part)
    average = (part[:, None] == part[None, :]) / members[part][:, None]
    contrasts = sparse.csr_array(np.eye(count) - average)
    centred = contrasts @ found.strength
    low, high = ends(centred, found.errors(contrasts))
    won, lost = np.where(p >= 0.5, left, right), np.where(p >= 0.5, right, left)
    ties = p == 0.5
    circle = with_a_circle_of_wins(count, np.append(won, lost[ties]), np.append(lost, won[ties]))
    whole = np.bincount(circle)[circle] == members[part]
    times = np.bincount(left, minlength=count) + np.bincount(right, minlength=count)
    return tuple(
        Source(
            name=names[k],
            strength=float(centred[k]),
            interval=interval(low[k], high[k]),
            part=int(part[k]),
            num_votes=int(times[k]),
            finite=bool(whole[k]),
        )
        for k in sorted(range(count), key=lambda k: (part[k], -centred[k], names[k]))
        if times[k]
    )
