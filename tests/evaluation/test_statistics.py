"""Scores against scikit-learn, differences against scipy's paired tests and loops over resampled speakers, hand-made cases."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, f1_score

from pipelines.errors import ConfigError
from pipelines.evaluation.statistics import (
    METRICS,
    Difference,
    Interval,
    against_all,
    bootstrap_interval,
    detectable_difference,
    holm,
    paired_difference,
    pseudo_values,
    resample,
    score,
    speaker_confusions,
    variance_components,
)
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
    tail = stats.norm.cdf(stats.t.ppf(0.025, 9) * math.sqrt(10 / 9))  # expanded: .0086 for ten speakers
    low, high = np.quantile(scores, [tail, 1 - tail])
    assert found.low == pytest.approx(low, abs=0.02)
    assert found.high == pytest.approx(high, abs=0.02)
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
    exact = stats.ttest_1samp([1] * 5 + [0] * 5, 0).confidence_interval(0.95)  # draws go in steps of a tenth
    assert interval.low == pytest.approx(exact.low, abs=0.1)
    assert interval.high == pytest.approx(exact.high, abs=0.1)


def test_by_hand_with_two_speakers() -> None:
    """Two speakers can be drawn as aa, ab, ba, bb: scores 1, 1/2, 1/2, 0."""
    confusions = np.stack([np.diag([4.0, 4.0])[None], np.array([[[0.0, 4.0], [4.0, 0.0]]])])
    assert (bootstrap_interval(confusions, uar).low, bootstrap_interval(confusions, uar).high) == (0.0, 1.0)
    middle = bootstrap_interval(confusions, uar, level=0.2)  # of the widened tails, Φ(−√2 t), a third lies below 1/2
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
@pytest.mark.parametrize("speakers", [8, 20])
def test_coverage(speakers: int) -> None:
    """Speakers with a skill of their own, drawn anew 1000 times: the 95 % interval holds the true score about as often as it says.

    A plain percentile interval does so in 88 % with 8 speakers.
    """
    generator = np.random.default_rng(5)
    covered = 0
    for _ in range(1000):
        skills = generator.beta(6, 4, speakers)  # mean 0.6
        hits = generator.binomial(30, np.repeat(skills[:, None], 2, axis=1)).astype(np.float64)
        confusions = np.zeros((speakers, 1, 2, 2))
        confusions[:, 0, 0, 0], confusions[:, 0, 0, 1] = hits[:, 0], 30 - hits[:, 0]
        confusions[:, 0, 1, 1], confusions[:, 0, 1, 0] = hits[:, 1], 30 - hits[:, 1]
        interval = bootstrap_interval(confusions, uar, replicates=500)
        covered += interval.low <= 0.6 <= interval.high
    assert 0.92 < covered / 1000 < 0.98


# ------------------------------------------------------------------------------------------------ differences


def _pair(
    seed: int, *, speakers: int = 10, seeds: int = 2, gain: float = 0.1, classes: int = 4, clips: int = 12
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Two cells on the same utterances; the first is right more often by ``gain``."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, speakers * clips)
    names = [f"s{row % speakers:02d}" for row in range(len(labels))]
    cells = []
    for skill in (0.5 + gain, 0.5):
        right = generator.random((seeds, len(labels))) < skill
        predictions = np.where(right, labels, generator.integers(0, classes, right.shape))
        cells.append(speaker_confusions(labels, predictions, names, num_classes=classes))
    return cells[0], cells[1]


def _hits(right: NDArray[np.int64], of: int) -> NDArray[np.float64]:
    """Counts [K, S, 2, 2] in which both classes of a speaker have ``of`` utterances and the given number right."""
    right = np.atleast_2d(right.T).T  # right is [K, S]
    counts = np.zeros((*right.shape, 2, 2))
    counts[..., 0, 0] = counts[..., 1, 1] = right
    counts[..., 0, 1] = counts[..., 1, 0] = of - right
    return counts


def test_difference_equals_the_paired_t_test_where_speakers_are_alike() -> None:
    """Equally many clips per speaker and class: the score is a mean over speakers, and scipy knows the answer."""
    generator = np.random.default_rng(0)
    one, other = generator.integers(8, 20, 12), generator.integers(6, 18, 12)
    found = paired_difference(_hits(one, 20), _hits(other, 20), uar, replicates=200_000)
    expected = stats.ttest_rel(one / 20, other / 20)
    assert found.value == pytest.approx((one - other).mean() / 20)
    assert found.p == pytest.approx(expected.pvalue, rel=0.03)
    bounds = expected.confidence_interval(0.95)
    assert found.interval.low == pytest.approx(bounds.low, abs=1e-3)
    assert found.interval.high == pytest.approx(bounds.high, abs=1e-3)
    assert found.spread == pytest.approx(np.std((one - other) / 20, ddof=1), rel=0.01)
    assert found.wilcoxon_p == pytest.approx(stats.wilcoxon((one - other)[one != other]).pvalue)
    assert (found.better, found.worse) == ((one > other).sum(), (one < other).sum())


@pytest.mark.parametrize("name", METRICS)
def test_difference_equals_a_loop_over_resampled_speakers(name: str) -> None:
    """One seed, so that nothing is added for seeds; the draws of the loop are other ones."""
    first, second = _pair(1, seeds=1)
    generator = np.random.default_rng(99)
    differences = []
    for _ in range(4000):
        drawn = generator.integers(0, 10, 10)
        one, other = (METRICS[name](cell[drawn, 0].sum(axis=0)) for cell in (first, second))
        differences.append(float(one - other))
    found = paired_difference(first, second, METRICS[name], replicates=4000)
    error = np.std(differences, ddof=1) * math.sqrt(10 / 9)
    assert found.value == pytest.approx(score(first, METRICS[name]) - score(second, METRICS[name]))
    assert found.spread == pytest.approx(error * math.sqrt(10), rel=0.05)
    assert found.p == pytest.approx(2 * stats.t.sf(abs(found.value) / error, 9), rel=0.2)


def test_difference_is_antisymmetric_and_nothing_against_itself() -> None:
    first, second = _pair(2)
    one, other = paired_difference(first, second), paired_difference(second, first)
    assert (one.value, one.p, one.better) == pytest.approx((-other.value, other.p, other.worse))
    assert one.interval.low == pytest.approx(-other.interval.high)
    same = paired_difference(first[:, :1], first[:, :1])
    assert (same.value, same.p, same.wilcoxon_p, same.interval.low, same.interval.high) == (0.0, 1.0, 1.0, 0.0, 0.0)


def test_the_same_gain_for_every_speaker_has_the_p_of_the_sign_test() -> None:
    """There is no spread to compare it with, and ten coins that fall alike are no proof beyond 2^-9."""
    found = paired_difference(_hits(np.full(10, 12), 20), _hits(np.full(10, 11), 20))
    assert found.value == pytest.approx(0.05)
    assert found.p == 2**-9
    assert found.wilcoxon_p == pytest.approx(2**-9)


@pytest.mark.parametrize("speakers", [3, 10, 13, 40, 91])
def test_wilcoxon_equals_scipy(speakers: int) -> None:
    """Without ties: exact up to 50 speakers, the normal approximation above."""
    generator = np.random.default_rng(speakers)
    for _ in range(20):
        right = generator.permutation(2 * speakers)[:speakers] * generator.choice([-1, 1], speakers) + 500
        right[right == 500] += 2 * speakers
        found = paired_difference(_hits(right, 1000), _hits(np.full(speakers, 500), 1000))
        method = "exact" if speakers <= 50 else "asymptotic"
        assert found.wilcoxon_p == pytest.approx(stats.wilcoxon(right - 500, method=method).pvalue)


def test_wilcoxon_with_ties_and_zeros_equals_all_signs() -> None:
    generator = np.random.default_rng(0)
    signs = np.array(np.meshgrid(*[[-1, 1]] * 8)).reshape(8, -1).T  # all 256
    for _ in range(50):
        moved = generator.integers(1, 4, 8) * generator.choice([-1, 1], 8)
        ranks = stats.rankdata(np.abs(moved))
        sums = (ranks * (signs > 0)).sum(axis=1)
        seen = ranks[moved > 0].sum()
        expected = min(1.0, 2 * min((sums <= seen).mean(), (sums >= seen).mean()))
        right = np.array([*moved, 0, 0]) + 10
        found = paired_difference(_hits(right, 20), _hits(np.full(10, 10), 20))
        assert found.wilcoxon_p == pytest.approx(expected)


def test_one_speaker_has_no_test() -> None:
    first, second = _pair(3, speakers=1)
    found = paired_difference(first, second)
    assert np.isnan([found.p, found.wilcoxon_p, found.interval.low, found.interval.high, found.spread]).all()
    assert found.value == pytest.approx(score(first, uar) - score(second, uar))
    assert math.isnan(resample([first, second]).difference([0], [1]).p)


def test_other_utterances_are_refused() -> None:
    first, second = _pair(4)
    more = second.copy()
    more[0, :, 0, 0] += 1
    for compare in (lambda: paired_difference(first, more), lambda: resample([first, more])):
        with pytest.raises(
            ConfigError, match="not tested on the same utterances: 120 of 10 speakers and 4 classes and 121"
        ):
            compare()
    with pytest.raises(ConfigError, match="the same utterances of the same speakers"):
        paired_difference(first, second[:9])


def test_a_whole_table_equals_one_pair_at_a_time() -> None:
    cells = [*_pair(5), *_pair(5, gain=0.3), _pair(5)[0][:, :1]]
    table = resample(cells)
    for one in range(len(cells)):
        for other in range(len(cells)):
            if one == other:
                continue
            found, expected = table.difference([one], [other]), paired_difference(cells[one], cells[other])
            assert found.value == pytest.approx(expected.value)
            assert found.p == pytest.approx(expected.p, abs=1e-9)
            assert found.wilcoxon_p == pytest.approx(expected.wilcoxon_p)
            assert found.interval.low == pytest.approx(expected.interval.low)
            assert (found.better, found.worse) == (expected.better, expected.worse)


def test_means_over_cells() -> None:
    """Two cells against one: the mean of their differences; a cell on both sides cancels."""
    cells = [*_pair(6), _pair(6, gain=0.2)[0]]
    table = resample(cells)
    found = table.difference([0, 2], [1])
    assert found.value == pytest.approx((score(cells[0], uar) + score(cells[2], uar)) / 2 - score(cells[1], uar))
    assert table.difference([0, 1], [1, 0]).p == 1.0
    alone = table.difference([0], [2])
    half = table.difference([0, 1], [2, 1])
    assert half.value == pytest.approx(alone.value / 2)
    assert half.p == pytest.approx(alone.p)


def test_many_cells_take_seconds() -> None:
    """16 pairs under 5 heads with both shufflings: processor time, on any machine."""
    first, second = _pair(7, speakers=24, seeds=5, classes=6, clips=40)
    started = time.process_time()
    table = resample([first, second] * 120)
    for position in range(1, 240):
        table.difference([0], [position])
    assert time.process_time() - started < 10


def test_the_table_does_not_depend_on_the_number_of_threads() -> None:
    from threadpoolctl import threadpool_limits

    cells = [*_pair(8, speakers=90, seeds=5), *_pair(8, speakers=90, seeds=5, gain=0.3)]
    found = []
    for threads in (1, 2):
        with threadpool_limits(threads):
            found.append(resample(cells).difference([0, 2], [1, 3]))
    assert found[0] == found[1]


def test_seeds_count_where_everybody_has_the_same() -> None:
    """One fold: a seed that is lucky is lucky for all speakers, which speakers alone do not show."""
    luck = np.array([0, 6, 0, 6, 0])
    steady = _hits(np.add.outer(np.arange(10), np.zeros(5, dtype=np.int64)) + 4, 20)
    lucky = _hits(np.add.outer(np.arange(10), luck) + 4, 20)
    found = paired_difference(lucky, steady)
    expected = stats.ttest_1samp(luck / 20, 0)  # what is left is a sample of five seeds
    assert found.p == pytest.approx(expected.pvalue, rel=1e-6)


# ------------------------------------------------------------------------------------------------ the best of several


def _difference(value: float, p: float, *, half: float = 0.02) -> Difference:
    return Difference(value, Interval(value - half, value + half, 0.95), p, p / 2, 0.03, 7, 3)


def test_to_beat_the_best_is_to_beat_every_one() -> None:
    position, found = against_all([_difference(0.05, 0.01), _difference(0.02, 0.2, half=0.05)])
    assert position == 1
    assert (found.value, found.p, found.wilcoxon_p) == (0.02, 0.2, 0.1)
    assert (found.interval.low, found.interval.high) == pytest.approx((-0.03, 0.07))


def test_to_be_below_the_best_is_to_be_below_one() -> None:
    position, found = against_all([_difference(0.05, 0.3), _difference(-0.02, 0.004), _difference(-0.01, 0.5)])
    assert position == 1
    assert (found.value, found.p) == (-0.02, pytest.approx(0.012))


def test_beating_the_best_of_noise_is_rare() -> None:
    """A cell and two others that are equally good: called better in at most 5 % of 400 tables (in truth in fewer)."""
    called = 0
    for seed in range(400):
        cells = [*_pair(seed, gain=0.0, seeds=1), _pair(seed + 1000, gain=0.0, seeds=1)[0]]
        cells[2] = _same_utterances(cells[0], np.random.default_rng(seed))
        table = resample(cells, replicates=500)
        _, found = against_all([table.difference([0], [other], ranks=False) for other in (1, 2)])
        called += found.value > 0 and found.p < 0.05
    assert called <= 0.05 * 400


def _same_utterances(like: NDArray[np.float64], generator: np.random.Generator) -> NDArray[np.float64]:
    """Another cell of the same skill: every utterance is right with probability 5/8."""
    sizes = like.sum(axis=-1).astype(np.int64)
    right = generator.binomial(sizes, 0.625)
    counts = np.zeros_like(like)
    for label in range(like.shape[-1]):
        counts[..., label, label] = right[..., label]
        counts[..., label, (label + 1) % like.shape[-1]] = sizes[..., label] - right[..., label]
    return counts


# ------------------------------------------------------------------------------------------------ corrections


def test_holm_by_hand() -> None:
    """The example of Holm's procedure: sorted .005 .01 .03 .04 times 4 3 2 1, made monotone."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_leaves_out_what_was_not_tested() -> None:
    found = holm([0.01, math.nan, 0.02])
    assert found[0] == pytest.approx(0.02)
    assert math.isnan(found[1])
    assert found[2] == pytest.approx(0.02)


