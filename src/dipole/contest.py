"""Models against an opponent over a grid of temperatures: sample, judge in both orders, compare.

Each step ends in a file of the output folder, and what is there isn't done again. A file of answers takes the place of
a model; it has no temperature, since nobody knows how it was sampled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from dipole.data.formats import load_groups
from dipole.data.tokenize import PromptFormat
from dipole.errors import ConfigError, DataError, nearest
from dipole.evaluate.page import write_page
from dipole.evaluate.winrate import Difference, Match, WinRate, differences, matches_of, win_rates
from dipole.evaluate.winrate_page import write_win_rates
from dipole.feedback.registry import JudgeOptions, open_judge
from dipole.generating import generate_groups, local_sampler
from dipole.group import Completion, Group
from dipole.policy.sampling import Sampling
from dipole.progress import Progress, Silent

REFERENCE = "reference"
"""The opponent whose answers are the first completion of each group."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contest:
    """Who is compared, on what, and how.

    Args:
        methods: name → a model, an adapter or a run's ``final/``; or a file of groups whose first completion counts.
        prompts: a file of groups.
        judge: as in ``dipole.feedback.registry``.
        against: ``"reference"``, or one of the methods, which is sampled once at ``against_temperature``.
        temperatures: at which models are sampled; 0 takes the most likely token.
        against_temperature: of an opponent that is a model.
        max_new_tokens: where an answer is cut.
        num_prompts: how many of the prompts; all by default.
        prompt_format: ``"chat"`` makes a plain prompt a user's message.
        seed: of the samples and of the bootstrap.
        resamples: of the bootstrap.
    """

    methods: Mapping[str, str]
    prompts: str
    judge: str
    against: str = REFERENCE
    temperatures: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    against_temperature: float = 1.0
    max_new_tokens: int = 128
    num_prompts: int | None = None
    prompt_format: PromptFormat = "as_is"
    seed: int = 0
    resamples: int = 1000

    def __post_init__(self) -> None:
        if not self.methods:
            raise ConfigError(
                "there is nobody to compare", where="--models", remedy="Write --models NAME=PATH,NAME=PATH"
            )
        if self.against != REFERENCE and self.against not in self.methods:
            raise ConfigError(
                f"there is no model '{self.against}'",
                where="--against",
                remedy=nearest(self.against, [REFERENCE, *self.methods]),
            )
        if self.against != REFERENCE and len(self.methods) < 2:
            raise ConfigError("a model would be compared with itself", where="--against", remedy="Name another model")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a contest found; ``files`` are what it wrote."""

    rates: list[WinRate]
    differences: list[Difference]
    files: tuple[Path, ...]


def run_contest(
    contest: Contest, output: Path, *, judge_options: JudgeOptions | None = None, progress: Progress | None = None
) -> Outcome:
    """Samples, judges, compares, and writes winrate.json, a page of words and pictures.

    Args:
        contest: what to do.
        output: a folder; what it holds of the same contest isn't done again.
        judge_options: of the judge.
        progress: is told where it is.

    Raises:
        ConfigError: the folder holds another contest.
        DataError: answers are missing.
        JudgeError: the judge can't go on.
    """
    progress = progress or Silent()
    groups = load_groups(contest.prompts)[: contest.num_prompts]
    _claim(output, contest, groups)
    opponent = _opponent(contest, groups, output, progress)
    judge = open_judge(contest.judge, judge_options)
    matches: list[Match] = []
    for method, place in contest.methods.items():
        if method == contest.against:
            continue
        for temperature in (None,) if _is_file(place) else contest.temperatures:
            answers = _answers(contest, method, temperature, groups, output, progress)
            name = f"{method}-{_shown(temperature)}"
            file = output / "matches" / f"{name}.json"
            if not file.exists():
                progress.stage(f"Judging {name}", total=len(groups))
                pairs = [
                    replace(group, completions=(mine, other), judgments=())
                    for group, mine, other in zip(groups, answers, opponent, strict=True)
                ]
                found = []
                for item in matches_of(judge, pairs, method=method, temperature=temperature):
                    found.append(item)
                    progress.advance()
                file.parent.mkdir(parents=True, exist_ok=True)
                write_page(json.dumps([asdict(item) for item in found]), file)
            matches += [Match(**row) for row in json.loads(file.read_text(encoding="utf-8"))]
    rates = win_rates(matches, resamples=contest.resamples, seed=contest.seed)
    between = differences(matches, seed=contest.seed)
    files = write_win_rates(rates, between, output, opponent=contest.against, judge=judge.name)
    return Outcome(rates=rates, differences=between, files=files)


def _claim(output: Path, contest: Contest, groups: Sequence[Group]) -> None:
    """Writes down what the folder is for, or refuses one that is for something else."""
    texts = json.dumps([[str(group.prompt), str(group.completions[:1])] for group in groups])
    facts: dict[str, Any] = asdict(contest) | {"prompts": sha256(texts.encode("utf-8", "replace")).hexdigest()}
    facts = json.loads(json.dumps({key: value for key, value in facts.items() if key != "resamples"}))
    file = output / "contest.json"
    if file.exists():
        before = json.loads(file.read_text(encoding="utf-8"))
        if before != facts:
            changed = ", ".join(sorted(key for key in facts if before.get(key) != facts[key]))
            raise ConfigError(
                f"the folder holds another contest (other {changed})", where=f"--output {output}", remedy="Name another"
            )
        return
    output.mkdir(parents=True, exist_ok=True)
    write_page(json.dumps(facts, indent=1) + "\n", file)


def _opponent(contest: Contest, groups: Sequence[Group], output: Path, progress: Progress) -> list[Completion]:
    if contest.against == REFERENCE:
        missing = next((group.id for group in groups if not group.completions), None)
        if missing is not None:
            raise DataError(
                "has no completion to be compared with",
                where=f"{contest.prompts}, group '{missing}'",
                remedy="Name a model with --against",
            )
        return [group.completions[0] for group in groups]
    temperature = None if _is_file(contest.methods[contest.against]) else contest.against_temperature
    return _answers(contest, contest.against, temperature, groups, output, progress)


def _answers(
    contest: Contest, method: str, temperature: float | None, groups: Sequence[Group], output: Path, progress: Progress
) -> list[Completion]:
    """A completion of each prompt, read or sampled."""
    place = contest.methods[method]
    if temperature is None:
        by_id = {group.id: group for group in load_groups(place)}
        found = [by_id.get(group.id) for group in groups]
        for group, answered in zip(groups, found, strict=True):
            if answered is None or not answered.completions:
                raise DataError(f"has no answer to the prompt of group '{group.id}'", where=place)
        return [group.completions[0] for group in found if group is not None]
    progress.stage(f"Loading {method}")
    sampling = Sampling(temperature=temperature, max_new_tokens=contest.max_new_tokens, seed=contest.seed)
    sampled = generate_groups(
        [replace(group, completions=(), judgments=()) for group in groups],
        local_sampler(place, sampling, prompt_format=contest.prompt_format),
        output / "answers" / f"{method}-{_shown(temperature)}.jsonl",
        num_completions=1,
        progress=progress,
    )
    return [group.completions[0] for group in sampled]


def _is_file(place: str) -> bool:
    return place.endswith((".jsonl", ".jsonl.gz", ".json", ".parquet", ".csv"))


def _shown(temperature: float | None) -> str:
    return "file" if temperature is None else f"t{temperature:g}"
