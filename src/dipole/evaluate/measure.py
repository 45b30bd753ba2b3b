"""What training changed, from a run folder's own files: every number with its interval and its n.

Reads ``samples.jsonl`` and ``held_out.jsonl``, writes ``evaluation.json``. Nothing here runs a model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from dipole.evaluate.calibration import brier, slope
from dipole.evaluate.diversity import SET, distinct, self_bleu, sets_of
from dipole.evaluate.run_folder import Measure
from dipole.evaluate.stats import Estimate, kl, mean, paired_difference, share, verdict

CLEAR = 0.75
"""A pair on which at least this share of the judgments agrees has a clear majority."""

Rows = list[dict[str, Any]]


def measure_run(run: Path) -> list[Measure]:
    """Measures a finished run and writes ``evaluation.json``.

    Returns:
        Its rows: held-out accuracy, margin, calibration and displacement where there is held-out data; score, KL,
        length, endings and diversity where there are samples.
    """
    every_row, samples = _stages(run / "held_out.jsonl"), _stages(run / "samples.jsonl")
    held_out = _finite_pairs(*every_row)
    measures = [
        *_accuracy(*held_out),
        *_margins(*held_out),
        *_scores(*samples),
        *_kl([row for row in samples[1] if _is_finite(row)]),
        *_shape(*samples),
        *_diversity(*samples),
        *_displacement(held_out[1]),
    ]
    notes = [*_not_finite(every_row[1], held_out[1], samples[1]), *_notes(held_out[1], samples[1])]
    content = {"rows": [asdict(measure) for measure in measures], "notes": notes}
    (run / "evaluation.json").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return measures


def _stages(path: Path) -> tuple[Rows, Rows]:
    """The rows of a file from before training, and from after it, in the same order."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    rows = [json.loads(line) for line in lines]
    return [row for row in rows if row["stage"] == "before"], [row for row in rows if row["stage"] == "after"]


def _is_finite(row: dict[str, Any]) -> bool:
    """Whether a row has all of its values: what isn't finite is ``null`` in the file, and named."""
    return "not_finite" not in row


def _finite_pairs(before: Rows, after: Rows) -> tuple[Rows, Rows]:
    """The rows that have all of their values; one that lacks them at one stage is left out of both."""
    if len(before) != len(after):
        return [row for row in before if _is_finite(row)], [row for row in after if _is_finite(row)]
    kept = [pair for pair in zip(before, after, strict=True) if all(map(_is_finite, pair))]
    return [pair[0] for pair in kept], [pair[1] for pair in kept]


def _not_finite(every_row: Rows, kept: Rows, samples: Rows) -> list[str]:
    """What had to be left out, in words."""
    notes = []
    if left_out := len(every_row) - len(kept):
        ids = {row["id"] for row in kept}
        groups = [id for id in dict.fromkeys(row["id"] for row in every_row) if id not in ids]
        named = f" (groups without any: {', '.join(groups[:5])}{' …' if len(groups) > 5 else ''})" if groups else ""
        notes.append(
            f"{left_out} of {len(every_row)} held-out comparisons have a value that isn't finite, before or after"
            f" training, and are in none of these numbers{named}."
        )
    if wrong := sum(not _is_finite(row) for row in samples):
        notes.append(
            f"{wrong} of {len(samples)} samples have a log-probability that isn't finite and are left out of the KL."
        )
    return notes


def _accuracy(before: Rows, after: Rows) -> list[Measure]:
    """How often the implicit reward ranks a held-out pair as people did; on all pairs, and on the clear ones."""
    measures: list[Measure] = []
    for name, threshold in (("Held-out accuracy", 0.5), ("Held-out accuracy, clear pairs", CLEAR)):
        kept = [
            [row for row in stage if "prob" in row and row["prob"] > 0.5 and row["prob"] >= threshold]
            for stage in (before, after)
        ]
        if not kept[1] or (measures and len(kept[1]) == measures[0].after.n):  # type: ignore[union-attr]
            continue
        what = "How often the implicit reward says of held-out answers what people said; ties count half."
        if measures:
            what = f"The same on pairs where at least {CLEAR:.0%} of the judgments agree."
        outcomes = [[row["rewards/accuracies"] + row["rewards/ties"] / 2 for row in stage] for stage in kept]
        groups = [[row["id"] for row in stage] for stage in kept]
        estimates = [share(wins, ids) for wins, ids in zip(outcomes, groups, strict=True)]
        difference = paired_difference(outcomes[1], outcomes[0], groups[1]) if len(kept[0]) == len(kept[1]) else None
        measures.append(_measure(name, what, "share", estimates[0], estimates[1], difference, "higher"))
    return measures


def _margins(before: Rows, after: Rows) -> list[Measure]:
    """The margin of implicit rewards, and σ(margin) as a probability beside the share of people that it is to be."""
    kept = [[row for row in stage if "prob" in row and "rewards/margins" in row] for stage in (before, after)]
    if not kept[1]:
        return []
    margins, shares, groups = (
        [[row[name] for row in stage] for stage in kept] for name in ("rewards/margins", "prob", "id")
    )
    briers = [brier(*columns) for columns in zip(margins, shares, strict=True)]

    def change(name: str, what: str, unit: str, values: list[list[float]]) -> Measure:
        old, new = (mean(side, ids) if side else None for side, ids in zip(values, groups, strict=True))
        difference = paired_difference(values[1], values[0], groups[1]) if len(values[0]) == len(values[1]) else None
        return Measure(name, what, unit, old, new, difference, None)

    return [
        change("Margin", "Implicit reward of held-out chosen answers minus that of rejected ones.", "reward", margins),
        change(
            "Brier score of σ(margin)",
            "Mean squared distance of σ(margin) from the share of people who prefer the chosen answer.",
            "",
            briers,
        ),
        Measure(
            "Calibration slope",
            "What margins would have to be multiplied by for σ(margin) to fit people best: 1 is calibrated, below 1 is"
            " too sure, above 1 not sure enough.",
            "",
            None,
            slope(margins[1], shares[1], groups[1]),
            None,
            None,
        ),
    ]