def test_holm_rejects_what_the_stepwise_procedure_rejects() -> None:
    generator = np.random.default_rng(1)
    for _ in range(200):
        p_values = generator.beta(0.3, 3, int(generator.integers(1, 12)))
        rejected = set()
        for step, position in enumerate(np.argsort(p_values)):
            if p_values[position] >= 0.05 / (len(p_values) - step):
                break
            rejected.add(int(position))
        assert {at for at, p in enumerate(holm(p_values.tolist())) if p < 0.05} == rejected


# ------------------------------------------------------------------------------------------------ where the spread is from


def test_pseudo_values_are_the_speakers_own_scores_where_speakers_are_alike() -> None:
    right = np.random.default_rng(2).integers(0, 20, (7, 3))
    np.testing.assert_allclose(pseudo_values(_hits(right, 20), uar), right / 20, atol=1e-12)


def test_variance_components_by_hand() -> None:
    """Speakers 0 and 4, seeds −1 and 1, nothing else."""
    found = variance_components(np.array([[-1.0, 1.0], [3.0, 5.0]]))
    assert (found.speakers, found.seeds, found.residual) == pytest.approx((8.0, 2.0, 0.0))


def test_variance_components_find_what_was_put_in() -> None:
    generator = np.random.default_rng(3)
    values = generator.normal(0, 3, (400, 1)) + generator.normal(0, 1, (1, 200)) + generator.normal(0, 2, (400, 200))
    found = variance_components(values)
    assert found.speakers == pytest.approx(9, rel=0.15)
    assert found.seeds == pytest.approx(1, rel=0.25)
    assert found.residual == pytest.approx(4, rel=0.02)


