"""Everything that a run needs before its first step: data checked and tokenized, policy, reference, optimizer."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from dipole.data.audit import AuditReport, audit
from dipole.data.batch import Order, PackedBatch, groups_fingerprint, pack
from dipole.data.facts import with_facts
from dipole.data.files import is_held_out
from dipole.data.formats import load_groups
from dipole.data.reduce import reduce_groups
from dipole.data.tokenize import TokenizedGroup, TokenizeOptions, prompt_token_ids, tokenize_groups
from dipole.errors import ConfigError, DataError
from dipole.group import Group, plain
from dipole.objective import Loss, initial_state, resolve
from dipole.objective.constraints import Constraint, ConstraintFunction, initial_multipliers, named_constraints
from dipole.policy.adapters import add_adapter, settled, start_fingerprint
from dipole.policy.load import fingerprint, load_model, load_tokenizer, max_positions, weights_dtype
from dipole.policy.logprobs import Policy, check_engine
from dipole.policy.memory import checkpoint_layers
from dipole.policy.reference import Reference
from dipole.progress import Progress
from dipole.train.inputs import (
    FACTS,
    MISMATCHED,
    MULTIPLIER,
    check_relations,
    check_trainable,
    with_other_prompts,
)
from dipole.train.ranks import Ranks
from dipole.train.track import Log
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from dipole.config import TrainConfig
from dipole.train.optim import cautions, make_optimizer
from dipole.train.references import reference_of_run

DEFAULT_LENGTH = 1024


@dataclass(frozen=True, slots=True)
class SamplePrompt:
    """A prompt that completions are sampled for: as a person reads it, and as the model does."""

    text: str
    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """Preferences, ready for batching.

    Args:
        train: trained on.
        held_out: never trained on; may be empty.
        prompts: to sample from; different ones, held-out ones first.
        report: what the audit found.
        facts: counts for the manifest.
    """

    train: list[TokenizedGroup]
    held_out: list[TokenizedGroup]
    prompts: list[SamplePrompt]
    report: AuditReport
    facts: Mapping[str, Any]


@dataclass(slots=True, kw_only=True)
class Run:
    """A run's parts. Only ``step``, ``skips`` and ``state`` change, and what is inside policy, reference and optimizer.

    Args:
        fingerprint: of the model that training starts from.
        loss, hyper: the loss's row and its hyper-parameters.
        constraints: terms beside the loss.
        state: the moving state of the loss, and the constraints' multipliers.
        step: optimizer steps done, with those that were skipped.
        skips: how many of the last steps, in a row, were skipped since something wasn't finite.
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


def trained_parameters(policy: Policy, model: Policy) -> dict[str, Tensor]:
    """By name, the tensors of ``model`` that training changes in ``policy``."""
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
    ranks = Ranks(accelerator.process_index, accelerator.num_processes, accelerator.device)
    ranks.wait()  # until everyone has looked at the run folder, and what the first process was to write is written
    config = with_max_length(replace(config, peft=settled(config.peft)))
    loss = resolve(config.loss.name)
    check_trainable(loss)
    named = named_constraints(constraints)
    if named and loss.relation != "pair":
        raise ConfigError(f"{loss.name} has no pairs, and constraints are functions of pairs", where="constraints")
    hyper = loss.settings(**config.loss.hyperparameters())
    tokenizer = load_tokenizer(config.model)
    data = prepare_data(config, loss, tokenizer, progress)
    check_relations(loss, hyper, [*data.train, *data.held_out])
    completions_per_step = config.global_batch_size * data.facts["completions"] / data.facts["groups"]
    for caution in cautions(config, hyper.get("beta"), completions_per_step):
        progress.say(caution)
    progress.stage("Loading the model")
    policy, weights = load_policy(config, accelerator)
    _check_vocabulary(policy, tokenizer)
    tolerance = 1e-3 if accelerator.mixed_precision == "no" else 0.5
    check_engine(policy, _probe(data.train, policy).to(accelerator.device), tolerance=tolerance)
    groups = [*data.train, *data.held_out]
    reference = reference_of_run(config, loss, policy, weights, groups, accelerator, ranks, progress)
    if config.gradient_checkpointing:
        checkpoint_layers(policy.transformer)
    order = Order(len(data.train), config.global_batch_size, config.seed)
    total = order.steps_per_epoch * config.num_epochs
    return Run(
        config=config,
        output=Path(config.output),
        accelerator=accelerator,
        ranks=ranks,
        tokenizer=tokenizer,
        policy=policy,
        fingerprint=weights,
        reference=reference,
        loss=loss,
        hyper=hyper,
        data=data,
        order=order,
        optimizer=make_optimizer(policy, config),
        total_steps=total if config.max_steps is None else min(total, config.max_steps),
        log=Log(Path(config.output), progress.say, writes=ranks.is_first),
        constraints=named,
        state=_initial_state(loss, named, accelerator.device),
    )


