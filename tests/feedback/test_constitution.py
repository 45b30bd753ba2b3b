"""Constitutions: reading them, judging by them, and revising answers by them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from fake_server import Call, fail, fake_server, say
from judging import GROUPS, group

from conftest import build_model, build_tokenizer
from dipole.data.formats import load_groups, save_groups
from dipole.errors import ConfigError
from dipole.feedback.cache import Cache
from dipole.feedback.constitution import SHIPPED, Constitution, Principle, load_constitution, parse_constitution
from dipole.feedback.judge import judge_groups
from dipole.feedback.local import LocalModel
from dipole.feedback.registry import JudgeOptions, open_judge, open_writer
from dipole.feedback.revise import LocalWriter, draw_principles, revise_groups
from dipole.group import Group, Message

GOOD = "name: mine\nprinciples:\n  - name: true\n    weight: 2\n    compare: Prefer the true one.\n"


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_ones(name: str) -> None:
    constitution = load_constitution(name)
    assert constitution.name == name
    assert len(constitution.principles) >= 4
    for principle in constitution.principles:
        assert principle.compare.startswith("Prefer ")
        assert principle.critique.startswith("Say ")
        assert principle.revise.startswith("Rewrite ")


def test_reading() -> None:
    constitution = parse_constitution(GOOD.replace("name: true", "name: 'true'"), "x.yaml")
    assert constitution == Constitution(
        name="mine", principles=(Principle(name="true", weight=2.0, compare="Prefer the true one."),)
    )


def test_the_hash_is_of_the_principles_alone() -> None:
    one = parse_constitution("principles: [{name: a, compare: Prefer x.}]", "one.yaml")
    renamed = parse_constitution("name: other\nprinciples:\n- compare: Prefer x.\n  name: a\n  weight: 1", "two.yaml")
    assert one.hash == renamed.hash
    for change in (
        "{name: b, compare: Prefer x.}",
        "{name: a, compare: Prefer y.}",
        "{name: a, compare: Prefer x., weight: 2}",
    ):
        assert parse_constitution(f"principles: [{change}]", "x.yaml").hash != one.hash


BAD = {
    "tab": ("principles:\n\t- name: a", r"x\.yaml:2.*YAML"),
    "a word": ("hello", "mapping"),
    "nothing": ("", "mapping"),
    "no principles": ("name: x", "principles"),
    "empty list": ("principles: []", "at least one"),
    "unknown key": ("principles: [{name: a, compar: x}]", "Did you mean 'compare'"),
    "unknown key above": ("principals: []", "Did you mean 'principles'"),
    "key twice": ("principles: [{name: a, compare: b, compare: c}]", "there twice"),
    "no text": ("principles: [{name: a, compare: ' '}]", "'compare' has to be text"),
    "a boolean for a name": ("principles: [{name: yes, compare: b}]", "'name' has to be text"),
    "negative weight": ("principles: [{name: a, compare: b, weight: -1}]", "above 0"),
    "endless weight": ("principles: [{name: a, compare: b, weight: .inf}]", "above 0"),
    "weight as text": ("principles: [{name: a, compare: b, weight: 1e5x}]", "above 0"),
    "same names": ("principles: [{name: a, compare: b}, {name: a, compare: c}]", "same name"),
    "an alias": ("a: &x [1]\nb: *x", "aliases"),
    "an object": ("principles: !!python/object/apply:os.system ['true']", "YAML"),
    "deep": ("[" * 5000, "YAML"),
    "large": ("#" * 300_000, "longer"),
}


@pytest.mark.parametrize("name", BAD)
def test_mistakes_are_named(name: str) -> None:
    text, said = BAD[name]
    with pytest.raises(ConfigError, match=said) as caught:
        parse_constitution(text, "x.yaml")
    assert "x.yaml" in str(caught.value)


def test_a_file_that_isn_t_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="general"):
        load_constitution(tmp_path / "none.yaml")


def test_a_judge_asks_each_principle_in_both_orders(tmp_path: Path) -> None:
    with fake_server() as server:
        server.answer = lambda call: say("VERDICT: A" if "warm about" in call.asked else "VERDICT: TIE")
        judge = open_judge(f"server:{server.url}#tiny?constitution=film_reviews")
        (judged,) = judge_groups(judge, GROUPS[:1])
    assert len(server.calls) == 8
    meta = judged.judgments[0].meta
    assert meta["constitution"] == f"film_reviews {load_constitution('film_reviews').hash}"
    assert list(meta["orders"]) == ["positive", "about_the_film", "particular", "well_formed"]
    save_groups([judged], tmp_path / "judged.jsonl")
    assert load_groups(tmp_path / "judged.jsonl") == [judged]


# --- revision


class Scribe:
    """Criticises and rewrites by rote."""

    name, threads = "scribe", 2

    def __init__(self, **replies: str | None) -> None:
        self.replies = {"critique": "Too cold.", "revision": "Warm words."} | replies
        self.chats: list[tuple[Message, ...]] = []

    def write(self, messages: Sequence[Message]) -> str | None:
        self.chats.append(tuple(messages))
        return self.replies["critique" if len(messages) == 1 else "revision"]


FILM = load_constitution("film_reviews")


def test_every_answer_gets_a_revision_beside_it() -> None:
    scribe = Scribe()
    (revised,) = revise_groups(scribe, FILM, [group("g", "Cold words.", "Colder words.")])
    assert [completion.text for completion in revised.completions[2:]] == ["Warm words."] * 2
    first = revised.completions[2]
    assert first.source == "scribe"
    assert first.meta["revision_of"] == 0
    assert first.meta["constitution"] == f"film_reviews {FILM.hash}"
    (step,) = first.meta["revision"]
    assert step["critique"] == "Too cold."
    assert step["principle"] in {principle.name for principle in FILM.principles}
    critique, revision = scribe.chats[:2]
    assert "Cold words." in str(critique)
    assert [message["role"] for message in revision] == ["user", "assistant", "user"]
    assert revision[1]["content"] == "Too cold."


def test_rounds_go_on_from_the_last_text() -> None:
    scribe = Scribe()
    (revised,) = revise_groups(scribe, FILM, [group("g", "Cold words.")], rounds=3)
    assert len(revised.completions) == 2
    assert len(revised.completions[1].meta["revision"]) == 3
    assert "Cold words." in str(scribe.chats[0])
    assert "Warm words." in str(scribe.chats[2])
    assert "Cold words." not in str(scribe.chats[2])


@pytest.mark.parametrize(
    "replies",
    [{"critique": None}, {"critique": " "}, {"revision": None}, {"revision": ""}, {"revision": " Cold words.\n"}],
)
def test_no_revision_is_none(replies: dict[str, str | None]) -> None:
    (revised,) = revise_groups(Scribe(**replies), FILM, [group("g", "Cold words.")])
    assert len(revised.completions) == 1


def test_messages_are_revised_to_messages() -> None:
    chat = group("g", "x")
    completion = chat.completions[0].__class__(text=({"role": "assistant", "content": "Cold."},))
    (revised,) = revise_groups(Scribe(), FILM, [Group(id="g", prompt="p", completions=(completion,))])
    assert revised.completions[1].text == ({"role": "assistant", "content": "Warm words."},)


def test_principles_are_drawn_by_weight_and_always_the_same() -> None:
    drawn = [draw_principles(FILM, f"g{number}:0", 1)[0].name for number in range(2000)]
    assert drawn == [draw_principles(FILM, f"g{number}:0", 1)[0].name for number in range(2000)]
    for principle in FILM.principles:
        assert drawn.count(principle.name) / 2000 == pytest.approx(principle.weight / 7, abs=0.04)


def test_a_served_model_revises_once(tmp_path: Path) -> None:
    def answer(call: Call) -> object:
        if "number 3" in call.asked:
            return fail(400, "too long")
        return say("Warm words." if len(call.body["messages"]) == 3 else "Cold.")

    with fake_server() as server:
        server.answer = answer  # type: ignore[assignment]
        for _ in range(2):
            options = JudgeOptions(cache=tmp_path / "replies.sqlite", threads=4)
            writer, constitution = open_writer(f"server:{server.url}#tiny?constitution=general", options)
            revised = list(revise_groups(writer, constitution, GROUPS[:5]))
            assert [len(item.completions) for item in revised] == [4, 4, 4, 2, 4]
    assert len(server.calls) == 4 * 4 + 2 * 2, "refusals aren't kept"


def test_only_a_language_model_with_a_constitution_revises(tiny_folder: Path) -> None:
    for spelling in ("rule:longer", f"model:{tiny_folder}"):
        with pytest.raises(ConfigError, match="constitution"):
            open_writer(spelling)


def test_a_model_in_this_process_writes_once(tmp_path: Path) -> None:
    tokenizer = build_tokenizer()
    model = build_model(len(tokenizer))
    model.config.max_position_embeddings = 4096
    model.save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    local = LocalModel(str(tmp_path / "m"))
    writer = LocalWriter(local, "m", Cache(), max_tokens=8)
    chat = ({"role": "user", "content": "Hello"},)
    first = writer.write(chat)
    assert isinstance(first, str)
    local.write = lambda *arguments: pytest.fail("asked again")  # type: ignore[method-assign]
    assert writer.write(chat) == first
    assert LocalWriter(LocalModel(str(tmp_path / "m")), "m", Cache(), max_tokens=4000).write(chat) is None
