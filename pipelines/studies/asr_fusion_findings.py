"""What the study ``asr-fusion`` found: scores, and the files of its run; made again from finished models at any time.

Scores are pooled over folds and averaged over seeds; intervals are by bootstrap over speakers, differences by the paired test of
``evaluation/statistics.py``, corrected after Holm within each question. WER is errors over words, pooled likewise; the words of an
utterance are those of the manifest's transcript.

Word error rates of two texts of the same recordings: of what CTC on the shared stack decodes for test speakers (``λ`` above 0),
and of the transcripts that the study was given, which another model made.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.corpora.manifest import Manifest
from pipelines.corpora.protocols import Split
from pipelines.evaluation.measures import Measure, measure_of
from pipelines.evaluation.results import CellPredictions, CellScore, Estimate, score_predictions
from pipelines.evaluation.statistics import (
    Difference,
    Interval,
    Resampled,
    bootstrap_interval,
    resample,
    score,
    speaker_confusions,
    speaker_sums,
)
from pipelines.evaluation.word_errors import edit_counts, normalise
from pipelines.files import write_atomically
from pipelines.studies.frame_runs import FrameRecord, described_key, number
from pipelines.training.frame_data import FrameDataset
from pipelines.training.frame_trainer import FrameConfig, FrameSystem
from pipelines.training.metrics import expected_calibration_error

__all__ = ["STREAM_TITLES", "Findings", "LayerChanges", "System", "SystemScore", "write_summaries"]

STREAM_TITLES = {"acoustic": "acoustic", "asr": "ASR hidden", "text": "text"}
"""Streams as tables call them."""

Floats = NDArray[np.float64]

_NO_WER = Estimate(math.nan, Interval(math.nan, math.nan, 0.95))


@dataclass(frozen=True, kw_only=True)
class System:
    """One row of the table.

    Attributes:
        frames: what is fused how.
        sources: stream to the name of its source.
        names: stream to what its encoder is called.
        transcripts: kind of transcripts; ``none`` without the text stream.
        fine_tuned: last layers of the acoustic encoder that were trained; 0 where it is frozen.
    """

    frames: FrameSystem
    sources: Mapping[str, str]
    names: Mapping[str, str]
    transcripts: str
    fine_tuned: int = 0

    @property
    def left(self) -> str:
        """The first stream's encoder."""
        return next(iter(self.names.values()))

    @property
    def right(self) -> str:
        """The others; empty for one stream alone."""
        return "+".join(list(self.names.values())[1:])

    @property
    def fusion(self) -> str:
        """Head, with its options."""
        if self.fine_tuned:
            return f"fine-tuned (last {self.fine_tuned})"
        return " ".join((self.frames.head, *self.frames.options.values()))

    @property
    def title(self) -> str:
        """What it is called, different for every system of a study."""
        weight = f" λ={self.frames.ctc_weight:g}" if self.frames.ctc_weight else ""
        return f"{'+'.join(self.names.values())} {self.fusion}{weight}"


@dataclass(frozen=True)
class SystemScore:
    """The scores of one system.

    Attributes:
        system: which one.
        score: emotion.
        drops: stream to what of the score is lost when it is shuffled among the test utterances.
        wer: of what its CTC decodes, errors over words; NaN without CTC.
        unsayable: share of the rows trained on whose text does not fit into their frames; NaN without CTC.
        parameters: numbers that were trained, of one model.
    """

    system: System
    score: CellScore
    drops: Mapping[str, Difference]
    wer: Estimate
    unsayable: float
    parameters: int


