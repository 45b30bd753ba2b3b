"""Dipole beside TRL on the same groups, model, hyper-parameters and machine: ``python benchmarks/vs_trl.py --help``.

Every measurement is a process of its own; the two sides alternate. Both take one step of a few tokens to warm up, then
the steps that count. What is known is written after every measurement, so nothing is lost when this is stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "versus"))

import torch
from cases import CASES, MAIN, text_groups, useful_work, write_groups, write_pairs
from environment import build_tiny_model, trl_python
from summary import compare, disagreement, seconds, table
from transformers import AutoConfig, AutoTokenizer

from dipole.policy.embedded import embedded_model

SIDES = Path(__file__).parent / "versus"
RESULTS = Path(__file__).parent / "results"
LIMIT_SECONDS = 3600


def main() -> None:
    options = read_options()
    with tempfile.TemporaryDirectory() as scratch:
        model = build_tiny_model(Path(scratch) / "tiny") if options.model == "tiny" else embedded_model()
        record = Record(options, model)
        specs = {name: prepare_case(name, model, Path(scratch), options, record) for name in runnable(options.cases)}
        for repeat in range(options.repeats):  # so that all cases have the same number when this is stopped
            for name, spec in specs.items():
                measure_both(name, spec, f"{repeat + 1}/{options.repeats}", record)
    print(f"\n{record.table()}\n{record.path}")


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default=",".join(MAIN), help=f"with commas between, or all: {', '.join(CASES)}")
    parser.add_argument("--repeats", type=int, default=3, help="measurements of each side (default: 3)")
    parser.add_argument("--steps", type=int, default=1, help="measured optimizer steps a process (default: 1)")
    parser.add_argument("--scale", type=float, default=0.25, help="of all lengths (default: 0.25; the real one is 1)")
    parser.add_argument("--model", choices=("embedded", "tiny"), default="embedded", help="tiny: only to try this out")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of torch, on both sides")
    parser.add_argument("--budget", type=int, default=4096, help="Dipole's max_tokens_per_microbatch (default: 4096)")
    parser.add_argument("--output", type=Path, help="of the results (default: a new file in benchmarks/results)")
    options = parser.parse_args()
    options.cases = list(CASES) if options.cases == "all" else options.cases.split(",")
    if unknown := [name for name in options.cases if name not in CASES]:
        parser.error(f"no case is called {', '.join(unknown)}; there are {', '.join(CASES)}")
    return options


def runnable(cases: list[str]) -> list[str]:
    """Without those that need a GPU where there is none."""
    if torch.cuda.is_available():
        return cases
    left_out = [name for name in cases if CASES[name].device == "cuda"]
    if left_out:
        print(f"Left out, since there is no GPU here: {', '.join(left_out)}", flush=True)
    return [name for name in cases if name not in left_out]


def prepare_case(name: str, model: Path, scratch: Path, options: argparse.Namespace, record: Record) -> dict[str, Any]:
    """Writes the data of a case; what its processes are told."""
    case = CASES[name]
    tokenizer = AutoTokenizer.from_pretrained(model)
    groups = text_groups(case, tokenizer, steps=options.steps, scale=options.scale)
    for_dipole, for_trl = (scratch / f"{name}-{kind}.jsonl" for kind in ("groups", "pairs"))
    write_groups(groups, for_dipole)
    write_pairs(groups, for_trl)
    total = useful_work(groups[case.groups :], tokenizer, AutoConfig.from_pretrained(model), case)
    record.work[name] = {key: value / options.steps for key, value in total.items()}
    return {
        "case": asdict(case),
        "model": str(model),
        "groups": str(for_dipole),
        "pairs": str(for_trl),
        "pairs_a_step": case.pairs,
        "steps": options.steps,
        "threads": options.threads,
        "beta": 0.1,
        "learning_rate": 1e-6,
        "max_length": 8192 if case.device == "cuda" else 2048,
        "max_tokens_per_microbatch": options.budget,
    }


def measure_both(name: str, spec: dict[str, Any], repeat: str, record: Record) -> None:
    """One repeat of a case: Dipole, then TRL."""
    for side, python in (("dipole", Path(sys.executable)), ("trl", trl_python())):
        found = measure(side, python, spec)
        record.add(name, side, found)
        peak = found["peak_bytes"] / 1e9
        print(f"{name} {repeat} {side}: {seconds(found):.1f} s/step, {peak:.1f} GB", flush=True)
    if reason := disagreement(*(record.found[name][side][-1] for side in ("dipole", "trl"))):
        sys.exit(f"{name}: the two sides don't compute the same: {reason}")


def measure(side: str, python: Path, spec: dict[str, Any]) -> dict[str, Any]:
    """One process; what it wrote."""
    with tempfile.TemporaryDirectory() as folder:
        asked, result = Path(folder, "spec.json"), Path(folder, "result.json")
        asked.write_text(json.dumps(spec))
        command = [str(python), str(SIDES / f"{side}_side.py"), str(asked), str(result)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False)
        if done.returncode:
            sys.exit(f"{side} failed:\n{done.stderr[-3000:]}")
        found: dict[str, Any] = json.loads(result.read_text())
        return found


class Record:
    """All that was measured, in a file that is written anew after every measurement."""

    def __init__(self, options: argparse.Namespace, model: Path) -> None:
        began = datetime.now(UTC)
        self.path: Path = options.output or RESULTS / f"vs_trl-{began:%Y%m%d-%H%M}.json"
        self.work: dict[str, dict[str, float]] = {}
        self.found: dict[str, dict[str, list[dict[str, Any]]]] = {}
        self._facts = {
            "date": began.isoformat(timespec="seconds"),
            "command": " ".join(["python", *sys.argv]),
            "model": model.name,
            "scale": options.scale,
            "threads": options.threads,
            "machine": machine(),
            "load before": round(os.getloadavg()[0], 1),  # of other work; 0 is what a measurement wants
        }

    def add(self, case: str, side: str, measurement: dict[str, Any]) -> None:
        self.found.setdefault(case, {"dipole": [], "trl": []})[side].append(measurement)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        document = self._facts | {"results": self.results(), "work": self.work, "measurements": self.found}
        self.path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        self.path.with_suffix(".md").write_text(self.table(), encoding="utf-8")

    def results(self) -> dict[str, dict[str, Any]]:
        compared = {}
        for name, sides in self.found.items():
            whole = min(map(len, sides.values()))  # of the last repeat only one side may be known
            if whole:
                compared[name] = compare(sides["dipole"][:whole], sides["trl"][:whole], self.work[name])
        return compared

    def table(self) -> str:
        facts = " · ".join(f"{name}: {value}" for name, value in self._facts.items())
        return f"{table(self.results())}\n{facts}\n"


def machine() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    names = [line.partition(":")[2].strip() for line in _cpu_lines() if line.startswith("model name")]
    return f"{(names or [platform.processor() or platform.machine()])[0]}, {os.cpu_count()} cores"


def _cpu_lines() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


if __name__ == "__main__":
    main()
