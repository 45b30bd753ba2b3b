"""The page without a browser: who comes in, what they get, and what happens to what they say."""

from __future__ import annotations

import io
import json
import re
import socket
import sqlite3
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image
from starlette.testclient import TestClient
from studio_site import ADDRESS, answer, event, make_groups, open_site

from dipole.data.formats import load_groups
from dipole.errors import ConfigError, DataError
from dipole.feedback import store as store_module
from dipole.feedback.export import export_groups
from dipole.feedback.studio.content import Gallery, markdown, turns, visible
from dipole.feedback.studio.guard import known_hosts, person_name
from dipole.feedback.studio.server import listen
from dipole.group import Completion, Group


def pairs(client: TestClient, have: list[str] | None = None) -> list[dict[str, str]]:
    reply = client.post("/api/pairs", json={"have": have or []})
    assert reply.status_code == 200, reply.text
    found = reply.json()["pairs"]
    assert isinstance(found, list)
    return found


# Coming in


def test_the_way_in(tmp_path: Path) -> None:
    site = open_site(tmp_path)
    client = site.stranger()
    assert "Open your own address" in client.get("/").text
    assert client.post("/api/pairs", json={}).status_code == 403
    assert client.post("/api/enter", json={"token": "guess"}).status_code == 403
    assert client.post("/api/enter", json={"token": site.start_token}).status_code == 200
    assert "Who is judging?" in client.get("/").text
    assert client.post("/api/pairs", json={}).status_code == 403, "say who you are first"
    assert client.post("/api/name", json={"name": "  Zoë   Ünal "}).status_code == 200
    assert "Zoë Ünal" in client.get("/").text
    assert len(pairs(client)) == 3


def test_the_cookie_is_out_of_reach_of_scripts_and_other_sites(tmp_path: Path) -> None:
    site = open_site(tmp_path)
    reply = site.stranger().post("/api/enter", json={"token": site.start_token})
    cookie = reply.headers["set-cookie"]
    assert {"HttpOnly", "Path=/", "SameSite=strict"} <= set(cookie.split("; "))
    assert site.start_token not in cookie
    assert site.store.secret not in cookie


def test_everyone_has_a_token_of_their_own(tmp_path: Path) -> None:
    site = open_site(tmp_path, people=["Anna", "Ben"])
    for name, token in site.tokens.items():
        client = site.stranger()
        assert client.post("/api/enter", json={"token": token}).status_code == 200
        assert name in client.get("/").text
        assert len(pairs(client)) == 3
        assert client.get("/host").status_code == 403
        assert client.post("/api/name", json={"name": "Cleo"}).status_code == 403
    host = site.host()
    assert "How it goes" in host.get("/").text
    assert host.post("/api/pairs", json={}).status_code == 403, "whoever runs the server judges under no name"


def test_tokens_and_cookies_outlive_a_restart_but_not_a_dismissal(tmp_path: Path) -> None:
    before = open_site(tmp_path, people=["Anna", "Ben"])
    anna = before.stranger()
    anna.post("/api/enter", json={"token": before.tokens["Anna"]})
    key = pairs(anna)[0]["key"]
    after = open_site(tmp_path, people=["Anna", "Ben"])
    assert after.tokens == before.tokens
    assert after.start_token != before.start_token
    again = after.stranger(cookie=f"{after.cookie}={anna.cookies[after.cookie]}")
    assert pairs(again)[0]["key"] == key
    assert after.stranger().post("/api/enter", json={"token": before.start_token}).status_code == 403
    without = open_site(tmp_path, people=["Ben"])
    gone = without.stranger(cookie=f"{after.cookie}={anna.cookies[after.cookie]}")
    assert gone.post("/api/pairs", json={}).status_code == 403


@pytest.mark.parametrize("name", ["", "   ", "x" * 61, "a\u202eb", "a\x00b"])
def test_names_that_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError):
        person_name(name)
    assert open_site(tmp_path).host().post("/api/name", json={"name": name}).status_code in (200, 400)


# Judging


def test_a_round_of_judging(tmp_path: Path) -> None:
    site = open_site(tmp_path)
    client = site.person("Anna")
    lying = pairs(client)
    assert set(lying[0]) == {"key", "prompt", "left", "right"}
    reply = client.post(
        "/api/vote",
        json={"id": event(), "key": lying[0]["key"], "choice": "left", "slightly": True, "ms": 900, "reason": " since "}
        | {"have": [pair["key"] for pair in lying]},
    ).json()
    assert (reply["answered"], reply["left"]) == (1, 5)
    assert [set(pair) for pair in reply["pairs"]] == [{"key"}, {"key"}, {"key", "prompt", "left", "right"}]
    assert [pair["key"] for pair in reply["pairs"][:2]] == [pair["key"] for pair in lying[1:]]
    (judgment,) = [j for group in export_groups(site.store, make_groups(6)) for j in group.judgments]
    assert judgment.meta["reason"] == "since"
    assert judgment.meta["seconds"] == 0.9


