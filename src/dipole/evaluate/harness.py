"""lm-evaluation-harness beside a run: the commands that measure what else a model can do, and what came of them.

The harness isn't a dependency: its commands are written for a person to run where it is installed, and its files are
read. Both models' results lie in the run's folder, ``harness/before`` and ``harness/after``.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from scipy import special

from dipole.errors import DataError
from dipole.evaluate.run_folder import HARNESS, Measure
from dipole.evaluate.stats import Estimate, mean, paired_difference, share, verdict

Stage = Literal["before", "after"]
STAGES: tuple[Stage, ...] = ("before", "after")
NO_METRICS = ("alias", "name", "sample_len", "sample_count")
"""What a task's results hold besides numbers."""


def commands(run: Path, tasks: str, *, limit: int | None = None) -> list[str]:
    """The harness's commands for the model that a run started from, and for what it trained.

    Args:
        run: the folder of a finished run.
        tasks: as the harness names them, with commas between.
        limit: questions of each task; all by default.

    Raises:
        DataError: the folder has no trained model, or doesn't say what it started from.
    """
    manifest = _object(run / "manifest.json")
    start, final = (manifest.get("model") or {}).get("name"), run / "final"
    if not start or not final.is_dir():
        raise DataError("this is not the folder of a finished run", where=str(run), remedy="Name one that has final/")
    adapted = (final / "adapter_config.json").exists()
    models = {"before": f"pretrained={start}", "after": f"pretrained={start},peft={final}"}
    if not adapted:
        models["after"] = f"pretrained={final}"
    rest = ["--tasks", tasks, "--batch_size", "8", "--log_samples", *(["--limit", str(limit)] if limit else [])]
    return [
        shlex.join(
            [
                "lm_eval",
                "--model",
                "hf",
                "--model_args",
                models[stage],
                *rest,
                "--output_path",
                str(folder_of(run, stage)),
            ]
        )
        for stage in STAGES
    ]


def folder_of(run: Path, stage: Stage) -> Path:
    """Where the harness's files of a stage lie."""
    return run / "harness" / stage


def compare(run: Path) -> list[Measure]:
    """Reads both stages' newest results and writes ``harness.json``, which the run's report shows.

    A row a task and metric. Where both stages have the answers to single questions (``--log_samples``), differences
    are paired; otherwise both standard errors add up, which is too much, since the questions are the same.

    Raises:
        DataError: results are missing, can't be read, or have no metric in common.
    """
    before, after = (_newest(folder_of(run, stage)) for stage in STAGES)
    old, new = _object(before), _object(after)
    measures = []
    for task, numbers in _mapping(new, "results", after).items():
        for key, value in numbers.items():
            name, _, filtered = str(key).partition(",")
            earlier = _mapping(old, "results", before).get(task, {}).get(key)
            if name in NO_METRICS or name.endswith("_stderr") or not _is_number(value) or not _is_number(earlier):
                continue
            known = [_estimate(found, task, name, filtered) for found in (old, new)]
            single = [_answers(file, task, name, filtered) for file in (before, after)]
            shared = [number for number in single[1] if number in single[0]]
            if shared:
                columns = [[answers[number] for number in shared] for answers in single]
                known = [_of_answers(column, estimate) for column, estimate in zip(columns, known, strict=True)]
                difference = paired_difference(columns[1], columns[0])
            else:
                difference = _difference(*known)
            higher = _mapping(new, "higher_is_better", after).get(task, {}).get(name)
            better = None if higher is None else verdict(difference, better="higher" if higher else "lower")
            what = f"lm-evaluation-harness{'' if filtered in ('', 'none') else f', {filtered}'}."
            measures.append(Measure(f"{task}, {name}", what, "", known[0], known[1], difference, better))
    if not measures:
        raise DataError("the two results have no metric in common", where=str(after), remedy="Run the same tasks twice")
    rows = json.dumps({"rows": [asdict(measure) for measure in measures]}, indent=1, ensure_ascii=False)
    (run / HARNESS).write_text(rows + "\n", encoding="utf-8")
    return measures


def _newest(folder: Path) -> Path:
    """The last results under a folder: the harness makes a folder of the model's name, and a file with the time."""
    found = sorted(folder.rglob("results*.json"), key=lambda path: (path.name, str(path)))
    if not found:
        raise DataError(
            "there are no results of lm-evaluation-harness", where=str(folder), remedy="Run the commands for it first"
        )
    return found[-1]


def _object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as fault:
        raise DataError(f"can't be read: {fault}", where=str(path)) from fault
    if not isinstance(found, dict):
        raise DataError("the file has to hold one JSON object", where=str(path))
    return found


def _mapping(results: Mapping[str, Any], name: str, path: Path) -> Mapping[str, Any]:
    found = results.get(name, {})
    if not isinstance(found, dict) or not all(isinstance(item, dict) for item in found.values()):
        raise DataError(f"'{name}' isn't what lm-evaluation-harness writes", where=str(path))
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _estimate(results: Mapping[str, Any], task: str, name: str, filtered: str) -> Estimate:
    """A number with the interval of the standard error beside it, where there is one."""
    numbers = results["results"][task]
    suffix = f",{filtered}" if filtered else ""
    value, error = numbers[name + suffix], numbers.get(f"{name}_stderr{suffix}")
    count = (results.get("n-samples") or {}).get(task, {}).get("effective", 0)
    if not _is_number(error):
        return Estimate(value, None, None, count, "lm-evaluation-harness: none, it gives no standard error", None)
    reach = float(special.ndtri(0.975)) * error
    return Estimate(value, value - reach, value + reach, count, "95% normal, by its standard error", None)


def _of_answers(answers: Sequence[float], known: Estimate) -> Estimate:
    """From single answers where their mean is the task's number, as that of an accuracy is."""
    if known.value is None or not math.isclose(sum(answers) / len(answers), known.value, abs_tol=1e-9):
        return known
    return share(answers) if set(answers) <= {0.0, 1.0} else mean(answers)


def _difference(before: Estimate, after: Estimate) -> Estimate:
    assert before.value is not None
    assert after.value is not None
    value, count = after.value - before.value, min(before.n, after.n)
    if before.low is None or after.low is None:
        return Estimate(value, None, None, count, "difference: none, a standard error is missing", None)
    reach = math.hypot(before.value - before.low, after.value - after.low)
    return Estimate(value, value - reach, value + reach, count, "95% normal, as if questions were different", None)


def _answers(results: Path, task: str, name: str, filtered: str) -> dict[Any, float]:
    """What the metric is of each question, by its number; empty where answers weren't kept."""
    stamp = results.stem.removeprefix("results")
    path = results.with_name(f"samples_{task}{stamp}.jsonl")
    if not path.exists():
        return {}
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    except ValueError as fault:
        raise DataError(f"can't be read: {fault}", where=str(path)) from fault
    return {
        row["doc_id"]: float(row[name])
        for row in rows
        if "doc_id" in row and row.get("filter", filtered) == filtered and _is_number(row.get(name))
    }
