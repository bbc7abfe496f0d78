"""What a report shows of a run, taken from the run folder alone: no store, no manifest, no training.

A *grid* arranges the cells as one matrix: pairs in rows; the single representations, then the fusions in columns (with one or
two pairs the other way round). A single stands beside every pair that it is part of. Numbers are those of ``evaluation`` and
``studies.answers``; here they are only put in order.

What decides is the target's score (``evaluation.measures``): UAR, or the mean CCC over dimensions. Recall of a class is pooled
over folds and averaged over seeds, its interval drawn over speakers. The score of a speaker is the mean recall over the classes
that this speaker has (a speaker who lacks a class has no recall there), or the speaker's own CCC, averaged over seeds. A learning
curve is the mean over all heads of a cell (folds and seeds) with the smallest and the largest of them. True and predicted values
of dimensions are shown for a sample of utterances, the same for all cells, predictions as their mean over seeds.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import RunError
from pipelines.evaluation.measures import Measure
from pipelines.evaluation.results import CellScore
from pipelines.evaluation.runs import Run, read_run
from pipelines.evaluation.statistics import Difference, Interval, Metric, bootstrap_intervals, speaker_values
from pipelines.fusion.catalogue import SINGLE
from pipelines.reports.reproduce import commands
from pipelines.reports.shuffles import Drops, corrected_drops
from pipelines.studies.answers import CellEvidence, Evidence, p_text, weigh_run
from pipelines.training.grid import LINEAR
from pipelines.training.metrics import SUMS

__all__ = ["MOST_VALUES", "CellData", "Curve", "Grid", "Line", "RunData", "in_units", "read_run_data"]

MOST_VALUES = 300
"""Utterances whose true and predicted values are shown."""

_FEW_PAIRS = 3  # below, the pairs are the columns: a table that is read downwards, also on a phone


@dataclass(frozen=True)
class Curve:
    """One quantity per epoch, over the heads of a cell that were still being trained.

    Attributes:
        mean: float64 [E].
        low: smallest head, [E].
        high: largest head, [E].
    """

    mean: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


@dataclass(frozen=True)
class CellData:
    """One cell, with what a page shows of it beside its score.

    Attributes:
        title: unique within the run.
        score: its scores, with confusion matrices by speaker and seed.
        recalls: per class, NaN where no utterance has it; empty where the target is dimensions, as are the next three.
        recall_intervals: per class.
        supports: utterances per class.
        confusion: float64 [C, C], true classes in rows, mean count over seeds.
        predicted: float64 [D, m], mean over seeds of what was predicted for the run's sample; empty where the target is emotion.
        speaker_scores: speaker to mean recall, or mean CCC.
        speaker_supports: speaker to number of utterances.
        curves: quantity to curve; quantities that were never measured are left out.
        layer_weights: side to (layer to learned weight), mean over heads; empty where layers were not weighted.
        marks: of the table († an input is not used, …).
        remarks: sentences about the cell: what it was tested against, and how that ended.
        drops: whether what shuffling an input costs is significant.
    """

    title: str
    score: CellScore
    recalls: NDArray[np.float64]
    recall_intervals: tuple[Interval, ...]
    supports: NDArray[np.float64]
    confusion: NDArray[np.float64]
    predicted: NDArray[np.float64]
    speaker_scores: Mapping[str, float]
    speaker_supports: Mapping[str, int]
    curves: Mapping[str, Curve]
    layer_weights: Mapping[str, Mapping[str, float]]
    marks: str
    remarks: tuple[str, ...]
    drops: Drops


@dataclass(frozen=True)
class Line:
    """One row of the grid.

    Attributes:
        title: the pair, or the representation.
        cells: positions among the run's cells, one per column; None where nothing was computed.
    """

    title: str
    cells: tuple[int | None, ...]


@dataclass(frozen=True)
class Grid:
    """The cells of a run as a matrix.

    Attributes:
        corner: what the rows are: "Pair", "Head" (of few pairs, which are then the columns) or "Representation".
        rows: in the order of the run.
        columns: titles.
        scores: of all cells.
        marks: of all cells.
        best: position of the cell with the best score.
    """

    corner: str
    rows: tuple[Line, ...]
    columns: tuple[str, ...]
    scores: tuple[CellScore, ...] = field(repr=False)
    marks: tuple[str, ...]
    best: int


@dataclass(frozen=True)
class RunData:
    """A run, ready to be shown.

    Attributes:
        run: as read back.
        evidence: what the scores say, weighed.
        cells: in the order of the run.
        grid: the same as a matrix.
        sample: m utterances of which true and predicted values are shown; none where the target is emotion.
    """

    run: Run
    evidence: Evidence
    cells: tuple[CellData, ...] = field(repr=False)
    grid: Grid = field(repr=False)
    sample: tuple[str, ...] = field(default=(), repr=False)

    @property
    def measure(self) -> Measure:
        """How cells are judged."""
        return self.run.measure

    @property
    def config(self) -> Mapping[str, Any]:
        """What the run was asked for."""
        return self.run.config

    @property
    def first(self) -> int:
        """Position of the cell that is shown first, and alone in figures: the best trained fusion, or else the best."""
        heads = [
            index for index, score in enumerate(self.scores) if score.right and score.fusion not in LINEAR.values()
        ]
        return max(heads, key=lambda index: (self.scores[index].value, -index), default=self.grid.best)

    @cached_property
    def utterance_ids(self) -> tuple[str, ...]:
        """n tested utterances, sorted."""
        return tuple(sorted(self.run.speakers))

    @property
    def group_kind(self) -> str:
        """What colours of points mean: ``emotion``, or thirds of a dimension."""
        return f"{self.run.dimensions[0]} in thirds" if self.run.dimensions else "emotion"

    @property
    def group_names(self) -> tuple[str, ...]:
        """The classes; for dimensions, thirds of the first one."""
        if not self.run.dimensions:
            return tuple(self.run.classes)
        return tuple(f"{level} {self.run.dimensions[0]}" for level in ("low", "middle", "high"))

    @cached_property
    def groups(self) -> NDArray[np.int64]:
        """int64 [n], positions in ``group_names``."""
        if self.run.dimensions:
            values = np.array([self.run.values[name][0] for name in self.utterance_ids])
            thirds: NDArray[np.int64] = np.digitize(values, np.quantile(values, [1 / 3, 2 / 3])).astype(np.int64)
            return thirds
        place = {name: index for index, name in enumerate(self.classes)}
        return np.array([place[self.run.labels[name]] for name in self.utterance_ids], dtype=np.int64)

    @cached_property
    def true_values(self) -> NDArray[np.float64]:
        """float64 [D, m], of the sample."""
        values = [self.run.values[name] for name in self.sample]
        return np.array(values, dtype=np.float64).reshape(len(values), len(self.run.dimensions)).T

    @property
    def speakers(self) -> tuple[str, ...]:
        """n speakers."""
        return tuple(self.run.speakers[name] for name in self.utterance_ids)

    @property
    def classes(self) -> tuple[str, ...]:
        """C names; none where the target is dimensions."""
        return tuple(self.run.classes)

    @property
    def scores(self) -> tuple[CellScore, ...]:
        """One per cell."""
        return self.run.scores

    @property
    def titles(self) -> tuple[str, ...]:
        """One per cell."""
        return tuple(cell.title for cell in self.cells)

    @cached_property
    def warnings(self) -> tuple[str, ...]:
        """What a reader must not overlook. Random weights and known voices are said even if the run itself did not."""
        said = list(dict.fromkeys(map(str, self.config.get("warnings", ()))))
        if self.run.random and not any("RANDOM" in text for text in said):
            names = ", ".join(self.run.random)
            said.insert(
                0, f"RANDOM weights: {names}. These scores say nothing about the pretrained encoders of that name."
            )
        if not self.config.get("speaker_independent", True) and not any("speaker-dependent" in text for text in said):
            said.append("speaker-dependent: the same speakers are in training and test.")
        return tuple(said)

    @property
    def notes(self) -> tuple[str, ...]:
        """What the run is about."""
        return tuple(map(str, self.config.get("notes", ())))

    @cached_property
    def commands(self) -> tuple[str, ...]:
        """The commands that make this run again from the recordings."""
        return commands(self.config, self.run.path.resolve().name)


def read_run_data(run_dir: Path) -> RunData:
    """Read a run folder and put in order what a report shows.

    Raises:
        RunError: the folder is no run, unfinished, damaged, or of another version.
    """
    run = read_run(run_dir)
    evidence = weigh_run(run)
    rows: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in run.rows:
        rows[str(row.get("cell", ""))].append(row)
    sample = _sample(run)
    predicted = _predicted(run, sample)
    cells = tuple(
        _cell(score, weighed, rows[score.cell], run, drops, predicted.get(score.cell, np.zeros((0, 0))))
        for score, weighed, drops in zip(run.scores, evidence.cells, corrected_drops(run.scores), strict=True)
    )
    return RunData(run=run, evidence=evidence, cells=cells, grid=_grid(cells), sample=sample)


def _sample(run: Run) -> tuple[str, ...]:
    """At most :data:`MOST_VALUES` utterances that every cell was tested on, evenly spread over the sorted ids."""
    if not run.dimensions:
        return ()
    shared = sorted(frozenset.intersection(*set(run.tested.values())))
    step = max(1.0, len(shared) / MOST_VALUES)
    return tuple(shared[int(place * step)] for place in range(min(len(shared), MOST_VALUES)))


def _predicted(run: Run, sample: Sequence[str]) -> dict[str, NDArray[np.float64]]:
    """Cell to predicted values of the sample, [D, m], mean over seeds."""
    if not sample:
        return {}
    import pandas as pd

    path = run.path / "predictions.parquet"
    columns = [f"predicted_{name}" for name in run.dimensions]
    try:
        table = pd.read_parquet(path, columns=["cell", "utterance_id", *columns])
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read ({error}). Run the same command again.") from error
    table = table[table["utterance_id"].isin(set(sample))]
    means = table.groupby(["cell", "utterance_id"], observed=True, sort=False)[columns].mean()
    return {
        str(cell): part.droplevel("cell").loc[list(sample)].to_numpy(dtype=np.float64).T
        for cell, part in means.groupby(level="cell", observed=True)
    }


def _cell(
    score: CellScore,
    weighed: CellEvidence,
    rows: Sequence[Mapping[str, Any]],
    run: Run,
    drops: Drops,
    predicted: NDArray[np.float64],
) -> CellData:
    recalls: dict[str, Metric] = {}
    confusion = np.zeros((0, 0))
    if run.dimensions:
        supports = score.tallies[:, 0, 0, SUMS.index("n")]
    else:
        recalls = {name: _recall_of(index) for index, name in enumerate(run.classes)}
        confusion = score.tallies.sum(axis=0).mean(axis=0)
        supports = score.tallies.sum(axis=(2, 3)).mean(axis=1)
    pooled = score.tallies.sum(axis=0)
    return CellData(
        title=score.cell,
        score=score,
        recalls=np.array([float(recall(pooled).mean()) for recall in recalls.values()]),
        recall_intervals=tuple(bootstrap_intervals(score.tallies, recalls).values()) if recalls else (),
        supports=confusion.sum(axis=1),
        confusion=confusion,
        predicted=predicted,
        speaker_scores=dict(
            zip(score.speakers, speaker_values(score.tallies, run.measure.metric).tolist(), strict=True)
        ),
        speaker_supports=dict(zip(score.speakers, supports.round().astype(int).tolist(), strict=True)),
        curves=_curves(rows),
        layer_weights=_layer_weights(rows),
        marks=weighed.marks,
        remarks=_remarks(weighed, run.measure),
        drops=drops,
    )


def _recall_of(index: int) -> Metric:
    """The recall of one class as a metric of confusion matrices [..., C, C]; NaN where the class is absent."""

    def recall(confusions: NDArray[np.float64]) -> NDArray[np.float64]:
        total = confusions[..., index, :].sum(axis=-1)
        found: NDArray[np.float64] = np.divide(
            confusions[..., index, index], total, out=np.full(total.shape, np.nan), where=total > 0
        )
        return found

    return recall


def _curves(rows: Sequence[Mapping[str, Any]]) -> dict[str, Curve]:
    gathered: dict[str, list[list[float]]] = defaultdict(list)
    for row in rows:
        for name, values in (row.get("curves") or {}).items():
            gathered[name].append([math.nan if value is None else float(value) for value in values])
    curves = {}
    for name, heads in gathered.items():
        longest = max(map(len, heads))
        if longest < 2:  # logistic regression has no epochs
            continue
        table = np.full((len(heads), longest), np.nan)
        for place, values in enumerate(heads):  # heads that stopped early are shorter
            table[place, : len(values)] = values
        known = np.isfinite(table).any(axis=0)
        if not known.any():
            continue
        table = table[:, : int(np.flatnonzero(known)[-1]) + 1]
        empty = np.isnan(table).all(axis=0)
        filled = np.where(np.isnan(table), 0.0, table)
        count = np.maximum((~np.isnan(table)).sum(axis=0), 1)
        mean = np.where(empty, np.nan, filled.sum(axis=0) / count)
        low = np.where(empty, np.nan, np.where(np.isnan(table), np.inf, table).min(axis=0))
        high = np.where(empty, np.nan, np.where(np.isnan(table), -np.inf, table).max(axis=0))
        curves[name] = Curve(mean=mean, low=low, high=high)
    return {name: curves[name] for name in sorted(curves, key=_place_of_curve)}


def _place_of_curve(name: str) -> tuple[int, str]:
    """What is learned comes first, then what happens inside the heads, then the clipping."""
    first = ("train_loss", "validation_uar", "validation_ccc", "validation_loss")
    return (first.index(name) if name in first else 5 if name == "gradient_clipped" else 4, name)


def _layer_weights(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Mean over heads of what each layer weighs, per side; the heads record it as ``left_layer_00``, …"""
    found: dict[str, dict[str, float]] = {}
    for side in ("left", "right"):
        layers = (rows[0].get(f"{side}_source") or {}).get("layers") or () if rows else ()
        names = [f"{side}_layer_{place:02d}" for place in range(len(layers))]
        weights = [
            [float(row["diagnostics"][name]) for name in names]
            for row in rows
            if names and all((row.get("diagnostics") or {}).get(name) is not None for name in names)
        ]
        if weights:
            found[side] = dict(zip(map(str, layers), np.asarray(weights).mean(axis=0).tolist(), strict=True))
    return found


