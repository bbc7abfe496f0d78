"""Extraction on this machine: one process, one device, recordings decoded ahead of the model.

While the model encodes one block, threads decode the next one. The store is written block by block; a run that is stopped
at any moment, by Ctrl-C or ``kill -9``, is continued by the same command.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from pipelines.audio.decode import RESAMPLER, decoder_versions
from pipelines.corpora.manifest import Manifest
from pipelines.encoders.base import Encoder
from pipelines.errors import AudioError, DeviceError
from pipelines.extraction.blocks import Block, make_blocks
from pipelines.extraction.worker import DecodedClip, decode_clips, encode_block
from pipelines.store.embeddings import BLOCK_ROWS, DONE, EmbeddingStore, open_store, open_writer, store_path
from pipelines.store.provenance import Provenance

__all__ = ["ExtractionProgress", "choose_device", "extract_corpus", "extraction_provenance"]

_DECODE_THREADS = 2


@dataclass(frozen=True)
class ExtractionProgress:
    """How far an extraction is.

    Attributes:
        rows_done: utterances that are in the store or in the block being encoded.
        rows_total: utterances of the corpus.
        rows_failed: utterances of finished blocks, in this run, that could not be used.
        audio_s: seconds of audio encoded in this run.
    """

    rows_done: int
    rows_total: int
    rows_failed: int
    audio_s: float


def choose_device(name: str) -> torch.device:
    """The device for ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        DeviceError: there is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise DeviceError(f"There is no kind of device called {name!r}. Use auto, cpu, cuda or cuda:N.") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise DeviceError(
            f"--device {name} was asked for, but this torch ({torch.__version__}) sees no CUDA device. Use `--device cpu`, or"
            " install a CUDA build of torch."
        )
    if device.type == "cuda" and device.index is not None and device.index >= torch.cuda.device_count():
        raise DeviceError(
            f"--device {name} was asked for; this machine has {torch.cuda.device_count()} CUDA device(s)."
        )
    return device


def extraction_provenance(manifest: Manifest, encoder: Encoder, *, condition: str = "clean") -> Provenance:
    """What a store made from this manifest by this encoder says about itself."""
    spec, weights = encoder.spec, encoder.weights
    packages = ("torch", "transformers", "speechbrain", "encodec", "numpy")
    return Provenance(
        corpus=manifest.corpus,
        manifest_digest=manifest.digest,
        encoder=spec.name,
        family=spec.family,
        condition=condition,
        weights_kind=weights.kind,
        weights_source=weights.source,
        weights_revision=weights.revision,
        weights_digest=weights.digest,
        weights_licence=weights.licence,
        representations=spec.representations,
        default_representation=spec.default_representation,
        dim=spec.dim,
        sample_rate_hz=spec.sample_rate_hz,
        resampler=RESAMPLER,
        precision="float32",
        device=encoder.device.type,
        versions={
            **{name: version(name) for name in packages},
            **decoder_versions(),
            "python": platform.python_version(),
        },
    )


def extract_corpus(
    manifest: Manifest,
    encoder: Encoder,
    *,
    cache_dir: Path,
    condition: str = "clean",
    progress: Callable[[ExtractionProgress], None] | None = None,
    block_rows: int = BLOCK_ROWS,
) -> EmbeddingStore:
    """Encode a corpus into its store, or finish what an earlier run began.

    Args:
        manifest: the corpus, with its root.
        encoder: the frozen model.
        cache_dir: folder of the stores.
        condition: what was done to the waveforms, ``clean`` for nothing.
        progress: called after every batch.
        block_rows: rows per block of a new store.

    Returns:
        The finished store, opened for reading.

    Raises:
        ProvenanceError: a store made from something else is there.
        StoreError: another process is writing it.
        StorageError: the disk is full or cannot be written.
        AudioError: not one recording of the first block can be used, or the corpus' folder has gone.
    """
    path = store_path(cache_dir, manifest.corpus, encoder.spec.name, condition)
    provenance = extraction_provenance(manifest, encoder, condition=condition)
    with open_writer(
        path, provenance=provenance, utterance_ids=manifest.utterance_ids, block_rows=block_rows
    ) as writer:
        rows_done, rows_failed, audio_s = writer.rows_done(), 0, 0.0

        def report(rows: int, seconds: float) -> None:
            nonlocal rows_done, audio_s
            rows_done += rows
            audio_s += seconds
            if progress is not None:
                progress(ExtractionProgress(rows_done, len(manifest), rows_failed, audio_s))

        report(0, 0.0)
        blocks = make_blocks(manifest, block_rows=writer.store.block_rows, indices=writer.blocks_to_do())
        known = np.flatnonzero(writer.store.status == DONE)
        witness = manifest.audio_paths()[known[0]] if len(known) else None  # a recording that could be used
        with closing(_decoded_ahead(blocks, encoder.spec.sample_rate_hz)) as decoded:
            for block, clips in decoded:
                unusable = sum(clip.waveform is None for clip in clips)
                if unusable == len(clips):
                    _check_root(manifest, clips, witness)
                result = encode_block(clips, encoder, done=report)
                writer.write_block(block.index, result)
                rows_failed += sum(bool(reason) for reason in result.failure)
                if witness is None:
                    usable = (path for path, reason in zip(block.paths, result.failure, strict=True) if not reason)
                    witness = next(usable, None)
                report(unusable, 0.0)
    return open_store(path)


def _check_root(manifest: Manifest, clips: Sequence[DecodedClip], witness: Path | None) -> None:
    """Of a block, nothing can be used: are these recordings broken, or has the whole corpus gone?

    Failures are kept in the store and not tried again, so a folder that is not mounted must not be taken for broken files.

    Raises:
        AudioError: no recording of this corpus could be used so far, or the one that could is gone.
    """
    if witness is None:
        raise AudioError(
            f"None of the first {len(clips)} recordings can be used. The first one: {clips[0].failure} Check --data-root: it is"
            f" {manifest.root}."
        )
    if not witness.is_file():
        raise AudioError(
            f"None of the next {len(clips)} recordings can be used, and {witness}, which could be, is not there any more. Check"
            f" --data-root, and that the disk is still mounted: it is {manifest.root}. The same command goes on from here."
        )


def _decoded_ahead(blocks: list[Block], rate_hz: int) -> Generator[tuple[Block, list[DecodedClip]]]:
    """Every block with its recordings; while one is used, the next is being decoded."""
    with ThreadPoolExecutor(_DECODE_THREADS) as threads, ThreadPoolExecutor(1) as ahead:
        pending: Future[list[DecodedClip]] | None = None
        try:
            for position, block in enumerate(blocks):
                clips = pending.result() if pending is not None else decode_clips(block.paths, rate_hz, threads)
                if position + 1 < len(blocks):
                    pending = ahead.submit(decode_clips, blocks[position + 1].paths, rate_hz, threads)
                yield block, clips
        finally:
            if pending is not None:
                pending.cancel()
            threads.shutdown(wait=True, cancel_futures=True)
