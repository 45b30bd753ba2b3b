"""Everything that a run needs before its first step: policy, reference, optimizer, beside its checked data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from dipole.config import TrainConfig
from dipole.data.batch import Order, PackedBatch, pack
from dipole.data.tokenize import TokenizedGroup
from dipole.errors import ConfigError
from dipole.objective import Loss, initial_state
from dipole.objective.constraints import Constraint, ConstraintFunction, initial_multipliers
from dipole.policy.adapters import add_adapter, start_fingerprint
from dipole.policy.load import fingerprint, load_model, weights_dtype
from dipole.policy.locate import allowed_by
from dipole.policy.logprobs import Policy, check_engine
from dipole.policy.memory import checkpoint_layers, offload_layers
from dipole.policy.reference import Reference
from dipole.progress import Progress
from dipole.train.checked import Data, check
from dipole.train.devices import make_accelerator
from dipole.train.inputs import MULTIPLIER
from dipole.train.optim import LossScale, make_optimizer
from dipole.train.ranks import Ranks
from dipole.train.references import reference_of_run
from dipole.train.reward import load_reward_policy
from dipole.train.shard import check_sharding, load_divided, put_apart, with_all_weights
from dipole.train.track import Log


@dataclass(slots=True, kw_only=True)
class Run:
    """A run's parts.

    Only ``step``, ``skips`` and ``state`` change, and what is inside policy, reference, optimizer and scale.

    Args:
        fingerprint: of the model that training starts from.
        loss, hyper: the loss's row and its hyper-parameters.
        constraints: terms beside the loss.
        state: the moving state of the loss, and the constraints' multipliers.
        step: optimizer steps done, with those that were skipped.
        skips: how many of the last steps, in a row, were skipped since something wasn't finite.
        scale: of losses, in float16.
        log: the files of rows in the run folder.
    """

    config: TrainConfig
    output: Path
    accelerator: Accelerator
    ranks: Ranks
    tokenizer: PreTrainedTokenizerBase
    policy: Policy
    fingerprint: str
    reference: Reference | None
    loss: Loss
    hyper: Mapping[str, Any]
    data: Data
    order: Order
    optimizer: torch.optim.Optimizer
    total_steps: int
    log: Log
    constraints: tuple[Constraint, ...] = ()
    state: dict[str, Tensor] = field(default_factory=dict)
    step: int = 0
    skips: int = 0
    scale: LossScale | None = None


def trained_parameters(policy: Policy, model: Policy) -> dict[str, Tensor]:
    """By name, the tensors of ``model`` that training changes in ``policy``; of divided ones this process's rows."""
    put_apart(policy)
    put_apart(model)
    values = dict(model.named_parameters())
    return {name: values[name].detach() for name, value in policy.named_parameters() if value.requires_grad}


def prepare(
    config: TrainConfig, progress: Progress, constraints: Sequence[Constraint | ConstraintFunction] = ()
) -> Run:
    """Builds a run; cheap checks come before slow ones.

    Args:
        config: everything about it.
        progress: is told where it is.
        constraints: terms beside a pairwise loss.

    Raises:
        ConfigError: options that don't fit each other, the loss or the model.
        DataError: data that can't be trained on.
    """
    accelerator = make_accelerator(config)
    lockstep = config.sharding == "fsdp"
    ranks = Ranks(accelerator.process_index, accelerator.num_processes, accelerator.device, lockstep=lockstep)
    ranks.wait()  # until everyone has looked at the run folder, and what the first process was to write is written
    found = check(config, progress, constraints)
    config, data, loss = found.config, found.data, found.loss
    check_sharding(config, ranks.count, found.constraints)
    progress.stage("Loading the model")
    policy, weights = load_policy(config, accelerator, ranks)
    check_vocabulary(policy, found.tokenizer)
    tolerance = 1e-3 if accelerator.mixed_precision == "no" else 0.5
    probe = _probe(data.train, policy).to(accelerator.device)
    with_all_weights(policy, check_engine, policy, probe, tolerance=tolerance)
    groups = [*data.train, *data.held_out]
    reference = reference_of_run(
        config,
        loss,
        policy,
        weights,
        groups,
        accelerator,
        ranks,
        progress,
        load=lambda: load_policy(config, accelerator, ranks),
    )
    _save_memory(policy, config, progress)
    put_apart(policy)  # or the optimizer would be given weights that were put together for the passes above
    return Run(
        config=config,
        output=Path(config.output),
        accelerator=accelerator,
        ranks=ranks,
        tokenizer=found.tokenizer,
        policy=policy,
        fingerprint=weights,
        reference=reference,
        loss=loss,
        hyper=found.hyper,
        data=data,
        order=found.order,
        optimizer=make_optimizer(policy, config),
        total_steps=found.total_steps,
        log=Log(Path(config.output), progress.say, writes=ranks.is_first),
        constraints=found.constraints,
        state=_initial_state(loss, found.constraints, accelerator.device),
        scale=LossScale() if accelerator.mixed_precision == "fp16" else None,
    )


