"""Judges beside people as files: numbers, a page of Markdown, a picture of calibration."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from matplotlib.axes import Axes

from dipole.evaluate.agreement import JudgeAgreement, People, human_ceiling, judge_agreement
from dipole.evaluate.opinion import Opinion, opinions
from dipole.evaluate.page import markdown_table, write_page
from dipole.evaluate.picture import GROUND, LOOKS, Theme, save_picture
from dipole.evaluate.stats import Estimate
from dipole.feedback.judge import Judge, Pair
from dipole.group import Group
from dipole.progress import Progress

COLUMNS = (
    "judge",
    "agrees with a person",
    "with ties",
    "κ",
    "α",
    "with most people",
    "both orders agree",
    "Brier",
    "pairs",
)


def ask(judge: Judge, groups: Sequence[Group], people: People, *, seed: int, progress: Progress) -> JudgeAgreement:
    """A judge's opinions of the pairs that people have judged, beside theirs.

    Raises:
        JudgeError: the judge can't go on.
    """
    wanted: dict[int, list[Pair]] = {}
    for place, pair in people.pairs:
        wanted.setdefault(place, []).append(pair)
    progress.stage(f"Asking {judge.name}", total=len(people.pairs))
    found: dict[tuple[int, Pair], Opinion] = {}
    tasks = [(groups[place], tuple(pairs)) for place, pairs in wanted.items()]
    for (place, pairs), said in zip(wanted.items(), opinions(judge, tasks), strict=True):
        found |= {(place, pair): opinion for pair, opinion in zip(pairs, said, strict=True)}
        progress.advance(len(pairs))
    return judge_agreement(people, judge.name, [found[place, pair] for place, pair in people.pairs], seed=seed)


def with_ceiling(people: People, judges: Sequence[JudgeAgreement], *, seed: int = 0) -> list[JudgeAgreement]:
    """The judges, and people beside each other as the last row where there are two of them on any pair."""
    ceiling = human_ceiling(people, seed=seed)
    return [*judges, *([ceiling] if ceiling else [])]


def write_agreement(people: People, rows: Sequence[JudgeAgreement], folder: Path) -> tuple[Path, ...]:
    """Writes agreement.json, agreement.md and the pictures of calibration."""
    folder.mkdir(parents=True, exist_ok=True)
    facts = {"pairs": len(people.pairs), "votes": len(people.vote), "rows": [row.to_json() for row in rows]}
    numbers = write_page(json.dumps(facts, indent=1) + "\n", folder / "agreement.json")
    pictures = save_calibration(rows, folder)
    page = write_page(_page(people, rows), folder / "agreement.md")
    return (numbers, page, *pictures)


def save_calibration(rows: Sequence[JudgeAgreement], folder: Path) -> list[Path]:
    """Writes calibration-light and calibration-dark, each as SVG and PNG, of the judges that give probabilities."""
    return save_picture(partial(_draw, judges=[row for row in rows if row.calibration]), folder, "calibration")


def category_table(rows: Sequence[JudgeAgreement]) -> list[str]:
    """The lines of a table: how often each judge sides with most people, by category; none without categories."""
    categories = sorted({name for row in rows for name in row.by_category})
    body = [[row.judge, *(shown(row.by_category[name]) for name in categories)] for row in rows]
    return markdown_table(["judge", *categories], body) if categories else []


def table_row(row: JudgeAgreement) -> list[str]:
    """A row under ``COLUMNS``."""
    return [
        row.judge,
        shown(row.without_ties.raw),
        shown(row.with_ties.raw),
        shown(row.without_ties.kappa),
        shown(row.with_ties.alpha),
        shown(row.majority),
        "–" if row.consistent is None else shown(row.consistent),
        "–" if row.brier is None else shown(row.brier),
        str(row.pairs),
    ]


def shown(estimate: Estimate) -> str:
    """A number with its interval."""
    value, low, high = (number if number is None else round(number, 2) + 0.0 for number in _three(estimate))
    if value is None:
        return "–"
    return f"{value:.2f}" if low is None or high is None else f"{value:.2f} [{low:.2f}, {high:.2f}]"


def _three(estimate: Estimate) -> tuple[float | None, float | None, float | None]:
    return estimate.value, estimate.low, estimate.high


def _page(people: People, rows: Sequence[JudgeAgreement]) -> str:
    lines = [
        "# Judges beside people",
        "",
        f"{len(people.vote):,} votes of people on {len(people.pairs):,} pairs; judges see every pair in both orders.",
        "",
        *markdown_table(COLUMNS, [table_row(row) for row in rows]),
        "",
        "*Agrees with a person*, κ: without ties, each single vote of a person. *With ties*, α: a tie agrees with a"
        " tie. *With most people*: sides with the majority; for a person, the majority of the others. The row *people*"
        " is how people agree with each other: no judge can be expected above it. In brackets: 95 % intervals,"
        " clustered by prompt, or by group where all prompts are the same.",
    ]
    if table := category_table(rows):
        lines += ["", "## With most people, by category", "", *table]
    return "\n".join([*lines, "", "![Calibration](calibration-light.png)"]) + "\n"


def _draw(axes: Axes, theme: Theme, *, judges: Sequence[JudgeAgreement]) -> None:
    axes.plot([0, 1], [0, 1], color=GROUND[theme][1], linewidth=0.8, dashes=(4, 3), zorder=1)
    for number, row in enumerate(judges):
        look = LOOKS[number % len(LOOKS)]
        for part in row.calibration:
            if part.found.low is not None and part.found.high is not None:
                axes.plot([part.said] * 2, [part.found.low, part.found.high], color=look.color(theme), alpha=0.5)
        axes.plot(
            [part.said for part in row.calibration if part.found.value is not None],
            [part.found.value for part in row.calibration if part.found.value is not None],
            color=look.color(theme),
            marker=look.marker,
            markersize=5,
            linestyle=look.dashes,
            linewidth=1.2,
            label=row.judge,
        )
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_xlabel("probability that the judge gives")
    axes.set_ylabel("share of people's votes")
