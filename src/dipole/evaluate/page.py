"""What all pages have in common: templates that escape everything, a file that is replaced at once or not at all."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import jinja2


def environment() -> jinja2.Environment:
    """Where templates are loaded: all text is escaped, and a name that is missing is an error."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader("dipole.evaluate", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def write_page(text: str, page: Path) -> Path:
    """Writes a page and returns its path; half of a surrogate pair, which UTF-8 can't hold, becomes ``?``."""
    draft = page.with_name(f"{page.name}.part")
    draft.write_text(text, encoding="utf-8", errors="replace")
    os.replace(draft, page)
    return page


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table; a bar within a cell stays one."""
    cells = [[cell.replace("|", "\\|") for cell in row] for row in (columns, ["---"] * len(columns), *rows)]
    return [f"| {' | '.join(row)} |" for row in cells]
