"""One self-contained page of an audit: ``audit.html``. Like a run's report it holds no script and loads nothing."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import jinja2
from markupsafe import Markup

from dipole.data.audit import AuditReport, Finding
from dipole.evaluate import plots
from dipole.evaluate.headline import number
from dipole.evaluate.page import environment, write_page

SECTIONS = (
    ("Coverage", ("length", "turns", "language", "topics", "eval_reach", "num_tokens")),
    ("Duplicates", ("duplicate", "near_")),
    (
        "Consistency",
        (
            "contradictions",
            "cycles",
            "agreement",
            "annotator_apart",
            "position_bias",
            "annotator_speed",
            "label_noise",
            "ties",
            "rejected_likelier",
            "absurd",
        ),
    ),
    ("Balance", ("categories", "annotator_share", "source")),
    ("Shortcuts", ("longer_preferred", "_only", "prompt_repeated")),
    ("Tokens", ("truncation", "template", "special_tokens", "shared_prefix", "suggested")),
    ("Personal data", ("personal_data", "secrets")),
)
"""Heading, and parts of the names of what stands under it; what fits nowhere comes last."""


def write_audit_report(report: AuditReport, page: Path, *, name: str) -> Path:
    """Writes the page; an older one is replaced at once or not at all.

    Args:
        report: what to show.
        page: the file.
        name: of the data, for the heading.
    """
    return write_page(render(report, name), page)


def render(report: AuditReport, name: str) -> str:
    """The page as HTML."""
    sizes = [finding for finding in report.findings if finding.name.startswith("num_")]
    findings = [finding for finding in report.findings if finding not in sizes]
    charts = {chart.name: (chart, Markup(svg)) for chart in report.charts if (svg := plots.bar_chart(chart))}
    worries = [finding for finding in findings if finding.severity != "info"]
    facts = _sections([finding for finding in findings if finding.severity == "info"])
    return _template().render(
        name=name,
        headline=_headline(report.errors, worries),
        sizes=[(finding.message.partition(" ")[2], finding.message.partition(" ")[0]) for finding in sizes],
        errors=report.errors,
        worries=worries,
        facts=facts,
        charts=list(charts.values()),
        severities=Counter(finding.severity for finding in worries),
    )


def _headline(errors: tuple[Finding, ...], worries: list[Finding]) -> str:
    if errors:
        return f"Training would stop: {_counted(len(errors), 'kind')} of error"
    severe = sum(finding.severity == "severe" for finding in worries)
    if severe:
        return f"{_counted(severe, 'severe finding')} to look into before training"
    return f"{_counted(len(worries), 'warning')} and no error" if worries else "Nothing to worry about"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _sections(findings: list[Finding]) -> list[tuple[str, list[Finding]]]:
    sections: dict[str, list[Finding]] = {heading: [] for heading in (*(heading for heading, _ in SECTIONS), "More")}
    for finding in findings:
        fits = (heading for heading, parts in SECTIONS if any(part in finding.name for part in parts))
        sections[next(fits, "More")].append(finding)
    return [(heading, members) for heading, members in sections.items() if members]


def _template() -> jinja2.Template:
    templates = environment()
    templates.filters["number"] = number
    return templates.get_template("audit.html.jinja")
