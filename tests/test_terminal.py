"""What progress and results look like, where someone watches and where nobody does."""

from __future__ import annotations

import io
import re
import time

import pytest
from rich.console import Console

from dipole import terminal
from dipole.data.audit import Finding
from dipole.evaluate.run_folder import Measure
from dipole.evaluate.stats import Estimate
from dipole.terminal import Bars, Lines


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time in seconds, as its only item."""
    now = [0.0]
    monkeypatch.setattr(terminal, "monotonic", lambda: now[0])
    return now


def lines_and_output() -> tuple[Lines, io.StringIO]:
    output = io.StringIO()
    return Lines(Console(file=output, width=40)), output


def test_lines_say_how_far_it_is_and_how_long_it_takes(clock: list[float]) -> None:
    lines, output = lines_and_output()
    with lines as progress:
        progress.stage("Reading")
        progress.say("A sentence that is longer than the forty columns of this console.")
        progress.stage("Training", total=100)
        for _ in range(100):
            clock[0] += 1.0
            progress.advance(1, "loss 0.6 · 812 tokens/s")
    written = output.getvalue().splitlines()
    assert written[:3] == ["Reading", "A sentence that is longer than the forty columns of this console.", "Training"]
    assert written[3] == "Training: 10 of 100 · loss 0.6 · 812 tokens/s · 1:30 left"
    assert written[-1] == "Training: 100 of 100 · loss 0.6 · 812 tokens/s"
    assert len(written) == 3 + 10


def test_time_left_of_a_resumed_run_counts_its_own_steps(clock: list[float]) -> None:
    lines, output = lines_and_output()
    lines.stage("Training", total=100)
    lines.advance(80)
    for _ in range(10):
        clock[0] += 1.0
        lines.advance()
    assert output.getvalue().splitlines()[-1] == "Training: 90 of 100 · 0:10 left"


def test_a_stage_of_unknown_length(clock: list[float]) -> None:
    lines, output = lines_and_output()
    lines.advance()  # before any stage: nobody to tell
    lines.stage("Converting")
    clock[0] += 3700
    lines.advance()
    assert output.getvalue().splitlines() == ["Converting", "Converting: "]


def test_bars_show_the_note_and_leave_a_line_a_stage(clock: list[float]) -> None:
    output = io.StringIO()
    with Bars(Console(file=output, force_terminal=True, width=120)) as progress:
        progress.stage("Training", total=10)
        clock[0] += 7
        progress.advance(7, "loss 0.6 · 812 tokens/s")
        time.sleep(0.3)  # bars are drawn ten times a second
        progress.say("A sentence.")
        clock[0] += 60
        progress.stage("Saving")
    seen = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output.getvalue())
    assert "7 of 10" in seen
    assert "812 tokens/s" in seen
    assert "  A sentence.\n" in seen
    assert "✓ Training (1:07) · loss 0.6 · 812 tokens/s\n" in seen
    assert "✓ Saving (0:00)\n" in seen


def test_a_stage_that_failed_has_no_check_mark(clock: list[float]) -> None:
    output = io.StringIO()
    bars = Bars(Console(file=output, force_terminal=True))
    bars.__enter__().stage("Training")
    bars.__exit__(ValueError, ValueError(), None)
    assert "✓" not in output.getvalue()


def test_text_of_others_cannot_steer_the_terminal() -> None:
    assert terminal.inert("a\x1b[2Jb\x00\u202e\ud800\tc\n") == "a?[2Jb???\tc\n"
    lines, output = lines_and_output()
    lines.say("[bold]\x1b]0;title\x07")
    assert output.getvalue() == "[bold]?]0;title?\n"


def test_progress_is_plain_where_nobody_watches(capsys: pytest.CaptureFixture[str]) -> None:
    with terminal.progress() as progress:
        assert isinstance(progress, Lines)
        progress.stage("Reading")
    assert capsys.readouterr() == ("", "Reading\n")


def test_the_table_of_measures(capsys: pytest.CaptureFixture[str]) -> None:
    def estimate(value: float) -> Estimate:
        return Estimate(value=value, low=value - 0.07, high=value + 0.07, n=48, method="t")

    unknown = Estimate(value=0.25, low=None, high=None, n=1, method="one value has no interval")
    terminal.show_measures(
        [
            Measure("Sentiment", "", "", estimate(0.3), estimate(0.8), estimate(0.5), "better"),
            Measure("KL", "", "nats", None, unknown, None, None),
        ]
    )
    out = capsys.readouterr().out
    rows = [re.split(r" {2,}", line.strip()) for line in out.splitlines()]
    assert rows[0][:5] == ["measure", "before", "after", "difference", "n"]
    assert rows[1] == [
        "Sentiment",
        "0.300 [0.230, 0.370]",
        "0.800 [0.730, 0.870]",
        "+0.500 [+0.430, +0.570]",
        "48",
        "better",
    ]
    assert rows[2] == ["KL (nats)", "–", "0.250", "–", "1"]
    assert "\x1b" not in out


def test_findings_are_shown_with_examples_and_remedy(capsys: pytest.CaptureFixture[str]) -> None:
    finding = Finding(name="a", severity="severe", message="it is bad", examples=("g1: \x1b[0m",), remedy="Mend it.")
    terminal.show_findings([finding])
    assert capsys.readouterr().out == "severe   it is bad\n           · g1: ?[0m\n           → Mend it.\n"
