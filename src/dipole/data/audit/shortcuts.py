"""What a reward could be had by without doing what was asked: length, style, whatever the prompt isn't needed for.

A reward that can be had by a shortcut is what the policy will learn.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from dipole.data.audit.columns import Columns
from dipole.data.audit.finding import Bar, BarChart, Finding, Result, excerpt, first, severity
from dipole.data.audit.intervals import Floats, Interval, preference_auc, share
from dipole.data.audit.probe import SampledPairs, held_out_scores, standardised

LENGTH_LIMITS = (0.60, 0.75)
"""Share of pairs won by the longer answer beyond which it is a warning, and severe. Where people judge, the longer one
wins a little more often than not for good reasons."""

AREA_LIMITS = (0.65, 0.80)
"""The same for the area under the curve of a model that sees only lengths or only style."""

WITHOUT_PROMPT_LIMITS = (0.85, 0.95)
"""The same for a model of the answers' words: good answers have words of their own, whatever was asked."""

REPEATED_LIMITS = (0.0, 0.05)
"""Share of completions that begin with their prompt."""

STYLE = {
    "bullet points": ("", r"^[ \t]*[-*•] "),
    "numbered points": ("", r"^[ \t]*\d{1,2}[.)] "),
    "headings": ("#", r"^#{1,6} "),
    "bold": ("**", r"\*\*[^*\n]{1,200}\*\*"),
    "code": ("`", r"```|`[^`\n]{1,200}`"),
    "links": ("://", r"https?://"),
    "tables": ("|", r"^\|"),
    "emoji": ("", "[\u2600-\u27bf\U0001f300-\U0001faff]"),
    "hedges": ("", r"\b(?:maybe|perhaps|possibly|might|seems?|likely|i think|i believe|it depends|generally)\b"),
    "apologies": ("", r"\b(?:sorry|apologi[sz]e|unfortunately|i cannot|i can't|i'm unable|as an ai)\b"),
    "pleasantries": ("", r"\b(?:great question|certainly|of course|absolutely|happy to help|i hope this|feel free)\b"),
    "exclamation marks": ("!", r"!"),
    "question marks": ("?", r"\?"),
    "paragraphs": ("\n", r"\n\s*\n"),
}
"""Traits of style: what a text can't be without to have them, and the pattern that counts them in small letters."""

_PATTERNS = [(need, re.compile(pattern, re.MULTILINE)) for need, pattern in STYLE.values()]


def check_length(columns: Columns) -> Iterator[Result]:
    """How often the longer answer wins; of all pairs."""
    decided = np.flatnonzero(columns.p > 0.5)
    longer = columns.length[columns.winner[decided]] - columns.length[columns.loser[decided]]
    decided, longer = decided[longer != 0], longer[longer != 0]
    if not len(decided):
        return
    groups = columns.group[columns.winner[decided]]
    value, interval = share(longer > 0, columns.cluster[groups])
    away = interval[0] if value > 0.5 else 1 - interval[1]  # a preference for the shorter is as much of a shortcut
    typical = (longer > 0) == (value > 0.5)
    widest = np.argsort(-np.abs(longer) * typical, kind="stable")
    yield Finding(
        name="longer_preferred",
        severity=severity(away, LENGTH_LIMITS),
        message=f"the longer answer is preferred in {value:.0%} of the pairs",
        value=value,
        interval=interval,
        examples=first(
            f"{columns.ids[groups[n]]}: {columns.length[columns.winner[decided[n]]]} characters preferred to "
            f"{columns.length[columns.loser[decided[n]]]}"
            for n in widest
        ),
        remedy="Compare with a length-controlled win rate, or use a length-normalised loss.",
    )
    yield _length_chart(np.abs(longer), longer > 0)


def _length_chart(gap: Any, longer_wins: Any) -> BarChart:
    """The share won by the longer one, by how much longer it is."""
    edges = np.unique(np.quantile(gap, np.linspace(0, 1, 7)).round())
    bars = []
    for low, high in pairwise(edges.tolist()):
        inside = (gap >= low) & ((gap < high) | (high == float(edges[-1])))
        if inside.any():
            value, interval = share(longer_wins[inside], np.arange(inside.sum()))
            bars.append(Bar(label=f"{low:.0f} to {high:.0f}", value=value, low=interval[0], high=interval[1]))
    return BarChart(
        name="longer_preferred",
        title="How often the longer answer wins, by how many characters it is longer",
        unit="share of pairs",
        bars=tuple(bars),
        level=0.5,
    )


