"""Judges by scores: rules, functions, reward models, and a policy's own implicit reward."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from judging import GROUPS, group
from transformers import LlamaConfig, LlamaForSequenceClassification

from conftest import build_model, build_tokenizer
from dipole.data.reduce import pair_labels
from dipole.errors import ConfigError, JudgeError
from dipole.feedback.judge import Tally, all_pairs, judge_groups
from dipole.feedback.registry import open_judge
from dipole.group import Comparison, Completion, Group, Rating

THREE = group("g", "short", "a longer one", "mid size")


def test_longer_and_shorter() -> None:
    longer = open_judge("rule:longer").judge(THREE, all_pairs(THREE))
    assert longer == tuple(
        Rating(i=i, value=value, annotator="rule:longer") for i, value in enumerate((5.0, 12.0, 8.0))
    )
    shorter = open_judge("rule:shorter?as=comparisons&name=brief").judge(THREE, [(0, 1), (1, 2)])
    assert shorter == (Comparison(i=0, j=1, p=1.0, annotator="brief"), Comparison(i=1, j=2, p=0.0, annotator="brief"))


def test_only_what_is_in_a_pair_is_rated() -> None:
    ratings = open_judge("rule:longer").judge(THREE, [(2, 0)])
    assert [rating.indices() for rating in ratings] == [(0,), (2,)]


def test_equal_scores_tie() -> None:
    same = group("g", "abc", "xyz")
    assert open_judge("rule:longer?as=comparisons").judge(same, [(0, 1)])[0].p == 0.5  # type: ignore[attr-defined]
    (label,) = pair_labels(next(judge_groups(open_judge("rule:longer"), [same])))
    assert label.p == 0.5


def test_vader_likes_praise() -> None:
    judged = list(judge_groups(open_judge("vader"), GROUPS))
    assert all(label.i == 0 and label.p == 1 for item in judged for label in pair_labels(item))


@pytest.fixture
def scorers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "my scorers.py"
    file.write_text(
        "def stars(completion): return completion.count('*')\n"
        "def fits(prompt, completion): return prompt in completion\n"
        "def nothing(): return 0\n"
        "def broken(completion): return 1 / 0\n"
        "def endless(completion): return float('inf')\n"
        "def words(completion, sep=' '): return len(completion.split(sep))\n"
        "constant = 5\n"
    )
    return file


def test_functions_of_a_file(scorers: Path) -> None:
    starred = Group(
        id="g", prompt="x*", completions=tuple(Completion(text=text) for text in ("x* it is", "**", "none at all"))
    )

    def values(name: str) -> list[float]:
        judgments = open_judge(f"{scorers}:{name}").judge(starred, all_pairs(starred))
        assert {judgment.annotator for judgment in judgments} == {f"my scorers.py:{name}"}
        return [judgment.value for judgment in judgments if isinstance(judgment, Rating)]

    assert values("stars") == [1, 2, 0]
    assert values("fits") == [1, 0, 0]
    assert values("words") == [3, 1, 3]


def test_functions_of_a_module() -> None:
    ratings = open_judge("python:math.fsum?name=x")
    with pytest.raises(JudgeError, match="x can't score completion 0"):
        ratings.judge(THREE, [(0, 1)])


@pytest.mark.parametrize(
    ("name", "said"),
    [("nothing", "takes 0 arguments"), ("constant", "no function"), ("missing", "no function")],
)
def test_functions_that_can_t_judge(scorers: Path, name: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        open_judge(f"{scorers}:{name}")


@pytest.mark.parametrize(("name", "said"), [("broken", "ZeroDivisionError"), ("endless", "inf")])
def test_functions_that_fail_name_the_completion(scorers: Path, name: str, said: str) -> None:
    with pytest.raises(JudgeError, match=said) as caught:
        open_judge(f"{scorers}:{name}").judge(THREE, [(1, 2)])
    assert "completion 1" in str(caught.value)
    assert caught.value.where == "group 'g'"


def test_a_file_that_can_t_be_imported(tmp_path: Path) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("import nowhere_to_be_found\n")
    with pytest.raises(ConfigError, match="importing it fails"):
        open_judge(f"{broken}:score")
    with pytest.raises(ConfigError, match="no file"):
        open_judge(f"{tmp_path}/missing.py:score")


# --- models


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second tiny model with the same tokenizer."""
    folder = tmp_path_factory.mktemp("models") / "trained"
    tokenizer = build_tokenizer()
    build_model(len(tokenizer), seed=1).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def reward_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny reward model."""
    folder = tmp_path_factory.mktemp("models") / "reward"
    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        num_labels=1,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.2,
    )
    LlamaForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def plain_logp(folder: Path, prompt: str, completion: str) -> float:
    """The slow way: one sequence, full logits."""
    from transformers import AutoModelForCausalLM

    tokenizer = build_tokenizer()
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    begin = tokenizer(prompt)["input_ids"]
    ids = [*tokenizer(prompt + completion)["input_ids"], tokenizer.eos_token_id]
    with torch.no_grad():
        logps = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return sum(float(logps[place - 1, ids[place]]) for place in range(len(begin), len(ids)))


def test_implicit_reward_is_beta_times_the_log_ratio(tiny_folder: Path, trained: Path) -> None:
    judge = open_judge(f"implicit:{trained}+{tiny_folder}?beta=0.3")
    ratings = judge.judge(THREE, all_pairs(THREE))
    for completion, rating in zip(THREE.completions, ratings, strict=True):
        assert isinstance(rating, Rating)
        text = str(completion.text)
        ratio = plain_logp(trained, "Write a review.", text) - plain_logp(tiny_folder, "Write a review.", text)
        assert rating.value == pytest.approx(0.3 * ratio, abs=1e-4)
    assert ratings[0].annotator == "implicit:trained+tiny"


def test_comparisons_of_rewards_are_bradley_terry(tiny_folder: Path, trained: Path) -> None:
    rated = open_judge(f"implicit:{trained}+{tiny_folder}").judge(THREE, all_pairs(THREE))
    compared = open_judge(f"implicit:{trained}+{tiny_folder}?as=comparisons").judge(THREE, all_pairs(THREE))
    values = [rating.value for rating in rated if isinstance(rating, Rating)]
    for comparison in compared:
        assert isinstance(comparison, Comparison)
        expected = 1 / (1 + math.exp(values[comparison.j] - values[comparison.i]))
        assert comparison.p == pytest.approx(expected)


def test_a_model_is_no_reference_of_itself_unless_it_has_an_adapter(tiny_folder: Path) -> None:
    with pytest.raises(ConfigError, match="reference is missing"):
        open_judge(f"implicit:{tiny_folder}")


def test_an_adapter_s_reference_is_its_model(tiny_folder: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    adapted = get_peft_model(
        AutoModelForCausalLM.from_pretrained(tiny_folder),
        LoraConfig(task_type="CAUSAL_LM", r=2, target_modules="all-linear"),
    )
    torch.manual_seed(3)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    adapted.save_pretrained(tmp_path / "adapter")
    adapted.merge_and_unload().save_pretrained(tmp_path / "merged")
    build_tokenizer().save_pretrained(tmp_path / "merged")
    by_adapter = open_judge(f"implicit:{tmp_path / 'adapter'}").judge(THREE, all_pairs(THREE))
    by_copies = open_judge(f"implicit:{tmp_path / 'merged'}+{tiny_folder}").judge(THREE, all_pairs(THREE))
    values = [[rating.value for rating in side if isinstance(rating, Rating)] for side in (by_adapter, by_copies)]
    assert values[0] == pytest.approx(values[1], abs=1e-4)
    assert max(map(abs, values[0])) > 0.01


def test_other_vocabularies_are_refused(tiny_folder: Path, tmp_path: Path) -> None:
    tokenizer = build_tokenizer(merges=["a b"])
    build_model(len(tokenizer)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="vocabularies"):
        open_judge(f"implicit:{tmp_path}+{tiny_folder}")


def test_reward_model_scores_as_transformers_does(reward_folder: Path) -> None:
    ratings = open_judge(f"reward_model:{reward_folder}").judge(THREE, all_pairs(THREE))
    tokenizer = build_tokenizer()
    model = LlamaForSequenceClassification.from_pretrained(reward_folder).eval()
    for completion, rating in zip(THREE.completions, ratings, strict=True):
        assert isinstance(rating, Rating)
        ids = [*tokenizer(f"Write a review.{completion.text}")["input_ids"], tokenizer.eos_token_id]
        with torch.no_grad():
            expected = float(model(torch.tensor([ids])).logits[0, 0])
        assert rating.value == pytest.approx(expected, abs=1e-4)


def test_a_language_model_is_no_reward_model_silently(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        open_judge(f"reward_model:{tmp_path}")


def test_scores_of_many_groups_equal_those_of_each(tiny_folder: Path, trained: Path) -> None:
    judge = open_judge(f"implicit:{trained}+{tiny_folder}")
    groups = [group(f"g{n}", *("x" * (1 + (n + k) % 7) for k in range(3))) for n in range(40)] + [group("alone", "x")]
    together = list(judge_groups(judge, groups))
    assert [item.id for item in together] == [item.id for item in groups]
    assert together[-1].judgments == ()
    for item in together[::13]:
        single = judge.judge(item, all_pairs(item)) if all_pairs(item) else ()
        assert [(r.i, r.value) for r in item.judgments if isinstance(r, Rating)] == [
            (r.i, pytest.approx(r.value, abs=1e-5)) for r in single if isinstance(r, Rating)
        ]


def test_what_doesn_t_fit_has_no_score(tiny_folder: Path, trained: Path) -> None:
    long = group("long", "a", "b", prompt="x" * 600)
    judge = open_judge(f"implicit:{trained}+{tiny_folder}")
    assert judge.judge(long, [(0, 1)]) == ()
    (compared,) = open_judge(f"implicit:{trained}+{tiny_folder}?as=comparisons").judge(long, [(0, 1)])
    assert (compared.weight, compared.meta) == (0.0, {"verdict": "invalid"})


def test_what_has_no_score_is_counted(tiny_folder: Path, trained: Path) -> None:
    judge, tally = open_judge(f"implicit:{trained}+{tiny_folder}"), Tally()
    fits = group("fits", "a", "b")
    long = group("long", "a", "b", prompt="x" * 600)
    judged = list(judge_groups(judge, [fits, long, fits], tally=tally, max_invalid=0.5))
    assert [len(item.judgments) for item in judged] == [2, 0, 2]
    assert (tally.judgments, tally.unscored, tally.invalid) == (4, 2, 0)
    with pytest.raises(JudgeError, match="2 of 4 answers couldn't be scored"):
        list(judge_groups(judge, [fits, long]))
