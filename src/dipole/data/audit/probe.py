"""A linear model that tries to tell the preferred answer from the other one, judged on prompts that it didn't see.

What such a model finds from little (lengths, style, the answers without their prompt), a reward model or a policy finds
as well. It sees the difference of two answers' features and has no intercept, so that its score is antisymmetric:
which answer is put first can't matter.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from dipole.data.audit.columns import Columns
from dipole.data.audit.intervals import Floats, Ints

FOLDS = 5
MIN_PAIRS = 50
PAIRS_PER_GROUP = 4
"""Pairs of one group that a probe sees; more of them tell it little that is new."""


class SampledPairs(NamedTuple):
    """Decided pairs of the sample.

    Args:
        texts: answers that the pairs are of, each once.
        winner: (n) position of the preferred answer in ``texts``.
        loser: (n) of the other.
        p: (n) probability of the preference.
        group: (n) number of the group in the columns.
        place: (n) position of the group in the sample.
        cluster: (n) what counts as one observation.
    """

    texts: list[str]
    winner: Ints
    loser: Ints
    p: Floats
    group: Ints
    place: Ints
    cluster: Ints


def sampled_pairs(columns: Columns) -> SampledPairs:
    """At most ``PAIRS_PER_GROUP`` decided pairs of each group of the sample, drawn at random."""
    random = np.random.default_rng(0)
    texts: list[str] = []
    rows: list[tuple[int, int, float, int, int]] = []
    for place, sampled in enumerate(columns.sample):
        base = len(texts)
        texts += sampled.answers
        decided = [label for label in sampled.labels if label.p > 0.5]
        chosen = (
            random.permutation(len(decided))[:PAIRS_PER_GROUP]
            if len(decided) > PAIRS_PER_GROUP
            else range(len(decided))
        )
        for label in (decided[number] for number in chosen):
            rows.append((base + label.i, base + label.j, label.p, sampled.number, place))
    winner, loser, p, group, place_of = zip(*rows, strict=True) if rows else ((), (), (), (), ())
    groups = np.array(group, dtype=np.int64)
    return SampledPairs(
        texts,
        np.array(winner, dtype=np.int64),
        np.array(loser, dtype=np.int64),
        np.array(p, dtype=np.float64),
        groups,
        np.array(place_of, dtype=np.int64),
        columns.cluster[groups],
    )


def held_out_scores(differences: Any, p: Floats, clusters: Ints, *, seed: int = 0) -> Floats | None:
    """The log-odds of each label by a model that was fitted on the other prompts.

    Args:
        differences: (n, features) features of the preferred answer minus those of the other, dense or sparse.
        p: (n) probability of the preference; a pair counts by how far it lies from a tie.
        clusters: (n) the prompt of each pair; no prompt is on both sides.
        seed: of the folds.

    Returns:
        (n) scores, positive where the model agrees with the label; ``None`` with too little data.
    """
    from sklearn.linear_model import LogisticRegression

    _, labels = np.unique(clusters, return_inverse=True)
    if len(p) < MIN_PAIRS or labels.max() + 1 < 2 * FOLDS:
        return None
    random = np.random.default_rng(seed)
    fold = (random.permutation(labels.max() + 1) % FOLDS)[labels]
    # Half of the pairs are shown the other way round: without an intercept the fit is the same, with two classes.
    sign = np.where(random.permutation(len(p)) % 2 == 0, 1.0, -1.0)
    shown = (
        differences.multiply(sign[:, None]).tocsr() if hasattr(differences, "multiply") else differences * sign[:, None]
    )
    scores = np.zeros(len(p))
    for held_out in range(FOLDS):
        train, test = np.flatnonzero(fold != held_out), np.flatnonzero(fold == held_out)
        model = LogisticRegression(fit_intercept=False, C=1.0, max_iter=200)
        model.fit(shown[train], sign[train], sample_weight=2 * p[train] - 1)
        scores[test] = sign[test] * model.decision_function(shown[test])
    return scores


def standardised(features: Floats, pairs: SampledPairs) -> Floats:
    """(n, features) differences of each pair, every column divided by its spread."""
    differences = features[pairs.winner] - features[pairs.loser]
    spread = np.sqrt((differences**2).mean(axis=0))
    result: Floats = differences / np.where(spread > 0, spread, 1.0)
    return result


def word_scores(pairs: SampledPairs) -> Floats | None:
    """``held_out_scores`` of a probe that sees the answers' words, by TF-IDF."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(sublinear_tf=True, min_df=3, max_features=20_000, token_pattern=r"\b\w+\b")
    try:
        words = vectorizer.fit_transform(pairs.texts)
    except ValueError:  # every word is rare
        return None
    return held_out_scores(words[pairs.winner] - words[pairs.loser], pairs.p, pairs.cluster)
