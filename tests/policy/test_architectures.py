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
from dipole.policy.attention import plan_attention, planned_mask, shared_prompt_attention
from dipole.policy.load import load_model, position_limit
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
CAPPED = {"attn_logit_softcapping": 0.5, "final_logit_softcapping": None}
EXPERTS = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2}
OPT = {"vocab_size": 64, "hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
OPT |= {"max_position_embeddings": 128, "word_embed_proj_dim": 32, "init_std": 0.2}

RIGHT: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2Config", GPT2),
    "llama": ("LlamaConfig", SHAPE),
    "qwen3": ("Qwen3Config", SHAPE | {"head_dim": 8}),
    "gemma": ("GemmaConfig", SHAPE | {"head_dim": 8}),
    "gemma 2 with windows and soft-capped scores": ("Gemma2Config", SHAPE | {"head_dim": 8} | ALTERNATING | CAPPED),
    "mistral with a window": ("MistralConfig", SHAPE | {"sliding_window": WINDOW}),
    "phi 3 with a window": ("Phi3Config", SHAPE | {"sliding_window": WINDOW}),
    "gemma 2 with soft-capped logits": (
        "Gemma2Config",
        SHAPE | {"head_dim": 8} | ALTERNATING | CAPPED | {"final_logit_softcapping": 2.0},
    ),
    "gemma 3 with windows": ("Gemma3TextConfig", SHAPE | {"head_dim": 8} | ALTERNATING),
    "qwen 2 with windows": ("Qwen2Config", SHAPE | ALTERNATING | {"use_sliding_window": True}),
    "opt with functional dropout": ("OPTConfig", OPT | {"dropout": 0.1}),
    "starcoder 2 with functional dropout": ("Starcoder2Config", SHAPE | {"residual_dropout": 0.1}),
    "granite scales its logits": ("GraniteConfig", SHAPE | {"logits_scaling": 4.0, "attention_multiplier": 0.3}),
    "mixtral, a mixture of experts": ("MixtralConfig", SHAPE | EXPERTS),
    "qwen 3, a mixture of experts": ("Qwen3MoeConfig", SHAPE | {"head_dim": 8, "moe_intermediate_size": 16} | EXPERTS),
    "cohere scales its logits": ("CohereConfig", SHAPE | {"logit_scale": 0.25}),
}
REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "convolutions": ("Lfm2Config", SHAPE | {"layer_types": ["conv", "full_attention"]}),
    "attention in chunks": ("Llama4TextConfig", SHAPE | {"head_dim": 8, "num_local_experts": 2}),
    "no attention interface": (
        "FalconConfig",
        {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
    ),
    "no attention at all": ("MambaConfig", {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2}),
    "positions by distance": ("BloomConfig", {"vocab_size": 64, "hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "attention sinks": ("GptOssConfig", SHAPE | {"head_dim": 8} | EXPERTS),
}


def policy_of(name: str, settings: dict[str, Any]) -> Policy:
    torch.manual_seed(0)
    config: PretrainedConfig = getattr(transformers, name)(**settings)
    model = AutoModelForCausalLM.from_config(config, experts_implementation="eager")  # has float64
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
        assert float((narrow(BATCH).logps - wide(BATCH).logps).abs().max()) > 1e-2


@pytest.mark.parametrize("name", REFUSED)
def test_the_engine_refuses(name: str) -> None:
    kind, settings = REFUSED[name]
    with pytest.raises(ConfigError, match=kind.removesuffix("TextConfig").removesuffix("Config")):
        check_engine(policy_of(kind, settings), BATCH, tolerance=1e-3)


@pytest.mark.parametrize("name", RIGHT)
def test_gradients_are_right(name: str) -> None:
    policy = policy_of(*RIGHT[name])
    parameters = dict(policy.named_parameters())
    fast = torch.autograd.grad(policy(BATCH).logps.sin().sum(), parameters.values(), allow_unused=True)
    slow = torch.autograd.grad(plain_logprobs(policy, BATCH).sin().sum(), parameters.values(), allow_unused=True)
    largest = max(float(gradient.abs().max()) for gradient in slow if gradient is not None)
    for label, left, right in zip(parameters, fast, slow, strict=True):
        assert (left is None) == (right is None), label
        if left is not None and right is not None:
            assert float((left - right).abs().max()) < 1e-5 * largest, label


@pytest.mark.parametrize("cap", ["attn_logit_softcapping", "final_logit_softcapping"])
def test_the_soft_cap_matters_in_these_tests(cap: str) -> None:
    kind, settings = RIGHT["gemma 2 with soft-capped logits"]
    tight = policy_of(kind, settings)
    loose = policy_of(kind, settings | {cap: 1e6})
    with torch.no_grad():
        assert float((tight(BATCH).logps - loose(BATCH).logps).abs().max()) > 1e-3


def test_a_model_without_the_interface_is_refused_by_name() -> None:
    config = transformers.BloomConfig(vocab_size=64, hidden_size=32, n_layer=2, n_head=4)
    with pytest.raises(ConfigError, match="BloomForCausalLM doesn't attend through"):
        Policy(AutoModelForCausalLM.from_config(config))


LONGROPE = SHAPE | {
    "original_max_position_embeddings": 32,
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "short_factor": [1.0] * 4,
        "long_factor": [4.0] * 4,
        "original_max_position_embeddings": 32,
    },
}


def test_positions_that_depend_on_the_length_are_right_up_to_where_they_change() -> None:
    """Phi-3's angles are others for all tokens of a sequence beyond 32; a row of short and long ones has one set."""
    policy = policy_of("Phi3Config", LONGROPE)
    assert position_limit(policy.transformer.config)[0] == 32
    check_engine(policy, pack(build_groups((5, [4]), (20, [12, 3]))), tolerance=1e-5)
    with pytest.raises(ConfigError, match="doesn't compute Phi3ForCausalLM correctly"):
        check_engine(policy, pack(build_groups((5, [4]), (20, [14, 3]))), tolerance=1e-3)


@pytest.mark.parametrize(("name", "limit"), [("LlamaConfig", 128), ("Gemma3TextConfig", 128)])
def test_other_models_take_all_their_positions(name: str, limit: int) -> None:
    assert position_limit(getattr(transformers, name)(**SHAPE)) == (limit, "")


def test_a_model_that_plain_attention_calls_cannot_compute_is_loaded(tmp_path: Any) -> None:
    """Gemma 2 has soft-capped scores, which SDPA has not."""
    kind, settings = RIGHT["gemma 2 with windows and soft-capped scores"]
    policy_of(kind, settings).model.save_pretrained(tmp_path)  # type: ignore[operator]
    check_engine(Policy(load_model(str(tmp_path))), BATCH, tolerance=1e-4)


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


def test_attention_that_the_engine_cannot_compute_is_refused_by_name() -> None:
    query = torch.zeros(1, 1, len(BATCH.input_ids), 4)
    with pytest.raises(ConfigError, match="s_aux"):
        shared_prompt_attention(
            build_exact_model(), query, query, query, None, plan=plan_attention(BATCH), s_aux=torch.zeros(1)
        )
    with pytest.raises(ConfigError, match="plan"):
        shared_prompt_attention(build_exact_model(), query, query, query, planned_mask(query.device))


@pytest.mark.parametrize("architecture", RIGHT)
def test_an_ordinary_forward_pass_stays_what_it_was(architecture: str) -> None:
    """Constraints and callers use the model themselves, padded rows and all."""
    ids = torch.randint(3, 60, (2, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    policy = policy_of(*RIGHT[architecture])
    model = policy.transformer
    with torch.no_grad():
        found = model(input_ids=ids, attention_mask=mask).logits[mask.bool()]
        model.set_attn_implementation("eager")
        expected = model(input_ids=ids, attention_mask=mask).logits[mask.bool()]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)  # many norms go to float32 inside
