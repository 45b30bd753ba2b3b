"""Architectures: each is computed right, or refused by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, PretrainedConfig

from conftest import build_exact_model, build_groups
from dipole.data.batch import pack
from dipole.errors import ConfigError
from dipole.policy.load import load_model
from dipole.policy.logprobs import Policy, check_engine, plain_logprobs

GROUPS = build_groups((5, [4, 1, 9]), (12, [3, 8]), (1, [2, 2]))
BATCH = pack(GROUPS)
WINDOW = 6  # shorter than every probe of more than a few tokens

SHAPE: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT2 = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "initializer_range": 0.2}
GPT2 |= {"bos_token_id": 1, "eos_token_id": 2}
ALTERNATING = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
OPT = {"vocab_size": 64, "hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
OPT |= {"max_position_embeddings": 128, "word_embed_proj_dim": 32, "init_std": 0.2}

RIGHT: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2Config", GPT2),
    "llama": ("LlamaConfig", SHAPE),
    "qwen3": ("Qwen3Config", SHAPE | {"head_dim": 8}),
    "gemma": ("GemmaConfig", SHAPE | {"head_dim": 8}),
    "mistral with a window": ("MistralConfig", SHAPE | {"sliding_window": WINDOW}),
    "phi 3 with a window": ("Phi3Config", SHAPE | {"sliding_window": WINDOW}),
    "gemma 3 with windows": ("Gemma3TextConfig", SHAPE | {"head_dim": 8} | ALTERNATING),
    "qwen 2 with windows": ("Qwen2Config", SHAPE | ALTERNATING | {"use_sliding_window": True}),
    "opt with functional dropout": ("OPTConfig", OPT | {"dropout": 0.1}),
    "starcoder 2 with functional dropout": ("Starcoder2Config", SHAPE | {"residual_dropout": 0.1}),
    "granite scales its logits": ("GraniteConfig", SHAPE | {"logits_scaling": 4.0, "attention_multiplier": 0.3}),
    "cohere scales its logits": ("CohereConfig", SHAPE | {"logit_scale": 0.25}),
}
REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "convolutions": ("Lfm2Config", SHAPE | {"layer_types": ["conv", "full_attention"]}),
    "attention in chunks": ("Llama4TextConfig", SHAPE | {"head_dim": 8, "num_local_experts": 2}),
    "no attention interface": (
        "FalconConfig",
        {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
    ),
    "capped logits": ("Gemma3TextConfig", SHAPE | {"head_dim": 8, "final_logit_softcapping": 2.0}),
}


def policy_of(name: str, settings: dict[str, Any]) -> Policy:
    torch.manual_seed(0)
    config: PretrainedConfig = getattr(transformers, name)(**settings)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    return Policy(model.double().eval())


@pytest.mark.parametrize("name", RIGHT)
def test_the_engine_computes(name: str) -> None:
    # Many norms go to float32 inside, whatever the weights are.
    check_engine(policy_of(*RIGHT[name]), BATCH, tolerance=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "opt with functional dropout"])
def test_where_all_is_float64_the_engine_is_exact(name: str) -> None:
    check_engine(policy_of(*RIGHT[name]), BATCH, tolerance=1e-10)


@pytest.mark.parametrize("name", [name for name in RIGHT if "window" in name])
def test_the_window_matters_in_these_tests(name: str) -> None:
    kind, settings = RIGHT[name]
    narrow = policy_of(kind, settings)
    wide = policy_of(kind, settings | {"sliding_window": 100})
    with torch.no_grad():
        assert float((narrow(BATCH) - wide(BATCH)).abs().max()) > 1e-2


@pytest.mark.parametrize("name", REFUSED)
def test_the_engine_refuses(name: str) -> None:
    kind, settings = REFUSED[name]
    with pytest.raises(ConfigError, match=kind.removesuffix("TextConfig").removesuffix("Config")):
        check_engine(policy_of(kind, settings), BATCH, tolerance=1e-3)


def test_windows_get_their_gradients_right() -> None:
    policy = policy_of(*RIGHT["mistral with a window"])
    parameters = list(policy.parameters())
    fast = torch.autograd.grad(policy(BATCH).logps.sin().sum(), parameters)
    slow = torch.autograd.grad(plain_logprobs(policy, BATCH).sin().sum(), parameters)
    largest = max(float(gradient.abs().max()) for gradient in slow)
    for left, right in zip(fast, slow, strict=True):
        assert float((left - right).abs().max()) < 1e-6 * largest


def test_a_model_without_the_interface_is_refused_when_it_is_loaded(tmp_path: Any) -> None:
    settings = SHAPE | {"head_dim": 8}
    config = transformers.Gemma2Config(**settings)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="Gemma2ForCausalLM") as caught:
        load_model(str(tmp_path))
    assert "config.json" not in str(caught.value.remedy)


def test_positions_of_the_row_are_those_of_the_sequences() -> None:
    """GPT-2 embeds absolute positions: a row's own numbering would give something else."""
    policy = policy_of(*RIGHT["gpt2"])
    batch = pack(GROUPS)
    moved = type(batch)(
        **{name: getattr(batch, name) for name in batch.__dataclass_fields__}
        | {"position_ids": torch.arange(len(batch.input_ids))}
    )
    with torch.no_grad():
        assert float((policy(batch).logps - policy(moved).logps).abs().max()) > 1e-2


def test_soft_limits_of_attention_are_refused_by_name() -> None:
    from dipole.policy.attention import plan_attention, shared_prompt_attention

    query = torch.zeros(1, 1, len(BATCH.input_ids), 4)
    plan = plan_attention(BATCH)
    with pytest.raises(ConfigError, match="softcap"):
        shared_prompt_attention(build_exact_model(), query, query, query, None, plan=plan, softcap=50.0)
    with pytest.raises(ConfigError, match="plan"):
        shared_prompt_attention(build_exact_model(), query, query, query, None)
