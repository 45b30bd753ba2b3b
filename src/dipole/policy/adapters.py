"""Parameter-efficient fine-tuning through PEFT: which adapter, how it is put on a model, and how it begins.

An adapter is fresh, or goes on from one in a folder. Then a frozen copy of that stands beside it in the same model: it
is the reference, and costs no second model.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import (
    IA3Config,
    LoraConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptTuningConfig,
    get_peft_model,
)
from peft import PeftConfig as Settings
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from dipole.config import PeftConfig
from dipole.errors import ConfigError
from dipole.policy.load import quietly
from dipole.policy.saved_adapter import SavedAdapter

START = "start"
"""PEFT's name of the frozen copy of the adapter that training started from."""
TRAINED = "default"
"""PEFT's name of the adapter that is trained."""

RSLORA_ALPHA = 8
"""At rank 16 the scale is that of LoRA's default, 2; at others it follows 1/√rank, which is what rsLoRA is about."""
PREFIX_STD = 0.02
"""Of the first keys and values of a prefix: close to none, and no two virtual tokens alike, or they would stay so."""


def add_adapter(model: PreTrainedModel, config: PeftConfig, *, seed: int) -> nn.Module:
    """The model with an adapter, whose weights alone are trained; ``model`` itself when the method is ``none``.

    Fresh LoRA (Hu et al. 2021, arXiv 2106.09685), DoRA (Liu et al. 2024, arXiv 2402.09353), rsLoRA (Kalajdzievski 2023,
    arXiv 2312.03732) and IA³ (Liu et al. 2022, arXiv 2205.05638) leave the model as it is, so that policy and reference
    are equal at step 0; virtual tokens (``policy.virtual``) don't. Dropout is off: policy and reference would get
    different masks.

    Args:
        model: is changed in place.
        config: which adapter, how large, on which modules; or where the one lies that training starts from.
        seed: of the adapter's first weights.

    Raises:
        ConfigError: a target isn't there, or can't have an adapter; or the folder's adapter doesn't fit the model.
    """
    if config.start_from is not None:
        saved = SavedAdapter.of(config.start_from)
        adapted = saved.put_on(model, TRAINED)
        adapted.add_adapter(START, saved.trainable_settings())
        saved.load_into(adapted, START)
    elif config.method == "none":
        return model
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            adapted = _fresh(model, config)
            if config.method == "prefix_tuning" and not config.prefix_projection:
                nn.init.normal_(adapted.prompt_encoder[TRAINED].embedding.weight, std=PREFIX_STD)
    _check_head(adapted)
    for name, parameter in adapted.named_parameters():
        if parameter.requires_grad or f".{START}" in name:
            parameter.data = parameter.data.float()  # few, and updates below bfloat16's spacing would be lost
        if f".{START}" in name:
            parameter.requires_grad_(False)
    result: nn.Module = adapted
    return result


def settled(config: PeftConfig) -> PeftConfig:
    """The configuration with method and shape of the adapter that training starts from; itself if there is none.

    Raises:
        ConfigError: there is no such adapter, training can't go on from it, or it isn't as the options say.
    """
    if config.start_from is None:
        return config
    own = SavedAdapter.of(config.start_from).options()
    given = [*config.given(), *(["method"] if config.method != "none" else [])]
    for name in given:
        if name in own and getattr(config, name) != own[name]:
            raise ConfigError(
                f"the adapter in {config.start_from} has {own[name]}, not {getattr(config, name)}",
                where=f"--peft.{name}",
                remedy="Leave it out: an adapter keeps its shape",
            )
    return replace(config, **own)


def start_fingerprint(weights: str, config: PeftConfig) -> str:
    """What makes two starts of training the same: the fingerprint of the model, with that of the adapter it has."""
    return weights if config.start_from is None else SavedAdapter.of(config.start_from).key(weights)


def starts_from_adapter(model: nn.Module) -> bool:
    """Whether the adapter went on from another, of which there is a frozen copy."""
    return isinstance(model, PeftModel) and START in model.peft_config


@contextmanager
def as_it_started(model: nn.Module) -> Iterator[None]:
    """The model with the frozen copy of the adapter that training went on from, for a while."""
    assert isinstance(model, PeftModel)
    model.set_adapter(START, inference_mode=True)
    try:
        yield
    finally:
        model.set_adapter(TRAINED)


