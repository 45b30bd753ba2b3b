"""The held-out judge of these rounds: what the language model itself would say of the film after the review.

    dipole judge --judge docs/results/iterate/held_out.py:likes_the_film …

A model of 135 million parameters can't be asked which of two answers is better, and on halves of sentences not even
whether one satisfies a rubric: judges.py says how often each way of asking agrees with people. But it goes on from a
text, and so it says something of it: how much likelier is a word of praise than a word of blame?
"""

from __future__ import annotations

from functools import cache

from dipole.feedback.local import LocalModel
from dipole.policy.embedded import embedded_model

AFTER = "\nThe film is"
PRAISE, BLAME = " great", " terrible"


def likes_the_film(prompt: str, completion: str) -> float:
    """The log-odds of praise against blame as what follows the review, in nats."""
    model = _model()
    review = {"": model.text_ids(f"{prompt}{completion}{AFTER}")}
    praise, blame = model.option_logps(review, (model.text_ids(PRAISE), model.text_ids(BLAME)))[""]
    return praise - blame


@cache
def _model() -> LocalModel:
    return LocalModel(str(embedded_model()))
