"""Writes what is generated of docs/losses.md. ``make docs`` runs it; the figures are by loss_figures.py.

The page's prose is written by hand. Between ``<!-- begin: NAME -->`` and ``<!-- end: NAME -->`` stands what the
function of that name in ``PARTS`` makes of the table of losses.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from loss_figures import FOLDER, logged, picture, single_margin, x_label

from dipole.objective import INPUTS, LOSSES, HyperParameter, Loss
from dipole.objective.table import AMBIGUOUS

PAGE = Path(__file__).with_name("losses.md")
FAMILIES: dict[str, Callable[[Loss], bool]] = {
    "Pairs, with a reference": lambda row: row.relation == "pair" and row.needs_reference,
    "Pairs, without a reference": lambda row: row.relation == "pair" and not row.needs_reference,
    "Single completions": lambda row: row.relation == "unary",
    "Lists": lambda row: row.relation == "list",
}
SOFT = {"expected": "expectation", "own": "in its formula", "refused": "refused"}
MADE_BY = {
    "policy": "the policy's forward pass",
    "reference": "the reference's forward pass",
    "data": "`meta` of each completion",
}
FROM_RATINGS = {"scores"}
HELD = {"seq_kl": "K", "log_sum_sq_probs": "the weight", "imageless_logps": "the log-ratio without the image"}
"""What a figure keeps where it is although it would move with the policy, by the input that it comes from."""
IMAGES = {"imageless_logps", "ref_imageless_logps"}


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def link(name: str) -> str:
    """A link to a loss's section."""
    return f"[{name}](#{name})"


def linked(text: str, but: str) -> str:
    """The text with names of losses as links, except the section's own and other libraries' names in quotes."""
    names = sorted(LOSSES.keys() - {but}, key=len, reverse=True)
    return re.sub(rf"(?<![\w'/-])({'|'.join(names)})(?![\w'/-])", lambda name: link(name[0]), text)


def families() -> Iterable[tuple[str, list[Loss]]]:
    """Heading and rows, every row once."""
    return [(heading, [row for row in LOSSES.values() if belongs(row)]) for heading, belongs in FAMILIES.items()]


def data_tables() -> str:
    """What each loss takes."""
    head = ("loss", "probable labels", "reference", "log-probabilities", "also needs", "depends on the step through")
    parts = []
    for heading, rows in families():
        cells = [
            (
                link(row.name),
                SOFT[row.soft] if row.relation == "pair" else "–",
                "yes" if row.needs_reference else "no",
                row.tokens,
                ", ".join(f"`{name}`" for name in row.inputs) or "–",
                coupled_through(row) or "–",
            )
            for row in rows
        ]
        parts.append(f"**{heading}**\n\n{table(head, cells)}")
    return "\n\n".join(parts)


def coupled_through(row: Loss) -> str:
    """What ties a relation's value to the rest of the step; empty when nothing does."""
    if row.whole_batch:
        return "ranks within the batch"
    return ", ".join(row.coupling.constants.values()) if row.coupling else ""


def input_table() -> str:
    """Where further inputs come from, and who asks for them."""

    def maker(name: str) -> str:
        if name in IMAGES:
            return "images: nowhere yet"
        return "ratings of every completion" if name in FROM_RATINGS else MADE_BY[INPUTS[name].maker]

    rows = [
        (f"`{name}`", item.meaning, maker(name), ", ".join(link(row.name) for row in users))
        for name, item in INPUTS.items()
        if (users := [row for row in LOSSES.values() if name in row.inputs])
    ]
    return table(("input", "of every completion", "made from", "used by"), rows)


def name_tables() -> str:
    """Other spellings, and names that mean several losses."""
    spellings = sorted((alias, row.name) for row in LOSSES.values() for alias in row.aliases)
    refused = [(f"`{name}`", linked(remedy, "")) for name, remedy in AMBIGUOUS.items()]
    taken = [(f"`{alias}`", link(name)) for alias, name in spellings]
    return f"{table(('refused', 'because'), refused)}\n\n{table(('other name', 'here'), taken)}"


def sections() -> str:
    """A section for every loss, by family."""
    return "\n\n".join("\n\n".join([f"## {heading}", *(section(row) for row in rows)]) for heading, rows in families())