def test_variance_components_are_never_negative_and_one_seed_tells_nothing_of_seeds() -> None:
    checked = np.array([[0.0, 1.0], [1.0, 0.0]])  # everything is residual
    found = variance_components(checked)
    assert (found.speakers, found.seeds, found.residual) == (0.0, 0.0, 1.0)
    single = variance_components(np.array([[1.0], [3.0]]))
    assert single.speakers == 2.0
    assert math.isnan(single.seeds)


# ------------------------------------------------------------------------------------------------ power


def test_detectable_difference_is_that_of_the_tables() -> None:
    """A paired t test with 10 pairs has 80 % power for an effect of 0.996 standard deviations; an effect of 0.5 needs 34 pairs."""
    assert detectable_difference(1.0, 10) == pytest.approx(0.996, abs=5e-4)
    assert detectable_difference(1.0, 34) < 0.5 < detectable_difference(1.0, 33)
    assert detectable_difference(0.04, 10) == pytest.approx(0.03984, abs=5e-5)
    assert math.isnan(detectable_difference(1.0, 1))


def test_detectable_difference_is_found_as_often_as_it_says() -> None:
    generator = np.random.default_rng(4)
    for comparisons in (1, 20):
        size = detectable_difference(2.0, 12, comparisons=comparisons)
        samples = generator.normal(size, 2.0, (20_000, 12))
        p = stats.ttest_1samp(samples, 0, axis=1).pvalue
        assert (p < 0.05 / comparisons).mean() == pytest.approx(0.8, abs=0.015)


