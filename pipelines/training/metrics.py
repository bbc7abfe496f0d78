"""Metrics as pure functions, for one vector of predictions and for many at once: of classes, and of dimensions.

Conventions of classes:

* ``labels`` and ``predictions`` are integers in 0..C-1, [..., N]; leading dimensions (heads, bootstrap draws)
  are kept, so labels [N] give a result of shape [] and labels [H, N] one of shape [H]. Labels broadcast
  against predictions.
* Every metric also exists as a function of confusion matrices [..., C, C], true classes in rows (``uar_of`` …).
* A negative label marks a row that does not count: it lets vectors of different lengths share one array.
* **A class that is absent from the labels** has no recall: it is left out of the mean of recalls (UAR), as in
  scikit-learn's ``balanced_accuracy_score``. Macro-F1 averages over the classes that occur among labels *or*
  predictions, as in scikit-learn's ``f1_score(average="macro")``: predicting a class that is not there costs
  an F1 of 0.
* Without a single counting row every metric is NaN.

Conventions of dimensions (arousal, valence, dominance):

* ``truth`` and ``predicted`` are numbers, [..., N]; leading dimensions are kept and broadcast. A NaN among the truth marks a
  row that does not count.
* The concordance correlation coefficient (CCC, Lin 1989) is that of the population, variances and covariance divided by N:
  2 s_xy / (s_x^2 + s_y^2 + (mean x - mean y)^2), between -1 and 1. It is 0 where either side is constant, and NaN where both are,
  at the same number. Pearson's correlation is NaN where either side is constant.
* Every metric also exists as a function of sums [..., 7] (:data:`SUMS`), which add up over speakers: ``concordance_of`` …
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import ConfigError

__all__ = [
    "SUMS",
    "absolute_error_of",
    "accuracy",
    "accuracy_of",
    "concordance",
    "concordance_of",
    "confusion_matrix",
    "expected_calibration_error",
    "macro_f1",
    "macro_f1_of",
    "mean_absolute_error",
    "pearson",
    "pearson_of",
    "recall_per_class",
    "uar_of",
    "unweighted_average_recall",
]

SUMS: tuple[str, ...] = ("n", "x", "y", "xx", "yy", "xy", "error")
"""What is summed over utterances of a dimension: their number, predicted x and true y, their squares and product, and |x - y|.
For concordance and correlation, x and y may be on any scale that both share."""

_CONSTANT = 1e-7
"""Sums whose variance is below this (of values between -1 and 1) are of a constant: what is left is the rounding of the sums."""

Integers = NDArray[np.integer[Any]]
Floats = NDArray[np.float64]


def confusion_matrix(labels: Integers, predictions: Integers, num_classes: int) -> NDArray[np.int64]:
    """Count rows by true class (first of the two axes) and predicted class (second).

    Args:
        labels: true classes, [..., N]; rows with a negative label are left out.
        predictions: predicted classes, [..., N].
        num_classes: C.

    Returns:
        Counts, [..., C, C].

    Raises:
        ConfigError: a label or a counted prediction is not below ``num_classes``, or a prediction is
            negative.
    """
    true, predicted = np.broadcast_arrays(np.asarray(labels), np.asarray(predictions))
    counted = true >= 0
    for what, values in (("label", true[counted]), ("prediction", predicted[counted])):
        if values.size and (values.min() < 0 or values.max() >= num_classes):
            raise ConfigError(
                f"A {what} lies outside 0..{num_classes - 1}: found {values.min()}..{values.max()}. Labels and "
                f"predictions must be class indices of the same {num_classes} classes."
            )
    lead = true.shape[:-1]
    vectors = int(np.prod(lead, dtype=np.int64))
    offset = np.arange(vectors, dtype=np.int64).reshape(*lead, 1) * num_classes**2
    cell = (offset + true * num_classes + predicted)[counted]
    counts = np.bincount(cell, minlength=vectors * num_classes**2)
    return counts.reshape(*lead, num_classes, num_classes).astype(np.int64)


def recall_per_class(labels: Integers, predictions: Integers, num_classes: int) -> Floats:
    """Share of each class' rows that were predicted as that class.

    Args:
        labels: true classes, [..., N].
        predictions: predicted classes, [..., N].
        num_classes: C.

    Returns:
        [..., C], NaN for a class without rows.
    """
    return _recalls(confusion_matrix(labels, predictions, num_classes))


def unweighted_average_recall(labels: Integers, predictions: Integers, num_classes: int) -> Floats:
    """UAR: the mean of the recalls of the classes that occur among the labels; chance is 1 / their number.

    Args:
        labels: true classes, [..., N].
        predictions: predicted classes, [..., N].
        num_classes: C.

    Returns:
        [...], in [0, 1].
    """
    return uar_of(confusion_matrix(labels, predictions, num_classes))


def accuracy(labels: Integers, predictions: Integers, num_classes: int) -> Floats:
    """Share of rows predicted correctly (in emotion papers: weighted accuracy, WA).

    Args:
        labels: true classes, [..., N].
        predictions: predicted classes, [..., N].
        num_classes: C.

    Returns:
        [...], in [0, 1].
    """
    return accuracy_of(confusion_matrix(labels, predictions, num_classes))


def macro_f1(labels: Integers, predictions: Integers, num_classes: int) -> Floats:
    """Mean over classes of F1 = 2 hits / (true rows + predicted rows), classes that occur in neither left
    out.

    Args:
        labels: true classes, [..., N].
        predictions: predicted classes, [..., N].
        num_classes: C.

    Returns:
        [...], in [0, 1].
    """
    return macro_f1_of(confusion_matrix(labels, predictions, num_classes))


def uar_of(confusion: NDArray[Any]) -> Floats:
    """:func:`unweighted_average_recall` [...] of confusion matrices [..., C, C]."""
    return _mean_of_present(_recalls(confusion))


def accuracy_of(confusion: NDArray[Any]) -> Floats:
    """:func:`accuracy` [...] of confusion matrices [..., C, C]."""
    return _ratio(np.trace(confusion, axis1=-2, axis2=-1), confusion.sum(axis=(-2, -1)))


def macro_f1_of(confusion: NDArray[Any]) -> Floats:
    """:func:`macro_f1` [...] of confusion matrices [..., C, C]."""
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)
    return _mean_of_present(_ratio(2 * hits, confusion.sum(axis=-1) + confusion.sum(axis=-2)))


def expected_calibration_error(labels: Integers, probabilities: NDArray[Any], *, num_bins: int = 15) -> Floats:
    """ECE: by how much the confidence of the predictions differs from their accuracy (Guo et al. 2017, eq.
    3).

    Rows are sorted into ``num_bins`` equally wide bins of confidence (the largest probability), each open
    below and closed above; the result is the mean over bins of \\|accuracy - mean confidence\\|, weighted by
    the bin's rows.

    Args:
        labels: true classes, [..., N]; rows with a negative label are left out.
        probabilities: class probabilities, [..., N, C].
        num_bins: number of bins.

    Returns:
        [...], in [0, 1].
    """
    probabilities = np.asarray(probabilities, dtype=np.float64)
    confidence = probabilities.max(axis=-1)  # [..., N]
    true = np.broadcast_to(np.asarray(labels), confidence.shape)
    counted = true >= 0
    gap = (probabilities.argmax(axis=-1) == true) - confidence  # sums to rows x (accuracy - mean confidence)
    position = np.clip(np.ceil(confidence * num_bins).astype(np.int64) - 1, 0, num_bins - 1)
    lead = confidence.shape[:-1]
    vectors = int(np.prod(lead, dtype=np.int64))
    offset = np.arange(vectors, dtype=np.int64).reshape(*lead, 1) * num_bins
    sums = np.bincount((offset + position)[counted], weights=gap[counted], minlength=vectors * num_bins)
    return _ratio(np.abs(sums).reshape(*lead, num_bins).sum(axis=-1), counted.sum(axis=-1))


def concordance(truth: NDArray[Any], predicted: NDArray[Any]) -> Floats:
    """Concordance correlation coefficient of the population (Lin 1989, Biometrics 45, eq. 1).

    Args:
        truth: true values, [..., N]; rows of NaN are left out.
        predicted: predicted values, [..., N].

    Returns:
        [...], in [-1, 1].
    """
    moments = _moments(truth, predicted)
    spread = moments.x_variance + moments.y_variance + (moments.x_mean - moments.y_mean) ** 2
    return _ratio(2.0 * moments.covariance, spread)


def pearson(truth: NDArray[Any], predicted: NDArray[Any]) -> Floats:
    """Pearson's correlation.

    Args:
        truth: true values, [..., N]; rows of NaN are left out.
        predicted: predicted values, [..., N].

    Returns:
        [...], in [-1, 1].
    """
    moments = _moments(truth, predicted)
    return _ratio(moments.covariance, np.sqrt(moments.x_variance * moments.y_variance))


def mean_absolute_error(truth: NDArray[Any], predicted: NDArray[Any]) -> Floats:
    """Mean of |x - y|.

    Args:
        truth: true values, [..., N]; rows of NaN are left out.
        predicted: predicted values, [..., N].

    Returns:
        [...], on the scale of the values.
    """
    true, found = _paired(truth, predicted)
    counted = ~np.isnan(true)
    return _ratio(np.where(counted, np.abs(found - true), 0.0).sum(axis=-1), counted.sum(axis=-1))


def concordance_of(sums: NDArray[Any]) -> Floats:
    """:func:`concordance` [...] of sums [..., 7] of values between about -1 and 1."""
    x_mean, y_mean, x_variance, y_variance, covariance = _moments_of(sums)
    spread = x_variance + y_variance + (x_mean - y_mean) ** 2
    return _ratio(2.0 * covariance, np.where(spread > _CONSTANT, spread, 0.0))


def pearson_of(sums: NDArray[Any]) -> Floats:
    """:func:`pearson` [...] of sums [..., 7] of values between about -1 and 1."""
    _, _, x_variance, y_variance, covariance = _moments_of(sums)
    vary = (x_variance > _CONSTANT) & (y_variance > _CONSTANT)
    return _ratio(covariance, np.sqrt(np.where(vary, x_variance * y_variance, 0.0)))


def absolute_error_of(sums: NDArray[Any]) -> Floats:
    """:func:`mean_absolute_error` [...] of sums [..., 7]."""
    return _ratio(sums[..., 6], sums[..., 0])


@dataclass(frozen=True)
class _Moments:
    """Of the counted rows, [...] each."""

    x_mean: Floats
    y_mean: Floats
    x_variance: Floats
    y_variance: Floats
    covariance: Floats


def _paired(truth: NDArray[Any], predicted: NDArray[Any]) -> tuple[Floats, Floats]:
    true, found = np.broadcast_arrays(np.asarray(truth, dtype=np.float64), np.asarray(predicted, dtype=np.float64))
    return true, found


def _moments(truth: NDArray[Any], predicted: NDArray[Any]) -> _Moments:
    true, found = _paired(truth, predicted)
    counted = ~np.isnan(true)
    rows = counted.sum(axis=-1)

    def mean(values: Floats) -> Floats:
        return _ratio(np.where(counted, values, 0.0).sum(axis=-1), rows)

    centred = []
    for values in (found, true):
        apart = values - mean(values)[..., None]
        # The mean of equal numbers may be off by a rounding; they are constant all the same.
        least, most = (
            end(values, axis=-1, where=counted, initial=start) for end, start in ((np.min, np.inf), (np.max, -np.inf))
        )
        centred.append(np.where((least == most)[..., None], 0.0, apart))
    return _Moments(
        mean(found), mean(true), mean(centred[0] ** 2), mean(centred[1] ** 2), mean(centred[0] * centred[1])
    )


def _moments_of(sums: NDArray[Any]) -> tuple[Floats, Floats, Floats, Floats, Floats]:
    """Means, variances and covariance; NaN without a row."""
    x, y, xx, yy, xy = (_ratio(sums[..., position], sums[..., 0]) for position in range(1, 6))
    return x, y, np.maximum(xx - x**2, 0.0), np.maximum(yy - y**2, 0.0), xy - x * y


def _recalls(confusion: NDArray[Any]) -> Floats:
    return _ratio(np.diagonal(confusion, axis1=-2, axis2=-1), confusion.sum(axis=-1))


def _ratio(numerator: NDArray[Any], denominator: NDArray[Any]) -> Floats:
    numerator, denominator = np.asarray(numerator, dtype=np.float64), np.asarray(denominator, dtype=np.float64)
    ratio: Floats = np.divide(numerator, denominator, out=np.full(numerator.shape, np.nan), where=denominator > 0)
    return ratio


def _mean_of_present(values: Floats) -> Floats:
    present = ~np.isnan(values)
    return _ratio(np.where(present, values, 0.0).sum(axis=-1), present.sum(axis=-1))
