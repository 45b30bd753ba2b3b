"""The boundary between prompt and completion, the end of a completion, and truncation that is counted."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import processors

from conftest import CHAT_TEMPLATE, build_tokenizer
from dipole.data.dialects import recognise
from dipole.data.reduce import LabeledGroup, ListRelation, PairRelation, Relation, UnaryRelation
from dipole.data.rows import Row
from dipole.data.tokenize import (
    TokenCounts,
    TokenizedGroup,
    TokenizeOptions,
    prompt_token_ids,
    tokenize_groups,
)
from dipole.errors import ConfigError, DataError
from dipole.group import Completion, Group, Message, Text

LONG = TokenizeOptions(max_length=10_000)
PAIR = (PairRelation(0, 1),)


def labeled(prompt: Text, *completions: Text, relations: tuple[Relation, ...] = PAIR) -> LabeledGroup:
    answers = tuple(Completion(text=text) for text in completions)
    return LabeledGroup(Group(id="g", prompt=prompt, completions=answers), relations)


def tokenized(
    tokenizer: Any, prompt: Text, *completions: Text, options: TokenizeOptions = LONG, relations: Any = PAIR
) -> tuple[TokenizedGroup, TokenCounts]:
    groups, counts = tokenize_groups([labeled(prompt, *completions, relations=relations)], tokenizer, options)
    return groups[0], counts


def says(*turns: str, system: str | None = None) -> tuple[Message, ...]:
    """Turns of user and assistant, the user first."""
    roles = ("user", "assistant")
    messages = tuple({"role": roles[index % 2], "content": turn} for index, turn in enumerate(turns))
    return messages if system is None else ({"role": "system", "content": system}, *messages)


def answer(text: str) -> tuple[Message, ...]:
    return ({"role": "assistant", "content": text},)


def text_of(tokenizer: Any, ids: tuple[int, ...]) -> str:
    return str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))


def joint(tokenizer: Any, text: str, **options: Any) -> list[int]:
    ids: list[int] = tokenizer(text, **options)["input_ids"]
    return ids


@pytest.fixture
def bos_tokenizer() -> Any:
    """Begins every text with BOS, as Llama's does."""
    tokenizer = build_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<|bos|>"})
    bos = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|bos|> $A", special_tokens=[("<|bos|>", bos)]
    )
    return tokenizer


@pytest.fixture
def eos_tokenizer() -> Any:
    """Ends every text with EOS, as T5's does."""
    tokenizer = build_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <|end|>", special_tokens=[("<|end|>", tokenizer.eos_token_id)]
    )
    return tokenizer


# Plain text


def test_plain_text_is_the_joint_tokenization_and_ends_once(tokenizer: Any) -> None:
    group, counts = tokenized(tokenizer, "Q: 1+1?\nA:", " two", " three")
    assert list(group.prompt_ids) == joint(tokenizer, "Q: 1+1?\nA:")
    assert list(group.prompt_ids + group.completion_ids[1]) == [
        *joint(tokenizer, "Q: 1+1?\nA: three"),
        tokenizer.eos_token_id,
    ]
    assert counts == TokenCounts(groups=1, kept_groups=1)
    assert counts.sentences() == []


def test_an_empty_plain_answer_is_the_end_alone(tokenizer: Any) -> None:
    group, _ = tokenized(tokenizer, "Q", "", "a")
    assert group.completion_ids[0] == (tokenizer.eos_token_id,)


def test_a_completion_that_brings_its_end_keeps_one(tokenizer: Any, eos_tokenizer: Any) -> None:
    for any_tokenizer in (tokenizer, eos_tokenizer):
        group, _ = tokenized(any_tokenizer, "Q", "yes<|end|>", "no")
        assert [row.count(any_tokenizer.eos_token_id) for row in group.completion_ids] == [1, 1]
        assert all(row[-1] == any_tokenizer.eos_token_id for row in group.completion_ids)
        assert any_tokenizer.eos_token_id not in group.prompt_ids


def test_a_prompt_that_ends_with_the_end_token_keeps_it(tokenizer: Any, eos_tokenizer: Any) -> None:
    for any_tokenizer in (tokenizer, eos_tokenizer):
        group, _ = tokenized(any_tokenizer, "user: hi<|end|>", "yes", "no")
        assert text_of(any_tokenizer, group.prompt_ids) == "user: hi<|end|>"
        assert text_of(any_tokenizer, group.completion_ids[0]) == "yes<|end|>"
        assert prompt_token_ids(["user: hi<|end|>"], any_tokenizer, "as_is") == [list(group.prompt_ids)]


