"""Rounds whose judge is a server: what it may cost, what it may answer, and that its key is in no file."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_rounds import results, tiny_rounds, write_prompts

sys.path.append(str(Path(__file__).parent.parent / "feedback"))

from fake_server import Call, FakeServer, fake_server, say

from dipole.errors import DataError, JudgeError
from dipole.iterate.folder import round_of
from dipole.iterate.run import iterate
from dipole.iterate.settings import IterateConfig, SamplerSettings

KEY = "sk-canary-of-rounds-0987654321"


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with fake_server() as running:
        yield running


@pytest.fixture
def config(server: FakeServer, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> IterateConfig:
    """One small round, judged by a server."""
    monkeypatch.setenv("JUDGE_KEY", KEY)
    write_prompts(tmp_path / "prompts.jsonl", count=8)
    return tiny_rounds(
        tiny_folder,
        tmp_path,
        rounds=1,
        judge=f"server:{server.url}#tiny?key=JUDGE_KEY",
        held_out_judge=None,
        sampler=SamplerSettings(num_completions=2, temperature=1.2, max_new_tokens=6),
    )


def longer(call: Call) -> Any:
    first, second = (call.asked.split(f"answer {name}, begin")[1].split(f"answer {name}, end")[0] for name in "AB")
    return say(f"{KEY} is what I was sent.\nVERDICT: {'A' if len(first) >= len(second) else 'B'}")


def test_a_limit_stops_rounds_and_a_higher_one_goes_on(server: FakeServer, config: IterateConfig) -> None:
    server.answer = longer
    straight = replace(config, output=f"{config.output}-straight")
    iterate(straight)
    asked = len(server.calls)
    for limit in (4, 7):
        with pytest.raises(JudgeError, match="--max_calls") as stopped:
            iterate(replace(config, max_calls=limit))
        assert stopped.value.exit_status == 5
        assert len(server.calls) == asked + limit
    iterate(replace(config, max_calls=asked))
    assert len(server.calls) == 2 * asked, "nothing is asked twice"
    assert results(Path(config.output)) == results(Path(straight.output))
    written = {path: path.read_bytes() for path in Path(config.output).rglob("*") if path.is_file()}
    assert "report.html" in {path.name for path in written}
    assert all(call.headers["Authorization"] == f"Bearer {KEY}" for call in server.calls)
    assert not [path for path, content in written.items() if KEY.encode() in content]


def test_a_judge_without_verdicts_stops_rounds(server: FakeServer, config: IterateConfig) -> None:
    server.answer = lambda call: say("Both have their charms.")
    with pytest.raises(JudgeError, match="no valid verdict") as stopped:
        iterate(config)
    assert stopped.value.exit_status == 5
    with pytest.raises(DataError, match="no pair says anything"):
        iterate(replace(config, max_invalid=1.0))
    round = round_of(Path(config.output), 1)
    assert round.judged.exists()
    assert not round.training.exists()
    assert (Path(config.output) / "report.html").exists(), "of the first model, which was evaluated"
