"""Metrics against scikit-learn, scipy and audmetric, and their conventions."""

from __future__ import annotations

import audmetric
import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as oracle

from pipelines.errors import ConfigError
from pipelines.training.metrics import (
    SUMS,
    absolute_error_of,
    accuracy,
    concordance,
    concordance_of,
    confusion_matrix,
    expected_calibration_error,
    macro_f1,
    mean_absolute_error,
    pearson,
    pearson_of,
    recall_per_class,
    unweighted_average_recall,
)

C = 5


def predictions(seed: int, *, absent: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Labels [N] and mostly right predictions [N]; one class may be absent from the labels."""
    rng = np.random.default_rng(seed)
    labels = rng.choice([c for c in range(C) if c != absent], 80)
    return labels, np.where(rng.random(80) < 0.6, labels, rng.integers(0, C, 80))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("absent", [None, 0, 4])
@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
def test_equal_scikit_learn(seed: int, absent: int | None) -> None:
    labels, predicted = predictions(seed, absent=absent)
    assert (confusion_matrix(labels, predicted, C) == oracle.confusion_matrix(labels, predicted, labels=range(C))).all()
    assert accuracy(labels, predicted, C) == pytest.approx(oracle.accuracy_score(labels, predicted))
    uar = unweighted_average_recall(labels, predicted, C)
    assert uar == pytest.approx(oracle.balanced_accuracy_score(labels, predicted))
    assert macro_f1(labels, predicted, C) == pytest.approx(oracle.f1_score(labels, predicted, average="macro"))
    recalls = oracle.recall_score(labels, predicted, labels=range(C), average=None, zero_division=np.nan)
    np.testing.assert_allclose(recall_per_class(labels, predicted, C), recalls)


def test_absent_classes() -> None:
    labels, predicted = np.array([0, 0, 1, 1]), np.array([0, 0, 1, 2])
    assert unweighted_average_recall(labels, predicted, 4) == pytest.approx(0.75)  # mean of 1 and 1/2
    # Class 2 was predicted though it does not occur: F1 0. Class 3 is nowhere: not counted.
    assert macro_f1(labels, predicted, 4) == pytest.approx((1 + 2 / 3 + 0) / 3)
    assert np.isnan(recall_per_class(labels, predicted, 4)).tolist() == [False, False, True, True]


@pytest.mark.parametrize("metric", [accuracy, unweighted_average_recall, macro_f1])
def test_extremes(metric: object) -> None:
    labels = np.arange(C).repeat(4)
    assert callable(metric)
    assert metric(labels, labels, C) == 1
    assert metric(labels, (labels + 1) % C, C) == 0
    assert np.isnan(metric(np.array([], dtype=np.int64), np.array([], dtype=np.int64), C))
    assert np.isnan(metric(np.array([-1, -1]), np.array([0, 1]), C))
    constant = metric(labels, np.zeros_like(labels), C)
    assert constant == pytest.approx(2 / (C + 1) / C if metric is macro_f1 else 1 / C)


@pytest.mark.parametrize("metric", [accuracy, unweighted_average_recall, macro_f1, confusion_matrix, recall_per_class])
def test_stacked_equals_the_loop(metric: object) -> None:
    assert callable(metric)
    pairs = [predictions(seed, absent=seed if seed < C else None) for seed in range(6)]
    labels, predicted = (np.stack(part).reshape(2, 3, 80) for part in zip(*pairs, strict=True))
    labels[1, 2, 30:] = -1  # a shorter vector
    stacked = metric(labels, predicted, C)
    loop = [
        metric(labels[i, j][labels[i, j] >= 0], predicted[i, j][labels[i, j] >= 0], C)
        for i in (0, 1)
        for j in (0, 1, 2)
    ]
    np.testing.assert_array_equal(stacked, np.stack(loop).reshape(stacked.shape))
    # One vector of labels serves many vectors of predictions.
    np.testing.assert_array_equal(metric(labels[0, 0], predicted[0], C)[1], metric(labels[0, 0], predicted[0, 1], C))


def test_classes_out_of_range() -> None:
    with pytest.raises(ConfigError, match=r"A label lies outside 0\.\.4: found 0\.\.5"):
        confusion_matrix(np.array([0, 5]), np.array([0, 0]), C)
    with pytest.raises(ConfigError, match=r"A prediction lies outside 0\.\.4: found -1\.\.0"):
        confusion_matrix(np.array([0, 4]), np.array([0, -1]), C)


def test_calibration_by_hand() -> None:
    # Two bins: confidences .6, .8 in (.5, 1] with one hit, .4 in (0, .5] with a hit.
    probabilities = np.array([[0.6, 0.3, 0.1], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4]])
    labels = np.array([0, 0, 2])
    expected = 2 / 3 * abs(0.5 - 0.7) + 1 / 3 * abs(1 - 0.4)
    assert expected_calibration_error(labels, probabilities, num_bins=2) == pytest.approx(expected)


def test_calibration_equals_a_loop() -> None:
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(C) * 0.5, size=(3, 200))
    labels = rng.integers(0, C, (3, 200))
    labels[2, 150:] = -1
    stacked = expected_calibration_error(labels, probabilities)
    for h in range(3):
        own = labels[h] >= 0
        confidence, hit = probabilities[h, own].max(-1), probabilities[h, own].argmax(-1) == labels[h, own]
        total = 0.0
        for low in range(15):
            inside = (confidence > low / 15) & (confidence <= (low + 1) / 15)
            if inside.any():
                total += inside.mean() * abs(hit[inside].mean() - confidence[inside].mean())
        assert stacked[h] == pytest.approx(total)


def test_calibration_extremes() -> None:
    labels = np.arange(C).repeat(20)
    certain = np.eye(C)[labels]
    assert expected_calibration_error(labels, certain) == 0
    assert expected_calibration_error((labels + 1) % C, certain) == 1
    assert expected_calibration_error(labels, np.full((len(labels), C), 1 / C)) == pytest.approx(0)
    assert np.isnan(expected_calibration_error(np.array([-1]), np.full((1, C), 1 / C)))


# ------------------------------------------------------------------------------------------------ dimensions


def values(seed: int, count: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """True values on a scale from 1 to 7 and predictions that are biased and drawn together."""
    rng = np.random.default_rng(seed)
    truth = rng.uniform(1, 7, count).round(2)
    return truth, 2 + 0.5 * truth + rng.standard_normal(count)


@pytest.mark.parametrize("seed", range(5))
def test_dimensions_equal_audmetric_scipy_and_scikit_learn(seed: int) -> None:
    truth, predicted = values(seed)
    assert concordance(truth, predicted) == pytest.approx(audmetric.concordance_cc(truth, predicted), abs=1e-12)
    assert pearson(truth, predicted) == pytest.approx(stats.pearsonr(truth, predicted).statistic, abs=1e-12)
    assert pearson(truth, predicted) == pytest.approx(audmetric.pearson_cc(truth, predicted), abs=1e-12)
    assert mean_absolute_error(truth, predicted) == pytest.approx(oracle.mean_absolute_error(truth, predicted))
    # The population's, not the sample's: Lin's formula with n in the denominators.
    spread = truth.var() + predicted.var() + (truth.mean() - predicted.mean()) ** 2
    covariance = np.cov(truth, predicted, ddof=0)[0, 1]
    assert concordance(truth, predicted) == pytest.approx(2 * covariance / spread)


def test_dimensions_at_the_extremes() -> None:
    truth, _ = values(0)
    constant = np.full_like(truth, 0.1)
    assert concordance(truth, truth) == pytest.approx(1)
    assert concordance(truth, -truth + 2 * truth.mean()) == pytest.approx(-1)
    assert pearson(truth, -truth) == pytest.approx(-1)
    assert mean_absolute_error(truth, truth) == 0
    assert concordance(truth, constant) == 0
    assert audmetric.concordance_cc(truth, constant) == pytest.approx(0)
    assert concordance(constant, truth) == 0
    assert np.isnan(concordance(constant, constant))
    assert np.isnan(audmetric.concordance_cc(np.zeros(3), np.zeros(3)))
    assert np.isnan(pearson(truth, constant))
    assert np.isnan(pearson(constant, truth))
    for metric in (concordance, pearson, mean_absolute_error):
        assert np.isnan(metric(np.empty(0), np.empty(0)))
        assert np.isnan(metric(np.full(3, np.nan), np.ones(3)))


@pytest.mark.parametrize("metric", [concordance, pearson, mean_absolute_error])
def test_stacked_dimensions_equal_the_loop(metric: object) -> None:
    assert callable(metric)
    truth, predicted = (np.stack(part).reshape(2, 3, 60) for part in zip(*map(values, range(6)), strict=True))
    truth[1, 2, 40:] = np.nan  # a shorter vector
    stacked = metric(truth, predicted)
    counted = ~np.isnan(truth)
    loop = [metric(truth[i, j][counted[i, j]], predicted[i, j][counted[i, j]]) for i in (0, 1) for j in (0, 1, 2)]
    np.testing.assert_allclose(stacked, np.reshape(loop, (2, 3)), rtol=1e-12)
    np.testing.assert_allclose(metric(truth[0, 0], predicted)[1, 1], metric(truth[0, 0], predicted[1, 1]), rtol=1e-12)


def test_metrics_of_sums_equal_those_of_values() -> None:
    truth, predicted = values(0)
    x, y = (predicted - 4) / 3, (truth - 4) / 3  # any scale that both share
    parts = {
        "n": np.ones_like(x),
        "x": x,
        "y": y,
        "xx": x * x,
        "yy": y * y,
        "xy": x * y,
        "error": abs(truth - predicted),
    }
    sums = np.array([parts[name].sum() for name in SUMS])
    assert concordance_of(sums) == pytest.approx(concordance(truth, predicted), abs=1e-12)
    assert pearson_of(sums) == pytest.approx(pearson(truth, predicted), abs=1e-12)
    assert absolute_error_of(sums) == pytest.approx(mean_absolute_error(truth, predicted), abs=1e-12)
    nothing = np.zeros(len(SUMS))
    assert np.isnan([concordance_of(nothing), pearson_of(nothing), absolute_error_of(nothing)]).all()
