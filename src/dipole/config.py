"""Every option of training, as frozen dataclasses: the command line, YAML files and Python calls are made from these.

The docstring under a field is its help text. No torch here, so that ``--help`` is quick.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Literal

from dipole.errors import ConfigError, nearest


@dataclass(frozen=True, slots=True, kw_only=True)
class LossConfig:
    """The loss and its hyper-parameters. One that the chosen loss doesn't take is an error; ``None`` is its default."""

    name: str = "dpo"
    """Name of the loss, as in ``dipole.LOSSES``; or a weighted sum of pairwise ones: ``0.8*dpo + 0.2*sft_avg``."""
    beta: float | None = None
    """Strength of the tie to the reference; higher stays closer. 0.1 to 0.5 is known to work for DPO."""
    alpha: float | None = None
    """Of odpo, fdpo_alpha, xpo, rdpo_length, ld_dpo, tdpo2, alphapo, unlikelihood: see the loss."""
    anchor: float | None = None
    """mdpo: reward that the chosen completion should exceed."""
    clamp_weight: bool | None = None
    """wpo: whether weights stop at 1."""
    desirable_weight: float | None = None
    """kto: weight of desirable completions."""
    eta: float | None = None
    """NVIDIA's RPO: scale of the scores; rpo_liu: weight of the likelihood."""
    flip_prob: float | None = None
    """rdpo: assumed rate of flipped labels, below ½."""
    gamma: float | None = None
    """adpo: the margin up to which a label is asked for."""
    gamma_beta_ratio: float | None = None
    """simpo, alphapo: margin γ divided by β."""
    gap: float | None = None
    """slic: by how many nats the chosen one should lead."""
    label_smoothing: float | None = None
    """cdpo: assumed rate of flipped labels."""
    momentum: float | None = None
    """beta_dpo: of the running mean of margins."""
    nll_weight: float | None = None
    """rpo_pang, cpo, slic: weight of the likelihood of the chosen completion."""
    odds_weight: float | None = None
    """orpo: weight of the odds-ratio term."""
    offset: float | None = None
    """safedpo: extra margin of safe over unsafe."""
    penalty_weight: float | None = None
    """dpop: weight of the chosen completion's lost likelihood."""
    r_max: float | None = None
    """chi_po: bound of the rewards."""
    scale_reference: bool | None = None
    """ld_dpo: whether the reference's tokens are discounted too."""
    score_scale: float | None = None
    """infonca, nca_kwise, exo_kwise: what scores are divided by before their softmax; bradley_terry_margin: what their
    differences are divided by."""
    sensitivity: float | None = None
    """beta_dpo: how strongly β follows the batch's margin."""
    target_smoothing: float | None = None
    """exo: how far the target is from certain."""
    tau: float | None = None
    """discopop: temperature of the modulation."""
    tie_width: float | None = None
    """bradley_terry, bradley_terry_margin: how close two scores are where ties are likely; 0 takes a tie for p = ½."""
    undesirable_weight: float | None = None
    """kto: weight of undesirable completions."""
    weights: tuple[float, ...] | None = None
    """modpo, mpo: weights of the objectives, or of the parts of the mix."""

    def hyperparameters(self) -> dict[str, Any]:
        """Those that were given."""
        values = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "name"}
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class PairingConfig:
    """How judgments become the relations that the loss consumes."""

    policy: Literal["all_pairs", "best_worst", "adjacent", "margin"] = "all_pairs"
    """Which pairs of a group's completions are compared."""
    min_margin: float = 0.0
    """Policy ``margin``: the smallest difference of scores that makes a pair."""
    min_agreement: float = 0.5
    """Pairs on which a smaller share of the judgments agrees are dropped."""
    soft: bool = True
    """Keep probabilities as soft labels; otherwise the majority decides, and ties are dropped."""
    weighting: Literal["pair", "prompt"] = "pair"
    """Every pair counts the same, or every prompt does."""


