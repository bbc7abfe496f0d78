"""What probes of layers say: scores, the layer that training speakers choose, differences, and the sentences that follow.

A *target* is the emotion (scored by UAR, shown in per cent) or one dimension (scored by CCC). Predictions are [S, n, K] of S seeds
(one for linear probes), n tested utterances and K columns (classes, or dimensions).

**A layer is never chosen on the data it is tested on.** Every fold chooses by its inner predictions, of training speakers only
(:mod:`pipelines.training.probes`); what is tested is the choice: the predictions of each fold's own layer, put together. The
highest test score in a table is shown, and not called the best layer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pipelines.evaluation.statistics import (
    Difference,
    Interval,
    Metric,
    Resampled,
    bootstrap_interval,
    detectable_difference,
    dimension_metrics,
    holm,
    resample,
    speaker_confusions,
    speaker_sums,
)
from pipelines.studies.answers import LEVEL, p_text
from pipelines.studies.outcome import Cell
from pipelines.training.data import Dataset
from pipelines.training.metrics import concordance, uar_of

__all__ = [
    "Choice",
    "Contrast",
    "Scores",
    "Target",
    "best_layer",
    "choose_layers",
    "compare_choices",
    "compare_depths",
    "compare_ends",
    "inner_score",
    "layer_name",
    "power_note",
    "put_together",
    "ranges",
    "score_target",
    "targets_of",
]

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Target:
    """What is recognised.

    Attributes:
        name: ``emotion``, or a dimension.
        column: of the dimension among the predictions' columns; -1 for emotion.
        unit: how its score is called.
        scale: factor by which scores are shown.
        digits: of a score as shown.
    """

    name: str
    column: int
    unit: str
    scale: float
    digits: int

    def shown(self, value: float) -> str:
        """A score or an unsigned difference."""
        return f"{self.scale * value:.{self.digits}f}" + (" %" if self.column < 0 else "")

    def change(self, difference: Difference) -> str:
        """``1.2 points [−0.3, +2.7]``: how much, and the interval in the same direction; which one that is, the sentence says."""
        size = f"{self.scale * abs(difference.value):.{self.digits}f}"
        unit = " points" if self.column < 0 else ""
        low, high = difference.interval.low, difference.interval.high
        if difference.value < 0:
            low, high = -high, -low
        return f"{size}{unit}" + ("" if math.isnan(low) else f" [{self.signed(low)}, {self.signed(high)}]")

    def signed(self, value: float) -> str:
        """With its sign."""
        text = f"{self.scale * value:+.{self.digits}f}"
        return text.replace("-", "−") if float(text) else text[1:]

    def cell(self, value: float, interval: Interval | None = None, mark: str = "") -> Cell:
        """For a table."""
        bounds = (math.nan, math.nan) if interval is None else (interval.low, interval.high)
        return Cell(value=self.scale * value, low=self.scale * bounds[0], high=self.scale * bounds[1], mark=mark)


def targets_of(dataset: Dataset) -> tuple[Target, ...]:
    """The emotion, or every dimension."""
    if not dataset.dimensions:
        return (Target("emotion", -1, "UAR", 100.0, 1),)
    return tuple(Target(name, column, "CCC", 1.0, 3) for column, name in enumerate(dataset.dimensions))


@dataclass(frozen=True)
class Choice:
    """Which layer the training speakers of each fold choose.

    Attributes:
        layers: int64 [F], positions.
        inner: float64 [F, R], scores of the inner predictions.
    """

    layers: NDArray[np.int64]
    inner: Floats = field(repr=False)

    @property
    def usual(self) -> int:
        """The layer that is chosen most often, the lowest of several."""
        return int(np.bincount(self.layers).argmax())


def choose_layers(inner: Floats, *, depth: int | None = None) -> Choice:
    """The layer with the highest inner score per fold, the lowest of equal ones.

    Args:
        inner: float64 [F, R].
        depth: among the layers up to and including this one; all unless given.
    """
    among = inner if depth is None else inner[:, : depth + 1]
    return Choice(among.argmax(axis=1).astype(np.int64), inner)


def inner_score(target: Target, truth: Floats | NDArray[np.int64], predicted: Floats) -> float:
    """Score of predictions for rows of a training part.

    Args:
        target: which one.
        truth: labels int64 [m], or values float64 [m] of the dimension.
        predicted: float64 [m, K].
    """
    if target.column < 0:
        labels = np.asarray(truth, dtype=np.int64)
        size = predicted.shape[1]
        cells = np.bincount(labels * size + predicted.argmax(axis=1), minlength=size * size)
        return float(uar_of(cells.reshape(size, size).astype(np.float64)))
    return float(concordance(np.asarray(truth), predicted[:, target.column]))


def put_together(layers: Sequence[Floats], folds: NDArray[np.int64], chosen: NDArray[np.int64]) -> Floats:
    """Predictions of each fold's own layer.

    Args:
        layers: R predictions [S, n, K].
        folds: int64 [n], the fold that tests an utterance.
        chosen: int64 [F], a layer per fold.
    """
    found = np.empty_like(layers[0])
    for fold, layer in enumerate(chosen):
        found[:, folds == fold] = layers[layer][:, folds == fold]
    return found


@dataclass(frozen=True)
class Scores:
    """Scores of one target under several names, ready for paired comparisons.

    Attributes:
        target: which one.
        names: of the cells.
        resampled: scores, and what they become when speakers are drawn anew.
        intervals: of the scores.
        speakers: how many tested.
    """

    target: Target
    names: tuple[str, ...]
    resampled: Resampled = field(repr=False)
    intervals: tuple[Interval, ...] = field(repr=False)
    speakers: int

    def at(self, name: str) -> int:
        """Position of a cell."""
        return self.names.index(name)

    def value(self, name: str) -> float:
        """Score of a cell."""
        return float(self.resampled.values[self.at(name)])

    def cell(self, name: str, mark: str = "") -> Cell:
        """Score and interval of a cell, for a table."""
        return self.target.cell(self.value(name), self.intervals[self.at(name)], mark)

    def difference(self, first: str, second: str) -> Difference:
        """One cell minus another."""
        return self.resampled.difference([self.at(first)], [self.at(second)], ranks=False)


def score_target(
    target: Target,
    dataset: Dataset,
    tested: NDArray[np.int64],
    predictions: Mapping[str, Floats],
) -> Scores:
    """Score predictions of one target.

    Args:
        target: which one.
        dataset: the utterances.
        tested: int64 [n], positions of the tested ones.
        predictions: name to [S, n, K].
    """
    speakers = [dataset.speakers[row] for row in tested]
    metric: Metric
    if target.column < 0:
        metric = uar_of
        tallies = [
            speaker_confusions(dataset.labels[tested], one.argmax(axis=-1), speakers, num_classes=len(dataset.classes))
            for one in predictions.values()
        ]
    else:
        metric = dimension_metrics([target.name])[f"ccc_{target.name}"]
        column = slice(target.column, target.column + 1)
        truth = dataset.values[tested][:, column]
        tallies = [speaker_sums(truth, one[:, :, column], speakers) for one in predictions.values()]
    return Scores(
        target,
        tuple(predictions),
        resample(tallies, metric),
        tuple(bootstrap_interval(one, metric) for one in tallies),
        len(set(speakers)),
    )


@dataclass(frozen=True)
class Contrast:
    """A difference that was tested.

    Attributes:
        about: what is compared.
        target: in whose scores.
        difference: first minus second.
        p: corrected within its question.
    """

    about: str
    target: Target
    difference: Difference
    p: float

    @property
    def decided(self) -> int:
        """1 or -1 where it is significant, else 0."""
        return 0 if not self.p < LEVEL else int(np.sign(self.difference.value))


def _corrected(found: Sequence[tuple[str, Target, Difference]]) -> list[Contrast]:
    adjusted = holm([difference.p for _, _, difference in found])
    return [Contrast(about, target, one, p) for (about, target, one), p in zip(found, adjusted, strict=True)]


def layer_name(position: int) -> str:
    """Of a layer's cell, and how answers call it."""
    return f"layer {position}"


