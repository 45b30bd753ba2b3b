"""What one process measures of itself. Needs torch alone, since TRL's environment has no Dipole."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

PROBE = 2048


@dataclass(slots=True)
class StepClock:
    """Wall and processor seconds of every optimizer step, and what the trainer logged of it."""

    rows: list[dict[str, float]] = field(default_factory=list)
    _began: tuple[float, float] = (0.0, 0.0)

    def start(self) -> None:
        """A step begins."""
        self._began = (now(), processor_seconds())

    def stop(self) -> None:
        """It ends."""
        wall, cpu = self._began
        self.rows.append({"seconds": now() - wall, "cpu_seconds": processor_seconds() - cpu})

    def note(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Metrics of a step (from 0) by the names that both sides use."""
        names = ("loss", "grad_norm", "logps/chosen", "logps/rejected")
        self.rows[step] |= {name: float(metrics[name]) for name in names if name in metrics}


def now() -> float:
    """Seconds, when all that was started on the device is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def processor_seconds() -> float:
    """User and system time of this process, over all threads."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def peak_bytes(device: str) -> int:
    """Most memory that this process has held: of the device, or resident."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def matrix_rate(device: str, seconds: float = 2.0) -> float:
    """Floating-point operations a second of a large matrix product: the best of what fits into ``seconds``."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    size = 4 * PROBE if device == "cuda" else PROBE
    left, right = (torch.randn(size, size, dtype=dtype, device=device) for _ in range(2))
    product = left @ right
    best, end = float("inf"), now() + seconds
    while now() < end:
        began = now()
        torch.mm(left, right, out=product)
        best = min(best, now() - began)
    return 2 * size**3 / best
