"""One skill an annotator: who is right how often, estimated together with which answer is the better one.

The model. A pair's truth z is 1 (its first completion is the better one), −1, or 0 (neither). An annotator k who sees
it votes with the log-odds

    for the first : for the second : for a tie  =  η/2 : −η/2 : t_k,     η = s_k z + b_k side

with skill s_k, side bias b_k (side is 1 where the first was shown first, −1 where the second was, 0 where nobody knows)
and tie habit t_k. This is Davidson's model of ties (1970) with a strength that has three values; without ties and sides
it is the one-coin model of Dawid and Skene (1979) with accuracy σ(s_k). Which answer of a pair is called the first is
arbitrary, so a confusion matrix a class would spend parameters on nothing; the asymmetry that is real is the side.

Normal priors keep few votes sane: skill around 1.5 (82 % right), so that people are taken for better than a coin until
their votes say otherwise; an annotator who is mostly wrong then counts against what they say. Fitted by expectation
maximization from the shares of votes; the log-posterior never falls.

Shapes: U pairs, A annotators, P parameters, R = A · 6 cases · outcomes: cells that votes fall into.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse, special

from dipole.data.audit.intervals import Floats, Interval, Ints
from dipole.feedback.aggregate.choice import Choices, Prior, Sparse, fit
from dipole.feedback.aggregate.connected import can_be_rated
from dipole.feedback.aggregate.result import Aggregation, Annotator, PairLabels, counted, interval
from dipole.feedback.aggregate.shares import busiest_first, num_votes
from dipole.feedback.aggregate.spread import covariance, ends, standard_errors
from dipole.feedback.aggregate.votes import Votes, summed, votes_of
from dipole.group import Group

ROUNDS = 2000
TRUTHS = {1: 1.0, -1: 0.0, 0: 0.5}
"""z, and the probability that the first is preferred; 0 only where somebody said a tie."""

CASES = 6
"""Where the answer in question was shown (second, unknown, first), for pairs with a better answer and for true ties."""

FEW_VOTES = 1.3
"""Votes a pair below which labels are mostly the prior's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OneCoinPriors:
    """Means and standard deviations of the normal priors, on the log-odds scale.

    Args:
        skill: of s_k.
        bias: of b_k.
        tie: of t_k.
        true_ties: pairs that were true ties, and pairs that weren't, before any were seen.
    """

    skill: tuple[float, float] = (1.5, 1.5)
    bias: tuple[float, float] = (0.0, 1.0)
    tie: tuple[float, float] = (-1.0, 2.0)
    true_ties: tuple[float, float] = (1.0, 3.0)


@dataclass(frozen=True, slots=True)
class _Model:
    """What stays the same over the rounds.

    Args:
        choices: of R cells.
        prior: of P parameters.
        counts: for each truth, (U, R) sparse: how much of each pair's votes falls into each cell if that is the truth.
        truths: z of each.
        true_ties: see the priors.
        kinds: (P) 0 skill, 1 bias, 2 tie.
        owner: (P) the annotator.
    """

    choices: Choices
    prior: Prior
    counts: tuple[Sparse, ...]
    truths: tuple[int, ...]
    true_ties: tuple[float, float]
    kinds: Ints
    owner: Ints


@dataclass(frozen=True, slots=True)
class _State:
    """Where the rounds have come to.

    Args:
        parameters: (P)
        tied: share of true ties.
        truth: (U, truths) the probability of each truth of each pair.
        objective: the log-posterior of the parameters, the truths summed out.
    """

    parameters: Floats
    tied: float
    truth: Floats
    objective: float


def one_coin(groups: Sequence[Group], *, priors: OneCoinPriors | None = None) -> Aggregation:
    """P(i ≻ j) = P(i is the better one) + ½ P(neither is), given all votes.

    Its interval says what isn't known of the annotators (by the delta method on the log-odds); ``p`` itself already
    says what isn't known of the pair. Both rest on pairs having a better answer at all: where people differ in taste,
    the share of votes (``majority``) is the better label.

    Args:
        groups: with their judgments.
        priors: of the parameters.
    """
    return one_coin_of(votes_of(groups), priors)


def one_coin_of(votes: Votes, priors: OneCoinPriors | None = None) -> Aggregation:
    """The same, from columns."""
    model = _model(votes, priors or OneCoinPriors())
    state, path = _climb(model, _first_guess(votes, model.truths))
    values = np.array([TRUTHS[z] for z in model.truths])
    p = np.clip(state.truth @ values, 0.0, 1.0)
    spread, gradient = _uncertainty(model, state)
    low, high = _interval_of(p, gradient, spread)
    labels = PairLabels(votes.group, votes.first, votes.second, p, low, high, num_votes(votes))
    rated = can_be_rated(len(votes.annotators), *_decided(votes))
    settled = bool(np.isfinite(spread.data).all())
    return Aggregation(
        method="one_coin",
        pairs=labels,
        annotators=_annotators(votes, model, state, spread, rated),
        notes=_notes(votes, rated, settled, len(path) > ROUNDS),
        objective=path,
    )