def test_two_tabs_a_double_click_and_the_back_button_make_one_vote(tmp_path: Path) -> None:
    site = open_site(tmp_path)
    client = site.person("Anna")
    key = pairs(client)[0]["key"]
    assert pairs(client)[0]["key"] == key, "both tabs show the same pair"
    vote = {"id": event(), "key": key, "choice": "left", "ms": 500}
    replies = [client.post("/api/vote", json=vote) for _ in range(3)]
    assert [reply.status_code for reply in replies] == [200] * 3
    assert {reply.json()["answered"] for reply in replies} == {1}
    other = answer(client, key, "right")
    assert other.status_code == 409
    assert "already" in other.json()["problem"]
    assert pairs(client)[0]["key"] != key


def test_undo_over_the_wire(tmp_path: Path) -> None:
    client = open_site(tmp_path).person("Anna")
    first = pairs(client)[0]
    answer(client, first["key"])
    reply = client.post("/api/undo", json={"id": event(), "have": []}).json()
    assert reply["answered"] == 0
    assert reply["pairs"][0] == first
    assert answer(client, first["key"], "right").status_code == 200


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"choice": "best"}, "choice: has to be one of left, right"),
        ({"choice": "tie", "slightly": True}, "slightly"),
        ({"slightly": "yes"}, "slightly"),
        ({"ms": -1}, "ms"),
        ({"ms": 10**12}, "ms"),
        ({"ms": True}, "ms"),
        ({"id": "1"}, "id"),
        ({"id": None}, "id"),
        ({"reason": "x" * 5000}, "reason"),
        ({"reason": ["x"]}, "reason"),
        ({"choice": None}, "choice"),
    ],
)
def test_votes_that_arent_any_are_refused(tmp_path: Path, values: dict[str, object], problem: str) -> None:
    site = open_site(tmp_path)
    client = site.person("Anna")
    reply = answer(client, pairs(client)[0]["key"], **values)
    assert reply.status_code == 400
    assert reply.json()["problem"].startswith(problem)
    with site.store.read() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM vote").scalar() == 0


@pytest.mark.parametrize("body", [b"", b"[1]", b"nonsense", b'{"id": 1', b"[" * 5000, b"\xff\xfe"])
def test_bodies_that_arent_objects_are_refused(tmp_path: Path, body: bytes) -> None:
    client = open_site(tmp_path).person("Anna")
    reply = client.post("/api/vote", content=body, headers={"content-type": "application/json"})
    assert reply.status_code == 400


