"""Linear probes against scikit-learn, and what they must not look at."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from pipelines.corpora.protocols import Fold
from pipelines.errors import ConfigError, ProtocolError
from pipelines.training.logistic import PENALTY_C
from pipelines.training.probes import STRENGTHS, LayerProbes, ProbeTarget, inner_parts, probe_layers

ROWS, SPEAKERS = 120, 6
WHO = [f"s{row % SPEAKERS}" for row in range(ROWS)]
GENERATOR = np.random.default_rng(5)
HIDDEN = GENERATOR.standard_normal((ROWS, 3))
LABELS = HIDDEN.argmax(axis=1).astype(np.int64)


def layers_of(*sizes: int, signal: float = 1.0) -> list[NDArray[np.float32]]:
    found = []
    for index, size in enumerate(sizes):
        generator = np.random.default_rng(100 + index)
        noise = generator.standard_normal((ROWS, size))
        found.append((noise + signal * HIDDEN @ generator.standard_normal((3, size))).astype(np.float32) * 3 + 7)
    return found


def fold(test_speaker: int) -> Fold:
    """One speaker tests, the next one validates."""
    speaker = np.arange(ROWS) % SPEAKERS
    validation = (test_speaker + 1) % SPEAKERS
    parts = (speaker != test_speaker) & (speaker != validation), speaker == validation, speaker == test_speaker
    return Fold(str(test_speaker), *(np.flatnonzero(part) for part in parts))


FOLDS = [fold(index) for index in range(3)]


def probes(layers: list[NDArray[np.float32]], target: ProbeTarget, kind: str, threads: int = 1) -> list[LayerProbes]:
    return list(
        probe_layers(
            layers.__getitem__, len(layers), target=target, folds=FOLDS, speakers=WHO, kind=kind, threads=threads
        )
    )


@pytest.mark.parametrize("dim", [10, 400])
def test_logistic_is_that_of_scikit_learn(dim: int) -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    (layer,) = layers_of(dim)
    (found,) = probes([layer], ProbeTarget.of_labels(LABELS, 3), "logistic")
    for one in FOLDS:
        rows = np.concatenate([one.train, one.validation])
        scaler = StandardScaler().fit(layer[rows].astype(np.float64))
        model = LogisticRegression(C=PENALTY_C, max_iter=5000, tol=1e-8)
        model.fit(scaler.transform(layer[rows].astype(np.float64)), LABELS[rows])
        expected = model.predict_proba(scaler.transform(layer[one.test].astype(np.float64)))
        np.testing.assert_allclose(found.test[one.test], expected, atol=2e-3)
    assert np.isnan(found.test[np.arange(ROWS) % SPEAKERS > 2]).all()  # never tested


@pytest.mark.parametrize("dim", [10, 400])
def test_ridge_is_that_of_scikit_learn_but_for_its_scale(dim: int) -> None:
    from sklearn.linear_model import Ridge
    from sklearn.preprocessing import StandardScaler

    (layer,) = layers_of(dim)
    values = HIDDEN[:, :2] * [1.0, 10.0] + [0.0, 50.0]
    (found,) = probes([layer], ProbeTarget(values, False), "ridge")
    for index, one in enumerate(FOLDS):
        rows = np.sort(np.concatenate([one.train, one.validation]))
        scaler = StandardScaler().fit(layer[rows].astype(np.float64))
        for column in range(2):
            model = Ridge(alpha=found.strengths[index, column] * dim).fit(
                scaler.transform(layer[rows].astype(np.float64)), values[rows, column]
            )
            expected = model.predict(scaler.transform(layer[one.test].astype(np.float64)))
            got = found.test[one.test, column]
            slope, shift = np.polyfit(expected, got, 1)
            np.testing.assert_allclose(got, slope * expected + shift, atol=1e-6)
            # The stretch is what gives held-out predictions the spread of the values.
            inner = found.inner[index][:, column]
            assert inner.std() == pytest.approx(values[rows, column].std(), rel=1e-9)
            assert inner.mean() == pytest.approx(values[rows, column].mean(), rel=1e-9)
            assert slope > 1


def test_strength_follows_the_noise() -> None:
    values = HIDDEN[:, :1]
    (clear,) = probes(layers_of(30, signal=5.0), ProbeTarget(values, False), "ridge")
    (noisy,) = probes(layers_of(30, signal=0.05), ProbeTarget(values, False), "ridge")
    assert set(np.unique(clear.strengths)) <= set(STRENGTHS)
    assert clear.strengths.max() < noisy.strengths.min()


def test_ridge_reads_classes_as_well() -> None:
    (layer,) = layers_of(20, signal=2.0)
    (found,) = probes([layer], ProbeTarget.of_labels(LABELS, 3), "ridge")
    tested = np.concatenate([one.test for one in FOLDS])
    assert (found.test[tested].argmax(axis=1) == LABELS[tested]).mean() > 0.8
    assert len(set(found.strengths[0])) == 1


@pytest.mark.parametrize("kind", ["logistic", "ridge"])
def test_nothing_is_learned_from_test_rows(kind: str) -> None:
    """Test rows of a fold may hold anything: what the fold's inner predictions, and so its choices, say stays the same."""
    (layer,) = layers_of(25)
    target = ProbeTarget.of_labels(LABELS, 3)
    (before,) = probes([layer], target, kind)
    other = layer.copy()
    other[FOLDS[0].test] = 1e3 * np.random.default_rng(1).standard_normal(other[FOLDS[0].test].shape)
    labels = LABELS.copy()
    labels[FOLDS[0].test] = 0
    (after,) = probes([other], ProbeTarget.of_labels(labels, 3), kind)
    np.testing.assert_array_equal(before.inner[0], after.inner[0])
    np.testing.assert_array_equal(before.strengths[0], after.strengths[0])


