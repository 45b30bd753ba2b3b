"""The main job end to end: a real model learns from real judgments to write reviews that people like better.

The data are film-review sentences, each rated by 15 to 29 people. Sentences of different mean rating become the
completions of one prompt; the label of a pair is the share of its rater pairs that put the first above the second.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from dipole.config import LossConfig, PeftConfig, TrainConfig
from dipole.data.formats import save_groups
from dipole.data.reviews import Sentence, film_reviews
from dipole.errors import ConfigError
from dipole.evaluate.measure import measure_run
from dipole.evaluate.report import write_report
from dipole.evaluate.run_folder import Measure
from dipole.group import Comparison, Completion, Group
from dipole.policy.embedded import embedded_model
from dipole.progress import Progress, Silent
from dipole.train.run import train

PROMPT = "Write a one-sentence review of a film."
WORDS = (4, 12)
"""Shortest and longest sentence in words: short ones make the demo quick."""
COMPLETIONS = 8
GROUPS_PER_STEP = 8
STEPS = 10
HELD_OUT_GROUPS = 12
SAMPLES = 48


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoResult:
    """What the demo found.

    Args:
        measures: before, after and the difference, with intervals.
        report: the page.
        better: whether held-out accuracy is above one half and the sentiment of samples rose, by their intervals.
    """

    measures: list[Measure]
    report: Path
    better: bool


def run_demo(output: Path, *, model: str | None = None, seed: int = 0, progress: Progress | None = None) -> DemoResult:
    """Trains on the film reviews, measures, and writes a run folder with a report.

    Args:
        output: the run folder.
        model: a local folder or a hub id; the embedded SmolLM2-135M-Instruct by default.
        seed: of the split, the groups, the order and the samples.
        progress: is told where the demo is.
    """
    progress = progress or Silent()
    scorer = sentiment_scorer()
    folder = model or str(embedded_model(progress))
    data = output / "groups.jsonl"
    if (output / "metrics.jsonl").exists():
        raise ConfigError(
            "the folder already holds a run", where=f"--output {output}", remedy="Choose another, or delete it"
        )
    output.mkdir(parents=True, exist_ok=True)
    save_groups(review_groups(load_sentences(), seed=seed), data)
    train(demo_config(folder, data, output, seed), progress, kind="demo")
    progress.stage("Measuring")
    score_samples(output / "samples.jsonl", scorer)
    measures = measure_run(output)
    return DemoResult(measures=measures, report=write_report(output), better=is_better(measures))


def demo_config(model: str, data: Path, output: Path, seed: int) -> TrainConfig:
    """LoRA on all linear layers, soft labels; a higher learning rate than usual, since the run is short."""
    return TrainConfig(
        model=model,
        data=str(data),
        output=str(output),
        allow_shared_prompts=True,
        loss=LossConfig(name="dpo", beta=0.1),
        peft=PeftConfig(method="lora", rank=16),
        learning_rate=5e-4,
        global_batch_size=GROUPS_PER_STEP,
        max_length=256,
        seed=seed,
        num_samples=SAMPLES,
        sample_tokens=40,
    )


def load_sentences() -> list[Sentence]:
    """The shipped sentences within ``WORDS``."""
    return film_reviews(words=WORDS)


def review_groups(sentences: Sequence[Sentence], *, seed: int) -> list[Group]:
    """Groups of ``COMPLETIONS`` sentences each, held-out ones first; no sentence is in two groups."""
    shuffled = [sentences[index] for index in np.random.default_rng(seed).permutation(len(sentences))]
    held_out = HELD_OUT_GROUPS * COMPLETIONS
    trained = STEPS * GROUPS_PER_STEP * COMPLETIONS
    return [
        *_groups(shuffled[:held_out], "eval", seed),
        *_groups(shuffled[held_out : held_out + trained], "train", seed),
    ]


def _groups(sentences: Sequence[Sentence], split: str, seed: int) -> list[Group]:
    """Each group takes one sentence from every band of mean rating, so that its completions differ."""
    random = np.random.default_rng((seed, len(sentences)))
    ranked = sorted(sentences, key=lambda sentence: (float(np.mean(sentence.ratings)), sentence.id))
    count = len(ranked) // COMPLETIONS
    bands = [random.permutation(count) + band * count for band in range(COMPLETIONS)]
    return [
        _group(f"{split}-{number}", [ranked[bands[band][number]] for band in random.permutation(COMPLETIONS)], split)
        for number in range(count)
    ]


def _group(name: str, sentences: Sequence[Sentence], split: str) -> Group:
    return Group(
        id=name,
        prompt=({"role": "user", "content": PROMPT},),
        completions=tuple(
            Completion(text=sentence.text, source="people", meta={"sentence": sentence.id}) for sentence in sentences
        ),
        judgments=tuple(
            Comparison(i=i, j=j, p=probability_above(sentences[i].ratings, sentences[j].ratings))
            for i, j in combinations(range(len(sentences)), 2)
        ),
        split=split,
    )


def probability_above(left: Sequence[int], right: Sequence[int]) -> float:
    """The share of rater pairs, one of each side, that put ``left`` above ``right``; ties count half."""
    gap = np.asarray(left)[:, None] - np.asarray(right)[None, :]
    return float(np.mean((gap > 0) + 0.5 * (gap == 0)))


def sentiment_scorer() -> Any:
    """From a text to its sentiment in [−1, 1], by the rules of VADER (Hutto and Gilbert 2014)."""
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ImportError as fault:
        raise ConfigError(
            "the demo needs vaderSentiment and gguf", remedy="Install them: pip install 'dipole[demo]'"
        ) from fault
    analyzer = SentimentIntensityAnalyzer()
    return lambda text: float(analyzer.polarity_scores(text)["compound"])


def score_samples(path: Path, scorer: Any) -> None:
    """Gives every sample its score, in place."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for row in rows:
        row |= {"score": scorer(row["completion"]), "scorer": "VADER, a sentiment lexicon (−1 to 1)"}
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def is_better(measures: Sequence[Measure]) -> bool:
    """Whether the two claims of the demo hold by their intervals."""
    found = {measure.name: measure for measure in measures}
    accuracy, score = found["Held-out accuracy"], found["Score of samples"]
    above_half = accuracy.after is not None and accuracy.after.low is not None and accuracy.after.low > 0.5
    return above_half and score.verdict == "better"
