"""The page for comparing answers in a real browser: by keyboard alone, through reloads, restarts and attacks."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browsing import Server, browser_path, come_in, open_browser, write_rows

from dipole.feedback.store import open_store
from dipole.feedback.votes import Vote, current_votes

pytest.importorskip("playwright", reason="playwright isn't installed: make setup")
pytestmark = pytest.mark.skipif(browser_path() is None, reason="there is no Chromium on this machine")

HOSTILE = """# Title <script>window.hacked = 1</script>

<img src=x onerror="window.hacked = 1"> ![beacon](http://evil.example/b.png) [link](javascript:window.hacked=1)
[out](http://evil.example) <http://evil.example> <style>body { display: none }</style>
<iframe src=//evil.example></iframe>
<form action=http://evil.example><input autofocus onfocus="window.hacked=1"></form> <base href=http://evil.example>

```html
<svg onload="window.hacked = 1"><script>window.hacked = 1</script></svg>
```

| <b>a</b> | b |
|:--|--:|
| 1 | 2 |
"""
CODE = f"```python\ndef total(numbers):\n    return sum({'number * ' * 20}1 for number in numbers)\n```\n"
RTL = "القلب عضلة تضخ الدم في الجسم كله."
TURNS = [("user", "Hello"), ("assistant", "Hi."), ("user", RTL)]


def row(number: int) -> dict[str, Any]:
    chat = [{"role": role, "content": content} for role, content in TURNS]
    return {
        "prompt": f"Question number {number}: what is a heart?" if number % 3 else chat,
        "completions": [
            {"text": (HOSTILE, CODE, RTL)[number % 3], "source": "secret-model-1"},
            {"text": f"It pumps blood ({number}). " * (1 + 40 * (number % 2)), "source": "secret-model-2"},
        ],
    }


ROWS = [row(number) for number in range(40)]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with open_browser() as found:
        yield found


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    found = Server(write_rows(tmp_path / "groups.jsonl", ROWS), tmp_path / "votes.db")
    yield found
    found.kill()


class Watched:
    """A page of which every request, message and error is kept."""

    def __init__(self, browser: Any, server: Server, name: str = "Anna", **settings: Any) -> None:
        self.requests: list[str] = []
        self.messages: list[str] = []
        self.context = browser.new_context(**settings)
        self.server = server
        self.page = self.tab()
        come_in(self.page, server, name)

    def tab(self) -> Any:
        page = self.context.new_page()
        page.set_default_timeout(30_000)
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("console", lambda message: self.messages.append(message.text))
        page.on("pageerror", lambda error: self.messages.append(str(error)))
        return page

    def shown(self, page: Any = None) -> tuple[str, str]:
        page = page or self.page
        return tuple(page.inner_text(f"#{side}-text") for side in ("left", "right"))  # type: ignore[return-value]

    def press(self, key: str, page: Any = None) -> None:
        """Presses a key when the pair has been there long enough to be answered, and waits for what comes next."""
        page = page or self.page
        page.wait_for_selector("#pair:not([hidden])")
        before = self.answered(page)
        page.wait_for_timeout(260)
        page.keyboard.press(key)
        page.wait_for_function(
            "n => Number(/^[\\d,]+/.exec(document.getElementById('count').textContent)) > n", arg=before
        )

    def answered(self, page: Any = None) -> int:
        words = (page or self.page).inner_text("#count")
        return int(re.match(r"\d+", words)[0])  # type: ignore[index]

    def all_sent(self) -> None:
        """Waits until nothing is left in the browser that the server hasn't acknowledged."""
        waiting = "() => !Object.keys(localStorage).some((name) => name.startsWith('dipole:'))"
        self.page.wait_for_function(waiting)

    def assert_quiet(self) -> None:
        """Nothing was asked of anybody else, nothing ran, nothing was complained about but lost connections."""
        assert all(url.startswith(f"{self.server.address}/") for url in self.requests), self.requests
        assert not [words for words in self.messages if "ERR_CONNECTION" not in words and "status of" not in words]
        assert self.page.evaluate("window.hacked") is None


def votes_in(tmp_path: Path) -> list[Vote]:
    with open_store(str(tmp_path / "votes.db")).read() as connection:
        return current_votes(connection)


def test_thirty_comparisons_by_keyboard(browser: Any, server: Server, tmp_path: Path) -> None:
    """Reloads, a second tab, undo, a kill and a restart in the middle: thirty votes, each as it was meant."""
    anna = Watched(browser, server)
    meant: list[str] = []
    keys = {"1": "left", "ArrowRight": "right", "3": "tie", "Shift+ArrowLeft": "left", "4": "right", "b": "both bad"}
    for number in range(30):
        key = list(keys)[number % len(keys)]
        anna.press(key)
        meant.append(keys[key])
        if number == 4:
            shown = anna.shown()
            anna.all_sent()
            anna.page.reload()
            anna.page.wait_for_selector("#pair:not([hidden])")
            assert anna.shown() == shown, "the same pair, its sides as they were"
        if number == 9:
            anna.page.wait_for_timeout(260)
            anna.page.keyboard.press("u")
            anna.page.wait_for_function("() => document.getElementById('status').textContent.startsWith('Taken back')")
            assert anna.answered() == 9
            anna.press("5")
            meant[-1] = "right"
        if number == 14:
            second = anna.tab()
            second.goto(server.address)
            second.wait_for_selector("#pair:not([hidden])")
            anna.all_sent()
            anna.press("1", second)
            meant.append("left")
            second.close()
            anna.page.wait_for_timeout(260)
            anna.page.keyboard.press("2")  # the same pair again: refused, and the page goes on by itself
            anna.page.wait_for_function("() => document.getElementById('status').textContent.startsWith('Not counted')")
        if number == 19:
            server.kill()
            anna.press("1")
            anna.press("5")
            meant += ["left", "right"]
            anna.page.wait_for_selector("#notice:not([hidden])")
            assert re.search(r"[23] answers are kept in this browser", anna.page.inner_text("#notice"))
            server.start()
            anna.all_sent()
            anna.page.wait_for_selector("#notice", state="hidden")
        if number == 24:
            server.kill(signal.SIGTERM)
            server.start()
        if len(meant) >= 30:
            break
    anna.all_sent()
    assert [vote.choice for vote in votes_in(tmp_path)] == meant
    assert [vote.slightly for vote in votes_in(tmp_path)][3] is True
    assert all(vote.seconds > 0.2 for vote in votes_in(tmp_path))
    anna.assert_quiet()


def test_answers_can_do_nothing_and_betray_nothing(browser: Any, server: Server) -> None:
    anna = Watched(browser, server)
    seen = []
    for _ in range(20):
        seen.append("".join(anna.shown()))
        assert "secret-model" not in anna.page.content()
        anna.press("1")
    assert any("<script>window.hacked" in text for text in seen), "as words"
    for frame in anna.page.frames:
        assert frame == anna.page.main_frame
    anna.page.keyboard.press("m")
    assert anna.page.locator(".rendered:visible").count() == 0, "as written"
    anna.all_sent()
    anna.assert_quiet()


def test_votes_wait_in_the_browser_and_are_sent_once(browser: Any, server: Server, tmp_path: Path) -> None:
    """The server writes the vote and dies before it answers, as the network may: what is sent again counts once."""
    anna = Watched(browser, server)
    lost: list[str] = []

    def lose(route: Any) -> None:
        if len(lost) < 2:  # the first replies never arrive
            lost.append(route.request.post_data)
            route.fetch()
            route.abort()
        else:
            route.continue_()

    anna.page.route("**/api/vote", lose)
    anna.press("1")
    anna.page.reload()
    anna.page.wait_for_selector("#pair:not([hidden])")
    anna.all_sent()
    assert len(lost) == 2
    assert len(votes_in(tmp_path)) == 1


def test_keys_are_off_while_typing_and_a_reason_goes_with_the_answer(
    browser: Any, server: Server, tmp_path: Path
) -> None:
    anna = Watched(browser, server)
    anna.page.wait_for_timeout(260)
    anna.page.keyboard.press("r")
    anna.page.keyboard.type("1 2 3 because b and s and u?")
    assert anna.answered() == 0
    anna.page.keyboard.press("Escape")
    anna.press("1")
    anna.page.keyboard.down("Control")
    anna.page.keyboard.press("1")
    anna.page.keyboard.up("Control")
    anna.all_sent()
    (vote,) = votes_in(tmp_path)
    assert (vote.choice, vote.reason) == ("left", "1 2 3 because b and s and u?")


def test_keys_can_be_changed_and_switched_off(browser: Any, server: Server, tmp_path: Path) -> None:
    anna = Watched(browser, server)
    page = anna.page
    page.keyboard.press("?")
    page.focus("[data-key=left]")
    page.keyboard.press("Enter")
    page.keyboard.press("j")
    assert page.inner_text("[data-key=left]") == "J"
    page.focus("[data-key='both bad']")
    page.keyboard.press("Enter")
    page.keyboard.press("Escape")
    assert page.inner_text("[data-key='both bad']") == "B"
    page.keyboard.press("Escape")
    page.wait_for_selector("#help", state="hidden")
    assert "J" in page.inner_text("button.left")
    page.wait_for_timeout(260)
    page.keyboard.press("1")
    assert anna.answered() == 0, "1 means nothing any more"
    anna.press("j")
    page.reload()
    page.wait_for_selector("#pair:not([hidden])")
    anna.press("j")
    page.keyboard.press("?")
    page.click("#keys-on")
    page.keyboard.press("Escape")
    page.wait_for_timeout(260)
    page.keyboard.press("j")
    assert anna.answered() == 2
    page.click("button.right")
    anna.all_sent()
    assert [vote.choice for vote in votes_in(tmp_path)] == ["left", "left", "right"]


def test_a_key_that_is_held_or_pressed_twice_answers_once(browser: Any, server: Server) -> None:
    anna = Watched(browser, server)
    anna.page.wait_for_timeout(260)
    anna.page.evaluate("""() => {
        for (let times = 0; times < 4; times += 1)
            document.body.dispatchEvent(new KeyboardEvent("keydown", { key: "1", bubbles: true }));
    }""")
    assert anna.answered() == 1


def test_everything_is_reached_by_tab(browser: Any, server: Server) -> None:
    anna = Watched(browser, server)
    reached = set()
    for _ in range(40):
        anna.page.keyboard.press("Tab")
        reached.add(
            anna.page.evaluate("document.activeElement.dataset.action || document.activeElement.textContent.trim()")
        )
    actions = set(
        anna.page.evaluate("[...document.querySelectorAll('button[data-action]')].map((b) => b.dataset.action)")
    )
    assert actions <= reached
    assert {"Skip to the question", "How it goes", "Anna"} <= reached


def test_a_screen_reader_is_told_what_happens(browser: Any, server: Server) -> None:
    anna = Watched(browser, server)
    page = anna.page
    for role in ("banner", "main", "contentinfo", "navigation", "status"):
        assert page.get_by_role(role).count() == 1, role
    assert page.get_by_role("region", name="Answer A").count() == 1
    assert page.get_by_role("region", name="Prompt").count() == 1
    anna.press("2")
    assert page.inner_text("#status") == "Answered: A is slightly better."
    assert page.evaluate("document.activeElement.id") == "prompt", "reading goes on at the next prompt"
    assert page.get_by_role("button", name="Both bad").get_attribute("aria-keyshortcuts") == "b"


def test_right_to_left_text_runs_that_way(browser: Any, server: Server) -> None:
    anna = Watched(browser, server)
    direction = "(e) => getComputedStyle(e).direction"
    for _ in range(12):
        for side in ("left", "right"):
            text = anna.page.inner_text(f"#{side}-text")
            found = anna.page.eval_on_selector(f"#{side}-text .rendered", direction)
            assert found == ("rtl" if RTL in text else "ltr")
        anna.press("1")


SIZES = {"wide": (1440, 900), "tablet": (768, 1024), "phone": (320, 640), "zoomed": (640, 360)}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_nothing_is_cut_and_axe_finds_nothing_serious(browser: Any, server: Server, size: str, scheme: str) -> None:
    """1280 pixels at 200 % are 640 for the page."""
    from axe_playwright_python.sync_playwright import Axe

    width, height = SIZES[size]
    anna = Watched(browser, server, viewport={"width": width, "height": height}, color_scheme=scheme)
    page = anna.page

    def check(what: str) -> None:
        page.wait_for_timeout(250)  # colours are measured when the fade is over
        overflow = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert overflow <= 0, f"{what} is {overflow} pixels too wide"
        found = Axe().run(page).response["violations"]
        serious = [
            (item["id"], [node["html"][:120] for node in item["nodes"]])
            for item in found
            if item["impact"] in ("serious", "critical")
        ]
        assert not serious, (what, serious)

    for _ in range(3):  # one of each kind of text
        check("a pair")
        anna.press("1")
    page.keyboard.press("r")
    check("a reason")
    page.keyboard.press("Escape")
    page.keyboard.press("?")
    check("help")
    page.keyboard.press("Escape")
    for button in page.query_selector_all("[data-action]"):
        button.scroll_into_view_if_needed()
        box = button.bounding_box()
        assert box["x"] >= 0, button.inner_text()
        assert box["x"] + box["width"] <= width
        assert min(box["width"], box["height"]) >= 24, "large enough for a finger (WCAG 2.2, 2.5.8)"
    anna.all_sent()
    for path in ("/host", "/?name"):
        page.goto(server.address + path)
        check(path)
    stranger = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    page = stranger.new_page()
    page.goto(server.address)
    check("the entrance")
    stranger.close()


def test_how_it_goes_is_live(browser: Any, server: Server) -> None:
    host = Watched(browser, server, "Host").page
    host.goto(f"{server.address}/host")
    anna = Watched(browser, server)
    anna.press("1")
    host.wait_for_function("() => document.querySelector('.facts').textContent.includes('1 of 40')")
    assert "Anna" in host.inner_text("table")


def test_the_end_is_said(browser: Any, tmp_path: Path) -> None:
    server = Server(write_rows(tmp_path / "few.jsonl", ROWS[:2]), tmp_path / "votes.db")
    anna = Watched(browser, server)
    anna.press("1")
    anna.press("1")
    anna.page.wait_for_selector("#empty:not([hidden])")
    assert "That's all. Thank you!" in anna.page.inner_text("#empty")
    server.kill()


def test_the_next_pair_doesnt_wait_for_the_server(browser: Any, server: Server, tmp_path: Path) -> None:
    """Two pairs beyond the one on the page are there already; a server that gives no answer holds nobody up."""
    anna = Watched(browser, server)
    anna.page.route("**/api/vote", lambda route: route.abort())
    seen = {anna.shown()}
    for _ in range(2):
        anna.press("1")
        seen.add(anna.shown())
    assert len(seen) == 3
    assert not votes_in(tmp_path)
    anna.page.unroute("**/api/vote")
    anna.all_sent()
    assert len(votes_in(tmp_path)) == 2


def test_keys_rest_while_help_is_open(browser: Any, server: Server) -> None:
    """A click on its words, or between them, takes the focus away and closes nothing; a click beside it does."""
    anna = Watched(browser, server)
    page = anna.page
    for place in ("h3", "p.small", "li"):
        page.keyboard.press("?")
        box = page.locator(f"#help {place}").first.bounding_box()
        page.mouse.click(box["x"] + 2, box["y"] - 3)
        page.wait_for_timeout(260)
        page.keyboard.press("1")
        assert page.is_visible("#help")
        assert anna.answered() == 0
        page.mouse.click(3, 300)
        page.wait_for_selector("#help", state="hidden")
    anna.press("1")
