"""The page of a run: complete, well-formed, self-contained, readable, and inert whatever the model wrote."""

from __future__ import annotations

import itertools
import re
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from example_run import MANIFEST, audit, metrics, samples, write_run

from dipole.errors import DataError
from dipole.evaluate.report import SHOWN_CHARACTERS, write_report

VOID = {"meta", "link", "br", "img"}

HOSTILE = (
    "<script>alert(1)</script><img src=https://evil.example/x onerror=alert(2)></textarea></style><svg onload=alert(3)>"
    "\x1b[31mANSI\x1b[0m \u202egnorts {{ 7 * 7 }} {% raw %} &lt; ' \" javascript:alert(4) שלום"
)


class Page(HTMLParser):
    """Elements with their attributes, the visible text, and whether every element is closed."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.texts))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def written(folder: Path, **changes: Any) -> Path:
    """The path of a page without curves, unless ``metrics`` are given: they take most of the time."""
    return write_report(write_run(folder, **({"metrics": None} | changes)))


def page_of(folder: Path, **changes: Any) -> Page:
    return Page(written(folder, **changes).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    return page_of(tmp_path_factory.mktemp("runs") / "demo", metrics=metrics())


# --- what it says -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "part",
    [
        "Better on 2, unclear on 1 of 3 measures",
        "SmolLM2-135M-Instruct was trained with DPO (β = 0.1)",
        "0.536 0.488 to 0.583",  # a number and its interval
        "+0.288 0.229 to 0.347",
        "n = 431 in 144 clusters",
        "share, 95% Wilson interval clustered",
        "Accuracy is on the 431 held-out pairs",
        "By step 40 they had lost 14.0 nats each against the reference (on held-out pairs)",
        "likelihood displacement",
        "A warm, funny and beautifully acted film",
        "The film is a mess of half-finished ideas",
        "The first 6 of 16, in the order in which they were drawn and not selected",
        "cut at the limit",
        "the longer completion wins 63% of the decided pairs 95 % interval 0.610 to 0.650",
        "g12: “Effective but too tepid biopic”",
        "dipole demo --config demo/config.yaml --output demo-again",
        "learning_rate: 0.0002",
        "2.13.0+cpu",
        "sha256:6f1c0a4be2",
    ],
)
def test_the_page_says(page: Page, part: str) -> None:
    assert part in page.text


def test_before_and_after_stand_side_by_side(page: Page) -> None:
    first = page.text.index("Before score")
    assert page.text[first:].startswith("Before score −0.34 The film is a mess")
    assert page.text[first:].index("After score 0.77 A warm, funny") < page.text[first:].index("A dull, overlong")


def test_samples_of_several_prompts_show_every_prompt_first(tmp_path: Path) -> None:
    prompts = tuple(f"Prompt number {i}." for i in range(4))
    text = page_of(tmp_path / "a", samples=samples(count=3, prompts=prompts)).text
    opened = text[: text.index("6 more")]
    assert [opened.count(prompt) for prompt in prompts] == [1, 1, 1, 1]


def test_a_chosen_that_rises_is_no_cause_for_worry(tmp_path: Path) -> None:
    text = page_of(tmp_path / "a", metrics=[row for row in metrics(chosen_drift=0.1) if "eval/n" in row][-1:]).text
    assert "the chosen completions had gained 4.0 nats each over the reference" in text
    assert "became less likely" not in text


def test_errors_of_the_audit_come_first(tmp_path: Path) -> None:
    found = audit() | {"errors": [{"name": "leak", "severity": "error", "message": "7 prompts are in both splits"}]}
    text = page_of(tmp_path / "a", audit=found).text
    assert text.index("7 prompts are in both splits") < text.index("the longer completion wins")


def test_what_is_missing_is_said_in_words(tmp_path: Path) -> None:
    absent = dict.fromkeys(("config", "metrics", "samples", "evaluation", "audit"))
    text = page_of(tmp_path / "a", manifest={"schema": 1}, **absent).text
    for sentence in (
        "Nothing was measured before and after training",
        "No steps were logged",
        "No samples were drawn",
        "The data wasn't audited.",
        "The configuration of this run wasn't kept.",
        "metrics.jsonl (nothing was logged)",
    ):
        assert sentence in text
    assert "undefined" not in text.lower()


@pytest.mark.parametrize("left_out", ["config", "samples", "evaluation", "audit"])
def test_any_file_may_be_missing(tmp_path: Path, left_out: str) -> None:
    text = page_of(tmp_path / "a", **{left_out: None}).text
    absent = text[text.index("Not in this run's folder:") :]
    assert f" {left_out}." in absent
    assert " metrics.jsonl" in absent


def test_samples_drawn_during_training_and_a_side_that_is_missing(tmp_path: Path) -> None:
    rows = [
        {"stage": "before", "step": 0, "prompt": "p", "completion": "alone", "index": 0},
        {"stage": "step", "step": 10, "prompt": "p", "completion": "on the way", "index": 0},
    ]
    text = page_of(tmp_path / "a", samples=rows).text
    assert "alone" in text
    assert "After not sampled" in text
    assert "Step 10 on the way" in text


def test_samples_of_chats_are_shown_too(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "Hello <b>"}]
    rows = [{"stage": "after", "step": 1, "prompt": messages, "completion": "Hi", "index": 0}, {"stage": "before"}]
    assert '[{"role": "user", "content": "Hello <b>"}]' in page_of(tmp_path / "a", samples=rows).text


# --- safety -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Page:
    """A run of which every text that isn't Dipole's own is hostile."""
    text = HOSTILE + " " + "x" * 5000
    rows = [
        {"stage": stage, "step": step, "prompt": HOSTILE, "completion": text, "index": 0, "score": HOSTILE, "tokens": 3}
        for stage, step in (("before", 0), ("step", 5), ("after", 9))
    ]
    finding = {
        "name": HOSTILE,
        "severity": HOSTILE,
        "message": HOSTILE,
        "remedy": HOSTILE,
        "examples": [HOSTILE, {"t": HOSTILE}],
    }
    measure = {"name": HOSTILE, "what": HOSTILE, "unit": HOSTILE, "verdict": HOSTILE}
    return page_of(
        tmp_path_factory.mktemp("runs") / "<b onclick=alert(1)>",
        samples=rows,
        manifest=MANIFEST | {"model": {"name": HOSTILE}, "data": {"source": HOSTILE}, "created": HOSTILE},
        audit={"errors": [finding], "findings": [finding]},
        evaluation={"rows": [measure | {"before": None, "after": None, "difference": None}], "notes": [HOSTILE]},
        config=f"note: |\n  {HOSTILE.replace(chr(27), '')}\n",
        metrics=[{"step": 1, "loss": HOSTILE}, {"step": 2, "loss": 0.5, HOSTILE: 1.0}],
    )


def test_hostile_text_makes_no_elements(hostile: Page, page: Page) -> None:
    assert {tag for tag, _ in hostile.elements} <= {tag for tag, _ in page.elements} | {"aside"}
    assert hostile.all("script") == hostile.all("img") == []


@pytest.mark.parametrize("which", ["page", "hostile"])
def test_nothing_runs_and_nothing_is_loaded(which: str, request: pytest.FixtureRequest) -> None:
    page = request.getfixturevalue(which)
    for tag, attributes in page.elements:
        for name, value in attributes.items():
            assert not name.startswith("on"), f"<{tag} {name}>"
            if name in ("src", "href", "xlink:href", "action", "srcset", "data"):
                assert value is not None
                assert value.startswith("#") or value == "data:,"
            if name == "style":
                assert "url(" not in (value or "").replace("url(#", "")
    css = resources.files("dipole.evaluate").joinpath("templates/report.css").read_text()
    assert "url(" not in css
    assert "@import" not in css


def test_the_policy_forbids_everything_but_inline_style(page: Page) -> None:
    policies = [meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    assert policies == [
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
    ]


def test_hostile_text_is_shown_as_text(hostile: Page) -> None:
    assert hostile.text.count("<script>alert(1)</script>") >= 10
    assert "{{ 7 * 7 }} {% raw %}" in hostile.text
    assert "ANSI gnorts" in hostile.text
    assert "שלום" in hostile.text
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", hostile.text)


def test_a_long_text_is_cut_and_the_page_says_by_how_much(hostile: Page) -> None:
    whole = len(HOSTILE) - len("\x1b[31m" + "\x1b[0m" + "\u202e") + 1 + 5000
    assert f"… {whole - SHOWN_CHARACTERS:,} more characters" in hostile.text
    assert "x" * (SHOWN_CHARACTERS + 1) not in hostile.text


def test_model_text_keeps_its_own_direction(page: Page) -> None:
    texts = [attributes for attributes in page.all("p") if attributes.get("class") == "text"]
    assert texts
    assert all(attributes.get("dir") == "auto" for attributes in texts)


def test_no_data_is_marked_as_safe() -> None:
    template = resources.files("dipole.evaluate").joinpath("templates/report.html.jinja").read_text()
    for way_around in ("safe", "autoescape", "Markup", "xmlattr", "tojson"):
        assert not re.search(rf"\b{way_around}\b", template)


# --- access -----------------------------------------------------------------------------------------------------------


def test_ids_are_unique_and_referred_to(page: Page) -> None:
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {attributes["aria-labelledby"] for attributes in page.all("section")} <= set(ids)
    assert {value[1:] for _, a in page.elements if (value := a.get("xlink:href") or "")} <= set(ids)


def test_the_page_can_be_followed_without_seeing_it(page: Page) -> None:
    assert page.all("html") == [{"lang": "en"}]
    assert all("scope" in header for header in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table"))
    for picture in page.all("svg"):
        assert picture.get("aria-hidden") == "true" or (picture["role"] == "img" and picture["aria-label"])
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def themes() -> list[dict[str, str]]:
    css = resources.files("dipole.evaluate").joinpath("templates/report.css").read_text()
    blocks = re.findall(r":root \{(.*?)\}", css, flags=re.DOTALL)
    return [dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", block)) for block in blocks]


def contrast(one: str, other: str) -> float:
    """WCAG 2.2's ratio of relative luminances."""

    def luminance(color: str) -> float:
        channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_both_themes_have_the_contrast_that_wcag_asks_for() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    light, dark = themes()
    assert light.keys() == dark.keys()
    for theme in (light, dark):
        for ground in ("page", "raised"):
            for text in ("ink", "muted", "accent", "warn", "plot-ink"):
                assert contrast(theme[text], theme[ground]) >= 4.5, (text, ground)
            for line in ("plot-blue", "plot-orange", "plot-green", "plot-grey"):
                assert contrast(theme[line], theme[ground]) >= 3, (line, ground)
        assert contrast(theme["accent"], theme["accent-tint"]) >= 4.5
        assert contrast(theme["warn"], theme["warn-tint"]) >= 4.5
        assert contrast(theme["ink"], theme["warn-tint"]) >= 4.5


# --- writing ----------------------------------------------------------------------------------------------------------


def test_the_same_files_give_the_same_bytes(tmp_path: Path) -> None:
    first = written(tmp_path / "a").read_bytes()
    assert write_report(tmp_path / "a").read_bytes() == first


def test_the_page_speaks_of_no_place_on_this_machine(tmp_path: Path) -> None:
    assert str(tmp_path) not in written(tmp_path / "a").read_text(encoding="utf-8")


def test_a_report_that_fails_leaves_the_old_one(tmp_path: Path) -> None:
    page = written(tmp_path / "a")
    before = page.read_bytes()
    (page.parent / "evaluation.json").write_text("{")
    with pytest.raises(DataError, match=r"evaluation\.json"):
        write_report(page.parent)
    assert page.read_bytes() == before
    assert not list(page.parent.glob("*.part"))


def test_a_command_quotes_what_a_shell_would_split(tmp_path: Path) -> None:
    assert "--config 'my run/config.yaml' --output 'my run-again'" in page_of(tmp_path / "my run").text
