"""The head, attention and optimizer alone, beside plain ones: ``python benchmarks/head_and_attention.py --help``.

Every measurement is a process of its own, so that its peak memory is its own.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import platform
import random
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "versus"))

import torch
from measure import matrix_rate, now, peak_bytes, processor_seconds
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from dipole.data.batch import PackedBatch, pack
from dipole.data.tokenize import TokenizedGroup
from dipole.policy.attention import plan_attention
from dipole.policy.head import HeadInput, chunked_logprobs

HIDDEN, HEADS, SHARED_HEADS, HEAD_SIZE = 576, 9, 3, 64
VOCABULARIES = (32_768, 65_536, 131_072, 262_144)
TOKENS = (2_048, 8_192, 32_768, 65_536)
WEIGHTS = 32 * 1024 * HIDDEN * 2
PARTS = ("vocabularies", "attention", "tokens", "optimizer")


def fused_head(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    return chunked_logprobs(HeadInput(hidden, weight, None), target)[0]


def plain_head(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    return -nn.functional.cross_entropy(hidden @ weight.T, target, reduction="none")


HEAD_KINDS = {"fused": fused_head, "plain": plain_head}


def measure_head(
    kind: str, tokens: int, vocabulary: int, hidden: int, trained: bool, repeats: int, threads: int
) -> dict[str, float]:
    """Forward and backward of log-probabilities of ``tokens`` tokens."""
    torch.set_num_threads(threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    states = torch.randn(tokens, hidden, device=device, requires_grad=True)
    # Logits of a deviation of 1. Those of far wider ones are probabilities below the normal numbers, which are slow.
    weight = torch.randn(vocabulary, hidden, device=device).mul_(hidden**-0.5).requires_grad_(trained)
    target = torch.randint(0, vocabulary, (tokens,), device=device)
    return _time(lambda: HEAD_KINDS[kind](states, weight, target).sum().backward(), (states, weight), repeats, device)


def groups_of(tokens: int) -> list[TokenizedGroup]:
    """Groups of about ``tokens`` packed tokens: prompts of 40 to 400, each with four completions of 20 to 200."""
    draw = random.Random(0)
    groups: list[TokenizedGroup] = []
    while sum(group.num_tokens for group in groups) < tokens:
        prompt = tuple(draw.randrange(1000) for _ in range(draw.randint(40, 400)))
        answers = tuple((0,) * draw.randint(20, 200) for _ in range(4))
        groups.append(TokenizedGroup(id=str(len(groups)), prompt_ids=prompt, completion_ids=answers, relations=()))
    return groups


def planned_attention(batch: PackedBatch, device: str) -> Callable[..., Tensor]:
    """What the engine does; the plan is made once, as it is for all layers of a micro-batch."""
    plan = plan_attention(batch.to(device))
    return partial(plan.attend, scaling=HEAD_SIZE**-0.5, window=None, softcap=None)


def dense_attention(batch: PackedBatch, device: str) -> Callable[..., Tensor]:
    """One call with a mask of the whole row."""
    prompts = torch.arange(len(batch.prompt_length))
    length = torch.cat([batch.prompt_length, batch.completion_length])
    segment = torch.repeat_interleave(torch.arange(len(length)), length)
    context = torch.repeat_interleave(torch.cat([prompts, batch.prompt_of]), length)
    related = (segment == segment[:, None]) | (segment == context[:, None])
    mask = (related & (batch.position_ids[:, None] >= batch.position_ids)).to(device)
    return lambda q, k, v: scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)


ATTENTION_KINDS = {"planned": planned_attention, "dense mask": dense_attention}


def measure_attention(
    kind: str, tokens: int, repeats: int, threads: int, budget: int | None = None
) -> dict[str, float]:
    """Forward and backward of one layer's attention, over micro-batches of ``budget`` tokens (default: one)."""
    torch.set_num_threads(threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parts, part = [], 0
    for group in groups_of(tokens):
        if not parts or part + group.num_tokens > (budget or tokens):
            parts.append([])
            part = 0
        parts[-1].append(group)
        part += group.num_tokens
    batches = [pack(groups) for groups in parts]
    attend = [ATTENTION_KINDS[kind](batch, device) for batch in batches]
    inputs = [
        [
            torch.randn(1, heads, len(batch.input_ids), HEAD_SIZE, device=device, requires_grad=True)
            for heads in (HEADS, SHARED_HEADS, SHARED_HEADS)
        ]
        for batch in batches
    ]

    def run() -> None:
        for function, tensors in zip(attend, inputs, strict=True):
            function(*tensors).sum().backward()

    found = _time(run, [tensor for tensors in inputs for tensor in tensors], repeats, device)
    return found | {"tokens": float(sum(len(batch.input_ids) for batch in batches))}


OPTIMIZER_KINDS: dict[str, dict[str, bool]] = {"one kernel": {"fused": True}, "PyTorch's default": {}}


def measure_optimizer(kind: str, tokens: int, repeats: int, threads: int) -> dict[str, float]:
    """A step of AdamW over so many weights, in matrices of a small model's size."""
    torch.set_num_threads(threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    shape = (HIDDEN, tokens // HIDDEN // 32)
    weights = [torch.randn(shape, device=device, requires_grad=True) for _ in range(32)]
    gradients = [torch.randn_like(weight) for weight in weights]
    optimizer = torch.optim.AdamW(weights, lr=1e-6, **OPTIMIZER_KINDS[kind])

    def run() -> None:
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = gradient
        optimizer.step()

    return _time(run, weights, repeats, device)


def _time(run: Callable[[], None], leaves: Any, repeats: int, device: str) -> dict[str, float]:
    seconds, cpu_seconds = [], []
    for _ in range(repeats + 1):  # the first one only warms up
        began, cpu_began = now(), processor_seconds()
        run()
        seconds.append(now() - began)
        cpu_seconds.append(processor_seconds() - cpu_began)
        for leaf in leaves:
            leaf.grad = None
        gc.collect()
    return {
        "seconds": min(seconds[1:]),
        "cpu_seconds": min(cpu_seconds[1:]),
        "peak_gb": peak_bytes(device) / 1e9,
    }


def apart(function: Callable[..., dict[str, float]], **arguments: Any) -> dict[str, float]:
    """The result of a call in a process of its own."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, **arguments).result()


MEASURES: dict[str, Callable[..., dict[str, float]]] = {
    "head": measure_head,
    "attention": measure_attention,
    "AdamW": measure_optimizer,
}


def rows_of(options: argparse.Namespace) -> list[dict[str, Any]]:
    """All measurements, as rows of the table; each is printed when it is known."""
    shared = {"repeats": options.repeats, "threads": options.threads}
    rows: list[dict[str, Any]] = []

    def add(what: str, **arguments: Any) -> None:
        rows.append({"what": what} | arguments | apart(MEASURES[what], **arguments, **shared))
        print(_line(rows[-1]), flush=True)

    for vocabulary in VOCABULARIES[: options.sizes] if "vocabularies" in options.parts else ():
        for trained in (True, False):
            for kind in HEAD_KINDS:
                add("head", kind=kind, tokens=options.tokens, vocabulary=vocabulary, hidden=HIDDEN, trained=trained)
    for kind in ATTENTION_KINDS if "attention" in options.parts else ():
        add("attention", kind=kind, tokens=4096)
    for tokens in TOKENS[: options.sizes] if "tokens" in options.parts else ():
        add("head", kind="fused", tokens=tokens, vocabulary=VOCABULARIES[0], hidden=64, trained=True)
        add("attention", kind="planned", tokens=tokens, budget=4096)
    for kind in OPTIMIZER_KINDS if "optimizer" in options.parts else ():
        add("AdamW", kind=kind, tokens=WEIGHTS)
    return rows


def _line(row: dict[str, Any]) -> str:
    settings = ", ".join(f"{key} {row[key]}" for key in ("vocabulary", "hidden", "trained", "budget") if key in row)
    a_thousand = 1e6 * row["cpu_seconds"] / row["tokens"]
    return (
        f"| {row['what']} | {row['kind']} | {row['tokens']:.0f} | {settings} | {row['seconds']:.3f}"
        f" | {row['cpu_seconds']:.3f} | {a_thousand:.1f} | {row['peak_gb']:.2f} |"
    )


HEADER = "| what | kind | tokens or weights | settings | s | CPU s | CPU ms per 1,000 | peak GB |\n" + "|---" * 8 + "|"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=512, help="of the comparison over vocabularies (default: 512)")
    parser.add_argument("--sizes", type=int, default=4, help="how many of each row of sizes (default: all 4)")
    parser.add_argument("--repeats", type=int, default=3, help="the best one counts (default: 3)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch")
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=PARTS,
        default=PARTS,
        help="the head over vocabularies; attention beside a dense mask; both over tokens; AdamW (default: all)",
    )
    parser.add_argument("--output", type=Path, help="of the results (default: a new file in benchmarks/results)")
    options = parser.parse_args()
    began = datetime.now(UTC)
    rate = matrix_rate("cuda" if torch.cuda.is_available() else "cpu") / 1e9
    print(f"matrix rate: {rate:.0f} GFLOP/s\n\n{HEADER}", flush=True)
    rows = rows_of(options)
    path = options.output or Path(__file__).parent / "results" / f"head-and-attention-{began:%Y%m%d-%H%M}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = {
        "date": began.isoformat(timespec="seconds"),
        "command": " ".join(["python benchmarks/head_and_attention.py", *sys.argv[1:]]),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "torch": torch.__version__,
        "threads": options.threads,
        "matrix_gflops": rate,
    }
    path.write_text(json.dumps(facts | {"rows": rows}, indent=1) + "\n")
    path.with_suffix(".md").write_text("\n".join([HEADER, *map(_line, rows), "", str(facts), ""]))
    print(f"\n{path}")


if __name__ == "__main__":
    main()
