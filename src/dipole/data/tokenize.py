"""From text to token ids: the one owner of chat templates, truncation, and the boundary between prompt and completion.

A group is tokenized *jointly*: the prompt alone, and the prompt with each completion. What they have in common, token
by token, is the prompt; the rest of each is its completion. So a tokenizer that merges across the boundary, or a
template that renders a prompt differently once an answer follows, can't put a completion's tokens on the prompt's side.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import islice
from typing import Any, Literal, Protocol

from dipole.data.reduce import LabeledGroup, ListRelation, PairRelation, Relation, UnaryRelation
from dipole.data.template import HasTemplate, render
from dipole.errors import ConfigError, DataError
from dipole.group import Message, Text

PromptFormat = Literal["as_is", "chat"]

CHUNK = 256  # groups whose texts go to the tokenizer in one call


class Tokenizer(HasTemplate, Protocol):
    """What is asked of a tokenizer; those of ``transformers`` have it."""

    bos_token_id: int | None
    eos_token_id: int | None
    chat_template: Any

    def __call__(self, text: list[str], *, add_special_tokens: bool = True) -> Any:
        """Token ids of each text, under the key ``input_ids``."""

    def decode(self, token_ids: Any, **options: Any) -> Any:
        """The text of the ids."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizedGroup:
    """A group as the model reads it.

    Args:
        id: the group's.
        prompt_ids: tokens that all completions share; at least one.
        completion_ids: the tokens of each completion, its end-of-sequence token included; at least one each.
        relations: what the loss consumes; indices refer to ``completion_ids``.
        scores: a score of each completion, where the data has them.
        facts: further facts of each completion by name: numbers, or rows of numbers.
        other_prompts: tokens of another group's prompt for each completion, where the loss asks for them.
    """

    id: str
    prompt_ids: tuple[int, ...]
    completion_ids: tuple[tuple[int, ...], ...]
    relations: tuple[Relation, ...]
    scores: tuple[float, ...] | None = None
    facts: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    other_prompts: tuple[tuple[int, ...], ...] = ()

    @property
    def num_tokens(self) -> int:
        """Prompt and completions together."""
        return len(self.prompt_ids) + sum(map(len, self.completion_ids))


@dataclass(slots=True, kw_only=True)
class TokenCounts:
    """What tokenizing did to the data. Whatever was cut or dropped is counted here and nowhere silently."""

    groups: int = 0
    kept_groups: int = 0
    prompts_too_long: int = 0
    messages_dropped: int = 0
    completions_cut: int = 0
    tokens_cut: int = 0
    completions_lost: int = 0
    relations_lost: int = 0
    boundaries_moved: int = 0

    def sentences(self) -> list[str]:
        """What a person should know of it, in words; empty when nothing happened."""
        said = {
            "prompts_too_long": "prompts leave no room for an answer within max_length; their groups were dropped",
            "messages_dropped": "early messages were dropped to fit max_length",
            "completions_cut": f"completions were cut at max_length ({self.tokens_cut} tokens)",
            "completions_lost": "completions were lost",
            "relations_lost": "comparisons were lost because a side is missing or both sides are equal after the cut",
            "boundaries_moved": "prompts end in a token that merges with the answer, which begins a token earlier",
        }
        counts = {item.name: getattr(self, item.name) for item in fields(self)}
        return [f"{counts[name]} {words}" for name, words in said.items() if counts[name]]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizeOptions:
    """How text becomes tokens.

    Args:
        max_length: most tokens of a prompt with one completion. Whole early turns of a chat go first, then the end of
            the completion; a plain-text prompt is never cut.
        prompt_format: ``"as_is"`` leaves plain text plain and renders messages; ``"chat"`` makes a plain prompt a
            user's message and a plain completion the assistant's.
    """

    max_length: int = 1024
    prompt_format: PromptFormat = "as_is"


