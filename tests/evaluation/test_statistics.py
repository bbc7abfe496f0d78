"""Scores against scikit-learn; intervals against a loop over resampled speakers, their coverage, and degenerate corpora."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, f1_score

from pipelines.evaluation.statistics import METRICS, bootstrap_interval, score, speaker_confusions
from pipelines.training.metrics import accuracy_of as accuracy
from pipelines.training.metrics import macro_f1_of as macro_f1
from pipelines.training.metrics import uar_of as uar


def _oracle(name: str, labels: NDArray[np.int64], predicted: NDArray[np.int64]) -> float:
    if name == "uar":
        with np.errstate(all="ignore"):
            return float(balanced_accuracy_score(labels, predicted))
    if name == "accuracy":
        return float(accuracy_score(labels, predicted))
    return float(f1_score(labels, predicted, average="macro", zero_division=0))


def _confusion(labels: NDArray[np.int64], predicted: NDArray[np.int64], classes: int) -> NDArray[np.float64]:
    return confusion_matrix(labels, predicted, labels=range(classes)).astype(np.float64)


# ------------------------------------------------------------------------------------------------ scores


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
@pytest.mark.filterwarnings("ignore:A single label was found")
def test_equals_scikit_learn(name: str) -> None:
    generator = np.random.default_rng(0)
    for _ in range(200):
        classes = int(generator.integers(2, 8))
        count = int(generator.integers(1, 40))  # few enough that classes go missing from either side
        labels, predicted = generator.integers(0, classes, (2, count))
        found = METRICS[name](_confusion(labels, predicted, classes))
        assert found == pytest.approx(_oracle(name, labels, predicted), abs=1e-12)


@pytest.mark.parametrize("name", METRICS)
def test_stacks_of_matrices(name: str) -> None:
    stack = np.random.default_rng(1).integers(0, 9, (4, 3, 5, 5)).astype(np.float64)
    found = METRICS[name](stack)
    assert found.shape == (4, 3)
    for index in np.ndindex(4, 3):
        assert found[index] == METRICS[name](stack[index])


@pytest.mark.parametrize("name", METRICS)
def test_extremes(name: str) -> None:
    metric = METRICS[name]
    assert metric(np.diag([5.0, 1.0, 30.0])) == 1.0
    assert metric(np.array([[0.0, 7.0], [3.0, 0.0]])) == 0.0
    assert np.isnan(metric(np.zeros((3, 3))))  # nothing was tested: no score


def test_by_hand() -> None:
    # Truth in rows: 8 of 10, 1 of 2, and a class that never occurs but is predicted once.
    confusion = np.array([[8.0, 1.0, 1.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    assert uar(confusion) == pytest.approx((0.8 + 0.5) / 2)
    assert accuracy(confusion) == pytest.approx(9 / 12)
    assert macro_f1(confusion) == pytest.approx((16 / 19 + 2 / 4 + 0) / 3)


def test_guessing_the_largest_class_is_chance() -> None:
    confusion = np.array([[90.0, 0.0], [10.0, 0.0]])
    assert uar(confusion) == 0.5
    assert accuracy(confusion) == 0.9


# ------------------------------------------------------------------------------------------------ by speaker and seed


def test_confusions_by_speaker_and_seed() -> None:
    generator = np.random.default_rng(2)
    labels, predictions = generator.integers(0, 4, 60), generator.integers(0, 4, (3, 60))
    speakers = [f"s{one}" for one in generator.integers(0, 5, 60)]
    found = speaker_confusions(labels, predictions, speakers, num_classes=4)
    assert found.shape == (5, 3, 4, 4)
    assert found.sum() == 3 * 60
    for position, name in enumerate(sorted(set(speakers))):
        mine = np.array([speaker == name for speaker in speakers])
        for seed in range(3):
            np.testing.assert_array_equal(found[position, seed], _confusion(labels[mine], predictions[seed, mine], 4))


@pytest.mark.parametrize("name", METRICS)
def test_score_is_pooled_over_speakers_and_averaged_over_seeds(name: str) -> None:
    generator = np.random.default_rng(3)
    labels, predictions = generator.integers(0, 3, 90), generator.integers(0, 3, (4, 90))
    confusions = speaker_confusions(labels, predictions, [f"s{row % 7}" for row in range(90)], num_classes=3)
    expected = np.mean([_oracle(name, labels, predicted) for predicted in predictions])
    assert score(confusions, METRICS[name]) == pytest.approx(expected, abs=1e-12)


def test_speaker_that_lacks_a_class_is_no_zero() -> None:
    """Leave-one-speaker-out: averaging per-speaker recalls would punish speaker 08 of Emo-DB for uttering no disgust."""
    labels = np.array([0, 0, 1, 0, 0])
    confusions = speaker_confusions(labels, labels[None], ["a", "a", "a", "b", "b"], num_classes=2)
    assert score(confusions, uar) == 1.0


def test_predictions_outside_the_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="invalid entry in coordinates array"):
        speaker_confusions(np.array([0, 1]), np.array([[0, 2]]), ["a", "b"], num_classes=2)


# ------------------------------------------------------------------------------------------------ intervals


def _cell(seed: int, *, speakers: int = 10, seeds: int = 2, skill: float = 0.6) -> NDArray[np.float64]:
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 4, speakers * 12)
    right = generator.random((seeds, len(labels))) < skill
    predictions = np.where(right, labels, generator.integers(0, 4, right.shape))
    return speaker_confusions(labels, predictions, [f"s{row % speakers}" for row in range(len(labels))], num_classes=4)


@pytest.mark.parametrize("name", METRICS)
def test_equals_a_loop_over_resampled_speakers(name: str) -> None:
    """The draws of the loop are other ones, so the bounds agree as well as 4000 replicates let them."""
    confusions = _cell(0)
    generator = np.random.default_rng(99)
    scores = []
    for _ in range(4000):
        drawn = generator.integers(0, len(confusions), len(confusions))
        scores.append(np.mean([METRICS[name](confusions[drawn, seed].sum(axis=0)) for seed in range(2)]))
    found = bootstrap_interval(confusions, METRICS[name], replicates=4000)
    low, high = np.quantile(scores, [0.025, 0.975])
    assert found.low == pytest.approx(low, abs=0.006)
    assert found.high == pytest.approx(high, abs=0.006)
    assert found.level == 0.95


def test_holds_the_score_and_is_wider_at_a_higher_level() -> None:
    for seed in range(10):
        confusions = _cell(seed)
        narrow, usual, wide = (bootstrap_interval(confusions, uar, level=level) for level in (0.5, 0.95, 0.999))
        assert wide.low <= usual.low <= narrow.low <= score(confusions, uar) <= narrow.high <= usual.high <= wide.high


def test_is_deterministic_and_paired() -> None:
    """Every cell of a comparison is resampled with the same draws: equal cells have equal intervals."""
    confusions = _cell(1)
    assert bootstrap_interval(confusions, uar) == bootstrap_interval(confusions.copy(), uar)
    assert bootstrap_interval(confusions, uar) != bootstrap_interval(confusions, uar, seed=1)
    np.random.seed(3)
    assert bootstrap_interval(confusions, uar) == bootstrap_interval(confusions, uar, seed=0)


def test_draws_do_not_depend_on_the_cell() -> None:
    """A cell that is better by the same amount for everybody has an interval that is shifted by just that."""
    hits = np.array([3.0, 5.0, 8.0, 4.0, 7.0, 6.0])
    worse = np.array([[[[10 + one, 20 - one], [0, 30]]] for one in hits])
    better = np.array([[[[12 + one, 18 - one], [0, 30]]] for one in hits])
    one, two = bootstrap_interval(worse, uar), bootstrap_interval(better, uar)
    shift = 2 / 30 / 2
    assert two.low - one.low == pytest.approx(shift, abs=1e-12)
    assert two.high - one.high == pytest.approx(shift, abs=1e-12)


def test_number_of_threads_does_not_matter() -> None:
    from threadpoolctl import threadpool_limits

    confusions = _cell(2, speakers=90, seeds=5)
    found = []
    for threads in (1, 2):
        with threadpool_limits(threads):
            found.append(bootstrap_interval(confusions, uar))
    assert found[0] == found[1]


def test_speakers_are_resampled_and_not_clips() -> None:
    """Two kinds of speakers, always right and always wrong: many clips of few speakers must not make the interval narrow."""
    right, wrong = np.diag([500.0, 500.0])[None], np.array([[[0.0, 500.0], [500.0, 0.0]]])
    confusions = np.stack([right] * 5 + [wrong] * 5)
    interval = bootstrap_interval(confusions, uar)
    assert interval.low == pytest.approx(0.2, abs=0.1)
    assert interval.high == pytest.approx(0.8, abs=0.1)


def test_by_hand_with_two_speakers() -> None:
    """Two speakers can be drawn as aa, ab, ba, bb: scores 1, 1/2, 1/2, 0."""
    confusions = np.stack([np.diag([4.0, 4.0])[None], np.array([[[0.0, 4.0], [4.0, 0.0]]])])
    assert (bootstrap_interval(confusions, uar).low, bootstrap_interval(confusions, uar).high) == (0.0, 1.0)
    middle = bootstrap_interval(confusions, uar, level=0.4)
    assert (middle.low, middle.high) == (0.5, 0.5)


def test_one_speaker_has_no_interval() -> None:
    """Not one of no width, which would look like certainty."""
    interval = bootstrap_interval(_cell(0, speakers=1), uar)
    assert math.isnan(interval.low)
    assert math.isnan(interval.high)


def test_perfect_predictions() -> None:
    interval = bootstrap_interval(np.stack([np.diag([3.0, 4.0])[None]] * 4), uar)
    assert (interval.low, interval.high) == (1.0, 1.0)


def test_classes_that_few_speakers_have() -> None:
    """Draws without them leave the class out rather than counting it as wrong."""
    confusions = np.zeros((6, 1, 3, 3))
    confusions[:, 0, 0, 0] = confusions[:, 0, 1, 1] = 5
    confusions[0, 0, 2, 2] = 5
    interval = bootstrap_interval(confusions, uar)
    assert (interval.low, interval.high) == (1.0, 1.0)


@pytest.mark.slow
def test_coverage() -> None:
    """Speakers with a skill of their own, drawn anew 300 times: the 95 % interval holds the true score about as often as it says.

    With 20 speakers a percentile bootstrap is known to fall somewhat short (Efron & Tibshirani 1993, §14.3).
    """
    generator = np.random.default_rng(5)
    covered = 0
    for _ in range(300):
        skills = generator.beta(6, 4, 20)  # mean 0.6
        hits = generator.binomial(30, np.repeat(skills[:, None], 2, axis=1)).astype(np.float64)
        confusions = np.zeros((20, 1, 2, 2))
        confusions[:, 0, 0, 0], confusions[:, 0, 0, 1] = hits[:, 0], 30 - hits[:, 0]
        confusions[:, 0, 1, 1], confusions[:, 0, 1, 0] = hits[:, 1], 30 - hits[:, 1]
        interval = bootstrap_interval(confusions, uar, replicates=500)
        covered += interval.low <= 0.6 <= interval.high
    assert 0.88 < covered / 300 <= 0.99
