"""What other sites, strangers and answers may try: all of it is refused or does nothing."""

from __future__ import annotations

import asyncio
import base64
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from studio_site import ADDRESS, Site, answer, event, make_groups, open_site

from dipole.feedback.studio.content import markdown
from dipole.feedback.studio.guard import Guard
from dipole.group import Completion, Group

WRITES = ("/api/enter", "/api/name", "/api/pairs", "/api/vote", "/api/undo")


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return open_site(tmp_path)


def said(site: Site) -> int:
    """How much was written: events and assignments."""
    with site.store.read() as connection:
        counts = [connection.exec_driver_sql(f"SELECT count(*) FROM {table}") for table in ("vote", "assignment")]
        return sum(int(count.scalar() or 0) for count in counts)


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8420", "127.0.0.1", "127.0.0.1:80", "127.0.0.1:8420.evil.example", "", "[::1]:8420"],
)
def test_a_foreign_host_is_refused(site: Site, host: str) -> None:
    client = site.person("Anna")
    for reply in (
        client.get("/", headers={"host": host}),
        client.post("/api/pairs", json={}, headers={"host": host}),
    ):
        assert reply.status_code == 400
        assert "pairs" not in reply.json()
    assert said(site) == 0


@pytest.mark.parametrize("path", WRITES)
@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:8421"},
        {"origin": f"{ADDRESS}.evil.example"},
        {"origin": ""},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
    ids=lambda headers: next(iter(headers.values())) or "empty",
)
def test_writes_from_other_pages_are_refused(site: Site, path: str, headers: dict[str, str]) -> None:
    client = site.person("Anna")
    reply = client.post(path, json={"id": event()}, headers=headers)
    assert reply.status_code == 403
    assert said(site) == 0


def test_a_write_without_an_origin_is_refused(site: Site) -> None:
    client = site.person("Anna")
    del client.headers["origin"]
    assert client.post("/api/pairs", json={}).status_code == 403


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "text/plain", "multipart/form-data", ""])
def test_forms_are_refused(site: Site, kind: str) -> None:
    client = site.person("Anna")
    reply = client.post("/api/pairs", content=b"{}", headers={"content-type": kind})
    assert reply.status_code == 415
    assert said(site) == 0


@pytest.mark.parametrize("path", WRITES)
@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH"])
def test_other_methods_write_nothing(site: Site, path: str, method: str) -> None:
    client = site.person("Anna")
    asks = {"access-control-request-method": "POST", "origin": "http://evil.example"} if method == "OPTIONS" else {}
    reply = client.request(method, path, headers=asks)
    assert reply.status_code == 405
    assert not [name for name in reply.headers if name.startswith("access-control")]
    assert said(site) == 0


def test_too_much_is_refused(site: Site) -> None:
    client = site.person("Anna")
    assert client.post("/api/vote", json={"reason": "x" * 70_000}).status_code == 413
    chunks = (b"x" * 1000 for _ in range(3))
    assert client.post("/api/vote", content=chunks, headers={"content-type": "application/json"}).status_code == 413


def test_web_sockets_are_closed(site: Site) -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    guard = site.app
    assert isinstance(guard, Guard)
    asyncio.run(guard({"type": "websocket", "headers": []}, receive, send))
    assert [message["type"] for message in sent] == ["websocket.close"]


@pytest.mark.parametrize("path", ["/host", "/host/live", "/host/export", "/media/" + "0" * 32, *WRITES[1:]])
def test_strangers_get_nothing(site: Site, path: str) -> None:
    client = site.stranger()
    reply = client.post(path, json={"id": event()}) if path.startswith("/api") else client.get(path)
    assert reply.status_code == 403
    assert "Question" not in reply.text
    assert said(site) == 0


def forged(site: Site, visitor: object, signature: str = "") -> str:
    return f"{base64.urlsafe_b64encode(json.dumps(visitor).encode()).decode()}.{signature}"


