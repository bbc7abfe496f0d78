"""The run folder: what one ``train`` or ``compare`` wrote, and how it is read back.

======================== ==========================================================================================
file                     content
======================== ==========================================================================================
``config.json``          what was asked for, and with which versions
``parts/*.npz``          finished jobs, one file each: result rows and test predictions; what a resumed run builds on
``results.jsonl``        one result row per pair × fusion × fold × seed
``predictions.parquet``  every test prediction: cell, fold, seed, utterance, speaker; of emotions label, prediction, the
                         predictions with either input shuffled, class probabilities; of each dimension the true value,
                         the predicted one, and that with either input shuffled; every statistic can be made again from it
``table.csv|md|tex``     the comparison table
``heads/*.safetensors``  parameters and scalers of trained heads (``train`` only)
======================== ==========================================================================================

A part is written under a temporary name and renamed, so a run that is killed leaves whole parts only. A part belongs to a job's
key, the digest of everything its numbers depend on: after a change of settings, data or code nothing old is taken over. The
summary files are made from the parts and can be made again at any time; the same parts give the same bytes.
"""

from __future__ import annotations

import io
import json
import math
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.evaluation.measures import Measure, measure_of
from pipelines.evaluation.statistics import (
    Interval,
    bootstrap_intervals,
    pseudo_values,
    resample,
    score,
    speaker_confusions,
    speaker_sums,
    variance_components,
)
from pipelines.files import write_atomically
from pipelines.training.grid import Cell, CellResult, Job
from pipelines.training.metrics import expected_calibration_error
from pipelines.training.trainer import HeadResult

__all__ = ["CellPredictions", "CellScore", "Estimate", "HeadRecord", "RunFolder", "score_cell", "score_predictions"]


_OPTION = "--runs-dir"


@dataclass(frozen=True)
class HeadRecord:
    """One trained head, as read back from a run.

    Attributes:
        row: the result row (JSON values).
        test: int64 [m], positions of the test utterances among the dataset's.
        outputs: float32 [m, C] class probabilities, or [m, D] values of dimensions.
        left_shuffled: predictions with the left input shuffled among the test utterances: int64 [m] classes, or float32 [m, D].
        right_shuffled: likewise; equal to the predictions for a single representation.
    """

    row: Mapping[str, Any]
    test: NDArray[np.int64]
    outputs: NDArray[np.float32]
    left_shuffled: NDArray[Any]
    right_shuffled: NDArray[Any]


@dataclass(frozen=True)
class CellPredictions:
    """What the heads of one cell predicted for every test utterance.

    Attributes:
        truth: int64 [n] classes, or float32 [n, D] values of dimensions.
        speakers: n speakers.
        folds: n names, of the fold that tested the utterance.
        outputs: float32 [S, n, C] class probabilities, or [S, n, D] values.
        left_shuffled: predictions with the left input shuffled: int64 [S, n] classes, or float32 [S, n, D].
        right_shuffled: likewise; None for a single representation.
        diagnostics: name to its mean over heads.
        dimensions: D names; empty where the target is emotion.
    """

    truth: NDArray[Any]
    speakers: Sequence[str]
    folds: Sequence[str]
    outputs: NDArray[np.float32]
    left_shuffled: NDArray[Any]
    right_shuffled: NDArray[Any] | None
    diagnostics: Mapping[str, float]
    dimensions: tuple[str, ...] = ()

    @property
    def measure(self) -> Measure:
        """How they are judged."""
        return measure_of("dimensions" if self.dimensions else "emotion", self.dimensions)


@dataclass(frozen=True)
class Estimate:
    """A score and its interval.

    Attributes:
        value: pooled over folds, mean over seeds.
        interval: bootstrap over speakers.
    """

    value: float
    interval: Interval


