"""``dipole aggregate``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dipole.errors import ConfigError
from dipole.verbs.verb import Verb

if TYPE_CHECKING:
    from dipole.feedback.aggregate import Annotator, Source, Summary

SHOWN = 20
"""Most annotators of the table; a report has all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AggregateOptions:
    """Makes one probability of the judgments of several annotators, and says how far each can be relied on."""

    data: str
    """A file of judged groups in any dialect."""
    output: str
    """The file of labels to write, .jsonl or .jsonl.gz: what ``dipole train`` takes."""
    method: Literal["majority", "one_coin", "bradley_terry", "plackett_luce"] = "one_coin"
    """``majority``: the share of votes. ``one_coin``: who is right how often is estimated with what is right.
    ``bradley_terry``, ``plackett_luce``: strengths of all answers to a prompt, from comparisons or rankings."""
    labels: Literal["soft", "weighted", "hard"] = "soft"
    """``soft`` keeps the probability p; ``weighted`` takes the likelier side with the weight |2p − 1|; ``hard`` takes
    it."""
    min_p: float = 0.5
    """Pairs whose likelier side is less likely than this are left out."""
    smoothing: float | None = None
    """Of majority: votes for either side that everyone starts with. 1 by default; 0 gives bare shares."""
    annotator_groups: str | None = None
    """A CSV file with the columns annotator and group, or a JSON object: how far the groups differ is measured then."""
    group_weights: str | None = None
    """``equal``, or such as ``nurses=2,doctors=1``: each group of annotators counts this much on every pair."""
    report: str | None = None
    """A folder for aggregate.json and aggregate.html."""


def run(options: AggregateOptions) -> int:
    """Writes the labels, and shows who judged and what can't be told."""
    from dipole import terminal
    from dipole.data.formats import load_groups, save_groups
    from dipole.feedback.aggregate import aggregate, read_kinds, with_labels

    if Path(options.output).resolve() == Path(options.data).resolve():
        raise ConfigError("this is the file that is read", where=f"--output {options.output}", remedy="Name another")
    groups = load_groups(options.data)
    kinds = read_kinds(options.annotator_groups) if options.annotator_groups is not None else None
    summary = aggregate(
        groups, options.method, smoothing=options.smoothing, kinds=kinds, kind_weights=options.group_weights
    )
    written, counts = with_labels(groups, summary.aggregation, labels=options.labels, min_p=options.min_p)
    save_groups(written, options.output)
    _show(summary)
    listed = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in counts.items())
    terminal.show(f"{options.output}: {listed}")
    if options.report is not None:
        from dipole.evaluate.aggregate_report import write_aggregate

        for file in write_aggregate(summary, Path(options.report), name=Path(options.data).name):
            terminal.show(f"Written: {file}")
    return 0


def _show(summary: Summary) -> None:
    from dipole import terminal

    found = summary.aggregation
    right = "right" if found.method == "one_coin" else "with most"
    columns = ("annotator", "votes", right, "takes the first shown", "ties")
    terminal.show_table(columns, [_annotator(item) for item in found.annotators[:SHOWN]])
    if len(found.annotators) > SHOWN:
        terminal.show(f"… and {len(found.annotators) - SHOWN:,} more")
    terminal.show("In brackets: 95 % intervals. –: the votes don't tell.")
    if summary.sources:
        terminal.show("")
        terminal.show_table(("source", "votes", "strength (log-odds)", ""), [_source(item) for item in summary.sources])
    for item in summary.differences:
        if item.gap is not None and item.within is not None and item.between is not None:
            around = f" [{item.gap_interval[0]:+.0%}, {item.gap_interval[1]:+.0%}]" if item.gap_interval else ""
            terminal.show(
                f"{item.kinds[0]} and {item.kinds[1]}: votes agree in {item.within:.0%} within a group, in"
                f" {item.between:.0%} across; gap {item.gap:+.0%}{around}; opposite majorities on {item.contrary} of"
                f" {item.num_pairs} pairs"
            )
        else:
            terminal.show(f"{item.kinds[0]} and {item.kinds[1]}: too few pairs that two of one group judged to compare")
    for note in found.notes:
        terminal.show(f"Note: {note}.")


def _annotator(item: Annotator) -> tuple[str, ...]:
    return (
        item.name,
        f"{item.num_votes:,}",
        _share(item.reliability, item.reliability_interval),
        _share(item.side_bias, item.side_bias_interval),
        f"{item.tie_share:.0%}",
    )


def _share(value: float | None, interval: tuple[float, float] | None) -> str:
    if value is None:
        return "–"
    return f"{value:.0%}" + (f" [{interval[0]:.0%}, {interval[1]:.0%}]" if interval else "")


def _source(item: Source) -> tuple[str, ...]:
    around = f" [{item.interval[0]:+.2f}, {item.interval[1]:+.2f}]" if item.interval else ""
    remark = "" if item.finite else "held by the prior: it never won, never lost, or only through those it beat"
    part = f"not compared with others above; part {item.part + 1}" if item.part else ""
    return item.name, f"{item.num_votes:,}", f"{item.strength:+.2f}{around}", "; ".join(filter(None, (part, remark)))


VERB = Verb(
    run,
    AggregateOptions,
    "dipole aggregate --data votes.jsonl --method one_coin --output labels.jsonl --report runs/votes",
)
