"""Where and how precisely a run computes: what it was launched with, its device, mixed precision."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Literal

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs
from torch.distributed import DistError

from dipole.config import TrainConfig
from dipole.errors import ConfigError, TrainingFault

Precision = Literal["no", "bf16", "fp16"]
"""Of products, as accelerate names them: as the weights are, or half as wide."""

_OF_ACCELERATE = "accelerate's own {}, which wraps model and optimizer in ways that Dipole's loop doesn't know"
REFUSED = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed ZeRO, whose engine wants backward pass and optimizer to itself and as many"
    " backward passes on every process; nobody has tried it with Dipole",
    "ACCELERATE_USE_FSDP": _OF_ACCELERATE.format("FSDP"),
    "ACCELERATE_USE_MEGATRON_LM": _OF_ACCELERATE.format("Megatron-LM"),
    "ACCELERATE_USE_PARALLELISM_CONFIG": _OF_ACCELERATE.format("parallelism"),
}
"""What a launch may ask for by an environment variable, and why it isn't done."""


class ScaledAccelerator(Accelerator):  # type: ignore[misc]
    """Float16 products on any device; the loop scales losses.

    Accelerate's own float16 wants the optimizer to itself for scaling, and refuses a CPU.
    """

    @property
    def mixed_precision(self) -> str:
        """As accelerate names it."""
        return "fp16"

    def autocast(self, autocast_handler: object = None) -> AbstractContextManager[None]:
        """Float16 products within."""
        return torch.autocast(self.device.type, dtype=torch.float16)


def precision(config: TrainConfig) -> Precision:
    """In which a run's products are computed here."""
    if config.dtype == "float16":
        return "fp16"
    has_bfloat16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    return "bf16" if config.dtype == "bfloat16" or (config.dtype == "auto" and has_bfloat16) else "no"


def check_launch() -> None:
    """Raises a ``ConfigError`` if the run was launched with something that isn't done."""
    for name, what in REFUSED.items():
        if os.environ.get(name, "false").lower() in ("true", "1"):
            raise ConfigError(
                f"the launch asks for {what}",
                where=name,
                remedy="Launch with torchrun, or with accelerate without it, and divide weights with --sharding fsdp",
            )


def num_processes() -> int:
    """Of this launch."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def make_accelerator(config: TrainConfig) -> Accelerator:
    """The engine of devices and precision. It neither splits batches nor divides losses: the loop does both.

    Raises:
        ConfigError: the launch asks for something that isn't done.
        TrainingFault: not all of its processes came within ``process_timeout``.
    """
    check_launch()
    AcceleratorState._reset_state()  # else a second run in one process would have the precision of the first
    # Unless told so, several processes without a GPU would each believe to be alone; and Apple's GPUs, which have none
    # of the float64 that metrics are summed in, would be taken.
    cpu = not torch.cuda.is_available()
    mixed = precision(config)
    # Without it a process that hangs would keep the others for as long as the library likes.
    patience = InitProcessGroupKwargs(timeout=timedelta(seconds=config.process_timeout))
    kind, mixed = (ScaledAccelerator, "no") if mixed == "fp16" else (Accelerator, mixed)
    try:
        return kind(mixed_precision=mixed, cpu=cpu, kwargs_handlers=[patience])
    except DistError as fault:
        raise TrainingFault(
            f"not all {num_processes()} processes of the launch have come within {config.process_timeout} s",
            where=f"process {os.environ.get('RANK', '0')}",
            remedy="See what the others said, and whether they reach MASTER_ADDR and MASTER_PORT",
        ) from fault