@dataclass(slots=True)
class _Texts:
    """The strings of one group: the prompt's, and the prompt with each completion."""

    prompt: str
    full: list[str]
    templated: bool
    ids: list[list[int]] = field(default_factory=list)


def tokenize_groups(
    groups: Iterable[LabeledGroup], tokenizer: Tokenizer, options: TokenizeOptions
) -> tuple[list[TokenizedGroup], TokenCounts]:
    """Tokenizes all groups and drops what can't be trained on, counting it.

    Raises:
        ConfigError: there are messages, but the tokenizer has no chat template.
        DataError: nothing is left.
    """
    counts = TokenCounts()
    tokenized = [group for group in _encoded(groups, tokenizer, options, counts) if group is not None]
    counts.kept_groups = len(tokenized)
    if not tokenized:
        raise DataError(
            f"none of the {counts.groups} groups can be trained on: {'; '.join(counts.sentences())}",
            remedy=f"Raise --max_length (now {options.max_length}) or shorten the prompts",
        )
    return tokenized, counts


def prompt_token_ids(prompts: Sequence[Text], tokenizer: Tokenizer, prompt_format: PromptFormat) -> list[list[int]]:
    """Token ids of prompts alone, as training sees them: where a sample starts."""
    return [
        _token_ids([texts.prompt], tokenizer, special=not texts.templated)[0]
        for texts in _texts([(prompt, []) for prompt in prompts], tokenizer, prompt_format)
    ]


def _encoded(
    groups: Iterable[LabeledGroup], tokenizer: Tokenizer, options: TokenizeOptions, counts: TokenCounts
) -> Iterator[TokenizedGroup | None]:
    stream = iter(groups)
    while chunk := list(islice(stream, CHUNK)):
        for labeled, texts in zip(chunk, _tokenized_texts(chunk, tokenizer, options), strict=True):
            counts.groups += 1
            yield _assemble(labeled, texts, tokenizer, options, counts)


def _tokenized_texts(chunk: list[LabeledGroup], tokenizer: Tokenizer, options: TokenizeOptions) -> list[_Texts]:
    """Renders a chunk and tokenizes all its strings in one or two calls: fast tokenizers work in parallel."""
    groups = [(labeled.group.prompt, [item.text for item in labeled.group.completions]) for labeled in chunk]
    rendered = _texts(groups, tokenizer, options.prompt_format)
    for templated in (False, True):
        part = [texts for texts in rendered if texts.templated is templated]
        strings = [string for texts in part for string in (texts.prompt, *texts.full)]
        # A template writes the special tokens itself; adding them again would double the first one.
        ids = iter(_token_ids(strings, tokenizer, special=not templated))
        for texts in part:
            texts.ids = [next(ids) for _ in range(1 + len(texts.full))]
    return rendered


def _token_ids(strings: list[str], tokenizer: Tokenizer, *, special: bool) -> list[list[int]]:
    """Token ids of each string; ``special`` is for plain text, which begins with BOS where the tokenizer says so.

    BOS is there once, even if the text brings its own. A tokenizer that ends every text with EOS doesn't get its way: a
    prompt must not end with it, and where a completion's goes is ours to say. An EOS that the text holds stays.
    """
    if not strings:
        return []
    ids: list[list[int]] = tokenizer(strings, add_special_tokens=special)["input_ids"]
    if not special:
        return ids
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    probe = tokenizer(["a"], add_special_tokens=True)["input_ids"][0]
    begins, ends = probe[0] == bos, probe[-1] == eos
    return [row[begins and row[:2] == [bos, bos] : len(row) - ends] for row in ids]


