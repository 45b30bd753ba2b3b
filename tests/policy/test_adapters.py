"""Every adapter: the engine computes what PEFT does, and training starts where it should."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, PhiForCausalLM, PreTrainedModel

from conftest import build_exact_model, build_groups, build_model
from dipole.config import PeftConfig
from dipole.data.batch import PackedBatch, pack
from dipole.errors import ConfigError
from dipole.policy.adapters import add_adapter, save_model, settled
from dipole.policy.load import count_parameters
from dipole.policy.logprobs import Policy, check_engine
from dipole.policy.reference import AdapterOff, FrozenCopy, StartAdapter, make_reference, starts_equal
from dipole.policy.virtual import virtual_tokens

BATCH = pack(build_groups((5, [4, 1, 9]), (12, [3, 8]), (1, [2, 2])))

WEIGHTS: dict[str, PeftConfig] = {
    "lora": PeftConfig(method="lora", rank=4),
    "dora": PeftConfig(method="dora", rank=4),
    "rslora": PeftConfig(method="rslora", rank=4),
    "ia3": PeftConfig(method="ia3"),
    "ia3, chosen modules": PeftConfig(method="ia3", targets="q_proj,fc1,fc2", feedforward="fc2"),
    "lora on the head": PeftConfig(method="lora", rank=4, targets="q_proj,lm_head"),
    "rslora on the head": PeftConfig(method="rslora", rank=4, targets="lm_head"),
    "lora on the embeddings": PeftConfig(method="lora", rank=4, targets="embed_tokens,v_proj"),
}
VIRTUAL: dict[str, PeftConfig] = {
    "prefix_tuning": PeftConfig(method="prefix_tuning", num_virtual_tokens=3),
    "prefix_tuning with projection": PeftConfig(method="prefix_tuning", num_virtual_tokens=3, prefix_projection=True),
    "prompt_tuning": PeftConfig(method="prompt_tuning", num_virtual_tokens=3),
}
ALL = WEIGHTS | VIRTUAL


def adapted(config: PeftConfig, model: PreTrainedModel | None = None, *, move: float = 0.1) -> Policy:
    """A policy in float64, whose adapter has already moved from where it began."""
    policy = Policy(add_adapter(model or build_exact_model(), config, seed=0)).double().eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.add_(move * torch.randn_like(parameter))
    return policy


def by_peft(model: Any, batch: PackedBatch) -> Tensor:
    """(T,) by PEFT's own forward pass: one completion at a time, all logits, ordinary attention."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    capped = getattr(base.config, "attn_logit_softcapping", None)  # which sdpa leaves out
    base.set_attn_implementation("eager" if capped else "sdpa")  # eager computes softmax in float32
    found = []
    for prompt, completion in batch.sequences:
        ids = torch.tensor([[*prompt, *completion]])
        logps = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0].log_softmax(-1)
        found.append(logps[-len(completion) - 1 : -1].gather(1, ids[0, -len(completion) :, None]).squeeze(1))
    base.set_attn_implementation("dipole")
    return torch.cat(found)


def gradients(policy: Policy, values: Tensor) -> dict[str, Tensor]:
    trained = {name: parameter for name, parameter in policy.named_parameters() if parameter.requires_grad}
    return dict(zip(trained, torch.autograd.grad(values.sin().sum(), trained.values()), strict=True))


def assert_equal(left: dict[str, Tensor], right: dict[str, Tensor], tolerance: float) -> None:
    largest = max(float(value.abs().max()) for value in right.values())
    assert largest > 1e-3
    for name, value in right.items():
        assert float((left[name] - value).abs().max()) < tolerance * largest, name


# The engine


@pytest.mark.parametrize("name", ALL)
def test_log_probabilities_and_gradients_are_those_of_peft(name: str) -> None:
    policy = adapted(ALL[name])
    found, expected = policy(BATCH).logps, by_peft(policy.model, BATCH)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    assert_equal(gradients(policy, found), gradients(policy, expected), 1e-9)
    with torch.no_grad(), policy.model.disable_adapter():  # type: ignore[operator]
        assert float((policy(BATCH).logps - expected).abs().max()) > 1e-3, "the adapter does something"


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
WINDOWED = {"sliding_window": 7, "layer_types": ["sliding_attention", "full_attention"]}
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", SHAPE | {"tie_word_embeddings": True}),
    "gpt2, whose positions are embedded": ("GPT2Config", GPT2),
    "mistral with a window": ("MistralConfig", SHAPE | {"sliding_window": 7}),
    "qwen 3": ("Qwen3Config", SHAPE | {"head_dim": 8}),
    "gemma, which scales its embeddings": ("GemmaConfig", SHAPE | {"head_dim": 8}),
    "gemma 2 with windows and caps": (
        "Gemma2Config",
        SHAPE | {"head_dim": 8, "attn_logit_softcapping": 0.5, "final_logit_softcapping": 2.0} | WINDOWED,
    ),
    "gemma 3 with windows": ("Gemma3TextConfig", SHAPE | {"head_dim": 8} | WINDOWED),
}