def _initial_state(loss: Loss, constraints: tuple[Constraint, ...], device: torch.device) -> dict[str, Tensor]:
    multipliers = initial_multipliers(constraints, device)
    return initial_state(loss, device) | {MULTIPLIER + name: value for name, value in multipliers.items()}


def prepare_data(config: TrainConfig, loss: Loss, tokenizer: PreTrainedTokenizerBase, progress: Progress) -> Data:
    """Reads, audits, splits, reduces and tokenizes.

    Raises:
        DataError: see ``data.formats`` and ``data.audit``; or the splits leave nothing to train on.
    """
    progress.stage("Reading the data")
    groups = load_groups(config.data)
    train = [group for group in groups if not is_held_out(group.split)]
    held_out = [group for group in groups if is_held_out(group.split)]
    if config.eval_data is not None:
        held_out += load_groups(config.eval_data)
    if config.eval_every is not None and not held_out:
        raise ConfigError(
            "there are no held-out groups to evaluate on",
            where="--eval_every",
            remedy="Give --eval_data, or groups whose split is eval",
        )
    if not train:
        raise DataError("all groups are held out, none is left to train on", where=config.data, remedy="Check `split`")
    report = audit(train, eval_groups=held_out, allow_shared_prompts=config.allow_shared_prompts)
    report.raise_for_errors(where=config.data)
    for line in report.summary():
        progress.say(line)
    progress.stage("Tokenizing")
    tokenized = [_tokenized(part, config, loss, tokenizer, progress) for part in (train, held_out)]
    _say_format(train, config, tokenizer, progress)
    facts = {
        "source": config.data,
        "groups": len(tokenized[0]),
        "completions": sum(len(group.completion_ids) for group in tokenized[0]),
        "relations": sum(len(group.relations) for group in tokenized[0]),
        "eval_groups": len(tokenized[1]),
        "eval_relations": sum(len(group.relations) for group in tokenized[1]),
        "tokens": sum(group.num_tokens for group in tokenized[0]),
        "fingerprint": groups_fingerprint(tokenized[0]),
    }
    prompts = _sample_prompts(held_out or train, config, tokenizer)
    if config.num_samples and not prompts:
        progress.say(f"No prompt leaves room for a sample of {config.sample_tokens} tokens, so none is drawn.")
    return Data(train=tokenized[0], held_out=tokenized[1], prompts=prompts, report=report, facts=facts)


def _sample_prompts(groups: list[Group], config: TrainConfig, tokenizer: PreTrainedTokenizerBase) -> list[SamplePrompt]:
    """The first ``num_samples`` different prompts that fit ``max_length`` and leave the model room for a sample."""
    positions = (max_positions(config.model) or math.inf) - (config.peft.num_virtual_tokens or 0)
    longest = min((config.max_length or DEFAULT_LENGTH) - 1, positions - config.sample_tokens)
    seen: set[str] = set()
    kept: list[SamplePrompt] = []
    for group in groups:
        text = plain(group.prompt)
        if len(kept) == config.num_samples:
            break
        if text in seen:
            continue
        seen.add(text)
        is_chat = any(not isinstance(completion.text, str) for completion in group.completions)
        ids = prompt_token_ids([group.prompt], tokenizer, "chat" if is_chat else config.prompt_format)[0]
        if 0 < len(ids) <= longest:
            kept.append(SamplePrompt(text, tuple(ids)))
    return kept


def _tokenized(
    groups: list[Group], config: TrainConfig, loss: Loss, tokenizer: PreTrainedTokenizerBase, progress: Progress
) -> list[TokenizedGroup]:
    if not groups:
        return []
    pairing = config.pairing
    labeled, dropped = reduce_groups(
        groups,
        "scored" if loss.relation == "list" and "scores" in loss.inputs else loss.relation,
        policy=pairing.policy,
        min_margin=pairing.min_margin,
        weighting=pairing.weighting,
        min_agreement=pairing.min_agreement,
        soft=pairing.soft,
    )
    for reason, count in dropped.items():
        progress.say(f"{count} {reason.replace('_', ' ')} dropped.")
    assert config.max_length is not None
    options = TokenizeOptions(max_length=config.max_length, prompt_format=config.prompt_format)
    labeled = with_facts(labeled, [name for name in loss.inputs if name in FACTS])
    tokenized, counts = tokenize_groups(labeled, tokenizer, options)
    for sentence in counts.sentences():
        progress.say(f"{sentence}.")
    if counts.prompts_too_long > 0.05 * counts.groups:
        share = counts.prompts_too_long / counts.groups
        progress.say(f"That is {share:.0%} of the groups: raise --max_length (now {config.max_length}) to keep them.")
    return with_other_prompts(tokenized) if MISMATCHED in loss.inputs else tokenized


