"""Recordings to transcripts: a corpus through a recogniser, block by block into ``pipelines.store.transcripts``.

The same machinery as an extraction: recordings are decoded ahead and put under the condition, pieces of similar length are
heard together, on a CPU every batch by one thread and several at a time. A recording that cannot be used is recorded with
its reason and the others go on. A run that is stopped at any moment is continued by the same command and ends with the same
bytes.

Groups and batches depend on the recordings of a block alone, and texts not even on them (``encoders/recognition.py``).
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from pipelines.audio.conditions import Distortion
from pipelines.audio.decode import RESAMPLER, decoder_versions
from pipelines.corpora.manifest import Manifest
from pipelines.encoders.recognition import Recogniser
from pipelines.extraction.batching import plan_batches
from pipelines.extraction.blocks import Block, make_blocks
from pipelines.extraction.decoding import DecodeAhead, DecodedClip, DecodeSettings
from pipelines.extraction.engines.local import ExtractionProgress
from pipelines.extraction.sink import FailureLimit, check_root
from pipelines.extraction.worker import BATCH_S, GROUP_S, run_batches
from pipelines.locations import Location
from pipelines.store.transcripts import (
    TRANSCRIPT_BLOCK_ROWS,
    TranscriptProvenance,
    TranscriptRow,
    Transcripts,
    open_transcript_writer,
    read_transcripts,
    transcripts_path,
)

__all__ = ["transcribe_clips", "transcribe_corpus", "transcript_provenance"]

_THREADS_AHEAD = 2


def transcript_provenance(
    manifest: Manifest, recogniser: Recogniser, *, distortion: Distortion | None = None
) -> TranscriptProvenance:
    """What transcripts of this manifest by this recogniser say about themselves."""
    spec, weights = recogniser.spec, recogniser.weights
    packages = ["torch", "transformers", "tokenizers", "numpy", *(["scipy"] if distortion is not None else [])]
    return TranscriptProvenance(
        corpus=manifest.corpus,
        manifest_digest=manifest.digest,
        model=spec.name,
        condition=distortion.name if distortion is not None else "clean",
        condition_digest=distortion.digest if distortion is not None else "",
        language=recogniser.language,
        decoding=recogniser.decoding,
        weights_kind=weights.kind,
        weights_source=weights.source,
        weights_revision=weights.revision,
        weights_digest=weights.digest,
        weights_licence=weights.licence,
        sample_rate_hz=spec.sample_rate_hz,
        resampler=RESAMPLER,
        precision=recogniser.precision,
        device=recogniser.device.type,
        versions={
            **{name: version(name) for name in packages},
            **decoder_versions(),
            "python": platform.python_version(),
        },
    )


def transcribe_clips(
    clips: Sequence[DecodedClip], recogniser: Recogniser, *, done: Callable[[int, float], None] | None = None
) -> list[TranscriptRow]:
    """Write down recordings.

    Args:
        clips: n decoded recordings.
        recogniser: the frozen model.
        done: called after every batch with (recordings that were finished with it, seconds of audio it held).

    Returns:
        n rows; a reason where a recording failed.
    """
    rate_hz = recogniser.spec.sample_rate_hz
    waveforms = {row: torch.from_numpy(clip.waveform.samples) for row, clip in enumerate(clips) if clip.waveform}
    plans = {row: recogniser.windows(samples) for row, samples in waveforms.items()}
    pieces = [(row, window) for row, plan in plans.items() for window in plan]
    lengths = [window.stop - window.start for _, window in pieces]
    heard: dict[int, Tensor | None] = {}

    def compute(batch: list[int]) -> None:
        samples = [waveforms[row][window.start : window.stop] for row, window in map(pieces.__getitem__, batch)]
        for position, numbers in zip(batch, recogniser.hear(samples), strict=True):
            heard[position] = numbers

    waiting = {row: len(plan) for row, plan in plans.items()}
    batches = plan_batches(
        lengths,
        max_padded_samples=int(BATCH_S[recogniser.device.type] * rate_hz),
        max_batch=recogniser.clips_per_batch,
    )
    for batch in run_batches(recogniser.encoder, batches, compute):
        finished = 0
        for position in batch:
            row, _ = pieces[position]
            waiting[row] -= 1
            finished += waiting[row] == 0
        if done is not None:
            done(finished, sum(lengths[position] for position in batch) / rate_hz)
    own: dict[int, list[Tensor]] = {row: [] for row in plans}
    for position, (row, _) in enumerate(pieces):
        if (numbers := heard[position]) is not None:
            own[row].append(numbers)
    rows = []
    for row, clip in enumerate(clips):
        text, failure = None, clip.failure
        if row in plans and len(own[row]) == len(plans[row]):
            text = recogniser.spell(own[row], plans[row])
        elif row in plans:
            failure = f"The output of {recogniser.spec.name} is not finite (NaN or infinite)."
        rows.append(TranscriptRow(text, failure, clip.duration_s))
    return rows


def transcribe_corpus(
    manifest: Manifest,
    recogniser: Recogniser,
    *,
    cache_dir: Location,
    distortion: Distortion | None = None,
    decode_workers: int | None = None,
    max_failures: int | None = None,
    retry_failed: bool = False,
    anew: bool = False,
    progress: Callable[[ExtractionProgress], None] | None = None,
    block_rows: int = TRANSCRIPT_BLOCK_ROWS,
) -> Transcripts:
    """Write down what is said in a corpus, or finish what an earlier run began.

    Args:
        manifest: the corpus, with its root.
        recogniser: the frozen model.
        cache_dir: folder of the stores.
        distortion: what is done to the waveforms; None for nothing.
        decode_workers: processes that decode; None for two threads.
        max_failures: stop when more recordings than this have failed; None for never.
        retry_failed: do the blocks with failed recordings again.
        anew: forget transcripts that are there.
        progress: called after every batch.
        block_rows: rows per block of new transcripts.

    Returns:
        The transcripts, complete.

    Raises:
        ProvenanceError: transcripts made from something else are there.
        StoreError: another process is writing them.
        StorageError: the disk is full or cannot be written.
        AudioError: not one recording of the first block can be used, or the corpus' folder has gone.
        FailuresError: more than ``max_failures`` recordings failed.
    """
    provenance = transcript_provenance(manifest, recogniser, distortion=distortion)
    model, condition, ids = provenance.model, provenance.condition, manifest.utterance_ids
    with open_transcript_writer(
        transcripts_path(cache_dir, manifest.corpus, model, condition),
        provenance=provenance,
        utterance_ids=ids,
        block_rows=block_rows,
        retry_failed=retry_failed,
        anew=anew,
    ) as writer:
        earlier = writer.failures()
        failures = FailureLimit(allowed=max_failures, failed=earlier, total=len(ids))
        rows_done, audio_s = writer.num_done, 0.0

        def tell(rows: int, seconds: float) -> None:
            nonlocal rows_done, audio_s
            rows_done, audio_s = min(rows_done + rows, len(ids)), audio_s + seconds
            if progress is not None:
                progress(ExtractionProgress(rows_done, len(ids), failures.count, audio_s))

        tell(0, 0.0)
        witness: Path | None = None  # a recording that could be used
        if (usable := writer.some_usable()) is not None:
            position = ids.index(usable)
            witness = manifest.audio_paths(range(position, position + 1))[0]
        settings = DecodeSettings(recogniser.spec.sample_rate_hz, manifest.root or Path(), distortion)
        blocks = make_blocks(manifest, block_rows=writer.block_rows, indices=writer.blocks_to_do())
        with DecodeAhead(
            blocks,
            settings=settings,
            workers=decode_workers or _THREADS_AHEAD,
            in_processes=decode_workers is not None,
        ) as decoded:
            for block, written in _rows_of_blocks(decoded, recogniser, tell):
                failed = {
                    name: row.failure
                    for name, row in zip(block.utterance_ids, written, strict=True)
                    if row.text is None
                }
                if len(failed) == len(written):
                    check_root(manifest, witness, [row.failure for row in written])
                usable_paths = (path for path, row in zip(block.paths, written, strict=True) if row.text is not None)
                witness = witness or next(usable_paths, None)
                writer.write_block(block.index, written)
                failures.add(failed)
                if failed:
                    tell(0, 0.0)
    return read_transcripts(cache_dir, manifest.corpus, model, condition, manifest_digest=manifest.digest)


def _rows_of_blocks(
    decoded: DecodeAhead, recogniser: Recogniser, done: Callable[[int, float], None]
) -> Iterator[tuple[Block, list[TranscriptRow]]]:
    """Whole blocks, heard in groups of at most ``GROUP_S`` seconds of audio."""
    group: list[DecodedClip] = []
    rows: list[TranscriptRow] = []
    seconds = 0.0
    for block, clips in decoded:
        for clip in clips:
            group.append(clip)
            seconds += clip.waveform.duration_s if clip.waveform else 0.0
            if len(rows) + len(group) == len(block.paths) or seconds >= GROUP_S:
                rows += transcribe_clips(group, recogniser, done=done)
                if unusable := sum(clip.waveform is None for clip in group):
                    done(unusable, 0.0)
                group, seconds = [], 0.0
        if len(rows) == len(block.paths):
            yield block, rows
            rows = []
