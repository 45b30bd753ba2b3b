"""The sweep on the tiny model: every point is there, a killed one goes on, another one is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conftest import build_tokenizer
from dipole.config import LossConfig
from dipole.data.batch import pack
from dipole.data.formats import load_groups
from dipole.data.tokenize import TokenizedGroup
from dipole.data.validate import fold
from dipole.errors import ConfigError, DataError
from dipole.group import Rating
from dipole.policy.saved import load_policy
from dipole.progress import Silent
from dipole.sweep import arms
from dipole.sweep.frontier import run_frontier
from dipole.sweep.plan import PRESETS, LossArm, PPOArm, Sizes, key
from dipole.sweep.texts import Prompt, divided, open_score, rated_groups

SIZES = Sizes(
    arms=(
        LossArm(method="dpo", strength="β = 0.1", loss=LossConfig(name="dpo", beta=0.1)),
        LossArm(method="kto", strength="β = 0.1", loss=LossConfig(name="kto", beta=0.1)),
        LossArm(method="sft", strength="", loss=LossConfig(name="sft")),
        PPOArm(method="ppo_true", target_kl=2.0),
        PPOArm(method="ppo", target_kl=2.0),
    ),
    imitated=6,
    imitated_per_step=3,
    imitation_rate=1e-4,
    prompts=8,
    completions=3,
    max_new_tokens=5,
    epochs=2,
    groups_per_step=4,
    rounds=2,
    learning_rate=1e-2,
    rank=2,
    points=2,
    test_prompts=4,
    test_completions=2,
    best_of=(2, 3),
    draws=4,
)
WORDS = ("good", "dull", "warm", "slow", "kind", "grey", "odd", "fine")


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    random = np.random.default_rng(0)
    lines = [f"{number:03} " + " ".join(random.choice(WORDS, 4)) for number in range(60)]
    path = tmp_path_factory.mktemp("texts") / "texts.txt"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("scorer") / "scorer.py"
    path.write_text("def score(prompt, completion):\n    return (sum(map(ord, completion)) % 11) / 10\n")
    return f"{path}:score"


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIPOLE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="module")
def swept(tiny_folder: Path, texts: Path, scorer: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("sweep") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIPOLE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        run_frontier(output, sizes=SIZES, model=str(tiny_folder), texts=str(texts), scorer=scorer)
    return output


def records(output: Path) -> dict[str, Any]:
    return {path.stem: json.loads(path.read_text()) for path in sorted((output / "points").glob("*.json"))}


def test_every_method_has_its_points_on_the_same_prompts_and_budget(swept: Path) -> None:
    found = records(swept)
    expected = {"reference-00000", *(f"{name}-{n}-00000" for name in ("best_of_n", "best_of_n_rm") for n in (2, 3))}
    expected |= {f"{name}-{step:05d}" for name in ("dpo-0.1", "kto-0.1", "sft") for step in (2, 4)}
    expected |= {f"{name}-2-{step:05d}" for name in ("ppo", "ppo_true") for step in (1, 2)}
    assert found.keys() == expected
    prompts = {row["prompt"] for row in found["reference-00000"]["rows"]}
    assert len(prompts) == 4
    for name, record in found.items():
        assert {row["prompt"] for row in record["rows"]} == prompts, name
        assert record["samples"] == (
            0 if record["step"] == 0 else 12 if name in ("ppo-2-00001", "ppo_true-2-00001") else 24
        )
    assert sum(row["kl"] for row in found["dpo-0.1-00004"]["rows"]) > 0.01
    assert found["best_of_n-2-00000"]["bound"] == pytest.approx(0.193, abs=0.001)


@pytest.mark.parametrize("arm", ["dpo-0.1", "ppo_true-2"])
def test_every_method_leaves_its_policy_behind(swept: Path, arm: str) -> None:
    saved = load_policy(str(swept / "runs" / arm / "final"))
    base = load_policy(str(swept / "runs" / "base" / "final"))
    batch = pack([TokenizedGroup(id="", prompt_ids=(1, 2), completion_ids=((3, 4, 5),), relations=())])
    assert not torch.allclose(saved.policy(batch).logps, base.policy(batch).logps, atol=1e-4)


def test_what_is_trained_on_is_not_what_is_measured_on(swept: Path) -> None:
    groups = load_groups(str(swept / "preferences.jsonl"))
    trained = {str(group.prompt) for group in groups}
    imitated = {str(group.prompt) for group in load_groups(str(swept / "imitated.jsonl"))}
    tested = {row["prompt"] for row in records(swept)["reference-00000"]["rows"]}
    assert not trained & tested
    assert not imitated & (tested | trained)
    for group in groups:
        assert len({fold(str(completion.text)) for completion in group.completions}) == len(group.completions) > 1


def test_the_folder_says_what_came_out(swept: Path) -> None:
    page = (swept / "frontier.md").read_text(encoding="utf-8")
    assert "## Where DPO doesn't dominate" in page
    assert {path.name for path in swept.glob("frontier-*")} == {
        f"frontier-{theme}.{suffix}" for theme in ("light", "dark") for suffix in ("svg", "png")
    }
    assert len(json.loads((swept / "frontier.json").read_text(encoding="utf-8"))) == len(records(swept))


def test_a_killed_sweep_loses_no_point_and_ends_alike(
    swept: Path, tiny_folder: Path, texts: Path, scorer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"sizes": SIZES, "model": str(tiny_folder), "texts": str(texts), "scorer": scorer}

    class KilledError(Exception):
        pass

    written: list[str] = []
    write: Callable[..., None] = arms.write_point

    def write_two(path: Path, *rest: Any) -> None:
        if len(written) == 3:
            written.clear()
            raise KilledError
        write(path, *rest)
        written.append(path.stem)

    monkeypatch.setattr(arms, "write_point", write_two)
    for _ in range(9):
        before = set(records(tmp_path / "killed"))
        try:
            run_frontier(tmp_path / "killed", **options)
            break
        except KilledError:
            assert before < set(records(tmp_path / "killed")), "each try gets further"
    assert records(tmp_path / "killed") == records(swept)
    again: list[str] = []
    monkeypatch.setattr(arms, "write_point", lambda path, *rest: again.append(path.stem))
    run_frontier(tmp_path / "killed", **options)
    assert again == []
    with pytest.raises(ConfigError, match="a sweep with another seed"):
        run_frontier(tmp_path / "killed", seed=1, **options)


def test_texts_are_divided_by_the_seed_and_too_few_are_refused(texts: Path) -> None:
    lines = texts.read_text(encoding="utf-8").splitlines()
    tokenizer = build_tokenizer()
    first, second, other = (divided(lines, tokenizer, SIZES, seed) for seed in (0, 0, 1))
    assert first == second != other
    assert all(2 <= len(prompt.ids) <= 8 for prompt in first.prompts)
    assert all(f"{beginning}{rest}" in lines for beginning, rest in first.imitated)
    with pytest.raises(DataError, match="18 texts with different beginnings are needed"):
        divided(lines[:10], tokenizer, SIZES, 0)


def test_equal_and_empty_completions_are_left_out() -> None:
    prompts = [Prompt("a", (1,)), Prompt("b", (2,))]
    groups = rated_groups(prompts, [[" x", "", " X ", " y"], [" z", " Z"]], lambda prompt, text: float(len(text)))
    assert [[completion.text for completion in group.completions] for group in groups] == [[" x", " y"]]
    assert [judgment.value for judgment in groups[0].judgments if isinstance(judgment, Rating)] == [2, 2]


def test_presets_give_every_arm_a_name_of_its_own() -> None:
    for sizes in PRESETS.values():
        names = [key(arm) for arm in sizes.arms]
        assert len(set(names)) == len(names)
        methods = {arm.method for arm in sizes.arms}
        assert methods == {"dpo", "ipo", "kto", "simpo", "sft", "unlikelihood", "ppo", "ppo_true"}
        assert max(sizes.best_of) <= sizes.draws / 4, "the KL of best-of-N is plugged in"
    assert replace(SIZES, points=3).due(4) == [2, 3, 4]
    assert SIZES.due(1) == [1]


def test_a_scorer_is_vader_or_a_function(scorer: str) -> None:
    pytest.importorskip("vaderSentiment")
    vader = open_score("vader")
    assert vader("a wonderful", " and great film") > 0.5 > -0.5 > vader("an awful", ", terrible mess")
    assert 0 <= open_score(scorer)("a", "b") <= 1
    with pytest.raises(ConfigError):
        open_score("no.such.function")


def test_an_unknown_preset_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="quick"):
        run_frontier(tmp_path, preset="quik", progress=Silent())