def _texts(
    groups: Sequence[tuple[Text, Sequence[Text]]], tokenizer: Tokenizer, prompt_format: PromptFormat
) -> list[_Texts]:
    """The strings of prompts with their completions.

    Plain text stays plain only when prompt and completions all are, and nothing else was asked for.

    Raises:
        ConfigError, DataError: see ``data.template``.
    """
    plain = [prompt_format == "as_is" and _is_plain(prompt, completions) for prompt, completions in groups]
    chats = [group for group, is_plain in zip(groups, plain, strict=True) if not is_plain]
    if chats and not tokenizer.chat_template:
        raise ConfigError(
            "a chat can't be written out, since the tokenizer has no chat template",
            remedy="Use a model whose tokenizer has one, or give plain-text prompts and completions",
        )
    rendered = iter(
        render(
            [
                (_messages(prompt, "user"), [_messages(completion, "assistant") for completion in completions])
                for prompt, completions in chats
            ],
            tokenizer,
        )
    )
    texts = []
    for (prompt, completions), is_plain in zip(groups, plain, strict=True):
        if is_plain:
            texts.append(_Texts(str(prompt), [f"{prompt}{completion}" for completion in completions], templated=False))
        else:
            first, *full = next(rendered)
            texts.append(_Texts(first, full, templated=True))
    return texts


def _is_plain(prompt: Text, completions: Sequence[Text]) -> bool:
    return isinstance(prompt, str) and all(isinstance(completion, str) for completion in completions)


def _messages(text: Text, role: str) -> tuple[Message, ...]:
    return ({"role": role, "content": text},) if isinstance(text, str) else text


@dataclass(frozen=True, slots=True)
class _Split:
    """Prompt and completions as tokens, the completions ended, nothing cut yet."""

    prompt_ids: list[int]
    completions: list[list[int]]
    moved: bool

    def fits(self, max_length: int) -> bool:
        """Whether nothing has to be cut."""
        return all(len(self.prompt_ids) + len(row) <= max_length for row in self.completions)


def _assemble(
    labeled: LabeledGroup, texts: _Texts, tokenizer: Tokenizer, options: TokenizeOptions, counts: TokenCounts
) -> TokenizedGroup | None:
    """Splits at the boundary and cuts to ``max_length``; ``None`` if nothing is left."""
    split = _split(texts, tokenizer)
    if not split.fits(options.max_length):
        split = _without_early_turns(labeled, split, tokenizer, options, counts)
    room = options.max_length - len(split.prompt_ids)
    if room < 1 or not split.prompt_ids:
        counts.prompts_too_long += 1
        return None
    counts.boundaries_moved += split.moved
    for row in split.completions:
        counts.completions_cut += len(row) > room
        counts.tokens_cut += max(0, len(row) - room)
    return _usable(labeled, tuple(split.prompt_ids), [tuple(row[:room]) for row in split.completions], counts)


def _split(texts: _Texts, tokenizer: Tokenizer) -> _Split:
    """Finds the boundary: the tokens that the prompt alone and the prompt with each completion have in common."""
    prompt_ids, full_ids = texts.ids[0], texts.ids[1:]
    boundary = min((_common_prefix(prompt_ids, row) for row in full_ids), default=0)
    if boundary:
        rows = [row[boundary:] for row in full_ids]
    else:  # even the first token merges; then the two sides are tokenized apart
        boundary, rows = len(prompt_ids), _answers_apart(texts, tokenizer)
    completions = [_ended(row, tokenizer, templated=texts.templated) for row in rows]
    return _Split(prompt_ids[:boundary], completions, moved=boundary < len(prompt_ids))


def _common_prefix(left: list[int], right: list[int]) -> int:
    limit = min(len(left), len(right))
    return next((index for index in range(limit) if left[index] != right[index]), limit)


def _answers_apart(texts: _Texts, tokenizer: Tokenizer) -> list[list[int]]:
    if not all(full.startswith(texts.prompt) for full in texts.full):
        raise DataError(
            "the chat template begins a prompt otherwise once an answer follows it",
            where=f"prompt beginning with {texts.prompt[:80]!r}",
            remedy="Use a template that writes the messages before the answer the same way with and without it",
        )
    return _token_ids([full[len(texts.prompt) :] for full in texts.full], tokenizer, special=False)


