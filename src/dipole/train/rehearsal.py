"""A run without its weights: data and options are read and checked, and what it will take is counted."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch

from dipole.config import TrainConfig
from dipole.data.batch import pack
from dipole.data.tokenize import TokenizedGroup
from dipole.policy.adapters import add_adapter
from dipole.policy.load import count_parameters, weights_dtype
from dipole.policy.locate import allowed_by
from dipole.policy.logprobs import Policy
from dipole.policy.memory import repeated_layers
from dipole.policy.reference import FrozenCopy, make_reference
from dipole.policy.size import empty_model, shape_of
from dipole.progress import Progress
from dipole.train.checked import Checked, check
from dipole.train.devices import check_launch, num_processes, precision
from dipole.train.forward import parts_for
from dipole.train.optim import make_optimizer
from dipole.train.plan import FOUR_BIT, Plan, ReferenceKind, Setup, memory
from dipole.train.references import check_cacheable
from dipole.train.run import refuse_used
from dipole.train.setup import check_vocabulary
from dipole.train.shard import check_sharding

PRECISIONS = {"no": "float32", "bf16": "bfloat16", "fp16": "float16"}
LOOKED_AT = 1000
"""Steps whose micro-batches are cut to find the largest; data doesn't change much after so many."""


def rehearse(config: TrainConfig, progress: Progress) -> Plan:
    """Checks a run as far as that is possible without weights, and says what it will take. Writes nothing.

    What needs weights is left: whether they can be read, and whether the engine computes the model correctly.

    Args:
        config: of the run; the number of processes is the launch's.
        progress: is told where it is.

    Raises:
        ConfigError, DataError: as the run itself would.
    """
    check_launch()
    refuse_used(Path(config.output), config)
    found = check(config, progress)
    config = found.config
    check_sharding(config, num_processes())
    progress.stage("Building the model without its weights")
    policy = _policy(config)
    check_vocabulary(policy, found.tokenizer)
    make_optimizer(policy, config)
    reference = _reference(found, policy)
    if config.gradient_checkpointing:
        repeated_layers(policy.transformer, "--gradient_checkpointing", "computed again")
    parts = _parts(found)
    largest = pack(max((part for step in parts for part in step), key=lambda part: sum(g.num_tokens for g in part)))
    shape, trained = shape_of(policy.transformer), count_parameters(policy)[1]
    adapter = config.peft.method != "none"
    if adapter:
        shape = replace(shape, parameters=_own(policy), in_layers=shape.in_layers - _of_adapter_in_layers(policy))
    gpu = torch.cuda.is_available()
    setup = Setup(
        trained=trained,
        adapter=adapter,
        weight_bytes=FOUR_BIT if config.peft.quantization == "4bit" else _dtype(config).itemsize,
        narrow=precision(config) != "no",
        optimizer=config.optimizer,
        reference=reference,
        tokens=largest.input_ids.numel(),
        targets=largest.target.numel(),
        processes=num_processes(),
        sharded=config.sharding == "fsdp",
        checkpointing=config.gradient_checkpointing,
        offloading=config.activation_offloading and gpu,
        gpu=gpu,
    )
    facts = found.data.facts
    return Plan(
        model=config.model,
        shape=shape,
        setup=setup,
        precision=PRECISIONS[precision(config)],
        groups=facts["groups"],
        completions=facts["completions"],
        relations=facts["relations"],
        held_out=facts["eval_groups"],
        steps=found.total_steps,
        epochs=found.total_steps / found.order.steps_per_epoch,
        micro_batches=max(map(len, parts)),
        tokens=_tokens(found),
        memory=memory(shape, setup),
        available=_available(),
    )


def _dtype(config: TrainConfig) -> torch.dtype:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.float32 if config.peft.method == "none" else weights_dtype(config.dtype, device)


def _policy(config: TrainConfig) -> Policy:
    """The policy without values. An adapter that training goes on from has the shape of a fresh one."""
    model = empty_model(config.model, dtype=_dtype(config), allowed=allowed_by(config))
    return Policy(add_adapter(model, replace(config.peft, start_from=None), seed=config.seed)).eval()


def _own(policy: Policy) -> int:
    total, trained = count_parameters(policy)
    return total - trained


def _of_adapter_in_layers(policy: Policy) -> int:
    layers = repeated_layers(policy.transformer, "--dry_run", "counted")
    return sum(count_parameters(layer)[1] for layer in layers)


def _reference(found: Checked, policy: Policy) -> ReferenceKind:
    """Where the reference comes from, with the checks of a run."""
    config, moves = found.config, found.config.sync_reference_every is not None
    if config.reference == "cached":
        check_cacheable(found.loss, moves=moves)
        return "cached"
    reference = make_reference(config.reference, policy, needed=found.loss.needs_reference, moves=moves)
    if reference is None:
        return "none"
    return "copy" if isinstance(reference, FrozenCopy) else "adapter_off"


def _parts(found: Checked) -> list[list[list[TokenizedGroup]]]:
    """The micro-batches of each step of the first epoch."""
    steps = range(min(found.total_steps, found.order.steps_per_epoch))
    budget, processes = found.config.max_tokens_per_microbatch, num_processes()
    return [parts_for(_groups(found, step), budget, processes) for step in islice(steps, LOOKED_AT)]


def _groups(found: Checked, step: int) -> Sequence[TokenizedGroup]:
    return [found.data.train[index] for index in found.order.step(step)]


def _tokens(found: Checked) -> int:
    """Of all steps, as metrics.jsonl counts them."""
    full, rest = divmod(found.total_steps, found.order.steps_per_epoch)
    first_of_last = full * found.order.steps_per_epoch
    partial = range(first_of_last, first_of_last + rest)
    of_rest = sum(group.num_tokens for step in partial for group in _groups(found, step))
    return full * sum(group.num_tokens for group in found.data.train) + of_rest


def _available() -> int:
    if torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[1])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
