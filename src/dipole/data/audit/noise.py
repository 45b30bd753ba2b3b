"""Labels that a model of the rest of the data contradicts: confident learning on a cross-validated probe.

cleanlab would give the same two lines for two mirrored classes (one threshold, since both classes are alike), so it
isn't a dependency.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from dipole.data.audit.columns import Columns
from dipole.data.audit.finding import Finding, excerpt, first, severity
from dipole.data.audit.intervals import Floats, share
from dipole.data.audit.probe import SampledPairs

NOISE_LIMITS = (0.20, 0.35)
"""Share of labels that the probe contradicts with confidence."""

USEFUL = 0.60
"""Accuracy below which the probe knows too little to contradict anyone."""


def check_noise(columns: Columns, pairs: SampledPairs, scores: Floats | None) -> Iterator[Finding]:
    """Labels whose opposite the probe finds at least as likely as it finds labels on average.

    That average is the threshold of confident learning (Northcutt et al. 2021, eq. 2); a probe of words sees only part
    of what people judge, so the share is an upper bound of the noise that it can see, not an estimate of all of it.

    Args:
        columns: what the pairs were drawn from.
        pairs: the sample.
        scores: log-odds of their labels by a probe of the answers' words, see ``probe.held_out_scores``.
    """
    if scores is None:
        return
    accuracy, _ = share(scores > 0, pairs.cluster)
    if accuracy < USEFUL:
        yield Finding(
            name="label_noise",
            severity="info",
            message=f"a model of the answers' words agrees with {accuracy:.0%} of the labels, too few to doubt any",
            value={"accuracy": accuracy},
        )
        return
    likely = 1 / (1 + np.exp(-scores))
    doubted = 1 - likely >= likely.mean()
    value, interval = share(doubted, pairs.cluster)
    yield Finding(
        name="label_noise",
        severity=severity(interval[0], NOISE_LIMITS),
        message=f"{value:.1%} of the labels are contradicted with confidence by a model of the answers' words "
        f"that agrees with {accuracy:.0%} of them",
        value=value,
        interval=interval,
        examples=first(
            f"{columns.ids[pairs.group[n]]}: {excerpt(pairs.texts[pairs.winner[n]])} preferred to "
            f"{excerpt(pairs.texts[pairs.loser[n]])}, probability {likely[n]:.2f}"
            for n in np.argsort(scores, kind="stable")
            if doubted[n]
        ),
        remedy="Have these pairs judged again; if they are wrong, use a robust loss (label smoothing) or soft labels.",
    )
