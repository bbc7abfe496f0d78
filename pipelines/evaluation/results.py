"""The run folder: what one ``train`` or ``compare`` wrote, and how it is read back.

======================== ==========================================================================================
file                     content
======================== ==========================================================================================
``config.json``          what was asked for, and with which versions
``parts/*.npz``          finished jobs, one file each: result rows and test predictions; what a resumed run builds on
``results.jsonl``        one result row per pair × fusion × fold × seed
``predictions.parquet``  every test prediction: utterance, pair, fusion, fold, seed, label, class probabilities
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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.evaluation.statistics import METRICS, Interval, bootstrap_interval, score, speaker_confusions
from pipelines.files import write_atomically
from pipelines.training.grid import Cell, CellResult, Job
from pipelines.training.trainer import HeadResult

__all__ = ["CellScore", "HeadRecord", "RunFolder", "score_cell"]


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
class CellScore:
    """The scores of one cell over all folds and seeds; see ``evaluation.statistics`` for what is pooled and averaged.

    Attributes:
        left: encoder.
        right: encoder; empty for a single representation.
        fusion: name.
        uar: between 0 and 1, as are all scores.
        uar_interval: bootstrap over speakers.
        uar_seed_std: standard deviation of the UAR over seeds (0 for one seed).
        accuracy: also called weighted accuracy.
        accuracy_interval: bootstrap over speakers.
        macro_f1: over the classes that occur.
        macro_f1_interval: bootstrap over speakers.
        left_drop: UAR lost when the left input is shuffled among the test utterances.
        right_drop: likewise for the right input; NaN for a single representation.
        folds: number of folds.
        seeds: number of seeds.
        utterances: tested utterances.
    """

    left: str
    right: str
    fusion: str
    uar: float
    uar_interval: Interval
    uar_seed_std: float
    accuracy: float
    accuracy_interval: Interval
    macro_f1: float
    macro_f1_interval: Interval
    left_drop: float
    right_drop: float
    folds: int
    seeds: int
    utterances: int

    def to_record(self) -> dict[str, Any]:
        """Flat, for CSV."""
        record: dict[str, Any] = {}
        for name, value in asdict(self).items():
            if isinstance(value, dict):
                stem = name.removesuffix("_interval")
                record |= {f"{stem}_low": value["low"], f"{stem}_high": value["high"]}
            else:
                record[name] = value
        return record


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
    folds = sorted({str(head.row["fold"]) for head in heads})
    tested = np.unique(np.concatenate([head.test for head in heads]))
    who = [speakers[position] for position in tested]

    def confusions(predicted: Callable[[HeadRecord], NDArray[np.int64]]) -> NDArray[np.float64]:
        predictions = np.zeros((len(seeds), len(labels)), dtype=np.int64)
        for head in heads:
            predictions[seeds.index(int(head.row["seed"])), head.test] = predicted(head)
        return speaker_confusions(labels[tested], predictions[:, tested], who, num_classes=num_classes)

    counts = confusions(lambda head: head.probabilities.argmax(axis=1))
    by_seed = METRICS["uar"](counts.sum(axis=0))
    scores = {name: score(counts, metric) for name, metric in METRICS.items()}
    intervals = {name: bootstrap_interval(counts, metric) for name, metric in METRICS.items()}
    without_left = score(confusions(lambda head: head.left_shuffled), METRICS["uar"])
    without_right = score(confusions(lambda head: head.right_shuffled), METRICS["uar"])
    return CellScore(
        left=cell.left,
        right=cell.right,
        fusion=cell.fusion,
        uar=scores["uar"],
        uar_interval=intervals["uar"],
        uar_seed_std=float(by_seed.std(ddof=1)) if len(seeds) > 1 else 0.0,
        accuracy=scores["accuracy"],
        accuracy_interval=intervals["accuracy"],
        macro_f1=scores["macro_f1"],
        macro_f1_interval=intervals["macro_f1"],
        left_drop=scores["uar"] - without_left,
        right_drop=scores["uar"] - without_right if cell.right else float("nan"),
        folds=len(folds),
        seeds=len(seeds),
        utterances=len(tested),
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
        labels: NDArray[np.int64],
        classes: Sequence[str],
    ) -> None:
        """Write ``predictions.parquet``: one line per head and test utterance."""
        import pandas as pd

        frames = []
        for record in records:
            row, count = record.row, len(record.test)
            columns: dict[str, Any] = {
                name: [row[name]] * count for name in ("left", "right", "fusion", "fold", "seed")
            }
            columns["utterance_id"] = [utterance_ids[position] for position in record.test]
            columns["label"] = [classes[label] for label in labels[record.test]]
            columns["prediction"] = [classes[label] for label in record.probabilities.argmax(axis=1)]
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
        "left": job.cell.left,
        "right": job.cell.right,
        "left_source": left,
        "right_source": right,
        "fold": head.task.fold,
        "seed": head.task.seed,
        "train_utterances": len(head.task.train),
        "validation_utterances": len(head.task.validation),
        "test_utterances": len(head.task.test),
        "metrics": {name: score(counts, metric) for name, metric in METRICS.items()},
        "best_epoch": head.best_epoch,
        "curves": {name: [_number(value) for value in values] for name, values in head.curves.items()},
        "diagnostics": {name: _number(value) for name, value in head.diagnostics.items()},
    }
