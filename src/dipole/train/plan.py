"""What a run will take, by arithmetic alone: steps, tokens, and the memory of one process.

Memory is counted at the fullest moment of a step: what stays (weights, gradients, optimizer, reference) and the larger
of what a pass needs (activations, head, layers put together) and what the optimizer needs. What a GPU's own libraries
and the gaps between allocations take comes on top; a tenth or two is usual.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from dipole.policy.head import HEAD_BYTES
from dipole.policy.size import Shape

WIDE, NARROW = 4, 2
"""Bytes of float32, and of bfloat16 or float16."""
FOUR_BIT = 0.5 + 0.127 / 8
"""Bytes of a weight in NF4 with doubly quantized constants (Dettmers et al. 2023, arXiv 2305.14314, section 3)."""
OPTIMIZER_BYTES = {"adamw": 8.0, "adamw_fused": 8.0, "adamw_8bit": 2 + 2 * 4 / 256, "rmsprop": 4.0, "sgd": 0.0}
"""State of a trained parameter: moments in float32, or in 8 bits with a float32 scale a block of 256."""
TEMPORARY_BYTES = {"adamw": 4.0, "rmsprop": 4.0}
"""Of a trained parameter, what an optimizer that isn't fused makes for all parameters at once on a GPU."""

ReferenceKind = Literal["none", "adapter_off", "copy", "cached"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What of a run's options memory depends on.

    Args:
        trained: parameters that are trained; of an adapter if there are fewer than the model has.
        adapter: whether it is an adapter, so that the model's own weights are frozen.
        weight_bytes: of a frozen weight within a layer: ``WIDE``, ``NARROW`` or ``FOUR_BIT``.
        narrow: whether products are in 16 bits.
        optimizer: as in ``TrainConfig``.
        reference: where it comes from.
        tokens: packed tokens of the largest micro-batch.
        targets: completion tokens among them.
        processes: of the launch.
        sharded: whether weights are divided over them.
        checkpointing: whether layers forget their activations.
        offloading: whether activations wait in main memory.
        gpu: whether it is one.
    """

    trained: int
    adapter: bool
    weight_bytes: float
    narrow: bool
    optimizer: str
    reference: ReferenceKind
    tokens: int
    targets: int
    processes: int = 1
    sharded: bool = False
    checkpointing: bool = False
    offloading: bool = False
    gpu: bool = True

    @property
    def share(self) -> int:
        """The processes that weights, gradients and optimizer state are divided over."""
        return self.processes if self.sharded else 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes of one process, by what they are for.

    Args:
        weights: the policy's, with its adapter.
        gradients: of what is trained.
        optimizer: its state.
        reference: a copy of the model.
        activations: what layers keep for the backward pass, and what one layer computes with.
        head: a chunk of logits, and what is as large as the head or as all targets.
        together: divided weights that are whole for a while, or narrow copies of undivided ones.
        temporary: what the optimizer works with; it begins when the pass has ended.
    """

    weights: int
    gradients: int
    optimizer: int
    reference: int
    activations: int
    head: int
    together: int
    temporary: int

    @property
    def total(self) -> int:
        """At the fullest moment."""
        stays = self.weights + self.gradients + self.optimizer + self.reference
        return stays + max(self.activations + self.head + self.together, self.temporary)

    def parts(self) -> dict[str, int]:
        """By name."""
        return {item.name: getattr(self, item.name) for item in fields(self)}


def memory(shape: Shape, setup: Setup) -> Memory:
    """The memory of one process.

    Args:
        shape: of the model.
        setup: of the run.
    """
    policy = _model_bytes(shape, setup) + (WIDE * setup.trained if setup.adapter else 0)
    several = setup.processes > 1 and not setup.sharded
    return Memory(
        weights=round(policy / setup.share),
        gradients=round(WIDE * setup.trained / setup.share) + (min(WIDE * setup.trained, 2**27) if several else 0),
        optimizer=round(OPTIMIZER_BYTES[setup.optimizer] * setup.trained / setup.share),
        reference=round(policy / setup.share) if setup.reference == "copy" else 0,
        activations=activation_bytes(shape, setup),
        head=head_bytes(shape, setup),
        together=_together(shape, setup),
        temporary=round(TEMPORARY_BYTES.get(setup.optimizer, 0.0) * setup.trained / setup.share) if setup.gpu else 0,
    )


def _outside_bytes(setup: Setup) -> int:
    """Of a weight outside of the layers: embeddings and head, which nobody quantizes."""
    return WIDE if not setup.adapter else max(NARROW, round(setup.weight_bytes))


def _model_bytes(shape: Shape, setup: Setup) -> float:
    """The model's own weights: float32 where they are trained."""
    outside = shape.parameters - shape.in_layers
    within = setup.weight_bytes if setup.adapter else WIDE
    return within * shape.in_layers + _outside_bytes(setup) * outside


def layer_bytes_a_token(shape: Shape, setup: Setup) -> int:
    """What one layer keeps of one token until its backward pass.

    Of each of two norms: its input in float32, and what it multiplies by a trained weight. Of products: their inputs
    (an adapter casts one for every product), and queries, keys, values and what attention makes of them. Of a gated
    feed-forward part: gate, activated gate, and the other factor.
    """
    narrow = NARROW if setup.narrow else WIDE
    stream = NARROW if setup.narrow and setup.adapter else WIDE
    inputs = 5 if setup.adapter and setup.narrow else 2
    norms = 2 * shape.hidden * (WIDE + (0 if setup.adapter else stream))
    products = inputs * shape.hidden + shape.attention + shape.intermediate
    attention = 2 * shape.attention + 2 * shape.key_value
    return norms + narrow * (products + attention + 3 * shape.intermediate)


def activation_bytes(shape: Shape, setup: Setup) -> int:
    """What all layers keep of a micro-batch; where they forget or send it away, one layer at a time."""
    one = layer_bytes_a_token(shape, setup)
    stream = (NARROW if setup.narrow and setup.adapter else WIDE) * shape.hidden
    if setup.offloading:
        kept = one
    elif setup.checkpointing:
        kept = shape.layers * stream + one
    else:
        kept = shape.layers * one
    return setup.tokens * (kept + 2 * stream)


def head_bytes(shape: Shape, setup: Setup) -> int:
    """The head's work: one chunk of logits, a float32 copy of narrow weights, and the gradient of what is before it."""
    matrix = WIDE * shape.vocabulary * shape.hidden
    chunk = min(WIDE * setup.targets * shape.vocabulary, HEAD_BYTES)
    copy = matrix if _outside_bytes(setup) == NARROW else 0
    gradient = 0 if setup.adapter else matrix
    return chunk + copy + gradient + 2 * WIDE * setup.targets * shape.hidden


def _together(shape: Shape, setup: Setup) -> int:
    """Divided weights: embeddings and head whole, for a copy as well, two layers whole, and the gradient of one."""
    if not setup.sharded:
        return NARROW * shape.in_layers if setup.narrow and not setup.adapter else 0
    outside = _outside_bytes(setup) * (shape.parameters - shape.in_layers)
    layer = (NARROW if setup.narrow else WIDE) * shape.in_layers // shape.layers
    models = 2 if setup.reference == "copy" else 1
    gradients = 0 if setup.adapter else outside + layer
    return models * outside + 2 * layer + gradients


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a run will do and need.

    Args:
        model: its name.
        shape: of it.
        setup: what memory depends on.
        precision: of products: ``"float32"``, ``"bfloat16"`` or ``"float16"``.
        groups, completions, relations, held_out: of the data; ``held_out`` counts groups.
        steps: optimizer steps.
        epochs: passes over the data, the last maybe a part.
        micro_batches: most in one step, over all processes.
        tokens: of all steps, prompts once and completions once.
        memory: of one process.
        available: bytes of this machine's GPU, or of its main memory without one.
    """

    model: str
    shape: Shape
    setup: Setup
    precision: str
    groups: int
    completions: int
    relations: int
    held_out: int
    steps: int
    epochs: float
    micro_batches: int
    tokens: int
    memory: Memory
    available: int

    @property
    def trained_share(self) -> float:
        """The trained parameters as a part of all."""
        return self.setup.trained / (self.shape.parameters + (self.setup.trained if self.setup.adapter else 0))