def _model(votes: Votes, priors: OneCoinPriors) -> _Model:
    outcomes = 3 if votes.with_ties else 2
    truths = (1, -1, 0) if votes.with_ties else (1, -1)
    count = len(votes.annotators)
    parts = [("skill", 0), *([("bias", 1)] if votes.with_sides else []), *([("tie", 2)] if votes.with_ties else [])]
    columns = {kind: count * place + np.arange(count) for place, (_, kind) in enumerate(parts)}
    means, deviations = zip(*(getattr(priors, name) for name, _ in parts), strict=True)
    prior = Prior(np.repeat(np.array(means), count), np.repeat(1 / np.array(deviations) ** 2, count))
    return _Model(
        Choices(_design(count, outcomes, columns), np.arange(0, count * CASES * outcomes, outcomes)),
        prior,
        tuple(_counts(votes, z, outcomes) for z in truths),
        truths,
        priors.true_ties,
        kinds=np.repeat([kind for _, kind in parts], count),
        owner=np.tile(np.arange(count), len(parts)),
    )


def _design(count: int, outcomes: int, columns: dict[int, Ints]) -> Sparse:
    """(R, P): the log-odds of each cell. Cells are ordered by annotator, case, outcome (for, against, tie)."""
    annotator, case, outcome = np.unravel_index(np.arange(count * CASES * outcomes), (count, CASES, outcomes))
    towards = np.array([0.5, -0.5, 0.0])[outcome]
    entries = [(0, towards * (case < 3)), (1, towards * (case % 3 - 1)), (2, (outcome == 2).astype(float))]
    rows, places, values = [], [], []
    for kind, value in entries:
        if kind in columns:
            own = np.flatnonzero(value)
            rows.append(own)
            places.append(columns[kind][annotator[own]])
            values.append(value[own])
    width = count * len(columns)
    matrix = sparse.coo_array(
        (np.concatenate(values), (np.concatenate(rows), np.concatenate(places))), shape=(len(outcome), width)
    )
    return matrix.tocsr()


def _counts(votes: Votes, z: int, outcomes: int) -> Sparse:
    """(U, R): the weight of each pair's votes in each cell, were ``z`` the truth."""
    turn = -1 if z == -1 else 1  # cells speak of the better answer: the first, unless the second is
    case = turn * votes.side + 1 + (3 if z == 0 else 0)
    cell = (votes.annotator * CASES + case) * outcomes
    decided = votes.decided
    against = np.sign(2 * votes.p - 1) * turn < 0
    rows, cells, weights = [votes.pair], [cell + against], [votes.weight * decided]
    if outcomes == 3:
        rows, cells = [*rows, votes.pair], [*cells, cell + 2]
        weights = [*weights, votes.weight * (1 - decided)]
    shape = (len(votes.group), len(votes.annotators) * CASES * outcomes)
    matrix = sparse.coo_array((np.concatenate(weights), (np.concatenate(rows), np.concatenate(cells))), shape=shape)
    return matrix.tocsr()


def _first_guess(votes: Votes, truths: tuple[int, ...]) -> Floats:
    """(U, truths) shares of votes."""
    count = len(votes.group)
    first = summed(votes.weight * votes.decided * (votes.p > 0.5), votes.pair, count)
    second = summed(votes.weight * votes.decided * (votes.p < 0.5), votes.pair, count)
    tied = summed(votes.weight * (1 - votes.decided), votes.pair, count)
    shares = np.stack([first, second, tied][: len(truths)], axis=1) + 0.5
    result: Floats = shares / shares.sum(axis=1, keepdims=True)
    return result


def _climb(model: _Model, truth: Floats) -> tuple[_State, tuple[float, ...]]:
    """Expectation maximization, until a round brings nothing."""
    cells, parameters = model.choices.small(), model.prior.mean
    path: list[float] = []
    state = None
    while len(path) <= ROUNDS:
        chosen = np.sum([counts.T @ truth[:, place] for place, counts in enumerate(model.counts)], axis=0)
        parameters = fit(cells, chosen, model.prior, parameters)
        state = _expect(model, parameters, _share_of_ties(model, truth))
        truth = state.truth
        path.append(state.objective)
        if len(path) > 1 and path[-1] - path[-2] <= 1e-10 * (1 + abs(path[-1])):
            break
    assert state is not None
    return state, tuple(path)


def _share_of_ties(model: _Model, truth: Floats) -> float:
    if 0 not in model.truths:
        return 0.0
    tied, others = model.true_ties
    return float((truth[:, model.truths.index(0)].sum() + tied) / (len(truth) + tied + others))


