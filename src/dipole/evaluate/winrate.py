"""Win rates of answers against an opponent's, with everything that such a number needs beside it.

Every pair of answers is shown to the judge in both orders. What it says in the two is averaged, so that a judge who
always prefers the first answer finds no winner; how often the two orders agree is reported. A tie counts half, and a
pair without a verdict counts for nobody and is counted.

Shapes: one match a row; a row is (win, length gap).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from scipy import special

from dipole.evaluate.opinion import opinions
from dipole.evaluate.stats import (
    Estimate,
    Floats,
    PairedTest,
    bootstrap,
    holm,
    paired_difference,
    permutation_test,
    share,
)
from dipole.evaluate.stats import mean as mean_of
from dipole.feedback.judge import Judge
from dipole.group import Group, plain

POWER = 0.8
"""Chance with which a difference of the detectable size is found at the 5 % level."""

PRIOR = 0.5
"""Wins and losses of answers of equal length that the length-controlled rate starts from, so that it stays finite."""

RIDGE = 1.0
"""Strength of the prior on the slope in length: a standard deviation of 1 nat for a gap of one standard deviation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """A method's answer against the opponent's to one prompt.

    Args:
        prompt: what makes matches of different methods or temperatures comparable, and one cluster.
        method: who wrote the answer.
        temperature: at which it was sampled; ``None`` where that isn't known.
        win: probability that it is the better one, the mean over both orders; ``None`` without a verdict.
        consistent: whether both orders have the same winner; ``None`` where one of them has no verdict.
        length: of the answer, in characters.
        other_length: of the opponent's.
    """

    prompt: str
    method: str
    temperature: float | None
    win: float | None
    consistent: bool | None
    length: int
    other_length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WinRate:
    """What a method won at one temperature.

    Args:
        rate: share of matches won, ties half, clustered by prompt.
        at_equal_length: the same for answers as long as the opponent's; see ``length_controlled``.
        detectable: the smallest distance from ½ that a sample of this size and spread finds with 80 % power.
        consistent: share of matches whose two orders have the same winner.
        ties: how many matches are ties.
        invalid: how many have no verdict, and aren't part of any number above.
        length: mean of the answers, in characters.
        other_length: mean of the opponent's.
    """

    method: str
    temperature: float | None
    rate: Estimate
    at_equal_length: Estimate
    detectable: float | None
    consistent: Estimate
    ties: int
    invalid: int
    length: Estimate
    other_length: Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Two methods at one temperature, on the prompts that both have a verdict for.

    Args:
        difference: of their win rates, ``first`` − ``second``.
        test: of no difference.
        adjusted: its p-value after Holm's correction for all differences of the table; ``None`` without a test.
        detectable: see ``WinRate``.
    """

    first: str
    second: str
    temperature: float | None
    difference: Estimate
    test: PairedTest
    adjusted: float | None
    detectable: float | None


def matches_of(judge: Judge, groups: Sequence[Group], *, method: str, temperature: float | None) -> Iterator[Match]:
    """Asks the judge about groups of two completions, the method's and the opponent's, in both orders.

    Raises:
        JudgeError: the judge can't go on.
    """
    for group, (opinion,) in zip(groups, opinions(judge, [(group, ((0, 1),)) for group in groups]), strict=True):
        mine, other = (len(plain(completion.text)) for completion in group.completions)
        yield Match(
            prompt=group.id,
            method=method,
            temperature=temperature,
            win=opinion.p,
            consistent=opinion.consistent,
            length=mine,
            other_length=other,
        )


def win_rates(matches: Iterable[Match], *, resamples: int = 1000, seed: int = 0) -> list[WinRate]:
    """A row for every method and temperature, in the order in which they come."""
    cells: dict[tuple[str, float | None], list[Match]] = {}
    for item in matches:
        cells.setdefault((item.method, item.temperature), []).append(item)
    return [_rate(*cell, found, resamples, seed) for cell, found in cells.items()]


def _rate(method: str, temperature: float | None, matches: list[Match], resamples: int, seed: int) -> WinRate:
    judged = [item for item in matches if item.win is not None]
    prompts = [item.prompt for item in judged]
    wins = [item.win for item in judged if item.win is not None]
    rows = np.array([(win, item.length - item.other_length) for win, item in zip(wins, judged, strict=True)])
    both = [(float(item.consistent), item.prompt) for item in judged if item.consistent is not None]
    rate = share(wins, prompts)
    return WinRate(
        method=method,
        temperature=temperature,
        rate=rate,
        at_equal_length=bootstrap(rows, prompts, statistic=length_controlled, resamples=resamples, seed=seed),
        detectable=detectable(rate),
        consistent=share([value for value, _ in both], [prompt for _, prompt in both]),
        ties=sum(win == 0.5 for win in wins),
        invalid=len(matches) - len(judged),
        length=mean_of([item.length for item in judged], prompts),
        other_length=mean_of([item.other_length for item in judged], prompts),
    )


def length_controlled(rows: Floats) -> float:
    """Win rate at equal length: σ(a) of the model P(win) = σ(a + b · tanh(gap / s)), s the gaps' standard deviation.

    The form is that of AlpacaEval's length control (Dubois et al. 2024, arXiv 2404.04475, eq. 2) without the difficulty
    of prompts, which two answers to the same prompt share. Fitted by Newton's method, with a weak prior on a and b.

    Args:
        rows: (n, 2) win and length gap. Inside a bootstrap the model is refitted to every resample.
    """
    win, gap = rows.T
    spread = float(gap.std())
    x = np.tanh(gap / spread) if spread > 0 else np.zeros_like(gap)
    design = np.stack([np.ones_like(x), x], axis=1)
    coefficients = np.zeros(2)
    for _ in range(50):
        p = special.expit(design @ coefficients)
        level = special.expit(coefficients[0])
        slope = design.T @ (win - p) + [PRIOR * (1 - 2 * level), -RIDGE * coefficients[1]]
        curvature = (design * (p * (1 - p))[:, None]).T @ design
        curvature += np.diag([2 * PRIOR * level * (1 - level), RIDGE])
        step = np.linalg.solve(curvature, slope)
        coefficients += step / max(1.0, float(np.abs(step).max()) / 2)  # a full step from a flat place goes too far
        if np.abs(step).max() < 1e-9:
            break
    return float(special.expit(coefficients[0]))


def detectable(estimate: Estimate) -> float | None:
    """The smallest true difference that a sample of this spread finds with 80 % power at the 5 % level, two-sided.

    (z₀.₉₇₅ + z₀.₈) standard errors, with the standard error that the interval stands for.
    """
    if estimate.low is None or estimate.high is None:
        return None
    z = float(special.ndtri(0.975))
    return (z + float(special.ndtri(POWER))) / z * (estimate.high - estimate.low) / 2


def differences(matches: Iterable[Match], *, seed: int = 0) -> list[Difference]:
    """Every two methods at every temperature, paired by prompt, tested and corrected for being several."""
    cells: dict[float | None, dict[str, dict[str, float]]] = {}
    for item in matches:
        if item.win is not None:
            cells.setdefault(item.temperature, {}).setdefault(item.method, {})[item.prompt] = item.win
    found: list[tuple[str, str, float | None, Estimate, PairedTest]] = []
    for temperature, methods in cells.items():
        for first, second in combinations(methods, 2):
            prompts = [prompt for prompt in methods[first] if prompt in methods[second]]
            one, other = ([methods[name][prompt] for prompt in prompts] for name in (first, second))
            test = permutation_test(one, other, prompts, seed=seed)
            found.append((first, second, temperature, paired_difference(one, other, prompts), test))
    adjusted = iter(holm([test.p_value for *_, test in found if test.p_value is not None]))
    return [
        Difference(
            first=first,
            second=second,
            temperature=temperature,
            difference=difference,
            test=test,
            adjusted=None if test.p_value is None else next(adjusted),
            detectable=detectable(difference),
        )
        for first, second, temperature, difference, test in found
    ]


def rate_to_json(rate: WinRate) -> dict[str, Any]:
    """As ``winrate.json`` holds it."""
    names = ("rate", "at_equal_length", "consistent", "length", "other_length")
    plain_fields = {name: getattr(rate, name) for name in ("method", "temperature", "detectable", "ties", "invalid")}
    return plain_fields | {name: getattr(rate, name).to_json() for name in names}


def rate_from_json(fields: Mapping[str, Any]) -> WinRate:
    """The inverse of ``rate_to_json``.

    Raises:
        DataError: an estimate of it is none.
    """
    names = ("rate", "at_equal_length", "consistent", "length", "other_length")
    return WinRate(**{**fields, **{name: Estimate.from_json(fields[name]) for name in names}})


def difference_from_json(fields: Mapping[str, Any]) -> Difference:
    """The inverse of ``difference_to_json``.

    Raises:
        DataError: its estimate is none.
    """
    difference = Estimate.from_json(fields["difference"])
    return Difference(
        first=fields["first"],
        second=fields["second"],
        temperature=fields["temperature"],
        difference=difference,
        test=PairedTest(fields["p_value"], difference.n, fields["test"]),
        adjusted=fields["adjusted"],
        detectable=fields["detectable"],
    )


def difference_to_json(found: Difference) -> dict[str, Any]:
    """As ``winrate.json`` holds it."""
    return {
        "first": found.first,
        "second": found.second,
        "temperature": found.temperature,
        "difference": found.difference.to_json(),
        "p_value": found.test.p_value,
        "test": found.test.method,
        "adjusted": found.adjusted,
        "detectable": found.detectable,
    }
