"""Holds the table of docs/architecture.md: who may import whom, how large things may be, what a module may not do."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src"
MODULES = {
    ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((SOURCE / "dipole").rglob("*.py"))
}

GROUND = ("errors", "progress", "config", "group")
"""Level 0, one room of four modules."""
DATA_FOR_POLICY = ("data.batch", "data.tokenize")

MAY_IMPORT: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(GROUND, GROUND),
    "data": GROUND,
    "objective": GROUND,
    "policy": (*GROUND, *DATA_FOR_POLICY),
    "auditing": (*GROUND, "data", "policy"),
    "generating": (*GROUND, "data", "policy"),
    "train": (*GROUND, "data", "objective", "policy"),
    "feedback": (*GROUND, "data", "policy"),
    "evaluate": (*GROUND, "data", "objective", "policy", "feedback"),
    **dict.fromkeys(
        ("demo", "api", "contest", "iterate", "sweep"),
        (*GROUND, "data", "objective", "policy", "auditing", "generating", "train", "feedback", "evaluate"),
    ),
}
"""Rooms below the command line, and what each may import beside itself."""
TOP = ("__init__", "__main__", "cli", "verbs", "options", "terminal")
"""May import everything; ``cli``, ``verbs`` and ``__init__`` only when it is needed."""

THIRD_PARTY: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(GROUND, ("yaml",)),
    "data": ("PIL", "datasets", "datasketch", "numpy", "pyarrow", "scipy", "sklearn", "tokenizers"),
    "data.batch": ("numpy", "torch"),
    "data.template_worker": ("transformers",),
    "objective": ("torch",),
    "policy": ("peft", "safetensors", "torch", "transformers"),
    "policy.locate": ("huggingface_hub",),
    "train": ("accelerate", "safetensors", "torch", "transformers", "yaml"),
    "evaluate": ("jinja2", "markupsafe", "matplotlib", "numpy", "scipy", "yaml"),
    "feedback": (
        "PIL",
        "httpx2",
        "jinja2",
        "markdown_it",
        "markupsafe",
        "numpy",
        "scipy",
        "sklearn",
        "sqlalchemy",
        "starlette",
        "torch",
        "transformers",
        "uvicorn",
        "vaderSentiment",
        "yaml",
    ),
    "demo": ("numpy", "vaderSentiment"),
    "api": (),
    "auditing": ("torch",),
    "generating": (),
    "contest": (),
    "iterate": ("markupsafe", "yaml"),
    "sweep": ("numpy", "torch", "transformers", "vaderSentiment", "yaml"),
    "__init__": (),
    "__main__": (),
    "cli": (),
    "verbs": (),
    "options": ("docstring_parser", "jsonargparse", "yaml"),
    "terminal": ("rich",),
}

LARGE = {"dipole.objective.losses": 700}
WITHOUT_A_HOME = {"utils", "util", "common", "helpers", "helper", "misc"}


def tree(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


def imported(module: str) -> Iterator[tuple[str, int]]:
    """Full names of what a module imports anywhere in it, with the line; names that are modules count as such."""
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno}: imports are absolute"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield (full if full in MODULES else str(node.module)), node.lineno


def place(module: str) -> str:
    """The module's name within the package: ``data.batch``; ``__init__`` for the package itself."""
    return module.removeprefix("dipole").removeprefix(".") or "__init__"


def lies_in(name: str, room: str) -> bool:
    return name == room or name.startswith(f"{room}.")


def forbidden(module: str, target: str) -> bool:
    """Whether ``module`` may not import ``target``, both within the package."""
    room, name = place(module).partition(".")[0], place(target)
    if room in TOP:
        return False
    return not any(lies_in(name, allowed) for allowed in (room, "__init__", *MAY_IMPORT[room]))


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_what_lies_below_it(module: str) -> None:
    wrong = [
        f"{MODULES[module]}:{line}: {target}"
        for target, line in imported(module)
        if target.partition(".")[0] == "dipole" and forbidden(module, target)
    ]
    assert not wrong


