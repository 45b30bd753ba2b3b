"""Draws the figures of docs/losses.md, one for every loss. ``make docs`` runs it.

Everything is drawn from ``evaluate`` and its autograd: no formula is written a second time here. A loss without an
entry in ``PICTURES`` gets a figure all the same.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from dipole.evaluate.plots import PALETTE
from dipole.objective import LOSSES, Completions, ListIndex, Loss, Outcome, PairIndex, Relations, UnaryIndex, evaluate

FOLDER = Path(__file__).parent / "images" / "losses"

# --------------------------------------------------------------------------------------------------------------------
# The curves: completions whose log-probabilities move with x, given to the real loss
# --------------------------------------------------------------------------------------------------------------------

Changes = Mapping[str, Any]
"""What a curve has besides defaults, by name: hyper-parameters, constants of a loss that depends on its batch,
``prob``, ``desirable``, ``way``, ``neighbours``, and inputs or ``lengths`` as one value a place."""

POINTS = 121
NATS_A_TOKEN = -1.5
WAYS = {"only chosen moves": (1.0, 0.0), "both move": (0.5, -0.5), "only rejected moves": (0.0, -1.0)}
"""How much of the margin each side of a pair contributes."""

PLACES = {"pair": ("chosen", "rejected"), "unary": ("item",), "list": ("best", "second", "third", "last")}
INPUT_VALUES: dict[str, tuple[float, ...]] = {
    "lengths": (50, 50, 50, 50),
    "scores": (3, 2, 1, 0),
    "seq_kl": (5, 5),
    "unsafe": (0, 0),
    "from_policy": (1, 0),
    "margin_rewards": (0, 0),
    "mismatched_logratio": (0,),
    "log_weight": (0, 0),
}


def stage(row: Loss, x: Tensor, changes: Changes, offset: Tensor | float = 0.0) -> tuple[Completions, Relations]:
    """Completions of which the relation at entry n has the margin, log-ratio or advantage ``x[n]``.

    Args:
        row: the loss.
        x: (N,) in nats, or nats a token where the row takes averages.
        changes: of the curve.
        offset: (N,) log-ratio of both sides of each pair, and how much more the reference prefers the chosen one.

    Returns:
        C = places · N completions, place by place, and N relations.
    """
    places = len(PLACES[row.relation])
    shares = WAYS[changes.get("way", "both move")] if row.relation == "pair" else (1.0, 0.0, 0.0, 0.0)

    def each(name: str) -> Tensor:
        values = torch.tensor(changes.get(name, INPUT_VALUES[name])[:places], dtype=x.dtype)
        return values.repeat_interleave(len(x))

    lengths = each("lengths")
    moved = torch.cat([share * x + offset for share in shares[:places]])
    ref_logps = NATS_A_TOKEN * lengths + torch.cat([0 * x + offset, 0 * x.repeat(places - 1)]).detach()
    logps = ref_logps + moved * (lengths if row.tokens == "mean" else 1)
    known = {
        "token_logps": lambda: (logps / lengths)[:, None].expand(-1, int(lengths.max())),
        "ref_token_logps": lambda: (ref_logps / lengths)[:, None].expand(-1, int(lengths.max())),
        "log_sum_sq_probs": lambda: logps.detach() - lengths * each("log_weight"),
        "margin_rewards": lambda: each("margin_rewards")[:, None],
        "imageless_logps": lambda: ref_logps,
        "ref_imageless_logps": lambda: ref_logps,
    }
    extras = {name: known[name]() if name in known else each(name) for name in row.inputs}
    completions = Completions(logps=logps, ref_logps=ref_logps, lengths=lengths.long(), extras=extras)
    return completions, _relations(row, len(x), changes)


def _relations(row: Loss, count: int, changes: Changes) -> Relations:
    index = torch.arange(len(PLACES[row.relation]) * count).view(-1, count)
    if row.relation == "pair":
        prob = torch.full((count,), changes["prob"]) if "prob" in changes else None
        return PairIndex(i=index[0], j=index[1], prob=prob)
    if row.relation == "unary":
        return UnaryIndex(i=index[0], desirable=torch.full((count,), bool(changes["desirable"])))
    return ListIndex(order=index.T)


def outcome_at(row: Loss, x: Tensor, changes: Changes, offset: Tensor | float = 0.0) -> Outcome:
    """What the loss says of the N relations at x, which are one batch."""
    settings = row.settings(**{name: value for name, value in changes.items() if name in row.all_hyper})
    names = row.coupling.constants if row.coupling else ()
    constants = {name: torch.tensor(float(changes[name])) for name in names}
    return evaluate(row, settings, *stage(row, x, changes, offset), constants)


def values_at(row: Loss, x: Tensor, changes: Changes) -> Tensor:
    """(N,) the loss at every x. Of a loss over ranks: the sum over a batch of that pair and its neighbours."""
    if not row.whole_batch:
        return outcome_at(row, x, changes).losses
    offset = torch.tensor([0.0, *changes["neighbours"]], dtype=x.dtype)
    still = torch.zeros(len(offset) - 1, dtype=x.dtype)
    return torch.stack([outcome_at(row, torch.cat([one[None], still]), changes, offset).losses.sum() for one in x])


def curve(row: Loss, x: Tensor, changes: Changes) -> tuple[Tensor, Tensor]:
    """The loss and its slope, the derivative by x, at every x (N,)."""
    x = x.detach().requires_grad_()
    losses = values_at(row, x, changes)
    (slopes,) = torch.autograd.grad(losses.sum(), x)
    return losses.detach(), slopes


# --------------------------------------------------------------------------------------------------------------------
# What is drawn
# --------------------------------------------------------------------------------------------------------------------

SYMBOLS = {
    "beta": "β", "alpha": "α", "gamma": "γ", "eta": "η", "tau": "τ", "label_smoothing": "ε", "flip_prob": "ε",
    "target_smoothing": "ε", "prob": "p", "z0": "z₀", "shift": "δ", "beta_scale": "s", "penalty_weight": "λ",
    "odds_weight": "λ", "gamma_beta_ratio": "γ/β",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Picture:
    """What a figure shows.

    Args:
        width: the x axis goes from −width to width.
        curves: by label.
    """

    width: float
    curves: Mapping[str, Changes]


def label(name: str, value: float | str) -> str:
    """``β = 0.1``."""
    return f"{SYMBOLS.get(name, name)} = {f'{value:g}' if isinstance(value, (int, float)) else value}"


def vary(name: str, *values: float, **fixed: Any) -> dict[str, Changes]:
    """A curve for each value."""
    return {label(name, value): {name: value, **fixed} for value in values}


def sides(name: str, text: str, *values: tuple[float, float]) -> dict[str, Changes]:
    """A curve for each pair of values of an input; ``text`` is formatted with both, chosen first."""
    return {text.format(*value): {name: value} for value in values}


def thumbs(name: str, *values: float) -> dict[str, Changes]:
    """Desirable and undesirable, for each value of a constant."""
    sort = {"desirable": True, "undesirable": False}
    return {
        f"{word}, {label(name, value)}": {"desirable": sort[word], name: value} for value in values for word in sort
    }


def among(*distances: float) -> dict[str, Changes]:
    """A pair in a batch with two others, at the same distance to either side."""
    return {f"neighbours at ±{distance:g}": {"neighbours": (-distance, distance)} for distance in distances}


GAPS = ((0, 0), (1, 0), (4, 0))
SHORTER_REJECTED = (60, 40)
PICTURES: dict[str, tuple[float, Mapping[str, Changes]]] = {
    # name: (half the width of the x axis, curves), where the automatic choice says less
    "dpo": (60, {**vary("beta", 0.05, 0.1, 0.2), "β = 0.1, p = 0.8": {"prob": 0.8}}),
    "cdpo": (60, vary("label_smoothing", 0, 0.1, 0.3)),
    "rdpo": (60, vary("flip_prob", 0, 0.1, 0.3)),
    "gdpo": (60, vary("prob", 1, 0.8, 0.6, 0.5)),
    "ipo": (20, vary("beta", 0.05, 0.1, 0.5)),
    "ipo_avg": (20, vary("beta", 0.05, 0.1, 0.5)),
    "hinge": (60, vary("beta", 0.02, 0.05, 0.1)),
    "exo": (100, vary("target_smoothing", 1e-3, 0.05, 0.2)),
    "discopop": (15, vary("tau", 0.02, 0.05, 0.2)),
    "adpo": (40, vary("gamma", 0.9, 1.3, 2.0)),
    "beta_dpo": (60, vary("beta_scale", 0.5, 1, 2)),
    "odpo": (60, sides("scores", "s_w − s_l = {:g}", (0.5, 0), (1, 0), (4, 0))),
    "modpo": (60, sides("margin_rewards", "m_w = {:g}, m_l = {:g}", (0, 0), (2, 0), (0, 2))),
    "safedpo": (200, {
        "both safe": {"unsafe": (0, 0)}, "rejected unsafe": {"unsafe": (0, 1)},
        "chosen unsafe": {"unsafe": (1, 0)}, "both unsafe": {"unsafe": (1, 1)},
    }),
    "rpo_nvidia_bwd_kl": (40, sides("scores", "s_w − s_l = {:g}", *GAPS)),
    "rpo_nvidia_fwd_kl": (40, sides("scores", "s_w − s_l = {:g}", *GAPS)),
    "rpo_nvidia_sq": (40, sides("scores", "s_w − s_l = {:g}", *GAPS)),
    "fdpo_forward_kl": (4, {}),
    "fdpo_jsd": (60, {}),
    "fdpo_alpha": (10, vary("alpha", 0, 0.5, 0.9)),
    "chi_po": (10, {}),
    "bco_pair": (400, vary("shift", -1, 0, 1)),
    "sppo_hard": (1500, {}),
    "sppo_soft": (1500, vary("prob", 1, 0.8, 0.5)),
    "dpop": (4, {}),
    "xpo": (60, vary("alpha", 0, 1e-5, 0.02)),
    "dpo_norm": (1.5, vary("beta", 1, 5, 10)),
    "rdpo_length": (60, vary("alpha", 0, 0.05, 0.2, lengths=SHORTER_REJECTED)),
    "ld_dpo": (60, vary("alpha", 0, 0.5, 1, lengths=SHORTER_REJECTED)),
    "tdpo1": (60, sides("seq_kl", "K_w = {:g}, K_l = {:g}", (5, 5), (5, 20), (20, 5))),
    "tdpo2": (60, sides("seq_kl", "K_w = {:g}, K_l = {:g}", (5, 5), (5, 20), (20, 5))),
    "wpo": (600, {f"w_w w_l = {w:g}": {"log_weight": (float(torch.tensor(w).log()), 0)} for w in (1, 0.5, 0.1)}),
    "aot": (400, among(50, 100, 200)),
    "aot_unpaired": (400, among(50, 100, 200)),
    "rpo_pang": (60, {}),
    "simpo": (2, vary("gamma_beta_ratio", 0, 0.5, 1)),
    "alphapo": (2, vary("alpha", -0.5, 0, 0.1, 0.5)),
    "orpo": (1.4, {}),
    "slic": (6, {}),
    "sft_avg": (1.4, {}),
    "kto": (60, thumbs("z0", 0, 20)),
    "bco": (600, thumbs("shift", 0, 2)),
    "apo_zero_unary": (60, {"desirable": {"desirable": True}, "undesirable": {"desirable": False}}),
    "mpo": (60, {}),
}  # fmt: skip


def only_margin_counts(row: Loss, width: float, changes: Changes) -> bool:
    """Whether it makes no difference which side of a pair moves."""
    x = torch.linspace(-width, width, 11, dtype=torch.float64)
    first, *others = (values_at(row, x, {**changes, "way": way}) for way in WAYS)
    return all(torch.allclose(first, other, rtol=1e-9, atol=1e-9) for other in others)


def picture(row: Loss) -> Picture:
    """What is drawn of a loss: its entry in ``PICTURES``; else the ways to a margin where they differ, else three β."""
    default = row.settings().get("beta", 0.1)
    width, curves = PICTURES.get(row.name, (6 / default, {}))
    if curves:
        return Picture(width, curves)
    if row.relation == "pair" and not only_margin_counts(row, width, {}):
        return Picture(width, {way: {"way": way} for way in WAYS})
    return Picture(width, vary("beta", default / 2, default, 2 * default))


def single_margin(row: Loss) -> bool:
    """Whether ``only_margin_counts`` holds for every curve of a pairwise loss's figure."""
    shown = picture(row)
    return all(only_margin_counts(row, shown.width, changes) for changes in shown.curves.values())