def _expect(model: _Model, parameters: Floats, tied: float) -> _State:
    """The probability of each truth, and the log-posterior."""
    cells = model.choices.log_probabilities(parameters)
    before = np.log([tied if z == 0 else (1 - tied) / 2 for z in model.truths])
    joint = np.stack([counts @ cells for counts in model.counts], axis=1) + before
    total = np.logaddexp.reduce(joint, axis=1)
    objective = float(total.sum()) + model.prior.log_density(parameters)
    if 0 in model.truths:
        objective += model.true_ties[0] * np.log(tied) + model.true_ties[1] * np.log1p(-tied)
    return _State(parameters, tied, np.exp(joint - total[:, None]), float(objective))


def _uncertainty(model: _Model, state: _State) -> tuple[Sparse, Sparse]:
    """(P, P) covariance of the parameters, and (U, P) the gradient of each pair's probability.

    The information that the votes hold is what they would hold were the truths known, less what not knowing them costs:
    the variance, over the truths, of the gradient (Louis 1982). The share of true ties is taken as known.
    """
    probabilities = np.exp(model.choices.log_probabilities(state.parameters))
    centred = model.choices.centred(probabilities)
    slopes = [counts @ centred for counts in model.counts]
    weights = [sparse.diags_array(state.truth[:, place]) for place in range(len(slopes))]
    mean = sum(weight @ slope for weight, slope in zip(weights, slopes, strict=True))
    chosen = np.sum([counts.T @ state.truth[:, place] for place, counts in enumerate(model.counts)], axis=0)
    known = model.choices.information(chosen, probabilities) + sparse.diags_array(model.prior.precision)
    lost = sum(slope.T @ (weight @ slope) for weight, slope in zip(weights, slopes, strict=True)) - mean.T @ mean
    gradient = sum(
        TRUTHS[z] * (weight @ (slope - mean)) for z, weight, slope in zip(model.truths, weights, slopes, strict=True)
    )
    return covariance((known - lost).tocsc(), model.owner), gradient.tocsr()


def _interval_of(p: Floats, gradient: Sparse, spread: Sparse) -> tuple[Floats, Floats]:
    safe = np.clip(p, 1e-12, 1 - 1e-12)
    low, high = ends(special.logit(safe), standard_errors(gradient, spread) / (safe * (1 - safe)))
    return special.expit(low), special.expit(high)


def _decided(votes: Votes) -> tuple[Ints, Ints]:
    """Pair and annotator of the votes that aren't ties, once a named annotator."""
    return votes.taken(np.flatnonzero(votes.decided > 0)).one_each()


def _annotators(
    votes: Votes, model: _Model, state: _State, spread: Sparse, rated: NDArray[np.bool_]
) -> tuple[Annotator, ...]:
    error = standard_errors(sparse.eye_array(len(model.kinds), format="csr"), spread)
    cast, ties = votes.by_annotator()
    with_sides = summed(np.abs(votes.side), votes.annotator, len(votes.annotators))

    def share(kind: int, k: int) -> tuple[float, Interval | None]:
        place = int(np.flatnonzero((model.kinds == kind) & (model.owner == k))[0])
        low, high = ends(state.parameters[place], error[place])
        return float(special.expit(state.parameters[place])), interval(special.expit(low), special.expit(high))

    found = []
    for k, name in enumerate(votes.annotators):
        reliability, around = share(0, k)
        bias, bias_around = share(1, k) if with_sides[k] else (None, None)
        found.append(
            Annotator(
                name=name,
                num_votes=int(cast[k]),
                reliability=reliability if rated[k] else None,
                reliability_interval=around if rated[k] else None,
                side_bias=bias,
                side_bias_interval=bias_around,
                tie_share=float(ties[k]),
                identified=bool(rated[k]),
            )
        )
    return busiest_first(found)


def _notes(votes: Votes, rated: NDArray[np.bool_], settled: bool, unfinished: bool) -> tuple[str, ...]:
    notes = []
    each = float(np.mean(num_votes(votes)))
    if each < FEW_VOTES:
        notes.append(
            f"there are {each:.2f} votes a pair, so that labels come mostly from what is assumed of annotators before"
            " they vote; have pairs judged twice or more"
        )
    unknown = [name for name, known in zip(votes.annotators, rated, strict=True) if not known]
    if unknown:
        listed = ", ".join(unknown[:3]) + (f" and {len(unknown) - 3} more" if len(unknown) > 3 else "")
        notes.append(
            f"not identifiable: how reliable {counted(len(unknown), 'annotator')} of {len(rated)} are ({listed}); it"
            " takes pairs that two others judged too, who share pairs themselves. The prior's reliability was used"
        )
    if not settled:
        notes.append(
            "not identifiable: the votes fit two opposite accounts of who is right equally well, so there are no"
            " intervals; have some pairs judged by others"
        )
    if unfinished:
        notes.append(f"the estimate was still moving after {ROUNDS} rounds")
    return tuple(notes)
