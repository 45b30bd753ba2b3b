"""The verbs of the command line, one module each: its options, what it calls, and what it shows.

Whatever a verb needs is imported inside its ``run``, so that ``dipole --help`` needs neither torch nor numpy.
"""

from __future__ import annotations

from importlib import import_module

from dipole.verbs.verb import Verb

VERBS = {
    "demo": "demo",
    "train": "train",
    "generate": "generate",
    "judge": "judge",
    "iterate": "iterate",
    "audit": "audit",
    "convert": "convert",
    "merge": "merge",
    "annotate": "annotate",
    "aggregate": "aggregate",
    "active": "active",
    "evaluate frontier": "evaluate_frontier",
    "evaluate winrate": "evaluate_winrate",
    "evaluate agreement": "evaluate_agreement",
    "evaluate harness": "evaluate_harness",
    "report": "report",
}
"""The module of each verb, in the order of the help. A verb may have two words."""


def verb(name: str) -> Verb:
    """The verb of this name."""
    found = import_module(f"dipole.verbs.{VERBS[name]}").VERB
    assert isinstance(found, Verb)
    return found
