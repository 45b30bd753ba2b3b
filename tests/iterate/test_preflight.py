"""What would be wrong in hours is said before anything is made, and what was never begun can be begun otherwise."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_rounds import tiny_rounds, write_prompts

from dipole.data.formats import load_groups
from dipole.errors import ConfigError, DataError, DipoleError
from dipole.iterate import run as running
from dipole.iterate.run import iterate
from dipole.iterate.settings import IterateConfig, PairingSettings, RoundLoss, SamplerSettings, TrainingSettings


class BegunError(Exception):
    """Raised instead of a round."""


@pytest.fixture(autouse=True)
def no_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here may get as far as a round, except to say that it would."""

    def begin(work: Any, round: Any) -> None:
        raise BegunError

    monkeypatch.setattr(running, "run_round", begin)


def refused(config: IterateConfig, kind: type[DipoleError], match: str) -> None:
    with pytest.raises(kind, match=match):
        iterate(config)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "the sampler": ({"sampler": SamplerSettings(temperature=-1.0)}, r"--sampler\.temperature"),
    "its stop text": ({"sampler": SamplerSettings(stop=("",))}, r"--sampler\.stop"),
    "the pairs": ({"pairing": PairingSettings(policy="rejection", accept=1, beta=1.0)}, r"--pairing\.accept"),
    "training": ({"training": TrainingSettings(global_batch_size=0)}, r"--training\.global_batch_size"),
    "the loss": ({"loss": RoundLoss(name="dppo")}, "dpo"),
    "its numbers": ({"loss": RoundLoss(name="simpo", nll_weight=1.0)}, "nll_weight"),
    "the judge": ({"judge": "vadr"}, "vader"),
    "its settings": ({"judge": "vader?az=ratings"}, "'as'"),
    "its file": ({"judge": "nowhere.py:score"}, r"nowhere\.py"),
    "its key": ({"judge": "server:http://127.0.0.1:9/v1#m?key=NO_SUCH_KEY"}, "NO_SUCH_KEY"),
    "the held-out judge": ({"held_out_judge": "model:/no/such/model"}, "/no/such/model"),
    "the policy as a judge": ({"judge": "self?rubrik=x"}, "'rubric'"),
    "a limit": ({"max_calls": -1}, "--max_calls"),
    "money without prices": ({"max_cost": 1.0}, "--prompt_price"),
    "a share": ({"max_invalid": 1.5}, "--max_invalid"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said_before_anything_is_made(name: str, tiny_folder: Path, tmp_path: Path) -> None:
    options, said = WRONG[name]
    with pytest.raises(ConfigError, match=said):
        iterate(tiny_rounds(tiny_folder, tmp_path, **options))
    assert not (tmp_path / "rounds").exists()


@pytest.mark.parametrize(
    ("prompt", "said"), [("", "is empty"), (" \n", "is empty"), ("x" * 510, "510 tokens.*6 new ones.*512")]
)
def test_a_prompt_that_nothing_can_be_written_to_is_named(
    prompt: str, said: str, tiny_folder: Path, tmp_path: Path
) -> None:
    file = write_prompts(tmp_path / "prompts.jsonl")
    sound = file.read_text()
    file.write_text(sound + json.dumps({"id": "odd", "prompt": prompt}) + "\n")
    config = tiny_rounds(tiny_folder, tmp_path)
    refused(config, DataError, f"(?s){said}")
    file.write_text(sound)
    with pytest.raises(BegunError):
        iterate(config)


def test_what_was_never_begun_can_be_begun_with_other_options_and_prompts(tiny_folder: Path, tmp_path: Path) -> None:
    config = tiny_rounds(tiny_folder, tmp_path, new_prompts=True, prompts_per_round=9)
    refused(config, ConfigError, "need 18 prompts, and 12 are there")
    write_prompts(tmp_path / "prompts.jsonl", count=15)
    with pytest.raises(BegunError):
        iterate(replace(config, prompts_per_round=5, eval_share=0.2))
    kept = load_groups(tmp_path / "rounds" / "prompts.jsonl")
    assert sorted(str(group.split) for group in kept) == ["eval"] * 3 + ["train"] * 12


def test_rounds_don_t_go_on_with_other_prompts(tiny_folder: Path, tmp_path: Path) -> None:
    config = tiny_rounds(tiny_folder, tmp_path)
    with pytest.raises(BegunError):
        iterate(config)
    (tmp_path / "rounds" / "round-000").mkdir()
    with pytest.raises(BegunError):
        iterate(config)
    file = tmp_path / "prompts.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    for changed in ([*lines[1:]], [lines[0].replace("amber", "green"), *lines[1:]], [*lines, '{"prompt": "new"}\n']):
        file.write_text("".join(changed))
        refused(config, DataError, "made with other prompts")
    file.unlink()
    with pytest.raises(BegunError):
        iterate(config)


def test_limits_may_be_raised(tiny_folder: Path, tmp_path: Path) -> None:
    config = tiny_rounds(tiny_folder, tmp_path, max_calls=3)
    with pytest.raises(BegunError):
        iterate(config)
    (tmp_path / "rounds" / "round-000").mkdir()
    with pytest.raises(BegunError):
        iterate(replace(config, max_calls=100, threads=2, max_invalid=0.5))