def _without_early_turns(
    labeled: LabeledGroup, split: _Split, tokenizer: Tokenizer, options: TokenizeOptions, counts: TokenCounts
) -> _Split:
    """The group without as many of its oldest turns as have to go; the last turn and the system's message stay.

    A turn is a user's message and what follows it. How many have to go is found by bisection, since each try renders
    and tokenizes the group anew.
    """
    prompt = labeled.group.prompt
    if isinstance(prompt, str):
        return split
    first = 1 if prompt and prompt[0].get("role") == "system" else 0
    turns = [index for index in range(first, len(prompt)) if prompt[index].get("role") == "user"]

    def without(number: int) -> _Split:
        shorter = replace(labeled.group, prompt=(*prompt[:first], *prompt[turns[number] :]))
        return _split(_tokenized_texts([replace(labeled, group=shorter)], tokenizer, options)[0], tokenizer)

    candidates = range(1, len(turns))
    if not candidates:
        return split
    dropped = bisect_left(candidates, True, key=lambda number: without(number).fits(options.max_length))
    number = candidates[min(dropped, len(candidates) - 1)]
    counts.messages_dropped += turns[number] - first
    return without(number)


def _ended(ids: list[int], tokenizer: Tokenizer, *, templated: bool) -> list[int]:
    """Ends a completion once: plain text with EOS, a rendered one with the special token that its template writes.

    Templates often write white space after the last turn. No model ever generates it, since sampling stops before.
    """
    if not templated:
        eos = tokenizer.eos_token_id
        return ids if eos is None or ids[-1:] == [eos] else [*ids, eos]
    last = next((place for place in reversed(range(len(ids))) if str(tokenizer.decode(ids[place])).strip()), -1)
    closes = not str(tokenizer.decode(ids[last : last + 1], skip_special_tokens=True)).strip()
    return ids[: last + 1] if closes else ids


def _usable(
    labeled: LabeledGroup, prompt_ids: tuple[int, ...], completions: list[tuple[int, ...]], counts: TokenCounts
) -> TokenizedGroup | None:
    """Keeps the relations whose sides exist and differ, and the completions that those speak of."""
    counts.completions_lost += sum(not row for row in completions)
    relations = [kept for relation in labeled.relations if (kept := _still_true(relation, completions)) is not None]
    counts.relations_lost += len(labeled.relations) - len(relations)
    if not relations:
        return None
    used = sorted({index for relation in relations for index in relation_indices(relation)})
    place = {old: new for new, old in enumerate(used)}
    return TokenizedGroup(
        id=labeled.group.id,
        prompt_ids=prompt_ids,
        completion_ids=tuple(completions[index] for index in used),
        relations=tuple(_renumbered(relation, place) for relation in relations),
        scores=None if labeled.scores is None else tuple(labeled.scores[index] for index in used),
        facts={name: tuple(values[index] for index in used) for name, values in labeled.facts.items()},
    )


def relation_indices(relation: Relation) -> tuple[int, ...]:
    """The completions that a relation speaks of."""
    if isinstance(relation, PairRelation):
        return (relation.i, relation.j)
    return (relation.i,) if isinstance(relation, UnaryRelation) else relation.order


def _still_true(relation: Relation, completions: list[tuple[int, ...]]) -> Relation | None:
    indices = relation_indices(relation)
    tokens = [completions[index] for index in indices]
    return relation if all(tokens) and len(set(tokens)) == len(tokens) else None


def _renumbered(relation: Relation, place: dict[int, int]) -> Relation:
    if isinstance(relation, PairRelation):
        return replace(relation, i=place[relation.i], j=place[relation.j])
    if isinstance(relation, UnaryRelation):
        return replace(relation, i=place[relation.i])
    assert isinstance(relation, ListRelation)
    return replace(relation, order=tuple(place[index] for index in relation.order))
