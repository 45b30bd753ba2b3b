"""A learner that takes milliseconds: the log-odds of a preference are linear in the difference of both texts' features.

This is the Bradley–Terry model with strengths that depend on the text. It stands in for the policy where thousands of
trainings are needed, as in a simulation, and where a model's opinion of pairs is wanted before there is a model.

Shapes: n pairs, d features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.special import expit

from dipole.data.audit.intervals import Floats

STRENGTH = 4.0
"""Inverse of the ridge penalty (scikit-learn's C); features have length 1."""

MOST_WORDS = 20_000

Vectors = Callable[[Sequence[str]], Any]
"""Texts → (n, d), dense or sparse."""


def word_vectors(texts: Sequence[str]) -> Vectors:
    """TF-IDF of single words and of two in a row, by the vocabulary of these texts.

    Raises:
        ValueError: no word is in two of the texts.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(
        sublinear_tf=True, min_df=2, ngram_range=(1, 2), max_features=MOST_WORDS, token_pattern=r"\b\w+\b"
    )
    vectorizer.fit(texts)
    return lambda several: vectorizer.transform(several)


def fit(differences: Any, p: Floats, weight: Floats | None = None) -> Floats:
    """(d,) the coefficients with the smallest penalised cross-entropy to the labels.

    Args:
        differences: (n, d) features of completion i less those of j.
        p: (n,) the label, 1, 0 or a probability between.
        weight: (n,) of each pair; 1 by default.
    """
    from scipy import sparse
    from sklearn.linear_model import LogisticRegression

    weights = np.ones(len(p)) if weight is None else weight
    # Each pair as both outcomes, weighted by their probability: scikit-learn knows no soft labels.
    stack = sparse.vstack if sparse.issparse(differences) else np.vstack
    both = stack([differences, differences])
    outcome = np.repeat([1, 0], len(p))
    model = LogisticRegression(C=STRENGTH, fit_intercept=False, max_iter=200)
    model.fit(both, outcome, sample_weight=np.concatenate([weights * p, weights * (1 - p)]))
    result: Floats = np.asarray(model.coef_[0], dtype=np.float64)
    return result


def log_odds(differences: Any, coefficients: Floats) -> Floats:
    """(n,) of i ≻ j."""
    result: Floats = np.asarray(differences @ coefficients, dtype=np.float64)
    return result


def predict(differences: Any, coefficients: Floats) -> Floats:
    """(n,) P(i ≻ j)."""
    result: Floats = expit(log_odds(differences, coefficients))
    return result