def save_model(model: nn.Module, folder: Path, whole: Mapping[str, Tensor] | None = None) -> None:
    """Saves what is trained: a folder that loads with transformers, or with PEFT if it is an adapter.

    Args:
        model: to save.
        folder: is written.
        whole: its tensors by name, if the model itself has parts of them.
    """
    target: Any = model
    given = {} if whole is None else {"state_dict": dict(whole)}
    with quietly():
        if isinstance(model, PeftModel):
            # Frozen weights of an adapted head stay out; PEFT would add them.
            target.save_pretrained(str(folder), selected_adapters=[TRAINED], save_embedding_layers=False, **given)
        else:
            target.save_pretrained(str(folder), **given)


def head_parameters(head: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Weight (V, H) and bias (V,) or ``None`` of the language-model head, with the graph of an adapter on it.

    The weights of a head may be those of the embeddings too; those don't get what an adapter adds here.
    """
    layer: Any = head
    if not isinstance(head, BaseTunerLayer):
        return layer.weight, getattr(head, "bias", None)
    base: Any = head.get_base_layer()
    weight: Tensor = base.weight
    names = [name for name in head.active_adapters if name in layer.lora_A and not head.disable_adapters]
    with torch.autocast(weight.device.type, enabled=False):
        for name in names:
            weight = weight + layer.get_delta_weight(name)
    return weight, getattr(base, "bias", None)


def _settings(config: PeftConfig, task: str) -> Settings:
    """PEFT's own settings of a fresh adapter for one of its task types."""
    count: Any = config.num_virtual_tokens
    match config.method:
        case "ia3":
            return IA3Config(
                task_type=task, target_modules=_names(config.targets), feedforward_modules=_names(config.feedforward)
            )
        case "prefix_tuning":
            return PrefixTuningConfig(
                task_type=task, num_virtual_tokens=count, prefix_projection=config.prefix_projection
            )
        case "prompt_tuning":
            return PromptTuningConfig(task_type=task, num_virtual_tokens=count, prompt_tuning_init="SAMPLE_VOCAB")
    assert config.rank is not None
    default = RSLORA_ALPHA if config.method == "rslora" else 2 * config.rank
    return LoraConfig(
        task_type=task,
        r=config.rank,
        lora_alpha=default if config.alpha is None else config.alpha,
        lora_dropout=0.0,
        target_modules="all-linear" if config.targets == "all-linear" else _names(config.targets),
        use_dora=config.method == "dora",
        use_rslora=config.method == "rslora",
    )


def _names(text: str | None) -> list[str] | None:
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def _fresh(model: PreTrainedModel, config: PeftConfig) -> Any:
    """The model with a new adapter, if all targets are there."""
    where = config.targets or type(model).__name__
    task = "CAUSAL_LM" if model.can_generate() else "SEQ_CLS"
    with quietly(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of tied heads: the engine and merging know about those
        try:
            adapted: Any = get_peft_model(model, _settings(config, task), adapter_name=TRAINED)
        except ValueError as fault:
            raise _bad_targets(f"can't put an adapter on {where}: {str(fault).splitlines()[0]}") from fault
    if config.targets in (None, "all-linear"):
        return adapted
    touched = {name.rpartition(".")[2] for name in adapted.base_model.targeted_module_names}
    if unknown := [name for name in _names(config.targets) or [] if name.rpartition(".")[2] not in touched]:
        raise _bad_targets(f"no module of the model is called {', '.join(unknown)}")
    return adapted


def _check_head(adapted: Any) -> None:
    """Refuses adapters on the head that the engine wouldn't see: it reads the head's weight, and LoRA adds to that."""
    head = adapted.get_base_model().get_output_embeddings()
    if not isinstance(head, BaseTunerLayer):
        return
    layer: Any = head
    if not isinstance(head, LoraLinear) or layer.lora_variant or any(layer.lora_bias.values()):
        raise _bad_targets("on the language-model head the engine computes lora and rslora alone")


def _bad_targets(problem: str) -> ConfigError:
    return ConfigError(problem, where="--peft.targets", remedy="Use all-linear, or names such as q_proj,v_proj")