def ranges(positions: Sequence[int]) -> str:
    """``0–2, 5``."""
    found: list[list[int]] = []
    for position in sorted(positions):
        if found and position == found[-1][1] + 1:
            found[-1][1] = position
        else:
            found.append([position, position])
    return ", ".join(str(low) if low == high else f"{low}–{high}" for low, high in found)


def best_layer(scores: Scores, choice: Choice, layers: int) -> tuple[str, list[Contrast]]:
    """Which layer is best, and which ones cannot be told from it: the choice against every layer, Holm over the layers.

    Args:
        scores: with cells ``chosen:<target>`` and ``layer <r>``.
        choice: of this target.
        layers: R.

    Returns:
        The sentence, and the choice minus each layer.
    """
    target, name = scores.target, f"chosen:{scores.target.name}"
    found = _corrected(
        [(layer_name(layer), target, scores.difference(name, layer_name(layer))) for layer in range(layers)]
    )
    if all(math.isnan(one.difference.p) for one in found):
        return (
            f"Best layer for {target.name}: layer {choice.usual} by the training speakers; there is a single test speaker, so"
            " nothing can be tested.",
            found,
        )
    worse = [layer for layer, one in enumerate(found) if one.decided > 0]
    better = [layer for layer, one in enumerate(found) if one.decided < 0]
    alike = [layer for layer in range(layers) if layer not in worse and layer not in better]
    picks = ", ".join(map(str, choice.layers.tolist()))
    same = len(set(choice.layers.tolist())) == 1
    interval = scores.intervals[scores.at(name)]
    bounds = f"[{target.shown(interval.low)}, {target.shown(interval.high)}]".replace(" %", "")
    sentence = (
        f"Best layer for {target.name}: layer {choice.usual}, as the training speakers of"
        f" {'every fold choose' if same else f'the folds choose ({picks})'}; on other speakers that choice has {target.unit}"
        f" {target.shown(scores.value(name))} {bounds}."
    )
    if alike == [choice.usual] and same and not better:
        sentence += f" Every other layer is significantly worse (Holm over {layers} layers)."
    elif len(alike) == layers:
        sentence += f" No layer can be told from it (smallest p {_least(found)}, Holm over {layers} layers)."
    else:
        sentence += (
            f" Not distinguishable from it: {ranges(alike) or 'none'}" if alike else " Not distinguishable: none"
        )
        sentence += f"; significantly worse: {ranges(worse)}" if worse else ""
        sentence += f"; significantly better, so the choice was a poor one: {ranges(better)}" if better else ""
        sentence += f" (Holm over {layers} layers)."
    return sentence, found


