"""``dipole evaluate frontier``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dipole.verbs.verb import Verb


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontierOptions:
    """Reward against KL: trains a model by every method at several strengths and shows what each gets for how far."""

    output: str
    """The folder for points, table, figures and page. The same command goes on where it was killed."""
    preset: Literal["quick", "full"] = "quick"
    """``quick`` shows in minutes that everything works; ``full`` is the real sweep, over an hour of one slow core."""
    model: str | None = None
    """A local folder or a hub id; SmolLM2-135M-Instruct by default, which is fetched once (100 MB)."""
    texts: str | None = None
    """A file with a text a line: the model is first fine-tuned on them, and their beginnings are the prompts. The
    film-review sentences that come with Dipole by default."""
    scorer: str = "vader"
    """The reward: ``vader``, the sentiment of the text; or a function of (prompt, completion), given as
    package.module.function or file.py:function."""
    seed: int = 0
    """Of everything."""


def run(options: FrontierOptions) -> int:
    """The sweep, and where its page is."""
    from dipole import terminal

    with terminal.progress() as progress:
        progress.stage("Starting")
        from dipole.evaluate.frontier import pareto_front
        from dipole.sweep.frontier import run_frontier

        points = run_frontier(
            Path(options.output),
            preset=options.preset,
            model=options.model,
            texts=options.texts,
            scorer=options.scorer,
            seed=options.seed,
            progress=progress,
        )
    terminal.show("Nothing measured has more reward at no more KL than these:")
    for point in pareto_front(points):
        kl, reward = point.at
        terminal.show(f"  KL {kl:6.2f}  reward {reward:6.3f}  {point.name}")
    terminal.show(f"Page: {Path(options.output) / 'frontier.md'}")
    return 0


VERB = Verb(run, FrontierOptions, "dipole evaluate frontier --preset quick --output runs/frontier")