_LOW_RANK = ("lora", "dora", "rslora")
_TAKEN_BY = {
    "rank": _LOW_RANK,
    "alpha": _LOW_RANK,
    "targets": (*_LOW_RANK, "ia3"),
    "feedforward": ("ia3",),
    "num_virtual_tokens": ("prefix_tuning", "prompt_tuning"),
    "prefix_projection": ("prefix_tuning",),
    "quantization": _LOW_RANK,
}
"""The methods that take each option of an adapter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeftConfig:
    """Which adapter is trained instead of the whole model. An option that the method doesn't take is an error."""

    method: Literal["none", "lora", "dora", "rslora", "ia3", "prefix_tuning", "prompt_tuning"] = "none"
    """``none`` trains all weights; ``lora``, ``dora`` and ``rslora`` train low-rank updates, ``ia3`` scales of
    activations, ``prefix_tuning`` keys and values before every prompt, ``prompt_tuning`` embeddings there."""
    rank: int | None = None
    """lora, dora, rslora: the rank; 16 by default."""
    alpha: int | None = None
    """lora, dora: the update's scale is alpha/rank, and alpha twice the rank by default; rslora: the scale is
    alpha/√rank, and alpha 8 by default."""
    targets: str | None = None
    """lora, dora, rslora: ``all-linear`` by default (without the head), or names of modules with commas between; ia3:
    names of modules, by default those that PEFT has for the architecture."""
    feedforward: str | None = None
    """ia3: those of the targets that are scaled at their input; by default those that PEFT has for the architecture."""
    num_virtual_tokens: int | None = None
    """prefix_tuning, prompt_tuning: how many tokens are learned; 20 by default."""
    prefix_projection: bool = False
    """prefix_tuning: compute the prefix by a small network while training, which is steadier and many more weights."""
    quantization: Literal["none", "4bit"] = "none"
    """lora, dora, rslora: ``4bit`` keeps the frozen weights in 4 bits (QLoRA); needs bitsandbytes."""
    start_from: str | None = None
    """A folder with an adapter, or a run's, to train on from; a frozen copy of it is the reference. Method and shape
    are the adapter's own."""

    def __post_init__(self) -> None:
        numbers = {"rank": self.rank, "alpha": self.alpha, "num_virtual_tokens": self.num_virtual_tokens}
        _at_least(1, **numbers, prefix="peft.")
        if self.method == "none" and self.start_from is not None:
            return  # the method is the adapter's, which nobody has looked at yet
        for name in self.given():
            if self.method not in _TAKEN_BY[name]:
                raise ConfigError(
                    "this is an adapter's option, but all weights are trained"
                    if self.method == "none"
                    else f"{self.method} doesn't take it",
                    where=f"--peft.{name}",
                    remedy=f"Leave it out, or use --peft.method {' or '.join(_TAKEN_BY[name])}",
                )
        if self.feedforward is not None and self.targets is None:
            raise ConfigError("these are some of the targets", where="--peft.feedforward", remedy="Give --peft.targets")
        if self.start_from is not None:
            return
        defaults = {"rank": 16, "targets": "all-linear"} if self.method in _LOW_RANK else {"num_virtual_tokens": 20}
        for name, value in defaults.items():
            if self.method in _TAKEN_BY[name] and getattr(self, name) is None:
                object.__setattr__(self, name, value)

    def given(self) -> list[str]:
        """The options of an adapter that aren't left at their default."""
        kept = ("method", "start_from")
        options = [item for item in fields(self) if item.name not in kept]
        return [item.name for item in options if getattr(self, item.name) != item.default]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """One training run."""

    model: str
    """A local folder or a hub id of a causal language model."""
    data: str
    """A file of preferences in any dialect, a folder of such files, or a hub dataset."""
    output: str
    """The run folder to write."""
    eval_data: str | None = None
    """Held-out preferences. Without it, groups of ``data`` whose split is eval, validation or test are held out."""
    allow_shared_prompts: bool = False
    """Training and held-out data may share prompts (never a prompt with its completion), as where there is only one."""
    allow_remote_code: bool = False
    """Run the Python files that come with the model, which has to be a local folder. Read them first."""
    allow_pickle_weights: bool = False
    """Read weights that aren't safetensors, by PyTorch's restricted unpickler, if the model is a local folder."""
    objective: Literal["policy", "reward_model"] = "policy"
    """``policy`` trains the model to write; ``reward_model`` a head to score what others write, with the loss
    bradley_terry (which dpo, the default, is with an explicit reward) or bradley_terry_margin."""
    loss: LossConfig = field(default_factory=LossConfig)
    """The loss."""
    pairing: PairingConfig = field(default_factory=PairingConfig)
    """From judgments to relations."""
    peft: PeftConfig = field(default_factory=PeftConfig)
    """The adapter."""
    reference: Literal["auto", "adapter_off", "copy", "cached", "none"] = "auto"
    """Where the reference comes from: the policy without its adapter, a frozen copy, a cache filled once for all
    epochs and runs (in ``$DIPOLE_CACHE/reference``), or nowhere."""
    sync_reference_every: int | None = None
    """TR-DPO: steps between two moves of the reference towards the policy; it stays where it is by default."""
    sync_reference_alpha: float = 0.6
    """TR-DPO: how far it moves, from 0 to 1, where 1 makes it the policy."""
    learning_rate: float | None = None
    """Peak learning rate; 1e-6 for all weights, 1e-4 for LoRA, which needs more."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate falls after the warm-up."""
    warmup_ratio: float = 0.1
    """Share of the steps in which the learning rate rises."""
    weight_decay: float = 0.0
    """Of AdamW, on matrices only."""
    optimizer: Literal["adamw", "adamw_fused", "adamw_8bit", "rmsprop", "sgd"] = "adamw_fused"
    """``adamw_fused`` is AdamW in one kernel, ``adamw`` the same in many; ``adamw_8bit`` keeps its state in a quarter
    of the memory (bitsandbytes, on a GPU); ``rmsprop`` is what DPO was published with; ``sgd`` keeps no state."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm; 0 leaves them as they are."""
    global_batch_size: int = 32
    """Groups an optimizer step, over all processes. 32 to 128 is known to work."""
    max_tokens_per_microbatch: int = 4096
    """Packed tokens a forward pass. Changes memory and speed, never the gradient."""
    gradient_checkpointing: bool = False
    """Forget activations and compute them again in the backward pass: much less memory, about a third more time."""
    activation_offloading: bool = False
    """Keep activations in main memory until the backward pass: less memory of the GPU, more traffic to and from it."""
    sharding: Literal["none", "fsdp"] = "none"
    """``fsdp`` divides weights, gradients and optimizer state over the processes of a launch; ``none`` keeps all of
    them on each."""
    max_length: int | None = None
    """Most tokens of a prompt with one completion; 1024 by default, or what the model takes if that is less."""
    prompt_format: Literal["as_is", "chat"] = "as_is"
    """``chat`` wraps plain-text prompts and completions in the model's chat template."""
    num_epochs: int = 1
    """Passes over the data."""
    max_steps: int | None = None
    """Stop after so many optimizer steps, if that is sooner."""
    seed: int = 0
    """Of the data's order, the adapter's first weights, and the samples."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """``auto`` is bfloat16 mixed precision on a GPU that has it, float32 elsewhere. ``float16`` scales losses."""
    log_every: int = 1
    """Steps between two lines of metrics.jsonl."""
    track: Literal["none", "tensorboard", "trackio", "wandb"] = "none"
    """Show the metrics in a tracker too (``wandb`` uploads them). One that fails costs a warning, never the run."""
    eval_every: int | None = None
    """Steps between evaluations on the held-out data; there is always one before and one after training."""
    checkpoint_every: int | None = None
    """Steps between checkpoints."""
    max_skipped_steps: int = 3
    """Most steps in a row that may be skipped since a loss or gradient isn't finite; one more stops the run. 0 stops
    it at the first."""
    process_timeout: int = 1800
    """Of several processes: seconds that one waits for the others before it ends the run. A save has to fit in."""
    dry_run: bool = False
    """Check data and options, print sizes, steps and memory, and stop there: no weights are loaded, nothing written."""
    resume: bool = False
    """Go on from the newest valid checkpoint of the run folder, or start when there is none."""
    num_samples: int = 8
    """Completions sampled before and after training, for the report and its estimate of the KL; 0 for none."""
    sample_every: int | None = None
    """Also sample every so many steps."""
    sample_tokens: int = 128
    """Most tokens of a sample."""

    def __post_init__(self) -> None:
        _at_least(
            1,
            global_batch_size=self.global_batch_size,
            max_tokens_per_microbatch=self.max_tokens_per_microbatch,
            max_length=self.max_length,
            num_epochs=self.num_epochs,
            max_steps=self.max_steps,
            log_every=self.log_every,
            eval_every=self.eval_every,
            sync_reference_every=self.sync_reference_every,
            checkpoint_every=self.checkpoint_every,
            sample_every=self.sample_every,
            sample_tokens=self.sample_tokens,
            process_timeout=self.process_timeout,
        )
        _at_least(0, seed=self.seed, num_samples=self.num_samples, max_grad_norm=self.max_grad_norm)
        _at_least(0, max_skipped_steps=self.max_skipped_steps)
        _at_least(0, weight_decay=self.weight_decay, learning_rate=self.learning_rate)
        if not 0 <= self.warmup_ratio <= 1:
            raise ConfigError(f"a share lies between 0 and 1, not {self.warmup_ratio}", where="--warmup_ratio")
        if not 0 < self.sync_reference_alpha <= 1:
            raise ConfigError(f"has to be in (0, 1], not {self.sync_reference_alpha}", where="--sync_reference_alpha")
        if self.sync_reference_every is None and self.sync_reference_alpha != 0.6:
            raise ConfigError(
                "the reference doesn't move", where="--sync_reference_alpha", remedy="Add --sync_reference_every"
            )
        if self.sample_every is not None and self.objective == "reward_model":
            raise ConfigError("a reward model writes no samples", where="--sample_every", remedy="Leave it out")
        if self.sample_every is not None and not self.num_samples:
            raise ConfigError("sampling every few steps needs --num_samples above 0", where="--sample_every")


def _at_least(minimum: float, *, prefix: str = "", **values: float | None) -> None:
    for name, value in values.items():
        if value is not None and not value >= minimum:
            raise ConfigError(f"has to be at least {minimum:g}, not {value:g}", where=f"--{prefix}{name}")


def train_config(*, loss: str | LossConfig = "dpo", peft: str | PeftConfig = "none", **options: Any) -> TrainConfig:
    """A ``TrainConfig`` from flat keywords, as Python calls write it: ``loss="dpo", beta=0.1, peft="lora", rank=8``.

    Keywords that are fields of ``LossConfig``, ``PairingConfig`` or ``PeftConfig`` go there, others to ``TrainConfig``.

    Raises:
        ConfigError: a keyword is unknown, or goes to a part that is already given as an object.
    """
    parts: dict[str, dict[str, Any]] = {"loss": {}, "peft": {}, "pairing": {}}
    kinds = {"loss": LossConfig, "peft": PeftConfig, "pairing": PairingConfig}
    whole = {item.name for item in fields(TrainConfig)}
    owner = {item.name: part for part, kind in kinds.items() for item in fields(kind) if item.name not in whole}
    rest: dict[str, Any] = {}
    for name, value in options.items():
        if name in whole:
            rest[name] = value
        elif name in owner:
            parts[owner[name]][name] = value
        else:
            raise ConfigError(f"there is no option '{name}'", remedy=nearest(name, whole | set(owner)))
    given = {"loss": loss, "peft": peft, "pairing": rest.pop("pairing", PairingConfig())}
    for part, value in given.items():
        if isinstance(value, str):
            rest[part] = kinds[part](**{"name" if part == "loss" else "method": value}, **parts[part])
        elif parts[part] and part != "pairing":
            raise ConfigError(f"'{next(iter(parts[part]))}' is given beside {part}, which is already an object")
        else:
            rest[part] = kinds[part](**parts[part]) if parts[part] else value
    return TrainConfig(**rest)
