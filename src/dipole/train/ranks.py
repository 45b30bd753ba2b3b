"""The processes of a run, one a device: who does what, and what they tell each other.

Every process knows the whole step, since the order of data is a pure function; each computes its own micro-batches, and
gradients are added up once, before the optimizer moves. So a process may have more micro-batches than another, or none,
and two processes do what one does. A wrapper that overlaps communication with the backward pass would need as many
backward passes everywhere.

Where weights are divided over the processes (``train/shard``) they do go in lockstep, since every forward and backward
pass puts weights together: then a process without work of its own repeats another's, and its result doesn't count.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, distributed, nn

from dipole.errors import TrainingFault
from dipole.train.out_of_memory import is_out_of_memory

BUCKET = 2**25
"""Elements of gradients that travel together."""


class Ranks:
    """This process among ``count``; with a single one every method does the obvious.

    Args:
        number: of this process, from 0.
        count: of all processes.
        device: of this process's tensors.
        lockstep: whether all have to make the same passes through the model.
    """

    def __init__(self, number: int, count: int, device: torch.device, *, lockstep: bool = False) -> None:
        self.number = number
        self.count = count
        self.device = device
        self.lockstep = lockstep

    @property
    def is_first(self) -> bool:
        """Whether this process writes files."""
        return self.number == 0

    def own(self, items: int) -> range:
        """Which of so many items this process deals with."""
        return range(self.number, items, self.count)

    def turns(self, items: int) -> list[tuple[int, bool]]:
        """What to deal with, one after the other, and whether it counts: in lockstep as many for every process."""
        if not self.lockstep:
            return [(number, True) for number in self.own(items)]
        return [
            (own, True) if (own := start + self.number) < items else (start, False)
            for start in range(0, items, self.count)
        ]

    def wait(self) -> None:
        """Until all processes are here."""
        if self.count > 1:
            with self._together():
                distributed.barrier()

    def gather(self, value: Any) -> list[Any]:
        """What each process has, in order; for small plain values."""
        if self.count == 1:
            return [value]
        found: list[Any] = [None] * self.count
        with self._together():
            distributed.all_gather_object(found, value)
        return found

    def from_first(self, value: Any) -> Any:
        """What the first process has."""
        return self.gather(value if self.is_first else None)[0]

    def anyone(self, holds: bool) -> bool:
        """Whether it holds for any process."""
        return any(self.gather(holds))

    def summed(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The sum over processes of tensors of one shape a name; a process may lack any of them."""
        if self.count == 1:
            return dict(tensors)
        known: dict[str, tuple[torch.Size, torch.dtype]] = {}
        for found in self.gather({name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}):
            known |= found
        sums = {}
        for name, (shape, dtype) in sorted(known.items()):
            given = tensors.get(name)
            sums[name] = torch.zeros(shape, dtype=dtype, device=self.device) if given is None else given.clone()
            self._add_up(sums[name])
        return sums

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Adds up the gradients of all processes, in place; one that no process has stays ``None``.

        In lockstep the backward passes have done that.
        """
        if self.count == 1 or self.lockstep:
            return
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        has = torch.tensor([parameter.grad is not None for parameter in trained], device=self.device).int()
        self._add_up(has)
        there = [parameter for parameter, number in zip(trained, has.tolist(), strict=True) if number]
        for parameter in there:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        for bucket in _buckets([parameter.grad for parameter in there if parameter.grad is not None]):
            flat = torch.cat([gradient.flatten() for gradient in bucket])
            self._add_up(flat)
            for gradient, piece in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
                gradient.copy_(piece.view_as(gradient))

    def _add_up(self, tensor: Tensor) -> None:
        with self._together():
            distributed.all_reduce(tensor)

    @contextmanager
    def _together(self) -> Iterator[None]:
        """Around what all processes do at once, and nothing else: here it shows when one of them is gone or hangs.

        Raises:
            TrainingFault: one is, or does.
        """
        try:
            yield
        except RuntimeError as fault:
            if is_out_of_memory(fault):
                raise
            raise self._alone(fault) from fault

    @contextmanager
    def in_lockstep(self) -> Iterator[None]:
        """Around passes through a model whose weights are divided: there, too, it shows when a process is gone.

        Raises:
            TrainingFault: one is.
        """
        try:
            yield
        except RuntimeError as fault:
            if not self.lockstep or not _is_of_network(fault):
                raise
            raise self._alone(fault) from fault

    def _alone(self, fault: RuntimeError) -> TrainingFault:
        where = f"process {self.number} of {self.count}"
        again = "the same command with --resume goes on from the newest checkpoint"
        if "timed out" in str(fault).lower():
            return TrainingFault(
                "another process of the run didn't answer in time",
                where=where,
                remedy=f"See what it hangs on, or raise --process_timeout if it was only slow; {again}",
            )
        return TrainingFault(
            "another process of the run has ended or can't be reached",
            where=where,
            remedy=f"See what that one said; {again}",
        )


ALONE = Ranks(0, 1, torch.device("cpu"))
"""A single process."""


def _is_of_network(fault: RuntimeError) -> bool:
    """Whether a fault within a pass came from talking to other processes; gloo has no type of its own for that."""
    return isinstance(fault, distributed.DistError) or any(name in str(fault) for name in ("gloo", "NCCL"))


def _buckets(gradients: Sequence[Tensor]) -> list[list[Tensor]]:
    """Gradients of one dtype, up to ``BUCKET`` elements together."""
    buckets: list[list[Tensor]] = []
    filled = 0
    for gradient in gradients:
        if not buckets or filled + gradient.numel() > BUCKET or buckets[-1][0].dtype != gradient.dtype:
            buckets.append([])
            filled = 0
        buckets[-1].append(gradient)
        filled += gradient.numel()
    return buckets
