"""``dipole active``."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dipole.errors import ConfigError
from dipole.verbs.verb import Verb

if TYPE_CHECKING:
    from dipole.feedback.active.pool import Pool

LABEL_BUDGET = 4000
"""Judgments in total where more a pair mean fewer pairs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ActiveOptions:
    """Says which pairs to have judged next; or, on data that are all judged, what that would have saved."""

    data: str
    """A file of groups in any dialect."""
    output: str
    """The file of pairs to have judged, .jsonl or .jsonl.gz; with ``--simulate`` a folder."""
    strategy: Literal["random", "uncertain", "certain", "disagreed", "diverse", "change"] = "uncertain"
    """``uncertain``, ``certain``: of the model. ``change``: how much a label would move it. ``disagreed``: votes are
    split. ``diverse``: unlike all that were judged."""
    budget: int = 100
    """How many pairs."""
    random_share: float = 0.1
    """Share of them drawn at random among all, so that estimates from them can be made unbiased."""
    predictions: str | None = None
    """An annotator in the data whose judgments are a model's predictions, as ``dipole judge`` writes those of an
    implicit reward. By default a quick learner of the judged pairs' words predicts."""
    embeddings: str | None = None
    """A local folder of a sentence-embedding model, in the place of words."""
    scores: str | None = None
    """Also writes a file with the model's log-odds of every pair, for ``dipole annotate --scores``."""
    seed: int = 0
    """Of all draws."""
    simulate: bool = False
    """Hides the judgments and replays every strategy: learning curves, labels needed, soft against majority labels."""
    repeats: int = 20
    """Repetitions of the simulation."""


def run(options: ActiveOptions) -> int:
    """Selects or simulates."""
    _refuse(options)
    return _simulate(options) if options.simulate else _select(options)


def _refuse(options: ActiveOptions) -> None:
    defaults = {item.name: item.default for item in fields(ActiveOptions)}
    without = ("strategy", "budget", "predictions", "scores") if options.simulate else ("repeats",)
    for name in without:
        if getattr(options, name) != defaults[name]:
            where = "a simulation" if options.simulate else "a selection"
            raise ConfigError(f"means nothing in {where}", where=f"--{name}", remedy="Leave it out")
    if options.repeats < 2:
        raise ConfigError(f"has to be at least 2, not {options.repeats}", where="--repeats")
    for name in ("output", "scores"):
        file = getattr(options, name)
        if file is not None and Path(file).resolve() == Path(options.data).resolve():
            raise ConfigError("this is the file that is read", where=f"--{name} {file}", remedy="Name another")


def _vectors(options: ActiveOptions) -> Any:
    if options.embeddings is None:
        return None
    from dipole.policy.embed import Embedder

    embedder = Embedder(options.embeddings)
    return lambda texts: embedder(texts).numpy()


def _select(options: ActiveOptions) -> int:
    from dipole import terminal
    from dipole.data.formats import load_groups, save_groups
    from dipole.feedback.active.choose import choose
    from dipole.feedback.active.pool import pool_of, scored, selected_groups, unjudged
    from dipole.feedback.active.strategies import MODEL

    if options.scores is not None and options.strategy not in MODEL:
        raise ConfigError(f"'{options.strategy}' goes by no score of a model", where="--scores", remedy="Leave it out")
    has_odds = options.predictions is not None
    pool = pool_of(load_groups(options.data), options.predictions)
    places = unjudged(pool, options.strategy, has_odds=has_odds)
    scores, odds = scored(pool, options.strategy, places, has_odds=has_odds, vectors=_vectors(options))
    selection = choose(scores, options.budget, random_share=options.random_share, seed=options.seed)
    save_groups(selected_groups(pool, places, selection, options.strategy, scores), options.output)
    if options.scores is not None:
        _write_scores(Path(options.scores), pool, places.tolist(), odds.tolist())
    terminal.show(
        f"{options.output}: {len(selection.places):,} of {len(places):,} pairs, {int(selection.at_random.sum()):,} of"
        f" them at random. Each notes the probability with which it was selected (meta.active.probability)."
    )
    return 0


def _write_scores(file: Path, pool: Pool, places: list[int], odds: list[float]) -> None:
    keys = pool.keys
    rows = [
        {"id": id, "i": i, "j": j, "score": margin}
        for (id, i, j), margin in zip((keys[place] for place in places), odds, strict=True)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _simulate(options: ActiveOptions) -> int:
    from dipole import terminal
    from dipole.data.formats import load_groups
    from dipole.evaluate.learning_curves import curves_of, forms_of, tables, write_curves
    from dipole.feedback.active.simulate import compare_labels, learning_curves
    from dipole.feedback.active.strategies import STRATEGIES

    groups, vectors = load_groups(options.data), _vectors(options)
    same: dict[str, Any] = {"repeats": options.repeats, "seed": options.seed, "vectors": vectors}
    with terminal.progress() as progress:
        curves = curves_of(
            learning_curves(groups, STRATEGIES, random_share=options.random_share, progress=progress, **same)
        )
        forms = {
            "All pairs, more and more votes on each": forms_of(compare_labels(groups, progress=progress, **same)),
            f"{LABEL_BUDGET:,} votes, on fewer and fewer pairs": forms_of(
                compare_labels(groups, budget=LABEL_BUDGET, progress=progress, **same)
            ),
        }
    command = _command(options)
    for path in write_curves(curves, forms, Path(options.output), command):
        terminal.show(f"Written: {path}")
    terminal.show(tables(curves, forms, command).partition("repetitions")[2].partition("\n")[2])
    return 0


def _command(options: ActiveOptions) -> str:
    """What was typed, without the folders of what was read and written."""
    words = ["dipole", "active", "--data", Path(options.data).name, "--simulate", "--output", Path(options.output).name]
    for item in fields(ActiveOptions):
        value = getattr(options, item.name)
        if item.name not in ("data", "output", "simulate") and value != item.default:
            words += [f"--{item.name}", Path(value).name if item.name == "embeddings" else str(value)]
    return shlex.join(words)


VERB = Verb(
    run, ActiveOptions, "dipole active --data groups.jsonl --strategy uncertain --budget 200 --output to_judge.jsonl"
)
