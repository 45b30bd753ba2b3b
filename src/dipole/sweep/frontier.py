"""The reward–KL frontier of a base model: fine-tune, sample, rate, train every method at every strength, measure.

The set-up of Rafailov et al. 2023 (arXiv 2305.18290), section 6.1, for any model, texts and scorer. Each piece of work
ends in a file, and what is there isn't done again: a killed sweep loses the piece in flight.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml

from dipole.config import LossConfig, PairingConfig, PeftConfig, TrainConfig
from dipole.data.formats import save_groups
from dipole.errors import ConfigError, nearest
from dipole.evaluate.frontier import Point, best_of_n_bound, read_points
from dipole.evaluate.frontier_page import write_frontier
from dipole.policy.embedded import embedded_model
from dipole.policy.load import load_model, load_tokenizer
from dipole.policy.logprobs import Policy
from dipole.policy.reward import load_reward_model, reward_scores
from dipole.progress import Progress, Silent
from dipole.sweep.arms import MAX_LENGTH, Bench, run_arm, write_point
from dipole.sweep.measured import drawn, rows_of_best
from dipole.sweep.plan import PRESETS, Sizes
from dipole.sweep.texts import (
    Prompt,
    Score,
    Texts,
    divided,
    imitation_groups,
    open_score,
    rated_groups,
    read_texts,
)
from dipole.train.lock import locked
from dipole.train.run import train
from dipole.train.track import write_json

PIECE = 16
"""Prompts whose completions are drawn at a time, and kept in a file."""


class _WithoutRemarks:
    """Progress without what training has to say of its options and data, which the sweep chose."""

    def __init__(self, progress: Progress) -> None:
        self.stage, self.advance = progress.stage, progress.advance

    def say(self, text: str) -> None:
        """Ignored."""


def run_frontier(
    output: Path,
    *,
    preset: str = "quick",
    sizes: Sizes | None = None,
    model: str | None = None,
    texts: str | None = None,
    scorer: str = "vader",
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Point]:
    """Sweeps methods and strengths, and writes points, table, figures and page.

    Args:
        output: the folder; what it holds of the same sweep isn't done again.
        preset: ``"quick"`` or ``"full"``.
        sizes: instead of the preset's.
        model: a local folder or hub id; SmolLM2-135M-Instruct by default.
        texts: a file with a text a line; film-review sentences by default.
        scorer: see ``texts.open_score``.
        seed: of everything.
        progress: is told where the sweep is.

    Raises:
        ConfigError: an option is wrong, or the folder holds another sweep.
        DataError: there are too few texts.
    """
    progress = progress or Silent()
    if preset not in PRESETS:
        raise ConfigError(f"there is no preset '{preset}'", where="--preset", remedy=nearest(preset, PRESETS))
    settled = sizes or PRESETS[preset]
    score = open_score(scorer)
    name = model or str(embedded_model(progress))
    with locked(output, progress.say):
        asked = {"model": model, "texts": texts, "scorer": scorer, "seed": seed, "sizes": _plain(asdict(settled))}
        _settle_config(output / "config.yaml", asked)
        parts = divided(read_texts(texts), load_tokenizer(name), settled, seed)
        base = _imitate(output, name, parts, settled, seed, progress)
        bench = _bench(output, base, parts, score, settled, seed, progress)
        progress.stage("Measuring methods", total=settled.points * len(settled.arms))
        for arm in settled.arms:
            if bench.is_done(arm):
                progress.advance(settled.points)
            else:
                run_arm(bench, arm)
        points = read_points(output / "points")
        write_frontier(points, output, reward=f"mean reward ({scorer})", setting=_plain(asked))
    return points


def _plain(value: Any) -> Any:
    """Without tuples and empty fields, as YAML has it."""
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items() if item is not None}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _settle_config(path: Path, asked: dict[str, Any]) -> None:
    if path.exists():
        there = yaml.safe_load(path.read_text(encoding="utf-8"))
        if there != _plain(asked):
            different = [name for name in asked if there.get(name) != _plain(asked).get(name)]
            raise ConfigError(
                f"the folder holds a sweep with another {', '.join(different)}",
                where=f"--output {path.parent}",
                remedy="Choose another folder, or the same settings to go on",
            )
        return
    path.write_text(yaml.safe_dump(_plain(asked), sort_keys=False, allow_unicode=True), encoding="utf-8")


def _imitate(output: Path, model: str, parts: Texts, sizes: Sizes, seed: int, progress: Progress) -> Path:
    """The base model, fine-tuned on texts: the reference of everything after it."""
    run = output / "runs" / "base"
    if not (run / "final" / "config.json").exists():
        data = output / "imitated.jsonl"
        save_groups(imitation_groups(parts), data)
        config = TrainConfig(
            model=model,
            data=str(data),
            output=str(run),
            loss=LossConfig(name="sft"),
            learning_rate=sizes.imitation_rate,
            global_batch_size=sizes.imitated_per_step,
            max_length=MAX_LENGTH,
            num_samples=0,
            checkpoint_every=25,
            seed=seed,
            resume=True,
        )
        train(config, _WithoutRemarks(progress), kind="sweep")
    return run / "final"


def _bench(output: Path, base: Path, parts: Texts, score: Score, sizes: Sizes, seed: int, progress: Progress) -> Bench:
    """What arms need, and the points that need no training: the reference, and the best of N of its draws."""
    tokenizer = load_tokenizer(str(base))

    def say(note: str) -> None:
        progress.advance(1, note)

    bench = Bench(
        folder=output,
        sizes=sizes,
        base=base,
        tokenizer=tokenizer,
        preferences=output / "preferences.jsonl",
        reward_model=output / "runs" / "reward_model" / "final",
        prompts=parts.prompts,
        test=parts.test,
        score=score,
        seed=seed,
        advance=say,
    )
    total = len(parts.prompts) * sizes.completions + len(parts.test) * sizes.draws
    progress.stage("Sampling from the fine-tuned model", total=total)
    answers = _draws(bench, parts.prompts, sizes.completions, "prompts", progress)
    draws = _draws(bench, parts.test, sizes.draws, "test", progress)
    if not bench.preferences.exists():
        texts = [[item["text"] for item in items] for items in answers]
        save_groups(rated_groups(parts.prompts, texts, score), bench.preferences)
    _train_reward_model(bench, progress)
    _write_reference_points(bench, draws)
    return bench


def _draws(
    bench: Bench, prompts: Sequence[Prompt], count: int, name: str, progress: Progress
) -> list[list[dict[str, Any]]]:
    """``count`` completions of each prompt, kept in files of ``PIECE`` prompts each."""
    policy: Policy | None = None
    found: list[list[dict[str, Any]]] = []
    for start in range(0, len(prompts), PIECE):
        part, path = prompts[start : start + PIECE], bench.folder / "draws" / f"{name}-{start:05d}.json"
        if not path.exists():
            policy = policy or Policy(load_model(str(bench.base))).to(bench.device).eval()
            samples = drawn(
                policy, bench.tokenizer, part, count, max_new_tokens=bench.sizes.max_new_tokens, seed=bench.seed
            )
            rows = [{"text": item.verbatim, "ids": list(item.ids), "finished": item.finished} for item in samples]
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, [rows[first : first + count] for first in range(0, len(rows), count)])
        found += json.loads(path.read_text(encoding="utf-8"))
        progress.advance(len(part) * count)
    return found


def _train_reward_model(bench: Bench, progress: Progress) -> None:
    """Bradley–Terry on the same pairs as every other method, ties included."""
    if (bench.reward_model / "config.json").exists():
        return
    sizes = bench.sizes
    config = TrainConfig(
        model=str(bench.base),
        data=str(bench.preferences),
        output=str(bench.reward_model.parent),
        objective="reward_model",
        pairing=PairingConfig(soft=True),
        peft=PeftConfig(method="lora", rank=sizes.rank),
        learning_rate=sizes.learning_rate,
        global_batch_size=sizes.groups_per_step,
        num_epochs=sizes.epochs,
        max_length=MAX_LENGTH,
        num_samples=0,
        checkpoint_every=25,
        seed=bench.seed,
        resume=True,
    )
    train(config, _WithoutRemarks(progress), kind="sweep")


def _write_reference_points(bench: Bench, draws: Sequence[Sequence[dict[str, Any]]]) -> None:
    """The reference itself, and the best of N by the scorer and by the reward model."""
    rewards = [
        [bench.score(prompt.text, item["text"]) for item in items]
        for prompt, items in zip(bench.test, draws, strict=True)
    ]
    rows = [
        {"prompt": prompt.text, "completion": item["text"], "reward": reward, "kl": 0.0, "k1": 0.0, "k3": 0.0}
        | {"tokens": len(item["ids"]), "finished": item["finished"]}
        for prompt, items, own in zip(bench.test, draws, rewards, strict=True)
        for item, reward in zip(items, own, strict=True)
    ]
    write_point(bench.path("reference", 0), "reference", "", 0, 0, rows)
    if all(bench.path(f"best_of_n_rm-{n}", 0).exists() for n in bench.sizes.best_of):
        return
    model, _ = load_reward_model(bench.reward_model, device=bench.device)
    prompts = [prompt.ids for prompt, items in zip(bench.test, draws, strict=True) for _ in items]
    ids = [tuple(item["ids"]) for items in draws for item in items]
    flat = iter(reward_scores(model, prompts, ids))
    judged = [[next(flat) for _ in items] for items in draws]
    for n in bench.sizes.best_of:
        for method, selector in (("best_of_n", rewards), ("best_of_n_rm", judged)):
            best = rows_of_best(bench.test, rewards, selector, n)
            write_point(bench.path(f"{method}-{n}", 0), method, f"N = {n}", 0, 0, best, bound=best_of_n_bound(n))
    del model
    torch.cuda.empty_cache()
