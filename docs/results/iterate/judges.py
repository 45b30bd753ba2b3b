"""How often judges of these rounds agree with people about which of two continuations praises the film more.

    python docs/results/iterate/judges.py

Sentences of reviews, of which people's mean rating is at most 1 or at least 3 of 4, are cut as prompts.jsonl is: the
judge sees five words as the prompt and the rest as the answer. Every sentence of praise is held against every one of
blame; half is chance.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Sequence
from statistics import mean

from held_out import likes_the_film
from prompts import BEGINNING

from dipole.data.reviews import film_reviews
from dipole.feedback.judge import all_pairs, judge_groups
from dipole.feedback.registry import open_judge
from dipole.group import Completion, Group, Rating
from dipole.policy.embedded import embedded_model

OF_EACH = 50
RUBRIC = "The review likes the film."

Texts = Sequence[tuple[str, str]]


def texts() -> tuple[Texts, Texts]:
    """(prompt, completion) of praise, and of blame."""
    sentences = [sentence for sentence in film_reviews(words=(14, 26)) if sentence.text.isascii()]
    random.Random(0).shuffle(sentences)
    praise = [_cut(sentence.text) for sentence in sentences if mean(sentence.ratings) >= 3][:OF_EACH]
    blame = [_cut(sentence.text) for sentence in sentences if mean(sentence.ratings) <= 1][:OF_EACH]
    return praise, blame


def _cut(text: str) -> tuple[str, str]:
    words = text.split()
    return f"Film review: {' '.join(words[:BEGINNING])}", f" {' '.join(words[BEGINNING:])}"


def scored(judge: str) -> Callable[[Texts], list[float]]:
    """Scores by a judge of Dipole's, each text in a group of its own with an empty second one."""
    opened = open_judge(judge)

    def score(rows: Texts) -> list[float]:
        groups = [
            Group(id=str(n), prompt=prompt, completions=(Completion(text=text), Completion(text=".")))
            for n, (prompt, text) in enumerate(rows)
        ]
        judged = judge_groups(opened, groups, all_pairs)
        return [next(j.value for j in group.judgments if isinstance(j, Rating) and j.i == 0) for group in judged]

    return score


def agreement(score: Callable[[Texts], list[float]], praise: Texts, blame: Texts) -> float:
    """The share of pairs in which praise has the higher score; equal scores count half."""
    high, low = score(praise), score(blame)
    return mean(float(a > b) + 0.5 * (a == b) for a in high for b in low)


def main() -> None:
    """A line a judge."""
    praise, blame = texts()
    judges: dict[str, Callable[[], Callable[[Texts], list[float]]]] = {
        "vader": lambda: scored("vader"),
        "held_out.py:likes_the_film": lambda: lambda rows: [likes_the_film(*row) for row in rows],
        f"model:embedded?ask=each&rubric={RUBRIC}": lambda: scored(
            f"model:{embedded_model()}?ask=each&rubric={RUBRIC}"
        ),
    }
    sys.stdout.write(f"{len(praise)} sentences of praise, {len(blame)} of blame\n")
    for name, opened in judges.items():
        sys.stdout.write(f"{agreement(opened(), praise, blame):.2f}  {name}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