def test_a_store_that_cant_be_written_is_said_and_nothing_is_acknowledged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "BUSY_SECONDS", 0.1)
    site = open_site(tmp_path)
    client = site.person("Anna")
    key = pairs(client)[0]["key"]
    other = sqlite3.connect(tmp_path / "votes.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    vote = {"id": event(), "key": key, "choice": "left", "ms": 500}
    reply = client.post("/api/vote", json=vote)
    assert (reply.status_code, reply.json()) == (503, {"problem": "the store can't be written just now"})
    other.execute("ROLLBACK")
    assert client.post("/api/vote", json=vote).json()["answered"] == 1


# Blind


def test_nothing_betrays_who_wrote_what(tmp_path: Path) -> None:
    groups = [
        Group(
            id="id-of-model-x",
            prompt=({"role": "user", "content": "Hello", "name": "leak-1"},),
            completions=(
                Completion(text=({"role": "assistant", "content": "One", "model": "leak-2"},), source="leak-3"),
                Completion(text=({"role": "assistant", "content": "Two"},), source="leak-4", meta={"by": "leak-5"}),
            ),
            meta={"file": "leak-6"},
        )
    ]
    site = open_site(tmp_path, groups)
    client = site.person("Anna")
    said = [client.get("/"), client.post("/api/pairs", json={}), client.get("/assets/studio.js")]
    everything = "\n".join(f"{reply.headers} {reply.text}" for reply in said)
    assert "One" in everything
    assert "leak" not in everything
    assert "id-of-model" not in everything


def test_keys_say_nothing_about_order(tmp_path: Path) -> None:
    site = open_site(tmp_path, make_groups(30))
    keys = [item.key for name in "AB" for item in site.queue.desk(site.store.person(name)).assignments]
    assert len(set(keys)) == 6
    assert all(re.fullmatch(r"[\w-]{16}", key) for key in keys)


# What is shown


def test_markdown_is_rendered() -> None:
    shown = markdown(
        "# Title\n\n**bold** `x<y`\nnext line\n\n| a | b |\n|--:|:-:|\n| 1 | 2 |\n\n```py\nif a < b: pass\n```\n"
    )
    for piece in (
        "<h3>Title</h3>",
        "<strong>bold</strong>",
        "<code>x&lt;y</code><br />",
        '<td class="to-right">1</td>',
        '<td class="to-center">2</td>',
        '<pre><code class="language-py">if a &lt; b: pass\n</code></pre>',
    ):
        assert piece in shown


def test_chats_have_roles_and_parts(tmp_path: Path) -> None:
    gallery = Gallery([], tmp_path, "secret")
    text = (
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": [{"type": "text", "text": "Look:"}, {"type": "audio", "path": "a.wav"}]},
        {"role": "assistant", "content": None, "tool_calls": [{"name": "look"}]},
    )
    shown = turns(text, gallery)
    assert [turn["role"] for turn in shown] == ["system", "user", "assistant"]
    assert [part["kind"] for part in shown[1]["parts"]] == ["text", "note"]
    assert json.loads(shown[2]["parts"][0]["source"]) == {"tool_calls": [{"name": "look"}]}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[31mb", "a␛[31mb"),
        ("a\x00b\x7fc", "a␀b␡c"),
        ("a\r\nb\tc", "a\nb\tc"),
        ("half \ud83d of a pair", "half \ufffd of a pair"),
        ("e\u0301 👩‍👩‍👧 שלום", "e\u0301 👩‍👩‍👧 שלום"),
    ],
)
def test_every_text_can_be_shown(tmp_path: Path, text: str, shown: str) -> None:
    assert visible(text) == shown
    group = Group(id="g", prompt=text, completions=(Completion(text=text), Completion(text="x")))
    prompt = pairs(open_site(tmp_path, [group]).person("Anna"))[0]["prompt"]
    assert 'dir="auto"' in prompt
    assert shown in prompt


def test_a_long_answer_is_shown_as_it_was_written(tmp_path: Path) -> None:
    group = Group(id="g", prompt="p", completions=(Completion(text="*" * 1_000_000), Completion(text="x")))
    (pair,) = pairs(open_site(tmp_path, [group]).person("Anna"))
    assert sum('class="rendered"' in pair[part] for part in ("prompt", "left", "right")) == 2, "Markdown of short ones"
    assert max(len(pair["left"]), len(pair["right"])) > 1_000_000


@pytest.mark.parametrize("mark", ["*a ", "_a", "[", "![", "[a](", "`a", "~~a", "<a ", "&a "])
def test_marks_that_would_take_minutes_are_shown_as_they_were_written(tmp_path: Path, mark: str) -> None:
    """A server that renders one for a minute answers nobody."""
    few, many = mark * 200, mark * (90_000 // len(mark))
    group = Group(id="g", prompt=few, completions=(Completion(text=few + many), Completion(text=few)))
    (pair,) = pairs(open_site(tmp_path, [group]).person("Anna"))
    assert 'class="rendered"' in pair["prompt"]
    assert sum('class="rendered"' in pair[side] for side in ("left", "right")) == 1


class Tags(HTMLParser):
    """The tags and attributes of a piece of HTML."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}


def test_images_of_the_data_are_written_anew(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010E] = "painted by model-x"
    for name, color in (("a.jpg", "red"), ("b.png", "blue")):
        Image.new("RGB", (3000, 1500), color).save(tmp_path / name, exif=exif)
    shown = ({"role": "assistant", "content": [{"type": "image", "path": "a.jpg"}]},)
    other = ({"role": "assistant", "content": [{"type": "image", "path": "b.png"}]},)
    prompt = ({"role": "user", "content": "Paint."},)
    group = Group(id="g", prompt=prompt, completions=(Completion(text=shown), Completion(text=other)))
    site = open_site(tmp_path, [group])
    client = site.person("Anna")
    (pair,) = pairs(client)
    names = re.findall(r'src="(/media/[0-9a-f]{32})"', pair["left"] + pair["right"])
    assert len(set(names)) == 2
    reply = client.get(names[0])
    assert reply.headers["content-type"] == "image/webp"
    image = Image.open(io.BytesIO(reply.content))
    assert (image.size, bool(image.getexif())) == ((2048, 1024), False)
    assert b"model-x" not in reply.content
    assert site.stranger().get(names[0]).status_code == 403
    assert client.get("/media/" + "0" * 32).status_code == 404


@pytest.mark.parametrize(
    "path", ["missing.png", "../secret.png", "/etc/passwd", "http://evil.example/a.png", "text.png"]
)
def test_images_that_arent_to_be_had_are_said_at_the_start(tmp_path: Path, path: str) -> None:
    data = tmp_path / "data"
    data.mkdir()
    Image.new("RGB", (2, 2)).save(tmp_path / "secret.png")
    (data / "text.png").write_text("no image")
    shown = ({"role": "user", "content": [{"type": "image", "path": path}]},)
    group = Group(id="g", prompt=shown, completions=(Completion(text="a"), Completion(text="b")))
    with pytest.raises(DataError, match="group 'g'"):
        open_site(data, [group])


# For whoever runs it


def test_how_it_goes(tmp_path: Path) -> None:
    site = open_site(tmp_path, votes_per_pair=2)
    for name in ("Anna", "<b>Ben</b>"):
        client = site.person(name)
        for pair in pairs(client):
            answer(client, pair["key"], "left")
    host = site.host()
    page = host.get("/host").text
    assert "&lt;b&gt;Ben&lt;/b&gt;" in page
    assert "<b>Ben</b>" not in page
    live = host.get("/host/live").text
    assert "<strong>3</strong> of 6, 2 votes each" in live
    assert "Krippendorff" in live
    assert site.stranger().get("/host").status_code == 403


def test_the_export_of_the_page_is_the_export(tmp_path: Path) -> None:
    site = open_site(tmp_path)
    client = site.person("Anna")
    answer(client, pairs(client)[0]["key"])
    reply = site.host().get("/host/export")
    assert reply.headers["content-disposition"].startswith('attachment; filename="groups-')
    (tmp_path / "out.jsonl").write_bytes(reply.content)
    assert load_groups(tmp_path / "out.jsonl") == list(export_groups(site.store, make_groups(6)))


def test_the_guide_is_shown(tmp_path: Path) -> None:
    site = open_site(tmp_path, guide="Prefer *honest* answers. <script>alert(1)</script>")
    page = site.person("Anna").get("/").text
    assert "Prefer <em>honest</em> answers. &lt;script&gt;" in page


# Where it listens


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.1", "example.org"])
def test_others_come_in_with_tokens_of_their_own_alone(host: str) -> None:
    with pytest.raises(ConfigError, match="everyone needs an address of their own"):
        listen(host, 0)


def test_a_port_is_open_on_this_machine_alone() -> None:
    place = listen("127.0.0.1", 0)
    port = place.listener.getsockname()[1]
    assert place.address == f"http://127.0.0.1:{port}"
    assert place.hosts == {f"127.0.0.1:{port}", f"localhost:{port}", f"[::1]:{port}"}
    with pytest.raises(ConfigError, match="give another --port"):
        listen("127.0.0.1", port)
    assert place.listener.proto == socket.IPPROTO_TCP  # or asyncio lets the end of every reply wait for the browser
    place.listener.close()


def test_the_network_is_told_names() -> None:
    place = listen("0.0.0.0", 0, ["studio.example"], has_people=True)
    port = place.listener.getsockname()[1]
    place.listener.close()
    assert place.address == f"http://studio.example:{port}"
    assert {f"studio.example:{port}", f"127.0.0.1:{port}"} <= place.hosts
    assert known_hosts(["A.example"], 80) == {"a.example", "a.example:80"}


def test_a_proxy_or_a_tunnel_has_a_port_of_its_own() -> None:
    place = listen("127.0.0.1", 0, ["Studio.example", "127.0.0.1:9000", "[::1]:9000", "fe80::1"])
    port = place.listener.getsockname()[1]
    place.listener.close()
    own = {f"127.0.0.1:{port}", f"localhost:{port}", f"[::1]:{port}"}
    names = {
        "studio.example",
        f"studio.example:{port}",
        "127.0.0.1:9000",
        "[::1]:9000",
        "[fe80::1]",
        f"[fe80::1]:{port}",
    }
    assert place.hosts == own | names
    assert place.address == f"http://studio.example:{port}"
    assert listen_and_close("127.0.0.1:9000") == "http://127.0.0.1:9000"


def listen_and_close(known_as: str) -> str:
    place = listen("127.0.0.1", 0, [known_as])
    place.listener.close()
    return place.address


def test_a_write_through_a_proxy_with_tls(tmp_path: Path) -> None:
    site = open_site(tmp_path)
    app = site.app
    app._hosts = known_hosts(["127.0.0.1"], 8420, known_as=["studio.example"])
    far = site.stranger(host="studio.example", origin="https://studio.example")
    assert far.post("/api/enter", json={"token": site.start_token}).status_code == 200
    for origin in ("https://studio.example.evil.example", ADDRESS):
        assert far.post("/api/enter", json={"token": site.start_token}, headers={"origin": origin}).status_code == 403
