"""Rounds on the tiny model: what they write, that a stopped one goes on as if nothing was, and what they refuse."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_rounds import results, tiny_rounds, write_prompts

from dipole.data.formats import load_groups
from dipole.errors import ConfigError, DataError
from dipole.group import Comparison, plain
from dipole.iterate import run as running
from dipole.iterate import stages
from dipole.iterate.folder import Round, round_of
from dipole.iterate.report import table, write_report
from dipole.iterate.run import iterate
from dipole.iterate.settings import IterateConfig, PairingSettings, SamplerSettings, StopSettings
from dipole.iterate.stages import Stage

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def straight(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> IterateConfig:
    """Rounds that nobody interrupted."""
    config = tiny_rounds(tiny_folder, tmp_path_factory.mktemp("straight"))
    write_report(iterate(config))
    return config


def test_rounds_leave_what_they_promise(straight: IterateConfig) -> None:
    output = Path(straight.output)
    for number in (1, 2):
        round = round_of(output, number)
        for path in (round.prompts, round.groups, round.judged, round.pairs, round.training, round.evaluation):
            assert path.is_file(), path
        assert round.trained()
        recorded = round.recorded()
        assert list(recorded) == [
            *("prompts", "generate", "judge", "pair", "train"),
            *("sample", "compare_training", "compare_held_out", "measure"),
        ]
        assert all(len(facts["sha256"]) == 64 and "seconds" in facts for facts in recorded.values())
    assert not list(output.rglob("*.partial"))
    page = (output / "report.html").read_text(encoding="utf-8")
    assert "After 2 rounds the policy is" in page
    assert page.count("<svg") == 5


def test_no_evaluated_prompt_is_trained_on(straight: IterateConfig) -> None:
    output = Path(straight.output)
    split = {plain(group.prompt): group.split for group in load_groups(output / "prompts.jsonl")}
    assert sorted(split.values()) == ["eval"] * 4 + ["train"] * 12
    for number in (1, 2):
        round = round_of(output, number)
        assert {split[plain(group.prompt)] for group in load_groups(round.training)} == {"train"}
        assert {split[plain(group.prompt)] for group in load_groups(round.samples)} == {"eval"}


def test_the_pairs_are_the_longest_against_the_shortest(straight: IterateConfig) -> None:
    round = round_of(Path(straight.output), 1)
    judged = {f"round-1:{group.id}": group for group in load_groups(round.judged)}
    groups = load_groups(round.pairs)
    assert groups
    for group in groups:
        (pair,) = group.judgments
        assert isinstance(pair, Comparison)
        lengths = [len(plain(completion.text)) for completion in judged[group.id].completions]
        assert lengths[pair.i] == max(lengths) > lengths[pair.j] == min(lengths)
    facts = round.recorded()["pair"]
    assert facts["pairs"] == len(groups)
    assert facts["pairs"] + facts.get("groups_without_pairs", 0) == 12


def test_each_round_goes_on_from_the_last(straight: IterateConfig) -> None:
    output = Path(straight.output)
    policies = [round_of(output, number).recorded()["sample"]["policy"] for number in (0, 1, 2)]
    assert len(set(policies)) == 3
    for number in (1, 2):
        assert round_of(output, number).recorded()["generate"]["policy"] == policies[number - 1]


def test_numbers_are_of_the_rounds(straight: IterateConfig) -> None:
    rounds = json.loads((Path(straight.output) / "rounds.json").read_text())["rounds"]
    assert [row["round"] for row in rounds] == [0, 1, 2]
    assert rounds[0]["kl"] is None
    assert rounds[1]["kl"]["value"] != rounds[2]["kl"]["value"]
    for row in rounds[1:]:
        judged = row["judges"]["training"]
        assert judged["name"] == "rule:longer"
        assert 0 <= judged["win_rate"]["value"] <= 1
        assert row["judges"]["held_out"]["name"] == "letters.py:letters"
    first, second = (row["judges"]["training"]["gain"]["value"] for row in rounds[1:])
    changes = [row["changes"]["training"]["value"] for row in rounds[1:]]
    assert changes == [pytest.approx(first), pytest.approx(second - first)]


STAGES = ["prompts", "generate", "judge", "pair", "train", "sample", "compare_training", "compare_held_out", "measure"]


def test_a_run_that_failed_in_any_stage_goes_on_as_if_nothing_was(
    straight: IterateConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, true_stages = replace(straight, output=str(tmp_path / "rounds")), running.stages_of
    asked: list[tuple[int, str]] = []

    def failing(work: Any, round: Any) -> Any:
        raise KeyboardInterrupt

    def stages_of(config: IterateConfig, round: Round) -> Iterator[Stage]:
        for stage in true_stages(config, round):
            fails = (round.number, stage.name) not in asked
            if fails and not stage.result(round).exists():
                asked.append((round.number, stage.name))
                yield replace(stage, run=failing)
            else:
                yield stage

    monkeypatch.setattr(running, "stages_of", stages_of)
    for _ in range(2 + 2 * len(STAGES)):
        with pytest.raises(KeyboardInterrupt):
            iterate(config)
    iterate(config)
    assert asked == [(0, "sample"), (0, "measure"), *((number, name) for number in (1, 2) for name in STAGES)]
    assert results(Path(config.output)) == results(Path(straight.output))


def test_a_second_run_does_nothing(straight: IterateConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path: path.stat().st_mtime_ns for path in Path(straight.output).rglob("round-*/**/*") if path.is_file()}
    for name in ("generate_groups", "judged_groups", "open_policy", "open_named"):
        monkeypatch.setattr(stages, name, None)
    iterate(straight)
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_other_options_are_refused_and_more_rounds_are_added(straight: IterateConfig, tmp_path: Path) -> None:
    output = tmp_path / "rounds"
    shutil.copytree(straight.output, output)
    config = replace(straight, output=str(output))
    with pytest.raises(ConfigError, match=r"sampler\.temperature: 1\.2, not 0\.5"):
        iterate(replace(config, sampler=replace(config.sampler, temperature=0.5)))
    with pytest.raises(ConfigError, match="seed"):
        iterate(replace(config, seed=1))
    summary = iterate(replace(config, rounds=3))
    assert [row.number for row in summary.rounds] == [0, 1, 2, 3]
    assert {k: v for k, v in results(output).items() if "round-002" in k or "round-001" in k} == {
        k: v for k, v in results(Path(straight.output)).items() if "round-002" in k or "round-001" in k
    }


def test_new_prompts_are_new_and_earlier_pairs_stay(tiny_folder: Path, tmp_path: Path) -> None:
    config = tiny_rounds(tiny_folder, tmp_path, new_prompts=True, keep_rounds=1, held_out_judge=None)
    summary = iterate(config)
    rounds = [round_of(Path(config.output), number) for number in (1, 2)]
    asked = [{group.id for group in load_groups(round.prompts)} for round in rounds]
    assert [len(ids) for ids in asked] == [6, 6]
    assert not asked[0] & asked[1]
    kept = [group.id for group in load_groups(rounds[1].training)]
    own, earlier = load_groups(rounds[1].pairs), load_groups(rounds[0].pairs)
    assert kept == [group.id for group in (*own, *earlier)]
    assert "held-out wins" not in table(summary)[0]


def test_all_weights_go_on_too(tiny_folder: Path, tmp_path: Path) -> None:
    from dipole.config import PeftConfig

    config = tiny_rounds(tiny_folder, tmp_path, peft=PeftConfig(), rounds=2, held_out_judge=None)
    summary = iterate(replace(config, training=replace(config.training, learning_rate=1e-3, max_steps=1)))
    assert (Path(summary.policy) / "model.safetensors").is_file()
    assert len({round_of(summary.output, n).recorded()["sample"]["policy"] for n in (0, 1, 2)}) == 3


def test_the_reference_may_stay_the_first_model(tiny_folder: Path, tmp_path: Path) -> None:
    config = tiny_rounds(tiny_folder, tmp_path, reference="first", held_out_judge=None)
    iterate(config)
    metrics = [
        json.loads((round_of(Path(config.output), n).run / "metrics.jsonl").read_text().splitlines()[0]) for n in (1, 2)
    ]
    assert metrics[0]["loss"] == pytest.approx(0.6931, abs=1e-3)
    assert metrics[1]["loss"] != pytest.approx(0.6931, abs=1e-3)


@pytest.mark.parametrize(
    ("rules", "reason"),
    [
        ({"max_kl": 1e-9}, "KL"),
        ({"no_gain": True}, "no gain"),
    ],
)
def test_rules_stop_rounds(rules: dict[str, Any], reason: str, tiny_folder: Path, tmp_path: Path) -> None:
    training = {"held_out_judge": None, "stop": StopSettings(**rules), "rounds": 3}
    config = tiny_rounds(tiny_folder, tmp_path, **training)
    if "no_gain" in rules:
        config = replace(config, training=replace(config.training, learning_rate=1e-9))
    else:
        config = replace(config, stop=StopSettings(max_kl=-1e3))
    summary = iterate(config)
    assert summary.stopped is not None
    assert reason in summary.stopped
    assert summary.rounds[-1].number == 1


def test_judges_that_see_no_difference_are_an_error(tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "same.py").write_text("def same(text):\n    return 1\n")
    config = tiny_rounds(tiny_folder, tmp_path, judge=f"{tmp_path / 'same.py'}:same")
    with pytest.raises(DataError, match="pairs of equal score: 12"):
        iterate(config)


def test_too_few_prompts_are_told_at_once(tiny_folder: Path, tmp_path: Path) -> None:
    config = tiny_rounds(tiny_folder, tmp_path, new_prompts=True, prompts_per_round=9)
    with pytest.raises(ConfigError, match="need 18 prompts, and 12 are there"):
        iterate(config)
    write_prompts(tmp_path / "prompts.jsonl", count=1)
    with pytest.raises(DataError, match="no prompt is left"):
        iterate(tiny_rounds(tiny_folder, tmp_path, output="few"))


@pytest.mark.parametrize(
    ("options", "where"),
    [
        ({"rounds": 0}, "--rounds"),
        ({"sampler": SamplerSettings(num_completions=1)}, "num_completions"),
        ({"held_out_judge": "rule:longer"}, "--held_out_judge"),
        ({"held_out_judge": None, "stop": StopSettings(held_out_falls=True)}, "--stop.held_out_falls"),
        ({"pairing": PairingSettings(policy="gap")}, "min_gap"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    options: dict[str, Any], where: str, tiny_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=where):
        iterate(tiny_rounds(tiny_folder, tmp_path, **options))
    assert not (tmp_path / "rounds").exists()


def test_the_verb_shows_a_table(command: Command, straight: IterateConfig, tmp_path: Path) -> None:
    shutil.copytree(straight.output, tmp_path / "rounds")
    config = tmp_path / "rounds" / "config.yaml"
    status, said, heard = command("iterate", "--config", config, "--output", tmp_path / "rounds")
    assert status == 0, heard
    assert "training reward" in said
    assert "held-out wins" in said
    assert "Report:" in said