def test_bos_is_there_once(bos_tokenizer: Any) -> None:
    bos = bos_tokenizer.bos_token_id
    for prompt in ("Q", "<|bos|>Q"):
        group, _ = tokenized(bos_tokenizer, prompt, "yes", "no")
        assert group.prompt_ids[0] == bos
        assert group.prompt_ids.count(bos) == 1
        assert all(bos not in row for row in group.completion_ids)


def test_a_template_that_writes_bos_does_not_get_a_second(bos_tokenizer: Any) -> None:
    bos_tokenizer.chat_template = "<|bos|>" + CHAT_TEMPLATE
    group, _ = tokenized(bos_tokenizer, says("hi"), answer("yes"), answer("no"))
    assert group.prompt_ids.count(bos_tokenizer.bos_token_id) == 1
    assert group.prompt_ids[0] == bos_tokenizer.bos_token_id


def test_pad_equal_to_eos_keeps_the_end_as_a_target(tokenizer: Any) -> None:
    tokenizer.pad_token = tokenizer.eos_token
    group, _ = tokenized(tokenizer, "Q", "yes", "no")
    assert all(row[-1] == tokenizer.eos_token_id for row in group.completion_ids)


# The boundary


def test_a_token_across_the_boundary_belongs_to_the_completion() -> None:
    tokenizer = build_tokenizer(merges=["b c"])
    group, counts = tokenized(tokenizer, "ab", "cd", "xd")
    assert text_of(tokenizer, group.prompt_ids) == "a"
    assert [text_of(tokenizer, row) for row in group.completion_ids] == ["bcd<|end|>", "bxd<|end|>"]
    assert list(group.prompt_ids + group.completion_ids[0])[:-1] == joint(tokenizer, "abcd")
    assert counts.boundaries_moved == 1


def test_when_even_the_first_token_merges_both_sides_are_tokenized_apart() -> None:
    tokenizer = build_tokenizer(merges=["b c"])
    group, _ = tokenized(tokenizer, "b", "cd", "xd")
    assert text_of(tokenizer, group.prompt_ids) == "b"
    assert [text_of(tokenizer, row) for row in group.completion_ids] == ["cd<|end|>", "xd<|end|>"]


MERGING = build_tokenizer(merges=["a b", "b a", "ab ab", "c a", "b c"])


@given(
    prompt=st.text("abc", max_size=6),
    answers=st.lists(st.text("abc", max_size=6), min_size=2, max_size=4, unique=True),
)
def test_prompt_and_completion_together_are_the_joint_tokenization(prompt: str, answers: list[str]) -> None:
    prompt = "#" + prompt  # a token that nothing merges with, so that the two sides have something in common
    ranking = (ListRelation(tuple(range(len(answers)))),)
    group, counts = tokenized(MERGING, prompt, *answers, relations=ranking)
    alone = joint(MERGING, prompt)
    assert list(group.prompt_ids) == alone[: len(group.prompt_ids)]
    assert counts.boundaries_moved == (len(group.prompt_ids) < len(alone))
    for text, row in zip(answers, group.completion_ids, strict=True):
        assert list(group.prompt_ids + row) == [*joint(MERGING, prompt + text), MERGING.eos_token_id]


# Templates


def test_a_chat_is_rendered_by_the_template_and_ends_at_its_end_token(tokenizer: Any) -> None:
    group, counts = tokenized(tokenizer, says("hi", system="be kind"), answer("yes"), answer("no"))
    assert text_of(tokenizer, group.prompt_ids) == (
        "<|start|>system\nbe kind<|end|>\n<|start|>user\nhi<|end|>\n<|start|>assistant\n"
    )
    assert [text_of(tokenizer, row) for row in group.completion_ids] == ["yes<|end|>", "no<|end|>"]
    assert counts == TokenCounts(groups=1, kept_groups=1)


def test_chat_format_wraps_plain_text(tokenizer: Any) -> None:
    wrapped, _ = tokenized(
        tokenizer, "hi", "yes", "no", options=TokenizeOptions(max_length=10_000, prompt_format="chat")
    )
    messages, _ = tokenized(tokenizer, says("hi"), answer("yes"), answer("no"))
    assert wrapped == messages
    assert prompt_token_ids(["hi", says("hi")], tokenizer, "chat") == [list(messages.prompt_ids)] * 2


def test_a_plain_prompt_with_messages_as_answers_is_a_chat(tokenizer: Any) -> None:
    mixed, _ = tokenized(tokenizer, "hi", answer("yes"), "no")
    messages, _ = tokenized(tokenizer, says("hi"), answer("yes"), answer("no"))
    assert mixed == messages


