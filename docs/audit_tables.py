"""Fills the tables of audit.md from what the benchmarks measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS = HERE.parent / "benchmarks" / "results"


def alarms(found: dict[str, Any]) -> str:
    """What was planted, how often it was named, what else was raised."""
    lines = ["| data | sets | named | anything else raised |", "|---|---|---|---|"]
    false = ", ".join(f"`{name}` {count}" for name, count in found["false_alarms"].items()) or "nothing"
    lines.append(f"| clean, {found['groups']:,} groups | {found['resamples']} | – | {false} |")
    for name, planted in found["planted"].items():
        expected = planted["expected"]
        others = ", ".join(f"`{other}` {count}" for other, count in planted["raised"].items() if other != expected)
        named = f"`{expected}` in {planted['raised'].get(expected, 0)}"
        lines.append(f"| {name} | {planted['of']} | {named} | {others or 'nothing'} |")
    demo = ", ".join(f"`{name}`" for name in found["demo_alarms"]) or "nothing"
    lines.append(f"| the demo's groups of eight sentences, human ratings | 1 | – | {demo} |")
    return "\n".join(lines)


def speed(found: dict[str, Any]) -> str:
    """Groups a second, and peak memory."""
    lines = [
        f"{found['groups']:,} pairs of 1.2 kB, {found['machine']}, CPU time.",
        "",
        "| | groups a second |",
        "|---|---|",
    ]
    lines += [f"| {name} | {rate:,.0f} |" for name, rate in found.get("groups_per_second", {}).items()]
    lines += ["", "| file | groups | peak memory | CPU time |", "|---|---|---|---|"]
    for name, run in found.get("memory", {}).items():
        peak = run["peak_bytes"] / 2**30
        lines.append(f"| {name} | {run['rows']:,} | {peak:.2f} GB | {run['seconds'] / 60:.1f} min |")
    return "\n".join(lines)


def main() -> None:
    """Writes the page anew."""
    page = HERE / "audit.md"
    text = page.read_text(encoding="utf-8")
    for name, file, table in (("alarms", "audit_alarms.json", alarms), ("speed", "audit.json", speed)):
        found = json.loads((RESULTS / file).read_text(encoding="utf-8"))
        before, begin, rest = text.partition(f"<!-- {name} -->\n")
        text = f"{before}{begin}{table(found)}\n<!-- /{name} -->{rest.partition(f'<!-- /{name} -->')[2]}"
    page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
