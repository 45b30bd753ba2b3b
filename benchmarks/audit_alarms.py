"""What an audit says of clean data and of data with one planted fault; writes benchmarks/results/audit_alarms.json.

The data are real sentences with judgments drawn from their real ratings, see tests/data/planted.py. False alarms are
counted over 50 clean sets of 1,500 groups; each fault is planted into 10 of them.

    python benchmarks/audit_alarms.py [--resamples 50]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).parent
sys.path[0] = str(HERE.parent / "tests" / "data")  # and not this folder, whose names are those of libraries

from planted import clean_groups, with_flipped_labels, with_leak, with_length_shortcut  # noqa: E402

from dipole.data.audit import AuditReport, audit  # noqa: E402
from dipole.demo import load_sentences, review_groups  # noqa: E402
from dipole.group import Group  # noqa: E402

TRAIN, HELD_OUT = 1500, 200
PLANTED = 10

FAULTS: dict[str, tuple[str, Callable[[list[Group], list[Group], int], list[Group]]]] = {
    "length shortcut": ("longer_preferred", lambda train, _, seed: with_length_shortcut(train, seed=seed)),
    "15 % of one annotator's labels flipped": (
        "annotator_apart",
        lambda train, _, seed: with_flipped_labels(train, "cleo", seed=seed),
    ),
    "20 evaluation prompts in training": ("leak", lambda train, held_out, _: with_leak(train, held_out, 20)),
}


def alarms(report: AuditReport) -> list[str]:
    return [item.name for item in (*report.errors, *report.findings) if item.severity != "info"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--resamples", type=int, default=50)
    resamples = parser.parse_args().resamples

    demo = audit(review_groups(load_sentences(), seed=0), allow_shared_prompts=True, depth="full")
    false: Counter[str] = Counter()
    with_any = 0
    found = {name: Counter[str]() for name in FAULTS}
    for seed in range(resamples):
        groups = clean_groups(TRAIN + HELD_OUT, seed=seed)
        train, held_out = groups[:TRAIN], groups[TRAIN:]
        raised = alarms(audit(train, eval_groups=held_out, depth="full"))
        false.update(raised)
        with_any += bool(raised)
        if seed < PLANTED:
            for name, (_, plant) in FAULTS.items():
                found[name].update(alarms(audit(plant(train, held_out, seed), eval_groups=held_out, depth="full")))
        print(seed, raised, flush=True)
    result = {
        "groups": TRAIN,
        "resamples": resamples,
        "resamples_with_a_false_alarm": with_any,
        "false_alarms": dict(false),
        "demo_alarms": alarms(demo),
        "planted": {
            name: {"of": min(PLANTED, resamples), "expected": FAULTS[name][0], "raised": dict(counts)}
            for name, counts in found.items()
        },
    }
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / "audit_alarms.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
