from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score

from pipelines.evaluation.results import HeadRecord, score_cell
from pipelines.training.grid import Cell

CLASSES = 3


def _records(labels: np.ndarray, *, seeds: int, right: float) -> tuple[list[HeadRecord], np.ndarray]:
    """Two folds; predictions are right with the given probability."""
    generator = np.random.default_rng(0)
    predictions = np.where(generator.random((seeds, len(labels))) < right, labels, (labels + 1) % CLASSES)
    records = []
    for fold in range(2):
        test = np.flatnonzero(np.arange(len(labels)) % 2 == fold)
        for seed in range(seeds):
            probabilities = np.eye(CLASSES, dtype=np.float32)[predictions[seed, test]]
            constant = np.zeros(len(test), dtype=np.int64)
            row = {"fold": str(fold), "seed": seed}
            records.append(HeadRecord(row, test, probabilities, predictions[seed, test], constant))
    return records, predictions


def test_scores_are_pooled_over_folds_and_averaged_over_seeds() -> None:
    labels = np.random.default_rng(1).integers(CLASSES, size=200)
    speakers = [f"s{index % 8}" for index in range(200)]
    records, predictions = _records(labels, seeds=3, right=0.8)
    cell = score_cell(Cell("a", "b", "concat"), records, labels=labels, speakers=speakers, num_classes=CLASSES)
    expected = [balanced_accuracy_score(labels, row) for row in predictions]
    assert cell.uar == pytest.approx(np.mean(expected))
    assert cell.uar_seed_std == pytest.approx(np.std(expected, ddof=1))
    assert cell.uar_interval.low < cell.uar < cell.uar_interval.high
    assert (cell.folds, cell.seeds, cell.utterances) == (2, 3, 200)
    assert cell.left_drop == 0.0
    # A constant prediction has a UAR of 1 / C.
    assert cell.right_drop == pytest.approx(cell.uar - 1 / CLASSES)


def test_utterances_that_no_fold_tests_do_not_count() -> None:
    labels = np.array([0, 1, 2, 0, 1, 2])
    test = np.array([0, 1, 2])
    right = np.eye(CLASSES, dtype=np.float32)[labels[test]]
    record = HeadRecord({"fold": "test", "seed": 0}, test, right, labels[test], labels[test])
    cell = score_cell(Cell("a", "", "single"), [record], labels=labels, speakers=list("xyzxyz"), num_classes=CLASSES)
    assert cell.uar == 1.0
    assert cell.utterances == 3
    assert np.isnan(cell.right_drop)