def check_repetition(columns: Columns) -> Iterator[Finding]:
    """Completions that begin with their prompt."""
    found = np.flatnonzero(columns.repeats)
    if not len(found):
        return
    value, interval = share(columns.repeats, columns.group)
    yield Finding(
        name="prompt_repeated",
        severity=severity(value, REPEATED_LIMITS),
        message=f"{value:.1%} of the completions begin with their prompt",
        value=value,
        interval=interval,
        examples=first(columns.example(group) for group in dict.fromkeys(columns.group[found].tolist())),
        remedy="Take the prompt out of the answers; otherwise the model learns to repeat it.",
    )


def check_probes(columns: Columns, pairs: SampledPairs, words: Floats | None) -> Iterator[Result]:
    """How far a model gets that sees only lengths, only style, only the answers' words; on a sample.

    Args:
        columns: what the pairs were drawn from.
        pairs: the sample.
        words: log-odds of their labels by a probe of the answers' words.
    """
    if not len(pairs.p):
        return
    used = np.unique(np.concatenate([pairs.winner, pairs.loser])).tolist()
    style, lengths = np.zeros((len(pairs.texts), len(STYLE))), np.zeros((len(pairs.texts), 3))
    for number in used:
        style[number], lengths[number] = _style(pairs.texts[number]), _lengths(pairs.texts[number])
    found = {
        "length_only": held_out_scores(standardised(lengths, pairs), pairs.p, pairs.cluster),
        "style_only": held_out_scores(standardised(style, pairs), pairs.p, pairs.cluster),
        "answers_only": words,
    }
    notes = {"style_only": _traits(style, pairs)}
    bars = []
    for name, scores in found.items():
        if scores is not None:
            value, interval = preference_auc(scores, pairs.cluster)
            bars.append(Bar(label=_PROBES[name].label, value=value, low=interval[0], high=interval[1]))
            yield _probe_finding(name, value, interval, scores, columns, pairs, notes.get(name, ""))
    yield BarChart(
        name="shortcuts",
        title="How well the preferred answer can be told from …",
        unit="area under the curve, ½ is chance",
        bars=tuple(bars),
        level=0.5,
    )


class _Probe(NamedTuple):
    label: str
    sees: str
    limits: tuple[float, float]
    remedy: str


_PROBES = {
    "length_only": _Probe(
        "lengths",
        "only the lengths",
        AREA_LIMITS,
        "Add pairs in which the shorter answer is better, or use a length-normalised loss.",
    ),
    "style_only": _Probe(
        "style",
        "only the style (lists, markup, emoji, hedges)",
        AREA_LIMITS,
        "Add pairs that differ in content but not in form, or write both answers in one style.",
    ),
    "answers_only": _Probe(
        "answers without the prompt",
        "only the answers' words, not the prompt",
        WITHOUT_PROMPT_LIMITS,
        "Add pairs in which the same answer is right for one prompt and wrong for another.",
    ),
}


def _probe_finding(
    name: str,
    value: float,
    interval: Interval,
    scores: Floats,
    columns: Columns,
    pairs: SampledPairs,
    note: str,
) -> Finding:
    probe = _PROBES[name]
    moot = name == "answers_only" and len(np.unique(columns.prompt)) < 2
    if moot:
        note = "; with one prompt for all, there is nothing else to see"
    return Finding(
        name=name,
        severity="info" if moot else severity(interval[0], probe.limits),
        message=f"a model that sees {probe.sees} tells the preferred answer with an area under the curve of "
        f"{value:.2f}{note}",
        value=value,
        interval=interval,
        examples=first(
            f"{columns.ids[pairs.group[n]]}: {excerpt(pairs.texts[pairs.winner[n]])} preferred to "
            f"{excerpt(pairs.texts[pairs.loser[n]])}"
            for n in np.argsort(-scores, kind="stable")
        ),
        remedy=probe.remedy,
    )


def _style(text: str) -> Floats:
    """Traits per word, so that the length itself is none of them."""
    words, text = len(text.split()) + 10, text.lower()
    return np.array([len(pattern.findall(text)) / words if need in text else 0.0 for need, pattern in _PATTERNS])


def _lengths(text: str) -> Floats:
    return np.log1p([len(text), len(text.split()), text.count("\n")])


def _traits(style: Floats, pairs: SampledPairs) -> str:
    """The trait that differs most between preferred and other answers."""
    differences = standardised(style, pairs).mean(axis=0)
    strongest = int(np.argmax(np.abs(differences)))
    if abs(differences[strongest]) < 0.1:
        return ""
    more = "more" if differences[strongest] > 0 else "fewer"
    return f"; what differs most: preferred answers have {more} {list(STYLE)[strongest]}"