def _least(found: Sequence[Contrast]) -> str:
    values = [one.p for one in found if not math.isnan(one.p)]
    return p_text(min(values)).removeprefix("p ").removeprefix("= ") if values else "not testable"


def compare_choices(scores: Sequence[Scores], choices: Mapping[str, Choice]) -> tuple[list[str], list[Contrast]]:
    """Do targets need different layers: what each loses with the layer that another one's training speakers choose.

    Args:
        scores: per target, with cells ``chosen:<target>`` of all targets.
        choices: target name to choice.

    Returns:
        Sentences, one per pair of targets, and own choice minus other's; Holm over all of them.
    """
    found = _corrected(
        [
            (
                f"{own.target.name}: own layer minus that of {other.target.name}",
                own.target,
                own.difference(f"chosen:{own.target.name}", f"chosen:{other.target.name}"),
            )
            for own in scores
            for other in scores
            if own is not other
        ]
    )
    by_name = {one.about: one for one in found}
    sentences = []
    for position, first in enumerate(scores):
        for second in scores[position + 1 :]:
            names = (first.target.name, second.target.name)
            layers = [choices[name].layers for name in names]
            question = f"Do {names[0]} and {names[1]} need different layers?"
            if np.array_equal(layers[0], layers[1]):
                sentences.append(f"{question} Not shown: every fold chooses the same layer for both.")
                continue
            losses = [
                by_name[f"{own}: own layer minus that of {other}"] for own, other in (names, tuple(reversed(names)))
            ]
            verdicts = [loss.decided for loss in losses]
            verdict = "Yes" if min(verdicts) > 0 else "In part" if max(verdicts) > 0 else "Not shown"
            usual = [choices[name].usual for name in names]
            told = " and ".join(
                f"{own} {'loses' if loss.difference.value >= 0 else 'gains'} {loss.target.change(loss.difference)} with the layer"
                f" chosen for {other}, {p_text(loss.p)}"
                for loss, (own, other) in zip(losses, (names, tuple(reversed(names))), strict=True)
            )
            sentences.append(f"{question} {verdict}: layers {usual[0]} and {usual[1]} are chosen; {told}.")
    return sentences, found