def architecture(name: str) -> PreTrainedModel:
    kind, settings = ARCHITECTURES[name]
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(getattr(transformers, kind)(**settings)).double().eval()
    return model


@pytest.mark.parametrize("method", ["prefix_tuning", "prompt_tuning"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_virtual_tokens_are_right_for_an_architecture(name: str, method: str) -> None:
    policy = adapted(VIRTUAL[method], architecture(name))
    found, expected = policy(BATCH).logps, by_peft(policy.model, BATCH)
    # Many norms go to float32 inside, whatever the weights are.
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert_equal(gradients(policy, found), gradients(policy, expected), 1e-5)
    check_engine(policy, BATCH, tolerance=1e-5)


def test_a_prefix_that_a_window_would_cut_is_refused_by_name() -> None:
    policy = adapted(PeftConfig(method="prefix_tuning", num_virtual_tokens=7), architecture("gemma 3 with windows"))
    with pytest.raises(ConfigError, match="Gemma3ForCausalLM take a prefix of 7 virtual tokens"):
        policy(BATCH)


def test_another_kind_of_virtual_tokens_is_refused_by_name() -> None:
    from peft import MultitaskPromptTuningConfig, get_peft_model

    config = MultitaskPromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2, num_tasks=2)
    policy = Policy(get_peft_model(build_exact_model(), config))
    with pytest.raises(ConfigError, match="MULTITASK_PROMPT_TUNING"):
        policy(BATCH)


@pytest.mark.parametrize("name", VIRTUAL)
def test_gradient_checkpointing_changes_nothing(name: str) -> None:
    from dipole.policy.memory import checkpoint_layers

    found = []
    for forgetful in (False, True):
        policy = adapted(VIRTUAL[name])
        if forgetful:
            checkpoint_layers(policy.transformer)
        found.append(gradients(policy, policy(BATCH).logps))
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[0])


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("targets", ["lm_head", "embed_tokens,lm_head"])
def test_an_adapter_on_a_tied_head_leaves_the_embeddings_alone(tied: bool, targets: str) -> None:
    model = build_model(64).double()
    if not tied:
        model.config.tie_word_embeddings = False
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach() + 0.1)
    policy = adapted(PeftConfig(method="lora", rank=2, targets=targets), model)
    found, expected = policy(BATCH).logps, by_peft(policy.model, BATCH)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)  # Llama's norms go to float32 inside
    assert_equal(gradients(policy, found), gradients(policy, expected), 1e-5)


@pytest.mark.parametrize("config", [("dora", "q_proj,lm_head"), ("ia3", "lm_head,q_proj")])
def test_what_the_engine_would_not_see_of_a_head_is_refused_by_name(config: tuple[str, str]) -> None:
    method, targets = config
    feedforward = "" if method == "ia3" else None
    with pytest.raises(ConfigError, match="language-model head the engine computes lora and rslora alone"):
        add_adapter(
            build_model(64),
            PeftConfig(method=method, targets=targets, feedforward=feedforward),
            seed=0,  # type: ignore[arg-type]
        )


def test_a_head_s_adapter_is_not_rounded_to_a_narrow_head() -> None:
    """An update far below bfloat16's spacing still counts."""
    policy = Policy(
        add_adapter(build_model(64).bfloat16(), PeftConfig(method="lora", rank=1, targets="lm_head"), seed=0)
    )
    before = policy.head_of(torch.zeros(1, 32)).weight.detach()
    with torch.no_grad():
        policy.get_parameter("model.base_model.model.lm_head.lora_B.default.weight").fill_(1e-6)
    after = policy.head_of(torch.zeros(1, 32)).weight.detach()
    assert after.dtype == torch.float32
    assert float((after - before).abs().max()) > 0
    policy(BATCH).logps.sum().backward()


# Where training starts


