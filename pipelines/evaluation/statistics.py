"""Scores with intervals. Everything is computed from confusion matrices per speaker, so that the bootstrap can draw speakers.

Conventions: a confusion matrix has true classes in rows and predicted classes in columns. A cell of a comparison predicts every
test utterance once per seed; its score is computed per seed on the predictions of all folds together (pooled), then averaged
over seeds. Pooling is what makes leave-one-speaker-out scores comparable with five folds: a single speaker may lack a class.

Intervals are percentile intervals of a bootstrap over **speakers**, not over clips: clips of one speaker are not independent,
and a corpus of ten speakers is a sample of size ten. All seeds of a drawn speaker are kept together. Every cell of a comparison
is resampled with the same draws.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.training.metrics import accuracy_of, macro_f1_of, uar_of

__all__ = ["METRICS", "Interval", "Metric", "bootstrap_interval", "score", "speaker_confusions"]

Metric = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""Confusion matrices [..., C, C] to scores [...]."""

METRICS: dict[str, Metric] = {"uar": uar_of, "accuracy": accuracy_of, "macro_f1": macro_f1_of}
"""The scores of every table; see ``training.metrics`` for what counts when a class is absent."""


@dataclass(frozen=True)
class Interval:
    """A confidence interval.

    Attributes:
        low: lower bound; NaN, as is ``high``, where there is a single speaker: one voice says nothing about others.
        high: upper bound.
        level: its confidence, for instance 0.95.
    """

    low: float
    high: float
    level: float


def speaker_confusions(
    labels: NDArray[np.int64], predictions: NDArray[np.int64], speakers: Sequence[str], *, num_classes: int
) -> NDArray[np.float64]:
    """Confusion matrices per speaker and seed.

    Args:
        labels: int64 [n].
        predictions: int64 [S, n], one row per seed.
        speakers: n speakers.
        num_classes: C.

    Returns:
        float64 [K, S, C, C] for K speakers, in sorted order.
    """
    names, speaker = np.unique(np.asarray(speakers, dtype=str), return_inverse=True)
    shape = (len(names), len(predictions), num_classes, num_classes)
    seed = np.arange(len(predictions))[:, None]  # seed is [S, 1]; the cell of every prediction broadcasts to [S, n]
    cells = np.ravel_multi_index((speaker[None, :], seed, labels[None, :], predictions), shape)
    return np.bincount(cells.ravel(), minlength=int(np.prod(shape))).reshape(shape).astype(np.float64)


def score(confusions: NDArray[np.float64], metric: Metric) -> float:
    """Mean over seeds of the pooled score.

    Args:
        confusions: float64 [K, S, C, C], by speaker and seed.
        metric: one of :data:`METRICS`.
    """
    return float(metric(confusions.sum(axis=0)).mean())


def bootstrap_interval(
    confusions: NDArray[np.float64], metric: Metric, *, replicates: int = 2000, level: float = 0.95, seed: int = 0
) -> Interval:
    """Percentile interval of the score under resampling of speakers (Efron & Tibshirani 1993, §13.3; clusters = speakers).

    Args:
        confusions: float64 [K, S, C, C], by speaker and seed.
        metric: the score.
        replicates: bootstrap samples.
        level: confidence.
        seed: of the draws; the same seed and number of speakers give the same draws, hence paired cells.
    """
    speakers = len(confusions)
    if speakers < 2:
        return Interval(float("nan"), float("nan"), level)
    generator = np.random.default_rng(seed)
    draws = generator.multinomial(speakers, np.full(speakers, 1 / speakers), size=replicates).astype(np.float64)
    flat = confusions.reshape(speakers, -1)
    resampled = (draws @ flat).reshape(replicates, *confusions.shape[1:])  # resampled is [replicates, S, C, C]
    scores = metric(resampled).mean(axis=1)
    tail = (1 - level) / 2
    low, high = np.quantile(scores, [tail, 1 - tail])
    return Interval(float(low), float(high), level)
