"""How varied the data is: sizes, lengths, turns, languages, topics, and how much of the evaluation data it reaches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from dipole.data.audit.columns import Columns, Sampled
from dipole.data.audit.finding import Bar, BarChart, Finding, Result, first, head, quoted
from dipole.data.audit.intervals import Ints, wilson_interval
from dipole.data.audit.language import language
from dipole.data.audit.space import Space

REACH_LIMITS = (0.25, 0.50)
"""Share of evaluation prompts that nothing in training is near to. By its definition 0.05 of data of one kind are."""

MIN_TEXTS = 50


def check_sizes(columns: Columns) -> Iterator[Result]:
    """Counts, and quantiles of the lengths."""
    for noun, count in (
        ("groups", len(columns.ids)),
        ("completions", len(columns.length)),
        ("judgments", columns.judgments),
    ):
        yield Finding(name=f"num_{noun}", severity="info", message=f"{count:,} {noun}", value=count)
    for noun, lengths in (("prompt", columns.prompt_length), ("completion", columns.length)):
        if len(lengths):
            points = {"5%": 0.05, "50%": 0.5, "95%": 0.95, "max": 1.0}
            value = {name: float(np.quantile(lengths, point)) for name, point in points.items()}
            message = ", ".join(f"{name} {length:.0f}" for name, length in value.items())
            yield Finding(
                name=f"{noun}_length", severity="info", message=f"characters a {noun}: {message}", value=value
            )
            yield histogram(f"{noun}_length", f"Length of the {noun}s", "characters", lengths)


def check_ties(columns: Columns) -> Iterator[Finding]:
    """The share of pairs without a preference; a group is one observation."""
    if not (columns.p == 0.5).any():
        return
    groups = columns.group[columns.winner]
    counts = np.bincount(groups)
    shares = np.bincount(groups, weights=columns.p == 0.5)[counts > 0] / counts[counts > 0]
    yield Finding(
        name="ties",
        severity="info",
        message=f"{shares.mean():.0%} of the pairs are ties",
        value=float(shares.mean()),
        interval=wilson_interval(float(shares.sum()), len(shares)),
    )


def check_turns(columns: Columns) -> Iterator[Finding]:
    """How many of the prompts are dialogues."""
    if not len(columns.turns):
        return
    several = int((columns.turns > 1).sum())
    yield Finding(
        name="turns",
        severity="info",
        message=f"{several / len(columns.turns):.0%} of the prompts have several turns, at most {columns.turns.max()}",
        value=several / len(columns.turns),
        interval=wilson_interval(several, len(columns.turns)),
        examples=first(columns.example(number) for number in np.flatnonzero(columns.turns > 1).tolist()),
    )


def histogram(name: str, title: str, unit: str, values: Ints) -> BarChart:
    """How many values fall between powers of about two."""
    top = max(2.0, float(values.max()))
    edges = np.unique(np.geomspace(1, top, 13).round())
    counts, _ = np.histogram(np.maximum(values, 1), bins=edges)
    bars = tuple(Bar(label=f"{low:.0f}", value=float(count)) for low, count in zip(edges[:-1], counts, strict=True))
    return BarChart(name=name, title=title, unit=unit, bars=bars, upright=True)


def check_languages(columns: Columns) -> Iterator[Result]:
    """Shares of languages among the prompts of the sample, and answers in another language than their prompt."""
    found = [(sampled, language(sampled.prompt), language(sampled.answers[0])) for sampled in columns.sample]
    known = [(sampled, prompt, answer) for sampled, prompt, answer in found if prompt]
    if not known:
        return
    counts = Counter(prompt for _, prompt, _ in known)
    names = [name for name, _ in counts.most_common()]
    total = len(known)
    crossed = [(sampled, prompt, answer) for sampled, prompt, answer in known if answer and answer != prompt]
    yield Finding(
        name="languages",
        severity="info",
        message=f"{counts[names[0]] / total:.0%} of {total} prompts whose language could be told are {names[0]}"
        + (f", {len(names) - 1} other languages" if len(names) > 1 else ""),
        value={name: counts[name] / total for name in names[:10]},
    )
    judged = sum(bool(answer) for _, _, answer in known)
    if judged:
        yield Finding(
            name="language_changes",
            severity="info",
            message=f"{len(crossed)} of {judged} sampled answers are in another language than their prompt",
            value=len(crossed) / judged,
            interval=wilson_interval(len(crossed), judged),
            examples=first(
                f"{columns.ids[sampled.number]}: {quoted(head(sampled.prompt))} ({prompt}), answered in {answer}"
                for sampled, prompt, answer in crossed
            ),
            remedy="Check that this is meant: models pick up the habit of changing the language.",
        )
    if len(names) > 1:
        bars = []
        for name in names[:15]:
            low, high = wilson_interval(counts[name], total)
            bars.append(Bar(label=name, value=counts[name] / total, low=low, high=high))
        yield BarChart(name="languages", title="Languages of the prompts", unit="share", bars=tuple(bars))


def check_topics(columns: Columns, space: Space) -> Iterator[Result]:
    """Clusters of the sample's prompts; of its answers where there are too few different prompts."""
    texts, what = _different(columns.sample)
    found = space.topics(texts) if len(texts) >= MIN_TEXTS else None
    if found is None:
        yield Finding(
            name="topics",
            severity="info",
            message=f"too few different texts ({len(texts)}) to tell topics",
        )
        return
    counts = np.bincount(found.labels)
    shares = counts / counts.sum()
    effective = float(np.exp(-(shares[shares > 0] * np.log(shares[shares > 0])).sum()))
    order = np.argsort(-counts, kind="stable")
    yield Finding(
        name="topics",
        severity="info",
        message=f"the {what} fall into {len(counts)} clusters as different as {effective:.1f} of equal size "
        f"(by {space.name})",
        value={"effective": effective, "largest": float(shares.max())},
        examples=first(f"{shares[n]:.0%}: {found.names[n]}" for n in order.tolist()),
    )
    bars = []
    for n in order.tolist():
        low, high = wilson_interval(int(counts[n]), len(texts))
        bars.append(Bar(label=found.names[n], value=float(shares[n]), low=low, high=high))
    yield BarChart(name="topics", title=f"Topics of the {what}", unit="share of a sample", bars=tuple(bars))


