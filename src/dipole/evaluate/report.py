"""One self-contained page of a run: ``report.html``, made from the files in its folder and from nothing else.

The page holds no script, loads nothing, and works offline. Model text reaches it as inert text: control characters are
taken out when the files are read, and the template escapes everything. The only markup that isn't the template's own
are the pictures, which are made from numbers.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from dipole.evaluate import headline, plots
from dipole.evaluate.page import environment, write_page
from dipole.evaluate.run_folder import OPTIONAL, Measure, RunFolder, read_run_folder
from dipole.evaluate.stats import Estimate

SHOWN_PAIRS = 6
"""Samples that stand open; the others are behind a click."""
KEPT_PAIRS = 100
"""Samples in the page at all; ``samples.jsonl`` has the rest."""
SHOWN_CHARACTERS = 2000
"""Of one text; a longer one is cut, and the page says so."""


def write_report(run: Path) -> Path:
    """Writes ``report.html`` into a run folder and returns its path. An older one is replaced at once or not at all.

    Raises:
        DataError: ``run`` is not a run folder, or a file of it can't be read.
    """
    return write_page(render(read_run_folder(run)), run / "report.html")


def render(run: RunFolder) -> str:
    """The page of a run as HTML."""
    pairs = _pairs(run.samples)
    return _template().render(
        run=run,
        manifest=run.manifest,
        outcome=headline.outcome(run),
        lead=headline.lead(run),
        facts=_facts(run),
        measures=[(measure, _picture(index, measure)) for index, measure in enumerate(run.measures)],
        curves=_curves(run),
        displacement=headline.displacement(run.metrics),
        pairs=pairs[:SHOWN_PAIRS],
        more_pairs=pairs[SHOWN_PAIRS:KEPT_PAIRS],
        num_pairs=len(pairs),
        underway=[sample for sample in run.samples if sample.get("stage") == "step"][:KEPT_PAIRS],
        environment=run.manifest.get("environment") or {},
        command=_command(run),
        absent=[(name, OPTIONAL[name]) for name in run.missing],
    )


def _template() -> jinja2.Template:
    templates = environment()
    templates.filters |= {
        "number": headline.number,
        "places": headline.places,
        "by_prompt": _by_prompt,
        "shorten": _shorten,
        "as_text": _as_text,
        "counted": _counted,
    }
    return templates.get_template("report.html.jinja")


@dataclass(frozen=True, slots=True)
class Pair:
    """The same prompt and seed before and after training; either may be missing."""

    prompt: str
    before: Mapping[str, Any] | None
    after: Mapping[str, Any] | None


def _pairs(samples: Sequence[Mapping[str, Any]]) -> list[Pair]:
    """Samples before and after, paired by prompt and index: every prompt's first, then every prompt's second."""
    sides: dict[tuple[int, str], dict[str, Mapping[str, Any]]] = {}
    for sample in samples:
        index = sample.get("index")
        if sample.get("stage") in ("before", "after"):
            key = (index if isinstance(index, int) else 0, _as_text(sample.get("prompt", "")))
            sides.setdefault(key, {})[sample["stage"]] = sample
    ordered = sorted(sides.items(), key=lambda item: item[0][0])  # stable: prompts stay in the order of the file
    return [Pair(prompt, side.get("before"), side.get("after")) for (_, prompt), side in ordered]


def _by_prompt(pairs: Sequence[Pair]) -> list[tuple[str, list[Pair]]]:
    prompts: dict[str, list[Pair]] = {}
    for pair in pairs:
        prompts.setdefault(pair.prompt, []).append(pair)
    return list(prompts.items())


def _curves(run: RunFolder) -> list[tuple[plots.Chart, Markup]]:
    drawn = [(chart, plots.training_curve(chart, run.metrics)) for chart in plots.CHARTS]
    return [(chart, Markup(svg)) for chart, svg in drawn if svg]


def _picture(index: int, measure: Measure) -> Markup | None:
    svg = plots.interval_pair(measure.before, measure.after, name=str(index))
    return Markup(svg) if svg else None


def _facts(run: RunFolder) -> list[tuple[str, str, str]]:
    """(what, in large, in small) for the strip under the heading; only what the manifest says."""
    model, data = run.manifest.get("model") or {}, run.manifest.get("data") or {}
    environment = run.manifest.get("environment") or {}
    completions = [f"{data[key]:,} {key}" for key in ("completions", "relations") if data.get(key)]
    facts = [
        ("Trained", _count(model.get("trainable")), f"of {_count(model.get('parameters'))} parameters"),
        ("Groups", _count(data.get("groups")), ", ".join(completions)),
        ("Held out", _count(data.get("eval_groups")), "groups, never trained on"),
        ("Steps", _count(headline.last_step(run.metrics)), headline.method(run.config)),
        ("Time", headline.duration(run.manifest.get("seconds")), _machine(environment)),
    ]
    return [fact for fact in facts if fact[1] not in ("–", "0")]


def _machine(environment: Mapping[str, Any]) -> str:
    threads = environment.get("threads")
    return f"{environment.get('device', '')}" + (f", {threads} threads" if threads else "")


def _count(value: Any) -> str:
    """A count in at most four digits, such as ``"4.88 M"``."""
    if not isinstance(value, int | float):
        return "–"
    for scale, letter in ((1e9, " B"), (1e6, " M")):
        if value >= scale:
            return f"{value / scale:.3g}{letter}"
    return f"{value:,.0f}"


def _command(run: RunFolder) -> str | None:
    """The command that makes the run again, from the folder that holds its folder."""
    kind = run.manifest.get("kind")
    if kind not in ("train", "demo") or "config.yaml" in run.missing:
        return None
    return shlex.join(["dipole", kind, "--config", f"{run.name}/config.yaml", "--output", f"{run.name}-again"])


def _shorten(value: Any) -> tuple[str, int]:
    """The beginning of a text, and how many characters were left out."""
    text = _as_text(value)
    return text[:SHOWN_CHARACTERS], max(0, len(text) - SHOWN_CHARACTERS)


def _as_text(value: Any) -> str:
    """Text as it is; anything else, such as the messages of a chat, as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _counted(estimate: Estimate) -> str:
    """From how much a number was computed."""
    return f"n = {estimate.n:,}" + (f" in {estimate.clusters:,} clusters" if estimate.clusters is not None else "")
