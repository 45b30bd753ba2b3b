"""Measures Dipole: python dipole_side.py SPEC.json RESULT.json"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from measure import StepClock, matrix_rate, peak_bytes

from dipole import __version__
from dipole.config import LossConfig, PeftConfig, TrainConfig
from dipole.data.batch import Order
from dipole.progress import Silent
from dipole.train.loop import steps
from dipole.train.setup import prepare


@dataclass(frozen=True, slots=True)
class InOrder(Order):
    """The groups as they stand in the file, so that both sides take the same ones in each step."""

    def step(self, number: int) -> list[int]:
        start = number * self.global_batch_size
        return list(range(start, start + self.global_batch_size))


def main() -> None:
    spec, result = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    case: dict[str, Any] = spec["case"]
    torch.set_num_threads(spec["threads"])
    rate = matrix_rate(case["device"])
    config = TrainConfig(
        model=spec["model"],
        data=spec["groups"],
        output=str(result.parent / "dipole"),
        loss=LossConfig(name="dpo", beta=spec["beta"]),
        peft=PeftConfig(method="lora", rank=8, targets="q_proj,v_proj") if case["lora"] else PeftConfig(),
        reference="cached" if case["cached"] else "auto",  # type: ignore[arg-type]
        learning_rate=spec["learning_rate"],
        schedule="constant",
        warmup_ratio=0.0,
        global_batch_size=case["groups"],
        max_length=spec["max_length"],
        max_tokens_per_microbatch=spec["max_tokens_per_microbatch"],
        dtype="bfloat16" if case["device"] == "cuda" else "float32",
        num_samples=0,
    )
    run = prepare(config, Silent())
    run.order = InOrder(run.order.num_groups, run.order.global_batch_size, run.order.seed)
    clock, taken = StepClock(), steps(run)
    for number in range(run.total_steps):
        clock.start()
        info = next(taken)
        clock.stop()
        clock.note(number, info.metrics)
    found = {
        "side": "dipole",
        "steps": clock.rows,
        "peak_bytes": peak_bytes(case["device"]),
        "matrix_rate": [rate, matrix_rate(case["device"])],
        "versions": {"dipole": __version__, "torch": torch.__version__},
    }
    result.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
