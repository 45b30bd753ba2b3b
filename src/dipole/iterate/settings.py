"""Every option of rounds. What a preset decides is ``None`` by default; see ``presets``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from dipole.config import LossConfig, PeftConfig
from dipole.errors import ConfigError

PresetName = Literal["snorkel", "self_rewarding", "iterative_rpo", "sppo", "online_dpo"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplerSettings:
    """How completions are written."""

    num_completions: int | None = None
    """Of each prompt; 4 without a preset."""
    temperature: float | None = None
    """1 samples from the model itself; 0.8 without a preset."""
    top_p: float | None = None
    """Sample from the smallest set of tokens with this much probability; 1 without a preset."""
    top_k: int = 0
    """Sample from that many of the likeliest tokens; 0 for all."""
    repetition_penalty: float = 1.0
    """Above 1, tokens that are there already become less likely."""
    stop: tuple[str, ...] = ()
    """Texts that end a completion and aren't part of it."""
    max_new_tokens: int = 256
    """Most tokens of a completion."""
    batch_size: int = 64
    """Completions at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairingSettings:
    """Which pairs of a prompt's completions are trained on. Equal scores and equal texts never are."""

    policy: Literal["best_worst", "all_pairs", "gap", "rejection"] | None = None
    """best_worst (also without a preset), all_pairs, gap (scores differ by at least min_gap), or rejection
    (statistical rejection sampling)."""
    min_gap: float | None = None
    """gap: on the scale of the judge's scores."""
    accept: int | None = None
    """rejection: how many completions of a prompt are accepted."""
    beta: float | None = None
    """rejection: how little scores decide; near 0 the best alone are accepted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundLoss(LossConfig):
    """The loss of every round, as in training."""

    name: str = "auto"
    """As in training; ``auto`` is the preset's, or dpo."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSettings:
    """Training in every round; what isn't here is as in training."""

    learning_rate: float | None = None
    """Peak learning rate; the preset's, or that of training."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate falls after the warm-up."""
    warmup_ratio: float = 0.1
    """Share of the steps in which the learning rate rises."""
    global_batch_size: int = 32
    """Groups an optimizer step."""
    max_tokens_per_microbatch: int = 4096
    """Packed tokens a forward pass."""
    max_length: int | None = None
    """Most tokens of a prompt with one completion."""
    num_epochs: int = 1
    """Passes over a round's pairs."""
    max_steps: int | None = None
    """Stop a round's training after so many steps, if that is sooner."""
    checkpoint_every: int = 20
    """Steps between checkpoints."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StopSettings:
    """When rounds end before their number is reached."""

    no_gain: bool = False
    """When the training judge sees no gain over the round before: the interval of the difference holds 0."""
    held_out_falls: bool = False
    """When the held-out judge sees a loss against the round before: the interval lies below 0."""
    max_kl: float | None = None
    """When KL(policy‖first model) is above this many nats a completion."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IterateConfig:
    """Rounds of generate, judge, pair, train and evaluate; goes on where it was stopped."""

    model: str
    """A local folder or a hub id of a causal language model, or ``embedded``: the policy of round 0."""
    prompts: str
    """A file with prompts: rows with a prompt alone, or preferences, of which the prompts are taken."""
    output: str
    """The folder to write."""
    judge: str
    """Who judges for training: as in ``dipole judge``; ``self`` with settings is the last round's policy itself, as in
    self?rubric=rubric.txt."""
    held_out_judge: str | None = None
    """Who judges evaluations beside it, and never what is trained on; best another kind of judge."""
    preset: PresetName | None = None
    """Settings of a paper: snorkel, self_rewarding, iterative_rpo, sppo or online_dpo. What is given besides wins."""
    rounds: int | None = None
    """How many; 3 without a preset. It may be raised later."""
    new_prompts: bool | None = None
    """Every round gets prompts that none before had; without a preset all rounds have the same."""
    prompts_per_round: int | None = None
    """At most so many; by default all, or with new_prompts their share."""
    eval_share: float = 0.1
    """Of the prompts, never trained on: near-duplicates together, those with a split where they are."""
    max_eval_prompts: int | None = None
    """At most so many of these are evaluated on."""
    eval_completions: int = 2
    """Completions of each evaluated prompt, at temperature 1."""
    reference: Literal["last", "first"] | None = None
    """The reference is the last round's policy (also without a preset), or the first model; that needs an adapter."""
    keep_rounds: int = 0
    """Pairs of so many earlier rounds are trained on too."""
    prompt_format: Literal["as_is", "chat"] = "as_is"
    """``chat`` wraps plain-text prompts in the model's chat template."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """As in training."""
    max_invalid: float = 0.2
    """Stop when a judge gives no valid verdict on a larger share of a round's pairs."""
    threads: int = 8
    """Questions to a judge behind a URL at a time."""
    timeout: float = 120.0
    """Seconds that such a server may take for a reply."""
    max_calls: int | None = None
    """Most calls to servers, all rounds together and failed ones included. It may be raised later."""
    max_total_tokens: int | None = None
    """Most tokens of prompts and replies together, likewise."""
    max_cost: float | None = None
    """Most money, in the unit of the prices, likewise."""
    prompt_price: float | None = None
    """Price of a million tokens of prompts."""
    completion_price: float | None = None
    """Price of a million tokens of replies."""
    seed: int = 0
    """Of the split, the samples and training."""
    sampler: SamplerSettings = field(default_factory=SamplerSettings)
    """The sampler."""
    pairing: PairingSettings = field(default_factory=PairingSettings)
    """The pairs."""
    loss: RoundLoss = field(default_factory=RoundLoss)
    """The loss."""
    peft: PeftConfig = field(default_factory=PeftConfig)
    """The adapter; it goes on from round to round."""
    training: TrainingSettings = field(default_factory=TrainingSettings)
    """Training."""
    stop: StopSettings = field(default_factory=StopSettings)
    """Rules to stop by."""

    def __post_init__(self) -> None:
        least = {
            "rounds": (self.rounds, 1),
            "prompts_per_round": (self.prompts_per_round, 1),
            "max_eval_prompts": (self.max_eval_prompts, 2),
            "eval_completions": (self.eval_completions, 1),
            "keep_rounds": (self.keep_rounds, 0),
            "seed": (self.seed, 0),
            "sampler.num_completions": (self.sampler.num_completions, 2),
        }
        for name, (value, minimum) in least.items():
            if value is not None and value < minimum:
                raise ConfigError(f"has to be at least {minimum}, not {value}", where=f"--{name}")
        if not 0 <= self.max_invalid <= 1:
            raise ConfigError(f"a share lies between 0 and 1, not {self.max_invalid}", where="--max_invalid")
        if self.stop.held_out_falls and self.held_out_judge is None:
            raise ConfigError(
                "there is no held-out judge", where="--stop.held_out_falls", remedy="Give --held_out_judge"
            )
        if self.held_out_judge == self.judge:
            raise ConfigError("it is the training judge too", where="--held_out_judge", remedy="Name another")
        if self.reference == "first" and self.peft.method == "none":
            raise ConfigError(
                "from the second round on, the first model would be a second one in memory",
                where="--reference first",
                remedy="Train an adapter (--peft.method lora), which can be switched off, or use last",
            )
        if self.peft.start_from is not None:
            raise ConfigError("adapters go on from round to round", where="--peft.start_from", remedy="Leave it out")
