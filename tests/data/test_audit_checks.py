"""Single checks of the full audit, against numbers worked out by hand."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest

from dipole.data.audit import Bar, BarChart, Finding, Result
from dipole.data.audit.annotators import check_annotators
from dipole.data.audit.balance import check_balance
from dipole.data.audit.columns import Collector, Columns
from dipole.data.audit.consistency import check_cycles
from dipole.data.audit.coverage import check_languages, check_reach, check_topics, check_turns
from dipole.data.audit.language import language
from dipole.data.audit.probe import held_out_scores, sampled_pairs
from dipole.data.audit.space import Space
from dipole.group import Comparison, Completion, Group, Ranking, Text

ANSWERS = ("first", "the second one")


def group(
    id: str,
    *judgments: Comparison | Ranking,
    prompt: Text | None = None,
    answers: Sequence[str] = ANSWERS,
    sources: Sequence[str | None] = (),
    **meta: object,
) -> Group:
    given = [*sources, *[None] * (len(answers) - len(sources))]
    return Group(
        id=id,
        prompt=f"Prompt {id}" if prompt is None else prompt,
        completions=tuple(Completion(text=text, source=source) for text, source in zip(answers, given, strict=True)),
        judgments=judgments or (Comparison(i=0, j=1),),
        meta=meta,
    )


def columns(*groups: Group, sample: int = 2000) -> Columns:
    collected = Collector(sample)
    for item in groups:
        collected.add(item)
    return collected.columns()


def found(check: Callable[..., Iterator[Result]], *given: object, name: str) -> Finding:
    (finding,) = [item for item in check(*given) if isinstance(item, Finding) and item.name == name]
    return finding


# Cycles


@pytest.mark.parametrize(
    ("pairs", "share"),
    [
        ([(0, 1), (1, 2), (0, 2)], 0.0),
        ([(0, 1), (1, 2), (2, 0)], 1.0),
        ([(0, 1), (1, 2), (2, 0), (0, 3), (1, 3), (2, 3)], 0.25),  # one of four triples
        ([(0, 1), (1, 2), (2, 3), (3, 0)], None),  # a circle of four, but no triple was compared
    ],
)
def test_cyclic_triples(pairs: list[tuple[int, int]], share: float | None) -> None:
    judged = group("g", *(Comparison(i=i, j=j) for i, j in pairs), answers=("a", "b", "c", "d"))
    findings = list(check_cycles(columns(judged)))
    assert [finding.value for finding in findings] == ([] if share is None else [share])


def test_a_circle_over_several_groups_of_one_prompt() -> None:
    answers = {"a": ("x", "y"), "b": ("y", "z"), "c": ("z", "x")}
    groups = [group(id, prompt="The same", answers=texts) for id, texts in answers.items()]
    finding = found(check_cycles, columns(*groups, group("d", answers=("p", "q"))), name="cycles")
    assert finding.value == 1.0
    assert finding.examples[0].endswith("'The same'")


def test_tossed_coins_are_cyclic_in_a_quarter() -> None:
    draw = random.Random(0)
    answers = [str(n) for n in range(8)]
    groups = []
    for number in range(300):
        pairs = [(i, j) if draw.random() < 0.5 else (j, i) for i in range(8) for j in range(i)]
        groups.append(group(f"g{number}", *(Comparison(i=i, j=j) for i, j in pairs), answers=answers))
    finding = found(check_cycles, columns(*groups), name="cycles")
    assert finding.value == pytest.approx(0.25, abs=0.02)
    assert finding.severity == "severe"  # its interval begins just above 0.2


# Annotators


def voted(number: int, **votes: float) -> Group:
    return group(f"g{number}", *(Comparison(i=0, j=1, p=p, annotator=name) for name, p in votes.items()))


def test_annotators_who_toss_coins_are_severe() -> None:
    draw = random.Random(0)
    groups = [voted(n, ann=draw.random() > 0.5, ben=draw.random() > 0.5) for n in range(1000)]
    finding = found(check_annotators, columns(*groups), name="agreement")
    assert finding.severity in ("warning", "severe")
    assert abs(finding.value["alpha"]) < 0.1  # type: ignore[index, arg-type]


def test_who_agrees_perfectly_has_the_coefficients_of_one() -> None:
    finding = found(check_annotators, columns(*(voted(n, ann=1, ben=1) for n in range(30))), name="agreement")
    assert finding.value == {"alpha": 1.0, "kappa": 1.0, "raw": 1.0}


def test_without_a_pair_in_common_agreement_cannot_be_told() -> None:
    groups = [voted(n, **{"ann" if n % 2 else "ben": 1.0}) for n in range(10)]
    assert "can't be told" in found(check_annotators, columns(*groups), name="agreement").message


def test_who_always_takes_the_first_is_named() -> None:
    draw = random.Random(0)
    groups = [voted(n, ann=1.0, ben=float(draw.random() > 0.5), cleo=float(draw.random() > 0.5)) for n in range(200)]
    finding = found(check_annotators, columns(*groups), name="position_bias")
    assert finding.severity == "severe"
    assert [example.partition(":")[0] for example in finding.examples] == ["ann"]


def test_where_the_preferred_stands_first_order_says_nothing() -> None:
    names = {item.name for item in check_annotators(columns(*(voted(n, ann=1.0, ben=1.0) for n in range(50))))}
    assert "position_bias" not in names


def test_who_is_too_fast_is_named() -> None:
    groups = [
        group(
            f"g{n}",
            *(Comparison(i=0, j=1, annotator=name) for name in ("ann", "ben", "cleo")),
            seconds={"ann": 20.0, "ben": 25.0, "cleo": 2.0},
        )
        for n in range(30)
    ]
    finding = found(check_annotators, columns(*groups), name="annotator_speed")
    assert (finding.value, finding.severity, finding.examples) == (20.0, "warning", ("cleo: 2.0 seconds",))


# Balance


def test_one_category_for_nearly_all() -> None:
    groups = [group(f"g{n}", category="safety" if n % 10 == 0 else "style") for n in range(500)]
    results = list(check_balance(columns(*groups)))
    (finding,) = [item for item in results if item.name == "categories" and isinstance(item, Finding)]
    assert (finding.value, finding.severity) == (0.9, "warning")
    (chart,) = [item for item in results if isinstance(item, BarChart)]
    assert [(bar.label, bar.value) for bar in chart.bars] == [("style", 0.9), ("safety", 0.1)]
    assert isinstance(chart.bars[0], Bar)


def test_one_annotator_for_nearly_all() -> None:
    groups = [voted(n, **{"ann" if n % 10 else ("ben" if n % 20 else "cleo"): 1.0}) for n in range(500)]
    finding = found(check_balance, columns(*groups), name="annotator_share")
    assert (finding.value, finding.severity) == (0.9, "warning")


def test_sources_that_win_as_often_are_no_worry() -> None:
    groups = [group(f"g{n}", sources=("a", "b") if n % 2 else ("b", "a")) for n in range(100)]
    finding = found(check_balance, columns(*groups), name="sources")
    assert (finding.value, finding.severity) == (0.5, "info")


# Coverage


def test_turns_count_the_users_messages() -> None:
    user, assistant = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}
    groups = [group("a", prompt=(user,)), group("b", prompt=(user, assistant, user)), group("c")]
    finding = found(check_turns, columns(*groups), name="turns")
    assert (finding.value, finding.examples) == (pytest.approx(1 / 3), ("b: 'Hi Yes Hi'",))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("What is the capital of this country, and how do you get there?", "English"),
        ("Was ist die Hauptstadt von Frankreich und wie kommt man dorthin?", "German"),
        ("Quelle est la capitale de ce pays et comment est-ce que vous y allez ?", "French"),
        ("¿Cuál es la capital de este país y cómo se llega a ella en tren?", "Spanish"),
        ("Qual è la capitale di questo paese e come si arriva con il treno?", "Italian"),
        ("この国の首都はどこですか。", "Japanese"),
        ("这个国家的首都是哪里？", "Chinese"),
        ("이 나라의 수도는 어디입니까?", "Korean"),
        ("Какая столица у этой страны?", "Cyrillic script"),
        ("ما هي عاصمة هذا البلد؟", "Arabic script"),
        ("12345 + 67890 = ?", None),
        ("", None),
    ],
)
def test_languages(text: str, expected: str | None) -> None:
    assert language(text) == expected


def test_answers_in_another_language() -> None:
    english, german = "What is the capital of this country?", "Das ist die Stadt, von der ich nicht weiß, wie sie ist."
    groups = [group("a", prompt=english, answers=(german, "x")), group("b", prompt=english, answers=(english, "x"))]
    finding = found(check_languages, columns(*groups), name="language_changes")
    assert (finding.value, finding.examples[0][:3]) == (0.5, "a: ")


ENDINGS = ("", "ing", "ed", "er", "less")
COOKING = [f"{word}{end}" for word in ("butter", "flour", "oven", "salt", "pepper", "garlic") for end in ENDINGS]
TRAVEL = [f"{word}{end}" for word in ("train", "hotel", "luggage", "ticket", "beach", "museum") for end in ENDINGS]


def prompts(words: list[str], count: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(words, k=8)) for _ in range(count)]


def test_topics_part_what_has_no_word_in_common() -> None:
    texts = [*prompts(COOKING, 100, 0), *prompts(TRAVEL, 100, 1)]
    found_topics = Space().topics(texts)
    assert found_topics is not None
    labels = found_topics.labels
    assert not set(labels[:100].tolist()) & set(labels[100:].tolist())
    groups = [group(f"g{n}", prompt=text) for n, text in enumerate(texts)]
    finding = found(check_topics, columns(*groups), Space(), name="topics")
    assert finding.value["effective"] > 1.5  # type: ignore[index]


def test_too_few_texts_have_no_topics() -> None:
    assert "too few" in found(check_topics, columns(group("a")), Space(), name="topics").message


@pytest.mark.parametrize(("words", "severity"), [(COOKING, "info"), (TRAVEL, "severe")])
def test_what_training_does_not_reach(words: list[str], severity: str) -> None:
    trained = columns(*(group(f"t{n}", prompt=text) for n, text in enumerate(prompts(COOKING, 300, 0))))
    held_out = columns(*(group(f"e{n}", prompt=text) for n, text in enumerate(prompts(words, 100, 1))))
    assert found(check_reach, trained, held_out, Space(), name="eval_reach").severity == severity


def test_embeddings_replace_words() -> None:
    def embed(texts: Sequence[str]) -> np.ndarray:
        return np.array([[len(text), 1.0] for text in texts])

    nearest = Space(embed).nearest(["aa", "aaaa"], ["aaaa"])
    assert nearest is not None
    assert nearest[1] == pytest.approx([1.0])


# Probes


def test_a_probe_finds_what_is_there_and_nothing_else() -> None:
    random_ = np.random.default_rng(0)
    telling = random_.normal(1.0, 1, size=(400, 1))
    nothing = random_.normal(0.0, 1, size=(400, 1))
    p, prompts_ = np.ones(400), np.arange(400) // 2
    for differences, low, high in ((telling, 0.78, 0.92), (nothing, 0.40, 0.56)):
        scores = held_out_scores(differences, p, prompts_)
        assert scores is not None
        assert low < (scores > 0).mean() < high


def test_the_order_of_a_pair_says_nothing_to_a_probe() -> None:
    differences = np.random.default_rng(0).normal(0.3, 1, size=(200, 3))
    one = held_out_scores(differences, np.ones(200), np.arange(200))
    other = held_out_scores(-differences, np.ones(200), np.arange(200))
    assert one is not None
    assert one == pytest.approx(other, abs=1e-6)  # labels turned as well: both sides are the preferred one's


def test_the_sample_is_uniform() -> None:
    """Of 1,000 groups 100 are kept, as many early as late ones."""
    kept = columns(*(group(f"g{n}") for n in range(1000)), sample=100)
    assert kept.sampled_from == 1000
    numbers = [sampled.number for sampled in kept.sample]
    assert len(set(numbers)) == 100
    assert 400 < np.mean(numbers) < 600
    assert len(sampled_pairs(kept).p) == 100