@dataclass(frozen=True)
class CellScore:
    """The scores of one cell over all folds and seeds; see ``evaluation.statistics`` for what is pooled and averaged.

    Attributes:
        left: encoder.
        right: encoder; empty for a single representation.
        fusion: name.
        cell: title, different for every cell of a run.
        estimates: every score of the target by its key (``statistics.METRICS``, ``statistics.dimension_metrics``), as fractions or,
            for absolute errors, on the corpus' scale.
        seed_std: standard deviation over seeds of the score that decides, UAR or mean CCC (0 for one seed).
        fold_std: standard deviation of it over folds, mean over seeds (0 for one fold).
        speaker_std: standard deviation of it between speakers, as variance component; NaN for one speaker.
        ece: expected calibration error, mean over seeds; NaN where the target is dimensions.
        left_drop: what of the score that decides is lost when the left input is shuffled among the test utterances.
        left_drop_interval: paired bootstrap over speakers.
        left_drop_p: two-sided.
        right_drop: likewise for the right input; NaN for a single representation, as are the next two.
        right_drop_interval: paired bootstrap over speakers.
        right_drop_p: two-sided.
        folds: number of folds.
        seeds: number of seeds.
        utterances: tested utterances.
        speakers: K names, sorted.
        tallies: by speaker and seed: confusion matrices, float64 [K, S, C, C], or sums of dimensions, float64 [K, S, D, 7].
        left_shuffled_tallies: the same with the left input shuffled.
        right_shuffled_tallies: likewise; None for a single representation.
        diagnostics: what heads record about themselves (shares, norms), mean over heads.
        dimensions: D names; empty where the target is emotion.
    """

    left: str
    right: str
    fusion: str
    cell: str
    estimates: Mapping[str, Estimate]
    seed_std: float
    fold_std: float
    speaker_std: float
    ece: float
    left_drop: float
    left_drop_interval: Interval
    left_drop_p: float
    right_drop: float
    right_drop_interval: Interval
    right_drop_p: float
    folds: int
    seeds: int
    utterances: int
    speakers: tuple[str, ...] = field(repr=False)
    tallies: NDArray[np.float64] = field(repr=False, compare=False)
    left_shuffled_tallies: NDArray[np.float64] = field(repr=False, compare=False)
    right_shuffled_tallies: NDArray[np.float64] | None = field(repr=False, compare=False)
    diagnostics: Mapping[str, float] = field(default_factory=dict)
    dimensions: tuple[str, ...] = ()

    @property
    def measure(self) -> Measure:
        """How the cell is judged."""
        return measure_of("dimensions" if self.dimensions else "emotion", self.dimensions)

    @property
    def value(self) -> float:
        """The score that decides: UAR, or mean CCC."""
        return self.estimates[self.measure.key].value

    @property
    def interval(self) -> Interval:
        """Of the score that decides."""
        return self.estimates[self.measure.key].interval

    @property
    def uar(self) -> float:
        """Mean recall; there where the target is emotion, as are the next seven."""
        return self.estimates["uar"].value

    @property
    def uar_interval(self) -> Interval:
        """Of the UAR."""
        return self.estimates["uar"].interval

    @property
    def uar_seed_std(self) -> float:
        """Of the UAR, over seeds."""
        return self.seed_std

    @property
    def accuracy(self) -> float:
        """Also called weighted accuracy."""
        return self.estimates["accuracy"].value

    @property
    def accuracy_interval(self) -> Interval:
        """Of the accuracy."""
        return self.estimates["accuracy"].interval

    @property
    def macro_f1(self) -> float:
        """Over the classes that occur."""
        return self.estimates["macro_f1"].value

    @property
    def macro_f1_interval(self) -> Interval:
        """Of macro-F1."""
        return self.estimates["macro_f1"].interval

    @property
    def counts(self) -> NDArray[np.float64]:
        """Confusion matrices by speaker and seed, float64 [K, S, C, C], true classes in rows."""
        return self.tallies

    @property
    def drops(self) -> dict[str, tuple[float, float]]:
        """Of every score: what is lost when the left and when the right input is shuffled; NaN for a single representation."""
        found = {}
        for name, metric in self.measure.metrics.items():
            left, right = (
                math.nan if tallies is None else self.estimates[name].value - score(tallies, metric)
                for tallies in (self.left_shuffled_tallies, self.right_shuffled_tallies)
            )
            found[name] = (left, right)
        return found

    def to_record(self) -> dict[str, Any]:
        """Flat, for CSV: numbers and names, ``speakers`` as their number, diagnostics as ``diagnostic_<name>``."""
        key = self.measure.key
        record: dict[str, Any] = {name: getattr(self, name) for name in ("left", "right", "fusion", "cell")}
        for name, estimate in self.estimates.items():
            record |= {
                name: estimate.value,
                f"{name}_low": estimate.interval.low,
                f"{name}_high": estimate.interval.high,
            }
            if name == key:
                record |= {f"{key}_{of}": getattr(self, of) for of in ("seed_std", "fold_std", "speaker_std")}
        if not self.dimensions:
            record["ece"] = self.ece
        for side in ("left", "right"):
            bounds = getattr(self, f"{side}_drop_interval")
            record |= {
                f"{side}_drop": getattr(self, f"{side}_drop"),
                f"{side}_drop_low": bounds.low,
                f"{side}_drop_high": bounds.high,
                f"{side}_drop_p": getattr(self, f"{side}_drop_p"),
            }
        drops = self.drops
        for name in self.dimensions:
            record |= {
                f"{side}_drop_{name}": drops[f"ccc_{name}"][place] for place, side in enumerate(("left", "right"))
            }
        record |= {name: getattr(self, name) for name in ("folds", "seeds", "utterances")}
        record["speakers"] = len(self.speakers)
        return record | {f"diagnostic_{name}": value for name, value in sorted(self.diagnostics.items())}


