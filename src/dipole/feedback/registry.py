"""Judges by name: what ``--judge`` takes, with settings after a question mark.

| spelling | judge | settings |
|---|---|---|
| ``rule:longer``, ``rule:shorter`` | length of the text | as |
| ``vader`` | sentiment by a lexicon, from −1 to 1 | as |
| ``python:package.module.function`` | a function: (completion) or (prompt, completion) → number | as |
| ``folder/file.py:function`` | likewise, of a file | as |
| ``reward_model:PATH`` | a model with a head for one score | as, max_length, format |
| ``implicit:PATH+REFERENCE`` | β · (log π − log π_ref) of a trained policy | as, beta, max_length, format |
| ``implicit:ADAPTER`` | likewise, of an adapter on its model | as, beta, max_length, format |
| ``model:PATH`` | a language model in this process, by its logits | rubric, constitution, label, ask, as, max_length |
| ``server:URL#MODEL`` | one behind an OpenAI-like URL | rubric, constitution, label, key, temperature, max_tokens |

as in ``server:http://127.0.0.1:8000/v1#Qwen3-8B?constitution=general&key=JUDGE_KEY``. Every judge takes ``name``, the
annotator of its judgments; otherwise that is its spelling without folders and settings.

``as``: ``ratings`` (the default) or ``comparisons``. ``rubric``: a sentence, or a file that holds one.
``constitution``: a YAML file, or one that comes with Dipole. ``label``: ``soft`` (the mean over both orders) or
``agreement`` (a tie where they disagree). ``ask``: ``pairs``, or ``each`` for the log-odds that an answer by itself
satisfies the rubric, which smaller models can tell. ``format``: ``as_is`` or ``chat``, as ``--prompt_format`` of
training. ``key``: the *name* of an environment variable. ``%23``, ``%26``, ``%3F`` stand for ``#``, ``&``, ``?``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args
from urllib.parse import unquote

from dipole.data.tokenize import PromptFormat
from dipole.errors import ConfigError, nearest
from dipole.feedback.budget import Limits
from dipole.feedback.cache import Cache
from dipole.feedback.constitution import Constitution, Principle, load_constitution
from dipole.feedback.judge import Judge
from dipole.feedback.prompting import RUBRIC
from dipole.feedback.rules import RULES, Form

if TYPE_CHECKING:
    from dipole.feedback.client import ChatClient
    from dipole.feedback.revise import Writer

LONGEST_SENTENCE = 4000


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeOptions:
    """What a judge is opened with, beside its name.

    Args:
        cache: a file of replies, so that nothing is asked twice; ``None`` keeps them in memory.
        limits: on what a judge behind a URL may spend.
        threads: questions to a server at a time.
        timeout: seconds that a server may take for a reply.
        sample: which of several replies to the same questions; a check asks for two.
    """

    cache: str | Path | None = None
    limits: Limits = field(default_factory=Limits)
    threads: int = 8
    timeout: float = 120.0
    sample: int = 0

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise ConfigError(f"has to be at least 1, not {self.threads}", where="--threads")


@dataclass(frozen=True, slots=True)
class Spelling:
    """The parts of a judge's name.

    Args:
        whole: as it was written.
        kind: one of ``KINDS``.
        what: what comes after the colon.
        settings: what comes after the question mark.
    """

    whole: str
    kind: str
    what: str
    settings: Mapping[str, str]

    @property
    def name(self) -> str:
        """The annotator."""
        if "name" in self.settings:
            return self.settings["name"]
        if not self.what:
            return self.kind
        if self.kind == "server":
            return self.what.rpartition("#")[2]
        last = "+".join(Path(part).name for part in self.what.split("+"))
        return last if self.kind == "file" else f"{self.kind}:{last}"

    def word(self, key: str, default: str, allowed: tuple[str, ...]) -> Any:
        """A setting that is one of several words."""
        value = self.settings.get(key, default)
        if value not in allowed:
            raise self.fault(f"'{key}' is '{value}'", f"It is one of {', '.join(allowed)}")
        return value

    def number(self, key: str, kind: Callable[[str], Any], default: Any) -> Any:
        """A setting that is a number of at least 0."""
        try:
            value = kind(self.settings[key]) if key in self.settings else default
        except ValueError as error:
            raise self.fault(f"'{key}' has to be a number, not '{self.settings[key]}'", "") from error
        if value is not None and not 0 <= value < float("inf"):
            raise self.fault(f"'{key}' has to be a finite number of at least 0", "")
        return value

    def fault(self, problem: str, remedy: str) -> ConfigError:
        """An error about this judge."""
        return ConfigError(problem, where=f"--judge {self.whole}", remedy=remedy or None)


def open_judge(spelling: str, options: JudgeOptions | None = None) -> Judge:
    """The judge of this name; see the module's docstring.

    Raises:
        ConfigError: there is none, a setting is unknown, or a model can't be loaded.
        JudgeError: the cache can't be used.
    """
    parts = parse_spelling(spelling)
    return KINDS[parts.kind].open(parts, options or JudgeOptions())


def parse_spelling(spelling: str) -> Spelling:
    """The parts of a judge's name.

    Raises:
        ConfigError: the kind or a setting is unknown, or something is missing.
    """
    place, _, query = spelling.partition("?")
    kind, _, what = place.partition(":")
    if ".py:" in place and kind not in KINDS:
        kind, what = "file", place
    if kind not in KINDS:
        raise ConfigError(f"there is no judge '{kind}'", where="--judge", remedy=nearest(kind, KINDS))
    settings = dict(_setting(item, spelling) for item in query.split("&") if item)
    parts = Spelling(spelling, kind, what, settings)
    if bool(what) is not KINDS[kind].needs_more:
        raise parts.fault("something is missing" if not what else "has nothing after it", f"Write {KINDS[kind].form}")
    for key in settings:
        if key not in (known := ("name", *KINDS[kind].settings)):
            raise parts.fault(f"there is no setting '{key}'", nearest(key, known))
    return parts


def _setting(item: str, spelling: str) -> tuple[str, str]:
    key, equals, value = item.partition("=")
    if not (key and equals and value):
        raise ConfigError(f"'{item}' is no setting", where=f"--judge {spelling}", remedy="Write ?key=value&key=value")
    return key, unquote(value)


def constitution_of(parts: Spelling) -> Constitution:
    """By what a language model judges: a constitution, or a rubric as a constitution of one principle.

    Raises:
        ConfigError: both are given, or one can't be read.
    """
    if "constitution" in parts.settings:
        if "rubric" in parts.settings:
            raise parts.fault("both a rubric and a constitution are given", "Leave one of them out")
        return load_constitution(parts.settings["constitution"])
    words = parts.settings.get("rubric", RUBRIC)
    file = Path(words)
    if len(words) < 200 and file.is_file():
        words = file.read_text(encoding="utf-8")
    elif file.suffix in (".txt", ".md") and " " not in words:
        raise parts.fault(f"there is no file '{words}'", "A rubric is a file or a sentence")
    if not words.strip() or len(words) > LONGEST_SENTENCE:
        raise parts.fault(
            f"the rubric has {len(words):,} characters", f"It needs some, and at most {LONGEST_SENTENCE:,}"
        )
    return Constitution(name="rubric", principles=(Principle(name="rubric", compare=words.strip()),))


def open_client(parts: Spelling, options: JudgeOptions) -> ChatClient:
    """The client of a judge behind a URL.

    Raises:
        ConfigError: the URL or the key isn't one.
    """
    from dipole.feedback.client import ChatClient, Patience

    url, _, model = parts.what.rpartition("#")
    if not url or not model:
        raise parts.fault("the model's name is missing", f"Write {KINDS['server'].form}")
    return ChatClient(
        url,
        model,
        key_variable=parts.settings.get("key"),
        cache=Cache(options.cache),
        limits=options.limits,
        patience=Patience(timeout=options.timeout),
    )


def open_writer(spelling: str, options: JudgeOptions | None = None) -> tuple[Writer, Constitution]:
    """The model behind a language-model judge, to criticise and revise answers with, and its constitution.

    Raises:
        ConfigError: the judge is of another kind, or has no constitution.
        JudgeError: the cache can't be used.
    """
    from dipole.feedback.revise import LocalWriter, RemoteWriter

    parts, options = parse_spelling(spelling), options or JudgeOptions()
    if parts.kind not in ("model", "server") or "constitution" not in parts.settings:
        raise parts.fault("only a language model with a constitution revises answers", "Add ?constitution=general")
    constitution = constitution_of(parts)
    if parts.kind == "server":
        max_tokens, temperature = parts.number("max_tokens", int, 512), parts.number("temperature", float, 0.0)
        client = open_client(parts, options)
        return RemoteWriter(
            client, threads=options.threads, max_tokens=max_tokens, temperature=temperature
        ), constitution
    from dipole.feedback.local import LocalModel

    model = LocalModel(parts.what, max_length=parts.number("max_length", int, None))
    return LocalWriter(model, parts.name, Cache(options.cache)), constitution


def _form(parts: Spelling) -> Form:
    form: Form = parts.word("as", "ratings", get_args(Form))
    return form


def _rule(parts: Spelling, options: JudgeOptions) -> Judge:
    from dipole.feedback.rules import rule_judge

    if parts.what not in RULES:
        raise parts.fault(f"there is no rule '{parts.what}'", nearest(parts.what, RULES))
    return rule_judge(parts.what, parts.name, _form(parts))


def _vader(parts: Spelling, options: JudgeOptions) -> Judge:
    from dipole.feedback.rules import vader_judge

    return vader_judge(parts.name, _form(parts))


def _function(parts: Spelling, options: JudgeOptions) -> Judge:
    from dipole.feedback.rules import function_judge

    return function_judge(parts.what, parts.name, _form(parts))


def _reward_model(parts: Spelling, options: JudgeOptions) -> Judge:
    from dipole.feedback.local import DEFAULT_LENGTH
    from dipole.feedback.rewards import RewardJudge, TrainedReward

    scorer = TrainedReward(
        parts.what,
        max_length=parts.number("max_length", int, DEFAULT_LENGTH),
        prompt_format=parts.word("format", "as_is", get_args(PromptFormat)),
    )
    return RewardJudge(scorer, parts.name, _form(parts))


def _implicit(parts: Spelling, options: JudgeOptions) -> Judge:
    from dipole.feedback.rewards import ImplicitReward, RewardJudge

    policy, _, reference = parts.what.partition("+")
    scorer = ImplicitReward(
        policy,
        reference or None,
        beta=parts.number("beta", float, 0.1),
        max_length=parts.number("max_length", int, None),
        prompt_format=parts.word("format", "as_is", get_args(PromptFormat)),
    )
    return RewardJudge(scorer, parts.name, _form(parts))


def _model(parts: Spelling, options: JudgeOptions) -> Judge:
    from dipole.feedback.language_model import Label, LanguageModelJudge, LogitGrades, LogitVerdicts
    from dipole.feedback.local import LocalModel

    constitution = constitution_of(parts)
    label, form = parts.word("label", "soft", get_args(Label)), _form(parts)
    ask = parts.word("ask", "pairs", ("pairs", "each"))
    for setting, belongs_to in (("label", "pairs"), ("as", "each")):
        if setting in parts.settings and ask != belongs_to:
            raise parts.fault(f"'{setting}' means nothing with ask={ask}", f"Leave it out, or write ask={belongs_to}")
    model = LocalModel(parts.what, max_length=parts.number("max_length", int, None))
    cache = Cache(options.cache)
    if ask == "each":
        from dipole.feedback.rewards import RewardJudge

        return RewardJudge(LogitGrades(model, constitution, cache), parts.name, form)
    return LanguageModelJudge(LogitVerdicts(model, cache), parts.name, constitution, label=label, sample=options.sample)


def _server(parts: Spelling, options: JudgeOptions) -> Judge:
    from dipole.feedback.language_model import Label, LanguageModelJudge, WrittenVerdicts

    constitution = constitution_of(parts)
    reader = WrittenVerdicts(
        open_client(parts, options),
        threads=options.threads,
        max_tokens=parts.number("max_tokens", int, 512),
        temperature=parts.number("temperature", float, 0.0),
    )
    label = parts.word("label", "soft", get_args(Label))
    return LanguageModelJudge(reader, parts.name, constitution, label=label, sample=options.sample)


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of judge: how it is written, what opens it, and the settings that it takes."""

    form: str
    open: Callable[[Spelling, JudgeOptions], Judge]
    settings: tuple[str, ...]
    needs_more: bool = True


_ASKED = ("rubric", "constitution", "label")
KINDS = {
    "rule": Kind("rule:longer", _rule, ("as",)),
    "vader": Kind("vader", _vader, ("as",), needs_more=False),
    "python": Kind("python:package.module.function", _function, ("as",)),
    "file": Kind("folder/file.py:function", _function, ("as",)),
    "reward_model": Kind("reward_model:PATH", _reward_model, ("as", "max_length", "format")),
    "implicit": Kind("implicit:PATH+REFERENCE", _implicit, ("as", "beta", "max_length", "format")),
    "model": Kind("model:PATH", _model, (*_ASKED, "ask", "as", "max_length")),
    "server": Kind("server:http://127.0.0.1:8000/v1#MODEL", _server, (*_ASKED, "key", "temperature", "max_tokens")),
}
"""Every kind by the word before the colon."""
