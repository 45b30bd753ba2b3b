"""The Python surface: the names that ``dipole`` has, and whole pieces of work in one call."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

import dipole
from dipole import Comparison, Completion, Group, api
from dipole.errors import ConfigError

SMALL = {"global_batch_size": 4, "num_samples": 0, "max_steps": 2}


def make_groups(count: int = 8, *, answer: str = "yes") -> list[Group]:
    return [
        Group(
            id=f"g{n}",
            prompt=f"Question {n}?",
            completions=(
                Completion(text=f"{answer} {n}"),
                Completion(text=f"no {answer} {n}"),
                Completion(text=f"perhaps {answer}"),
            ),
            judgments=(Comparison(i=0, j=1, p=0.8), Comparison(i=0, j=2)),
        )
        for n in range(count)
    ]


@pytest.mark.parametrize("name", dipole.__all__)
def test_every_exported_name_is_there(name: str) -> None:
    assert getattr(dipole, name)
    assert name in dir(dipole)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nothing"):
        _ = dipole.nothing  # type: ignore[attr-defined]


def test_train_is_a_function_and_a_package() -> None:
    import dipole.train.optim

    assert callable(dipole.train)
    assert dipole.train.optim.__name__ == "dipole.train.optim"  # type: ignore[attr-defined]
    with pytest.raises(TypeError, match="output"):
        dipole.train("model", "data")  # type: ignore[call-arg]


def test_train_from_groups(tiny_folder: Path, tmp_path: Path) -> None:
    groups = make_groups()
    run = dipole.train(
        tiny_folder, groups, tmp_path / "run", eval_data=make_groups(3, answer="aye"), allow_shared_prompts=True,
        peft="lora", rank=4, beta=0.2, **SMALL,
    )  # fmt: skip
    assert run == tmp_path / "run"
    assert dipole.load_groups(run / "preferences.jsonl") == groups
    assert len(dipole.load_groups(run / "eval_preferences.jsonl")) == 3
    assert (run / "report.html").exists()
    manifest = json.loads((run / "manifest.json").read_text(encoding="utf-8"))
    assert (manifest["status"], manifest["steps"]) == ("done", 2)
    assert manifest["data"]["eval_groups"] == 3


def test_train_from_a_file_is_the_same_as_from_groups(tiny_folder: Path, tmp_path: Path) -> None:
    dipole.save_groups(make_groups(), tmp_path / "groups.jsonl")
    one = dipole.train(tiny_folder, tmp_path / "groups.jsonl", tmp_path / "one", "ipo", **SMALL)
    two = dipole.train(tiny_folder, make_groups(), tmp_path / "two", "ipo", **SMALL)
    weights = [AutoModelForCausalLM.from_pretrained(run / "final").state_dict() for run in (one, two)]
    assert all((weights[0][name] == weights[1][name]).all() for name in weights[0])


def test_a_folder_that_holds_a_run_is_left_as_it_is(tiny_folder: Path, tmp_path: Path) -> None:
    run = dipole.train(tiny_folder, make_groups(), tmp_path / "run", **SMALL)
    before = (run / "preferences.jsonl").read_bytes()
    with pytest.raises(ConfigError, match="already holds a run"):
        dipole.train(tiny_folder, make_groups(5), tmp_path / "run", **SMALL)
    assert (run / "preferences.jsonl").read_bytes() == before


def test_a_misspelt_option_is_found_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no option 'bta'.*Did you mean 'beta'"):
        dipole.train("m", make_groups(), tmp_path / "run", bta=0.1)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("source", ["groups", "file"])
def test_audit(source: str, tmp_path: Path) -> None:
    groups: Sequence[Group] = make_groups()
    dipole.save_groups(groups, tmp_path / "groups.jsonl")
    data = groups if source == "groups" else tmp_path / "groups.jsonl"
    assert dipole.audit(data).errors == ()
    assert [error.name for error in dipole.audit(data, eval_data=data).errors]
    assert api.audit(data).to_json() == dipole.audit(groups).to_json()


def test_audit_counts_rows_that_cannot_be_read(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"prompt": "Q", "chosen": "a", "rejected": "b"}\n{"prompt": "Q"}\n', encoding="utf-8")
    (error,) = dipole.audit(file).errors
    assert (error.name, error.value, error.message) == ("unreadable", 1, "1 row can't be read")
    assert error.examples[0].startswith(f"{file}:2: ")
