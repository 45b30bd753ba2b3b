"""Trains one method at one strength and measures it along the way; a killed sweep goes on from the last point."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from dipole.config import PairingConfig, PeftConfig, TrainConfig
from dipole.data.formats import load_groups
from dipole.data.tokenize import prompt_token_ids
from dipole.group import plain
from dipole.objective import resolve
from dipole.policy.adapters import add_adapter, save_model
from dipole.policy.load import load_model
from dipole.policy.logprobs import Policy
from dipole.policy.reference import AdapterOff
from dipole.policy.reward import load_reward_model, reward_scores
from dipole.progress import Silent
from dipole.sweep.measured import rows_of_policy
from dipole.sweep.plan import Arm, LossArm, PPOArm, Sizes, key
from dipole.sweep.texts import Prompt, Score
from dipole.train.checkpoint import resume, save_checkpoint
from dipole.train.loop import steps
from dipole.train.ppo import PPO, PPOConfig, Scorer, Tokens, load_ppo, make_ppo, ppo_steps, save_ppo
from dipole.train.run import save_final
from dipole.train.setup import prepare
from dipole.train.track import write_json

MAX_LENGTH = 128
"""Tokens of a prompt with its completion; both are short."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What every arm is trained and measured with.

    Args:
        folder: of the sweep.
        sizes: how much of everything.
        base: folder of the fine-tuned model, which is start and reference of every arm.
        tokenizer: its own.
        preferences: file of its completions with their ratings.
        reward_model: folder of the model that was trained on these.
        prompts: to train on.
        test: to measure on.
        score: the scorer.
        seed: of everything.
        advance: is told of every point.
    """

    folder: Path
    sizes: Sizes
    base: Path
    tokenizer: PreTrainedTokenizerBase
    preferences: Path
    reward_model: Path
    prompts: Sequence[Prompt]
    test: Sequence[Prompt]
    score: Score
    seed: int
    advance: Callable[[str], None]

    @property
    def device(self) -> torch.device:
        """Where policies are."""
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def path(self, name: str, step: int) -> Path:
        """The file of a point."""
        return self.folder / "points" / f"{name}-{step:05d}.json"

    def is_done(self, arm: Arm) -> bool:
        """Whether all points of an arm are there: it writes a last file when they are."""
        return (self.folder / "runs" / key(arm) / "done.json").exists()


def run_arm(bench: Bench, arm: Arm) -> None:
    """Trains and measures whatever of an arm isn't there yet; ``final/`` of its folder is the trained policy."""
    if bench.is_done(arm):
        return
    points = _by_loss(bench, arm) if isinstance(arm, LossArm) else _by_ppo(bench, arm)
    write_json(bench.folder / "runs" / key(arm) / "done.json", {"points": points})


def _by_loss(bench: Bench, arm: LossArm) -> int:
    sizes, row = bench.sizes, resolve(arm.loss.name)
    config = TrainConfig(
        model=str(bench.base),
        data=str(bench.preferences),
        output=str(bench.folder / "runs" / key(arm)),
        loss=arm.loss,
        pairing=PairingConfig(soft=False),
        peft=PeftConfig(method="lora", rank=sizes.rank),
        reference="cached" if row.needs_reference else "auto",
        learning_rate=sizes.learning_rate,
        global_batch_size=sizes.groups_per_step,
        num_epochs=sizes.epochs,
        max_length=MAX_LENGTH,
        num_samples=0,
        seed=bench.seed,
        resume=True,
    )
    run = prepare(config, Silent())
    resume(run)
    due = sizes.due(run.total_steps)

    def measure() -> None:
        save_checkpoint(run)  # before the point: killed in between, it is measured again
        _record(bench, arm, run.policy, run.step, sizes.seen(run.step, run.total_steps, online=False))

    _pass_over(bench, arm, due, run.step)
    if run.step in due:
        measure()
    for info in steps(run):
        if info.step in due:
            measure()
    save_final(run)
    return len(due)