def _grid(cells: Sequence[CellData]) -> Grid:
    scores = tuple(cell.score for cell in cells)
    # Singles of one encoder may differ in their options, too, which stand in the title behind its name.
    kind_of = {index: score.cell.removeprefix(score.left).strip() or SINGLE for index, score in enumerate(scores)}
    singles = {(score.left, kind_of[index]): index for index, score in enumerate(scores) if not score.right}
    kinds = list(dict.fromkeys(kind_of[index] for index, score in enumerate(scores) if not score.right))
    pairs: dict[tuple[str, str], dict[str, int]] = defaultdict(dict)
    for index, score in enumerate(scores):
        if score.right:
            # Heads of one fusion may differ in their options, which stand in the title behind the pair.
            column = score.cell.removeprefix(f"{score.left}+{score.right}").strip() or score.fusion
            pairs[score.left, score.right][column] = index
    titles: list[str]
    rows: list[Line]
    if pairs:
        columns = list(dict.fromkeys(column for found in pairs.values() for column in found))
        titles = [
            f"{side} alone" if kind == SINGLE else f"{side} alone, {kind}"
            for kind in kinds
            for side in ("left", "right")
        ]
        rows = [
            Line(
                f"{left} + {right}",
                (
                    *(singles.get((name, kind)) for kind in kinds for name in (left, right)),
                    *(found.get(column) for column in columns),
                ),
            )
            for (left, right), found in pairs.items()
        ]
        titles += columns
        if len(rows) < _FEW_PAIRS:
            turned = zip(*(row.cells for row in rows), strict=True)
            titles, rows = (
                [row.title for row in rows],
                [Line(title, cells) for title, cells in zip(titles, turned, strict=True)],
            )
    else:
        titles = ["alone" if kind == SINGLE else kind for kind in kinds]
        names = list(dict.fromkeys(score.left for score in scores))
        rows = [Line(name, tuple(singles.get((name, kind)) for kind in kinds)) for name in names]
    best = max(range(len(scores)), key=lambda index: (scores[index].value, -index))
    return Grid(
        corner=("Head" if len(pairs) < _FEW_PAIRS else "Pair") if pairs else "Representation",
        rows=tuple(rows),
        columns=tuple(titles),
        scores=scores,
        marks=tuple(cell.marks for cell in cells),
        best=best,
    )


def _remarks(weighed: CellEvidence, measure: Measure) -> tuple[str, ...]:
    """What a cell was tested against, as sentences."""
    sentences = []
    for verdict in (weighed.against_single, weighed.against_linear):
        if verdict is None:
            continue
        how = {1: "significantly better", -1: "significantly worse", 0: "not significantly different"}[
            verdict.significant
        ]
        sentences.append(
            f"Against {verdict.other}: {in_units(verdict.difference, measure)} {measure.unit}, {how}, {p_text(verdict.p_holm)}."
        )
    for side in weighed.unused:
        sentences.append(f"† The score does not depend on the {side} input.")
    return tuple(sentences)


def in_units(difference: Difference, measure: Measure) -> str:
    """A difference in points or CCC with its interval, as far as there is one."""
    low, high = difference.interval.low, difference.interval.high
    bounds = "" if math.isnan(low) else f" [{measure.change(low)}, {measure.change(high)}]"
    return f"{measure.change(difference.value)}{bounds}"