def logged(row: Loss) -> list[str]:
    """Names of what the loss logs besides its value and rewards."""
    changes = next(iter(picture(row).curves.values()))
    return list(outcome_at(row, torch.zeros(1, dtype=torch.float64), changes).logged)


# --------------------------------------------------------------------------------------------------------------------
# The figures
# --------------------------------------------------------------------------------------------------------------------

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "dipole",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": PALETTE["ink"],
    "axes.edgecolor": PALETTE["rule"],
    "axes.labelcolor": PALETTE["ink"],
    "axes.titlesize": 9,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "#e8ebef",
    "grid.linewidth": 0.6,
    "xtick.bottom": False,
    "ytick.left": False,
    "xtick.labelcolor": PALETTE["ink"],
    "ytick.labelcolor": PALETTE["ink"],
    "lines.linewidth": 1.7,
    "legend.frameon": False,
    "legend.handlelength": 2.6,
}
LINES = (("blue", "-"), ("orange", (0, (6, 2))), ("green", (0, (6, 2, 1, 2))), ("grey", (0, (1.5, 1.5))))
"""Colour and dashes of the curves: whoever can't tell the colours apart can tell the dashes."""


def draw(row: Loss) -> str:
    """The figure of a loss as SVG: the loss left, its slope right. The same numbers give the same bytes."""
    shown = picture(row)
    x = torch.linspace(-shown.width, shown.width, POINTS, dtype=torch.float64)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 2.9))
        panels = figure.subplots(1, 2)
        for (name, changes), (color, dashes) in zip(shown.curves.items(), LINES, strict=False):
            for axes, values in zip(panels, curve(row, x, changes), strict=True):
                axes.plot(x, values, color=PALETTE[color], linestyle=dashes, label=name)
        for axes, title in zip(panels, ("loss", "slope"), strict=True):
            _frame(axes, title, x_label(row))
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="upper center", ncols=len(labels), borderaxespad=0.2)
        figure.subplots_adjust(left=0.075, right=0.975, top=0.82, bottom=0.16, wspace=0.24)
        return _svg(figure)