def _say_format(
    groups: list[Group], config: TrainConfig, tokenizer: PreTrainedTokenizerBase, progress: Progress
) -> None:
    plain = sum(isinstance(group.prompt, str) for group in groups)
    if plain and config.prompt_format == "as_is" and tokenizer.chat_template:
        progress.say(
            f"{plain} prompts are plain text and are trained as plain text, though the model has a chat template;"
            " --prompt_format chat wraps them in it."
        )


def make_accelerator(config: TrainConfig) -> Accelerator:
    """The engine of devices and precision. It neither splits batches nor divides losses: the loop does both.

    Raises:
        ConfigError: a precision that training doesn't do.
    """
    if config.dtype == "float16":
        raise ConfigError(
            "gradients in float16 need loss scaling, which training doesn't do",
            where="--dtype",
            remedy="Use bfloat16 or float32",
        )
    has_bfloat16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    mixed = config.dtype == "bfloat16" or (config.dtype == "auto" and has_bfloat16)
    AcceleratorState._reset_state()  # else a second run in one process would have the precision of the first
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    # Unless told so, several processes without a GPU would each believe to be alone.
    return Accelerator(mixed_precision="bf16" if mixed else "no", cpu=several and not torch.cuda.is_available())


def load_policy(config: TrainConfig, accelerator: Accelerator) -> tuple[Policy, str]:
    """The policy on its device, and the fingerprint of the model that it starts from.

    A fully trained model keeps float32 weights; a frozen one may be narrower. Evaluation mode switches off whatever an
    architecture does at random in training: many have dropout that isn't a module.
    """
    wide = config.peft.method == "none"
    dtype = torch.float32 if wide else weights_dtype(config.dtype, accelerator.device)
    model = load_model(config.model, dtype=dtype)
    weights = start_fingerprint(fingerprint(model), config.peft)
    return Policy(add_adapter(model, config.peft, seed=config.seed)).to(accelerator.device).eval(), weights


def _probe(groups: list[TokenizedGroup], policy: Policy) -> PackedBatch:
    """What the engine is checked on: two short groups, and one beyond the model's attention window, if there is."""
    by_length = sorted(groups, key=lambda group: group.num_tokens)
    window = getattr(policy.transformer.config.get_text_config(), "sliding_window", None) or math.inf
    beyond = (group for group in by_length[2:] if len(group.prompt_ids) + max(map(len, group.completion_ids)) > window)
    return pack([*by_length[:2], *islice(beyond, 1)])


def with_max_length(config: TrainConfig) -> TrainConfig:
    """The configuration with its ``max_length`` settled.

    Raises:
        ConfigError: the model takes fewer tokens.
    """
    longest = max_positions(config.model)
    if longest is not None and config.peft.num_virtual_tokens is not None:
        longest -= config.peft.num_virtual_tokens
    if config.max_length is None:
        return replace(config, max_length=DEFAULT_LENGTH if longest is None else min(DEFAULT_LENGTH, longest))
    if longest is not None and config.max_length > longest:
        raise ConfigError(
            f"the model takes {longest} tokens{_beside_virtual(config)}, fewer than {config.max_length}",
            where="--max_length",
            remedy=f"Use at most {longest}",
        )
    return config


def _beside_virtual(config: TrainConfig) -> str:
    virtual = config.peft.num_virtual_tokens
    return f" beside {virtual} virtual ones" if virtual else ""


def _check_vocabulary(policy: Policy, tokenizer: PreTrainedTokenizerBase) -> None:
    embeddings: Any = policy.transformer.get_input_embeddings()
    if len(tokenizer) > embeddings.weight.shape[0]:
        raise ConfigError(
            f"the tokenizer has {len(tokenizer)} tokens, but the model embeds {embeddings.weight.shape[0]}",
            where="--model",
            remedy="Use the tokenizer that belongs to the model",
        )