def _by_ppo(bench: Bench, arm: PPOArm) -> int:
    sizes = bench.sizes
    prompts_per_step = -(-sizes.prompts // sizes.rounds)
    config = PPOConfig(
        steps=sizes.rounds,
        prompts_per_step=prompts_per_step,
        completions_per_prompt=sizes.completions,
        max_new_tokens=sizes.max_new_tokens,
        epochs=sizes.epochs,
        minibatch_size=sizes.groups_per_step * sizes.completions,
        learning_rate=sizes.learning_rate,
        beta=0.1,
        target_kl=arm.target_kl,
        horizon=1.25 * prompts_per_step * sizes.completions,  # few rounds: β may change by 16 % in each
        seed=bench.seed,
    )
    model = load_model(str(bench.base))
    adapted = add_adapter(model, PeftConfig(method="lora", rank=sizes.rank), seed=bench.seed)
    policy = Policy(adapted).to(bench.device)
    prompts = [prompt.ids for prompt in bench.prompts]
    ppo = make_ppo(config, policy, AdapterOff(policy), bench.tokenizer, prompts, _scorer(bench, arm))
    state = bench.folder / "runs" / key(arm) / "ppo.safetensors"
    state.parent.mkdir(parents=True, exist_ok=True)
    if state.exists():
        load_ppo(ppo, state)
    due = sizes.due(config.steps)
    _pass_over(bench, arm, due, ppo.step)
    if ppo.step in due:
        _record_ppo(bench, arm, ppo)
    for _ in ppo_steps(ppo):
        if ppo.step in due:
            save_ppo(ppo, state)
            _record_ppo(bench, arm, ppo)
    save_model(policy.for_saving(), state.parent / "final")
    bench.tokenizer.save_pretrained(str(state.parent / "final"))
    return len(due)


def _pass_over(bench: Bench, arm: Arm, due: Sequence[int], step: int) -> None:
    """Counts the points that were measured before the step that a killed sweep goes on from."""
    for earlier in due:
        if earlier < step:
            bench.advance(f"{arm.method} {arm.strength}".strip())


def _record_ppo(bench: Bench, arm: PPOArm, ppo: PPO) -> None:
    seen = bench.sizes.seen(ppo.step, ppo.config.steps, online=True)
    _record(bench, arm, ppo.policy, ppo.step, seen)


def _record(bench: Bench, arm: Arm, policy: Policy, step: int, seen: int) -> None:
    """Measures a policy and writes its point, unless that is there."""
    path = bench.path(key(arm), step)
    if not path.exists():
        rows = rows_of_policy(
            policy,
            AdapterOff(policy),
            bench.tokenizer,
            bench.test,
            bench.score,
            completions=bench.sizes.test_completions,
            max_new_tokens=bench.sizes.max_new_tokens,
            seed=bench.seed,
        )
        write_point(path, arm.method, arm.strength, step, seen, rows)
    bench.advance(f"{arm.method} {arm.strength}".strip())


def write_point(
    path: Path,
    method: str,
    strength: str,
    step: int,
    samples: int,
    rows: Sequence[dict[str, Any]],
    bound: float | None = None,
) -> None:
    """Writes a point's record, whole or not at all; ``evaluate.frontier`` reads it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {"method": method, "strength": strength, "step": step, "samples": samples, "bound": bound, "rows": rows}
    write_json(path, record)


def _scorer(bench: Bench, arm: PPOArm) -> Scorer:
    """What PPO is rewarded with: the scorer on the text, or the reward model.

    The reward model's scores are shifted and scaled to mean 0 and variance 1 on the reference's completions, as Ziegler
    et al. 2019 (arXiv 1909.08593) do: they are known up to a constant, and β has to mean the same for both.
    """
    tokenizer: Any = bench.tokenizer

    def true(prompts: Sequence[Tokens], completions: Sequence[Tokens]) -> list[float]:
        texts = ([tokenizer.decode(ids, skip_special_tokens=True) for ids in pair] for pair in (prompts, completions))
        return [bench.score(prompt, completion) for prompt, completion in zip(*texts, strict=True)]

    if arm.method == "ppo_true":
        return true
    model, _ = load_reward_model(bench.reward_model, device=bench.device)
    groups = load_groups(bench.preferences)
    prompt_ids = prompt_token_ids([group.prompt for group in groups], tokenizer, "as_is")
    asked, answers = [], []
    for group, ids in zip(groups, prompt_ids, strict=True):
        for completion in group.completions:
            asked.append(tuple(ids))
            own = tokenizer(plain(completion.text), add_special_tokens=False)["input_ids"]
            answers.append((*own, tokenizer.eos_token_id))
    known = reward_scores(model, asked, answers)
    mean, spread = float(np.mean(known)), max(float(np.std(known)), 1e-6)
    return lambda prompts, completions: [
        (value - mean) / spread for value in reward_scores(model, prompts, completions)
    ]
