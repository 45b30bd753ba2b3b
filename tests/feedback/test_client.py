"""Questions to a server that fails in every way: what is asked again, what isn't, and what is never said."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from fake_server import Act, FakeServer, cut, drip, fail, fake_server, hang, reply_json, reset, respond, say

from dipole.errors import ConfigError, JudgeError
from dipole.feedback.budget import Limits
from dipole.feedback.cache import Cache
from dipole.feedback.client import ChatClient, Patience, Refused, in_order

CHAT = ({"role": "user", "content": "Which is better?"},)
KEY = "sk-canary-1234567890"


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with fake_server() as running:
        yield running


class Waits(list[float]):
    """Instead of sleeping: the seconds that would have been slept."""

    def __call__(self, seconds: float) -> None:
        self.append(seconds)


def client_of(server: FakeServer, waits: Callable[[float], object] | None = None, **options: Any) -> ChatClient:
    patience = {"timeout": 2.0, "tries": 4, "deadline": 60.0} | options.pop("patience", {})
    return ChatClient(
        server.url, "tiny", patience=Patience(**patience), sleep=Waits() if waits is None else waits, **options
    )


def test_a_reply_is_read(server: FakeServer) -> None:
    server.script = [say("VERDICT: B", usage=(31, 7))]
    reply = client_of(server).complete(CHAT, max_tokens=9, temperature=0.5)
    assert (reply.text, reply.finish_reason, reply.prompt_tokens, reply.completion_tokens) == (
        "VERDICT: B",
        "stop",
        31,
        7,
    )
    assert server.calls[0].body == {"model": "tiny", "messages": list(CHAT), "max_tokens": 9, "temperature": 0.5}
    assert "Authorization" not in server.calls[0].headers


TRANSIENT: dict[str, Act] = {
    "timeout": hang(3),
    "reset": reset,
    "slow drip": drip("VERDICT: A", pause=0.2),
    "half a body": cut("VERDICT: A"),
    "half of the JSON": respond(200, reply_json("VERDICT: A")[:40]),
    "JSON of something else": respond(200, "[1, 2]"),
    "no choices": respond(200, '{"choices": []}'),
    "deep JSON": respond(200, "[" * 100_000),
    "408": fail(408),
    "429": fail(429),
    "500": fail(500),
    "502 as a page": respond(502, "<html>bad gateway</html>", kind="text/html"),
    "503": fail(503),
}


@pytest.mark.parametrize("name", TRANSIENT)
def test_what_may_pass_is_tried_again(server: FakeServer, name: str) -> None:
    server.script = [TRANSIENT[name], say("VERDICT: A")]
    waits = Waits()
    assert client_of(server, waits, patience={"timeout": 0.5}).complete(CHAT, max_tokens=9).text == "VERDICT: A"
    assert len(server.calls) == 2
    assert len(waits) == 1
    assert 0 <= waits[0] <= 0.5


def test_a_server_that_keeps_failing_ends_the_run(server: FakeServer) -> None:
    server.answer = lambda call: fail(500, "out of memory")
    waits = Waits()
    with pytest.raises(JudgeError, match=r"4 tries.*status 500: out of memory") as caught:
        client_of(server, waits).complete(CHAT, max_tokens=9)
    assert caught.value.exit_status == 5
    assert len(server.calls) == 4
    assert all(wait <= limit for wait, limit in zip(waits, (0.5, 1, 2), strict=True))


def test_nobody_there_ends_the_run() -> None:
    with fake_server() as gone:
        pass
    with pytest.raises(JudgeError, match="no connection"):
        client_of(gone).complete(CHAT, max_tokens=9)


def test_the_deadline_bounds_all_tries(server: FakeServer) -> None:
    server.answer = lambda call: hang(5)
    with pytest.raises(JudgeError):
        client_of(server, patience={"timeout": 0.3, "tries": 100, "deadline": 0.8}).complete(CHAT, max_tokens=9)
    assert 2 <= len(server.calls) <= 20


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_honoured(server: FakeServer, form: str) -> None:
    server.script = [fail(429, Retry_After="30" if form == "seconds" else formatdate(time.time() + 30, usegmt=True))]
    waits = Waits()
    client_of(server, waits).complete(CHAT, max_tokens=9)
    assert 20 <= waits[0] <= 31


def test_retry_after_nonsense_is_a_plain_429(server: FakeServer) -> None:
    server.script = [fail(429, Retry_After="soon")]
    waits = Waits()
    client_of(server, waits).complete(CHAT, max_tokens=9)
    assert waits[0] <= 0.5


def test_a_wait_beyond_the_deadline_isn_t_waited(server: FakeServer) -> None:
    server.script = [fail(429, "tomorrow", Retry_After="86400")]
    waits = Waits()
    with pytest.raises(JudgeError, match="tomorrow"):
        client_of(server, waits).complete(CHAT, max_tokens=9)
    assert waits == []


def test_retry_after_holds_for_every_question(server: FakeServer) -> None:
    server.script = [fail(429, Retry_After="30")]
    client = client_of(server, waits := Waits())
    client.complete(CHAT, max_tokens=9)
    waits.clear()
    client.complete(chat(2), max_tokens=9)
    assert 20 <= waits[0] <= 30, "no time has passed, since nobody really slept"


@pytest.mark.parametrize(
    ("act", "said"),
    [
        (fail(401, "bad key"), "bad key"),
        (fail(403, "not yours"), "not yours"),
        (fail(404, "no such model"), "no such model"),
        (respond(200, "<html>login</html>", kind="text/html"), "web page"),
        (respond(302, "", Location="http://example.invalid/"), "302"),
    ],
)
def test_what_holds_for_all_questions_stops_at_once(server: FakeServer, act: Act, said: str) -> None:
    server.answer = lambda call: act
    client = client_of(server, waits := Waits())
    with pytest.raises(JudgeError, match=said):
        list(in_order(lambda n: client.complete(chat(n), max_tokens=9), range(100), threads=2))
    assert len(server.calls) <= 2, "those that were on their way"
    assert waits == []
    with pytest.raises(JudgeError, match=said):
        client.complete(CHAT, max_tokens=9)
    assert len(server.calls) <= 2


@pytest.mark.parametrize("act", [fail(400, "maximum context length is 512 tokens"), fail(413), fail(422)])
def test_a_question_that_is_refused_isn_t_asked_again(server: FakeServer, act: Act) -> None:
    server.script = [act]
    client = client_of(server)
    with pytest.raises(Refused, match="status"):
        client.complete(CHAT, max_tokens=9)
    assert client.complete(chat(2), max_tokens=9).text == "VERDICT: A"
    assert len(server.calls) == 2


def test_a_huge_body_is_cut_off(server: FakeServer) -> None:
    server.script = [respond(200, reply_json("x" * 6_000_000))]
    client = client_of(server)
    with pytest.raises(Refused, match="larger"):
        client.complete(CHAT, max_tokens=900)
    assert client.budget.spent().tokens > 900, "it may be billed"


def test_a_long_answer_is_an_answer(server: FakeServer) -> None:
    server.script = [say("x" * 1_000_000)]
    assert len(client_of(server).complete(CHAT, max_tokens=9).text) == 1_000_000


@pytest.mark.parametrize("content", [None, 5, ["a"]])
def test_content_that_is_no_text_is_empty(server: FakeServer, content: Any) -> None:
    server.script = [respond(200, json.dumps({"choices": [{"message": {"content": content}}]}))]
    assert client_of(server).complete(CHAT, max_tokens=9).text == ""


def test_half_a_surrogate_pair_is_sent(server: FakeServer) -> None:
    client_of(server).complete(({"role": "user", "content": "a\ud800b"},), max_tokens=9)
    assert server.calls[0].asked == "a\ud800b"


def chat(number: int) -> tuple[dict[str, str], ...]:
    return ({"role": "user", "content": f"question {number}"},)


# --- the cache


CHANGES: dict[str, dict[str, Any]] = {
    "temperature": {"temperature": 0.7},
    "max_tokens": {"max_tokens": 10},
    "sample": {"sample": 1},
    "template": {"messages": ({"role": "user", "content": "Which is better? "},)},
    "order": {"messages": ({"role": "user", "content": "Which is better, B or A?"},)},
}


@pytest.mark.parametrize("name", CHANGES)
def test_anything_that_a_reply_depends_on_is_in_its_key(server: FakeServer, tmp_path: Path, name: str) -> None:
    client = client_of(server, cache=Cache(tmp_path / "replies.sqlite"))
    asked = {"messages": CHAT, "max_tokens": 9, "temperature": 0.0}
    for _ in range(3):
        client.complete(**asked)
    assert len(server.calls) == 1
    client.complete(**(asked | CHANGES[name]))
    assert len(server.calls) == 2


def test_a_second_run_asks_nothing(server: FakeServer, tmp_path: Path) -> None:
    for _ in range(2):
        with Cache(tmp_path / "replies.sqlite") as cache:
            client = client_of(server, cache=cache)
            assert [client.complete(chat(n), max_tokens=9).text for n in range(5)] == ["VERDICT: A"] * 5
    assert len(server.calls) == 5


def test_another_model_or_server_is_asked(server: FakeServer, tmp_path: Path) -> None:
    cache = Cache(tmp_path / "replies.sqlite")
    for url, model in ((server.url, "a"), (server.url, "b"), (server.url.replace("127.0.0.1", "localhost"), "a")):
        ChatClient(url, model, cache=cache).complete(CHAT, max_tokens=9)
    assert len(server.calls) == 3


def test_threads_ask_the_same_question_once(server: FakeServer) -> None:
    server.answer = lambda call: slow(0.2)
    client = client_of(server)
    assert len(list(in_order(lambda n: client.complete(CHAT, max_tokens=9), range(8), threads=8))) == 8
    assert len(server.calls) == 1


def slow(seconds: float) -> Act:
    def act(handler: Any) -> None:
        time.sleep(seconds)
        say("VERDICT: A")(handler)

    return act


def test_a_damaged_reply_is_asked_for_again(server: FakeServer, tmp_path: Path) -> None:
    import sqlite3

    file = tmp_path / "replies.sqlite"
    with Cache(file) as cache:
        client_of(server, cache=cache).complete(CHAT, max_tokens=9)
    with sqlite3.connect(file) as connection:
        connection.execute("UPDATE replies SET value = replace(value, 'VERDICT: A', 'VERDICT: B')")
    with Cache(file) as cache:
        assert client_of(server, cache=cache).complete(CHAT, max_tokens=9).text == "VERDICT: A"
        assert client_of(server, cache=cache).complete(CHAT, max_tokens=9).text == "VERDICT: A"
    assert len(server.calls) == 2


@pytest.mark.parametrize(
    "content", [b"no database at all, and long enough to be read as one" * 40, b"SQLite format 3\0" + b"x" * 200]
)
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "replies.sqlite"
    file.write_bytes(content)
    with pytest.raises(JudgeError, match=r"replies\.sqlite"):
        Cache(file)


def test_other_databases_and_newer_formats_are_left_alone(tmp_path: Path) -> None:
    import sqlite3

    file = tmp_path / "other.sqlite"
    with sqlite3.connect(file) as connection:
        connection.execute("CREATE TABLE votes (id)")
    with pytest.raises(JudgeError, match="something else"):
        Cache(file)
    newer = tmp_path / "newer.sqlite"
    with sqlite3.connect(newer) as connection:
        connection.execute("PRAGMA user_version = 9")
    with pytest.raises(JudgeError, match="newer"):
        Cache(newer)


def test_the_file_is_its_owner_s(tmp_path: Path) -> None:
    with Cache(tmp_path / "deep" / "replies.sqlite") as cache:
        cache.put("k", {"text": "x"})
        assert all(file.stat().st_mode & 0o077 == 0 for file in (tmp_path / "deep").iterdir())


# --- the budget


def ask_many(client: ChatClient) -> None:
    for number in range(50):
        client.complete(chat(number), max_tokens=100)


def test_the_limit_on_calls_is_checked_before_a_call(server: FakeServer) -> None:
    client = client_of(server, limits=Limits(max_calls=3))
    with pytest.raises(JudgeError, match="budget") as caught:
        ask_many(client)
    assert caught.value.exit_status == 5
    assert caught.value.where == "--max_calls"
    assert len(server.calls) == 3


def test_failed_calls_count(server: FakeServer) -> None:
    server.answer = lambda call: fail(500)
    with pytest.raises(JudgeError, match="budget"):
        client_of(server, limits=Limits(max_calls=2)).complete(CHAT, max_tokens=9)
    assert len(server.calls) == 2


def test_tokens_never_exceed_their_limit(server: FakeServer) -> None:
    server.answer = lambda call: say("VERDICT: A", usage=(90, 10))
    client = client_of(server, limits=Limits(max_total_tokens=1000))  # a call is set aside at about 200
    with pytest.raises(JudgeError, match="max_total_tokens"):
        ask_many(client)
    assert 8 <= len(server.calls) <= 10
    assert client.budget.spent().tokens == 100 * len(server.calls) <= 1000


def test_calls_on_their_way_together_stay_within_the_limit(server: FakeServer) -> None:
    server.answer = lambda call: slow(0.05)
    client = client_of(server, limits=Limits(max_calls=10))
    with pytest.raises(JudgeError, match="budget"):
        list(in_order(lambda n: client.complete(chat(n), max_tokens=9), range(64), threads=8))
    assert len(server.calls) == 10


def test_a_server_that_counts_no_tokens_is_booked_the_most(server: FakeServer) -> None:
    server.answer = lambda call: say("VERDICT: A", usage=None)
    client = client_of(server)
    client.complete(CHAT, max_tokens=100)
    assert client.budget.spent().tokens > 100


def test_what_may_have_been_computed_stays_booked(server: FakeServer) -> None:
    server.script = [hang(1), fail(429), say("VERDICT: A", usage=(10, 5))]
    client = client_of(server, patience={"timeout": 0.3})
    client.complete(CHAT, max_tokens=100)
    spent = client.budget.spent()
    assert spent.calls == 3
    assert spent.tokens > 115, "the timeout is booked in full, the refusal isn't"


def test_money(server: FakeServer) -> None:
    server.answer = lambda call: say("VERDICT: A", usage=(50, 100))
    client = client_of(server, limits=Limits(max_cost=0.02, prompt_price=2.0, completion_price=10.0))
    client.complete(CHAT, max_tokens=100)
    assert client.budget.spent().cost == pytest.approx(0.0011)
    with pytest.raises(JudgeError, match="max_cost"):
        ask_many(client)
    assert 0.015 <= client.budget.spent().cost <= 0.02


def test_money_without_prices_is_refused() -> None:
    with pytest.raises(ConfigError, match="prices"):
        Limits(max_cost=1.0)
    with pytest.raises(ConfigError, match="prices"):
        Limits(max_cost=1.0, prompt_price=1.0)
    with pytest.raises(ConfigError, match="at least 0"):
        Limits(max_calls=-1)


def test_the_budget_counts_across_runs(server: FakeServer, tmp_path: Path) -> None:
    def run() -> None:
        with Cache(tmp_path / "replies.sqlite") as cache:
            ask_many(client_of(server, cache=cache, limits=Limits(max_calls=3)))

    for _ in range(3):
        with pytest.raises(JudgeError, match="budget"):
            run()
    assert len(server.calls) == 3


# --- the key


def test_a_key_is_sent_and_found_nowhere(
    server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    caplog.set_level("DEBUG")
    server.script = [
        fail(500, f"the key {KEY} is tired"),
        say(f"your key is {KEY}"),
        fail(400, f"{KEY} may not ask this"),
        fail(401, f"wrong key: {KEY}"),
    ]
    said = []
    with Cache(tmp_path / "replies.sqlite") as cache:
        client = client_of(server, cache=cache, key_variable="JUDGE_KEY")
        said.append(client.complete(CHAT, max_tokens=9).text)
        with pytest.raises(Refused) as refused:
            client.complete(chat(1), max_tokens=9)
        with pytest.raises(JudgeError) as stopped:
            client.complete(chat(2), max_tokens=9)
        said += [str(refused.value), repr(refused.value), str(stopped.value), repr(stopped.value), repr(client)]
        files = [file.read_bytes() for file in tmp_path.iterdir()]
    assert all(call.headers["Authorization"] == f"Bearer {KEY}" for call in server.calls)
    assert "your key is [key]" in said
    assert not any(KEY in text for text in said)
    assert not any(KEY.encode() in content for content in files)
    assert KEY not in caplog.text


def test_a_key_is_given_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    with pytest.raises(ConfigError, match="JUDGE_KEY"):
        ChatClient("http://127.0.0.1:1/v1", "m", key_variable="JUDGE_KEY")


@pytest.mark.parametrize(
    "url",
    [
        "127.0.0.1:8000",
        "ftp://host/v1",
        "http:///v1",
        "http://me:secret@host/v1",
        "ftp://me:secret@host/v1",
        "http://h/v1?key=1",
    ],
)
def test_urls_that_are_none_or_hold_secrets(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ChatClient(url, "m")
    assert "secret" not in str(caught.value)


# --- threads


def test_in_order_keeps_order_and_reads_little_ahead() -> None:
    taken = []

    def items() -> Iterator[int]:
        for number in range(100):
            taken.append(number)
            yield number

    results = in_order(lambda n: (time.sleep(0.002 * (n % 3)), n)[1], items(), threads=4)
    assert [next(results) for _ in range(10)] == list(range(10))
    assert len(taken) <= 10 + 8
    assert list(results) == list(range(10, 100))


def test_in_order_raises_in_its_place_and_begins_nothing_more() -> None:
    begun, lock = [], threading.Lock()

    def work(number: int) -> int:
        with lock:
            begun.append(number)
        time.sleep(0.01)
        if number == 5:
            raise ValueError("five")
        return number

    results = in_order(work, range(100), threads=2)
    assert [next(results) for _ in range(5)] == list(range(5))
    with pytest.raises(ValueError, match="five"):
        next(results)
    assert len(begun) <= 12
