"""The stages of a round. Each is a function of files to a file, and does again only what isn't there yet."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dipole.config import LossConfig, PeftConfig, TrainConfig
from dipole.data.files import is_held_out
from dipole.data.formats import load_groups, save_groups
from dipole.data.growing import GrowingGroups
from dipole.data.select import Pairing, select_pairs
from dipole.data.splits import assign_splits
from dipole.errors import ConfigError, DataError
from dipole.feedback.budget import Limits
from dipole.feedback.judge import Judge, Pair, all_pairs, judge_groups
from dipole.feedback.registry import JudgeOptions, open_judge
from dipole.generating import PARTIAL, LocalSampler, generate_groups
from dipole.group import Group
from dipole.iterate.folder import Round, round_of, sha256
from dipole.iterate.settings import IterateConfig
from dipole.policy.sampling import Sampling
from dipole.policy.saved import SavedPolicy, load_policy
from dipole.progress import Progress

SELF = "self"
"""The judge that is the last round's policy."""

EMBEDDED = "embedded"
"""The small model that comes as a Python package, wherever it lies on this machine."""

PER_SEED = 1_000_003
"""What seeds are multiplied by, so that rounds of different seeds never share one."""


@dataclass(slots=True)
class Work:
    """What every stage knows: the resolved configuration, the folder, and whom to tell."""

    config: IterateConfig
    output: Path
    progress: Progress

    @property
    def all_prompts(self) -> Path:
        """All prompts, split."""
        return self.output / "prompts.jsonl"

    def round(self, number: int) -> Round:
        """A round's place."""
        return round_of(self.output, number)

    def policy(self, number: int) -> tuple[str, str | None]:
        """The policy that a round ended with: a model, and its adapter if it has one."""
        first = located(self.config.model, self.progress)
        if number == 0:
            return first, None
        final = str(self.round(number).run / "final")
        return (final, None) if self.config.peft.method == "none" else (first, final)

    def seed(self, number: int) -> int:
        """Of a round."""
        return PER_SEED * self.config.seed + number


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage: what a person calls it, the file that it writes, and how."""

    name: str
    result: Callable[[Round], Path]
    run: Callable[[Work, Round], dict[str, Any]]


def split_prompts(work: Work, check: Callable[[Work, Sequence[Group]], None]) -> None:
    """Divides the prompts into those that are trained on and those that are evaluated on, before anything else.

    Args:
        work: the rounds.
        check: raises for a prompt that nothing can be written to.

    Raises:
        DataError: one side is empty, or the rounds there were made with other prompts.
        ConfigError: there are fewer prompts than the rounds need.
    """
    config = work.config
    if work.all_prompts.exists():
        _check_same_prompts(work)
    else:
        bare = [replace(group, completions=(), judgments=()) for group in load_groups(config.prompts)]
        check(work, bare)
        groups = assign_splits(bare, eval_share=config.eval_share, seed=config.seed)
        groups = [replace(group, split="eval" if is_held_out(group.split) else "train") for group in groups]
        for split in ("train", "eval"):
            if not any(group.split == split for group in groups):
                raise DataError(
                    f"no prompt is left for '{split}'",
                    where=config.prompts,
                    remedy="Give more prompts that differ, another --eval_share, or splits in the file",
                )
        save_groups(groups, work.all_prompts)
    share(work, round_of(work.output, 1))


def _check_same_prompts(work: Work) -> None:
    """A file that has gone is none of the rounds' business: they have their own copy."""
    source = Path(work.config.prompts)
    if not source.exists():
        return
    now, then = ({group.id: group.prompt for group in load_groups(path)} for path in (source, work.all_prompts))
    if now != then:
        changed = next(id for id in (*then, *now) if now.get(id) != then.get(id))
        raise DataError(
            f"its rounds were made with other prompts: '{changed}' has changed",
            where=str(source),
            remedy="Restore the file, or use another --output",
        )


