"""What aggregation found, as a file of numbers and one self-contained page."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from markupsafe import Markup

from dipole.data.audit import Bar, BarChart
from dipole.evaluate.page import environment, write_page
from dipole.evaluate.plots import bar_chart
from dipole.feedback.aggregate import Annotator, Source, Summary

SHOWN = 30
"""Most annotators of a chart, the busiest."""

BINS = 10


def write_aggregate(summary: Summary, folder: Path, *, name: str) -> tuple[Path, Path]:
    """Writes ``aggregate.json`` and ``aggregate.html``.

    Args:
        summary: what to show.
        folder: is made where it is missing.
        name: of the data, for the heading.
    """
    folder.mkdir(parents=True, exist_ok=True)
    numbers = write_page(json.dumps(summary.to_json(), indent=1, ensure_ascii=False) + "\n", folder / "aggregate.json")
    return numbers, write_page(render(summary, name), folder / "aggregate.html")


def render(summary: Summary, name: str) -> str:
    """The page as HTML."""
    charts = [(chart, svg) for chart in _charts(summary) if (svg := bar_chart(chart))]
    return (
        environment()
        .get_template("aggregate.html.jinja")
        .render(
            name=name,
            found=summary.aggregation,
            num_votes=int(summary.aggregation.pairs.num_votes.sum()),
            num_pairs=len(summary.aggregation.pairs.p),
            differences=summary.differences,
            sources=summary.sources,
            charts=[(chart, Markup(svg)) for chart, svg in charts],
        )
    )


def _charts(summary: Summary) -> list[BarChart]:
    people = summary.aggregation.annotators[:SHOWN]
    one_coin = summary.aggregation.method == "one_coin"
    reliability = [bar for person in people if (bar := _reliability(person))]
    bias = [bar for person in people if (bar := _bias(person))]
    return [
        BarChart(
            name="reliability",
            title="How often each annotator is right"
            if one_coin
            else "How often each annotator says what most others say",
            unit="share of pairs that aren't ties",
            bars=tuple(reliability),
            level=0.5,
        ),
        BarChart(
            name="side",
            title="How often each annotator takes what was shown first",
            unit="share, were both equally good" if one_coin else "share of pairs that aren't ties",
            bars=tuple(bias),
            level=0.5,
        ),
        BarChart(
            name="certainty",
            title="How certain the labels are",
            unit="probability of the likelier side",
            bars=_certainty(summary),
            upright=True,
        ),
        BarChart(
            name="sources",
            title="Strength of each source",
            unit="log-odds against the average",
            bars=tuple(_strength(source) for source in summary.sources),
            level=0.0,
        ),
    ]


def _reliability(person: Annotator) -> Bar | None:
    if person.reliability is None:
        return None
    low, high = person.reliability_interval or (None, None)
    return Bar(label=person.name, value=person.reliability, low=low, high=high)


def _bias(person: Annotator) -> Bar | None:
    if person.side_bias is None:
        return None
    low, high = person.side_bias_interval or (None, None)
    return Bar(label=person.name, value=person.side_bias, low=low, high=high)


def _strength(source: Source) -> Bar:
    low, high = source.interval or (None, None)
    return Bar(label=source.name, value=source.strength, low=low, high=high)


def _certainty(summary: Summary) -> tuple[Bar, ...]:
    p = summary.aggregation.pairs.p
    counts, edges = np.histogram(np.maximum(p, 1 - p), bins=BINS, range=(0.5, 1.0))
    return tuple(Bar(label=f"{edge:.2f}", value=float(count)) for edge, count in zip(edges, counts, strict=False))