def _scores(before: Rows, after: Rows) -> list[Measure]:
    """The mean score of samples, where somebody scored them."""
    if not after or any(row.get("score") is None for row in (*before, *after)):
        return []
    scorer = after[0].get("scorer", "score")
    what = f"Mean score of sampled answers by {scorer}, which played no part in training."
    return [_sampled("Score of samples", what, "score", "score", before, after, "higher")]


def _kl(after: Rows) -> list[Measure]:
    """KL(policy‖reference), from samples of the policy at temperature 1."""
    if not after or any(row["ref_logps"] is None for row in after):
        return []
    logps, ref_logps = [row["logps"] for row in after], [row["ref_logps"] for row in after]
    what = "KL(policy‖reference) a sampled answer: how far the model has moved. Estimator {}."
    prompts = _clusters(after)
    return [
        Measure(
            f"KL, {name}", what.format(name), "nats", None, kl(logps, ref_logps, prompts, estimator=name), None, None
        )
        for name in ("k1", "k3")
    ]


def _shape(before: Rows, after: Rows) -> list[Measure]:
    """Length and endings of samples: what often changes unasked."""
    if not after:
        return []
    ended = [[float(row["finished"]) for row in stage] for stage in (before, after)]
    return [
        _sampled("Length of samples", "Mean tokens of a sampled answer.", "tokens", "tokens", before, after, None),
        Measure(
            "Samples that end",
            "Sampled answers that ended by themselves before the limit.",
            "share",
            share(ended[0]) if before else None,
            share(ended[1]),
            None,
            None,
        ),
    ]


def _diversity(before: Rows, after: Rows) -> list[Measure]:
    """How different samples are from each other, four at a time."""
    sets = sets_of([row["prompt"] for row in after])
    if not sets:
        return []
    stages = [before, after] if len(before) == len(after) else [after]
    texts = [[[str(stage[place]["completion"]) for place in places] for places in sets] for stage in stages]
    prompts = _clusters([after[places[0]] for places in sets])
    found = []
    for name, what, function in _DIVERSITY:
        values = [[function(part) for part in stage] for stage in texts]
        known = [number for number in range(len(sets)) if all(stage[number] is not None for stage in values)]
        if not known:
            continue
        clusters = None if prompts is None else [prompts[number] for number in known]
        columns = [[stage[number] or 0.0 for number in known] for stage in values]
        old = mean(columns[0], clusters) if len(columns) == 2 else None
        difference = paired_difference(columns[1], columns[0], clusters) if len(columns) == 2 else None
        found.append(Measure(name, what, "share", old, mean(columns[-1], clusters), difference, None))
    return found


_DIVERSITY: tuple[tuple[str, str, Callable[[Sequence[str]], float | None]], ...] = (
    ("Distinct words", f"Different ones among the words of {SET} samples.", partial(distinct, n=1)),
    (
        "Distinct pairs of words",
        f"Different ones among the neighbouring words of {SET} samples.",
        partial(distinct, n=2),
    ),
    (
        "Self-BLEU",
        f"How alike {SET} samples are: BLEU of each against the others, 1 where all are the same.",
        self_bleu,
    ),
)


def _displacement(after: Rows) -> list[Measure]:
    """How the log-probability of chosen answers has moved."""
    moved = [(row["logps/displacement"], row["id"]) for row in after if "logps/displacement" in row]
    if not moved:
        return []
    estimate = mean([value for value, _ in moved], [group for _, group in moved])
    what = "Log-probability of held-out chosen answers, trained model minus reference; below 0 they became less likely."
    return [Measure("Change of chosen", what, "nats", None, estimate, None, None)]


def _sampled(name: str, what: str, unit: str, column: str, before: Rows, after: Rows, better: str | None) -> Measure:
    old, new = ([row[column] for row in stage] for stage in (before, after))
    difference = paired_difference(new, old, _clusters(after)) if len(old) == len(new) else None
    return _measure(
        name, what, unit, mean(old, _clusters(before)) if old else None, mean(new, _clusters(after)), difference, better
    )


def _measure(
    name: str,
    what: str,
    unit: str,
    before: Estimate | None,
    after: Estimate,
    difference: Estimate | None,
    better: str | None,
) -> Measure:
    known = better is not None and difference is not None
    return Measure(name, what, unit, before, after, difference, verdict(difference) if known and difference else None)


def _clusters(rows: Rows) -> Sequence[str] | None:
    """The prompt of each sample; with a single prompt the statement is about that prompt, and samples are alone."""
    prompts = [row["prompt"] for row in rows]
    return prompts if len(set(prompts)) > 1 else None


def _notes(held_out: Rows, samples: Rows) -> list[str]:
    notes = []
    if held_out:
        notes.append(
            "Before training policy and reference are the same, every implicit reward is 0, and all pairs are ties: an"
            " accuracy of one half is where every run starts."
        )
    if samples and _clusters(samples) is None:
        notes.append("All samples answer one prompt, so their intervals speak of that prompt alone.")
    return notes
