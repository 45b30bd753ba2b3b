"""A language model in this process as a judge, by its logits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from judging import GROUPS, group
from transformers import AutoModelForCausalLM

from conftest import build_model, build_tokenizer
from dipole.errors import ConfigError
from dipole.feedback import language_model
from dipole.feedback.cache import Cache
from dipole.feedback.constitution import Constitution, Principle
from dipole.feedback.judge import all_pairs, is_invalid, judge_groups
from dipole.feedback.language_model import LogitGrades, LogitVerdicts
from dipole.feedback.local import LocalModel
from dipole.feedback.prompting import Question, comparison_messages, grading_messages
from dipole.feedback.registry import JudgeOptions, open_judge
from dipole.group import Comparison


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that takes long prompts: its tokens are single bytes."""
    path = tmp_path_factory.mktemp("models") / "roomy"
    tokenizer = build_tokenizer()
    model = build_model(len(tokenizer))
    model.config.max_position_embeddings = 4096
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


QUESTION = Question(rubric="Be warm.", prompt="Write.", first="Lovely.", second="Awful.")


def test_the_label_is_the_odds_of_the_letters(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language_model, "LEAST_MASS", 0.0)
    (reading,) = LogitVerdicts(LocalModel(str(folder))).read([QUESTION])
    tokenizer, model = build_tokenizer(), AutoModelForCausalLM.from_pretrained(folder).eval()
    (message,) = comparison_messages(QUESTION, letters_only=True)
    prompt = tokenizer.apply_chat_template([dict(message)], tokenize=False, add_generation_prompt=True) + "VERDICT:"

    def logp(letter: str) -> float:
        begin = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        ids = [*begin, *tokenizer(f" {letter}", add_special_tokens=False)["input_ids"]]
        with torch.no_grad():
            logps = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        return sum(float(logps[place - 1, ids[place]]) for place in range(len(begin), len(ids)))

    odds = torch.tensor([logp("A"), logp("B")])
    assert reading.p == pytest.approx(float(odds.softmax(0)[0]), abs=1e-4)
    assert reading.p != 0.5


def test_letters_that_are_no_answer_are_invalid(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language_model, "LEAST_MASS", 1.1)
    (reading,) = LogitVerdicts(LocalModel(str(folder))).read([QUESTION])
    assert (reading.verdict, reading.p) == ("invalid", None)
    assert "probability" in reading.reasons


def test_what_is_too_long_is_invalid_and_the_rest_isn_t(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language_model, "LEAST_MASS", 0.0)
    judge = open_judge(f"model:{folder}")
    groups = [GROUPS[0], group("long", "a", "b" * 3000), GROUPS[1]]
    judged = list(judge_groups(judge, groups, max_invalid=1.0))
    assert [is_invalid(item.judgments[0]) for item in judged] == [False, True, False]
    assert judged[0].judgments[0].annotator == "model:roomy"


def test_both_orders_give_one_label_whatever_comes_first(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language_model, "LEAST_MASS", 0.0)
    judge = open_judge(f"model:{folder}")
    here, there = judge.judge(GROUPS[0], [(0, 1), (1, 0)])
    assert isinstance(here, Comparison)
    assert isinstance(there, Comparison)
    assert here.p == pytest.approx(1 - there.p, abs=1e-6)


def test_a_second_run_computes_nothing(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = JudgeOptions(cache=tmp_path / "replies.sqlite")
    first = list(judge_groups(open_judge(f"model:{folder}", options), GROUPS[:6], max_invalid=1.0))
    monkeypatch.setattr(LocalModel, "logps", lambda self, groups: {} if not groups else pytest.fail("asked again"))
    second = list(judge_groups(open_judge(f"model:{folder}", options), GROUPS[:6], max_invalid=1.0))
    assert first == second


def test_other_weights_are_asked(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language_model, "LEAST_MASS", 0.0)
    cache = Cache(tmp_path / "replies.sqlite")
    other = tmp_path / "other"
    tokenizer = build_tokenizer()
    model = build_model(len(tokenizer), seed=5)
    model.config.max_position_embeddings = 4096
    model.save_pretrained(other)
    tokenizer.save_pretrained(other)
    readings = [next(LogitVerdicts(LocalModel(str(path)), cache).read([QUESTION])) for path in (folder, other)]
    assert readings[0] != readings[1]


def test_without_a_chat_template_paragraphs_do(tmp_path: Path) -> None:
    tokenizer = build_tokenizer(chat=False)
    model = build_model(len(tokenizer))
    model.config.max_position_embeddings = 4096
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    judged = list(judge_groups(open_judge(f"model:{tmp_path}"), GROUPS[:2], all_pairs, max_invalid=1.0))
    assert all(len(item.judgments) == 1 for item in judged)


def test_grades_are_log_odds_averaged_by_weight(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language_model, "LEAST_MASS", 0.0)
    local = LocalModel(str(folder))

    def grades(*principles: Principle) -> list[float]:
        ((first, second),) = LogitGrades(local, Constitution(name="c", principles=principles))([GROUPS[0]])
        assert first is not None
        assert second is not None
        return [first, second]

    warm, short = Principle(name="a", compare="Be warm.", weight=3), Principle(name="b", compare="Be short.")
    alone = [grades(warm), grades(short)]
    assert alone[0] != alone[1]
    assert grades(warm, short) == pytest.approx([(3 * a + b) / 4 for a, b in zip(*alone, strict=True)], abs=1e-5)
    chat = grading_messages("Be warm.", GROUPS[0].prompt, GROUPS[0].completions[0].text)
    logps = local.option_logps({"k": local.chat_ids([chat])[0]}, [local.text_ids("Yes"), local.text_ids("No")])["k"]
    assert alone[0][0] == pytest.approx(logps[0] - logps[1], abs=1e-5)


def test_asking_each_gives_ratings(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language_model, "LEAST_MASS", 0.0)
    long = group("long", "a", "b" * 5000)
    judged = list(judge_groups(open_judge(f"model:{folder}?ask=each"), [GROUPS[0], long], max_invalid=0.5))
    assert [[judgment.indices() for judgment in item.judgments] for item in judged] == [[(0,), (1,)], [(0,)]]
    monkeypatch.setattr(language_model, "LEAST_MASS", 1.1)
    (judged_again,) = judge_groups(open_judge(f"model:{folder}?ask=each"), [GROUPS[0]], max_invalid=1.0)
    assert judged_again.judgments == ()


@pytest.mark.parametrize("settings", ["as=ratings", "ask=each&label=soft"])
def test_settings_of_the_other_way_to_ask_are_refused(folder: Path, settings: str) -> None:
    with pytest.raises(ConfigError, match="means nothing"):
        open_judge(f"model:{folder}?{settings}")