@pytest.mark.parametrize("name", ALL)
def test_fresh_adapters_start_as_the_model_itself_and_virtual_tokens_do_not(name: str) -> None:
    policy = adapted(ALL[name], move=0)
    reference = make_reference("auto", policy, needed=True)
    assert isinstance(reference, AdapterOff)
    original = Policy(build_exact_model())
    with torch.no_grad():
        ours, theirs, base = policy(BATCH).logps, reference.token_logps(BATCH), original(BATCH).logps
    assert torch.equal(theirs, base)
    gap = float((ours - theirs).abs().max())
    assert starts_equal(policy, reference) == (name in WEIGHTS)
    # DoRA's magnitudes are the weights' own, kept in float32.
    assert gap < (1e-6 if name == "dora" else 1e-12) if name in WEIGHTS else gap > 1e-3
    copied = make_reference("copy", policy, needed=True)
    assert isinstance(copied, FrozenCopy)
    assert starts_equal(policy, copied)
    assert torch.equal(copied.token_logps(BATCH), ours)


def test_a_prefix_starts_close_to_none_and_no_two_of_its_tokens_alike() -> None:
    policy = adapted(PeftConfig(method="prefix_tuning"), move=0)
    with torch.no_grad():
        virtual = virtual_tokens(policy.model)
    assert virtual is not None
    assert virtual.count == 20
    assert all(float(tensor.abs().max()) < 0.2 for layer in virtual.past for tensor in layer)
    assert len(torch.unique(virtual.past[0][0][0, 0], dim=0)) == 20


def test_virtual_tokens_of_prompt_tuning_start_as_words() -> None:
    policy = adapted(PeftConfig(method="prompt_tuning", num_virtual_tokens=4), move=0)
    words = policy.transformer.get_input_embeddings().weight
    with torch.no_grad():
        virtual = virtual_tokens(policy.model)
    assert virtual is not None
    assert virtual.embeddings is not None
    assert all(bool((row - words).abs().amax(1).min() < 1e-6) for row in virtual.embeddings)


@pytest.mark.parametrize("name", ALL)
def test_the_seed_decides_how_an_adapter_begins(name: str) -> None:
    one, same, other = (
        {key: value.detach().clone() for key, value in add_adapter(build_model(), config, seed=seed).named_parameters()}
        for config in [_for_llama(ALL[name])]
        for seed in (0, 0, 1)
    )
    assert all(torch.equal(one[key], same[key]) for key in one)
    drawn = not name.startswith("ia3")  # which begins with ones
    assert any(not torch.equal(one[key], other[key]) for key in one) == drawn


def _for_llama(config: PeftConfig) -> PeftConfig:
    if config.feedforward is None:
        return config
    return PeftConfig(method="ia3", targets="q_proj,down_proj", feedforward="down_proj")


def test_rslora_scales_by_the_root_of_the_rank() -> None:
    for rank, alpha, scale in ((16, None, 2.0), (64, None, 1.0), (4, 6, 3.0)):
        model = add_adapter(build_model(64), PeftConfig(method="rslora", rank=rank, alpha=alpha), seed=0)
        layer: Any = model.get_submodule("base_model.model.model.layers.0.mlp.up_proj")
        assert layer.scaling["default"] == scale


def test_only_the_adapter_is_trained_in_float32() -> None:
    for config in ALL.values():
        model = add_adapter(build_model(64).bfloat16(), _for_llama(config), seed=0)
        total, trained = count_parameters(model)
        assert 0 < trained < total
        kinds = {parameter.requires_grad: parameter.dtype for parameter in model.parameters()}
        assert kinds == {True: torch.float32, False: torch.bfloat16}
        logps = Policy(model)(BATCH).logps
        assert logps.dtype == torch.float32
        logps.sum().backward()


# Going on from an adapter


def saved(config: PeftConfig, folder: Path, model: PhiForCausalLM | None = None) -> Policy:
    """A trained adapter of the exact model, saved; its policy."""
    policy = adapted(config, model)
    save_model(policy.model, folder)
    return policy


