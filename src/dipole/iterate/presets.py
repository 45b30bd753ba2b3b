"""Settings of published loops. A preset fills in what a person leaves open, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from dipole.config import LossConfig
from dipole.iterate.settings import IterateConfig, PairingSettings, PresetName, RoundLoss


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """What a paper does.

    Args:
        paper: where it is from.
        rounds, new_prompts, reference: of ``IterateConfig``.
        num_completions, temperature, top_p: of its sampler.
        pairing: of its pairs.
        loss: name and hyper-parameters.
        learning_rate: for all weights; with an adapter, training's own default is taken.
    """

    paper: str
    rounds: int = 3
    new_prompts: bool = False
    reference: str = "last"
    num_completions: int = 4
    temperature: float = 0.8
    top_p: float = 1.0
    pairing: Mapping[str, Any]
    loss: LossConfig
    learning_rate: float | None = None


PLAIN = Preset(paper="", pairing={"policy": "best_worst"}, loss=LossConfig(name="dpo"))
"""What holds without a preset."""

PRESETS: dict[PresetName, Preset] = {
    "snorkel": Preset(
        paper="Tran, Glaze and Hancock 2023, Iterative DPO Alignment (Snorkel AI): the best and the worst of 5, new"
        " prompts in each of three rounds",
        new_prompts=True,
        num_completions=5,
        temperature=0.7,
        pairing={"policy": "best_worst"},
        loss=LossConfig(name="dpo", beta=0.1),
    ),
    "self_rewarding": Preset(
        paper="Yuan et al. 2024, Self-Rewarding Language Models, arXiv 2401.10020: the policy judges its own 4 answers"
        " (give judge: self?rubric=…), the best against the worst",
        rounds=2,
        new_prompts=True,
        temperature=0.7,
        top_p=0.9,
        pairing={"policy": "best_worst"},
        loss=LossConfig(name="dpo", beta=0.1),
        learning_rate=1e-6,
    ),
    "iterative_rpo": Preset(
        paper="Pang et al. 2024, Iterative Reasoning Preference Optimization, arXiv 2404.19733: right answers against"
        " wrong ones (a judge that gives 1 or 0; all such pairs of a prompt, where the paper draws 10), DPO with the"
        " likelihood of the chosen one, the same prompts",
        rounds=4,
        num_completions=30,
        pairing={"policy": "gap", "min_gap": 0.5},
        loss=LossConfig(name="rpo_pang", beta=0.1, nll_weight=1.0),
        learning_rate=7e-7,
    ),
    "sppo": Preset(
        paper="Wu et al. 2024, Self-Play Preference Optimization, arXiv 2405.00675: the best and the worst of 5, new"
        " prompts in each of three rounds",
        new_prompts=True,
        num_completions=5,
        temperature=1.0,
        pairing={"policy": "best_worst"},
        loss=LossConfig(name="sppo_hard", beta=0.001),
        learning_rate=5e-7,
    ),
    "online_dpo": Preset(
        paper="Guo et al. 2024, Direct Language Model Alignment from Online AI Feedback, arXiv 2402.04792: two answers"
        " a prompt, the first model as the reference; here in ten rounds instead of one a step",
        rounds=10,
        new_prompts=True,
        reference="first",
        num_completions=2,
        temperature=0.9,
        pairing={"policy": "all_pairs"},
        loss=LossConfig(name="dpo", beta=0.1),
        learning_rate=5e-7,
    ),
}


def resolved(config: IterateConfig) -> IterateConfig:
    """The configuration with nothing left open.

    Raises:
        ConfigError: what the preset fills in doesn't fit the rest.
    """
    preset = PRESETS[config.preset] if config.preset is not None else PLAIN
    sampler, pairing, training = config.sampler, config.pairing, config.training
    if config.peft.method == "none" and training.learning_rate is None:
        training = replace(training, learning_rate=preset.learning_rate)
    return replace(
        config,
        rounds=_first(config.rounds, preset.rounds),
        new_prompts=_first(config.new_prompts, preset.new_prompts),
        reference=_first(config.reference, preset.reference),
        sampler=replace(
            sampler,
            num_completions=_first(sampler.num_completions, preset.num_completions),
            temperature=_first(sampler.temperature, preset.temperature),
            top_p=_first(sampler.top_p, preset.top_p),
        ),
        pairing=_pairing(pairing, preset.pairing),
        loss=_loss(config.loss, preset.loss),
        training=training,
    )


def _pairing(given: PairingSettings, preset: Mapping[str, Any]) -> PairingSettings:
    """The policy that is given; without one the preset's, with the numbers that are given in place of its."""
    if given.policy is not None:
        return given
    return PairingSettings(**{**preset, **{name: value for name, value in asdict(given).items() if value is not None}})


def _first(given: Any, otherwise: Any) -> Any:
    return otherwise if given is None else given


def _loss(given: RoundLoss, preset: LossConfig) -> RoundLoss:
    """The loss that is given; without a name the preset's, with the hyper-parameters that are given in place of its."""
    if given.name != "auto":
        return given
    return RoundLoss(name=preset.name, **(preset.hyperparameters() | given.hyperparameters()))
