"""A space in which texts lie: TF-IDF of their words, or the embeddings of a local model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from dipole.data.audit.intervals import Floats, Ints

Embed = Callable[[Sequence[str]], Any]
"""Texts → (n, dimensions) of numbers."""

MOST_TOPICS = 12
TOPIC_WORDS = 4


class Topics(NamedTuple):
    """Clusters of texts.

    Args:
        labels: (n) the cluster of each text.
        names: of each cluster, its most telling words.
    """

    labels: Ints
    names: list[str]


class Space:
    """Similarity of texts.

    Args:
        embed: of a local model; without it, TF-IDF.
    """

    def __init__(self, embed: Embed | None = None) -> None:
        self._embed = embed
        self.name = "TF-IDF" if embed is None else "embeddings"

    def topics(self, texts: Sequence[str]) -> Topics | None:
        """Clusters by k-means, as many as the square root of the number of texts allows, at most ``MOST_TOPICS``."""
        from sklearn.cluster import MiniBatchKMeans

        words = _tf_idf(texts)
        if words is None:
            return None
        matrix, vocabulary = words
        points = matrix if self._embed is None else _unit(self._embed(texts))
        count = int(np.clip((len(texts) / 10) ** 0.5, 2, MOST_TOPICS))
        model = MiniBatchKMeans(count, n_init=3, random_state=0, batch_size=1024)
        labels = model.fit_predict(points)
        kept, labels = np.unique(labels, return_inverse=True)
        overall = np.asarray(matrix.mean(axis=0)).ravel()
        names = []
        for number in range(len(kept)):
            own = np.asarray(matrix[np.flatnonzero(labels == number)].mean(axis=0)).ravel()
            names.append(", ".join(vocabulary[place] for place in np.argsort(overall - own)[:TOPIC_WORDS]))
        return Topics(labels, names)

    def nearest(self, trained: Sequence[str], evaluated: Sequence[str]) -> tuple[Floats, Floats] | None:
        """Cosine similarity to the nearest of ``trained``: of each of them (to another one) and of each evaluated."""
        if self._embed is None:
            words = _tf_idf([*trained, *evaluated])
            if words is None:
                return None
            points = words[0]
        else:
            points = _unit(self._embed([*trained, *evaluated]))
        own, others = points[: len(trained)], points[len(trained) :]
        return _nearest(own, own, without_itself=True), _nearest(others, own, without_itself=False)


def _nearest(points: Any, among: Any, *, without_itself: bool) -> Floats:
    best = np.zeros(points.shape[0])
    for start in range(0, points.shape[0], 500):
        similar = points[start : start + 500] @ among.T
        similar = similar.toarray() if hasattr(similar, "toarray") else np.asarray(similar)
        if without_itself:
            rows = np.arange(similar.shape[0])
            similar[rows, start + rows] = -1.0
        best[start : start + 500] = similar.max(axis=1)
    return best


def _unit(points: Any) -> Floats:
    vectors = np.asarray(points, dtype=np.float64)
    result: Floats = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return result


def _tf_idf(texts: Sequence[str]) -> tuple[Any, list[str]] | None:
    """(n, words) of unit length, and the words; short words and those in more than half of the texts are left out."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    try:
        vectorizer = TfidfVectorizer(
            sublinear_tf=True,
            min_df=2,
            max_df=0.5,
            max_features=5_000,
            stop_words="english",
            token_pattern=r"\b[^\W\d_]{3,}\b",
        )
        return vectorizer.fit_transform(texts), list(vectorizer.get_feature_names_out())
    except ValueError:  # no word is left
        return None
