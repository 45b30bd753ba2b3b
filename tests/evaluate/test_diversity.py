"""Diversity by hand, against nltk's BLEU where it is installed, and at its extremes."""

from __future__ import annotations

import math

import pytest

from dipole.evaluate.diversity import bleu, distinct, self_bleu, sets_of

TEXTS = [
    "a film that is warm and kind to all of its people",
    "a film that is slow and dull from its first scene to its last",
    "this is a warm and funny film",
    "nothing here is new and nothing is good",
]


def test_distinct_by_hand() -> None:
    assert distinct(["a b a b", "a c"], 1) == pytest.approx(3 / 6)
    assert distinct(["a b a b", "a c"], 2) == pytest.approx(3 / 4)  # ab, ba, ab, ac
    assert distinct(["a b", "a b"], 2) == pytest.approx(1 / 2)
    assert distinct(["a", ""], 2) is None


def test_bleu_by_hand() -> None:
    # "a b c d" against "a b x d e": 3 of 4 words, 1 of 3 pairs, no triple of 2, no quadruple of 1; one word too short.
    expected = math.exp(1 - 5 / 4) * (3 / 4 * 1 / 3 * 0.1 / 2 * 0.1 / 1) ** 0.25
    assert bleu(list("abcd"), [list("abxde")]) == pytest.approx(expected)


def test_a_word_counts_as_often_as_one_reference_has_it() -> None:
    assert bleu(["the", "the"], [["the", "cat"]]) == pytest.approx(math.sqrt(1 / 2 * 0.1 / 1))


def test_bleu_is_nltks() -> None:
    oracle = pytest.importorskip("nltk.translate.bleu_score")
    smoothing = oracle.SmoothingFunction(epsilon=0.1).method1
    words = [text.split() for text in TEXTS]
    for place, own in enumerate(words):
        others = words[:place] + words[place + 1 :]
        assert bleu(own, others) == pytest.approx(oracle.sentence_bleu(others, own, smoothing_function=smoothing))


def test_self_bleu_is_1_for_copies_and_0_without_a_word_in_common() -> None:
    assert self_bleu(["one two three four five"] * 4) == pytest.approx(1)
    assert self_bleu(["yes", "yes"]) == pytest.approx(1)
    assert self_bleu(["a b c d", "e f g h"]) == 0
    assert self_bleu(["", ""]) == 1
    assert self_bleu(["alone"]) is None


def test_sets_are_of_one_prompt_where_it_has_enough() -> None:
    assert sets_of(["p", "q"] * 5) == [[0, 2, 4, 6], [1, 3, 5, 7]]
    assert sets_of(["p"] * 9) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert sets_of(list("abcdefghi")) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert sets_of(["p", "p", "p"]) == []
