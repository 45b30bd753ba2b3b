"""An adapter in a folder, as PEFT saves it and as runs leave it in ``final/``."""

from __future__ import annotations

import copy
import hashlib
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PeftConfig as Settings
from peft import PeftModel, get_peft_model, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import PreTrainedModel

from dipole.errors import ConfigError
from dipole.policy.load import quietly

SETTINGS = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"

INITIAL_WEIGHTS = (True, False, "gaussian")
"""Ways to begin LoRA that leave the model's own weights alone; others, such as PiSSA's, take something out of them."""


@dataclass(frozen=True, slots=True)
class SavedAdapter:
    """An adapter's folder and PEFT's settings in it."""

    folder: Path
    settings: Settings

    @classmethod
    def of(cls, path: str | Path) -> SavedAdapter:
        """The adapter in a folder, or in a run's ``final/``.

        Raises:
            ConfigError: there is none, its weights aren't in safetensors, or it is of a kind that isn't computed.
        """
        folder = Path(path)
        if not (folder / SETTINGS).is_file() and (folder / "final").is_dir():
            folder /= "final"
        if not (folder / SETTINGS).is_file():
            raise ConfigError(
                f"there is no adapter: {SETTINGS} is missing",
                where=str(path),
                remedy="Name the folder of a run that trained an adapter, or one that PEFT saved",
            )
        if not (folder / WEIGHTS).is_file():
            raise ConfigError(
                f"its weights aren't in {WEIGHTS}; other formats may run code when they are read",
                where=str(folder),
                remedy="Load it where you trust it, and save it anew with PEFT's save_pretrained",
            )
        try:
            settings = Settings.from_pretrained(str(folder))
        except (KeyError, TypeError, ValueError) as fault:
            raise ConfigError(f"{SETTINGS} can't be read: {fault}", where=str(folder)) from fault
        _check_kind(settings, folder)
        return cls(folder, settings)

    def options(self) -> dict[str, Any]:
        """Method and shape, as options of ``PeftConfig``.

        Raises:
            ConfigError: no method of it makes such an adapter.
        """
        settings: Any = self.settings
        match settings.peft_type.value:
            case "LORA":
                method = "dora" if settings.use_dora else "rslora" if settings.use_rslora else "lora"
                shape = {"rank": settings.r, "alpha": settings.lora_alpha, "targets": _joined(settings.target_modules)}
            case "IA3":
                method = "ia3"
                shape = {
                    "targets": _joined(settings.target_modules),
                    "feedforward": _joined(settings.feedforward_modules),
                }
            case "PREFIX_TUNING" | "PROMPT_TUNING" as kind:
                method = kind.lower()
                shape = {"num_virtual_tokens": settings.num_virtual_tokens}
            case kind:
                raise ConfigError(
                    f"training doesn't go on from adapters of the kind {kind}",
                    where=str(self.folder),
                    remedy="Merge it into its model with PEFT, and train that",
                )
        return {"method": method, **shape}

    def base(self) -> str:
        """The model that it belongs to, as its settings name it.

        Raises:
            ConfigError: they name none.
        """
        name: str | None = self.settings.base_model_name_or_path
        if not name:
            raise ConfigError("it doesn't say which model it belongs to", where=str(self.folder), remedy="Give --model")
        return name

    def trainable_settings(self) -> Settings:
        """A copy of PEFT's settings with which the adapter can be trained and nothing is initialized from elsewhere."""
        settings: Any = copy.deepcopy(self.settings)
        settings.inference_mode = False
        changed = {
            "lora_dropout": 0.0,
            "init_lora_weights": True,
            "prefix_projection": False,  # PEFT saves what the projection gave
            "prompt_tuning_init": "RANDOM",
        }
        of_model = dict.fromkeys(("num_layers", "token_dim", "num_attention_heads"))  # so that another can't fit
        for name, value in (changed | of_model).items():
            if hasattr(settings, name):
                setattr(settings, name, value)
        return settings  # type: ignore[no-any-return]

    def put_on(self, model: PreTrainedModel, name: str) -> Any:
        """PEFT's model around this one, with this adapter, which can be trained.

        Raises:
            ConfigError: it doesn't fit the model.
        """
        with quietly(), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of tied heads and moved models, which are dealt with here
            try:
                adapted: Any = get_peft_model(model, self.trainable_settings(), adapter_name=name)
            except ValueError as fault:
                raise self._misfit(str(fault).splitlines()[0]) from fault
        self.load_into(adapted, name)
        return adapted

    def load_into(self, model: PeftModel, name: str) -> None:
        """Fills the model's adapter of this name.

        Raises:
            ConfigError: the weights don't fit, since they belong to another model.
        """
        try:
            weights = load_file(self.folder / WEIGHTS)
            found: Any = set_peft_model_state_dict(model, weights, adapter_name=name)
        except (SafetensorError, RuntimeError, KeyError) as fault:
            raise self._misfit(str(fault).splitlines()[0]) from fault
        if self.settings.is_prompt_learning:
            return  # strict by itself; as keys of the model its weights are unexpected
        missing = [key for key in found.missing_keys if f".{name}" in key]
        if wrong := [*found.unexpected_keys, *missing]:
            raise self._misfit(f"{len(wrong)} of its weights have no counterpart, such as {wrong[0]}")

    def key(self, weights: str) -> str:
        """A hash of the model that training starts from: the base's fingerprint, the adapter's weights and shape."""
        digest = hashlib.sha256(f"{weights}{sorted(self.options().items())}".encode())
        digest.update((self.folder / WEIGHTS).read_bytes())
        return digest.hexdigest()[:32]

    def _misfit(self, reason: str) -> ConfigError:
        return ConfigError(
            f"the adapter doesn't fit the model: {reason}",
            where=str(self.folder),
            remedy="Use the model that it was trained on",
        )


def _joined(modules: Any) -> str:
    """Names of modules as an option has them; a pattern stays one."""
    return modules if isinstance(modules, str) else ",".join(sorted(modules or ()))


def _check_kind(settings: Settings, folder: Path) -> None:
    """Refuses what lies beside an adapter's own weights: switched off, the model wouldn't be what it was before."""
    reasons = {
        "it trains whole modules too (modules_to_save)": bool(getattr(settings, "modules_to_save", None)),
        "it trains single tokens' embeddings too": bool(getattr(settings, "trainable_token_indices", None)),
        "it trains the model's own biases too": getattr(settings, "bias", "none") != "none",
        "it was made with weights that were taken out of the model's own": getattr(settings, "init_lora_weights", True)
        not in INITIAL_WEIGHTS,
        "it repeats layers of the model": bool(getattr(settings, "layer_replication", None)),
        "it is for another task than writing text": settings.task_type not in (None, "CAUSAL_LM"),
    }
    for reason, holds in reasons.items():
        if holds:
            raise ConfigError(
                f"the adapter can't be taken: {reason}",
                where=str(folder / SETTINGS),
                remedy="Merge it into its model with PEFT's merge_and_unload, and train that",
            )