def test_forged_cookies_are_refused(site: Site) -> None:
    client = site.person("Anna")
    true = client.cookies[site.cookie]
    content, _, signature = true.rpartition(".")
    tries = [
        "",
        ".",
        content,
        f"{content}.",
        f"{content}.{signature[:-1]}",
        forged(site, ["Ben", True], signature),
        forged(site, ["Ben", True]),
        signature,
        "%00",
    ]
    for cookie in tries:
        reply = site.stranger(cookie=f"{site.cookie}={cookie}").post("/api/pairs", json={})
        assert reply.status_code == 403, cookie
    assert site.stranger(cookie=f"{site.cookie}={true}").post("/api/pairs", json={}).status_code == 200


def test_a_persons_token_isnt_a_cookie_and_isnt_guessed_from_a_name(tmp_path: Path) -> None:
    site = open_site(tmp_path, people=["Anna"])
    other = open_site(tmp_path / "other", people=["Anna"])
    assert other.tokens["Anna"] != site.tokens["Anna"]
    assert len(site.tokens["Anna"]) == 43
    for token in (other.tokens["Anna"], "Anna", "", "person Anna"):
        assert site.stranger().post("/api/enter", json={"token": token}).status_code == 403


@pytest.mark.parametrize(
    "path",
    [
        "/assets/../app.py",
        "/assets/..%2f..%2f__init__.py",
        "/assets/..%5c..%5cpyproject.toml",
        "/assets/%2e%2e/%2e%2e/group.py",
        "/assets/studio.html.jinja",
        "/assets/",
        "/assets//etc/passwd",
        "/assets/studio.js%00.css",
        "/media/../votes.db",
        "/media/..%2fvotes.db",
        "/media/..%5cvotes.db",
        "/media/votes.db",
        "/media/%2e%2e%2fvotes.db",
        "/votes.db",
        "/.git/config",
    ],
)
def test_no_path_leads_out(site: Site, path: str) -> None:
    reply = site.person("Anna").get(path)
    assert reply.status_code == 404
    for secret in ("import", "root:", "SQLite", "{%", "[core]"):
        assert secret not in reply.text


def test_an_image_that_becomes_a_link_isnt_followed(tmp_path: Path) -> None:
    from PIL import Image

    data = tmp_path / "data"
    data.mkdir()
    for place in (data / "a.png", tmp_path / "secret.png"):
        Image.new("RGB", (4, 4)).save(place)
    prompt = ({"role": "user", "content": [{"type": "image", "path": "a.png"}]},)
    site = open_site(data, [Group(id="g", prompt=prompt, completions=(Completion(text="a"), Completion(text="b")))])
    client = site.person("Anna")
    name = client.post("/api/pairs", json={}).json()["pairs"][0]["prompt"].split("/media/")[1][:32]
    (data / "a.png").unlink()
    (data / "a.png").symlink_to(tmp_path / "secret.png")
    assert client.get(f"/media/{name}").status_code == 404


POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self'",
    "connect-src": "'self'",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
}


@pytest.mark.parametrize("path", ["/", "/host", "/assets/studio.js", "/nothing", "/api/me", "/api/vote"])
def test_every_reply_tells_the_browser_what_pages_may_do(site: Site, path: str) -> None:
    for client in (site.person("Anna"), site.stranger()):
        headers = client.get(path).headers
        policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
        assert policy == POLICY
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert "server" not in headers


