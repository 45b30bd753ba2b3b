"""Writes prompts.jsonl: the beginnings of film-review sentences, for a model to go on from.

python docs/results/iterate/prompts.py
"""

from __future__ import annotations

import json
from pathlib import Path

from dipole.data.reviews import film_reviews

NUMBER, BEGINNING = 560, 5


def main() -> None:
    """Takes the first that differ."""
    beginnings = dict.fromkeys(
        " ".join(sentence.text.split()[:BEGINNING])
        for sentence in film_reviews(words=(14, 40))
        if sentence.text.isascii()
    )
    rows = [{"prompt": f"Film review: {beginning}"} for beginning in list(beginnings)[:NUMBER]]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    Path(__file__).with_name("prompts.jsonl").write_text(lines, encoding="utf-8")


if __name__ == "__main__":
    main()