def section(row: Loss) -> str:
    """All that is known of one loss."""
    parts = [f"### {row.name}", f"```text\n{row.formula_text}\n```", f"**When.** {linked(row.when, row.name)}"]
    if row.traps:
        parts.append(f"**Traps.** {linked(row.traps, row.name)}")
    if IMAGES & set(row.inputs):
        parts.append("`dipole train` feeds no images, so it refuses this loss; as a function it is there.")
    if row.all_hyper:
        cells = [(f"`{item.name}`", default_of(item), item.range, item.meaning) for item in row.all_hyper.values()]
        parts.append(table(("hyper-parameter", "default", "range", "meaning"), cells))
    parts.append("\n".join(f"- {fact}" for fact in facts(row)))
    image = f"{FOLDER.parent.name}/{FOLDER.name}/{row.name}.svg"
    parts.append(f"![Loss and slope of {row.name}]({image})\n\n*{caption(row)}*")
    return "\n\n".join(parts)


def default_of(parameter: HyperParameter) -> str:
    """``0.1``, ``true`` or ``0.8, 0.2``."""
    value = parameter.default
    if isinstance(value, bool):
        return str(value).lower()
    return ", ".join(f"{item:g}" for item in (value if isinstance(value, tuple) else (value,)))


def facts(row: Loss) -> list[str]:
    """Source, reward, labels, coupling and other names, one a line."""
    source = re.sub(r"arXiv (\d{4}\.\d{5})", r"[arXiv \1](https://arxiv.org/abs/\1)", row.source)
    lines = [f"Source: {source}.", f"Reward that is logged: `{row.reward.text}`."]
    if names := logged(row):
        lines.append(f"Logged as well: {', '.join(f'`{name}`' for name in names)}.")
    if row.soft == "refused":
        lines.append(f"Probable labels are refused: {linked(row.why_not_soft, row.name)}.")
    elif row.relation == "pair":
        lines.append(
            f"Probable labels: {'the formula takes p' if row.soft == 'own' else 'expectation over the label'}."
        )
    if row.coupling:
        state = ", ".join(f"`{name}`" for name in row.coupling.initial)
        kept = f"Kept from step to step, and in checkpoints: {state}." if state else "Nothing is kept between steps."
        lines.append(f"Settled over the whole step: {coupled_through(row)}. {kept}")
    if row.whole_batch:
        lines.append("Values belong to ranks within the step, which can't be cut; relations can't have weights.")
    if row.aliases:
        lines.append(f"Also called: {', '.join(f'`{alias}`' for alias in row.aliases)}.")
    return lines


def caption(row: Loss) -> str:
    """What the figure shows, besides the legend."""
    shown = picture(row)
    varied = {name for changes in shown.curves.values() for name in changes}
    text = f"Loss and its derivative by the x axis: {x_label(row)}."
    if row.relation == "list":
        text += " Four completions, the other three at the reference."
    elif row.relation == "pair" and "way" in varied:
        text += " It matters which side moves, so three ways to the same margin are drawn."
    elif row.relation == "pair" and single_margin(row):
        text += " It makes no difference which side moves."
    elif row.relation == "pair":
        text += " Both sides move by half of it."
    if row.whole_batch:
        text += " Summed over a batch of three pairs, of which two stay: their distance is in the legend."
    if "lengths" in varied:
        text += " The chosen completion has 60 tokens, the rejected one 40."
    text += "".join(f" Held still: {what}." for name, what in HELD.items() if name in row.inputs)
    others = [f"{item.name} {default_of(item)}" for item in row.hyper if item.name not in varied]
    return f"{text} Otherwise: {', '.join(others)}." if others else text


PARTS: dict[str, Callable[[], str]] = {
    "data": data_tables,
    "inputs": input_table,
    "names": name_tables,
    "losses": sections,
}


def written(page: str) -> str:
    """The page with all of its generated parts made anew."""
    for name, make in PARTS.items():
        begin, end = f"<!-- begin: {name} -->", f"<!-- end: {name} -->"
        before, opened, rest = page.partition(begin)
        _, closed, after = rest.partition(end)
        if not (opened and closed):
            raise ValueError(f"{PAGE.name} has no place for '{name}'")
        page = f"{before}{begin}\n\n{make()}\n\n{end}{after}"
    return page


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
