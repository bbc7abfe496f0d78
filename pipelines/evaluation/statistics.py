"""Scores with intervals, differences with tests. All from confusion matrices per speaker, so that speakers can be drawn anew.

Conventions: a confusion matrix has true classes in rows and predicted classes in columns; *counts* are confusion matrices
[K, S, C, C] of K speakers and S seeds. A cell of a comparison predicts every test utterance once per seed; its score is
computed per seed on the predictions of all folds together (pooled), then averaged over seeds. Pooling is what makes
leave-one-speaker-out scores comparable with five folds: a single speaker may lack a class.

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
from pipelines.training.metrics import accuracy_of, macro_f1_of, uar_of

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
    "holm",
    "paired_difference",
    "pseudo_values",
    "resample",
    "score",
    "speaker_confusions",
    "speaker_values",
    "variance_components",
]

Floats = NDArray[np.float64]

Metric = Callable[[Floats], Floats]
"""Confusion matrices [..., C, C] to scores [...]."""

METRICS: dict[str, Metric] = {"uar": uar_of, "accuracy": accuracy_of, "macro_f1": macro_f1_of}
"""The scores of every table; see ``training.metrics`` for what counts when a class is absent."""

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


def score(confusions: Floats, metric: Metric) -> float:
    """Mean over seeds of the pooled score.

    Args:
        confusions: float64 [K, S, C, C], by speaker and seed.
        metric: one of :data:`METRICS`.
    """
    return float(metric(confusions.sum(axis=0)).mean())


def speaker_values(confusions: Floats, metric: Metric) -> Floats:
    """Score of every speaker alone, mean over seeds, [K]; over the classes that the speaker has.

    Args:
        confusions: float64 [K, S, C, C], by speaker and seed.
        metric: one of :data:`METRICS`.
    """
    scores: Floats = metric(confusions).mean(axis=1)
    return scores


@lru_cache(maxsize=4)
def _draws(speakers: int, replicates: int, seed: int) -> Floats:
    """How often each speaker is drawn, [replicates, K]; whole numbers, so that sums over speakers are exact."""
    generator = np.random.default_rng(seed)
    draws = generator.multinomial(speakers, np.full(speakers, 1 / speakers), size=replicates).astype(np.float64)
    draws.flags.writeable = False
    return draws


def _resampled(confusions: Floats, replicates: int, seed: int) -> Floats:
    """Pooled confusion matrices of every bootstrap sample, [replicates, S, C, C]."""
    flat = confusions.reshape(len(confusions), -1)
    return (_draws(len(confusions), replicates, seed) @ flat).reshape(replicates, *confusions.shape[1:])


def bootstrap_intervals(
    confusions: Floats,
    metrics: Mapping[str, Metric],
    *,
    replicates: int = REPLICATES,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Interval]:
    """Expanded percentile intervals of scores under resampling of speakers.

    The percentiles are those of the nominal level after it was widened for the number of speakers, so that for a mean the
    interval is about that of Student's t: Φ(−√(K/(K−1)) t_{α/2, K−1}) instead of α/2 (Hesterberg 2015, *What Teachers Should
    Know About the Bootstrap*, §4.2 and eq. 5; resampling of clusters: Davison & Hinkley 1997, §3.8).

    Args:
        confusions: float64 [K, S, C, C], by speaker and seed.
        metrics: names and scores.
        replicates: bootstrap samples.
        level: confidence.
        seed: of the draws; the same seed and number of speakers give the same draws, hence paired cells.
    """
    speakers = len(confusions)
    if speakers < 2:
        return {name: Interval(math.nan, math.nan, level) for name in metrics}
    resampled = _resampled(confusions, replicates, seed)
    reach = float(special.stdtrit(speakers - 1, (1 + level) / 2)) * math.sqrt(speakers / (speakers - 1))
    tail = float(special.ndtr(-reach))
    intervals = {}
    for name, metric in metrics.items():
        low, high = np.quantile(metric(resampled).mean(axis=1), [tail, 1 - tail])
        intervals[name] = Interval(float(low), float(high), level)
    return intervals


def bootstrap_interval(
    confusions: Floats, metric: Metric, *, replicates: int = REPLICATES, level: float = 0.95, seed: int = 0
) -> Interval:
    """:func:`bootstrap_intervals` of one score."""
    return bootstrap_intervals(confusions, {"": metric}, replicates=replicates, level=level, seed=seed)[""]


# ---------------------------------------------------------------------------------------------------------------------
# Where the spread comes from


def pseudo_values(confusions: Floats, metric: Metric) -> Floats:
    """What each speaker contributes to the pooled score of each seed, [K, S]: jackknife pseudo-values.

    K θ − (K − 1) θ₍₋ₖ₎, where θ₍₋ₖ₎ is the score without speaker k (Efron & Tibshirani 1993, §11.5). For speakers with equally
    many clips of every class, and for scores that are means over clips, it is the speaker's own score.

    Args:
        confusions: float64 [K, S, C, C], by speaker and seed; K ≥ 2.
        metric: one of :data:`METRICS`.
    """
    speakers = len(confusions)
    whole = confusions.sum(axis=0)
    without = metric(whole[None] - confusions)  # without is [K, S]
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
    """

    values: Floats
    by_speaker: Floats = field(repr=False)
    replicates: Floats = field(repr=False)
    seed_variances: Floats = field(repr=False)
    seeds: NDArray[np.int64]

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
        used = np.flatnonzero(weights)
        weight = weights[used]

        def combined(values: Floats) -> Floats:
            # Not by a matrix product: its rounding may depend on the number of threads.
            total: Floats = (values[..., used] * weight).sum(axis=-1)
            return total

        return _judged(
            value=float(combined(self.values)),
            replicates=combined(self.replicates),
            by_speaker=combined(self.by_speaker.T),
            seed_variances=self.seed_variances[used] * weight**2,
            seeds=self.seeds[used],
            level=level,
            ranks=ranks,
        )


