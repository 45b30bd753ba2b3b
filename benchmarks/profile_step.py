"""Where the time of one optimizer step goes: ``python benchmarks/profile_step.py --help``.

The case is ``pairs-full`` of ``vs_trl.py``, Dipole's side alone, under PyTorch's profiler.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "versus"))

import torch
from cases import CASES, text_groups, useful_work, write_groups
from dipole_side import InOrder
from measure import matrix_rate, now, peak_bytes
from transformers import AutoConfig, AutoTokenizer

from dipole.config import LossConfig, TrainConfig
from dipole.policy.embedded import embedded_model
from dipole.progress import Silent
from dipole.train.loop import steps
from dipole.train.setup import prepare

RESULT = Path(__file__).parent / "results" / "profile_step.json"
KINDS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm"),
    "attention": ("aten::_scaled_dot_product",),
}
"""The beginnings of operators' names; whatever has none of them is neither."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=1.0, help="of all lengths (default: 1)")
    parser.add_argument("--budget", type=int, default=1024, help="max_tokens_per_microbatch (default: 1024)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python benchmarks/profile_step.py", *sys.argv[1:]]),
        "threads": options.threads,
    } | profiled_step(options.scale, options.budget)
    RESULT.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


def profiled_step(scale: float, budget: int) -> dict[str, Any]:
    """The second step of a run, after one of a few tokens."""
    model, case = embedded_model(), CASES["pairs-full"]
    tokenizer = AutoTokenizer.from_pretrained(model)
    groups = text_groups(case, tokenizer, steps=1, scale=scale)
    with tempfile.TemporaryDirectory() as folder:
        write_groups(groups, Path(folder) / "groups.jsonl")
        config = TrainConfig(
            model=str(model),
            data=str(Path(folder) / "groups.jsonl"),
            output=str(Path(folder) / "run"),
            loss=LossConfig(name="dpo", beta=0.1),
            global_batch_size=case.groups,
            max_length=4096,
            max_tokens_per_microbatch=budget,
            dtype="float32",
            num_samples=0,
        )
        run = prepare(config, Silent())
        run.order = InOrder(run.order.num_groups, run.order.global_batch_size, run.order.seed)
        taken = steps(run)
        next(taken)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            began = now()
            next(taken)
            seconds = now() - began
    work = useful_work(groups[case.groups :], tokenizer, AutoConfig.from_pretrained(model), case)
    return {
        "tokens": work["tokens"],
        "operations": work["operations"],
        "seconds": seconds,
        "matrix_rate": matrix_rate("cpu"),
        "peak_bytes": peak_bytes("cpu"),
        "shares": shares(profile),
    }


def shares(profile: torch.profiler.profile) -> dict[str, float]:
    """Of the time spent inside operators, by kind; the ten largest of the rest by name."""
    spent: Counter[str] = Counter()
    for event in profile.key_averages():
        kind = next((kind for kind, names in KINDS.items() if event.key.startswith(names)), event.key)
        spent[kind] += event.self_cpu_time_total
    total = spent.total()
    return {name: time / total for name, time in spent.most_common(12)}


if __name__ == "__main__":
    main()
