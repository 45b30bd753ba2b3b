"""What became of the rounds so far: one row each, warnings, and whether a rule says to stop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dipole.data.formats import load_groups
from dipole.evaluate.rounds import Outcome, change, outcomes, overoptimised
from dipole.evaluate.stats import Estimate, verdict
from dipole.iterate.folder import read_json, round_of
from dipole.iterate.settings import IterateConfig, StopSettings
from dipole.train.track import write_json


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundRow:
    """One round in the summary.

    Args:
        number: from 0, the first model.
        numbers: of ``evaluation.json``.
        pairs: what became of its pairs, by reason.
        changes: reward against the round before, by the judge's part.
        warnings: sentences without their full stop.
    """

    number: int
    numbers: Mapping[str, Any]
    pairs: Mapping[str, Any] = field(default_factory=dict)
    changes: Mapping[str, Estimate] = field(default_factory=dict)
    warnings: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """All rounds so far.

    Args:
        output: their folder.
        rounds: a row each.
        policy: of the last round: a model's folder, or an adapter's.
        stopped: the rule that ended them before their number was reached, in words.
    """

    output: Path
    rounds: Sequence[RoundRow]
    policy: str
    stopped: str | None

    def to_json(self) -> dict[str, Any]:
        """As ``rounds.json`` holds it."""
        return {
            "schema": 1,
            "policy": str(Path(self.policy).relative_to(self.output)) if len(self.rounds) > 1 else self.policy,
            "stopped": self.stopped,
            "rounds": [
                {
                    **row.numbers,
                    "pairs": dict(row.pairs),
                    "changes": {part: asdict(item) for part, item in row.changes.items()},
                    "warnings": list(row.warnings),
                }
                for row in self.rounds
            ],
        }


def summarise(config: IterateConfig, output: Path, last: int) -> Summary:
    """Reads the rounds up to ``last`` and writes ``rounds.json``."""
    rows: list[RoundRow] = []
    before: dict[str, list[Outcome]] = {}
    for number in range(last + 1):
        row, before = _row(config, output, number, before)
        rows.append(row)
    policy = config.model if last == 0 else str(round_of(output, last).run / "final")
    stopped = reason_to_stop(config.stop, rows) if last < (config.rounds or 0) else None
    summary = Summary(output=output, rounds=rows, policy=policy, stopped=stopped)
    write_json(output / "rounds.json", summary.to_json())
    return summary


def _row(
    config: IterateConfig, output: Path, number: int, before: Mapping[str, list[Outcome]]
) -> tuple[RoundRow, dict[str, list[Outcome]]]:
    round = round_of(output, number)
    numbers = read_json(round.evaluation)
    seen = {part: outcomes(load_groups(round.compared(part))) for part in numbers["judges"]}
    changes = {part: change(own, before.get(part)) for part, own in seen.items()}
    warnings = []
    if "held_out" in changes and (found := overoptimised(changes["training"], changes["held_out"])):
        warnings.append(found)
    facts = round.recorded().get("pair", {})
    pairs = {name: count for name, count in facts.items() if isinstance(count, int)}
    return RoundRow(number=number, numbers=numbers, pairs=pairs, changes=changes, warnings=warnings), seen


def reason_to_stop(rules: StopSettings, rows: Sequence[RoundRow]) -> str | None:
    """The rule that the last round meets, in words; ``None`` if there is none."""
    last = rows[-1]
    if last.number == 0:
        return None
    if rules.no_gain and verdict(last.changes["training"]) != "better":
        return f"round {last.number} brought no gain by the training judge beyond its interval"
    if rules.held_out_falls and verdict(last.changes["held_out"]) == "worse":
        return f"the held-out judge sees a loss in round {last.number}"
    spent = (last.numbers["kl"] or {}).get("value")
    if rules.max_kl is not None and spent is not None and spent > rules.max_kl:
        return f"KL(policy‖first model) is {spent:.1f} nats after round {last.number}, above {rules.max_kl:g}"
    return None