@pytest.mark.parametrize("name", ALL)
def test_training_goes_on_from_an_adapter_with_its_frozen_copy_as_reference(name: str, tmp_path: Path) -> None:
    first = saved(ALL[name], tmp_path)
    with torch.no_grad():
        expected = first(BATCH).logps
    config = settled(PeftConfig(start_from=str(tmp_path)))
    assert config.method == ALL[name].method
    policy = adapted(config, move=0)
    reference = make_reference("auto", policy, needed=True)
    assert isinstance(reference, StartAdapter)
    assert starts_equal(policy, reference)
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.05)
    for step in range(3):
        ours, theirs = policy(BATCH).logps, reference.token_logps(BATCH)  # in the order that training has
        assert not theirs.requires_grad
        torch.testing.assert_close(theirs, expected, rtol=0, atol=1e-6)  # saved in float32, which the first wasn't
        assert torch.equal(ours, theirs) == (step == 0)
        ours.sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert [parameter for parameter in policy.parameters() if parameter.requires_grad] == trained
    base = count_parameters(build_exact_model())[0]
    total, number = count_parameters(policy)
    assert total == base + 2 * number, "a second adapter, no second model"


@pytest.mark.parametrize("name", ["lora", "prompt_tuning"])
def test_the_model_without_any_adapter_can_be_the_reference_of_one_that_goes_on(name: str, tmp_path: Path) -> None:
    saved(ALL[name], tmp_path)
    policy = adapted(settled(PeftConfig(start_from=str(tmp_path))), move=0)
    reference = make_reference("adapter_off", policy, needed=True)
    assert reference is not None
    assert not starts_equal(policy, reference)
    with torch.no_grad():
        assert torch.equal(reference.token_logps(BATCH), Policy(build_exact_model())(BATCH).logps)
        assert float((policy(BATCH).logps - reference.token_logps(BATCH)).abs().max()) > 1e-3


@pytest.mark.parametrize("name", ["lora", "prefix_tuning", "lora on the head"])
def test_what_is_saved_is_the_trained_adapter_alone(name: str, tmp_path: Path) -> None:
    saved(ALL[name], tmp_path / "first")
    policy = adapted(settled(PeftConfig(start_from=str(tmp_path / "first"))), move=0.05)
    save_model(policy.model, tmp_path / "second")
    assert {file.name for file in (tmp_path / "second").iterdir()} <= {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    again = PeftModel.from_pretrained(build_exact_model(), tmp_path / "second").eval()
    with torch.no_grad():
        torch.testing.assert_close(by_peft(again, BATCH), policy(BATCH).logps, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "where", "words"),
    [
        ({"method": "dora"}, "--peft.method", "has lora, not dora"),
        ({"rank": 8}, "--peft.rank", "has 4, not 8"),
        ({"targets": "q_proj"}, "--peft.targets", "not q_proj"),
    ],
)
def test_an_adapter_keeps_its_shape(tmp_path: Path, options: dict[str, Any], where: str, words: str) -> None:
    saved(ALL["lora"], tmp_path)
    with pytest.raises(ConfigError, match=words) as caught:
        settled(PeftConfig(start_from=str(tmp_path), **options))
    assert caught.value.where == where
    assert settled(PeftConfig(start_from=str(tmp_path), method="lora", rank=4)).alpha == 8


def test_a_settled_configuration_settles_to_itself(tmp_path: Path) -> None:
    for number, config in enumerate(ALL.values()):
        saved(config, tmp_path / str(number))
        once = settled(PeftConfig(start_from=str(tmp_path / str(number))))
        assert settled(once) == once


def test_the_folder_of_a_run_will_do(tmp_path: Path) -> None:
    saved(ALL["lora"], tmp_path / "final")
    assert settled(PeftConfig(start_from=str(tmp_path))).rank == 4


def test_an_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    saved(ALL["lora"], tmp_path / "lora")
    saved(ALL["prefix_tuning"], tmp_path / "prefix")
    other = transformers.LlamaConfig(**SHAPE | {"num_hidden_layers": 1})
    for name in ("lora", "prefix"):
        config = settled(PeftConfig(start_from=str(tmp_path / name)))
        with pytest.raises(ConfigError, match="doesn't fit the model"):
            add_adapter(AutoModelForCausalLM.from_config(other), config, seed=0)


