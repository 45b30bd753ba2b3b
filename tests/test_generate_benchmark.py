"""The benchmark of sampling: both sides write what they should, and the ratio is theirs by ours."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "generate.py"


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    before = list(sys.path)
    spec = importlib.util.spec_from_file_location("benchmark_of_sampling", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        sys.path.insert(0, str(SCRIPT.parent))
        spec.loader.exec_module(module)
    finally:
        sys.path[:] = before
    return module


def test_both_sides_run_on_the_tiny_model(benchmark: ModuleType, tiny_folder: Path) -> None:
    case = benchmark.Case(prompts=2, prompt_tokens=20, samples=3, tokens=5)
    rows = benchmark.compare(str(tiny_folder), case, repeats=1)
    assert [row["side"] for row in rows] == ["dipole", "transformers"]
    assert all(row["seconds"] > 0 and row["cpu_seconds"] > 0 for row in rows)


def test_the_ratio_is_theirs_by_ours(benchmark: ModuleType) -> None:
    case = benchmark.Case(prompts=1, prompt_tokens=1, samples=2, tokens=5)
    rows = [
        {"side": side, "repeat": repeat, "seconds": seconds, "cpu_seconds": 2 * seconds}
        for repeat in range(3)
        for side, seconds in (("dipole", 1.0), ("transformers", 2.0 + repeat))
    ]
    found = benchmark.summary(rows, case)
    assert found["seconds"] == {"dipole": 10.0, "transformers": 10 / 3, "times": [3.0, 2.0, 4.0]}
    assert found["cpu_seconds"]["dipole"] == 5.0
    assert "3.00 (2.00–4.00)" in benchmark.as_table({"model": "m", "device": "d", "case": {
        "prompts": 1, "prompt_tokens": 1, "samples": 2, "tokens": 5}}, found)  # fmt: skip