def resample(cells: Sequence[Floats], *, replicates: int = REPLICATES, seed: int = 0) -> Resampled:
    """Prepare the UAR of many cells for comparison, all at once: only hits and class sizes are resampled.

    Args:
        cells: float64 [K, S, C, C] each; the same speakers, utterances and classes, S may differ.
        replicates: bootstrap samples.
        seed: of the draws.

    Raises:
        ConfigError: cells of other utterances, which cannot be paired.
    """
    sizes = cells[0][:, 0].sum(axis=-1)  # sizes is [K, C]
    for position, counts in enumerate(cells):
        if counts.shape[::2] != cells[0].shape[::2] or not (counts.sum(axis=-1) == sizes[:, None]).all():
            raise ConfigError(
                f"Cells 0 and {position} were not tested on the same utterances: {_tested(cells[0])} and {_tested(counts)}."
                " Paired statistics need the same utterances of the same speakers; score both on those that they share."
            )
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
    return Resampled(values, by_speaker, resampled, np.array([_seed_variance(one, uar_of) for one in cells]), seeds)


def _tested(counts: Floats) -> str:
    return f"{counts[:, 0].sum():.0f} of {len(counts)} speakers and {counts.shape[-1]} classes"


def _mean_recall(hits: Floats, sizes: Floats) -> Floats:
    """Mean over classes [..., C] that have utterances."""
    recall = np.divide(hits, sizes, out=np.zeros(np.broadcast_shapes(hits.shape, sizes.shape)), where=sizes > 0)
    present = np.broadcast_to(sizes > 0, recall.shape).sum(axis=-1)
    mean: Floats = recall.sum(axis=-1) / present
    return mean


def _seed_variance(confusions: Floats, metric: Metric) -> float:
    """Variance of the mean over seeds that comes from seeds alone; 0 for a single seed, where nothing is known of it."""
    components = variance_components(pseudo_values(confusions, metric))
    return 0.0 if math.isnan(components.seeds) else components.seeds / confusions.shape[1]


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
        first: float64 [K, S, C, C].
        second: float64 [K, S', C, C]; the numbers of seeds may differ, since seeds are not paired.
        metric: the score.
        replicates: bootstrap samples.
        level: of the interval.
        seed: of the draws.

    Raises:
        ConfigError: the two were not tested on the same utterances.
    """
    if first.shape[::2] != second.shape[::2] or not (first[:, 0].sum(axis=-1) == second[:, 0].sum(axis=-1)).all():
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
    by_speaker = np.round(by_speaker, 12)  # equal scores that were summed in another order are equal
    speakers, better, worse = len(by_speaker), int((by_speaker > 0).sum()), int((by_speaker < 0).sum())
    if speakers < 2:
        nowhere = Interval(math.nan, math.nan, level)
        return Difference(value, nowhere, math.nan, math.nan, math.nan, better, worse)
    of_speakers = float(replicates.var(ddof=1)) * speakers / (speakers - 1)
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
