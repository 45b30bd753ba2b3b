"""``dipole judge``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from dipole.errors import ConfigError, JudgeError
from dipole.verbs.verb import Verb

if TYPE_CHECKING:
    from dipole.feedback.judge import Tally
    from dipole.feedback.registry import JudgeOptions
    from dipole.group import Group
    from dipole.progress import Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgingOptions:
    """Adds judgments to groups: by a rule, a reward model, or a language model in both orders; or checks a judge."""

    data: str
    """Groups with completions, in any dialect."""
    judge: str
    """Who judges: rule:longer, vader, python:module.function, file.py:function, reward_model:PATH,
    implicit:PATH+REFERENCE, model:PATH or server:URL#MODEL, with settings as in model:PATH?constitution=general."""
    output: str | None = None
    """The file to write, .jsonl or .jsonl.gz. What is done so far goes to FILE.partial.jsonl if the judge stops."""
    check: bool = False
    """Don't judge; check the judge itself: order, length, consistency, identical, empty and hostile answers, people."""
    revise: bool = False
    """First let the judge's model criticise each answer by its constitution and write a better one beside it."""
    cache: str | None = None
    """The file of replies, so that nothing is asked twice; by default OUTPUT.replies.sqlite. Limits count all in it."""
    num_pairs: int = 50
    """With --check, how many pairs to use."""
    max_invalid: float = 0.2
    """Stop when a larger share of pairs has no valid verdict."""
    threads: int = 8
    """Questions to a server at a time."""
    timeout: float = 120.0
    """Seconds that a server may take for a reply."""
    max_calls: int | None = None
    """Most calls to a server, failed ones included."""
    max_total_tokens: int | None = None
    """Most tokens of prompts and replies together."""
    max_cost: float | None = None
    """Most money, in the unit of the prices."""
    prompt_price: float | None = None
    """Price of a million tokens of prompts."""
    completion_price: float | None = None
    """Price of a million tokens of replies."""
    seed: int = 0
    """With --check, of the choice of pairs."""

    def __post_init__(self) -> None:
        if self.output is None and not self.check:
            raise ConfigError("a file to write is missing", where="--output", remedy="Or check the judge: --check")
        if self.check and (self.output is not None or self.revise):
            raise ConfigError("a check writes nothing", where="--check", remedy="Leave out --output and --revise")
        if not 0 <= self.max_invalid <= 1:
            raise ConfigError(f"a share lies between 0 and 1, not {self.max_invalid}", where="--max_invalid")
        if self.num_pairs < 1:
            raise ConfigError(f"has to be at least 1, not {self.num_pairs}", where="--num_pairs")
        if self.output is not None and Path(self.output).resolve() == Path(self.data).resolve():
            raise ConfigError("this is the file that is read", where=f"--output {self.output}", remedy="Name another")


def run(options: JudgingOptions) -> int:
    """Writes judged groups, or shows what a check found; status 5 when the judge stopped or failed its check."""
    return _check(options) if options.check else _judge(options)


def _judge(options: JudgingOptions) -> int:
    from dipole import terminal
    from dipole.data.formats import check_name, load_groups, save_groups
    from dipole.feedback.judge import Tally, judge_groups
    from dipole.feedback.registry import open_judge

    assert options.output is not None
    check_name(options.output)
    tally = Tally()
    done: list[Group] = []
    partial = Path(f"{options.output}.partial.jsonl")
    opened = _opened_with(options)
    with terminal.progress() as progress:
        groups = load_groups(options.data)
        if options.revise:
            groups = _revised(options.judge, opened, groups, progress)
        judge = open_judge(options.judge, opened)
        progress.stage(f"Judging with {judge.name}", total=len(groups))
        try:
            for group in judge_groups(judge, groups, progress=progress, tally=tally, max_invalid=options.max_invalid):
                done.append(group)
        except JudgeError:
            if done:
                save_groups(done, partial)
                progress.say(f"{partial}: the {len(done):,} groups judged so far")
            raise
    save_groups(done, options.output)
    partial.unlink(missing_ok=True)
    terminal.show(f"{options.output}: {len(done):,} groups, {tally.judgments:,} judgments by {judge.name}")
    for sentence in (*_outcome(tally), *_spending(opened)):
        terminal.show(sentence)
    return 0


def _revised(judge: str, opened: JudgeOptions, groups: list[Group], progress: Progress) -> list[Group]:
    from dipole.feedback.registry import open_writer
    from dipole.feedback.revise import revise_groups

    writer, constitution = open_writer(judge, opened)
    progress.stage(f"Revising by {constitution.name}", total=len(groups))
    return list(revise_groups(writer, constitution, groups, progress=progress))


def _check(options: JudgingOptions) -> int:
    from dipole import terminal
    from dipole.data.formats import load_groups
    from dipole.feedback.check import check_judge
    from dipole.feedback.registry import open_judge

    opened = _opened_with(options)
    with terminal.progress() as progress:
        groups = load_groups(options.data)
        progress.stage("Opening the judge")
        judge, again = (open_judge(options.judge, replace(opened, sample=sample)) for sample in (0, 1))
        checks = check_judge(
            judge, groups, again=again, num_pairs=options.num_pairs, seed=options.seed, progress=progress
        )
    terminal.show_checks(checks)
    failed = [check.name for check in checks if check.passed is False]
    terminal.show(f"{judge.name} fails: {', '.join(failed)}." if failed else f"{judge.name} passes.")
    for sentence in _spending(opened):
        terminal.show(sentence)
    return JudgeError.exit_status if failed else 0


def _opened_with(options: JudgingOptions) -> JudgeOptions:
    from dipole.feedback.budget import Limits
    from dipole.feedback.registry import JudgeOptions

    beside = None if options.output is None else f"{options.output}.replies.sqlite"
    asks_models = options.judge.startswith(("server:", "model:"))
    return JudgeOptions(
        cache=options.cache or (beside if asks_models else None),
        limits=Limits(
            max_calls=options.max_calls,
            max_total_tokens=options.max_total_tokens,
            max_cost=options.max_cost,
            prompt_price=options.prompt_price,
            completion_price=options.completion_price,
        ),
        threads=options.threads,
        timeout=options.timeout,
    )


def _outcome(tally: Tally) -> Iterator[str]:
    """What a person should know of the verdicts."""
    counted = {
        "ties": tally.ties,
        "of them with both answers bad": tally.both_bad,
        "without a valid verdict, which have no weight": tally.invalid,
        "with an answer that talks to the judge": tally.talks_to_judges,
    }
    if said := [f"{count:,} {words}" for words, count in counted.items() if count]:
        yield f"Of {tally.comparisons:,} pairs: {', '.join(said)}."
    if tally.unscored:
        yield f"{tally.unscored:,} answers couldn't be scored, most likely since they are too long."


def _spending(opened: JudgeOptions) -> Iterator[str]:
    """What the calls have used, those of earlier runs with this cache included."""
    from dipole.feedback.cache import Cache

    if opened.cache is None:
        return
    with Cache(opened.cache) as cache:
        spent = cache.spent()
    if spent.calls:
        cost = f", {spent.cost:,.2f} in money" if opened.limits.prompt_price is not None else "; prices aren't known"
        yield f"{opened.cache}: {spent.calls:,} calls, {spent.tokens:,} tokens{cost}"


VERB = Verb(run, JudgingOptions, "dipole judge --data groups.jsonl --judge vader --output judged.jsonl")