def test_ultrafeedback_with_whole_chats_as_answers_reads_like_messages(tokenizer: Any) -> None:
    values = {"prompt": "hi", "chosen": [*says("hi", "yes")], "rejected": [*says("hi", "no")]}
    row = Row(values=values, where="file:1", id="1")
    group = recognise(frozenset(values), row.where).read(values, row, None)
    read, _ = tokenize_groups([LabeledGroup(group, PAIR)], tokenizer, LONG)
    messages, _ = tokenized(tokenizer, says("hi"), answer("yes"), answer("no"))
    assert (read[0].prompt_ids, read[0].completion_ids) == (messages.prompt_ids, messages.completion_ids)


def test_messages_without_a_template_are_a_config_error() -> None:
    with pytest.raises(ConfigError, match="no chat template"):
        tokenized(build_tokenizer(chat=False), says("hi"), answer("yes"), answer("no"))


def test_a_template_that_refuses_the_messages_is_a_data_error_with_its_words(tokenizer: Any) -> None:
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(DataError, match="roles must alternate"):
        tokenized(tokenizer, says("hi"), answer("yes"), answer("no"))


def test_without_a_generation_prompt_the_header_is_learned(tokenizer: Any) -> None:
    tokenizer.chat_template = CHAT_TEMPLATE.split("{% if add_generation_prompt")[0]
    group, _ = tokenized(tokenizer, says("hi"), answer("yes"), answer("no"))
    assert text_of(tokenizer, group.prompt_ids) == "<|start|>user\nhi<|end|>\n"
    assert text_of(tokenizer, group.completion_ids[0]) == "<|start|>assistant\nyes<|end|>"


def test_what_only_the_generation_prompt_has_is_not_trained_on(tokenizer: Any) -> None:
    tokenizer.chat_template = CHAT_TEMPLATE.replace("assistant\n{% endif", "assistant\n<think></think>{% endif")
    group, counts = tokenized(tokenizer, says("hi"), answer("yes"), answer("no"))
    assert text_of(tokenizer, group.prompt_ids).endswith("<|start|>assistant\n")
    assert text_of(tokenizer, group.completion_ids[0]) == "yes<|end|>"
    assert counts.boundaries_moved == 1


def test_a_template_that_begins_otherwise_once_answered_is_refused(tokenizer: Any) -> None:
    tokenizer.chat_template = "{% if add_generation_prompt %}ask {% endif %}" + CHAT_TEMPLATE
    with pytest.raises(DataError, match="template"):
        tokenized(tokenizer, says("hi"), answer("yes"), answer("no"))


def test_a_turn_may_end_with_another_special_token(tokenizer: Any) -> None:
    tokenizer.chat_template = CHAT_TEMPLATE.replace("<|end|>", "<|spare|>")
    group, _ = tokenized(tokenizer, says("hi"), answer("yes"), answer("no"))
    assert text_of(tokenizer, group.completion_ids[0]) == "yes<|spare|>"


def test_an_end_token_inside_of_an_answer_does_not_cut_it(tokenizer: Any) -> None:
    turns = (*answer("yes"), {"role": "user", "content": "sure?"}, *answer("quite"))
    group, _ = tokenized(tokenizer, says("hi"), turns, answer("no"))
    assert text_of(tokenizer, group.completion_ids[0]).endswith("quite<|end|>")
    assert group.completion_ids[0].count(tokenizer.eos_token_id) == 3


# Truncation


def length_of(tokenizer: Any, prompt: tuple[Message, ...], *texts: str) -> int:
    group, _ = tokenized(tokenizer, prompt, *map(answer, texts))
    return len(group.prompt_ids) + max(map(len, group.completion_ids))


def test_whole_early_turns_go_first_and_the_system_message_stays(tokenizer: Any) -> None:
    prompt = says("first", "reply", "second", "reply", "third", system="be kind")
    fits = length_of(tokenizer, says("second", "reply", "third", system="be kind"), "yes", "no")
    group, counts = tokenized(tokenizer, prompt, answer("yes"), answer("no"), options=TokenizeOptions(max_length=fits))
    assert text_of(tokenizer, group.prompt_ids).startswith("<|start|>system\nbe kind<|end|>\n<|start|>user\nsecond")
    assert text_of(tokenizer, group.completion_ids[0]) == "yes<|end|>"
    assert counts == TokenCounts(groups=1, kept_groups=1, messages_dropped=2)
    tighter, counts = tokenized(
        tokenizer, prompt, answer("yes"), answer("no"), options=TokenizeOptions(max_length=fits - 1)
    )
    assert counts.messages_dropped == 4
    assert (
        tighter.prompt_ids == tokenized(tokenizer, says("third", system="be kind"), answer("yes"), "no")[0].prompt_ids
    )