@dataclass(frozen=True, kw_only=True)
class LayerChanges:
    """How alike the layers of an encoder before and after fine-tuning are, on test utterances, mean over folds.

    Attributes:
        encoder: name.
        trained: how many of the last layers were trained.
        layers: R names.
        cka: float64 [R, R], debiased linear CKA of every layer after (rows) with every layer before (columns).
        pwcca: float64 [R], of every layer after with itself before.
        checkpoints: folders of the trained encoders.
    """

    encoder: str
    trained: int
    layers: tuple[str, ...]
    cka: Floats = field(repr=False)
    pwcca: Floats = field(repr=False)
    checkpoints: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Everything that was trained, and what is made of it.

    Attributes:
        manifest: the corpus.
        dataset: its utterances.
        split: folds.
        systems: what was trained.
        records: per system, every fold under every seed.
        descriptions: per system, what its numbers depend on.
        seeds: number of seeds.
        train: hyper-parameters.
        main_weight: the λ under which heads and transcripts are compared.
        heard: kind of transcripts to the texts of all utterances.
        random: encoders with random weights.
        changes: what fine-tuning did to layers; None without.
    """

    manifest: Manifest = field(repr=False)
    dataset: FrameDataset
    split: Split = field(repr=False)
    systems: tuple[System, ...]
    records: tuple[tuple[FrameRecord, ...], ...] = field(repr=False)
    descriptions: tuple[Mapping[str, Any], ...] = field(repr=False)
    seeds: int
    train: FrameConfig
    main_weight: float
    heard: Mapping[str, tuple[str, ...]] = field(repr=False)
    random: tuple[str, ...]
    changes: LayerChanges | None = None

    @cached_property
    def tested(self) -> NDArray[np.int64]:
        """Positions of all test utterances, sorted."""
        return np.unique(np.concatenate([record.test for record in self.records[0]]))

    @cached_property
    def speakers(self) -> list[str]:
        """Of the test utterances."""
        return [self.dataset.speakers[row] for row in self.tested]

    @cached_property
    def scores(self) -> tuple[SystemScore, ...]:
        """One per system."""
        return tuple(self._scored(*pair) for pair in zip(self.systems, self.records, strict=True))

    @property
    def measure(self) -> Measure:
        """How systems are judged."""
        return measure_of(self.dataset.target, self.dataset.dimensions)

    @cached_property
    def resampled(self) -> Resampled:
        """The score that decides, of all systems under the same draws of speakers."""
        return resample([one.score.tallies for one in self.scores], self.measure.metric)

    @cached_property
    def heard_wer(self) -> dict[str, Estimate]:
        """Kind of transcripts to its WER on the test utterances."""
        found = {}
        for kind, texts in self.heard.items():
            counts = self._word_counts([[texts[row] for row in self.tested]])
            found[kind] = Estimate(score(counts, _wer_of), bootstrap_interval(counts, _wer_of))
        return found

    def difference(self, first: int, second: int) -> Difference:
        """The score of one system minus that of another."""
        return self.resampled.difference([first], [second])

    def _scored(self, system: System, records: Sequence[FrameRecord]) -> SystemScore:
        tested, seeds = self.tested, range(self.seeds)
        shape = (len(seeds), len(tested), self.dataset.num_outputs)
        outputs = np.zeros(shape, dtype=np.float32)
        streams = tuple(records[0].shuffled)
        shuffled = {name: np.zeros(shape, dtype=np.float32) for name in streams}
        texts: list[list[str]] = [[""] * len(tested) for _ in seeds]
        folds = np.zeros(len(tested), dtype=object)
        for record in records:
            seed, rows = int(record.row["seed"]), np.searchsorted(tested, record.test)
            outputs[seed, rows] = record.outputs
            for name in streams:
                shuffled[name][seed, rows] = record.shuffled[name]
            folds[rows] = str(record.row["fold"])
            for row, text in zip(rows.tolist(), record.hypotheses, strict=False):
                texts[seed][row] = text
        truth = self.dataset.truth[tested]
        without = {name: self._predictions(one) for name, one in shuffled.items()}
        plain = self._predictions(outputs)
        found = score_predictions(
            CellPredictions(
                truth=truth,
                speakers=self.speakers,
                folds=list(folds),
                outputs=outputs,
                left_shuffled=without[streams[0]] if streams else plain,
                right_shuffled=without[streams[-1]] if len(streams) > 1 else None,
                diagnostics={},
                dimensions=self.dataset.dimensions,
            ),
            left=system.left,
            right=system.right,
            fusion=system.fusion,
            cell=system.title,
        )
        together = resample([found.tallies, *map(self._tallied, without.values())], self.measure.metric)
        counts = self._word_counts(texts) if system.frames.ctc_weight else None
        return SystemScore(
            system=system,
            score=found,
            drops={
                name: together.difference([0], [position], ranks=False)
                for position, name in enumerate(streams, start=1)
            },
            wer=_NO_WER if counts is None else Estimate(score(counts, _wer_of), bootstrap_interval(counts, _wer_of)),
            unsayable=_mean([record.row["unsayable"] for record in records]),
            parameters=int(records[0].row["parameters"]),
        )

    def _predictions(self, outputs: NDArray[np.float32]) -> NDArray[Any]:
        """Classes or values of outputs [..., C or K]."""
        return outputs if self.dataset.dimensions else outputs.argmax(axis=-1).astype(np.int64)

    def _tallied(self, predicted: NDArray[Any]) -> Floats:
        """Tallies by speaker and seed of predictions [S, n] or [S, n, K] of the test utterances."""
        truth = self.dataset.truth[self.tested]
        if self.dataset.dimensions:
            return speaker_sums(truth, predicted, self.speakers)
        return speaker_confusions(truth, predicted, self.speakers, num_classes=len(self.dataset.classes))

    def _word_counts(self, texts: Sequence[Sequence[str]]) -> Floats:
        """Errors and words per speaker and seed, float64 [K, S, 2], of texts [S][n] of the test utterances."""
        names, speaker = np.unique(np.asarray(self.speakers, dtype=str), return_inverse=True)
        counts = np.zeros((len(names), len(texts), 2))
        for seed, spoken in enumerate(texts):
            for position, (row, text) in enumerate(zip(self.tested.tolist(), spoken, strict=True)):
                counts[speaker[position], seed] += _errors(self.dataset.transcripts[row], text)
        return counts


def _mean(values: Sequence[float | None]) -> float:
    """Mean of what is known; NaN for nothing."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else math.nan