def _different(sample: Sequence[Sampled]) -> tuple[list[str], str]:
    prompts = list(dict.fromkeys(sampled.prompt for sampled in sample))
    if len(prompts) >= MIN_TEXTS:
        return prompts, "prompts"
    return list(dict.fromkeys(answer for sampled in sample for answer in sampled.answers)), "answers"


def check_reach(columns: Columns, held_out: Columns, space: Space) -> Iterator[Finding]:
    """How many evaluation prompts lie as near to a training prompt as training prompts lie to each other.

    "Near" is what 95 % of the training prompts are to their nearest neighbour, so that evaluation data drawn from the
    same source is reached in about 95 %.
    """
    trained = list(dict.fromkeys(sampled.prompt for sampled in columns.sample))
    evaluated = {sampled.prompt: sampled.number for sampled in held_out.sample}
    if min(len(trained), len(evaluated)) < MIN_TEXTS:
        return
    nearest = space.nearest(trained, list(evaluated))
    if nearest is None:
        return
    usual, similarity = nearest
    far = similarity < np.quantile(usual, 0.05)
    interval = wilson_interval(int(far.sum()), len(far))
    order = np.argsort(similarity, kind="stable")
    numbers = list(evaluated.values())
    limits = REACH_LIMITS
    yield Finding(
        name="eval_reach",
        severity="severe" if interval[0] > limits[1] else "warning" if interval[0] > limits[0] else "info",
        message=f"{1 - far.mean():.0%} of the evaluation prompts lie near a training prompt (by {space.name})",
        value=float(1 - far.mean()),
        interval=(1 - interval[1], 1 - interval[0]),
        examples=first(held_out.example(numbers[n]) for n in order.tolist() if far[n]),
        remedy="Collect training prompts of those kinds, or don't judge the model by them.",
    )
