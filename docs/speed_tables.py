"""Fills the tables of speed.md and README.md from what the benchmarks measured."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS = HERE.parent / "benchmarks" / "results"
CASES = {
    "pairs-full": "pairs, all weights",
    "pairs-lora": "pairs, LoRA",
    "groups-full": "groups of four ranked answers, all weights",
}


def rows() -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Each measured case: its name with token budget and scale of lengths, the file's facts, its results."""
    found = []
    for path in sorted(RESULTS.glob("vs_trl-*.json")):
        facts = json.loads(path.read_text(encoding="utf-8"))
        budget = re.search(r"--budget (\d+)", facts["command"])
        scale = re.search(r"--scale ([\d.]+)", facts["command"])
        scaled = "" if scale and scale[1] == "1" else f", lengths times {scale[1] if scale else 0.25}"
        for case, result in facts["results"].items():
            name = f"{CASES.get(case, case)}, {budget[1] if budget else 4096} tokens at a time{scaled}"
            found.append((name, facts, result))
    return found


def versus() -> str:
    """Dipole beside TRL, a line a case."""
    lines = [
        "| one optimizer step | times faster | memory | Dipole | TRL | n |",
        "|---|---|---|---|---|---|",
    ]
    for name, _, result in rows():
        sides = [
            f"{side['seconds'][0]:.1f} s, {side['peak_gb'][0]:.1f} GB" for side in (result["dipole"], result["trl"])
        ]
        (faster, low, high), memory = result["times_faster"], result["memory_ratio"][0]
        spread = f" ({low:.1f}–{high:.1f})" if result["repeats"] > 1 else ""
        cells = [name, f"**{faster:.1f}**{spread}", f"{memory:.2f}", *sides, str(result["repeats"])]
        lines.append(f"| {' | '.join(cells)} |")
    facts = rows()[0][1]
    commands = dict.fromkeys(f"`{row[1]['command']}`" for row in rows())
    return "\n".join([*lines, "", f"{facts['model']}, float32, {facts['machine']}; {', '.join(commands)}."])


def shares() -> str:
    """How near the machine's matrix rate both come."""
    lines = ["| one optimizer step | matrix rate | Dipole's share of it | TRL's |", "|---|---|---|---|"]
    lines += [
        f"| {name} | {result['matrix_gflops']:.0f} GFLOP/s | {result['dipole']['share_of_matrix_rate'][0]:.0%}"
        f" | {result['trl']['share_of_matrix_rate'][0]:.0%} |"
        for name, _, result in rows()
    ]
    return "\n".join(lines)


def profile() -> str:
    """Where the time of a step goes."""
    found = json.loads((RESULTS / "profile_step.json").read_text(encoding="utf-8"))
    lines = ["| operator | share of the time |", "|---|---|"]
    lines += [f"| {name} | {share:.1%} |" for name, share in found["shares"].items()]
    note = f"Of the operators' own time in a step of {found['tokens']:,.0f} useful tokens; `{found['command']}`."
    return "\n".join([*lines, "", note])


def by_tokens() -> str:
    """What a step costs by its tokens."""
    found = json.loads((RESULTS / "tokens_a_step.json").read_text(encoding="utf-8"))
    lines = ["| tokens a step | CPU seconds | CPU ms for 1,000 tokens | peak memory |", "|---|---|---|---|"]
    lines += [
        f"| {row['tokens']:,.0f} | {row['cpu_seconds']:.1f} | {1e6 * row['cpu_seconds'] / row['tokens']:.0f}"
        f" | {row['peak_gb']:.2f} GB |"
        for row in found["rows"]
    ]
    return "\n".join([*lines, "", f"`{found['command']}`, {found['date'][:10]}."])


def fill(page: Path, name: str, table: str) -> None:
    """Writes a table between its two comments."""
    text = page.read_text(encoding="utf-8")
    before, begin, rest = text.partition(f"<!-- {name} -->\n")
    page.write_text(f"{before}{begin}{table}\n<!-- /{name} -->{rest.partition(f'<!-- /{name} -->')[2]}", "utf-8")


def main() -> None:
    """Writes the pages anew."""
    fill(HERE.parent / "README.md", "versus", versus())
    for name, table in (("versus", versus()), ("shares", shares()), ("profile", profile()), ("tokens", by_tokens())):
        fill(HERE / "speed.md", name, table)


if __name__ == "__main__":
    main()
