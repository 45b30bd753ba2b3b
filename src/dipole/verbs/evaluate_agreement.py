"""``dipole evaluate agreement``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dipole.verbs.verb import Verb


@dataclass(frozen=True, slots=True, kw_only=True)
class AgreementOptions:
    """Judges beside people: agreement, κ, α, calibration, and how people agree with each other."""

    data: str
    """Groups with judgments of people, in any dialect."""
    judges: str
    """Who is asked, with commas between, as in dipole judge: vader,rule:longer,implicit:PATH+REFERENCE,model:PATH …"""
    output: str
    """A folder for agreement.json, agreement.md and pictures."""
    num_groups: int | None = None
    """How many of the groups; all by default."""
    cache: str | None = None
    """The file of a language model's replies, so that nothing is asked twice; by default in the output folder."""
    max_calls: int | None = None
    """Most calls to a server, failed ones included."""
    seed: int = 0
    """Of the intervals."""


def run(options: AgreementOptions) -> int:
    """Shows the table and where the page is."""
    from dipole import terminal
    from dipole.data.formats import load_groups
    from dipole.evaluate.agreement import people_of
    from dipole.evaluate.agreement_page import COLUMNS, ask, table_row, with_ceiling, write_agreement
    from dipole.feedback.budget import Limits
    from dipole.feedback.registry import JudgeOptions, open_judge

    output = Path(options.output)
    output.mkdir(parents=True, exist_ok=True)
    judging = JudgeOptions(cache=options.cache or output / "replies.sqlite", limits=Limits(max_calls=options.max_calls))
    with terminal.progress() as progress:
        groups = load_groups(options.data)[: options.num_groups]
        people = people_of(groups)
        rows = [
            ask(open_judge(name.strip(), judging), groups, people, seed=options.seed, progress=progress)
            for name in options.judges.split(",")
        ]
        rows = with_ceiling(people, rows, seed=options.seed)
        files = write_agreement(people, rows, output)
    terminal.show_table(COLUMNS, [table_row(row) for row in rows])
    terminal.show("In brackets: 95 % intervals. The row 'people' is how people agree with each other.")
    for file in files:
        terminal.show(f"Written: {file}")
    return 0


VERB = Verb(
    run,
    AgreementOptions,
    "dipole evaluate agreement --data groups.jsonl --judges vader,rule:longer --output runs/agreement",
)
