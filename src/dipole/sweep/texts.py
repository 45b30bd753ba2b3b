"""Texts become what the base model imitates, prompts to train on, and prompts to test on; completions become groups."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dipole.data.reviews import film_reviews
from dipole.data.tokenize import prompt_token_ids
from dipole.data.validate import fold
from dipole.errors import ConfigError, DataError
from dipole.feedback.rules import as_scorer, find_function
from dipole.group import Comparison, Completion, Group, Rating
from dipole.sweep.plan import Sizes

Score = Callable[[str, str], float]
"""From a prompt and its completion to the reward that everything is measured by."""

WORDS = (6, 14)
"""Shortest and longest film-review sentence in words: most of them end within the tokens that are sampled."""
PROMPT_TOKENS = (2, 8)
"""Fewest and most tokens of a text that become a prompt, as in Rafailov et al. 2023, appendix C.1."""
NOTHING_SAID = "."
"""The other completion of an imitated text, for a loss that doesn't look at it: training takes pairs."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """The beginning of a text, as a person reads it and as the model does."""

    text: str
    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Texts:
    """Three parts with no text in common, and no prompt.

    Args:
        imitated: prompt and rest of the texts that the base model is fine-tuned on.
        prompts: to train on.
        test: to measure on.
    """

    imitated: list[tuple[str, str]]
    prompts: list[Prompt]
    test: list[Prompt]


def read_texts(path: str | None) -> list[str]:
    """A text a line of a file; the film-review sentences without one.

    Raises:
        DataError: the file can't be read.
    """
    if path is None:
        return [sentence.text for sentence in film_reviews(words=WORDS)]
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as fault:
        raise DataError(f"can't be read: {fault}", where=path) from fault
    return list(dict.fromkeys(line.strip() for line in lines if line.strip()))


def open_score(spelling: str) -> Score:
    """``vader``, sentiment of prompt and completion as one text; or ``package.module.function``, ``file.py:function``.

    Raises:
        ConfigError: there is no such function, or a package is missing.
    """
    if spelling != "vader":
        return as_scorer(find_function(spelling), spelling)
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ImportError as fault:
        raise ConfigError(
            "'vader' needs vaderSentiment", where="--scorer", remedy="Install it: pip install 'dipole[demo]'"
        ) from fault
    analyzer = SentimentIntensityAnalyzer()
    return lambda prompt, completion: float(analyzer.polarity_scores(prompt + completion)["compound"])


def divided(texts: Sequence[str], tokenizer: Any, sizes: Sizes, seed: int) -> Texts:
    """Shuffles and divides the texts.

    Raises:
        DataError: there are too few.
    """
    random = np.random.default_rng(seed)
    fewest, most = PROMPT_TOKENS
    beginnings: dict[str, str] = {}
    for index in random.permutation(len(texts)):
        text = texts[index]
        ids = tokenizer([text], add_special_tokens=False)["input_ids"][0]
        length = int(random.integers(fewest, most + 1))
        if len(ids) > length:
            beginning = tokenizer.decode(ids[:length], skip_special_tokens=True)
            if text.startswith(beginning) and fold(text[len(beginning) :]):
                beginnings.setdefault(beginning, text)
    needed = {"test": sizes.test_prompts, "prompts": sizes.prompts, "imitated": sizes.imitated}
    if len(beginnings) < sum(needed.values()):
        raise DataError(
            f"{sum(needed.values())} texts with different beginnings are needed, and there are {len(beginnings)}",
            where="--texts",
            remedy="Give more of them, longer than a few words",
        )
    found = iter(beginnings.items())
    parts = {name: [next(found) for _ in range(count)] for name, count in needed.items()}

    def prompts(part: list[tuple[str, str]]) -> list[Prompt]:
        beginnings = [beginning for beginning, _ in part]
        ids = prompt_token_ids(beginnings, tokenizer, "as_is")
        return [Prompt(text, tuple(row)) for text, row in zip(beginnings, ids, strict=True)]

    return Texts(
        imitated=[(beginning, text[len(beginning) :]) for beginning, text in parts["imitated"]],
        prompts=prompts(parts["prompts"]),
        test=prompts(parts["test"]),
    )


def imitation_groups(texts: Texts) -> list[Group]:
    """Every text as the answer to its beginning, preferred to saying nothing."""
    return [
        Group(
            id=f"text-{number}",
            prompt=beginning,
            completions=(Completion(text=rest, source="texts"), Completion(text=NOTHING_SAID)),
            judgments=(Comparison(i=0, j=1),),
        )
        for number, (beginning, rest) in enumerate(texts.imitated)
        if fold(rest) != fold(NOTHING_SAID)
    ]


def rated_groups(prompts: Sequence[Prompt], completions: Sequence[Sequence[str]], score: Score) -> list[Group]:
    """Sampled completions with the scorer's ratings; empty ones, and ones that say the same, are left out."""
    groups = []
    for number, (prompt, texts) in enumerate(zip(prompts, completions, strict=True)):
        kept = list({fold(text): text for text in reversed(texts) if fold(text)}.values())[::-1]
        if len(kept) < 2:
            continue
        ratings = tuple(Rating(i=i, value=score(prompt.text, text), annotator="scorer") for i, text in enumerate(kept))
        answers = tuple(Completion(text=text, source="base") for text in kept)
        groups.append(Group(id=f"prompt-{number}", prompt=prompt.text, completions=answers, judgments=ratings))
    return groups
