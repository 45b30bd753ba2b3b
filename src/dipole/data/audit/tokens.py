"""What a model's tokenizer and template make of the data: cut answers, damaged messages, the cost."""

from __future__ import annotations

import sys
from array import array
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from dipole.data.audit.coverage import histogram
from dipole.data.audit.finding import NUM_EXAMPLES, Finding, Result, excerpt, severity
from dipole.data.audit.intervals import wilson_interval
from dipole.data.reduce import LabeledGroup, PairRelation, Relation, UnaryRelation, pair_labels
from dipole.data.template import render
from dipole.data.tokenize import (
    CHUNK,
    PromptFormat,
    TokenizedGroup,
    TokenizeOptions,
    Tokenizer,
    relation_indices,
    tokenize_groups,
)
from dipole.data.validate import is_blank
from dipole.errors import DataError
from dipole.group import Group, Message, plain

CUT_LIMITS = (0.05, 0.25)
"""Share of answers that are cut at the limit."""

PREFIX_LIMITS = (0.50, 0.80)
"""Share of its tokens that the shorter answer of a pair has in common with the other one, at their beginning."""

DAMAGE_LIMITS = (0.0, 0.01)
"""Share of groups of which the template drops or reorders something, or that hold its special tokens as text."""

ROUNDED_TO = 64
ENOUGH = 0.995
"""Share of the sequences that a suggested limit leaves whole."""