def _frame(axes: Axes, title: str, x_name: str) -> None:
    axes.set_title(title)
    axes.set_xlabel(x_name)
    axes.axvline(0, color=PALETTE["rule"], linewidth=1, zorder=1)
    axes.axhline(0, color=PALETTE["rule"], linewidth=1, zorder=1)
    axes.margins(x=0, y=0.06)
    axes.ticklabel_format(axis="y", scilimits=(-2, 4))


def _svg(figure: Figure) -> str:
    """Without dates, in the reader's own font, and small: a decimal for places, no ids, no empty turns, no indents."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = buffer.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r' id="\w+_\d+"| transform="rotate\(-0 [^"]*"', "", svg)
    svg = re.sub(r' (d|x|y)="[^"]*"', lambda places: re.sub(r"(\.\d)\d+", r"\1", places[0]), svg)
    svg = svg.replace("'DejaVu Sans'", "system-ui, sans-serif").replace(" \nL ", "L").replace("\nL ", "L")
    return "\n".join(line.strip() for line in svg.splitlines() if line.strip()) + "\n"


def x_label(row: Loss) -> str:
    """What the x axis is, with its unit."""
    unit = "nats a token" if row.tokens == "mean" else "nats"
    if row.relation == "unary":
        return f"log-ratio, {unit}"
    if row.relation == "list":
        return f"log-ratio of the best, {unit}"
    if row.needs_reference:
        return f"margin of mean log-ratios, {unit}" if row.tokens == "mean" else f"margin h, {unit}"
    return f"margin of {'mean ' if row.tokens == 'mean' else ''}log-probabilities, {unit}"


def main() -> None:
    """Writes the figures of all losses, and takes those away that no loss has any more."""
    torch.set_num_threads(1)  # for curves of a hundred points, threads cost more than they bring
    FOLDER.mkdir(parents=True, exist_ok=True)
    for stale in {path.stem for path in FOLDER.glob("*.svg")} - LOSSES.keys():
        (FOLDER / f"{stale}.svg").unlink()
    for row in LOSSES.values():
        (FOLDER / f"{row.name}.svg").write_text(draw(row), encoding="utf-8")


if __name__ == "__main__":
    main()