# ------------------------------------------------------------------------------------------------ error rates


@pytest.mark.slow
def test_error_rates_with_ten_speakers() -> None:
    """2000 pairs of cells that are equally good but for what speakers do to them: p < .05 in about 5 %, p < .005 in about .5 %.

    The plain percentile bootstrap rejects twice as often (the loop's own), which is why it is not used.
    """
    generator = np.random.default_rng(5)
    rejected = {"table": 0, "wilcoxon": 0, "percentile": 0}
    strictly = 0
    for _ in range(2000):
        sizes = generator.integers(3, 14, (10, 1, 6))
        taste = generator.normal(0, 0.04, (10, 1, 1))
        skill = generator.normal(0.65, 0.08, (10, 1, 1))
        cells = []
        for sign in (1, -1):
            right = generator.binomial(sizes, np.clip(skill + sign * taste / 2, 0, 1))
            counts = np.zeros((10, 1, 6, 6))
            counts[..., range(6), range(6)] = right
            counts[..., range(6), [1, 2, 3, 4, 5, 0]] += sizes - right
            cells.append(counts)
        table = resample(cells, replicates=500)
        found = table.difference([0], [1])
        below = (table.replicates[:, 0] <= table.replicates[:, 1]).mean()
        rejected["table"] += found.p < 0.05
        rejected["wilcoxon"] += found.wilcoxon_p < 0.05
        rejected["percentile"] += 2 * min(below, 1 - below) < 0.05
        strictly += found.p < 0.005
    assert 0.035 < rejected["table"] / 2000 < 0.065
    assert 0.03 < rejected["wilcoxon"] / 2000 < 0.065
    assert strictly / 2000 < 0.012
    assert rejected["percentile"] / 2000 > 0.08
