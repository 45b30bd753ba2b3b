"""Groups of new completions: what is written, where it says it is from, and that nothing is written twice."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import dipole
from conftest import build_model, build_tokenizer
from dipole import Completion, Group
from dipole.data.formats import load_groups, save_groups
from dipole.data.growing import GrowingGroups
from dipole.errors import ConfigError, DataError
from dipole.generating import PARTIAL, generate_groups
from dipole.progress import Silent

Command = Callable[..., tuple[int, str, str]]
PROMPTS = [Group(id=f"p{n}", prompt=f"Number {'x' * n} is", completions=(), meta={"n": n}) for n in range(5)]
SMALL: dict[str, Any] = {"max_new_tokens": 6, "num_completions": 3}


class Told(Silent):
    """Counts what it is told."""

    def __init__(self) -> None:
        self.done = 0

    def advance(self, units: int = 1, note: str = "") -> None:
        self.done += units


class Scripted:
    """A sampler that writes down what it is asked for; it may be killed after some prompts."""

    def __init__(self, dies_after: int | None = None, temperature: float = 1.0) -> None:
        self.provenance = {"model": "scripted", "sampling": {"temperature": temperature}}
        self.asked: list[str] = []
        self.dies_after = dies_after

    def sample(self, prompts: Sequence[Any], count: int, done: Collection[str]) -> Iterator[Any]:
        for number, group in reversed([prompt for prompt in prompts if prompt[1].id not in done]):
            if len(self.asked) == self.dies_after:
                raise KeyboardInterrupt
            self.asked.append(group.id)
            texts = [f"{group.id} {k}" for k in range(count)]
            yield (number, group), tuple(Completion(text=text, meta=self.provenance) for text in texts)


def test_groups_have_their_prompts_completions_and_provenance(tiny_folder: Path, tmp_path: Path) -> None:
    told = Told()
    groups = dipole.generate(
        tiny_folder, PROMPTS, tmp_path / "g.jsonl", temperature=0.9, seed=7, progress=told, **SMALL
    )
    assert told.done == 15
    assert [(group.id, group.prompt, group.meta) for group in groups] == [(p.id, p.prompt, p.meta) for p in PROMPTS]
    assert load_groups(tmp_path / "g.jsonl") == [json_round_trip(group) for group in groups]
    assert not (tmp_path / f"g.jsonl{PARTIAL}").exists()
    for number, group in enumerate(groups):
        assert not group.judgments
        for k, completion in enumerate(group.completions):
            meta = completion.meta
            assert meta["stream"] == [number, k]
            assert len(meta["model"]) == 32
            assert meta["sampling"]["seed"] == 7
            assert meta["sampling"]["temperature"] == 0.9
            assert 1 <= meta["tokens"] <= 6
            assert meta["logps"] < 0
            assert completion.source == tiny_folder.name
    assert len({str(c.text) for group in groups for c in group.completions}) > 10


def json_round_trip(group: Group) -> Group:
    from dipole.data.native import group_from_json, group_to_json

    return group_from_json(json.loads(json.dumps(group_to_json(group))), "here", id=group.id)


def test_any_completion_can_be_drawn_again_from_its_provenance(tiny_folder: Path) -> None:
    from dipole.policy.generate import sample
    from dipole.policy.sampling import Sampling
    from dipole.policy.saved import load_policy

    groups = dipole.generate(tiny_folder, PROMPTS, top_p=0.9, seed=1, **SMALL)
    saved = load_policy(str(tiny_folder))
    completion = groups[3].completions[2]
    ids = saved.tokenizer([groups[3].prompt])["input_ids"][0]
    sampling = Sampling(**completion.meta["sampling"])
    (again,) = sample(saved.policy, saved.tokenizer, [ids], sampling, streams=[tuple(completion.meta["stream"])])
    assert again.verbatim == completion.text
    assert sum(again.logps) == pytest.approx(completion.meta["logps"], abs=1e-4)
    assert saved.fingerprint == completion.meta["model"]


def test_chats_are_answered_as_chats(tiny_folder: Path) -> None:
    chat = Group(id="c", prompt=({"role": "user", "content": "Say x"},), completions=())
    plain = Group(id="c", prompt="Say x", completions=())
    (of_chat,) = dipole.generate(tiny_folder, [chat], **SMALL)
    (of_plain,) = dipole.generate(tiny_folder, [plain], prompt_format="chat", **SMALL)
    assert [c.text for c in of_chat.completions] == [c.text for c in of_plain.completions]
    assert of_plain.prompt == "Say x"


def test_a_run_that_was_killed_goes_on_with_what_is_missing(tmp_path: Path) -> None:
    output = tmp_path / "g.jsonl"
    first = Scripted(dies_after=2)
    with pytest.raises(KeyboardInterrupt):
        generate_groups(PROMPTS, first, output, num_completions=2)
    partial = output.with_name(output.name + PARTIAL)
    assert not output.exists()
    with partial.open("a") as file:
        file.write('{"schema": 1, "id": "p0", "pro')  # the line that was being written
    second = Scripted()
    groups = generate_groups(PROMPTS, second, output, num_completions=2)
    assert first.asked == ["p4", "p3"]
    assert second.asked == ["p2", "p1", "p0"]
    assert groups == generate_groups(PROMPTS, Scripted(), None, num_completions=2)
    assert load_groups(output) == groups
    assert not partial.exists()
    third = Scripted()
    assert generate_groups(PROMPTS, third, output, num_completions=2) == groups
    assert third.asked == []


def test_a_killed_run_leaves_no_trace_in_any_bit(tiny_folder: Path, tmp_path: Path) -> None:
    options = {**SMALL, "batch_size": 6, "seed": 2}  # two prompts at a time
    straight = dipole.generate(tiny_folder, PROMPTS, tmp_path / "straight.jsonl", **options)
    for done in ([0], [2, 3], [0, 1, 2, 3]):
        output = tmp_path / f"killed-{len(done)}.jsonl"
        GrowingGroups(output.with_name(output.name + PARTIAL)).append([straight[number] for number in done])
        dipole.generate(tiny_folder, PROMPTS, output, **options)
        assert output.read_bytes() == (tmp_path / "straight.jsonl").read_bytes()


def test_more_prompts_are_added_to_what_is_there(tmp_path: Path) -> None:
    output = tmp_path / "g.jsonl"
    generate_groups(PROMPTS[:3], Scripted(), output, num_completions=1)
    more = Scripted()
    assert len(generate_groups(PROMPTS, more, output, num_completions=1)) == 5
    assert sorted(more.asked) == ["p3", "p4"]
    assert [group.id for group in load_groups(output)] == [group.id for group in PROMPTS]


def test_what_was_written_otherwise_is_never_taken_for_this(tmp_path: Path) -> None:
    output = tmp_path / "g.jsonl"
    generate_groups(PROMPTS, Scripted(), output, num_completions=2)
    before = output.read_bytes()
    hotter = Scripted(temperature=1.5)
    with pytest.raises(ConfigError, match=r"sampling\.temperature was 1\.0 and is now 1\.5"):
        generate_groups(PROMPTS, hotter, output, num_completions=2)
    with pytest.raises(ConfigError, match="2 completions, and 3"):
        generate_groups(PROMPTS, Scripted(), output, num_completions=3)
    with pytest.raises(DataError, match="'p4', which isn't among the prompts"):
        generate_groups(PROMPTS[:4], Scripted(), output, num_completions=2)
    others = [Group(id=group.id, prompt="Something else", completions=()) for group in PROMPTS]
    with pytest.raises(DataError, match="'p0'"):
        generate_groups(others, Scripted(), output, num_completions=2)
    with pytest.raises(DataError, match="same id"):
        generate_groups([PROMPTS[0], PROMPTS[0]], Scripted(), None, num_completions=1)
    assert output.read_bytes() == before


def test_a_name_that_can_t_be_written_is_said_before_anything_is(tmp_path: Path) -> None:
    sampler = Scripted()
    with pytest.raises(DataError, match=r"g\.txt.*\.jsonl"):
        generate_groups(PROMPTS, sampler, tmp_path / "g.txt", num_completions=1)
    assert sampler.asked == []
    assert not list(tmp_path.iterdir())


def test_a_batch_of_any_size_gives_the_same_groups(tmp_path: Path) -> None:
    model, tokenizer = build_model(260).double(), build_tokenizer()
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(tmp_path / "wide")
    tokenizer.save_pretrained(tmp_path / "wide")
    found = [dipole.generate(tmp_path / "wide", PROMPTS, batch_size=size, **SMALL) for size in (1, 4, 64)]
    texts = [[c.text for group in groups for c in group.completions] for groups in found]
    assert texts[0] == texts[1] == texts[2]


def test_prompts_without_room_are_named(tiny_folder: Path) -> None:
    long = Group(id="long", prompt="x" * 505, completions=())
    with pytest.raises(DataError, match=r"'long'.*505 tokens.*10 new ones.*512"):
        dipole.generate(tiny_folder, [*PROMPTS, long], max_new_tokens=10)
    with pytest.raises(DataError, match="empty"):
        dipole.generate(tiny_folder, [Group(id="none", prompt="", completions=())], max_new_tokens=10)


def test_an_adapter_is_sampled_with_its_model(tiny_folder: Path, tmp_path: Path) -> None:
    from dipole.config import PeftConfig
    from dipole.policy.adapters import add_adapter
    from dipole.policy.load import load_model

    model: Any = add_adapter(load_model(str(tiny_folder)), PeftConfig(method="lora", rank=2), seed=0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_()
    model.save_pretrained(tmp_path / "adapter")
    plain = dipole.generate(tiny_folder, PROMPTS, **SMALL)
    by_itself = dipole.generate(tmp_path / "adapter", PROMPTS, **SMALL)
    named = dipole.generate(tiny_folder, PROMPTS, adapter=tmp_path / "adapter", **SMALL)
    assert by_itself == named
    assert by_itself[0].completions[0].meta["model"] != plain[0].completions[0].meta["model"]
    assert [c.text for c in by_itself[1].completions] != [c.text for c in plain[1].completions]


def test_growing_groups_survive_any_cut(tmp_path: Path) -> None:
    path = tmp_path / "grown.jsonl"
    GrowingGroups(path).append(PROMPTS)
    whole = path.read_bytes()
    for cut in range(0, len(whole), 7):
        path.write_bytes(whole[:cut])
        grown = GrowingGroups(path)
        assert grown.groups == PROMPTS[: whole[:cut].count(b"\n")]
        grown.append(PROMPTS[len(grown.groups) :])
        assert path.read_bytes() == whole
        assert GrowingGroups(path).groups == grown.groups == PROMPTS


def test_the_verb_writes_groups_and_goes_on(command: Command, tiny_folder: Path, tmp_path: Path) -> None:
    prompts, output = tmp_path / "prompts.jsonl", tmp_path / "out" / "groups.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"Tell me {n}:"}) + "\n" for n in range(3)))
    options = ["--model", tiny_folder, "--prompts", prompts, "--output", output, "--max_new_tokens", "5"]
    status, said, _ = command("generate", *options, "--stop", '["a", "\\n"]')
    assert status == 0
    assert "12 completions of 3 prompts" in said
    assert load_groups(output)[0].completions[0].meta["sampling"]["stop"] == ["a", "\n"]
    stamp = output.stat().st_mtime_ns
    assert command("generate", *options, "--stop", '["a", "\\n"]')[0] == 0
    assert output.stat().st_mtime_ns == stamp
    status, _, said = command("generate", *options)
    assert status == 2
    assert "sampling.stop was" in said
    status, _, said = command("generate", *options, "--key", "SECRET")
    assert (status, "--key" in said) == (2, True)


def test_completions_of_preferences_are_replaced(tiny_folder: Path, tmp_path: Path) -> None:
    judged = [
        Group(
            id="g",
            prompt="p",
            completions=(Completion(text="a"), Completion(text="b")),
            judgments=(dipole.Comparison(i=0, j=1),),
            split="eval",
        )
    ]
    save_groups(judged, tmp_path / "data.jsonl")
    (group,) = dipole.generate(tiny_folder, tmp_path / "data.jsonl", num_completions=1, max_new_tokens=2)
    assert len(group.completions) == 1
    assert group.judgments == ()
    assert group.split == "eval"
