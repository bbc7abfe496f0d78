"""Scores with intervals, differences with tests. All from *tallies* per speaker, which add up, so that speakers can be drawn anew.

Conventions: tallies are [K, S, …] of K speakers and S seeds, in one of two kinds. Of classes they are confusion matrices [K, S, C,
C], true classes in rows and predicted classes in columns. Of D dimensions they are sums [K, S, D, 7] over utterances
(``training.metrics.SUMS``). A cell of a comparison predicts every test utterance once per seed; its score is computed per seed on
the predictions of all folds together (pooled), then averaged over seeds. Pooling is what makes leave-one-speaker-out scores
comparable with five folds: a single speaker may lack a class.

**Sums of dimensions are whole numbers**, too, up to a power of two: values are mapped from the range of the true ones to [-1, 1]
(concordance and correlation do not change; absolute errors stay on the corpus' scale), and products rounded to a step that lets
any sum be exact (for 100,000 utterances 4e-9). So no score depends on the order of utterances or the number of threads, and cells
compare bit by bit.

**The sample is the speakers**, not the clips: clips of one speaker are not independent, and a corpus of ten speakers is a
sample of size ten. All seeds of a drawn speaker are kept together, and every cell of a comparison is resampled with the same
draws (:func:`paired_difference`, :func:`resample`), so that differences are paired.

**Ten is few.** A plain percentile interval is too short for few clusters, and its p-values are too small: with 10 simulated
speakers that truly do not differ, it rejects 10 % of the time at 5 % and 2.4 % at 0.5 %. Therefore the intervals of scores are
expanded percentile intervals, and differences are judged by their bootstrap standard error against Student's t with K − 1
degrees of freedom (4.9 %, 0.53 % and, at the 0.06 % that Holm asks for in a table of 80, 0.075 % of 20,000 such simulations;
``tests/evaluation/test_statistics.py`` repeats it with 2,000). Wilcoxon's signed-rank test over speakers stands beside it,
exact, and can never fall below 2^(1−K): .002 for ten speakers.

``docs/statistics.md`` says in words what each test assumes and how its numbers are read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import special

from pipelines.errors import ConfigError
from pipelines.training.metrics import (
    SUMS,
    absolute_error_of,
    accuracy_of,
    concordance_of,
    macro_f1_of,
    pearson_of,
    uar_of,
)

__all__ = [
    "METRICS",
    "REPLICATES",
    "Difference",
    "Interval",
    "Metric",
    "Resampled",
    "VarianceComponents",
    "against_all",
    "bootstrap_interval",
    "bootstrap_intervals",
    "detectable_difference",
    "dimension_metrics",
    "holm",
    "paired_difference",
    "pseudo_values",
    "resample",
    "score",
    "speaker_confusions",
    "speaker_sums",
    "speaker_values",
    "variance_components",
]

Floats = NDArray[np.float64]

Metric = Callable[[Floats], Floats]
"""Confusion matrices [..., C, C], or sums of dimensions [..., D, 7], to scores [...]."""

METRICS: dict[str, Metric] = {"uar": uar_of, "accuracy": accuracy_of, "macro_f1": macro_f1_of}
"""The scores of every table of classes; see ``training.metrics`` for what counts when a class is absent."""

_OF_DIMENSIONS: dict[str, Metric] = {"ccc": concordance_of, "pearson": pearson_of, "mae": absolute_error_of}


@dataclass(frozen=True)
class _OfDimension:
    """A metric of sums [..., D, 7]: of one dimension, or the mean over all."""

    name: str
    position: int | None

    def __call__(self, sums: Floats) -> Floats:
        if self.position is not None:
            return _OF_DIMENSIONS[self.name](sums[..., self.position, :])
        mean: Floats = _OF_DIMENSIONS[self.name](sums).mean(axis=-1)
        return mean


def dimension_metrics(dimensions: Sequence[str]) -> dict[str, Metric]:
    """The scores of every table of dimensions: ``ccc``, ``pearson`` and ``mae``, the mean over the dimensions, and ``ccc_<name>`` …
    of each.

    Args:
        dimensions: D names, in the order of the sums.
    """
    places = {"": None, **{f"_{name}": position for position, name in enumerate(dimensions)}}
    return {f"{kind}{end}": _OfDimension(kind, place) for kind in _OF_DIMENSIONS for end, place in places.items()}


REPLICATES = 2000
"""Bootstrap samples; the standard error from them is good to 1.6 % (Efron & Tibshirani 1993, §19.3)."""


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


@dataclass(frozen=True)
class Difference:
    """One score minus another, on the same utterances.

    Attributes:
        value: first minus second, between −1 and 1.
        interval: of the difference, over speakers and seeds.
        p: two-sided, of the paired clustered bootstrap; NaN for a single speaker.
        wilcoxon_p: two-sided, of Wilcoxon's signed-rank test over speakers.
        spread: standard deviation that a speaker's difference would need to explain the standard error; see
            :func:`detectable_difference`.
        better: speakers on whom the first scores higher.
        worse: speakers on whom the second scores higher.
    """

    value: float
    interval: Interval
    p: float
    wilcoxon_p: float
    spread: float
    better: int
    worse: int


@dataclass(frozen=True)
class VarianceComponents:
    """Where the spread of a score comes from; variances.

    Attributes:
        speakers: between speakers, and so between folds, which are made of speakers.
        seeds: between seeds, the same for all speakers; NaN for a single seed.
        residual: what is left, seeds that suit one speaker and not another; NaN for a single seed, where it is part of
            ``speakers``.
    """

    speakers: float
    seeds: float
    residual: float


# ---------------------------------------------------------------------------------------------------------------------
# Scores


def speaker_confusions(
    labels: NDArray[np.int64], predictions: NDArray[np.int64], speakers: Sequence[str], *, num_classes: int
) -> Floats:
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


def speaker_sums(truth: NDArray[np.floating], predicted: NDArray[np.floating], speakers: Sequence[str]) -> Floats:
    """Sums of dimensions per speaker and seed; see the module for their scale and why they are exact.

    Args:
        truth: [n, D].
        predicted: [S, n, D], one matrix per seed.
        speakers: n speakers.

    Returns:
        float64 [K, S, D, 7] for K speakers, in sorted order.
    """
    names, speaker = np.unique(np.asarray(speakers, dtype=str), return_inverse=True)
    true, found = np.asarray(truth, dtype=np.float64), np.asarray(predicted, dtype=np.float64)
    low, high = true.min(axis=0), true.max(axis=0)
    centre, half = (low + high) / 2, np.where(high > low, (high - low) / 2, 1.0)
    x, y = (found - centre) / half, np.broadcast_to((true - centre) / half, found.shape)
    error = np.abs(found - true)
    # 2^52 holds n sums of 2^8, the square of a prediction 8 times as far out as any label; errors are of the order of half.
    room = 52 - 8 - math.ceil(math.log2(max(len(true), 2)))
    steps = np.concatenate(
        [np.full((6, len(centre)), 2.0**room), 2.0 ** (room - np.ceil(np.log2(half)))[None]]
    )  # [7, D]
    sums = np.zeros((len(names), *found.shape[::2], len(SUMS)))
    group = np.ravel_multi_index(
        (speaker[None, :], np.arange(len(found))[:, None]), (len(names), len(found))
    )  # group is [S, n]
    for position, values in enumerate((np.ones_like(x), x, y, x * x, y * y, x * y, error)):
        for dimension, step in enumerate(steps[position]):
            whole_numbers = np.rint(values[:, :, dimension] * step)
            added = np.bincount(group.ravel(), weights=whole_numbers.ravel(), minlength=len(names) * len(found))
            sums[:, :, dimension, position] = added.reshape(len(names), len(found)) / step
    return sums


def score(tallies: Floats, metric: Metric) -> float:
    """Mean over seeds of the pooled score.

    Args:
        tallies: float64 [K, S, …], by speaker and seed.
        metric: of tallies of this kind.
    """
    return float(metric(tallies.sum(axis=0)).mean())


def speaker_values(tallies: Floats, metric: Metric) -> Floats:
    """Score of every speaker alone, mean over seeds, [K]; over the classes that the speaker has. NaN where a score is not defined.

    Args:
        tallies: float64 [K, S, …], by speaker and seed.
        metric: of tallies of this kind.
    """
    scores: Floats = metric(tallies).mean(axis=1)
    return scores


@lru_cache(maxsize=4)
def _draws(speakers: int, replicates: int, seed: int) -> Floats:
    """How often each speaker is drawn, [replicates, K]; whole numbers, so that sums over speakers are exact."""
    generator = np.random.default_rng(seed)
    draws = generator.multinomial(speakers, np.full(speakers, 1 / speakers), size=replicates).astype(np.float64)
    draws.flags.writeable = False
    return draws


def _resampled(tallies: Floats, replicates: int, seed: int) -> Floats:
    """Pooled tallies of every bootstrap sample, [replicates, S, …]."""
    flat = tallies.reshape(len(tallies), -1)
    return (_draws(len(tallies), replicates, seed) @ flat).reshape(replicates, *tallies.shape[1:])


def bootstrap_intervals(
    tallies: Floats,
    metrics: Mapping[str, Metric],
    *,
    replicates: int = REPLICATES,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Interval]:
    """Expanded percentile intervals of scores under resampling of speakers.

    The percentiles are those of the nominal level after it was widened for the number of speakers, so that for a mean the
    interval is about that of Student's t: Φ(−√(K/(K−1)) t_{α/2, K−1}) instead of α/2 (Hesterberg 2015, *What Teachers Should
    Know About the Bootstrap*, §4.2 and eq. 5; resampling of clusters: Davison & Hinkley 1997, §3.8). Samples in which a score is
    not defined (a correlation, where all labels drawn are the same) do not count for it.

    Args:
        tallies: float64 [K, S, …], by speaker and seed.
        metrics: names and scores.
        replicates: bootstrap samples.
        level: confidence.
        seed: of the draws; the same seed and number of speakers give the same draws, hence paired cells.
    """
    speakers = len(tallies)
    if speakers < 2:
        return {name: Interval(math.nan, math.nan, level) for name in metrics}
    resampled = _resampled(tallies, replicates, seed)
    reach = float(special.stdtrit(speakers - 1, (1 + level) / 2)) * math.sqrt(speakers / (speakers - 1))
    tail = float(special.ndtr(-reach))
    intervals = {}
    for name, metric in metrics.items():
        scores = metric(resampled).mean(axis=1)
        defined = scores[~np.isnan(scores)]
        low, high = np.quantile(defined, [tail, 1 - tail]) if len(defined) else (math.nan, math.nan)
        intervals[name] = Interval(float(low), float(high), level)
    return intervals


def bootstrap_interval(
    tallies: Floats, metric: Metric, *, replicates: int = REPLICATES, level: float = 0.95, seed: int = 0
) -> Interval:
    """:func:`bootstrap_intervals` of one score."""
    return bootstrap_intervals(tallies, {"": metric}, replicates=replicates, level=level, seed=seed)[""]


# ---------------------------------------------------------------------------------------------------------------------
# Where the spread comes from


def pseudo_values(tallies: Floats, metric: Metric) -> Floats:
    """What each speaker contributes to the pooled score of each seed, [K, S]: jackknife pseudo-values.

    K θ − (K − 1) θ₍₋ₖ₎, where θ₍₋ₖ₎ is the score without speaker k (Efron & Tibshirani 1993, §11.5). For speakers with equally
    many clips of every class, and for scores that are means over clips, it is the speaker's own score.

    Args:
        tallies: float64 [K, S, …], by speaker and seed; K ≥ 2.
        metric: of tallies of this kind.
    """
    speakers = len(tallies)
    whole = tallies.sum(axis=0)
    without = metric(whole[None] - tallies)  # without is [K, S]
    values: Floats = speakers * metric(whole)[None] - (speakers - 1) * without
    return values


def variance_components(values: Floats) -> VarianceComponents:
    """Split the spread of values into speakers, seeds and the rest: two-way random effects, method of moments.

    With mean squares of K speakers and S seeds, E MS_speakers = S σ²_speakers + σ²_residual and E MS_seeds = K σ²_seeds +
    σ²_residual (Searle, Casella & McCulloch 1992, §4.3 without replication); negative estimates are set to 0.

    Args:
        values: float64 [K, S], for instance :func:`pseudo_values`; K ≥ 2.
    """
    speakers, seeds = values.shape
    if seeds == 1:
        return VarianceComponents(float(values.var(axis=0, ddof=1).mean()), math.nan, math.nan)
    by_speaker, by_seed = values.mean(axis=1), values.mean(axis=0)
    rest = values - by_speaker[:, None] - by_seed[None] + values.mean()
    residual = float((rest**2).sum()) / ((speakers - 1) * (seeds - 1))
    of_speakers = float(by_speaker.var(ddof=1)) - residual / seeds
    of_seeds = float(by_seed.var(ddof=1)) - residual / speakers
    return VarianceComponents(max(0.0, of_speakers), max(0.0, of_seeds), residual)


# ---------------------------------------------------------------------------------------------------------------------
# Differences


@dataclass(frozen=True)
class Resampled:
    """Scores of M cells on the same utterances, and what they become when their speakers are drawn anew.

    Attributes:
        values: float64 [M], the scores.
        by_speaker: float64 [M, K], of every speaker alone.
        replicates: float64 [R, M], of every bootstrap sample; the same draws for all cells.
        seed_variances: float64 [M], variance of the score that seeds cause beyond what speakers show.
        seeds: int64 [M], number of seeds.
        contributions: M arrays [K, S], what each speaker contributes to the score of each seed (:func:`pseudo_values`); none for a
            single speaker.
    """

    values: Floats
    by_speaker: Floats = field(repr=False)
    replicates: Floats = field(repr=False)
    seed_variances: Floats = field(repr=False)
    seeds: NDArray[np.int64]
    contributions: Sequence[Floats] = field(default=(), repr=False)

    def difference(
        self, first: Sequence[int], second: Sequence[int], *, level: float = 0.95, ranks: bool = True
    ) -> Difference:
        """Mean score of some cells minus that of others, tested; see :func:`paired_difference`.

        Args:
            first: cells, as positions.
            second: cells that they are compared with; cells that occur on both sides cancel.
            level: of the interval.
            ranks: whether Wilcoxon's test is made as well, which takes most of the time; NaN if not.
        """
        weights = np.zeros(len(self.values))
        np.add.at(weights, list(first), 1 / len(first))
        np.add.at(weights, list(second), -1 / len(second))
        return self.weighted(weights, level=level, ranks=ranks)

    def weighted(
        self, weights: Floats, *, level: float = 0.95, ranks: bool = True, seeds_paired: bool = False
    ) -> Difference:
        """A weighted sum of scores, tested against 0: a difference of differences, an area under a curve; see
        :func:`paired_difference`.

        Args:
            weights: float64 [M], one per cell, not all 0.
            level: of the interval.
            ranks: as for :meth:`difference`.
            seeds_paired: whether seed s means the same in every cell, as where one head is tested on several conditions: what
                seeds add is then that of the sum, seed by seed, not that of its terms.
        """
        used = np.flatnonzero(weights)
        weight = weights[used]

        def combined(values: Floats) -> Floats:
            # Not by a matrix product: its rounding may depend on the number of threads.
            total: Floats = (values[..., used] * weight).sum(axis=-1)
            return total

        seed_variances, seeds = self.seed_variances[used] * weight**2, self.seeds[used]
        if seeds_paired and len(set(seeds.tolist())) == 1 and self.contributions:
            together = np.zeros_like(self.contributions[used[0]])
            for at, own in zip(used.tolist(), weight, strict=True):
                together += own * self.contributions[at]
            seed_variances, seeds = np.array([_seed_part(together)]), seeds[:1]
        return _judged(
            value=float(combined(self.values)),
            replicates=combined(self.replicates),
            by_speaker=combined(self.by_speaker.T),
            seed_variances=seed_variances,
            seeds=seeds,
            level=level,
            ranks=ranks,
        )


def resample(
    cells: Sequence[Floats], metric: Metric = uar_of, *, replicates: int = REPLICATES, seed: int = 0
) -> Resampled:
    """Prepare a score of many cells for comparison, all at once; of the UAR only hits and class sizes are resampled.

    Args:
        cells: tallies, float64 [K, S, …] each; the same speakers, utterances and classes or dimensions, S may differ.
        metric: the score.
        replicates: bootstrap samples.
        seed: of the draws.

    Raises:
        ConfigError: cells of other utterances, which cannot be paired.
    """
    for position, tallies in enumerate(cells):
        if not _same_truth(tallies, cells[0]):
            raise ConfigError(
                f"Cells 0 and {position} were not tested on the same utterances: {_tested(cells[0])} and {_tested(tallies)}."
                " Paired statistics need the same utterances of the same speakers; score both on those that they share."
            )
    if metric is not uar_of:
        return _resampled_by(metric, cells, replicates, seed)
    sizes = cells[0][:, 0].sum(axis=-1)  # sizes is [K, C]
    speakers = len(sizes)
    seeds = np.array([counts.shape[1] for counts in cells], dtype=np.int64)
    hits = np.stack([np.diagonal(counts, axis1=2, axis2=3).sum(axis=1) for counts in cells])  # hits is [M, K, C]
    by_speaker = _mean_recall(hits, seeds[:, None, None] * sizes[None])
    values = _mean_recall(hits.sum(axis=1), seeds[:, None] * sizes.sum(axis=0)[None])
    if speakers < 2:
        nothing = np.full((replicates, len(cells)), np.nan)
        return Resampled(values, by_speaker, nothing, np.full(len(cells), np.nan), seeds)
    draws = _draws(speakers, replicates, seed)
    # Whole numbers until the division: their sums are exact, whatever the number of threads.
    drawn = (draws @ hits.transpose(1, 0, 2).reshape(speakers, -1)).reshape(replicates, len(cells), -1)
    resampled = _mean_recall(drawn, seeds[None, :, None] * (draws @ sizes)[:, None])  # resampled is [R, M]
    return _with_seeds(values, by_speaker, resampled, seeds, [pseudo_values(one, uar_of) for one in cells])


def _resampled_by(metric: Metric, cells: Sequence[Floats], replicates: int, seed: int) -> Resampled:
    """:func:`resample` of any score."""
    seeds = np.array([tallies.shape[1] for tallies in cells], dtype=np.int64)
    values = np.array([score(tallies, metric) for tallies in cells])
    by_speaker = np.stack([speaker_values(tallies, metric) for tallies in cells])
    if len(cells[0]) < 2:
        nothing = np.full((replicates, len(cells)), np.nan)
        return Resampled(values, by_speaker, nothing, np.full(len(cells), np.nan), seeds)
    # resampled is [R, M]
    resampled = np.stack([metric(_resampled(tallies, replicates, seed)).mean(axis=1) for tallies in cells], axis=1)
    return _with_seeds(values, by_speaker, resampled, seeds, [pseudo_values(one, metric) for one in cells])


def _with_seeds(
    values: Floats, by_speaker: Floats, resampled: Floats, seeds: NDArray[np.int64], contributions: Sequence[Floats]
) -> Resampled:
    variances = np.array([_seed_part(one) for one in contributions])
    return Resampled(values, by_speaker, resampled, variances, seeds, contributions)


def _truth(tallies: Floats) -> Floats:
    """What tallies say of the true labels of each speaker and seed, [K, S, …]: class sizes, or n and the sums of y and y^2."""
    if tallies.shape[-1] == tallies.shape[-2]:  # there are never as many dimensions as sums
        sizes: Floats = tallies.sum(axis=-1)
        return sizes
    return tallies[..., [SUMS.index("n"), SUMS.index("y"), SUMS.index("yy")]]


def _same_truth(one: Floats, other: Floats) -> bool:
    """Whether two cells were tested on the same utterances, as far as tallies tell; every seed on the same ones."""
    fits = (len(one), *one.shape[2:]) == (len(other), *other.shape[2:])
    return fits and bool((_truth(one) == _truth(other)[:, :1]).all())


def _tested(tallies: Floats) -> str:
    if tallies.shape[-1] == tallies.shape[-2]:
        return f"{tallies[:, 0].sum():.0f} of {len(tallies)} speakers and {tallies.shape[-1]} classes"
    return f"{tallies[:, 0, 0, 0].sum():.0f} of {len(tallies)} speakers and {tallies.shape[-2]} dimension(s)"


def _mean_recall(hits: Floats, sizes: Floats) -> Floats:
    """Mean over classes [..., C] that have utterances."""
    recall = np.divide(hits, sizes, out=np.zeros(np.broadcast_shapes(hits.shape, sizes.shape)), where=sizes > 0)
    present = np.broadcast_to(sizes > 0, recall.shape).sum(axis=-1)
    mean: Floats = recall.sum(axis=-1) / present
    return mean


def _seed_variance(tallies: Floats, metric: Metric) -> float:
    """Variance of the mean over seeds that comes from seeds alone; 0 for a single seed, where nothing is known of it."""
    return _seed_part(pseudo_values(tallies, metric))


def _seed_part(contributions: Floats) -> float:
    """:func:`_seed_variance` from what speakers contribute, [K, S]."""
    components = variance_components(contributions)
    return 0.0 if math.isnan(components.seeds) else components.seeds / contributions.shape[1]


def paired_difference(
    first: Floats,
    second: Floats,
    metric: Metric = uar_of,
    *,
    replicates: int = REPLICATES,
    level: float = 0.95,
    seed: int = 0,
) -> Difference:
    """Compare two cells on the same utterances: paired bootstrap over speakers, and Wilcoxon's test over speakers.

    Both cells are scored on every bootstrap sample of speakers. The standard deviation of the difference, times √(K/(K−1)), is
    its standard error over speakers (a bootstrap of K clusters underestimates it by that factor; exactly the paired t test where
    the score is a mean over speakers). What seeds add beyond that (:func:`variance_components`; it matters where one fold tests
    everybody) is added as variance. p and interval are those of Student's t, K − 1 degrees of freedom, joined with those of the
    seeds after Satterthwaite (1946); the approach is that of Cameron, Gelbach & Miller 2008, *Bootstrap-based improvements for
    inference with clustered errors*, "pairs cluster bootstrap-se".

    Where all speakers have exactly the same difference, there is no spread to test against; p is then that of the sign test,
    2^(1−K).

    Args:
        first: tallies, float64 [K, S, …].
        second: tallies, float64 [K, S', …]; the numbers of seeds may differ, since seeds are not paired.
        metric: the score.
        replicates: bootstrap samples.
        level: of the interval.
        seed: of the draws.

    Raises:
        ConfigError: the two were not tested on the same utterances.
    """
    if not _same_truth(first, second):
        raise ConfigError(
            f"The two cells were not tested on the same utterances: {_tested(first)} and {_tested(second)}. Paired statistics"
            " need the same utterances of the same speakers; score both on those that they share."
        )
    pair = (first, second)
    if len(first) < 2:
        resampled = [np.full(replicates, np.nan)] * 2
        seeds_add = np.zeros(2)
    else:
        resampled = [metric(_resampled(one, replicates, seed)).mean(axis=1) for one in pair]
        seeds_add = np.array([_seed_variance(one, metric) for one in pair])
    return _judged(
        value=score(first, metric) - score(second, metric),
        replicates=resampled[0] - resampled[1],
        by_speaker=speaker_values(first, metric) - speaker_values(second, metric),
        seed_variances=seeds_add,
        seeds=np.array([one.shape[1] for one in pair]),
        level=level,
    )


def _judged(
    *,
    value: float,
    replicates: Floats,
    by_speaker: Floats,
    seed_variances: Floats,
    seeds: NDArray[np.int64],
    level: float,
    ranks: bool = True,
) -> Difference:
    """Interval and tests from what resampling gave."""
    # Equal scores that were summed in another order are equal; a speaker without a defined score shows no difference.
    by_speaker = np.where(np.isnan(by_speaker), 0.0, np.round(by_speaker, 12))
    speakers, better, worse = len(by_speaker), int((by_speaker > 0).sum()), int((by_speaker < 0).sum())
    if speakers < 2:
        nowhere = Interval(math.nan, math.nan, level)
        return Difference(value, nowhere, math.nan, math.nan, math.nan, better, worse)
    of_speakers = float(replicates[~np.isnan(replicates)].var(ddof=1)) * speakers / (speakers - 1)
    known = seed_variances > 0
    parts = np.array([of_speakers, *seed_variances[known]])
    freedom = np.array([speakers - 1, *(seeds[known] - 1)], dtype=np.float64)
    error = math.sqrt(parts.sum())
    if error < 1e-12:
        p = 1.0 if abs(value) < 1e-12 else 2.0 ** (1 - speakers)
        interval = Interval(value, value, level)
    else:
        degrees = float(parts.sum() ** 2 / (parts**2 / freedom).sum())  # Satterthwaite's
        p = 2 * float(special.stdtr(degrees, -abs(value) / error))
        reach = float(special.stdtrit(degrees, (1 + level) / 2)) * error
        interval = Interval(value - reach, value + reach, level)
    rank_p = _wilcoxon(by_speaker) if ranks else math.nan
    return Difference(value, interval, p, rank_p, error * math.sqrt(speakers), better, worse)


_EXACT_UP_TO = 50  # speakers; above, the normal approximation is good to the third digit


def _wilcoxon(differences: Floats) -> float:
    """Two-sided p of Wilcoxon's signed-rank test; speakers without a difference do not count.

    Exact under all 2^n signs, ties with mid-ranks included, up to 50 speakers (scipy takes a slow detour where there are ties);
    above, by the normal distribution with the variance that the ranks have.
    """
    moved = differences[differences != 0]
    if not len(moved):
        return 1.0
    _, position, count = np.unique(np.abs(moved), return_inverse=True, return_counts=True)
    above = np.cumsum(count)
    ranks = (2 * above - count + 1)[position]  # twice the mid-rank: whole numbers
    of_better = int(ranks[moved > 0].sum())
    if len(moved) > _EXACT_UP_TO:
        centre, spread = ranks.sum() / 2, math.sqrt(float((ranks.astype(np.float64) ** 2).sum())) / 2
        return 2 * float(special.ndtr(-abs(of_better - centre) / spread))
    below = _signed_rank_distribution(tuple(sorted(ranks.tolist())))
    at_most, at_least = below[of_better], 1 - (below[of_better - 1] if of_better else 0.0)
    return float(min(1.0, 2 * min(at_most, at_least)))


@lru_cache(maxsize=256)
def _signed_rank_distribution(ranks: tuple[int, ...]) -> Floats:
    """Probability that the ranks with a positive sign sum up to at most 0, 1, 2, …, if every sign is a fair coin."""
    chances = np.ones(1)
    for rank in ranks:
        longer = np.zeros(len(chances) + rank)
        longer[: len(chances)] += chances / 2
        longer[rank:] += chances / 2
        chances = longer
    return np.cumsum(chances)


def against_all(differences: Sequence[Difference]) -> tuple[int, Difference]:
    """Compare one cell with the best of several, without choosing the best on the data that it is tested on.

    To beat the best is to beat every one: significant only if each comparison is (intersection-union test, Berger 1982; p is the
    largest, no correction needed). To be below the best is to be below any one (p is the smallest, times their number). The
    interval is that of the smallest difference: smallest lower bound, smallest upper bound.

    Args:
        differences: the cell minus each of the others; at least one.

    Returns:
        Position of the binding comparison (smallest difference), and the difference from the best; spread and speakers are those
        of the binding comparison.
    """
    smallest = min(range(len(differences)), key=lambda position: differences[position].value)
    binding = differences[smallest]
    if binding.value > 0:
        p = max(one.p for one in differences)
        rank_p = max(one.wilcoxon_p for one in differences)
    else:
        below = [one for one in differences if one.value <= 0]
        p = min(1.0, len(differences) * min(one.p for one in below))
        rank_p = min(1.0, len(differences) * min(one.wilcoxon_p for one in below))
    low, high = (min(getattr(one.interval, end) for one in differences) for end in ("low", "high"))
    bounds = Interval(low, high, binding.interval.level)
    return smallest, replace(binding, interval=bounds, p=p, wilcoxon_p=rank_p)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for their number, in the given order (Holm 1979); NaN stays NaN and does not count.

    Significant at a level are those whose adjusted value lies below it; the chance of a single wrong one among all is then at
    most that level.
    """
    given = np.asarray(p_values, dtype=np.float64)
    adjusted = np.full(len(given), np.nan)
    tested = np.flatnonzero(~np.isnan(given))
    order = tested[np.argsort(given[tested], kind="stable")]
    steps = given[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(steps)) if len(order) else steps
    return [float(value) for value in adjusted]


def detectable_difference(
    spread: float, speakers: int, *, comparisons: int = 1, power: float = 0.8, level: float = 0.05
) -> float:
    """Smallest true difference that a paired test over speakers would find with the given power.

    The difference δ for which the noncentral t distribution with K − 1 degrees of freedom and noncentrality δ√K / spread lies
    beyond the critical value of the two-sided test at level / comparisons (the first, strictest step of Holm) with probability
    ``power``. Assumes that speakers' differences are about normal and that the spread that was seen is the true one.

    Args:
        spread: standard deviation of the speakers' differences (``Difference.spread``).
        speakers: K ≥ 2.
        comparisons: number of comparisons that are corrected for.
        power: wanted chance of finding it.
        level: of the table.

    Returns:
        δ in the unit of ``spread``; NaN for one speaker.
    """
    if speakers < 2 or math.isnan(spread):
        return math.nan
    freedom = speakers - 1
    critical = float(special.stdtrit(freedom, 1 - level / comparisons / 2))
    # The noncentrality at which P(T > critical) = power; the other tail is below 1e-5 there.
    noncentrality = float(special.nctdtrinc(freedom, 1 - power, critical))
    return noncentrality * spread / math.sqrt(speakers)
