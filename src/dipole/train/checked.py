"""Options and data of a run, read and found to fit each other before any weights are loaded."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from dipole.config import TrainConfig
from dipole.data.audit import AuditReport, audit
from dipole.data.batch import Order, groups_fingerprint
from dipole.data.facts import with_facts
from dipole.data.files import folder_of, is_held_out
from dipole.data.formats import load_groups
from dipole.data.reduce import reduce_groups
from dipole.data.tokenize import TokenizedGroup, TokenizeOptions, prompt_token_ids, tokenize_groups
from dipole.errors import ConfigError, DataError
from dipole.group import Group, plain
from dipole.objective import Loss
from dipole.objective.constraints import Constraint, ConstraintFunction, named_constraints
from dipole.policy.adapters import settled
from dipole.policy.load import load_tokenizer, max_positions, max_positions_and_why
from dipole.policy.locate import allowed_by, check_weights
from dipole.policy.reward import separate_padding
from dipole.progress import Progress
from dipole.train.inputs import FACTS, MISMATCHED, check_relations, check_trainable, with_other_prompts
from dipole.train.optim import cautions
from dipole.train.reward import check_reward_options, loss_of

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """Options and data of a run that fit each other; no weights have been loaded for that.

    Args:
        config: with everything settled that was left open.
        loss, hyper, constraints, tokenizer, data: see ``Run``.
    """

    config: TrainConfig
    loss: Loss
    hyper: Mapping[str, Any]
    constraints: tuple[Constraint, ...]
    tokenizer: PreTrainedTokenizerBase
    data: Data

    @property
    def order(self) -> Order:
        """The order of the data."""
        return Order(len(self.data.train), self.config.global_batch_size, self.config.seed)

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the run."""
        total = self.order.steps_per_epoch * self.config.num_epochs
        return total if self.config.max_steps is None else min(total, self.config.max_steps)


def check(
    config: TrainConfig, progress: Progress, constraints: Sequence[Constraint | ConstraintFunction] = ()
) -> Checked:
    """Reads the data and checks everything that needs no weights; cheap checks come before slow ones.

    Raises:
        ConfigError, DataError: see ``prepare``.
    """
    check_weights(config.model, allowed_by(config))
    config = with_max_length(replace(config, peft=settled(config.peft)))
    loss = loss_of(config)
    check_trainable(loss)
    named = named_constraints(constraints)
    if named and loss.relation != "pair":
        raise ConfigError(f"{loss.name} has no pairs, and constraints are functions of pairs", where="constraints")
    hyper = loss.settings(**config.loss.hyperparameters())
    tokenizer = load_tokenizer(config.model, allowed_by(config))
    if config.objective == "reward_model":
        check_reward_options(config, named)
        config = replace(config, loss=replace(config.loss, name=loss.name))
        separate_padding(tokenizer)
    data = prepare_data(config, loss, tokenizer, progress)
    check_relations(loss, hyper, [*data.train, *data.held_out])
    completions_per_step = config.global_batch_size * data.facts["completions"] / data.facts["groups"]
    for caution in cautions(config, hyper.get("beta"), completions_per_step):
        progress.say(caution)
    return Checked(config=config, loss=loss, hyper=hyper, constraints=named, tokenizer=tokenizer, data=data)


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
    report = audit(
        train,
        eval_groups=held_out,
        allow_shared_prompts=config.allow_shared_prompts,
        folder=folder_of(config.data),
    )
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
    writes = config.objective == "policy"
    prompts = _sample_prompts(held_out or train, config, tokenizer) if writes else []
    if writes and config.num_samples and not prompts:
        progress.say(f"No prompt leaves room for a sample of {config.sample_tokens} tokens, so none is drawn.")
    return Data(train=tokenized[0], held_out=tokenized[1], prompts=prompts, report=report, facts=facts)


def _sample_prompts(groups: list[Group], config: TrainConfig, tokenizer: PreTrainedTokenizerBase) -> list[SamplePrompt]:
    """The first ``num_samples`` different prompts that fit ``max_length`` and leave the model room for a sample."""
    positions = (max_positions(config.model, allowed_by(config)) or math.inf) - (config.peft.num_virtual_tokens or 0)
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


def with_max_length(config: TrainConfig) -> TrainConfig:
    """The configuration with its ``max_length`` settled.

    Raises:
        ConfigError: the model takes fewer tokens.
    """
    longest, why = max_positions_and_why(config.model, allowed_by(config))
    if longest is not None and config.peft.num_virtual_tokens is not None:
        longest -= config.peft.num_virtual_tokens
    if config.max_length is None:
        return replace(config, max_length=DEFAULT_LENGTH if longest is None else min(DEFAULT_LENGTH, longest))
    if longest is not None and config.max_length > longest:
        raise ConfigError(
            f"the model takes {longest} tokens{_beside_virtual(config)}, fewer than {config.max_length}"
            f"{why and f': {why}'}",
            where="--max_length",
            remedy=f"Use at most {longest}",
        )
    return config


def _beside_virtual(config: TrainConfig) -> str:
    virtual = config.peft.num_virtual_tokens
    return f" beside {virtual} virtual ones" if virtual else ""
