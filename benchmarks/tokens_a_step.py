"""What a whole optimizer step costs by the tokens in it: ``python benchmarks/tokens_a_step.py --help``.

The model is a small Llama with random weights, all of them trained, beside its reference; micro-batches keep their
size, so that time per token should stay the same, and memory too. Every size is a process of its own.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "versus"))

import torch
from head_and_attention import TOKENS, apart
from measure import now, peak_bytes, processor_seconds
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from dipole.config import LossConfig, TrainConfig
from dipole.progress import Silent
from dipole.train.loop import steps
from dipole.train.setup import prepare

RESULT = Path(__file__).parent / "results" / "tokens_a_step.json"
WORDS = 4096


def write_model(folder: Path) -> None:
    """Four layers of 128 hidden units, and a tokenizer of numbered words."""
    words = {"<eos>": 0} | {f"w{number}": number for number in range(1, WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocab=words, unk_token="<eos>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<eos>").save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=WORDS,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def write_groups(path: Path, tokens: int) -> int:
    """Ranked groups of about so many tokens, prompts of 40 to 400 with four answers of 20 to 200; how many they are."""
    draw = random.Random(0)

    def text(low: int, high: int) -> list[str]:
        return [f"w{draw.randrange(1, WORDS)}" for _ in range(draw.randint(low, high))]

    rows: list[str] = []
    filled = 0
    while filled < tokens:
        prompt, answers = text(40, 400), [text(20, 200) for _ in range(4)]
        filled += len(prompt) + sum(len(answer) + 1 for answer in answers)
        row = {
            "schema": 1,
            "id": f"g{len(rows)}",
            "prompt": " ".join(prompt),
            "completions": [{"text": " " + " ".join(answer)} for answer in answers],
            "judgments": [{"kind": "ranking", "order": [0, 1, 2, 3]}],
        }
        rows.append(json.dumps(row) + "\n")
    path.write_text("".join(rows))
    return len(rows)


def measure_step(model: str, tokens: int, budget: int, threads: int) -> dict[str, float]:
    """The second step over the same groups; the first one warms up."""
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "groups.jsonl"
        groups = write_groups(data, tokens)
        config = TrainConfig(
            model=model,
            data=str(data),
            output=str(Path(folder) / "run"),
            loss=LossConfig(name="dpo", beta=0.1),
            global_batch_size=groups,
            num_epochs=2,
            max_length=1024,
            max_tokens_per_microbatch=budget,
            num_samples=0,
        )
        taken = steps(prepare(config, Silent()))
        next(taken)
        began, cpu_began = now(), processor_seconds()
        info = next(taken)
        seconds, cpu_seconds = now() - began, processor_seconds() - cpu_began
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return {
        "tokens": float(info.metrics["tokens"]),
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "peak_gb": peak_bytes(device) / 1e9,
    }


def as_table(rows: list[dict[str, Any]]) -> str:
    """A row a size."""
    lines = ["| tokens a step | CPU s | CPU ms per 1,000 tokens | peak GB |", "|---:|---:|---:|---:|"]
    for row in rows:
        a_thousand = 1e6 * row["cpu_seconds"] / row["tokens"]
        lines.append(
            f"| {row['tokens']:,.0f} | {row['cpu_seconds']:.1f} | {a_thousand:.0f} | {row['peak_gb']:.2f} |",
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, default=len(TOKENS), help="how many, from the smallest (default: all 4)")
    parser.add_argument("--budget", type=int, default=4096, help="max_tokens_per_microbatch (default: 4096)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder))
        rows = [
            apart(measure_step, model=folder, tokens=tokens, budget=options.budget, threads=options.threads)
            for tokens in TOKENS[: options.sizes]
        ]
    found = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python benchmarks/tokens_a_step.py", *sys.argv[1:]]),
        "torch": torch.__version__,
        "threads": options.threads,
        "rows": rows,
    }
    RESULT.write_text(json.dumps(found, indent=1) + "\n")
    print(as_table(rows))


if __name__ == "__main__":
    main()
