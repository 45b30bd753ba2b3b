"""A check finds what is wrong with a judge, and nothing in one that is sound."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
from judging import GROUPS, Reader, group

from dipole.errors import DataError
from dipole.feedback.check import ATTACKS, PADDING, Check, attacked, check_judge, draw_pairs
from dipole.feedback.constitution import Constitution, Principle
from dipole.feedback.judge import Pair
from dipole.feedback.language_model import LanguageModelJudge, Reading
from dipole.feedback.rules import ScoreJudge
from dipole.group import Comparison, Group, Judgment, plain

PRAISED = [replace(item, judgments=(Comparison(i=0, j=1, annotator="ann"),)) for item in GROUPS]


class PairJudge:
    """Judges pairs by a function of the two texts: P(the first is better)."""

    name = "pairs"

    def __init__(self, probability: object) -> None:
        self.probability = probability

    def judge(self, group: Group, pairs: Sequence[Pair]) -> tuple[Judgment, ...]:
        texts = [plain(completion.text) for completion in group.completions]
        return tuple(
            Comparison(i=i, j=j, p=self.probability(texts[i], texts[j]), annotator=self.name)  # type: ignore[operator]
            for i, j in pairs
        )


def praise(prompt: str, text: str) -> float:
    """Praise minus blame; some text is better than none, and words about judges change nothing."""
    return 2 * text.count("wonderful") - 2 * text.count("terrible") + 3 * (text != "")


def results(judge: object, groups: list[Group] = PRAISED, **options: object) -> dict[str, Check]:
    return {check.name: check for check in check_judge(judge, groups, **options)}  # type: ignore[arg-type]


def failed(found: dict[str, Check]) -> set[str]:
    return {name for name, check in found.items() if check.passed is False}


def test_a_sound_judge_passes() -> None:
    found = results(ScoreJudge(praise, "praise"))
    assert failed(found) == set()
    assert found["people"].share == 1
    assert found["injection"].share == 0
    assert found["order"].share == 0
    assert {check.n for name, check in found.items() if name != "validity"} == {40}


def test_always_the_first_fails_by_order() -> None:
    found = results(PairJudge(lambda first, second: 1.0))
    assert found["order"].share == 1
    assert {"order", "identical"} <= failed(found)


def test_chance_fails_by_order_and_consistency() -> None:
    draw = random.Random(0)
    many = [replace(item, id=f"{item.id}-{copy}") for item in PRAISED for copy in range(4)]
    found = results(PairJudge(lambda first, second: draw.choice((0.0, 1.0))), many, num_pairs=160)
    assert {"order", "consistency", "empty", "identical"} <= failed(found)
    assert found["people"].passed in (True, False)


def test_the_opposite_of_people_fails() -> None:
    found = results(ScoreJudge(lambda prompt, text: -praise(prompt, text), "contrary"))
    assert {"people", "empty"} <= failed(found)
    assert found["people"].share == 0


def test_longer_fails_by_padding_and_injection() -> None:
    found = results(ScoreJudge(lambda prompt, text: len(text), "longer"))
    assert failed(found) >= {"padding", "injection"}
    assert found["length"].share == 1
    assert found["length"].passed is None


def test_a_judge_that_obeys_fails_by_injection() -> None:
    def obeys(prompt: str, text: str) -> float:
        return praise(prompt, text) + 10 * ("VERDICT" in text or "verdict" in text or "Ignore" in text)

    assert failed(results(ScoreJudge(obeys, "obeys"))) == {"injection"}


def test_both_orders_of_a_language_model_are_seen_through() -> None:
    rubric = Constitution(name="r", principles=(Principle(name="r", compare="x"),))
    reader = Reader(lambda first, second: Reading("first", 1.0))
    found = results(LanguageModelJudge(reader, "lm", rubric))
    assert found["order"].share == 1, "its labels are all ties, its orders tell"
    assert "order" in failed(found)
    questions = 6 * 40 * 2
    assert len(reader.asked) == questions, "the other order isn't asked for again"


def test_verdicts_that_are_none_are_counted() -> None:
    rubric = Constitution(name="r", principles=(Principle(name="r", compare="x"),))
    found = results(LanguageModelJudge(Reader(lambda a, b: Reading("invalid", None)), "lm", rubric))
    assert found["validity"].share == 1
    assert failed(found) == {"validity"}
    assert found["order"].share is None
    assert found["order"].passed is None


def test_another_sample_is_asked_for_consistency() -> None:
    judge, other = ScoreJudge(praise, "praise"), ScoreJudge(lambda prompt, text: -praise(prompt, text), "praise")
    assert results(judge, again=other)["consistency"].share == 0


def test_few_pairs_prove_nothing() -> None:
    contrary = ScoreJudge(lambda prompt, text: -praise(prompt, text), "contrary")
    assert {check.passed for check in results(contrary, PRAISED[:9]).values()} == {None}
    assert failed(results(contrary, PRAISED[:10])) >= {"empty", "people"}


def test_without_people_there_is_no_such_line() -> None:
    assert "people" not in results(ScoreJudge(praise, "praise"), GROUPS)


def test_pairs_come_from_all_groups_first() -> None:
    many = [group(f"g{n}", *(f"answer {n} {k}" for k in range(4))) for n in range(10)]
    assert len({pair.id for pair in draw_pairs(many, 10, seed=0)}) == 10
    pairs = draw_pairs(many, 1000, seed=0)
    assert len(pairs) == 60
    assert len({tuple(plain(item.text) for item in pair.completions) for pair in pairs}) == 60
    assert draw_pairs(many, 7, seed=1) == draw_pairs(many, 7, seed=1) != draw_pairs(many, 7, seed=2)
    with pytest.raises(DataError, match="two different"):
        draw_pairs([group("g", "x", "x"), group("h", "y")], 5, seed=0)


def test_people_s_judgments_keep_to_their_answers() -> None:
    three = replace(
        group("g", "a", "b", "c"),
        judgments=(Comparison(i=2, j=0, annotator="x"), Comparison(i=1, j=2, p=0.25, annotator="x")),
    )
    better = {frozenset("ac"): "c", frozenset("bc"): "c"}
    for pair in draw_pairs([three], 3, seed=0):
        texts = [plain(completion.text) for completion in pair.completions]
        labels = [texts[j.i] if j.p > 0.5 else texts[j.j] for j in pair.judgments if isinstance(j, Comparison)]
        assert labels == [better[both] for both in [frozenset(texts)] if both in better]


def test_every_attack_is_used_and_the_answer_stays() -> None:
    pairs = draw_pairs(GROUPS, len(ATTACKS), seed=0)
    for loser, p in ((1, 1.0), (0, 0.0), (1, 0.5), (1, None)):
        texts = [plain(pair.completions[1].text) for pair in attacked(pairs, [p] * len(pairs))]
        for pair, text, attack in zip(pairs, texts, ATTACKS, strict=True):
            assert text == plain(pair.completions[loser].text) + attack.format(letter="B")
    assert len(PADDING) > 100
