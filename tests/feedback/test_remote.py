"""Completions from a server: what is sent, what is kept, many at a time, and what a refusal is."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
from fake_server import Call, fail, fake_server, say

import dipole
from dipole import Group
from dipole.errors import ConfigError, DataError, JudgeError
from dipole.feedback.remote import seed_of

PROMPTS = [Group(id=f"p{n}", prompt=f"Question {n}?", completions=()) for n in range(4)]
CHAT: dict[str, Any] = {"prompt_format": "chat", "num_completions": 3, "max_new_tokens": 20}


def answer(call: Call) -> Any:
    return say(f" {call.body['messages'][0]['content']} by {call.body['seed']} ")


def test_every_completion_is_one_request_with_a_seed_of_its_own(tmp_path: Path) -> None:
    with fake_server() as server:
        server.answer = answer
        groups = dipole.generate("tiny", PROMPTS, tmp_path / "g.jsonl", server=server.url, temperature=0.7, **CHAT)
        assert len(server.calls) == 12
        again = dipole.generate("tiny", PROMPTS, tmp_path / "g.jsonl", server=server.url, temperature=0.7, **CHAT)
        assert len(server.calls) == 12, "a second run asks nothing"
    assert [group.id for group in again] == [group.id for group in groups] == ["p0", "p1", "p2", "p3"]
    seeds = set()
    for number, group in enumerate(groups):
        assert group.prompt == ({"role": "user", "content": f"Question {number}?"},)
        for k, completion in enumerate(group.completions):
            seed = completion.meta["seed"]
            seeds.add(seed)
            assert seed == seed_of(0, number, k)
            assert completion.text == f"Question {number}? by {seed}"
            assert completion.source == "tiny"
            assert completion.meta["server"] == server.url
            assert completion.meta["sampling"]["temperature"] == 0.7
            assert completion.meta["finished"] is True
            assert completion.meta["tokens"] == 5
    assert len(seeds) == 12


def test_what_is_sent_is_what_was_asked_for_and_no_more() -> None:
    with fake_server() as server:
        server.answer = answer
        dipole.generate("m", PROMPTS[:1], server=server.url, prompt_format="chat", num_completions=1, max_new_tokens=7)
        dipole.generate(
            "m", PROMPTS[:1], server=server.url, prompt_format="chat", num_completions=1, max_new_tokens=7,
            top_p=0.9, top_k=5, repetition_penalty=1.2, stop=("###",), temperature=0.5, seed=3,
        )  # fmt: skip
        plain, full = (call.body for call in server.calls)
    assert set(plain) == {"model", "messages", "max_tokens", "temperature", "seed"}
    assert full["stop"] == ["###"]
    assert (full["top_p"], full["top_k"], full["repetition_penalty"], full["temperature"]) == (0.9, 5, 1.2, 0.5)
    assert full["seed"] == seed_of(3, 0, 0) != plain["seed"]


def test_many_requests_are_on_their_way_at_a_time() -> None:
    lock, now, most = threading.Lock(), 0, 0

    def slow(call: Call) -> Any:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.05)
        with lock:
            now -= 1
        return answer(call)

    with fake_server() as server:
        server.answer = slow
        dipole.generate("m", PROMPTS, server=server.url, batch_size=6, **CHAT)
    assert 3 <= most <= 6


def test_what_was_answered_before_a_failure_is_kept(tmp_path: Path) -> None:
    with fake_server() as server:
        server.answer = lambda call: fail(401) if "Question 2" in call.asked else answer(call)
        with pytest.raises(JudgeError, match="401"):
            dipole.generate("m", PROMPTS, tmp_path / "g.jsonl", server=server.url, batch_size=1, **CHAT)
        before = len(server.calls)
        server.answer = answer
        dipole.generate("m", PROMPTS, tmp_path / "g.jsonl", server=server.url, batch_size=1, **CHAT)
        assert len(server.calls) - before == 6


def test_a_prompt_that_the_server_refuses_is_named() -> None:
    with fake_server() as server:
        server.answer = lambda call: fail(400, "too long") if "Question 1" in call.asked else answer(call)
        with pytest.raises(DataError, match=r"'p1'.*too long"):
            dipole.generate("m", PROMPTS, server=server.url, **CHAT)


def test_plain_prompts_are_not_made_chats_unasked() -> None:
    with fake_server() as server:
        with pytest.raises(ConfigError, match="--prompt_format chat"):
            dipole.generate("m", PROMPTS, server=server.url)
        assert not server.calls
        with pytest.raises(ConfigError, match="--dtype"):
            dipole.generate("m", PROMPTS, server=server.url, dtype="bfloat16")
        with pytest.raises(ConfigError, match="--adapter"):
            dipole.generate("m", PROMPTS, server=server.url, adapter="folder")