@lru_cache(maxsize=100_000)
def _errors(reference: str, hypothesis: str) -> tuple[int, int]:
    """Errors and words of one utterance; nothing where the reference has no words."""
    said = normalise(reference)
    if not said:
        return 0, 0
    edits = edit_counts(said, normalise(hypothesis))
    return edits.total - edits.hits + edits.insertions, edits.total


def _wer_of(counts: Floats) -> Floats:
    """[..., 2] errors and words to the WER [...]; NaN without words."""
    words = counts[..., 1]
    rates: Floats = np.divide(counts[..., 0], words, out=np.full(words.shape, np.nan), where=words > 0)
    return rates


# ---------------------------------------------------------------------------------------------------------------------
# Files


def write_summaries(run_dir: Path, findings: Findings) -> None:
    """``results.jsonl`` and ``predictions.parquet``, as those of a comparison, with columns of streams and texts besides."""
    import pandas as pd

    dataset, metrics = findings.dataset, findings.measure.metrics
    lines, frames = [], []
    for system, description, records in zip(findings.systems, findings.descriptions, findings.records, strict=True):
        names = {"cell": system.title, "left": system.left, "right": system.right, "fusion": system.fusion}
        for record in records:
            count, streams = len(record.test), list(record.shuffled)
            tallies = _tally(dataset, record.test, record.outputs)
            found = {name: number(score(tallies, metric)) for name, metric in metrics.items()}
            if not dataset.dimensions:
                labels = dataset.labels[record.test]
                found["ece"] = number(float(expected_calibration_error(labels, record.outputs)))
            errors = [
                _errors(dataset.transcripts[row], text)
                for row, text in zip(record.test.tolist(), record.hypotheses, strict=False)
            ]
            found["wer"] = number(float(_wer_of(np.sum(errors, axis=0, dtype=np.float64)))) if errors else None
            lines.append(
                {
                    **description,
                    **names,
                    "streams": list(system.frames.streams),
                    "transcripts": system.transcripts,
                    **record.row,
                    "key": described_key(description),
                    "metrics": found,
                }
            )
            columns: dict[str, Any] = {name: [value] * count for name, value in names.items()}
            columns |= {name: [record.row[name]] * count for name in ("fold", "seed")}
            columns["utterance_id"] = [dataset.utterance_ids[row] for row in record.test]
            columns["speaker"] = [dataset.speakers[row] for row in record.test]
            nothing = np.full(record.outputs.shape, np.nan, np.float32)
            shuffled = {
                "left_": record.shuffled[streams[0]] if streams else record.outputs,
                "right_": record.shuffled[streams[-1]] if len(streams) > 1 else nothing,
                **{f"{name}_": record.shuffled.get(name, nothing) for name in STREAM_TITLES},
            }
            if dataset.dimensions:
                for place, name in enumerate(dataset.dimensions):
                    columns[name] = dataset.values[record.test, place]
                    columns[f"predicted_{name}"] = record.outputs[:, place]
                    columns |= {f"{of}shuffled_{name}": one[:, place] for of, one in shuffled.items()}
            else:
                columns["label"] = _class_names(dataset, labels)
                columns["prediction"] = _class_names(dataset, record.outputs.argmax(axis=1))
                for of, one in shuffled.items():
                    known = not np.isnan(one).all()
                    columns[f"{of}shuffled"] = _class_names(dataset, one.argmax(axis=1)) if known else [""] * count
                columns |= {f"p_{name}": record.outputs[:, place] for place, name in enumerate(dataset.classes)}
            columns["hypothesis"] = list(record.hypotheses) or [""] * count
            frames.append(pd.DataFrame(columns))
    text = "\n".join(json.dumps(line, sort_keys=True) for line in lines) + "\n"
    write_atomically(run_dir / "results.jsonl", text, option="--runs-dir")
    content = io.BytesIO()
    pd.concat(frames, ignore_index=True).to_parquet(content, index=False)
    write_atomically(run_dir / "predictions.parquet", content.getvalue(), option="--runs-dir")


def _tally(dataset: FrameDataset, rows: NDArray[np.int64], outputs: NDArray[np.float32]) -> Floats:
    """Tallies [1, 1, …] of the predictions of one model, all speakers together."""
    together = [""] * len(rows)
    if dataset.dimensions:
        return speaker_sums(dataset.values[rows], outputs[None], together)
    predicted = outputs.argmax(axis=1)
    return speaker_confusions(dataset.labels[rows], predicted[None], together, num_classes=len(dataset.classes))


def _class_names(dataset: FrameDataset, classes: NDArray[np.int64]) -> list[str]:
    return [dataset.classes[index] for index in classes]
