"""A machine without enough memory: which settings to change, instead of a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from dipole.config import TrainConfig
from dipole.errors import DipoleError, TrainingFault

_WORDS = ("out of memory", "DefaultCPUAllocator", "CUBLAS_STATUS_ALLOC_FAILED")
"""What PyTorch's other faults say when it is memory that lacks: it has a type of its own for GPUs alone."""


class OutOfMemory(TrainingFault):
    """There wasn't enough memory."""


@contextmanager
def memory_for(what: str, config: TrainConfig) -> Iterator[None]:
    """Around work that may need more memory than there is.

    Args:
        what: it is, for the message: ``"step 12"``.
        config: of the run; the message names what it could change.

    Raises:
        OutOfMemory: it did.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as fault:
        if not is_out_of_memory(fault):
            raise
        said = str(fault).strip().splitlines()
        raise OutOfMemory(
            f"there isn't enough memory for {what}" + (f" ({said[0][:200]})" if said else ""),
            remedy=remedy(config),
        ) from fault


def is_out_of_memory(fault: BaseException) -> bool:
    """Whether a fault is about memory, on a GPU or not."""
    if isinstance(fault, DipoleError):
        return False
    return isinstance(fault, MemoryError | torch.OutOfMemoryError) or any(word in str(fault) for word in _WORDS)


def remedy(config: TrainConfig) -> str:
    """The settings that need less memory, those first that change nothing else; without those that are set already."""
    options = {
        f"lower --max_tokens_per_microbatch (now {config.max_tokens_per_microbatch})": True,
        "add --gradient_checkpointing": not config.gradient_checkpointing,
        "compute the reference once with --reference cached": config.reference not in ("cached", "none"),
        f"lower --max_length (now {config.max_length})": config.max_length is not None,
        "train an adapter with --peft.method lora (in another --output)": config.peft.method == "none",
    }
    return f"In this order: {'; '.join(option for option, helps in options.items() if helps)}"