class TokenCheck:
    """Takes groups one by one, tokenizes them as training would, and says what happens to them.

    Args:
        tokenizer: the model's.
        max_length: tokens of a prompt with one completion.
        prompt_format: as in training.
        parameters: of the model, for the cost; ``None`` if they aren't known.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        max_length: int,
        prompt_format: PromptFormat = "as_is",
        parameters: int | None = None,
    ) -> None:
        self._tokenizer, self._max_length, self._parameters = tokenizer, max_length, parameters
        self._whole = TokenizeOptions(max_length=sys.maxsize, prompt_format=prompt_format)
        self._cut = TokenizeOptions(max_length=max_length, prompt_format=prompt_format)
        self._special = [token for token in getattr(tokenizer, "all_special_tokens", ()) if len(token) > 3]
        self._groups = 0
        self._waiting: list[LabeledGroup] = []
        self._faults: dict[str, list[str]] = defaultdict(list)
        self._numbers = {name: array("i") for name in ("prompt", "completion", "group", "preferred", "other")}
        self._prefix = array("f")

    def add(self, group: Group) -> None:
        """Takes one group."""
        self._groups += 1
        if any(is_blank(completion.text) for completion in group.completions) or not group.judgments:
            return  # an error already
        relations: tuple[Relation, ...] = pair_labels(group)
        unary = tuple(UnaryRelation(i, desirable=True) for i in range(len(group.completions)))
        self._waiting.append(LabeledGroup(group, relations or unary))
        texts = (group.prompt, *(completion.text for completion in group.completions))
        held = {token for token in self._special for text in texts if token in plain(text)}
        if held:
            self._faults["special_tokens"].append(f"{group.id}: holds {', '.join(sorted(held))} as text")
        if len(self._waiting) == CHUNK:
            self._work_off()

    def errors(self) -> Iterator[Finding]:
        """What leaves nothing to train on in a group."""
        self._work_off()
        for name, what, remedy in _ERRORS:
            found = self._faults[name]
            if found:
                yield Finding(
                    name=name,
                    severity="severe",
                    message=f"{what.format(limit=self._max_length)} in {len(found)} of {self._groups} groups",
                    value=len(found),
                    examples=tuple(found[:NUM_EXAMPLES]),
                    remedy=remedy,
                )

    def results(self) -> Iterator[Result]:
        """Findings about what is left, and a chart of the lengths."""
        self._work_off()
        prompt, completion, group, preferred, other = (np.array(values) for values in self._numbers.values())
        if not len(group):
            return
        yield from self._truncation(prompt, completion, preferred, other)
        yield from self._damage()
        yield from self._shared_prefix()
        yield from self._cost(group, prompt + completion)
        yield histogram("tokens", "Length of prompt and answer", "tokens", prompt + completion)

    def _work_off(self) -> None:
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        for labeled, whole in zip(waiting, self._tokenized(waiting), strict=True):
            if whole is None:
                continue
            self._measure(whole)
            if any(len(whole.prompt_ids) + len(ids) > self._max_length for ids in whole.completion_ids):
                self._measure_cut(labeled)
        self._look_for_damage([labeled.group for labeled in waiting])

    def _tokenized(self, groups: list[LabeledGroup]) -> list[TokenizedGroup | None]:
        """Each group as tokens, nothing cut; ``None`` where that fails, which is noted.

        A template is a program: it may refuse messages, and then the others of its chunk have to be tried alone.
        """
        try:
            found = {group.id: group for group in tokenize_groups(groups, self._tokenizer, self._whole)[0]}
        except DataError as fault:
            if len(groups) > 1:
                return [result for group in groups for result in self._tokenized([group])]
            problem = fault.problem if len(fault.problem) < 200 else f"{fault.problem[:199]}…"
            name = "template_refuses" if "template" in problem else "nothing_to_compare"
            self._faults[name].append(f"{groups[0].group.id}: {problem}")
            return [None] * len(groups)
        for group in groups:
            if group.group.id not in found:
                self._faults["nothing_to_compare"].append(f"{group.group.id}: the answers are the same tokens")
        return [found.get(group.group.id) for group in groups]

    def _measure(self, group: TokenizedGroup) -> None:
        self._numbers["group"].append(group.num_tokens)
        for ids in group.completion_ids:
            self._numbers["prompt"].append(len(group.prompt_ids))
            self._numbers["completion"].append(len(ids))
        for relation in group.relations:
            if isinstance(relation, PairRelation):
                sides = [group.completion_ids[index] for index in relation_indices(relation)]
                for name, ids in zip(("preferred", "other"), sides, strict=True):
                    self._numbers[name].append(max(0, len(group.prompt_ids) + len(ids) - self._max_length))
                same = next((n for n, (a, b) in enumerate(zip(*sides, strict=False)) if a != b), min(map(len, sides)))
                self._prefix.append(same / min(map(len, sides)))

    def _measure_cut(self, labeled: LabeledGroup) -> None:
        """Whether anything of a group that is too long can be trained on."""
        id = labeled.group.id
        try:
            tokenize_groups([labeled], self._tokenizer, self._cut)
        except DataError as fault:
            prompt_alone = "leave no room" in fault.problem
            name = "prompt_too_long" if prompt_alone else "equal_when_cut"
            self._faults[name].append(f"{id}: {excerpt(labeled.group.prompt)}")

    def _look_for_damage(self, groups: Sequence[Group]) -> None:
        """Whether the template drops or reorders messages; groups that it refuses have been noted already."""
        chats = [
            (group, group.prompt, group.completions[0].text)
            for group in groups
            if not isinstance(group.prompt, str) and not isinstance(group.completions[0].text, str)
        ]
        try:
            rendered = render([(prompt, [answer]) for _, prompt, answer in chats], self._tokenizer)
        except DataError:
            if len(groups) > 1:
                for group in groups:
                    self._look_for_damage([group])
            return
        for (group, prompt, answer), (_, text) in zip(chats, rendered, strict=True):
            lost = _lost((*prompt, *answer), text)
            if lost is not None:
                self._faults["template_damage"].append(f"{group.id}: {lost} isn't where it should be")

    def _truncation(self, prompt: Any, completion: Any, preferred: Any, other: Any) -> Iterator[Finding]:
        cut = prompt + completion > self._max_length
        sides = {"preferred": preferred, "other": other} if len(preferred) else {}
        value = {name: float((over > 0).mean()) for name, over in sides.items()}
        share = float(cut.mean())
        by_side = ", ".join(f"{part:.1%} of the {name}" for name, part in value.items())
        yield Finding(
            name="truncation",
            severity=severity(share, CUT_LIMITS),
            message=f"{share:.1%} of the answers are cut at {self._max_length} tokens"
            + (f" ({by_side})" if by_side else ""),
            value={"all": share, "tokens": float(np.maximum(prompt + completion - self._max_length, 0).sum()), **value},
            interval=wilson_interval(int(cut.sum()), len(cut)),
            remedy=f"Set --max_length to {self._enough(prompt + completion)}, or leave long answers out.",
        )

    def _damage(self) -> Iterator[Finding]:
        for name, what, remedy in _DAMAGE:
            found = self._faults[name]
            yield Finding(
                name=name,
                severity=severity(len(found) / self._groups, DAMAGE_LIMITS),
                message=f"{what} in {len(found)} of {self._groups} groups",
                value=len(found) / self._groups,
                interval=wilson_interval(len(found), self._groups),
                examples=tuple(found[:NUM_EXAMPLES]),
                remedy=remedy,
            )

    def _shared_prefix(self) -> Iterator[Finding]:
        if len(self._prefix):
            shares = np.array(self._prefix)
            value, error = float(shares.mean()), float(shares.std()) / len(shares) ** 0.5
            yield Finding(
                name="shared_prefix",
                severity=severity(value - 1.96 * error, PREFIX_LIMITS),
                message=f"the two answers of a pair begin with the same tokens for {value:.0%} of the shorter one",
                value=value,
                interval=(max(0.0, value - 1.96 * error), min(1.0, value + 1.96 * error)),
                remedy="Such pairs teach little and push both answers down; use pairs that differ earlier.",
            )

    def _cost(self, group: Any, length: Any) -> Iterator[Finding]:
        """Tokens of an epoch, and 8 operations a parameter and token: 6 to train, 2 for the reference."""
        tokens = int(group.sum())
        flops = f", about {8 * self._parameters * tokens:.1e} operations" if self._parameters else ""
        yield Finding(
            name="num_tokens",
            severity="info",
            message=f"{tokens:,} tokens an epoch{flops}",
            value=tokens,
        )
        enough, largest = self._enough(length), int(group.max())
        yield Finding(
            name="suggested_settings",
            severity="info",
            message=f"--max_length {enough} leaves {ENOUGH:.1%} of the answers whole; --max_tokens_per_microbatch of "
            f"{_rounded(largest)} holds the largest group, of {largest:,} tokens",
            value={"max_length": enough, "max_tokens_per_microbatch": _rounded(largest)},
        )

    def _enough(self, length: Any) -> int:
        return _rounded(float(np.quantile(length, ENOUGH)))


def _lost(messages: Sequence[Message], rendered: str) -> str | None:
    """The first message that a rendered conversation lacks, has changed, or has before an earlier one."""
    place = 0
    for number, message in enumerate(messages):
        words = plain((message,)).strip() if isinstance(message.get("content"), str) else ""
        found = rendered.find(words, place)
        if found < 0:
            return f"message {number + 1} ({message.get('role')})"
        place = found + len(words)
    return None


def _rounded(tokens: float) -> int:
    return -(-int(np.ceil(tokens)) // ROUNDED_TO) * ROUNDED_TO


_ERRORS = (
    (
        "template_refuses",
        "the chat template refuses the messages",
        "Check the roles and their order, or use a model whose template takes them.",
    ),
    (
        "nothing_to_compare",
        "the answers are the same tokens",
        "Leave the rows out: the model can't see what differs.",
    ),
    (
        "prompt_too_long",
        "prompts leave no room for an answer within {limit} tokens",
        "Raise --max_length or shorten the prompts; training drops such groups.",
    ),
    (
        "equal_when_cut",
        "what differs between the answers lies beyond {limit} tokens",
        "Raise --max_length; training drops such groups.",
    ),
)
"""Name, what it is, remedy."""

_DAMAGE = (
    (
        "template_damage",
        "the chat template drops or reorders messages",
        "Look at a rendered conversation; use another template, or put what it drops into a message that it keeps.",
    ),
    (
        "special_tokens",
        "special tokens stand in the text",
        "Take them out: the tokenizer reads them as ends of turns.",
    ),
)
