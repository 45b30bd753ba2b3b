"""Measures TRL, in its own environment: python trl_side.py SPEC.json RESULT.json"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ |= {"TRL_TELEMETRY_DISABLED": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "1"}

import torch
import trl
from datasets import load_dataset
from measure import StepClock, matrix_rate, peak_bytes
from peft import LoraConfig
from torch.utils.data import SequentialSampler
from transformers import TrainerCallback
from trl import DPOConfig, DPOTrainer


class InOrder(DPOTrainer):
    """Rows as they stand in the file, so that both sides take the same ones in each step."""

    def _get_train_sampler(self, *_: Any) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)


class Clock(TrainerCallback):
    """Times optimizer steps alone: neither loading, nor tokenizing, nor the reference that is computed before."""

    def __init__(self) -> None:
        self.clock = StepClock()

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.clock.start()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.clock.stop()

    def on_log(self, _: Any, state: Any, __: Any, logs: dict[str, Any], **___: Any) -> None:
        if "loss" in logs:
            self.clock.note(state.global_step - 1, logs)


def main() -> None:
    spec, result = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    case: dict[str, Any] = spec["case"]
    torch.set_num_threads(spec["threads"])
    rate = matrix_rate(case["device"])
    rows = min(case["trl_rows"], spec["pairs_a_step"])
    config = DPOConfig(
        output_dir=str(result.parent / "trl"),
        model_init_kwargs={"dtype": "float32"},
        beta=spec["beta"],
        learning_rate=spec["learning_rate"],
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=1.0,
        max_steps=spec["steps"] + 1,
        max_length=spec["max_length"],
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=spec["pairs_a_step"] // rows,
        gradient_checkpointing=False,
        bf16=case["device"] == "cuda",
        use_cpu=case["device"] == "cpu",
        precompute_ref_log_probs=case["cached"],
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    clock = Clock()
    trainer = InOrder(
        spec["model"],
        args=config,
        train_dataset=load_dataset("json", data_files=spec["pairs"], split="train", cache_dir=str(result.parent)),
        peft_config=LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"]) if case["lora"] else None,
        callbacks=[clock],
    )
    trainer.train()
    found = {
        "side": "trl",
        "steps": clock.clock.rows,
        "peak_bytes": peak_bytes(case["device"]),
        "matrix_rate": [rate, matrix_rate(case["device"])],
        "versions": {"trl": trl.__version__, "torch": torch.__version__},
    }
    result.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
