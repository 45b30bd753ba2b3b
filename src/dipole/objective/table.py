"""``LOSSES``, the table of all losses, and how a name finds its row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from dipole.errors import ConfigError, nearest
from dipole.objective.mix import mix
from dipole.objective.row import HyperParameter, Loss
from dipole.objective.rows_anchored import ROWS as ANCHORED
from dipole.objective.rows_free import ROWS as FREE
from dipole.objective.rows_margin import ROWS as MARGIN

LOSSES: dict[str, Loss] = {row.name: row for row in (*MARGIN, *ANCHORED, *FREE)}

AMBIGUOUS = {
    "rpo": "rpo_pang, rpo_liu and the three rpo_nvidia_* are all called RPO.",
    "apo": "Choose apo_zero or apo_down.",
    "sppo": "Choose sppo_hard or sppo_soft.",
    "fdpo": "Choose fdpo_forward_kl, fdpo_jsd or fdpo_alpha; reverse KL is dpo.",
    "f_dpo": "Choose fdpo_forward_kl, fdpo_jsd or fdpo_alpha; reverse KL is dpo.",
    "tdpo": "Choose tdpo1 or tdpo2.",
    "aot_pair": "TRL up to 0.27 meant aot_unpaired by it; aot is the paired one.",
    "kto_pair": "It estimated z₀ from the other half of the batch and is gone; choose kto.",
}
"""Names that several losses go by, and what to choose from."""


def resolve(name: str) -> Loss:
    """The row of a loss, by its name here or another library's; ``.name`` is the canonical one.

    A weighted sum, such as ``"dpo + 0.2*sft_avg"``, is a row of its own; its weights are the hyper-parameter
    ``weights``.

    Raises:
        ConfigError: nothing is called that, or several losses are.
    """
    if "+" in name or "*" in name:
        return _weighted_sum(name)
    spelling = name.strip().lower().replace("-", "_")
    if spelling in AMBIGUOUS:
        raise ConfigError(f"'{name}' is the name of several losses", where="loss", remedy=AMBIGUOUS[spelling])
    for row in LOSSES.values():
        if spelling == row.name or spelling in row.aliases:
            return row
    known = [spelling for row in LOSSES.values() for spelling in (row.name, *row.aliases)]
    raise ConfigError(f"there is no loss '{name}'", where="loss", remedy=nearest(spelling, known))


def _weighted_sum(text: str) -> Loss:
    parts = []
    for term in text.split("+"):
        weight, star, name = term.rpartition("*")
        parts.append((_number(weight, term) if star else 1.0, resolve(name)))
    name = " + ".join(f"{repr(weight).removesuffix('.0')}*{row.name}" for weight, row in parts)
    row = mix(name, parts, when="Your own mixture.")
    return replace(row, hyper=tuple(_undecided(parameter, [part for _, part in parts]) for parameter in row.hyper))


def _undecided(parameter: HyperParameter, parts: Sequence[Loss]) -> HyperParameter:
    """A hyper-parameter that parts share by name has no default where theirs differ."""
    defaults = {part.name: part.all_hyper[parameter.name].default for part in parts if parameter.name in part.all_hyper}
    if len(set(defaults.values())) < 2:
        return parameter
    told = ", ".join(f"{value} in {name}" for name, value in defaults.items())
    return replace(parameter, undecided=f"the sum has one {parameter.name}, whose default is {told}")


def _number(weight: str, term: str) -> float:
    try:
        return float(weight)
    except ValueError as fault:
        problem = f"'{term.strip()}' isn't a weight and a name"
        raise ConfigError(problem, where="loss", remedy="Write a sum as 0.8*dpo + 0.2*sft_avg.") from fault