def compare_ends(scores: Sequence[Scores], layers: int) -> tuple[list[str], list[Contrast]]:
    """Do shallow layers serve arousal and deep ones valence (Oliveira et al. 2023)? Halves of the layers, fixed beforehand.

    The mean score of the shallow half minus that of the deep half (the middle layer of an odd number is left out), per target; and
    between arousal and valence, the difference of the two.

    Args:
        scores: per target, with cells ``layer <r>``.
        layers: R, at least 2.
    """
    half = layers // 2
    shallow, deep = range(half), range(layers - half, layers)
    given: list[tuple[str, Target, Difference]] = []
    for one in scores:
        ends = [[one.at(layer_name(layer)) for layer in side] for side in (shallow, deep)]
        difference = one.resampled.difference(ends[0], ends[1], ranks=False)
        given.append((f"{one.target.name}: shallow minus deep half", one.target, difference))
    by_name = {one.target.name: one for one in scores}
    if {"arousal", "valence"} <= set(by_name):
        joint, offset = _joined(by_name["arousal"], by_name["valence"])
        ends = [[by_name["arousal"].at(layer_name(layer)) for layer in side] for side in (shallow, deep)]
        others = [[offset + by_name["valence"].at(layer_name(layer)) for layer in side] for side in (shallow, deep)]
        # Mean over 2 x half cells on either side, so half of the difference of differences: doubled below.
        halved = joint.difference([*ends[0], *others[1]], [*ends[1], *others[0]], ranks=False)
        doubled = Difference(
            2 * halved.value,
            Interval(2 * halved.interval.low, 2 * halved.interval.high, halved.interval.level),
            halved.p,
            halved.wilcoxon_p,
            2 * halved.spread,
            halved.better,
            halved.worse,
        )
        given.append(("arousal minus valence: shallow minus deep half", by_name["arousal"].target, doubled))
    found = _corrected(given)
    named = {one.about.partition(":")[0]: one for one in found}
    halves = f"layers {ranges(list(shallow))} against {ranges(list(deep))}"
    sentences = []
    if "arousal minus valence" in named:
        arousal, valence, both = (named[name] for name in ("arousal", "valence", "arousal minus valence"))
        if both.decided > 0 and arousal.decided > 0 and valence.decided < 0:
            verdict = "Yes"
        elif both.decided > 0:
            verdict = "In part: arousal leans more to shallow layers than valence does"
        elif both.decided < 0:
            verdict = "No, the other way round"
        else:
            verdict = "Not shown"
        told = "; ".join(f"{one.about.partition(':')[0]} {_leaning(one)}" for one in (arousal, valence))
        sentences.append(
            f"Do shallow layers serve arousal and deep ones valence? {verdict}: {told}; difference of the two"
            f" {both.target.change(both.difference)}, {p_text(both.p)} ({halves}, mean CCC; Holm over {len(found)})."
        )
    for name, contrast in named.items():
        if name in ("arousal", "valence", "arousal minus valence") and "arousal minus valence" in named:
            continue
        verdict = {1: "The shallow half", -1: "The deep half", 0: "Not shown"}[contrast.decided]
        sentences.append(
            f"Which half of the layers serves {name} better? {verdict}: it {_leaning(contrast)} ({halves}, mean"
            f" {contrast.target.unit})."
        )
    return sentences, found


def _leaning(one: Contrast) -> str:
    side = "shallow" if one.difference.value >= 0 else "deep"
    return f"does better in the {side} half by {one.target.change(one.difference)}, {p_text(one.p)}"


def _joined(first: Scores, second: Scores) -> tuple[Resampled, int]:
    """Cells of two targets beside each other (the same speakers and draws), and where the second ones begin."""
    one, other = first.resampled, second.resampled
    joint = Resampled(
        np.concatenate([one.values, other.values]),
        np.concatenate([one.by_speaker, other.by_speaker]),
        np.concatenate([one.replicates, other.replicates], axis=1),
        np.concatenate([one.seed_variances, other.seed_variances]),
        np.concatenate([one.seeds, other.seeds]),
    )
    return joint, len(one.values)


def compare_depths(scores: Scores, layers: int) -> tuple[str, list[Contrast]]:
    """How deep an encoder must be: each truncated one against the whole, Holm over the depths.

    Args:
        scores: with cells ``depth <k>``.
        layers: R.
    """
    target, whole = scores.target, f"depth {layers - 1}"
    found = _corrected(
        [(f"depth {depth}", target, scores.difference(f"depth {depth}", whole)) for depth in range(layers - 1)]
    )
    if all(math.isnan(one.difference.p) for one in found):
        return f"How deep must the encoder be for {target.name}? Not measured: there is a single test speaker.", found
    enough = layers - 1
    while enough > 0 and found[enough - 1].decided >= 0:
        enough -= 1
    if enough == layers - 1:
        return (
            f"How deep must the encoder be for {target.name}? All of it: without the last layer it loses"
            f" {target.change(found[-1].difference)}, {p_text(found[-1].p)}."
        ), found
    lowest = min(one.difference.interval.low for one in found[enough:])
    return (
        f"How deep must the encoder be for {target.name}? Cut after layer {enough} or later, it is not significantly worse than"
        f" whole ({target.unit} {target.shown(scores.value(f'depth {enough}'))} against {target.shown(scores.value(whole))});"
        f" losses of up to {target.shown(max(0.0, -lowest)).removesuffix(' %')}{' points' if target.column < 0 else ''} are not"
        " ruled out."
    ), found


def power_note(scores: Scores, comparisons: Sequence[Contrast]) -> str:
    """What could have been seen."""
    spreads = [one.difference.spread for one in comparisons if one.difference.spread > 0]
    if not spreads:
        return ""
    spread = float(np.median(spreads))
    least = detectable_difference(spread, scores.speakers, comparisons=len(comparisons), level=LEVEL)
    target = scores.target
    unit = " points" if target.column < 0 else ""
    return (
        f"Power, {target.name}: with {scores.speakers} test speakers, differences between layers under"
        f" {target.scale * least:.{target.digits}f}{unit} are missed more often than once in five times after correction for"
        f" {len(comparisons)} comparisons."
    )
