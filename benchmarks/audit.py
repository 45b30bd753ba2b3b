"""How fast an audit is on one core, and how much memory a large file takes; writes benchmarks/results/audit.json.

Groups are pairs of a prompt of 20 to 60 words with answers of 40 to 120 words of real reviews, 1.2 kB a row. Times are
those of the process (CPU), the best of three; every size runs in a process of its own.

    python benchmarks/audit.py [--groups 20000] [--depths errors,cheap,full] [--gigabytes 0.2]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"  # before numpy is imported: one core

sys.path[0] = str(Path(__file__).parent.parent / "tests" / "data")  # for planted
RESULTS = Path(__file__).parent / "results" / "audit.json"
REPEATS = 3

LARGE = """
import json, resource, sys, time
from dipole.auditing import audit_data
began = time.process_time()
report = audit_data(sys.argv[1], depth=sys.argv[2])
seconds = time.process_time() - began
print(json.dumps({"groups": report.findings[0].value if report.findings else None, "seconds": seconds,
                  "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))
"""


def write_pairs(file: Path, *, count: int = 0, size: int = 0) -> int:
    """Writes ``count`` rows, or as many as make ``size`` bytes; returns how many."""
    from planted import sentences

    words = [word for text, _ in sentences() for word in text.split()]
    draw = random.Random(0)

    def sample(low: int, high: int) -> str:
        return " ".join(draw.choices(words, k=draw.randint(low, high)))

    rows = written = 0
    with open(file, "w", encoding="utf-8") as out:
        while rows < count or written < size:
            row = {"prompt": sample(20, 60), "chosen": sample(40, 120), "rejected": sample(40, 120)}
            written += out.write(json.dumps(row) + "\n")
            rows += 1
    return rows


def best(work: Callable[[], object]) -> float:
    times = []
    for _ in range(REPEATS):
        began = time.process_time()
        work()
        times.append(time.process_time() - began)
    return min(times)


def rates(count: int, depths: list[str], folder: Path) -> dict[str, float]:
    """Groups a second, of reading and of audits of these depths."""
    from dipole.auditing import audit_data
    from dipole.data.audit import audit
    from dipole.data.formats import load_groups

    file = folder / "pairs.jsonl"
    write_pairs(file, count=count)
    groups = load_groups(file)
    audit(groups[:200], depth="full" if "full" in depths else "cheap")  # imports what it needs
    work: dict[str, Callable[[], object]] = {
        "errors, groups in memory": lambda: audit(groups, depth="errors"),
        "cheap findings, groups in memory": lambda: audit(groups, depth="cheap"),
        "full, groups in memory": lambda: audit(groups, depth="full"),
        "reading alone": lambda: load_groups(file),
        "errors, from the file": lambda: audit_data(file, depth="errors"),
        "full, from the file": lambda: audit_data(file, depth="full"),
    }
    work = {name: run for name, run in work.items() if name == "reading alone" or name.split()[0].strip(",") in depths}
    return {name: count / best(run) for name, run in work.items()}


def memory(gigabytes: float, depth: str, folder: Path) -> dict[str, float]:
    """Peak memory of an audit of a file of that size, in a process of its own."""
    file = folder / "large.jsonl"
    rows = write_pairs(file, size=int(gigabytes * 2**30))
    done = subprocess.run([sys.executable, "-c", LARGE, str(file), depth], capture_output=True, text=True, check=True)
    return {"file_bytes": file.stat().st_size, "rows": rows, **json.loads(done.stdout)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--groups", type=int, default=20_000)
    parser.add_argument("--depths", default="errors,cheap,full", help="whose rates to measure; the others stay")
    parser.add_argument("--gigabytes", type=float, default=0.2)
    parser.add_argument("--depth", default="full")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
        found["machine"] = f"{platform.machine()}, Python {platform.python_version()}, one core"
        if options.groups:
            found["groups"] = options.groups
            found.setdefault("groups_per_second", {}).update(
                rates(options.groups, options.depths.split(","), Path(folder))
            )
        if options.gigabytes:
            found.setdefault("memory", {})[f"{options.gigabytes:g} GB, {options.depth}"] = memory(
                options.gigabytes, options.depth, Path(folder)
            )
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
