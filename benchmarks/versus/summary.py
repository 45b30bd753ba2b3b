"""From measurements to a table: whether both sides saw the same loss, and ratios with their range."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

TOLERANCE = 1e-4
Measurement = Mapping[str, Any]


def disagreement(left: Measurement, right: Measurement) -> str | None:
    """Why two measurements of the same groups are no measurements of the same thing; ``None`` when they are.

    Compared are the losses of every step, in absolute terms, and the log-probabilities, relative to their size.
    """
    for step, (one, other) in enumerate(zip(left["steps"], right["steps"], strict=True)):
        for name in ("loss", "logps/chosen", "logps/rejected"):
            scale = 1.0 if name == "loss" else max(1.0, abs(one[name]))
            if not abs(one[name] - other[name]) <= TOLERANCE * scale:
                return f"step {step}: {name} is {one[name]:.6f} and {other[name]:.6f}"
    return None


def seconds(measurement: Measurement, name: str = "seconds") -> float:
    """A measured step's, on average; the first step only warms up."""
    return statistics.fmean(row[name] for row in measurement["steps"][1:])


def rate(measurements: Sequence[Measurement]) -> float:
    """The machine's matrix rate: the best seen in a case's processes."""
    return max(max(measurement["matrix_rate"]) for measurement in measurements)


def compare(dipole: Sequence[Measurement], trl: Sequence[Measurement], work: Mapping[str, float]) -> dict[str, Any]:
    """One case, repeat by repeat; each value as (median, lowest, highest).

    Args:
        dipole: its measurements.
        trl: its measurements, each taken right after Dipole's of the same index.
        work: useful tokens and operations a step.
    """
    both = list(zip(dipole, trl, strict=True))
    best = rate([*dipole, *trl])

    def each(side: Sequence[Measurement]) -> dict[str, tuple[float, float, float]]:
        return {
            "seconds": spread([seconds(item) for item in side]),
            "cpu_seconds": spread([seconds(item, "cpu_seconds") for item in side]),
            "tokens_per_second": spread([work["tokens"] / seconds(item) for item in side]),
            "peak_gb": spread([item["peak_bytes"] / 1e9 for item in side]),
            "share_of_matrix_rate": spread([work["operations"] / seconds(item) / best for item in side]),
        }

    return {
        "repeats": len(both),
        "matrix_gflops": best / 1e9,
        "dipole": each(dipole),
        "trl": each(trl),
        "times_faster": spread([seconds(theirs) / seconds(ours) for ours, theirs in both]),
        "times_less_cpu": spread([seconds(b, "cpu_seconds") / seconds(a, "cpu_seconds") for a, b in both]),
        "memory_ratio": spread([ours["peak_bytes"] / theirs["peak_bytes"] for ours, theirs in both]),
    }


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, lowest, highest."""
    return statistics.median(values), min(values), max(values)


HEADER = (
    "| case | times faster | by CPU time | memory ratio | Dipole s/step | TRL s/step | Dipole tokens/s | TRL tokens/s"
    " | Dipole GB | TRL GB | share of matrix rate: Dipole | TRL | repeats |\n" + "|---" * 13 + "|\n"
)


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown: a row a case."""
    rows = []
    for name, found in results.items():
        ours, theirs = found["dipole"], found["trl"]
        cells = [
            name,
            f"**{_range(found['times_faster'], '.1f')}**",
            _range(found["times_less_cpu"], ".1f"),
            _range(found["memory_ratio"], ".2f"),
            *(_range(side["seconds"], ".1f") for side in (ours, theirs)),
            *(f"{side['tokens_per_second'][0]:.0f}" for side in (ours, theirs)),
            *(f"{side['peak_gb'][0]:.1f}" for side in (ours, theirs)),
            *(_range(side["share_of_matrix_rate"], ".0%") for side in (ours, theirs)),
            str(found["repeats"]),
        ]
        rows.append("| " + " | ".join(cells) + " |\n")
    return HEADER + "".join(rows)


def _range(values: Sequence[float], form: str) -> str:
    median, low, high = (format(value, form) for value in values)
    return median if low == high else f"{median} ({low}–{high})"
