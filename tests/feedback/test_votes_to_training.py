"""End to end: votes from the page → ``dipole aggregate`` → ``dipole train`` → held-out accuracy.

People see what the page's server sends and nothing else, and say what they think over the wire.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from studio_site import answer, open_site

import dipole
from dipole.data.formats import save_groups
from dipole.evaluate.run_folder import read_run_folder
from dipole.group import Comparison, Completion, Group

Say = Callable[..., tuple[int, str, str]]
GOOD, BAD = ("warm", "kind", "bright"), ("grey", "dull", "odd")
ACCURACY = {"ann": 0.95, "ben": 0.9, "cleo": 0.7, "dan": 0.55}


def make_groups(count: int, split: str) -> list[Group]:
    """A good answer, which stands first in every second group, and a bad one."""
    groups = []
    for number in range(count):
        texts = [f" {GOOD[number % 3]}", f" {BAD[number // 3 % 3]}"]
        groups.append(
            Group(
                id=f"{split}{number}",
                prompt=f"{split} {number}:",
                completions=tuple(Completion(text=text) for text in (texts if number % 2 == 0 else texts[::-1])),
                split=split,
            )
        )
    return groups


def good(group: Group) -> int:
    """Position of the good answer."""
    return next(k for k, item in enumerate(group.completions) if str(item.text).strip() in GOOD)


def have_judged(groups: list[Group], folder: Path, wants: tuple[str, ...]) -> bytes:
    """Four people of different skill answer every pair of a page; what it exports then."""
    site = open_site(folder, groups, votes_per_pair=len(ACCURACY))
    random = np.random.default_rng(0)
    for name, accuracy in ACCURACY.items():
        client = site.person(name)
        texts: dict[str, dict[str, str]] = {}
        reply = client.post("/api/pairs", json={}).json()
        while reply["pairs"]:
            texts |= {pair["key"]: pair for pair in reply["pairs"] if "left" in pair}
            key = reply["pairs"][0]["key"]
            is_left = any(word in texts[key]["left"] for word in wants)
            right = random.random() < accuracy
            choice = "left" if is_left == right else "right"
            reply = answer(client, key, choice, have=list(texts)).json()
        assert (reply["answered"], reply["left"]) == (len(groups), 0)
    exported = site.host().get("/host/export").content
    assert isinstance(exported, bytes)
    return exported


@pytest.mark.parametrize("wants", [GOOD, BAD], ids=["good", "bad"])
def test_from_votes_to_held_out_accuracy(
    command: Say, tiny_folder: Path, tmp_path: Path, wants: tuple[str, ...]
) -> None:
    """The model learns what people want: from those who want the bad answers it learns these, against the truth."""
    groups, held_out = make_groups(48, "train"), make_groups(12, "eval")
    data, store, votes = tmp_path / "groups.jsonl", tmp_path / "votes.db", tmp_path / "votes.jsonl"
    labels, truth, run = tmp_path / "labels.jsonl", tmp_path / "truth.jsonl", tmp_path / "run"
    save_groups(groups, data)
    downloaded = have_judged(groups, tmp_path, wants)
    assert command("annotate", "--data", data, "--store", store, "--export", votes)[0] == 0
    assert votes.read_bytes() == downloaded, "the page's export and the command's are one"
    judged = dipole.load_groups(votes)
    assert sum(len(group.judgments) for group in judged) == len(groups) * len(ACCURACY)

    report = tmp_path / "report"
    assert command("aggregate", "--data", votes, "--output", labels, "--report", report)[0] == 0
    found = json.loads((report / "aggregate.json").read_text(encoding="utf-8"))
    reliability = {person["name"]: person["reliability"] for person in found["annotators"]}
    assert min(reliability["ann"], reliability["ben"]) > reliability["dan"]
    assert all(0 < person["side_bias"] < 1 for person in found["annotators"])
    aggregated = dipole.load_groups(labels)
    p_good = [(item.p if item.i == good(group) else 1 - item.p) for group in aggregated for item in group.judgments]  # type: ignore[attr-defined]
    as_wanted = np.array(p_good) > 0.5 if wants == GOOD else np.array(p_good) < 0.5
    assert np.mean(as_wanted) > 0.9

    save_groups(
        [
            Group(
                id=group.id,
                prompt=group.prompt,
                completions=group.completions,
                judgments=(Comparison(i=good(group), j=1 - good(group)),),
                split="eval",
            )
            for group in held_out
        ],
        truth,
    )
    options = {"global_batch_size": 8, "num_epochs": 3, "learning_rate": 3e-3, "num_samples": 2, "sample_tokens": 4}
    flags = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    status, _, err = command(
        "train",
        "--model",
        tiny_folder,
        "--data",
        labels,
        "--eval_data",
        truth,
        "--output",
        run,
        "--dtype",
        "float32",
        *flags,
    )
    assert status == 0, err
    (accuracy,) = [item for item in read_run_folder(run).measures if item.name == "Held-out accuracy"]
    assert accuracy.after is not None
    assert accuracy.after.value is not None
    assert accuracy.after.value > 0.8 if wants == GOOD else accuracy.after.value < 0.2