def test_what_is_no_adapter_or_may_run_code_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"adapter_config\.json is missing"):
        settled(PeftConfig(start_from=str(tmp_path)))
    saved(ALL["lora"], tmp_path)
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "adapter_model.bin")
    with pytest.raises(ConfigError, match="may run code"):
        settled(PeftConfig(start_from=str(tmp_path)))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"modules_to_save": ["lm_head"]}, "whole modules"),
        ({"bias": "all"}, "biases"),
        ({"init_lora_weights": "pissa"}, "taken out of the model's own"),
        ({"task_type": "SEQ_CLS"}, "another task"),
    ],
)
def test_adapters_that_change_more_than_they_can_switch_off_are_refused(
    tmp_path: Path, settings: dict[str, Any], words: str
) -> None:
    import json

    saved(ALL["lora"], tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    with pytest.raises(ConfigError, match=words):
        settled(PeftConfig(start_from=str(tmp_path)))


# Options


@pytest.mark.parametrize(
    ("method", "option", "takers"),
    [
        ("prefix_tuning", {"rank": 4}, "lora or dora or rslora"),
        ("prompt_tuning", {"targets": "q_proj"}, "lora or dora or rslora or ia3"),
        ("ia3", {"alpha": 3}, "lora or dora or rslora"),
        ("lora", {"num_virtual_tokens": 5}, "prefix_tuning or prompt_tuning"),
        ("prompt_tuning", {"prefix_projection": True}, "prefix_tuning"),
        ("dora", {"feedforward": "fc2"}, "ia3"),
        ("ia3", {"quantization": "4bit"}, "lora or dora or rslora"),
    ],
)
def test_an_option_of_other_methods_is_refused_and_says_of_which(
    method: Any, option: dict[str, Any], takers: str
) -> None:
    with pytest.raises(ConfigError, match=f"{method} doesn't take it.*--peft.method {takers}") as caught:
        PeftConfig(method=method, **option)
    assert caught.value.where == f"--peft.{next(iter(option))}"


def test_numbers_of_an_adapter_are_at_least_one() -> None:
    for method, option in (("lora", "rank"), ("lora", "alpha"), ("prompt_tuning", "num_virtual_tokens")):
        with pytest.raises(ConfigError, match="at least 1"):
            PeftConfig(method=method, **{option: 0})  # type: ignore[arg-type]


def test_ia3_on_an_architecture_that_peft_does_not_know_asks_for_targets() -> None:
    config = transformers.Starcoder2Config(**SHAPE)
    with pytest.raises(ConfigError, match="Please specify `target_modules`"):
        add_adapter(AutoModelForCausalLM.from_config(config), PeftConfig(method="ia3"), seed=0)
    named = PeftConfig(method="ia3", targets="q_proj,c_proj", feedforward="c_proj")
    assert count_parameters(add_adapter(AutoModelForCausalLM.from_config(config), named, seed=0))[1] > 0


def test_four_bits_without_bitsandbytes_are_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    from dipole.policy import quantize

    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(quantize, "import_module", missing)
    with pytest.raises(ConfigError, match="bitsandbytes isn't installed") as caught:
        quantize.four_bit(torch.float32)
    assert "dipole[quant]" in str(caught.value)

    def broken(name: str) -> None:
        raise RuntimeError("no such symbol\nand more")

    monkeypatch.setattr(quantize, "import_module", broken)
    with pytest.raises(ConfigError, match="doesn't work on this machine: no such symbol"):
        quantize.four_bit(torch.float32)


@pytest.mark.parametrize("method", ["lora", "dora", "rslora"])
def test_four_bits_train_an_adapter_with_the_gradient_of_the_weights_that_they_stand_for(
    method: Any, tiny_folder: Path
) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes isn't installed")
    from dipole.policy.load import fingerprint, load_model

    config = PeftConfig(method=method, rank=4, quantization="4bit")
    loaded = load_model(str(tiny_folder), four_bits_on=torch.device("cpu"))
    assert loaded.model.layers[0].mlp.up_proj.weight.dtype == torch.uint8
    assert fingerprint(loaded) != fingerprint(load_model(str(tiny_folder)))
    policy = Policy(add_adapter(loaded, config, seed=0)).eval()
    reference = make_reference("auto", policy, needed=True)
    assert reference is not None
    with torch.no_grad():  # first of all, as training does: it must not change how weights are laid out
        before = policy(BATCH).logps
    torch.testing.assert_close(before, reference.token_logps(BATCH), rtol=0, atol=1e-4)
    twin: Any = load_model(str(tiny_folder), four_bits_on=torch.device("cpu")).dequantize()
    wide = Policy(add_adapter(twin, PeftConfig(method=method, rank=4), seed=0)).eval()
    for moved in (policy, wide):
        torch.manual_seed(1)
        for parameter in moved.parameters():
            if parameter.requires_grad:
                parameter.data.add_(0.1 * torch.randn_like(parameter))
    found, expected = policy(BATCH).logps, wide(BATCH).logps
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert_equal(gradients(policy, found), gradients(wide, expected), 1e-4)
