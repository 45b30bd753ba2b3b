"""The page of an audit: what is on it, that it is inert, and that it loads nothing."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from dipole.data.audit import AuditReport, Bar, BarChart, Finding
from dipole.evaluate.audit_report import render, write_audit_report

HOSTILE = "<script>alert(1)</script> $x^{2 \ud83d \x1b[2J & ]]> </svg>"
CHART = BarChart(
    name="a",
    title="A chart",
    unit="share",
    bars=(Bar(label="one", value=0.5, low=0.4, high=0.6), Bar(label="日本語 العربية", value=0.2)),
    level=0.5,
)


def finding(name: str, severity: str = "info", **fields: object) -> Finding:
    return Finding(name=name, severity=severity, message=f"about {name}", **fields)  # type: ignore[arg-type]


def report(*findings: Finding, errors: tuple[Finding, ...] = (), charts: tuple[BarChart, ...] = ()) -> AuditReport:
    return AuditReport(errors=errors, findings=findings, charts=charts)


class Tags(HTMLParser):
    """Names and attributes of all tags."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


@pytest.mark.parametrize(
    ("given", "headline"),
    [
        (report(), "Nothing to worry about"),
        (report(finding("a", "warning")), "1 warning and no error"),
        (report(finding("a", "severe"), finding("b", "warning")), "1 severe finding to look into before training"),
        (report(errors=(finding("a", "severe"), finding("b", "severe"))), "Training would stop: 2 kinds of error"),
    ],
)
def test_the_headline(given: AuditReport, headline: str) -> None:
    assert f"<h1>{headline}</h1>" in render(given, "data.jsonl")


def test_every_finding_is_there_with_its_interval_examples_and_remedy() -> None:
    worry = finding("cycles", "warning", interval=(0.25, 0.5), examples=("g1: 'x'",), remedy="Mend it.")
    page = render(report(worry, finding("num_groups"), finding("unknown")), "data.jsonl")
    for expected in ("about cycles", "0.250 to 0.500", "g1: &#39;x&#39;", "Mend it.", "about unknown", "<h3>More</h3>"):
        assert expected in page


@pytest.mark.parametrize("upright", [True, False])
def test_charts_are_drawn_with_names_of_any_script(upright: bool) -> None:
    chart = BarChart(name="b", title="Title", unit="u", bars=CHART.bars, upright=upright)
    page = render(report(charts=(CHART, chart)), "data.jsonl")
    assert page.count("<svg") == 2
    assert "日本語" in page
    assert 'aria-label="A chart, share: one 0.5;' in page


def test_a_chart_without_bars_is_left_out() -> None:
    assert "<svg" not in render(report(charts=(BarChart(name="a", title="A", unit="u", bars=()),)), "d")


def test_hostile_text_is_inert(tmp_path: Path) -> None:
    bad = finding("x", "severe", examples=(HOSTILE,), remedy=HOSTILE)
    chart = BarChart(name="a", title=HOSTILE, unit="u", bars=(Bar(label=HOSTILE, value=1.0),))
    path = write_audit_report(report(bad, errors=(bad,), charts=(chart,)), tmp_path / "audit.html", name=HOSTILE)
    page = path.read_text(encoding="utf-8")
    tags = Tags(page).found
    assert "script" not in {tag for tag, _ in tags}
    assert not [name for _, attributes in tags for name in attributes if name.startswith("on")]


def test_the_page_loads_nothing() -> None:
    page = render(report(finding("a"), charts=(CHART,)), "data.jsonl")
    assert "default-src 'none'" in page
    for tag, attributes in Tags(page).found:
        for name in ("src", "href", "xlink:href", "action", "srcset"):
            assert (attributes.get(name) or "#").startswith(("#", "data:")), (tag, attributes)
    assert not re.search(r"url\((?!#)", page)


def test_the_same_report_gives_the_same_page() -> None:
    given = report(finding("a"), charts=(CHART,))
    assert render(given, "d") == render(given, "d")