def test_a_very_long_chat_is_cut_without_running_out_of_stack(tokenizer: Any) -> None:
    turns = ["x", "y"] * 1200 + ["last"]
    group, counts = tokenized(
        tokenizer, says(*turns), answer("yes"), answer("no"), options=TokenizeOptions(max_length=80)
    )
    assert len(group.prompt_ids) <= 80
    assert counts.messages_dropped > 2390
    assert "last" in text_of(tokenizer, group.prompt_ids)


def test_a_completion_is_cut_at_max_length_and_counted(tokenizer: Any) -> None:
    group, counts = tokenized(tokenizer, "Q:", "abcdefgh", "xy", options=TokenizeOptions(max_length=6))
    assert [text_of(tokenizer, row) for row in group.completion_ids] == ["abcd", "xy<|end|>"]
    assert counts == TokenCounts(groups=1, kept_groups=1, completions_cut=1, tokens_cut=5)
    assert counts.sentences() == ["1 completions were cut at max_length (5 tokens)"]


def test_pairs_that_are_equal_after_the_cut_are_dropped(tokenizer: Any) -> None:
    relations = (PairRelation(0, 1), PairRelation(0, 2, p=0.75, weight=2.0), PairRelation(2, 1))
    group, counts = tokenized(
        tokenizer, "Q:", "same A", "same B", "other", options=TokenizeOptions(max_length=6), relations=relations
    )
    assert group.relations == (PairRelation(0, 2, p=0.75, weight=2.0), PairRelation(2, 1))
    assert counts.relations_lost == 1
    assert counts.completions_cut == 3


def test_completions_without_a_relation_go_and_the_others_are_renumbered(tokenizer: Any) -> None:
    group, _ = tokenized(tokenizer, "Q", "a", "b", "c", relations=(PairRelation(2, 1),))
    assert [text_of(tokenizer, row) for row in group.completion_ids] == ["b<|end|>", "c<|end|>"]
    assert group.relations == (PairRelation(1, 0),)
    group, _ = tokenized(tokenizer, "Q", "a", "b", "c", relations=(UnaryRelation(2, True), UnaryRelation(1, False)))
    assert group.relations == (UnaryRelation(1, True), UnaryRelation(0, False))
    group, _ = tokenized(tokenizer, "Q", "a", "b", "c", relations=(ListRelation((2, 0)),))
    assert group.relations == (ListRelation((1, 0)),)


def test_scores_follow_their_completions(tokenizer: Any) -> None:
    group = labeled("Q", "a", "b", "c", relations=(PairRelation(2, 1),))
    scored = LabeledGroup(group.group, group.relations, scores=(0.0, 1.0, 2.0))
    assert tokenize_groups([scored], tokenizer, LONG)[0][0].scores == (1.0, 2.0)


def test_a_prompt_without_room_for_an_answer_is_dropped(tokenizer: Any) -> None:
    groups = [labeled("longer than that", "a", "b"), labeled("short", "a", "b")]
    kept, counts = tokenize_groups(groups, tokenizer, TokenizeOptions(max_length=8))
    assert [text_of(tokenizer, group.prompt_ids) for group in kept] == ["short"]
    assert counts == TokenCounts(groups=2, kept_groups=1, prompts_too_long=1)


def test_nothing_left_is_a_data_error_that_says_why(tokenizer: Any) -> None:
    with pytest.raises(DataError, match=r"none of the 1 groups.*no room.*--max_length") as caught:
        tokenized(tokenizer, "longer than that", "a", "b", options=TokenizeOptions(max_length=8))
    assert caught.value.exit_status == 3


@given(
    prompt=st.text("abc \n", min_size=1, max_size=12),
    answers=st.lists(st.text("abc", max_size=12), min_size=2, max_size=3, unique=True),
    limit=st.integers(1, 20),
    chat=st.booleans(),
)
def test_whatever_is_kept_fits_and_is_never_empty(prompt: str, answers: list[str], limit: int, chat: bool) -> None:
    options = TokenizeOptions(max_length=limit + 35 * chat, prompt_format="chat" if chat else "as_is")
    relations = tuple(PairRelation(0, j) for j in range(1, len(answers)))
    try:
        group, counts = tokenized(MERGING, prompt, *answers, options=options, relations=relations)
    except DataError:
        return
    assert group.prompt_ids
    assert all(0 < len(row) <= options.max_length - len(group.prompt_ids) for row in group.completion_ids)
    assert len(group.relations) + counts.relations_lost == len(relations)
    for relation in group.relations:
        assert isinstance(relation, PairRelation)
        assert group.completion_ids[relation.i] != group.completion_ids[relation.j]
