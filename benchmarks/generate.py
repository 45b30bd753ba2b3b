"""Sampling K completions a prompt beside transformers' generate; writes benchmarks/results/generate.json and .md.

    python benchmarks/generate.py                              # SmolLM2-135M, 4 prompts of 200 tokens, K = 8, 32 tokens
    python benchmarks/generate.py --threads 1 --tokens 64
    python benchmarks/generate.py --model tiny --repeats 1     # only to see that it runs

Both sides get the same model, prompts, number of samples at a time, temperature and length; nothing ends early, so both
write the same number of tokens. transformers is called as it documents for several samples of a prompt
(``num_return_sequences``). The sides alternate.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

HERE = Path(__file__).parent
sys.path[0] = str(HERE)  # this script's name is that of a verb, not of a library; its neighbours are needed

from versus.environment import build_tiny_model  # noqa: E402

from dipole.policy.embedded import embedded_model  # noqa: E402
from dipole.policy.generate import Sampling, sample  # noqa: E402
from dipole.policy.saved import SavedPolicy, load_policy  # noqa: E402


@dataclass(frozen=True, slots=True)
class Case:
    """So many prompts at a time, of so many tokens, with so many samples each, of so many tokens."""

    prompts: int
    prompt_tokens: int
    samples: int
    tokens: int

    @property
    def written(self) -> int:
        return self.prompts * self.samples * self.tokens


def random_prompts(case: Case, vocabulary: int) -> list[list[int]]:
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(3, min(vocabulary, 250), (case.prompts, case.prompt_tokens), generator=draw)
    prompts: list[list[int]] = ids.tolist()
    return prompts


def ours(saved: SavedPolicy, prompts: list[list[int]], case: Case) -> None:
    rows = [prompt for prompt in prompts for _ in range(case.samples)]
    drawn = sample(saved.policy, saved.tokenizer, rows, Sampling(max_new_tokens=case.tokens, batch_size=len(rows)))
    assert sum(len(item.ids) for item in drawn) == case.written


@torch.no_grad()
def theirs(model: Any, pad: int, prompts: list[list[int]], case: Case) -> None:
    ids = torch.tensor(prompts, device=model.device)
    settings = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        num_return_sequences=case.samples,
        max_new_tokens=case.tokens,
        pad_token_id=pad,
    )
    written = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=settings)
    assert written.shape == (case.prompts * case.samples, case.prompt_tokens + case.tokens)


def measured(work: Callable[[], None], device: torch.device) -> dict[str, float]:
    """Seconds by the clock, and of all threads on the processor."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}


def compare(folder: str, case: Case, repeats: int) -> list[dict[str, Any]]:
    """Both sides, one after the other, ``repeats`` times after one that doesn't count."""
    from transformers import AutoModelForCausalLM

    saved = load_policy(folder)
    saved.policy.transformer.generation_config.eos_token_id = None
    saved.tokenizer.eos_token = None
    dtype, device = saved.policy.transformer.dtype, saved.policy.device
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(device).eval()
    model.generation_config = GenerationConfig()
    prompts = random_prompts(case, model.config.vocab_size)
    sides: dict[str, Callable[[Case], None]] = {
        "dipole": lambda case: ours(saved, prompts, case),
        "transformers": lambda case: theirs(model, 0, prompts, case),
    }
    for side in sides.values():
        side(Case(case.prompts, case.prompt_tokens, case.samples, 2))
    rows = []
    for repeat in range(repeats):
        for name, side in sides.items():
            row = {"side": name, "repeat": repeat, **measured(lambda: side(case), device)}  # noqa: B023
            rows.append(row)
            print(f"{name:>13}: {case.written / row['seconds']:8.1f} tokens/s", flush=True)
    return rows


def summary(rows: list[dict[str, Any]], case: Case) -> dict[str, Any]:
    """Tokens a second, and how many times faster: medians over repeats, with the lowest and the highest."""
    result: dict[str, Any] = {}
    for clock in ("seconds", "cpu_seconds"):
        times = {side: [row[clock] for row in rows if row["side"] == side] for side in ("dipole", "transformers")}
        ratios = [theirs / ours for ours, theirs in zip(times["dipole"], times["transformers"], strict=True)]
        result[clock] = {side: case.written / statistics.median(values) for side, values in times.items()}
        result[clock]["times"] = [statistics.median(ratios), min(ratios), max(ratios)]
    return result


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default=None, help="a folder; SmolLM2-135M by default; 'tiny' for a random one")
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--prompt_tokens", type=int, default=200)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--output", type=Path, default=HERE / "results")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    case = Case(options.prompts, options.prompt_tokens, options.samples, options.tokens)
    options.output.mkdir(parents=True, exist_ok=True)
    folder = options.model or str(embedded_model())
    if options.model == "tiny":
        folder = str(build_tiny_model(options.output / "tiny"))
    rows = compare(folder, case, options.repeats)
    found = summary(rows, case)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    record = {"model": Path(folder).name, "device": device, "torch": torch.__version__, "case": asdict(case)}
    (options.output / "generate.json").write_text(
        json.dumps(record | {"summary": found, "rows": rows}, indent=1) + "\n"
    )
    text = as_table(record, found)
    (options.output / "generate.md").write_text(text, encoding="utf-8")
    print(text)


def as_table(record: dict[str, Any], found: dict[str, Any]) -> str:
    case = record["case"]
    lines = [
        f"{record['model']}, {record['device']}: {case['prompts']} prompts of {case['prompt_tokens']} tokens,"
        f" {case['samples']} samples of {case['tokens']} tokens each, all at a time.",
        "",
        "| by | Dipole, tokens/s | transformers, tokens/s | times faster: median (lowest–highest) |",
        "|---|---|---|---|",
    ]
    for clock, words in (("seconds", "the clock"), ("cpu_seconds", "CPU time")):
        row = found[clock]
        median, low, high = row["times"]
        lines.append(
            f"| {words} | {row['dipole']:,.0f} | {row['transformers']:,.0f} | {median:.2f} ({low:.2f}–{high:.2f}) |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