@pytest.mark.parametrize("kind", ["logistic", "ridge"])
def test_held_out_speakers_are_not_fitted(kind: str) -> None:
    """A speaker with labels of his own, and features that give him away: others' probes cannot know it."""
    labels = np.where(np.array(WHO) == "s3", 2, LABELS % 2).astype(np.int64)
    layer = np.stack([np.array(WHO) == "s3", HIDDEN[:, 0] > 0], axis=1).astype(np.float32)
    (found,) = probes([layer], ProbeTarget.of_labels(labels, 3), kind)
    rows = np.sort(np.concatenate([FOLDS[0].train, FOLDS[0].validation]))
    his = np.array(WHO)[rows] == "s3"
    assert (found.inner[0][his].argmax(axis=1) != 2).all()
    if kind == "logistic":
        assert (found.inner[0][his][:, 2] == 0).all()  # a class that was not fitted


def test_threads_change_no_bit() -> None:
    layers = layers_of(30, 40, 200, 20)
    target = ProbeTarget.of_labels(LABELS, 3)
    for one, other in zip(
        probes(layers, target, "logistic"), probes(layers, target, "logistic", threads=3), strict=True
    ):
        np.testing.assert_array_equal(one.test, other.test)
        np.testing.assert_array_equal(one.inner[2], other.inner[2])


def test_inner_parts_divide_speakers() -> None:
    speakers = ["a"] * 10 + ["b"] * 6 + ["c"] * 5 + ["d"] * 4 + ["e"] * 1 + ["f"] * 9
    rows = np.arange(3, 35)  # not all of them
    parts = inner_parts(rows, speakers)
    assert len(parts) == 4
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(rows)))
    groups = [{speakers[row] for row in rows[part]} for part in parts]
    assert sum(map(len, groups)) == 6
    assert max(map(len, parts)) - min(map(len, parts)) <= 4
    assert len(inner_parts(np.arange(0, 16), speakers)) == 2


def test_mistakes_are_explained() -> None:
    (layer,) = layers_of(5)
    with pytest.raises(ConfigError, match=r"one of logistic, ridge or head, not 'svm'"):
        probes([layer], ProbeTarget.of_labels(LABELS, 3), "svm")
    with pytest.raises(ConfigError, match="use --probe ridge"):
        probes([layer], ProbeTarget(HIDDEN, False), "logistic")
    with pytest.raises(ProtocolError, match=r"trains on one speaker only \(s0\).*--protocol"):
        inner_parts(np.array([0, 6, 12]), WHO)
