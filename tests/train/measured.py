"""What a step really allocates, on the CPU."""

from __future__ import annotations

import gc
from typing import Any

from torch.profiler import ProfilerActivity, profile

from dipole.policy.reference import FrozenCopy
from dipole.train.loop import steps
from dipole.train.setup import Run


def peak_bytes(run: Run) -> int:
    """Bytes of all tensors at the fullest moment of a run's second step, when the optimizer has its state."""
    training = steps(run)
    next(training)
    policies = [run.policy, run.reference.policy] if isinstance(run.reference, FrozenCopy) else [run.policy]
    stays = sum(tensor.nbytes for policy in policies for tensor in policy.parameters())
    stays += sum(value.nbytes for values in run.optimizer.state.values() for value in values.values())
    gc.collect()  # what earlier tests left would be given back within the step, as if the step had
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        next(training)
    events: list[Any] = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return stays + most