def _save_memory(policy: Policy, config: TrainConfig, progress: Progress) -> None:
    """What is done to layers; a copy for the reference has to be made before."""
    if config.gradient_checkpointing:
        checkpoint_layers(policy.transformer)
    if config.activation_offloading and policy.device.type == "cpu":
        progress.say("--activation_offloading changes nothing here: without a GPU they are in main memory anyway.")
    elif config.activation_offloading:
        offload_layers(policy.transformer)


def _initial_state(loss: Loss, constraints: tuple[Constraint, ...], device: torch.device) -> dict[str, Tensor]:
    multipliers = initial_multipliers(constraints, device)
    return initial_state(loss, device) | {MULTIPLIER + name: value for name, value in multipliers.items()}


def load_policy(config: TrainConfig, accelerator: Accelerator, ranks: Ranks) -> tuple[Policy, str]:
    """The policy on its device, and the fingerprint of the model that it starts from.

    A fully trained model keeps float32 weights; a frozen one may be narrower. Evaluation mode switches off whatever an
    architecture does at random in training: many have dropout that isn't a module.
    """
    wide = config.peft.method == "none"
    dtype = torch.float32 if wide else weights_dtype(config.dtype, accelerator.device)
    if config.objective == "reward_model":
        return load_reward_policy(config, accelerator.device)
    if ranks.lockstep:
        return load_divided(config, dtype, accelerator.mixed_precision, ranks)
    four_bits_on = accelerator.device if config.peft.quantization == "4bit" else None
    model = load_model(config.model, dtype=dtype, allowed=allowed_by(config), four_bits_on=four_bits_on)
    weights = start_fingerprint(fingerprint(model), config.peft)
    return Policy(add_adapter(model, config.peft, seed=config.seed)).to(accelerator.device).eval(), weights


def _probe(groups: list[TokenizedGroup], policy: Policy) -> PackedBatch:
    """What the engine is checked on: two short groups, and one beyond the model's attention window, if there is."""
    by_length = sorted(groups, key=lambda group: group.num_tokens)
    window = getattr(policy.transformer.config.get_text_config(), "sliding_window", None) or math.inf
    beyond = (group for group in by_length[2:] if len(group.prompt_ids) + max(map(len, group.completion_ids)) > window)
    return pack([*by_length[:2], *islice(beyond, 1)])


def check_vocabulary(policy: Policy, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises a ``ConfigError`` if the tokenizer has more tokens than the model embeds."""
    embeddings: Any = policy.transformer.get_input_embeddings()
    if len(tokenizer) > embeddings.weight.shape[0]:
        raise ConfigError(
            f"the tokenizer has {len(tokenizer)} tokens, but the model embeds {embeddings.weight.shape[0]}",
            where="--model",
            remedy="Use the tokenizer that belongs to the model",
        )