def score_cell(
    cell: Cell,
    heads: Sequence[HeadRecord],
    *,
    truth: NDArray[Any],
    speakers: Sequence[str],
    dimensions: Sequence[str] = (),
) -> CellScore:
    """Score a cell from its heads.

    Args:
        cell: which one.
        heads: every fold under every seed.
        truth: int64 [n] classes of the dataset's utterances, or float32 [n, D] values.
        speakers: n speakers.
        dimensions: D names; empty where the target is emotion.
    """
    seeds = sorted({int(head.row["seed"]) for head in heads})
    tested = np.unique(np.concatenate([head.test for head in heads]))
    outputs = np.zeros((len(seeds), len(tested), heads[0].outputs.shape[1]), dtype=np.float32)
    shape, kind = ((len(dimensions),), np.float32) if dimensions else ((), np.int64)
    shuffled = np.zeros((2, len(seeds), len(tested), *shape), dtype=kind)
    folds = np.zeros(len(tested), dtype=object)
    for head in heads:
        seed, rows = seeds.index(int(head.row["seed"])), np.searchsorted(tested, head.test)
        outputs[seed, rows] = head.outputs
        shuffled[0, seed, rows] = head.left_shuffled
        shuffled[1, seed, rows] = head.right_shuffled
        folds[rows] = str(head.row["fold"])
    predictions = CellPredictions(
        truth=truth[tested],
        speakers=[speakers[position] for position in tested],
        folds=list(folds),
        outputs=outputs,
        left_shuffled=shuffled[0],
        right_shuffled=shuffled[1] if cell.right else None,
        diagnostics=mean_diagnostics([head.row for head in heads]),
        dimensions=tuple(dimensions),
    )
    return score_predictions(predictions, left=cell.left, right=cell.right, fusion=cell.fusion, cell=cell.title)


