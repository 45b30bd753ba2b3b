"""``LOSSES``, the table of all losses, and how a name finds its row."""

from __future__ import annotations

from dipole.errors import ConfigError, nearest
from dipole.objective import losses
from dipole.objective.row import HyperParameter, Loss, Reward

BETA = HyperParameter("beta", 0.1, "strength of the tie to the reference")
LOGRATIO = Reward("β · logratio", lambda completions, settings: settings["beta"] * completions.logratio)
MEAN_LOGPS = Reward("β · log π(y|x) / |y|", lambda completions, settings: settings["beta"] * completions.mean_logps)

_ROWS = (
    Loss(name="dpo", formula=losses.dpo, hyper=(BETA,), reward=LOGRATIO, when="first choice", aliases=("sigmoid",)),
    Loss(
        name="cdpo",
        formula=losses.cdpo,
        hyper=(BETA, HyperParameter("label_smoothing", 0.1, "assumed rate of flipped labels", high=0.5)),
        reward=LOGRATIO,
        when="labels are flipped at a known rate",
    ),
    Loss(name="ipo", formula=losses.ipo, hyper=(BETA,), reward=LOGRATIO, when="nearly deterministic preferences"),
    Loss(
        name="simpo",
        formula=losses.simpo,
        hyper=(
            HyperParameter("beta", 2.0, "scale of the length-averaged log-probability"),
            HyperParameter("gamma_beta_ratio", 0.5, "margin γ divided by β", low_open=False),
        ),
        reward=MEAN_LOGPS,
        needs_reference=False,
        needs_lengths=True,
        tokens="mean",
        when="no memory for a reference",
    ),
)

LOSSES: dict[str, Loss] = {row.name: row for row in _ROWS}


def resolve(name: str) -> Loss:
    """The row of a loss, by its name here or another library's.

    Raises:
        ConfigError: nothing is called that.
    """
    spelling = name.strip().lower().replace("-", "_")
    if spelling in LOSSES:
        return LOSSES[spelling]
    for row in LOSSES.values():
        if spelling in row.aliases:
            return row
    raise ConfigError(f"there is no loss '{name}'", where="loss", remedy=nearest(spelling, LOSSES))
