from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import balanced_accuracy_score

from pipelines.evaluation.results import HeadRecord, RunFolder, score_cell
from pipelines.training.grid import Cell
from pipelines.training.metrics import expected_calibration_error
from tests.evaluation.cells import made_up_cell

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
            row = {"fold": str(fold), "seed": seed, "diagnostics": {"share": 0.2 + 0.1 * seed, "norm": None}}
            records.append(HeadRecord(row, test, probabilities, predictions[seed, test], constant))
    return records, predictions


def test_scores_are_pooled_over_folds_and_averaged_over_seeds() -> None:
    labels = np.random.default_rng(1).integers(CLASSES, size=200)
    speakers = [f"s{index % 8}" for index in range(200)]
    records, predictions = _records(labels, seeds=3, right=0.8)
    cell = score_cell(Cell("a", "b", "concat"), records, truth=labels, speakers=speakers)
    expected = [balanced_accuracy_score(labels, row) for row in predictions]
    assert cell.uar == pytest.approx(np.mean(expected))
    assert cell.seed_std == pytest.approx(np.std(expected, ddof=1))
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
    cell = score_cell(Cell("a", "", "single"), [record], truth=labels, speakers=list("xyzxyz"))
    assert cell.uar == 1.0
    assert cell.utterances == 3
    assert np.isnan(cell.right_drop)


def test_a_cell_keeps_what_its_scores_were_made_of() -> None:
    labels = np.random.default_rng(1).integers(CLASSES, size=200)
    speakers = [f"s{index % 8}" for index in range(200)]
    records, predictions = _records(labels, seeds=3, right=0.8)
    cell = score_cell(Cell("a", "b", "concat"), records, truth=labels, speakers=speakers)
    assert cell.speakers == tuple(f"s{index}" for index in range(8))
    assert cell.tallies.shape == (8, 3, CLASSES, CLASSES)
    assert np.trace(cell.tallies.sum(axis=0)[1]) == (predictions[1] == labels).sum()
    assert cell.right_shuffled_tallies is not None
    assert cell.right_shuffled_tallies[..., 1:].sum() == 0  # always the first class
    assert cell.diagnostics == pytest.approx({"share": 0.3})
    probabilities = np.eye(CLASSES, dtype=np.float32)[predictions]
    assert cell.ece == pytest.approx(expected_calibration_error(labels, probabilities).mean())
    by_fold = [balanced_accuracy_score(np.tile(labels[at::2], 3), predictions[:, at::2].ravel()) for at in range(2)]
    assert cell.fold_std == pytest.approx(np.std(by_fold, ddof=1), abs=2e-3)  # seeds pooled rather than averaged


def test_drops_are_tested() -> None:
    labels = np.random.default_rng(1).integers(CLASSES, size=240)
    records, _ = _records(labels, seeds=2, right=0.8)
    speakers = [f"s{index % 8}" for index in range(240)]
    cell = score_cell(Cell("a", "b", "concat"), records, truth=labels, speakers=speakers)
    assert (cell.left_drop, cell.left_drop_p) == (0.0, 1.0)
    assert cell.right_drop_p < 1e-3
    assert cell.right_drop_interval.low < cell.right_drop < cell.right_drop_interval.high
    single = score_cell(Cell("a", "", "single"), records, truth=labels, speakers=speakers)
    assert math.isnan(single.right_drop_p)
    assert math.isnan(single.right_drop_interval.low)
    assert single.right_shuffled_tallies is None


def test_one_speaker_has_scores_and_no_intervals() -> None:
    cell = made_up_cell("a", "b", "concat", skill=0.8, speakers=1)
    assert 0.5 < cell.uar < 1
    assert np.isnan([cell.uar_interval.low, cell.speaker_std, cell.left_drop_p]).all()


def test_a_record_is_flat_and_has_no_arrays() -> None:
    record = made_up_cell("a", "b", "concat", skill=0.8, diagnostics={"ball_norm": 0.4}).to_record()
    assert all(isinstance(value, str | int | float) for value in record.values())
    assert record["speakers"] == 10
    assert record["diagnostic_ball_norm"] == 0.4
    assert {"uar_low", "uar_high", "left_drop_low", "ece", "uar_fold_std", "uar_speaker_std"} <= set(record)


def test_predictions_say_who_was_tested_and_what_shuffling_did(tmp_path: Path) -> None:
    labels = np.array([0, 1, 2, 0])
    test = np.array([1, 2])
    sure = np.eye(CLASSES, dtype=np.float32)[[1, 0]]
    pair = {"cell": "a+b concat", "left": "a", "right": "b", "fusion": "concat", "fold": "1", "seed": 0}
    single = {"cell": "a", "left": "a", "right": "", "fusion": "single", "fold": "1", "seed": 0}
    records = [HeadRecord(row, test, sure, np.array([2, 2]), np.array([0, 1])) for row in (pair, single)]
    RunFolder(tmp_path).write_predictions(
        records, utterance_ids=list("pqrs"), speakers=list("xyzx"), truth=labels, classes=["n", "o", "p"]
    )
    table = pd.read_parquet(tmp_path / "predictions.parquet")
    assert list(table["cell"]) == ["a+b concat"] * 2 + ["a"] * 2
    assert list(table["utterance_id"]) == ["q", "r"] * 2
    assert list(table["speaker"]) == ["y", "z"] * 2
    assert list(table["label"]) == ["o", "p"] * 2
    assert list(table["prediction"]) == ["o", "n"] * 2
    assert list(table["left_shuffled"]) == ["p", "p"] * 2
    assert list(table["right_shuffled"]) == ["n", "o", "", ""]
