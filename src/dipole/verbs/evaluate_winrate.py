"""``dipole evaluate winrate``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dipole.errors import ConfigError
from dipole.verbs.verb import Verb


@dataclass(frozen=True, slots=True, kw_only=True)
class WinRateOptions:
    """Win rate against sampling temperature: models or files of answers against an opponent, in both orders."""

    models: str
    """NAME=PATH of each, with commas between; a PATH is a model, an adapter, a run's final/, or a file of answers."""
    prompts: str
    """A file with prompts; with --against reference, the first completion of each is what to beat."""
    judge: str
    """Who judges, as in dipole judge: vader, reward_model:PATH, model:PATH, server:URL#MODEL …"""
    output: str
    """A folder for answers, matches, winrate.json, winrate.md and pictures. Run again, it does only what is missing."""
    against: str = "reference"
    """``reference``, or the name of one of the models, which is sampled once."""
    temperatures: str = "0,0.25,0.5,0.75,1"
    """At which models are sampled, with commas between; 0 takes the most likely token."""
    against_temperature: float = 1.0
    """Of an opponent that is a model."""
    num_prompts: int | None = None
    """How many of the prompts; all by default."""
    max_new_tokens: int = 128
    """Most tokens of an answer."""
    prompt_format: Literal["as_is", "chat"] = "as_is"
    """``chat`` makes a plain prompt a user's message."""
    cache: str | None = None
    """The file of a language model's replies, so that nothing is asked twice; by default in the output folder."""
    max_calls: int | None = None
    """Most calls to a server, failed ones included."""
    seed: int = 0
    """Of the samples and of the intervals."""


def run(options: WinRateOptions) -> int:
    """Shows the table and where the pictures are."""
    from dipole import terminal
    from dipole.contest import Contest, run_contest
    from dipole.evaluate.winrate_page import COLUMNS, rate_row
    from dipole.feedback.budget import Limits
    from dipole.feedback.registry import JudgeOptions

    output = Path(options.output)
    contest = Contest(
        methods=_named(options.models),
        prompts=options.prompts,
        judge=options.judge,
        against=options.against,
        temperatures=_numbers(options.temperatures),
        against_temperature=options.against_temperature,
        max_new_tokens=options.max_new_tokens,
        num_prompts=options.num_prompts,
        prompt_format=options.prompt_format,
        seed=options.seed,
    )
    cache = options.cache or output / "replies.sqlite"
    with terminal.progress() as progress:
        judging = JudgeOptions(cache=cache, limits=Limits(max_calls=options.max_calls))
        found = run_contest(contest, output, judge_options=judging, progress=progress)
    terminal.show_table(COLUMNS, [rate_row(rate) for rate in found.rates])
    terminal.show(
        "In brackets: 95 % intervals by prompt. 'finds': the distance from one half that this sample could find."
    )
    for file in found.files:
        terminal.show(f"Written: {file}")
    return 0


def _named(models: str) -> dict[str, str]:
    named: dict[str, str] = {}
    for item in models.split(","):
        name, separator, place = item.strip().partition("=")
        if not (separator and name and place):
            raise ConfigError(
                f"'{item}' isn't NAME=PATH", where="--models", remedy="Write --models dpo=runs/a/final,sft=runs/b"
            )
        if name in named or not name.replace("-", "").replace("_", "").isalnum():
            problem = "is there twice" if name in named else "isn't made of letters, digits, - and _"
            raise ConfigError(f"the name '{name}' {problem}", where="--models")
        named[name] = place
    return named


def _numbers(temperatures: str) -> tuple[float, ...]:
    try:
        found = tuple(float(item) for item in temperatures.split(","))
    except ValueError as fault:
        raise ConfigError(f"'{temperatures}' isn't numbers with commas between", where="--temperatures") from fault
    if any(not 0 <= value < 100 for value in found):
        raise ConfigError("a temperature is at least 0", where="--temperatures")
    return found


VERB = Verb(
    run,
    WinRateOptions,
    "dipole evaluate winrate --models dpo=runs/a/final,base=path/to/model --prompts eval.jsonl --judge vader"
    " --output runs/winrate",
)
