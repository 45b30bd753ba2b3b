"""``dipole merge``: one model with the same log-probabilities, or the reason why there is none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from conftest import build_tokenizer
from dipole.config import PeftConfig
from dipole.errors import ConfigError, TrainingFault
from dipole.policy.adapters import add_adapter, save_model
from dipole.policy.load import load_model
from dipole.policy.merge import merge_adapter

IDS = torch.randint(0, 260, (3, 20), generator=torch.Generator().manual_seed(5))
METHODS: dict[str, PeftConfig] = {
    "lora": PeftConfig(method="lora", rank=4),
    "dora": PeftConfig(method="dora", rank=4),
    "rslora": PeftConfig(method="rslora", rank=4),
    "ia3": PeftConfig(method="ia3"),
    "lora on a tied head": PeftConfig(method="lora", rank=4, targets="lm_head,v_proj"),
    "lora on tied embeddings": PeftConfig(method="lora", rank=4, targets="embed_tokens"),
}


@torch.no_grad()
def logps(model: Any) -> Tensor:
    return model(input_ids=IDS).logits.log_softmax(-1)  # type: ignore[no-any-return]


def trained(base: Path, config: PeftConfig, folder: Path) -> Tensor:
    """Saves an adapter of the model in ``base`` that has moved; returns its log-probabilities."""
    model = add_adapter(load_model(str(base)), config, seed=0)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    save_model(model, folder)
    return logps(model.eval())


@pytest.mark.parametrize("name", METHODS)
def test_the_merged_model_has_the_same_log_probabilities(name: str, tiny_folder: Path, tmp_path: Path) -> None:
    expected = trained(tiny_folder, METHODS[name], tmp_path / "adapter")
    merged = merge_adapter(str(tmp_path / "adapter"), str(tmp_path / "merged"))
    assert merged.difference < 1e-4
    assert (merged.model, merged.dtype) == (str(tiny_folder), "float32")
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logps(found), expected, rtol=0, atol=1e-4)
    before = logps(AutoModelForCausalLM.from_pretrained(tiny_folder))
    assert float((before - expected).abs().max()) > 0.1
    assert found.config.tie_word_embeddings == ("tied" not in name)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert tokenizer.chat_template == build_tokenizer().chat_template


@pytest.mark.parametrize("method", ["prefix_tuning", "prompt_tuning"])
def test_virtual_tokens_can_not_be_merged(method: Any, tiny_folder: Path, tmp_path: Path) -> None:
    trained(tiny_folder, PeftConfig(method=method, num_virtual_tokens=2), tmp_path / "adapter")
    with pytest.raises(ConfigError, match=f"{method} learns virtual tokens.*no weights can stand for"):
        merge_adapter(str(tmp_path / "adapter"), str(tmp_path / "merged"))
    assert not (tmp_path / "merged").exists()


def test_weights_are_written_as_the_model_has_them_or_as_asked_for(tiny_folder: Path, tmp_path: Path) -> None:
    narrow = load_model(str(tiny_folder), dtype=torch.bfloat16)
    narrow.save_pretrained(tmp_path / "narrow")
    build_tokenizer().save_pretrained(tmp_path / "narrow")
    trained(tmp_path / "narrow", METHODS["lora"], tmp_path / "adapter")
    for dtype, expected in (("auto", torch.bfloat16), ("float32", torch.float32)):
        merge_adapter(str(tmp_path / "adapter"), str(tmp_path / dtype), dtype=dtype)  # type: ignore[arg-type]
        weights = load_file(tmp_path / dtype / "model.safetensors")
        assert {tensor.dtype for tensor in weights.values()} == {expected}


def test_a_model_that_has_moved_can_be_named(tiny_folder: Path, tmp_path: Path) -> None:
    expected = trained(tiny_folder, METHODS["lora"], tmp_path / "adapter")
    settings = tmp_path / "adapter" / "adapter_config.json"
    settings.write_text(settings.read_text().replace(str(tiny_folder), str(tmp_path / "gone")))
    with pytest.raises(ConfigError, match="gone"):
        merge_adapter(str(tmp_path / "adapter"), str(tmp_path / "merged"))
    merge_adapter(str(tmp_path / "adapter"), str(tmp_path / "merged"), model=str(tiny_folder))
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logps(found), expected, rtol=0, atol=1e-4)


def test_weights_that_are_not_finite_are_not_written(tiny_folder: Path, tmp_path: Path) -> None:
    trained(tiny_folder, METHODS["lora"], tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    weights = load_file(file)
    save_file({name: tensor * torch.inf for name, tensor in weights.items()}, file, {"format": "pt"})
    with pytest.raises(TrainingFault):
        merge_adapter(str(tmp_path / "adapter"), str(tmp_path / "merged"))
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_the_command(tiny_folder: Path, tmp_path: Path, command: Callable[..., tuple[int, str, str]]) -> None:
    trained(tiny_folder, METHODS["ia3"], tmp_path / "run" / "final")
    status, out, _ = command("merge", tmp_path / "run", "--output", tmp_path / "models" / "merged")
    assert status == 0
    assert "Largest difference of a log-probability" in out
    assert f"Model: {tmp_path / 'models' / 'merged'} (float32)" in out
    status, _, err = command("merge", tmp_path / "run", "--output", tmp_path / "models" / "merged")
    assert status == 2
    assert "it is there already" in err
    status, _, err = command("merge", tiny_folder, "--output", tmp_path / "other")
    assert status == 2
    assert "there is no adapter" in err