@pytest.mark.parametrize(
    ("module", "target"),
    [
        ("dipole.data.reduce", "dipole.objective.losses"),
        ("dipole.objective.losses", "dipole.data.reduce"),
        ("dipole.policy.logprobs", "dipole.data.reduce"),
        ("dipole.policy.load", "dipole.train.optim"),
        ("dipole.train.run", "dipole.evaluate.report"),
        ("dipole.evaluate.report", "dipole.train.run"),
        ("dipole.api", "dipole.demo"),
        ("dipole.api", "dipole.terminal"),
        ("dipole.config", "dipole.data"),
    ],
)
def test_the_table_forbids(module: str, target: str) -> None:
    assert forbidden(module, target)


@pytest.mark.parametrize("module", MODULES)
def test_a_room_uses_its_own_libraries(module: str) -> None:
    name = place(module)
    allowed = THIRD_PARTY[name] if name in THIRD_PARTY else THIRD_PARTY[name.partition(".")[0]]
    wrong = [
        f"{MODULES[module]}:{line}: {target}"
        for target, line in imported(module)
        if (top := target.partition(".")[0]) != "dipole" and top not in sys.stdlib_module_names and top not in allowed
    ]
    assert not wrong


@pytest.mark.parametrize(
    "module", ["dipole", *(name for name in MODULES if place(name).partition(".")[0] in ("cli", "verbs"))]
)
def test_the_entrance_imports_the_rest_only_when_it_is_used(module: str) -> None:
    at_once = {
        name
        for node in tree(module).body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
        if name and name.startswith("dipole.")
    }
    light = {"dipole.errors", "dipole.config", "dipole.group", "dipole.progress", "dipole.iterate.settings"}
    light |= {name for name in MODULES if place(name).partition(".")[0] == "verbs"}
    assert at_once <= light | {"dipole.train"}, "dipole.train is empty"


@pytest.mark.parametrize("module", MODULES)
def test_sizes(module: str) -> None:
    lines = MODULES[module].read_text(encoding="utf-8").count("\n")
    assert lines <= LARGE.get(module, 400)
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno + 1 <= 80, f"{MODULES[module]}:{node.lineno}: {node.name}"


@pytest.mark.parametrize("module", MODULES)
def test_a_module_is_named_after_what_it_is_for(module: str) -> None:
    assert not WITHOUT_A_HOME & set(module.split("."))


@pytest.mark.parametrize("module", [name for name in MODULES if place(name) not in ("cli", "terminal")])
def test_the_library_prints_nothing(module: str) -> None:
    for node in ast.walk(tree(module)):
        name = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
        assert name not in ("print", "sys.stdout.write", "sys.stderr.write"), f"{MODULES[module]}:{node.lineno}"


IMPORT_EVERYTHING = """
import importlib, logging, os, random, signal, sys, warnings
import accelerate, datasets, jsonargparse, matplotlib, numpy, peft, scipy.special, torch, transformers
import rich.progress, rich.table

def state():
    return {
        "dtype": torch.get_default_dtype(),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "tf32": (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32,
                 torch.get_float32_matmul_precision()),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "gradients": torch.is_grad_enabled(),
        "random": (random.getstate(), torch.random.get_rng_state().tolist(), repr(numpy.random.get_state())),
        "logging": (logging.root.level, len(logging.root.handlers), transformers.logging.get_verbosity()),
        "warnings": list(warnings.filters),
        "signals": (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)),
        "environment": dict(os.environ),
        "backend": matplotlib.get_backend(auto_select=False),
        "paths": list(sys.path),
    }

before = state()
for name in sys.argv[1:]:
    importlib.import_module(name)
after = state()
changed = [key for key in before if before[key] != after[key]]
assert not changed, changed
"""


def test_importing_everything_changes_nothing_and_says_nothing() -> None:
    names = [name for name in MODULES if name != "dipole.__main__"]
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_EVERYTHING, *names], capture_output=True, text=True, timeout=300, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


TORCH_FREE = """
import sys
import dipole, dipole.cli, dipole.api
from dipole import load_groups, save_groups, audit
heavy = {"torch", "transformers", "peft", "accelerate", "datasets", "scipy", "jsonargparse"} & set(sys.modules)
assert not heavy, heavy
"""


def test_what_needs_no_model_needs_no_torch() -> None:
    done = subprocess.run([sys.executable, "-c", TORCH_FREE], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
