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
    "long-answers": "prompts of 30, answers of 260, all weights",
    "long-prompts": "prompts of 400, answers of 40, all weights",
    "pairs-full-cached": "pairs, all weights, cached reference",
}
ONE = "-one"
"""What the names of cases end in where TRL takes one pair at a time."""

Row = tuple[str, dict[str, Any], dict[str, Any]]


def rows() -> list[Row]:
    """Each measured case: its name with scale of lengths, the file's facts, its results and what each side takes."""
    found = []
    for path in sorted(RESULTS.glob("vs_trl-*.json")):
        facts = json.loads(path.read_text(encoding="utf-8"))
        budget = re.search(r"--budget (\d+)", facts["command"])
        scale = re.search(r"--scale ([\d.]+)", facts["command"])
        scaled = "" if scale and scale[1] == "1" else f", lengths times {scale[1] if scale else 0.25}"
        for case, result in facts["results"].items():
            ours, theirs = budget[1] if budget else "4096", "1" if case.endswith(ONE) else "4"
            found.append((CASES[case.removesuffix(ONE)] + scaled, facts, result | {"at_once": (ours, theirs)}))
    return sorted(found, key=lambda row: ("lengths times" in row[0], row[2]["at_once"][1]))


def main_rows() -> list[Row]:
    """Those that the README shows: TRL at its best setting."""
    return [row for row in rows() if row[2]["at_once"][1] == "1"]


def versus(shown: list[Row]) -> str:
    """Dipole beside TRL, a line a case."""
    lines = [
        "| one optimizer step | times faster | memory | Dipole (tokens at a time) | TRL (pairs at a time) | n |",
        "|---|---|---|---|---|---|",
    ]
    for name, _, result in shown:
        sides = [
            f"{side['seconds'][0]:.1f} s, {side['peak_gb'][0]:.1f} GB ({at_once})"
            for side, at_once in zip((result["dipole"], result["trl"]), result["at_once"], strict=True)
        ]
        (faster, low, high), memory = result["times_faster"], result["memory_ratio"][0]
        spread = f" ({low:.1f}–{high:.1f})" if result["repeats"] > 1 else ""
        cells = [name, f"**{faster:.1f}**{spread}", f"{memory:.2f}", *sides, str(result["repeats"])]
        lines.append(f"| {' | '.join(cells)} |")
    facts = shown[0][1]
    commands = dict.fromkeys(f"`{row[1]['command']}`" for row in shown)
    return "\n".join([*lines, "", f"{facts['model']}, float32, {facts['machine']}; {', '.join(commands)}."])


def shares() -> str:
    """How near the machine's matrix rate both come, and what an engine that reached it would be beside TRL."""
    lines = [
        "| one optimizer step (tokens, TRL's pairs at a time) | matrix rate | Dipole's share of it | TRL's"
        " | times faster at the whole rate |",
        "|---|---|---|---|---|",
    ]
    for name, _, result in rows():
        ours, theirs = (result[side]["share_of_matrix_rate"][0] for side in ("dipole", "trl"))
        cells = [f"{name} ({', '.join(result['at_once'])})", f"{result['matrix_gflops']:.0f} GFLOP/s"]
        cells += [f"{ours:.0%}", f"{theirs:.0%}", f"{1 / theirs:.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
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
    fill(HERE.parent / "README.md", "versus", versus(main_rows()))
    tables = {"versus": versus(rows()), "shares": shares(), "profile": profile(), "tokens": by_tokens()}
    for name, table in tables.items():
        fill(HERE / "speed.md", name, table)


if __name__ == "__main__":
    main()
