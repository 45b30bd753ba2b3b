"""Judges without a model: rules, a sentiment lexicon, and anyone's Python function."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from dipole.errors import ConfigError, JudgeError
from dipole.feedback.judge import Pair
from dipole.group import Comparison, Group, Judgment, Rating, plain

Form = Literal["ratings", "comparisons"]
Scorer = Callable[[str, str], float]
"""From a prompt and a completion, both plain text, to a score; higher is better."""

RULES: dict[str, Scorer] = {
    "longer": lambda prompt, completion: float(len(completion)),
    "shorter": lambda prompt, completion: -float(len(completion)),
}


class ScoreJudge:
    """Judges by a score of each completion alone.

    Args:
        scorer: (prompt, completion) → score.
        name: the annotator.
        form: ``"ratings"`` gives the scores themselves; ``"comparisons"`` says which is higher, or a tie.
    """

    def __init__(self, scorer: Scorer, name: str, form: Form = "ratings") -> None:
        self.name = name
        self._scorer, self._form = scorer, form

    def judge(self, group: Group, pairs: Sequence[Pair]) -> tuple[Judgment, ...]:
        """Ratings of the completions that are in a pair, or a comparison of each pair."""
        prompt = plain(group.prompt)
        wanted = sorted({position for pair in pairs for position in pair})
        scores = {i: self._score(group, prompt, i) for i in wanted}
        if self._form == "ratings":
            return tuple(Rating(i=i, value=score, annotator=self.name) for i, score in scores.items())
        return tuple(Comparison(i=i, j=j, p=_higher(scores[i], scores[j]), annotator=self.name) for i, j in pairs)

    def _score(self, group: Group, prompt: str, i: int) -> float:
        try:
            return _finite(self._scorer(prompt, plain(group.completions[i].text)))
        except Exception as fault:  # a function of somebody else's: whatever it raises is about this completion
            raise JudgeError(
                f"{self.name} can't score completion {i} ({type(fault).__name__}: {fault})",
                where=f"group '{group.id}'",
                remedy="Correct the function; it takes text and returns a finite number",
            ) from fault


def rule_judge(rule: str, name: str, form: Form) -> ScoreJudge:
    """One of ``RULES``."""
    return ScoreJudge(RULES[rule], name, form)


def vader_judge(name: str, form: Form) -> ScoreJudge:
    """Sentiment by VADER's lexicon, from −1 to 1 (Hutto and Gilbert 2014).

    Raises:
        ConfigError: the package isn't installed.
    """
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ImportError as fault:
        raise ConfigError(
            "the judge 'vader' needs vaderSentiment", remedy="Install it: pip install 'dipole[demo]'"
        ) from fault
    analyzer = SentimentIntensityAnalyzer()
    return ScoreJudge(lambda prompt, completion: float(analyzer.polarity_scores(completion)["compound"]), name, form)


def function_judge(place: str, name: str, form: Form) -> ScoreJudge:
    """A function of a module, ``package.module.function``, or of a file, ``folder/file.py:function``.

    It takes (completion) or (prompt, completion), both plain text.

    Raises:
        ConfigError: there is no such function, or it takes something else.
    """
    return ScoreJudge(as_scorer(find_function(place), place), name, form)


def find_function(place: str) -> Callable[..., Any]:
    """What ``package.module.function`` or ``file.py:function`` names. Importing it runs the module.

    Raises:
        ConfigError: there is none.
    """
    if ".py:" in place:
        file, _, function = place.rpartition(":")
        module = _import_file(Path(file))
    else:
        package, _, function = place.rpartition(".")
        try:
            module = importlib.import_module(package)
        except (ImportError, ValueError) as fault:
            raise ConfigError(
                f"can't import '{package}' ({fault})", where="--judge", remedy="Write it as package.module.function"
            ) from fault
    found = getattr(module, function, None)
    if not callable(found):
        raise ConfigError(f"there is no function '{function}' in {place}", where="--judge")
    result: Callable[..., Any] = found
    return result


def as_scorer(function: Callable[..., Any], place: str) -> Scorer:
    """A function of one or two texts as one of two.

    Raises:
        ConfigError: it takes another number.
    """
    try:
        required = [
            item
            for item in inspect.signature(function).parameters.values()
            if item.kind in (item.POSITIONAL_ONLY, item.POSITIONAL_OR_KEYWORD) and item.default is item.empty
        ]
    except (TypeError, ValueError) as fault:
        raise ConfigError(f"can't tell what {place} takes", where="--judge") from fault
    if len(required) == 1:
        return lambda prompt, completion: function(completion)
    if len(required) == 2:
        return lambda prompt, completion: function(prompt, completion)
    raise ConfigError(
        f"{place} takes {len(required)} arguments", where="--judge", remedy="Take (completion) or (prompt, completion)"
    )


def _import_file(file: Path) -> Any:
    """The module that a file holds."""
    name = f"dipole_judge_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    if not file.is_file() or spec is None or spec.loader is None:
        raise ConfigError(f"there is no file '{file}'", where="--judge")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except Exception as fault:
        raise ConfigError(
            f"importing it fails ({type(fault).__name__}: {fault})", where=str(file), remedy="Correct the file"
        ) from fault
    return module


def _finite(value: Any) -> float:
    score = float(value)
    if score - score != 0:
        raise ValueError(f"the score is {score}")
    return score


def _higher(left: float, right: float) -> float:
    return 0.5 if left == right else float(left > right)
