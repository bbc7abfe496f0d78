"""The run folder: what one ``train`` or ``compare`` wrote, and how it is read back.

======================== ==========================================================================================
file                     content
======================== ==========================================================================================
``config.json``          what was asked for, and with which versions
``parts/*.npz``          finished jobs, one file each: result rows and test predictions; what a resumed run builds on
``results.jsonl``        one result row per pair × fusion × fold × seed
``predictions.parquet``  every test prediction: cell, fold, seed, utterance, speaker, label, prediction, the predictions with
                         either input shuffled, class probabilities; every statistic can be made again from it
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
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.evaluation.statistics import (
    METRICS,
    Interval,
    bootstrap_intervals,
    pseudo_values,
    resample,
    score,
    speaker_confusions,
    variance_components,
)
from pipelines.files import write_atomically
from pipelines.training.grid import Cell, CellResult, Job
from pipelines.training.metrics import expected_calibration_error, unweighted_average_recall
from pipelines.training.trainer import HeadResult

__all__ = ["CellPredictions", "CellScore", "HeadRecord", "RunFolder", "score_cell", "score_predictions"]


_OPTION = "--runs-dir"


@dataclass(frozen=True)
class HeadRecord:
    """One trained head, as read back from a run.

    Attributes:
        row: the result row (JSON values).
        test: int64 [m], positions of the test utterances among the dataset's.
        probabilities: float32 [m, C].
        left_shuffled: int64 [m], predictions with the left input shuffled among the test utterances.
        right_shuffled: int64 [m]; equal to the predictions for a single representation.
    """

    row: Mapping[str, Any]
    test: NDArray[np.int64]
    probabilities: NDArray[np.float32]
    left_shuffled: NDArray[np.int64]
    right_shuffled: NDArray[np.int64]


@dataclass(frozen=True)
class CellPredictions:
    """What the heads of one cell predicted for every test utterance.

    Attributes:
        labels: int64 [n].
        speakers: n speakers.
        folds: n names, of the fold that tested the utterance.
        probabilities: float32 [S, n, C].
        left_shuffled: int64 [S, n], predictions with the left input shuffled.
        right_shuffled: int64 [S, n]; None for a single representation.
        diagnostics: name to its mean over heads.
    """

    labels: NDArray[np.int64]
    speakers: Sequence[str]
    folds: Sequence[str]
    probabilities: NDArray[np.float32]
    left_shuffled: NDArray[np.int64]
    right_shuffled: NDArray[np.int64] | None
    diagnostics: Mapping[str, float]


@dataclass(frozen=True)
class CellScore:
    """The scores of one cell over all folds and seeds; see ``evaluation.statistics`` for what is pooled and averaged.

    Attributes:
        left: encoder.
        right: encoder; empty for a single representation.
        fusion: name.
        cell: title, different for every cell of a run.
        uar: between 0 and 1, as are all scores.
        uar_interval: bootstrap over speakers.
        uar_seed_std: standard deviation of the UAR over seeds (0 for one seed).
        uar_fold_std: standard deviation over folds of their own UAR, mean over seeds (0 for one fold).
        uar_speaker_std: standard deviation between speakers, as variance component; NaN for one speaker.
        accuracy: also called weighted accuracy.
        accuracy_interval: bootstrap over speakers.
        macro_f1: over the classes that occur.
        macro_f1_interval: bootstrap over speakers.
        ece: expected calibration error, mean over seeds.
        left_drop: UAR lost when the left input is shuffled among the test utterances.
        left_drop_interval: paired bootstrap over speakers.
        left_drop_p: two-sided.
        right_drop: likewise for the right input; NaN for a single representation, as are the next two.
        right_drop_interval: paired bootstrap over speakers.
        right_drop_p: two-sided.
        folds: number of folds.
        seeds: number of seeds.
        utterances: tested utterances.
        speakers: K names, sorted.
        counts: float64 [K, S, C, C], confusion matrices by speaker and seed, true classes in rows.
        left_shuffled_counts: float64 [K, S, C, C], with the left input shuffled.
        right_shuffled_counts: likewise; None for a single representation.
        diagnostics: what heads record about themselves (shares, norms), mean over heads.
    """

    left: str
    right: str
    fusion: str
    cell: str
    uar: float
    uar_interval: Interval
    uar_seed_std: float
    uar_fold_std: float
    uar_speaker_std: float
    accuracy: float
    accuracy_interval: Interval
    macro_f1: float
    macro_f1_interval: Interval
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
    counts: NDArray[np.float64] = field(repr=False, compare=False)
    left_shuffled_counts: NDArray[np.float64] = field(repr=False, compare=False)
    right_shuffled_counts: NDArray[np.float64] | None = field(repr=False, compare=False)
    diagnostics: Mapping[str, float] = field(default_factory=dict)

    def to_record(self) -> dict[str, Any]:
        """Flat, for CSV: numbers and names, ``speakers`` as their number, diagnostics as ``diagnostic_<name>``."""
        record: dict[str, Any] = {}
        for one in fields(self):
            value = getattr(self, one.name)
            if isinstance(value, Interval):
                stem = one.name.removesuffix("_interval")
                record |= {f"{stem}_low": value.low, f"{stem}_high": value.high}
            elif one.name == "speakers":
                record[one.name] = len(value)
            elif isinstance(value, str | int | float):
                record[one.name] = value
        return record | {f"diagnostic_{name}": value for name, value in sorted(self.diagnostics.items())}


def score_cell(
    cell: Cell, heads: Sequence[HeadRecord], *, labels: NDArray[np.int64], speakers: Sequence[str], num_classes: int
) -> CellScore:
    """Score a cell from its heads.

    Args:
        cell: which one.
        heads: every fold under every seed.
        labels: int64 [n], of the dataset's utterances.
        speakers: n speakers.
        num_classes: C.
    """
    seeds = sorted({int(head.row["seed"]) for head in heads})
    tested = np.unique(np.concatenate([head.test for head in heads]))
    probabilities = np.zeros((len(seeds), len(tested), num_classes), dtype=np.float32)
    shuffled = np.zeros((2, len(seeds), len(tested)), dtype=np.int64)
    folds = np.zeros(len(tested), dtype=object)
    for head in heads:
        seed, rows = seeds.index(int(head.row["seed"])), np.searchsorted(tested, head.test)
        probabilities[seed, rows] = head.probabilities
        shuffled[0, seed, rows] = head.left_shuffled
        shuffled[1, seed, rows] = head.right_shuffled
        folds[rows] = str(head.row["fold"])
    predictions = CellPredictions(
        labels=labels[tested],
        speakers=[speakers[position] for position in tested],
        folds=list(folds),
        probabilities=probabilities,
        left_shuffled=shuffled[0],
        right_shuffled=shuffled[1] if cell.right else None,
        diagnostics=mean_diagnostics([head.row for head in heads]),
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
    num_seeds, _, num_classes = predictions.probabilities.shape
    labels, folds = predictions.labels, np.asarray(predictions.folds, dtype=object)
    plain = predictions.probabilities.argmax(axis=2)  # plain is [S, n]

    def confusions(predicted: NDArray[np.int64]) -> NDArray[np.float64]:
        return speaker_confusions(labels, predicted, predictions.speakers, num_classes=num_classes)

    counts, without_left = confusions(plain), confusions(predictions.left_shuffled)
    without_right = None if predictions.right_shuffled is None else confusions(predictions.right_shuffled)
    by_seed = METRICS["uar"](counts.sum(axis=0))
    by_fold = np.array(
        [
            unweighted_average_recall(labels[folds == name], plain[:, folds == name], num_classes).mean()
            for name in sorted(set(folds))
        ]
    )
    intervals = bootstrap_intervals(counts, METRICS)
    shuffled = resample([counts, without_left, *([without_right] if without_right is not None else [])])
    drops = [shuffled.difference([0], [position], ranks=False) for position in range(1, len(shuffled.values))]
    nowhere = Interval(math.nan, math.nan, intervals["uar"].level)
    speakers = tuple(sorted(set(predictions.speakers)))
    between = variance_components(pseudo_values(counts, METRICS["uar"])).speakers if len(speakers) > 1 else math.nan
    return CellScore(
        left=left,
        right=right,
        fusion=fusion,
        cell=cell,
        uar=score(counts, METRICS["uar"]),
        uar_interval=intervals["uar"],
        uar_seed_std=float(by_seed.std(ddof=1)) if num_seeds > 1 else 0.0,
        uar_fold_std=float(by_fold.std(ddof=1)) if len(by_fold) > 1 else 0.0,
        uar_speaker_std=math.sqrt(between),
        accuracy=score(counts, METRICS["accuracy"]),
        accuracy_interval=intervals["accuracy"],
        macro_f1=score(counts, METRICS["macro_f1"]),
        macro_f1_interval=intervals["macro_f1"],
        ece=float(expected_calibration_error(labels, predictions.probabilities).mean()),
        left_drop=drops[0].value,
        left_drop_interval=drops[0].interval,
        left_drop_p=drops[0].p,
        right_drop=drops[1].value if right else math.nan,
        right_drop_interval=drops[1].interval if right else nowhere,
        right_drop_p=drops[1].p if right else math.nan,
        folds=len(by_fold),
        seeds=num_seeds,
        utterances=len(labels),
        speakers=speakers,
        counts=counts,
        left_shuffled_counts=without_left,
        right_shuffled_counts=without_right,
        diagnostics=dict(predictions.diagnostics),
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
            plain = head.test_probabilities.argmax(axis=1)
            shuffled = (head.left_shuffled_probabilities, head.right_shuffled_probabilities)
            arrays[f"test_{index}"] = head.task.test
            arrays[f"probabilities_{index}"] = head.test_probabilities
            for name, probabilities in zip(("left", "right"), shuffled, strict=True):
                predictions = plain if probabilities is None else probabilities.argmax(axis=1)
                arrays[f"{name}_{index}"] = predictions.astype(np.int64)
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
                                row=row,
                                test=arrays[f"test_{index}"],
                                probabilities=arrays[f"probabilities_{index}"],
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
        labels: NDArray[np.int64],
        classes: Sequence[str],
    ) -> None:
        """Write ``predictions.parquet``: one line per head and test utterance; ``right_shuffled`` is empty for a single."""
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
            columns["label"] = names[labels[record.test]]
            columns["prediction"] = names[record.probabilities.argmax(axis=1)]
            columns["left_shuffled"] = names[record.left_shuffled]
            columns["right_shuffled"] = names[record.right_shuffled] if row["right"] else [""] * count
            columns |= {f"p_{name}": record.probabilities[:, index] for index, name in enumerate(classes)}
            frames.append(pd.DataFrame(columns))
        content = io.BytesIO()
        pd.concat(frames, ignore_index=True).to_parquet(content, index=False)
        write_atomically(self.path / "predictions.parquet", content.getvalue(), option=_OPTION)

    def write_heads(self, result: CellResult) -> None:
        """Write the parameters and scalers of trained heads, one safetensors file per fold and seed."""
        from safetensors.torch import save

        cell = result.job.cell
        for head in result.heads:
            tensors = {name: tensor.contiguous() for name, tensor in head.parameters.items()}
            for side, scaler in (("left", head.left_scaler), ("right", head.right_scaler)):
                if scaler is not None:
                    tensors |= {f"{side}_scaler.mean": scaler.mean, f"{side}_scaler.std": scaler.std}
            name = "_".join(
                filter(None, (cell.left, cell.right, cell.fusion, _plain(head.task.fold), str(head.task.seed)))
            )
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
    labels = job.labels[head.task.test]
    predictions = head.test_probabilities.argmax(axis=1)
    counts = speaker_confusions(labels, predictions[None], [""] * len(labels), num_classes=len(job.classes))
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
        "metrics": {
            **{name: score(counts, metric) for name, metric in METRICS.items()},
            "ece": float(expected_calibration_error(labels, head.test_probabilities)),
        },
        "best_epoch": head.best_epoch,
        "curves": {name: [_number(value) for value in values] for name, values in head.curves.items()},
        "diagnostics": {name: _number(value) for name, value in head.diagnostics.items()},
    }