def mean_diagnostics(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """What the result rows of a cell record in ``diagnostics``, mean over the heads that record it."""
    values: dict[str, list[float]] = {}
    for row in rows:
        for name, value in (row.get("diagnostics") or {}).items():
            if value is not None:
                values.setdefault(name, []).append(float(value))
    return {name: float(np.mean(numbers)) for name, numbers in sorted(values.items())}


def score_predictions(predictions: CellPredictions, *, left: str, right: str, fusion: str, cell: str) -> CellScore:
    """Score a cell from its predictions; see :class:`CellScore`."""
    measure, truth = predictions.measure, predictions.truth
    plain = (
        predictions.outputs if predictions.dimensions else predictions.outputs.argmax(axis=2)
    )  # plain is [S, n(, D)]

    def tallied(predicted: NDArray[Any], groups: Sequence[str]) -> NDArray[np.float64]:
        if predictions.dimensions:
            return speaker_sums(truth, predicted, groups)
        return speaker_confusions(truth, predicted, groups, num_classes=predictions.outputs.shape[2])

    whole, without_left = (tallied(of, predictions.speakers) for of in (plain, predictions.left_shuffled))
    without_right = (
        None if predictions.right_shuffled is None else tallied(predictions.right_shuffled, predictions.speakers)
    )
    by_seed = measure.metric(whole.sum(axis=0))
    by_fold = measure.metric(tallied(plain, predictions.folds)).mean(axis=1)
    intervals = bootstrap_intervals(whole, measure.metrics)
    shuffled = resample([whole, without_left, *([without_right] if without_right is not None else [])], measure.metric)
    drops = [shuffled.difference([0], [position], ranks=False) for position in range(1, len(shuffled.values))]
    nowhere = Interval(math.nan, math.nan, intervals[measure.key].level)
    speakers = tuple(sorted(set(predictions.speakers)))
    between = variance_components(pseudo_values(whole, measure.metric)).speakers if len(speakers) > 1 else math.nan
    ece = math.nan
    if not predictions.dimensions:
        ece = float(expected_calibration_error(truth, predictions.outputs).mean())
    return CellScore(
        left=left,
        right=right,
        fusion=fusion,
        cell=cell,
        estimates={name: Estimate(score(whole, metric), intervals[name]) for name, metric in measure.metrics.items()},
        seed_std=float(by_seed.std(ddof=1)) if len(by_seed) > 1 else 0.0,
        fold_std=float(by_fold.std(ddof=1)) if len(by_fold) > 1 else 0.0,
        speaker_std=math.sqrt(between),
        ece=ece,
        left_drop=drops[0].value,
        left_drop_interval=drops[0].interval,
        left_drop_p=drops[0].p,
        right_drop=drops[1].value if right else math.nan,
        right_drop_interval=drops[1].interval if right else nowhere,
        right_drop_p=drops[1].p if right else math.nan,
        folds=len(by_fold),
        seeds=len(by_seed),
        utterances=len(truth),
        speakers=speakers,
        tallies=whole,
        left_shuffled_tallies=without_left,
        right_shuffled_tallies=without_right,
        diagnostics=dict(predictions.diagnostics),
        dimensions=predictions.dimensions,
    )


@dataclass(frozen=True)
class RunFolder:
    """A run on disk.

    Attributes:
        path: ``runs/<name>``.
    """

    path: Path

    def save(self, result: CellResult) -> None:
        """Keep a finished job as a part."""
        job = result.job
        rows = [_row(job, head) for head in result.heads]
        arrays: dict[str, NDArray[Any]] = {"rows": np.frombuffer(json.dumps(rows).encode(), dtype=np.uint8)}
        for index, head in enumerate(result.heads):
            arrays[f"test_{index}"] = head.task.test
            arrays[f"outputs_{index}"] = head.test_outputs
            for name, shuffled in (("left", head.left_shuffled_outputs), ("right", head.right_shuffled_outputs)):
                outputs = head.test_outputs if shuffled is None else shuffled
                arrays[f"{name}_{index}"] = outputs if job.dimensions else outputs.argmax(axis=1).astype(np.int64)
        content = io.BytesIO()
        np.savez(content, **arrays)  # type: ignore[arg-type]
        # Heads already in other parts keep their file: a name is the key and the first (fold, seed) of the part.
        first = job.tasks[0]
        name = f"{job.key[:20]}-{_plain(first.fold)}-{first.seed}.npz"
        write_atomically(self.path / "parts" / name, content.getvalue(), option=_OPTION)

    def load(self, job: Job) -> list[HeadRecord]:
        """Heads of a job that are finished, in the order of its tasks; damaged parts count as not there."""
        wanted = {(task.fold, task.seed): position for position, task in enumerate(job.tasks)}
        found: dict[int, HeadRecord] = {}
        for part in sorted((self.path / "parts").glob(f"{job.key[:20]}-*.npz")):
            try:
                with np.load(part, allow_pickle=False) as arrays:
                    rows = json.loads(arrays["rows"].tobytes().decode())
                    for index, row in enumerate(rows):
                        position = wanted.get((row["fold"], row["seed"]))
                        if position is not None and row["key"] == job.key:
                            found[position] = HeadRecord(
                                # What the cell is called is for the run to say, which may have grown since.
                                row={**row, "cell": job.cell.title},
                                test=arrays[f"test_{index}"],
                                outputs=arrays[f"outputs_{index}"],
                                left_shuffled=arrays[f"left_{index}"],
                                right_shuffled=arrays[f"right_{index}"],
                            )
            except (OSError, ValueError, KeyError, zipfile.BadZipFile, EOFError):
                part.unlink(missing_ok=True)
        return [found[position] for position in sorted(found)]

    def write_results(self, records: Sequence[HeadRecord]) -> None:
        """Write ``results.jsonl`` from all heads of the run."""
        lines = [json.dumps(record.row, sort_keys=True) for record in records]
        write_atomically(self.path / "results.jsonl", "\n".join(lines) + "\n", option=_OPTION)

    def write_predictions(
        self,
        records: Sequence[HeadRecord],
        *,
        utterance_ids: Sequence[str],
        speakers: Sequence[str],
        truth: NDArray[Any],
        classes: Sequence[str] = (),
        dimensions: Sequence[str] = (),
    ) -> None:
        """Write ``predictions.parquet``: one line per head and test utterance.

        For emotions the columns ``label``, ``prediction``, ``left_shuffled``, ``right_shuffled`` and ``p_<class>``; for each
        dimension ``true_<name>``, ``predicted_<name>``, ``left_shuffled_<name>`` and ``right_shuffled_<name>``. What the right
        input would have is empty, or NaN, for a single representation.
        """
        import pandas as pd

        names = np.asarray(classes, dtype=object)
        frames = []
        for record in records:
            row, count = record.row, len(record.test)
            columns: dict[str, Any] = {
                name: [row[name]] * count for name in ("cell", "left", "right", "fusion", "fold", "seed")
            }
            columns["utterance_id"] = [utterance_ids[position] for position in record.test]
            columns["speaker"] = [speakers[position] for position in record.test]
            if dimensions:
                nothing = np.full((count, len(dimensions)), np.nan, dtype=np.float32)
                kinds = {
                    "true": truth[record.test],
                    "predicted": record.outputs,
                    "left_shuffled": record.left_shuffled,
                    "right_shuffled": record.right_shuffled if row["right"] else nothing,
                }
                for index, name in enumerate(dimensions):
                    columns |= {f"{kind}_{name}": values[:, index] for kind, values in kinds.items()}
            else:
                columns["label"] = names[truth[record.test]]
                columns["prediction"] = names[record.outputs.argmax(axis=1)]
                columns["left_shuffled"] = names[record.left_shuffled]
                columns["right_shuffled"] = names[record.right_shuffled] if row["right"] else [""] * count
                columns |= {f"p_{name}": record.outputs[:, index] for index, name in enumerate(classes)}
            frames.append(pd.DataFrame(columns))
        content = io.BytesIO()
        pd.concat(frames, ignore_index=True).to_parquet(content, index=False)
        write_atomically(self.path / "predictions.parquet", content.getvalue(), option=_OPTION)

    def write_heads(self, result: CellResult) -> None:
        """Write the parameters and scalers of trained heads, one safetensors file per cell, fold and seed."""
        from safetensors.torch import save

        cell = result.job.cell
        for head in result.heads:
            tensors = {name: tensor.contiguous() for name, tensor in head.parameters.items()}
            scalers = (("left", head.left_scaler), ("right", head.right_scaler), ("target", head.target_scaler))
            for side, scaler in scalers:
                if scaler is not None:
                    tensors |= {f"{side}_scaler.mean": scaler.mean, f"{side}_scaler.std": scaler.std}
            what = (*filter(None, (cell.left, cell.right, cell.fusion)), *map(_plain, cell.variant))
            name = "_".join((*what, _plain(head.task.fold), str(head.task.seed)))
            metadata = {"row": json.dumps(_row(result.job, head), sort_keys=True)}
            write_atomically(self.path / "heads" / f"{name}.safetensors", save(tensors, metadata), option=_OPTION)


def _plain(name: str) -> str:
    """A fold's name as part of a file name."""
    return "".join(letter if letter.isalnum() else "-" for letter in name)


def _number(value: float) -> float | None:
    """For JSON, which has no NaN."""
    return round(float(value), 6) if math.isfinite(value) else None


def _row(job: Job, head: HeadResult) -> dict[str, Any]:
    """The result row of one head."""
    test = head.task.test
    measure = measure_of("dimensions" if job.dimensions else "emotion", job.dimensions)
    together = [""] * len(test)
    if job.dimensions:
        tallies = speaker_sums(job.values[test], head.test_outputs[None], together)
        more = {}
    else:
        predictions = head.test_outputs.argmax(axis=1)
        tallies = speaker_confusions(job.labels[test], predictions[None], together, num_classes=len(job.classes))
        more = {"ece": float(expected_calibration_error(job.labels[test], head.test_outputs))}
    scores = {name: score(tallies, metric) for name, metric in measure.metrics.items()}
    described = dict(job.description)
    left, right = described.pop("left"), described.pop("right")
    return {
        **described,
        "key": job.key,
        "cell": job.cell.title,
        "left": job.cell.left,
        "right": job.cell.right,
        "left_source": left,
        "right_source": right,
        "fold": head.task.fold,
        "seed": head.task.seed,
        "train_utterances": len(head.task.train),
        "validation_utterances": len(head.task.validation),
        "test_utterances": len(head.task.test),
        # A correlation with a constant is not defined, and JSON has no NaN.
        "metrics": {name: None if math.isnan(value) else value for name, value in (scores | more).items()},
        "best_epoch": head.best_epoch,
        "curves": {name: [_number(value) for value in values] for name, values in head.curves.items()},
        "diagnostics": {name: _number(value) for name, value in head.diagnostics.items()},
    }