def share(work: Work, round: Round) -> list[Group]:
    """The prompts that a round is trained on.

    Raises:
        ConfigError: there are fewer than the rounds need.
    """
    config = work.config
    assert config.rounds is not None
    order = [group for group in load_groups(work.all_prompts) if group.split == "train"]
    random.Random(config.seed).shuffle(order)
    size = config.prompts_per_round or (len(order) // config.rounds if config.new_prompts else len(order))
    needed = size * (config.rounds if config.new_prompts else 1)
    if not size or needed > len(order):
        raise ConfigError(
            f"{config.rounds} rounds need {max(needed, config.rounds):,} prompts, and {len(order):,} are there",
            where="--prompts_per_round",
            remedy="Give more prompts, fewer --rounds, or --new_prompts false",
        )
    start = size * (round.number - 1) if config.new_prompts else 0
    return order[start : start + size]


def choose_prompts(work: Work, round: Round) -> dict[str, Any]:
    """Writes the round's prompts."""
    return {"prompts": save_groups(share(work, round), round.prompts)}


def generate(work: Work, round: Round) -> dict[str, Any]:
    """Samples from the last round's policy."""
    count = work.config.sampler.num_completions
    assert count is not None
    saved = open_policy(work, round.number - 1)
    sampling = sampling_of(work.config, work.seed(round.number))
    sampler = LocalSampler(saved, sampling, prompt_format=work.config.prompt_format)
    prompts = load_groups(round.prompts)
    groups = generate_groups(prompts, sampler, round.groups, num_completions=count, progress=work.progress)
    return {"policy": saved.fingerprint, "completions": sum(len(group.completions) for group in groups)}


def sampling_of(config: IterateConfig, seed: int) -> Sampling:
    """The resolved settings of the sampler.

    Raises:
        ConfigError: a number is out of its range.
    """
    settings = config.sampler
    assert settings.temperature is not None
    assert settings.top_p is not None
    return Sampling(
        temperature=settings.temperature,
        top_p=settings.top_p,
        top_k=settings.top_k,
        repetition_penalty=settings.repetition_penalty,
        stop=settings.stop,
        max_new_tokens=settings.max_new_tokens,
        batch_size=settings.batch_size,
        seed=seed,
    )


def judge(work: Work, round: Round) -> dict[str, Any]:
    """Has the training judge say what it thinks of the completions."""
    judge = open_named(work, work.config.judge, round.number - 1)
    judged = judged_groups(work, judge, load_groups(round.groups), round.judged, all_pairs)
    return {"judge": judge.name, "judgments": sum(len(group.judgments) for group in judged)}


def pair(work: Work, round: Round) -> dict[str, Any]:
    """Chooses the pairs, and puts those of earlier rounds beside them.

    Raises:
        DataError: no pair says anything.
    """
    pairing = pairing_of(work.config, work.seed(round.number))
    found = select_pairs(load_groups(round.judged), pairing)
    if not found.groups:
        counts = ", ".join(f"{name.replace('_', ' ')}: {count}" for name, count in found.counts.items())
        raise DataError(
            f"no pair says anything ({counts})",
            where=str(round.judged),
            remedy="Sample more completions or hotter ones, or use a judge that tells them apart",
        )
    named = [replace(group, id=f"round-{round.number}:{group.id}") for group in found.groups]
    save_groups(named, round.pairs)
    first = max(1, round.number - work.config.keep_rounds)
    earlier = [group for number in range(first, round.number) for group in load_groups(work.round(number).pairs)]
    save_groups([*named, *earlier], round.training)
    return {**found.counts, "pairs_of_earlier_rounds": sum(len(group.judgments) for group in earlier)}


def pairing_of(config: IterateConfig, seed: int) -> Pairing:
    """The resolved policy of pairs.

    Raises:
        ConfigError: its numbers don't fit.
    """
    settings = config.pairing
    assert settings.policy is not None
    return Pairing(
        policy=settings.policy, min_gap=settings.min_gap, accept=settings.accept, beta=settings.beta, seed=seed
    )


def train(work: Work, round: Round) -> dict[str, Any]:
    """Trains the last round's policy on the pairs, with the reference that the configuration names."""
    from dipole.evaluate.measure import measure_run
    from dipole.evaluate.report import write_report
    from dipole.train.run import train as train_run

    train_run(train_config(work, round), work.progress, kind="iterate")
    measure_run(round.run)
    write_report(round.run)
    return {"policy": str(round.run.relative_to(work.output) / "final")}


def train_config(work: Work, round: Round) -> TrainConfig:
    """The training run of a round."""
    config, settings = work.config, work.config.training
    model, adapter = work.policy(round.number - 1)
    peft = config.peft if adapter is None else PeftConfig(start_from=adapter)
    return TrainConfig(
        model=model,
        data=str(round.training),
        output=str(round.run),
        loss=LossConfig(name=config.loss.name, **config.loss.hyperparameters()),
        peft=peft,
        reference="adapter_off" if config.reference == "first" else "auto",
        learning_rate=settings.learning_rate,
        schedule=settings.schedule,
        warmup_ratio=settings.warmup_ratio,
        global_batch_size=settings.global_batch_size,
        max_tokens_per_microbatch=settings.max_tokens_per_microbatch,
        max_length=settings.max_length,
        num_epochs=settings.num_epochs,
        max_steps=settings.max_steps,
        checkpoint_every=settings.checkpoint_every,
        prompt_format=config.prompt_format,
        dtype=config.dtype,
        seed=work.seed(round.number),
        num_samples=0,
        resume=True,
    )


def judged_groups(
    work: Work, judge: Judge, groups: Sequence[Group], output: Path, pairs: Callable[[Group], Sequence[Pair]]
) -> list[Group]:
    """The groups with the judge's judgments, into a file that grows; those that are in it aren't judged again."""
    growing = GrowingGroups(output.with_name(output.name + PARTIAL))
    done = {group.id for group in growing.groups}
    missing = [group for group in groups if group.id not in done]
    work.progress.stage(f"Judging with {judge.name}", total=len(groups))
    work.progress.advance(len(done))
    for group in judge_groups(judge, missing, pairs, work.progress, max_invalid=work.config.max_invalid):
        growing.append([group])
    found = {group.id: group for group in growing.groups}
    judged = [found[group.id] for group in groups]
    save_groups(judged, output)
    growing.remove()
    return judged


def located(model: str, progress: Progress) -> str:
    """The folder of the embedded model; any other name as it is."""
    if model != EMBEDDED:
        return model
    from dipole.policy.embedded import embedded_model

    return str(embedded_model(progress))


def open_policy(work: Work, number: int) -> SavedPolicy:
    """The policy of a round, loaded."""
    work.progress.stage("Loading the policy")
    model, adapter = work.policy(number)
    return load_policy(model, adapter=adapter, dtype=work.config.dtype)


def judge_options(work: Work, *, keep: bool = True) -> JudgeOptions:
    """What judges are opened with; replies are kept in the rounds' folder.

    Raises:
        ConfigError: a limit is out of range, or one on money has no prices.
    """
    config = work.config
    limits = Limits(
        max_calls=config.max_calls,
        max_total_tokens=config.max_total_tokens,
        max_cost=config.max_cost,
        prompt_price=config.prompt_price,
        completion_price=config.completion_price,
    )
    cache = work.output / "replies.sqlite" if keep else None
    return JudgeOptions(cache=cache, limits=limits, threads=config.threads, timeout=config.timeout)


def open_named(work: Work, spelling: str, number: int, *, keep: bool = True) -> Judge:
    """A judge by its name; ``self`` is the policy of the round ``number``. Its replies are kept, or not.

    Raises:
        ConfigError: there is no such judge.
    """
    kind, question, settings = spelling.partition("?")
    if kind == SELF:
        model, adapter = work.policy(number)
        spelling = f"model:{model if adapter is None else adapter}{question}{settings}"
    elif kind == f"model:{EMBEDDED}":
        spelling = f"model:{located(EMBEDDED, work.progress)}{question}{settings}"
    return open_judge(spelling, judge_options(work, keep=keep))


def facts_of(paths: Iterable[Path]) -> dict[str, str]:
    """The hash of each file that is there."""
    return {path.name: sha256(path) for path in paths if path.is_file()}
