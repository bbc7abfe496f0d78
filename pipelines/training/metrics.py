"""Classification metrics as pure functions, for one vector of predictions and for many at once.

Conventions:

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
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import ConfigError

__all__ = [
    "accuracy",
    "accuracy_of",
    "confusion_matrix",
    "expected_calibration_error",
    "macro_f1",
    "macro_f1_of",
    "recall_per_class",
    "uar_of",
    "unweighted_average_recall",
]

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


def _recalls(confusion: NDArray[Any]) -> Floats:
    return _ratio(np.diagonal(confusion, axis1=-2, axis2=-1), confusion.sum(axis=-1))


def _ratio(numerator: NDArray[Any], denominator: NDArray[Any]) -> Floats:
    numerator, denominator = np.asarray(numerator, dtype=np.float64), np.asarray(denominator, dtype=np.float64)
    ratio: Floats = np.divide(numerator, denominator, out=np.full(numerator.shape, np.nan), where=denominator > 0)
    return ratio


def _mean_of_present(values: Floats) -> Floats:
    present = ~np.isnan(values)
    return _ratio(np.where(present, values, 0.0).sum(axis=-1), present.sum(axis=-1))
