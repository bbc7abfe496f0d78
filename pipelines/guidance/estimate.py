"""What a command would do, how long it would take and how much disk it would fill: from a short measurement on this machine.

Nothing is written but temporary files. Times are those of a few recordings, or of a few epochs of a few heads, scaled to the
whole: about right on a machine that stays as busy as it is now. The caller decides which weights an encoder is loaded with; random
ones cost the same and need no download.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pipelines.audio.conditions import Distortion
from pipelines.corpora.manifest import Manifest
from pipelines.encoders.base import Encoder
from pipelines.errors import AudioError
from pipelines.evaluation.results import RunFolder
from pipelines.extraction.decoding import DecodedClip, DecodeSettings, decode_clip
from pipelines.extraction.texts import CorpusTexts
from pipelines.extraction.worker import encode_clips, token_clips
from pipelines.locations import Location
from pipelines.store.embeddings import FrameSpec, open_store, store_path
from pipelines.studies.pairs import ComparisonConfig, prepare, train_config
from pipelines.training.grid import STACK, Cell, Job, choose_device, make_job, mapped_sources, train_job

__all__ = ["ComparisonEstimate", "ExtractionEstimate", "estimate_comparison", "estimate_extraction"]

_CLIPS = (12, 48, 192)
_LONG_ENOUGH_S = 1.0  # of work; where fewer recordings take less, more of them are tried
_EPOCHS = 2


@dataclass(frozen=True)
class ExtractionEstimate:
    """One encoder under one condition.

    Attributes:
        utterances: of the corpus.
        done: that the store holds already, failures included.
        audio_s: seconds of audio still to be encoded; 0 for texts.
        seconds: that they would take.
        disk_bytes: that the whole store would take, at most: compression makes it a little smaller.
        measured_s: seconds of audio that were measured; 0 for texts.
    """

    utterances: int
    done: int
    audio_s: float
    seconds: float
    disk_bytes: int
    measured_s: float


@dataclass(frozen=True)
class ComparisonEstimate:
    """A comparison.

    Attributes:
        heads: of all cells, folds and seeds.
        finished: that the run holds already.
        seconds: that the others would take.
        data_bytes: of embeddings that training maps into memory.
    """

    heads: int
    finished: int
    seconds: float
    data_bytes: int


def estimate_extraction(
    manifest: Manifest,
    encoder: Encoder,
    *,
    cache_dir: Location,
    distortion: Distortion | None = None,
    frames: FrameSpec | None = None,
    texts: CorpusTexts | None = None,
) -> ExtractionEstimate:
    """Encode a few recordings, or texts, from all over the corpus, and tell what all would take.

    Args:
        manifest: the corpus.
        encoder: on the device that it would run on.
        cache_dir: folder of the stores.
        distortion: the condition; None for clean.
        frames: which frames would be kept.
        texts: what an encoder of text reads.

    Raises:
        AudioError: none of the recordings that were tried can be read.
    """
    spec = encoder.spec
    condition = texts.condition if texts is not None else distortion.name if distortion is not None else "clean"
    todo = len(manifest) - (done := _rows_done(manifest, cache_dir, spec.name, condition))
    settings = None if texts is not None else DecodeSettings(spec.sample_rate_hz, _root(manifest), distortion)

    def some(count: int) -> list[DecodedClip]:
        if settings is not None:
            return _some_clips(manifest, settings, count)
        assert texts is not None
        chosen = [text for text in texts.texts if text is not None][:count]
        return token_clips(chosen, [""] * len(chosen), encoder)

    encode_clips(some(1), encoder)  # the first call of a model costs more than the next
    for count in _CLIPS:
        started = time.perf_counter()
        clips = some(count)
        encode_clips(clips, encoder)
        took_s = time.perf_counter() - started
        if took_s > _LONG_ENOUGH_S or count >= len(manifest):
            break
    measured_s = sum(clip.duration_s for clip in clips)
    durations = manifest.table["duration_s"].to_numpy(dtype=float)
    mean_s = float(np.nanmean(durations)) if np.isfinite(durations).any() else measured_s / len(clips)
    per_clip_s = took_s / len(clips) if texts is not None else took_s * mean_s / measured_s
    numbers = 2 * 4 * len(manifest) * len(spec.representations) * spec.dim
    if frames is not None:
        tokens = sum(len(clip.tokens) for clip in clips if clip.tokens is not None) // len(clips)
        per_clip = tokens if texts is not None else encoder.num_frames(round(mean_s * spec.sample_rate_hz))
        width = 2 if frames.dtype == "float16" else 4
        numbers += len(manifest) * per_clip * spec.dim * width * len(frames.representations)
    return ExtractionEstimate(
        utterances=len(manifest),
        done=done,
        audio_s=0.0 if texts is not None else todo * mean_s,
        seconds=todo * per_clip_s,
        disk_bytes=numbers,
        measured_s=measured_s,
    )


def _root(manifest: Manifest) -> Path:
    assert manifest.root is not None  # its paths have been asked for
    return manifest.root


def _rows_done(manifest: Manifest, cache_dir: Location, encoder: str, condition: str) -> int:
    path = store_path(cache_dir, manifest.corpus, encoder, condition)
    if not path.is_dir():
        return 0
    todo, _, _ = open_store(path, manifest_digest=manifest.digest, complete=False).counts
    return len(manifest) - todo


def _some_clips(manifest: Manifest, settings: DecodeSettings, count: int) -> list[DecodedClip]:
    """Recordings from all over the corpus, always the same; those that cannot be read are passed over."""
    paths, ids = manifest.audio_paths(), manifest.utterance_ids
    found, reason = [], ""
    for position in np.random.default_rng(0).permutation(len(paths))[: 2 * count]:
        clip = decode_clip(paths[position], ids[position], settings)
        if clip.failure:
            reason = clip.failure
            continue
        found.append(clip)
        if len(found) == count:
            break
    if not found:
        raise AudioError(f"None of the recordings that were tried can be read; the last one: {reason}")
    return found


def estimate_comparison(
    manifest: Manifest,
    cells: Sequence[Cell],
    *,
    config: ComparisonConfig,
    cache_dir: Location,
    run_dir: Path,
    workers: int = 1,
    device: str = "cpu",
) -> ComparisonEstimate:
    """Train a few heads of every fusion for a few epochs and tell what all would take.

    Args:
        manifest: the corpus.
        cells: what would be compared.
        config: how.
        cache_dir: folder of the stores.
        run_dir: folder of the run, whether it exists or not.
        workers: processes.
        device: of the heads.

    Raises:
        HyfuseError: what the comparison itself would raise before it trains.
    """
    device = choose_device(device)
    dataset, split = prepare(manifest, cells, config=config, cache_dir=cache_dir)
    train = train_config(config, split)
    jobs = [make_job(dataset, split, cell, seeds=range(config.seeds), config=train) for cell in cells]
    run = RunFolder(run_dir)
    waiting: list[Job] = []
    finished = 0
    for job in jobs:
        there = {(head.row["fold"], head.row["seed"]) for head in run.load(job)}
        finished += len(there)
        tasks = tuple(task for task in job.tasks if (task.fold, task.seed) not in there)
        waiting += [replace(job, tasks=tasks)] if tasks else []
    seconds = sum(_seconds(group, device) for group in _by_fusion(waiting))
    sources = {source.features_digest: source for job in jobs for source in (job.left, job.right) if source is not None}
    per_row = sum(4 * source.dim * max(1, len(source.layers)) for source in sources.values())
    return ComparisonEstimate(
        heads=sum(len(job.tasks) for job in jobs),
        finished=finished,
        seconds=seconds / (min(workers, max(1, len(waiting))) if device == "cpu" else 1),
        data_bytes=per_row * len(dataset.utterance_ids),
    )


def _by_fusion(jobs: Sequence[Job]) -> list[list[Job]]:
    groups: dict[tuple[str, bool], list[Job]] = {}
    for job in jobs:
        groups.setdefault((job.cell.fusion, job.right is None), []).append(job)
    return list(groups.values())


def _width(job: Job) -> int:
    """Features that a step of a head works on."""
    return sum(source.dim * max(1, len(source.layers)) for source in (job.left, job.right) if source is not None)


def _seconds(jobs: Sequence[Job], device: str) -> float:
    """Of one process, from one stack of the widest cell; other cells count by their width."""
    widest = max(jobs, key=_width)
    epochs = min(_EPOCHS, widest.config.epochs)
    tried = replace(widest, tasks=widest.tasks[:STACK], config=replace(widest.config, epochs=epochs))
    with mapped_sources([tried], None) as files:
        train_job(
            replace(tried, tasks=tried.tasks[:1], config=replace(tried.config, epochs=1)), device, files
        )  # warms up
        started = time.perf_counter()
        train_job(tried, device, files)
        took_s = time.perf_counter() - started
    # The linear rung knows no epochs: it is done as a whole.
    rounds = widest.config.epochs / epochs if "epochs" in widest.description["hyper_parameters"] else 1.0
    per_head = took_s * rounds / len(tried.tasks)
    total = sum(len(job.tasks) * per_head * _width(job) / _width(widest) for job in jobs)
    return total