def test_a_fault_of_the_server_keeps_its_headers_and_tells_nothing(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    client = site.person("Anna")
    monkeypatch.setattr(type(site.queue), "desk", lambda *_: 1 / 0)
    reply = client.post("/api/pairs", json={})
    assert reply.status_code == 500
    assert "content-security-policy" in reply.headers
    assert "Traceback" not in reply.text
    assert "ZeroDivision" not in reply.text


HOSTILE = [
    "<script>alert(1)</script>",
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '<img src="http://evil.example/beacon.png">',
    "![beacon](http://evil.example/beacon.png)",
    "![x](javascript:alert(1))",
    "[click](javascript:alert(1))",
    "[click](http://evil.example)",
    "<http://evil.example>",
    "[a]: http://evil.example\n\n[a]",
    '[x](http://evil.example "onmouseover=alert(1)")',
    '[x](<http://evil.example/"onmouseover="alert(1)>)',
    "<svg onload=alert(1)><use href=http://evil.example/a.svg#b /></svg>",
    "<style>@import 'http://evil.example/a.css'; body { display: none }</style>",
    '<p style="background:url(http://evil.example/a.png)">x</p>',
    '<iframe src="http://evil.example"></iframe>',
    '<meta http-equiv="refresh" content="0;url=http://evil.example">',
    '<base href="http://evil.example/">',
    '<form action="http://evil.example"><input autofocus onfocus=alert(1)></form>',
    "<object data=http://evil.example></object><embed src=http://evil.example>",
    "<math><mi xlink:href=javascript:alert(1)>x</mi></math>",
    '```"onmouseover=alert(1) x\ncode\n```',
    "```html\n<script>alert(1)</script>\n```",
    "`<script>alert(1)</script>`",
    '| <script> | "onload=1 |\n|:-:|-:|\n| <b> | ![x](http://evil.example/x.png) |',
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "&#x3C;script&#x3E;",
    '"><script>alert(1)</script>',
    "' onmouseover='alert(1)",
    "{{ 7 * 7 }} {% raw %} ${7*7}",
    "\x1b]8;;http://evil.example\x07click\x1b]8;;\x07",
    "\u202e<script>\u202c",
    "<a href=http://evil.example ping=http://evil.example target=_top>x</a>",
    '<noscript><p title="</noscript><img src=x onerror=alert(1)>">',
    "[" * 3000 + "]" * 3000,
    ">" * 3000,
    "*a " * 20_000,
]

TAGS = {"a", "blockquote", "br", "code", "div", "em", "h3", "h4", "h5", "h6", "hr", "img", "li", "ol", "p", "pre", "s"}
TAGS |= {"span", "strong", "table", "tbody", "td", "th", "thead", "tr", "ul"}
ATTRIBUTES = {"alt", "class", "dir", "href", "rel", "src", "start", "target"}


class Inert(HTMLParser):
    """Fails on a tag or attribute that could do something."""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in TAGS, tag
        for name, value in attrs:
            assert name in ATTRIBUTES, (tag, name)
            if name in ("href", "src"):
                assert (value or "").startswith("/media/"), (tag, value)


@pytest.mark.parametrize("place", ["prompt", "answer", "message", "role"])
def test_texts_can_do_nothing(tmp_path: Path, place: str) -> None:
    groups = []
    for number, text in enumerate(HOSTILE):
        prompt: Any = text if place == "prompt" else "p"
        if place in ("message", "role"):
            role, words = (text, "Hi") if place == "role" else ("user", text)
            prompt = ({"role": role, "content": words}, {"role": "assistant", "content": "x"})
        answers = (Completion(text=text if place == "answer" else "a"), Completion(text="b"))
        groups.append(Group(id=str(number), prompt=prompt, completions=answers))
    site = open_site(tmp_path, groups)
    client = site.person("Anna")
    lying = client.post("/api/pairs", json={}).json()["pairs"]
    seen = 0
    while lying:
        for part in ("prompt", "left", "right"):
            Inert().feed(lying[0][part])
        lying = answer(client, lying[0]["key"]).json()["pairs"]
        seen += 1
    assert seen == len(HOSTILE)


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_a_guide_can_do_nothing(text: str) -> None:
    Inert().feed(markdown(text))


def test_names_and_reasons_can_do_nothing(tmp_path: Path) -> None:
    site = open_site(tmp_path, make_groups(4 * len(HOSTILE)))
    client = site.host()
    for text in HOSTILE:
        if client.post("/api/name", json={"name": text[:60]}).status_code == 200:
            key = client.post("/api/pairs", json={}).json()["pairs"][0]["key"]
            assert answer(client, key, reason=text[:4000]).status_code == 200
            assert_page_is_inert(client.get("/").text)
    for path in ("/?name", "/host"):
        assert_page_is_inert(client.get(path).text)


class Scripts(HTMLParser):
    """Counts what runs, and fails on attributes that run."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.count = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.count += tag in ("script", "style", "iframe", "object", "embed", "base", "math")
        assert not (tag == "form" and dict(attrs).get("action"))
        for name, value in attrs:
            assert not name.startswith("on"), name
            assert name != "style"
            if name in ("href", "src"):
                assert (value or "").startswith(("/", "#")), value


def assert_page_is_inert(page: str) -> None:
    assert Scripts(page).count == 1, "the page's own"
