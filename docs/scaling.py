"""Writes what is generated of docs/scaling.md, from the arithmetic behind ``dipole train --dry_run``.

The page's prose is written by hand. Between ``<!-- begin: NAME -->`` and ``<!-- end: NAME -->`` stands what the
function of that name in ``PARTS`` makes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from dipole.config import PeftConfig
from dipole.policy.adapters import add_adapter
from dipole.policy.load import count_parameters
from dipole.policy.size import Shape, shape_of
from dipole.train.plan import FOUR_BIT, NARROW, WIDE, Memory, Setup, memory

PAGE = Path(__file__).with_name("scaling.md")
SIZES: dict[str, dict[str, int | bool]] = {
    "1B": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "tie_word_embeddings": True},
    "8B": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "tie_word_embeddings": False},
    "70B": {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "tie_word_embeddings": False},
}
"""Llama 3's shapes; heads are of 128 units (64 in the smallest), and eight of them have keys and values."""
HEADS = {"1B": 32, "8B": 32, "70B": 64}
FULL = Setup(
    trained=0,
    adapter=False,
    weight_bytes=WIDE,
    narrow=True,
    optimizer="adamw_fused",
    reference="copy",
    tokens=4096,
    targets=3072,
    checkpointing=True,
)
"""A micro-batch of 4,096 tokens, three quarters of them of completions, layers that forget."""
GIB = 2**30


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, numbers to the right."""
    rule = ["---", *["--:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *rows))


@cache
def models() -> dict[str, tuple[Shape, int]]:
    """Shape of each size, and the parameters of an adapter of rank 16 on all of its products."""
    found = {}
    for name, numbers in SIZES.items():
        with torch.device("meta"):
            model = LlamaForCausalLM(
                LlamaConfig(vocab_size=128_256, num_attention_heads=HEADS[name], num_key_value_heads=8, **numbers)
            )
            shape = shape_of(model)
            adapted = add_adapter(model, PeftConfig(method="lora", rank=16), seed=0)
        found[name] = shape, count_parameters(adapted)[1]
    return found


def setups(shape: Shape, adapter: int) -> dict[str, Setup]:
    """All weights, an adapter, and an adapter on weights in 4 bits."""
    lora = replace(FULL, trained=adapter, adapter=True, weight_bytes=NARROW, reference="adapter_off")
    return {
        "all weights": replace(FULL, trained=shape.parameters),
        "all weights, cached reference": replace(FULL, trained=shape.parameters, reference="cached"),
        "LoRA": lora,
        "QLoRA": replace(lora, weight_bytes=FOUR_BIT),
    }


def gib(count: int) -> str:
    """``0.4`` or ``128``."""
    return f"{count / GIB:.1f}" if count < 10 * GIB else f"{count / GIB:,.0f}"


def one_gpu() -> str:
    """The parts of the memory of one process that has all weights."""

    def cells(found: Memory) -> list[str]:
        passing = found.activations + found.head + found.together
        return [gib(n) for n in (found.weights, found.gradients, found.optimizer, found.reference, passing)]

    head = ("GiB", "trained", "weights", "gradients", "optimizer", "reference", "a pass", "**together**")
    rows = []
    for name, (shape, adapter) in models().items():
        for method, setup in setups(shape, adapter).items():
            found = memory(shape, setup)
            rows.append((f"{name}, {method}", f"{setup.trained:,}", *cells(found), f"**{gib(found.total)}**"))
    return table(head, rows)


def several_gpus() -> str:
    """The memory of each process, with weights divided over so many."""
    counts = (2, 4, 8, 16, 64)
    rows = []
    for name, (shape, adapter) in models().items():
        for method, setup in setups(shape, adapter).items():
            if setup.weight_bytes != FOUR_BIT:
                each = [memory(shape, replace(setup, processes=count, sharded=True)).total for count in counts]
                rows.append((f"{name}, {method}", *map(gib, each)))
    return table(("GiB of each of", *map(str, counts)), rows)


def options() -> str:
    """What each option saves, of 8B on one GPU."""
    shape, adapter = models()["8B"]
    made = setups(shape, adapter)
    plain = {name: replace(made[name], checkpointing=False) for name in ("all weights", "LoRA")}
    changes: dict[str, dict[str, object]] = {
        "nothing": {},
        "`--gradient_checkpointing`": {"checkpointing": True},
        "`--activation_offloading`": {"offloading": True},
        "both": {"checkpointing": True, "offloading": True},
        "`--max_tokens_per_microbatch` halved": {"tokens": FULL.tokens // 2, "targets": FULL.targets // 2},
        "`--optimizer adamw`": {"optimizer": "adamw"},
        "`--optimizer adamw_8bit`": {"optimizer": "adamw_8bit"},
        "`--reference cached`": {"reference": "cached"},
    }
    rows = [
        (name, *(gib(memory(shape, replace(setup, **change)).total) for setup in plain.values()))
        for name, change in changes.items()
    ]
    return table(("8B with", *(f"{name}, GiB" for name in plain)), rows)


PARTS: dict[str, Callable[[], str]] = {"one": one_gpu, "several": several_gpus, "options": options}


def written(page: str) -> str:
    """The page with all of its generated parts made anew."""
    for name, make in PARTS.items():
        begin, end = f"<!-- begin: {name} -->", f"<!-- end: {name} -->"
        before, opened, rest = page.partition(begin)
        _, closed, after = rest.partition(end)
        if not (opened and closed):
            raise ValueError(f"{PAGE.name} has no place for '{name}'")
        page = f"{before}{begin}\n\n{make()}\n\n{end}{after}"
    return page


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
