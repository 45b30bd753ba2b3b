"""Fills the tables of speed.md and README.md from what the benchmarks measured."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks" / "versus"))

from cases import CASES

HERE = Path(__file__).parent
RESULTS = HERE.parent / "benchmarks" / "results"
NAMES = {
    "pairs-full": "pairs, all weights",
    "pairs-lora": "pairs, LoRA",
    "groups-full": "groups of four ranked answers, all weights",
    "long-answers": "prompts of 30, answers of 260, all weights",
    "long-prompts": "prompts of 400, answers of 40, all weights",
    "pairs-full-cached": "pairs, all weights, cached reference",
}
"""Of cases, whatever the number of pairs that TRL takes at a time."""


class Row(NamedTuple):
    """One measured case.

    Args:
        name: for people, with the scale of its lengths where that isn't 1.
        scale: of its lengths.
        tokens: that Dipole takes at a time.
        pairs: that TRL takes at a time.
        facts: of the file it is in.
        result: what was found.
    """

    name: str
    scale: float
    tokens: int
    pairs: int
    facts: dict[str, Any]
    result: dict[str, Any]


def rows() -> list[Row]:
    """All measured cases: real lengths first, then TRL's best setting first."""
    found = []
    for path in sorted(RESULTS.glob("vs_trl-*.json")):
        facts = json.loads(path.read_text(encoding="utf-8"))
        scale, budget = facts["scale"], re.search(r"--budget (\d+)", facts["command"])
        for case, result in facts["results"].items():
            short = case.removesuffix("-one")
            name = NAMES.get(short, short) + ("" if scale == 1 else f", lengths times {scale:g}")
            found.append(Row(name, scale, int(budget[1]) if budget else 4096, CASES[case].trl_rows, facts, result))
    return sorted(found, key=lambda row: (-row.scale, row.pairs))


def versus(shown: list[Row]) -> str:
    """Dipole beside TRL, a line a case."""
    lines = [
        "| one optimizer step | times faster | memory | Dipole (tokens at a time) | TRL (pairs at a time) | n |",
        "|---|---|---|---|---|---|",
    ]
    for row in shown:
        (faster, low, high), memory = row.result["times_faster"], row.result["memory_ratio"][0]
        spread = f" ({low:.1f}–{high:.1f})" if row.result["repeats"] > 1 else ""
        sides = [
            f"{side['seconds'][0]:.1f} s, {side['peak_gb'][0]:.1f} GB ({at_once})"
            for side, at_once in ((row.result["dipole"], row.tokens), (row.result["trl"], row.pairs))
        ]
        cells = [row.name, f"**{faster:.1f}**{spread}", f"{memory:.2f}", *sides, str(row.result["repeats"])]
        lines.append(f"| {' | '.join(cells)} |")
    facts = shown[0].facts
    commands = dict.fromkeys(f"`{row.facts['command']}`" for row in shown)
    return "\n".join([*lines, "", f"{facts['model']}, float32, {facts['machine']}; {', '.join(commands)}."])


def shares() -> str:
    """How near the machine's matrix rate both come, and what an engine that reached it would be beside TRL."""
    lines = [
        "| one optimizer step (tokens, TRL's pairs at a time) | matrix rate | Dipole's share of it | TRL's"
        " | times faster at the whole rate |",
        "|---|---|---|---|---|",
    ]
    for row in rows():
        ours, theirs = (row.result[side]["share_of_matrix_rate"][0] for side in ("dipole", "trl"))
        cells = [f"{row.name} ({row.tokens}, {row.pairs})", f"{row.result['matrix_gflops']:.0f} GFLOP/s"]
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


def alone() -> str:
    """The head, attention and the optimizer, each beside a plain one: those two follow each other in the file."""
    found = json.loads(max(RESULTS.glob("head-and-attention-*.json")).read_text(encoding="utf-8"))
    lines = ["| what | Dipole's | beside it | time | memory |", "|---|---|---|---|---|"]
    for ours, plain in zip(found["rows"][::2], found["rows"][1::2], strict=True):
        size = f"vocabulary {ours['vocabulary']:,}, " if "vocabulary" in ours else ""
        trained = {True: ", trained", False: ", frozen", None: ""}[ours.get("trained")]
        cells = [f"{ours['what']}{trained}: {size}{ours['tokens']:,.0f}"]
        cells += [f"{side['kind']}: {side['seconds']:.2f} s, {side['peak_gb']:.1f} GB" for side in (ours, plain)]
        cells += [f"{ours[key] / plain[key]:.2f}" for key in ("seconds", "peak_gb")]
        lines.append(f"| {' | '.join(cells)} |")
    note = f"`{found['command']}`, {found['threads']} threads, the best of its repeats, {found['date'][:10]}."
    return "\n".join([*lines, "", f"Tokens, or weights for AdamW. {note}"])


def filled(page: Path, tables: dict[str, str]) -> str:
    """The page's text with each table between its two comments."""
    text = page.read_text(encoding="utf-8")
    for name, table in tables.items():
        before, begin, rest = text.partition(f"<!-- {name} -->\n")
        text = f"{before}{begin}{table}\n<!-- /{name} -->{rest.partition(f'<!-- /{name} -->')[2]}"
    return text


def pages() -> dict[Path, str]:
    """Both pages as they have to be. The README shows TRL at its best setting."""
    whole = {
        "versus": versus(rows()),
        "shares": shares(),
        "profile": profile(),
        "tokens": by_tokens(),
        "alone": alone(),
    }
    best = versus([row for row in rows() if row.pairs == 1])
    readme, speed = HERE.parent / "README.md", HERE / "speed.md"
    return {readme: filled(readme, {"versus": best}), speed: filled(speed, whole)}


def main() -> None:
    """Writes the pages anew."""
    for page, text in pages().items():
        page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
