"""docs/scaling.md says what the plan's arithmetic says, and its launch files are ones that launch."""

from __future__ import annotations

import importlib
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from dipole.config import TrainConfig
from dipole.options import parse
from dipole.train.devices import REFUSED
from dipole.train.plan import memory
from dipole.train.shard import check_sharding

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
LAUNCH = ROOT / "examples" / "launch"
CONFIGS = sorted(path.name for path in LAUNCH.glob("*.yaml") if path.name != "accelerate.yaml")
SCRIPTS = sorted(path.name for path in LAUNCH.glob("*.sh"))


@pytest.fixture(scope="module")
def page() -> Iterator[ModuleType]:
    """The script that writes the page."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "docs")
        yield importlib.import_module("scaling")


def test_the_page_is_up_to_date(page: ModuleType) -> None:
    assert page.written(PAGE) == PAGE, "run `make docs`"


def test_the_shapes_are_those_of_llama_3(page: ModuleType) -> None:
    parameters = {name: shape.parameters for name, (shape, _) in page.models().items()}
    assert parameters == {"1B": 1_235_814_400, "8B": 8_030_261_248, "70B": 70_553_706_496}


def test_known_figures(page: ModuleType) -> None:
    shape, adapter = page.models()["8B"]
    setups = page.setups(shape, adapter)
    full, lora = memory(shape, setups["all weights"]), memory(shape, setups["LoRA"])
    assert full.weights + full.gradients + full.optimizer == 16 * shape.parameters
    assert adapter == 41_943_040  # rank 16 on all products of 32 layers
    assert lora.weights == 2 * shape.parameters + 4 * adapter


def read(name: str) -> TrainConfig:
    return parse(TrainConfig, ["--config", str(LAUNCH / name)], prog="dipole train", example="")


@pytest.mark.parametrize("name", CONFIGS)
def test_a_configuration_is_one_that_train_takes(name: str) -> None:
    config = read(name)
    processes = 8 if config.sharding == "fsdp" else 1
    check_sharding(config, processes)
    assert config.gradient_checkpointing


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_is_one_that_the_shell_takes_and_launches_train(name: str) -> None:
    path = LAUNCH / name
    text = path.read_text(encoding="utf-8")
    shell = text.splitlines()[0].removeprefix("#!")
    assert subprocess.run([shell, "-n", str(path)], check=False, capture_output=True).returncode == 0
    (command,) = (line for line in text.replace("\\\n", " ").splitlines() if "-m dipole train" in line)
    words = shlex.split(command)
    launcher = words[words.index("torchrun") + 1 : words.index("-m")]
    options = words[words.index("train") + 1 :]
    known = launcher_options()
    assert {word for word in launcher if word.startswith("--")} <= known
    file = options[options.index("--config") + 1]
    assert (ROOT / file).is_file()
    assert read(Path(file).name).resume
    parse(TrainConfig, [word.replace(file, str(ROOT / file)) for word in options], prog="dipole train", example="")


def launcher_options() -> set[str]:
    """What torchrun knows."""
    from torch.distributed.run import get_args_parser

    return {option.replace("-", "_").replace("__", "--", 1) for option in get_args_parser()._option_string_actions}


def test_accelerates_file_starts_processes_and_asks_for_nothing_that_is_refused() -> None:
    settings = yaml.safe_load((LAUNCH / "accelerate.yaml").read_text(encoding="utf-8"))
    assert settings["distributed_type"] == "MULTI_GPU"
    assert settings["num_processes"] == 8
    asked = {
        name for name in settings if name.endswith("_config") or name.startswith(("fsdp", "deepspeed", "megatron"))
    }
    assert not asked
    assert settings["mixed_precision"] == "no"
    assert len(REFUSED) == 4


def test_every_launch_file_is_on_the_page_and_names_its_command() -> None:
    linked = set(re.findall(r"\(\.\./examples/launch/([\w.]+)\)", PAGE))
    for path in LAUNCH.iterdir():
        text = path.read_text(encoding="utf-8")
        started_by_another = path.name in ("one_node.yaml", "many_nodes.yaml")
        assert path.name in linked or started_by_another
        assert "examples/launch/" in text


@pytest.mark.parametrize("option", sorted(set(re.findall(r"`?--([\w.]+)", PAGE))))
def test_options_on_the_page_exist(option: str) -> None:
    from dipole.options import option_types

    launchers = {"standalone", "nproc_per_node", "config_file"}
    assert option in option_types(TrainConfig) or option in launchers
