"""Extraction on this machine, in this process, on one device.

Recordings are decoded ahead of the model and blocks are written behind it. A run that is stopped at any moment, by Ctrl-C or
``kill -9``, is continued by the same command.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version

import torch

from pipelines.audio.conditions import Distortion
from pipelines.audio.decode import RESAMPLER, decoder_versions
from pipelines.corpora.manifest import Manifest
from pipelines.encoders.base import Encoder
from pipelines.encoders.catalogue import encoder_plugin
from pipelines.errors import DeviceError
from pipelines.extraction.sink import BlockSink, FailureLimit
from pipelines.extraction.texts import CorpusTexts, texts_for
from pipelines.extraction.worker import Work, run_blocks
from pipelines.locations import Location
from pipelines.store.embeddings import (
    BLOCK_ROWS,
    EmbeddingStore,
    FrameSpec,
    StoreWriter,
    open_store,
    open_writer,
    store_path,
)
from pipelines.store.provenance import Provenance

__all__ = ["ExtractionProgress", "Tally", "choose_device", "extract_corpus", "extraction_provenance"]


@dataclass(frozen=True)
class ExtractionProgress:
    """How far an extraction is.

    Attributes:
        rows_done: utterances that are in the store or in a block being encoded.
        rows_total: utterances of the corpus.
        rows_failed: utterances of the corpus that could not be used, as far as they are in the store.
        audio_s: seconds of audio encoded in this run; of texts, tokens.
    """

    rows_done: int
    rows_total: int
    rows_failed: int
    audio_s: float


class Tally:
    """What is to do in a store, how far that is, and how much of it failed; the same for every engine.

    Args:
        writer: the store.
        shard: (i, n), where only every n-th block is to do.
        max_failures: stop when more recordings than this have failed; None for never.
        retry_failed: failures that the store holds are being tried again and do not count.
        progress: told of every change.

    Attributes:
        indices: blocks to do.
        failures: counts what failed.
    """

    def __init__(
        self,
        writer: StoreWriter,
        *,
        shard: tuple[int, int] | None = None,
        max_failures: int | None,
        retry_failed: bool,
        progress: Callable[[ExtractionProgress], None] | None,
    ) -> None:
        first, step = shard or (0, 1)
        self.indices = writer.blocks_to_do()
        self._total = sum(len(writer.rows_of(index)) for index in range(first, writer.num_blocks, step))
        self._done = self._total - sum(len(writer.rows_of(index)) for index in self.indices)
        self._audio_s = 0.0
        self._progress = progress
        earlier = {} if retry_failed else writer.store.failures()
        self.failures = FailureLimit(allowed=max_failures, failed=earlier, total=len(writer.store))
        self.add(0, 0.0)

    def add(self, rows: int, seconds: float) -> None:
        """Count recordings that were finished and seconds of audio; what a worker did before it died is counted once."""
        self._done = min(self._done + rows, self._total)
        self._audio_s += seconds
        if self._progress is not None:
            self._progress(ExtractionProgress(self._done, self._total, self.failures.count, self._audio_s))


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


def extraction_provenance(
    manifest: Manifest,
    encoder: Encoder,
    *,
    distortion: Distortion | None = None,
    texts: CorpusTexts | None = None,
    device: str | None = None,
) -> Provenance:
    """What a store made from this manifest by this encoder says about itself.

    Args:
        manifest: the corpus.
        encoder: the frozen model.
        distortion: what is done to the waveforms; None for nothing.
        texts: what is encoded instead of recordings; their digest is what tells the condition apart.
        device: kind of device that computes; the encoder's own unless given.
    """
    spec, weights = encoder.spec, encoder.weights
    packages = ["torch", "transformers", "speechbrain", "encodec", "numpy"]
    condition, condition_digest = "clean", ""
    if texts is not None:
        packages = ["torch", "transformers", "tokenizers", "numpy"]
        condition, condition_digest = texts.condition, texts.digest
    elif distortion is not None:
        packages.append("scipy")
        condition, condition_digest = distortion.name, distortion.digest
    if (plugin := encoder_plugin(spec.name)) is not None:
        packages.append(plugin.package)
    return Provenance(
        corpus=manifest.corpus,
        manifest_digest=manifest.digest,
        encoder=spec.name,
        family=spec.family,
        condition=condition,
        condition_digest=condition_digest,
        weights_kind=weights.kind,
        weights_source=weights.source,
        weights_revision=weights.revision,
        weights_digest=weights.digest,
        weights_licence=weights.licence,
        representations=spec.representations,
        default_representation=spec.default_representation,
        dim=spec.dim,
        columns=spec.columns,
        sample_rate_hz=spec.sample_rate_hz,
        resampler=RESAMPLER if texts is None else "none: text",
        precision=encoder.precision,
        device=device or encoder.device.type,
        versions={
            **{name: version(name) for name in packages},
            **(decoder_versions() if texts is None else {}),
            "python": platform.python_version(),
        },
    )


def extract_corpus(
    manifest: Manifest,
    encoder: Encoder,
    *,
    cache_dir: Location,
    distortion: Distortion | None = None,
    texts: CorpusTexts | None = None,
    frames: FrameSpec | None = None,
    shard: tuple[int, int] | None = None,
    decode_workers: int | None = None,
    max_failures: int | None = None,
    retry_failed: bool = False,
    progress: Callable[[ExtractionProgress], None] | None = None,
    block_rows: int = BLOCK_ROWS,
) -> EmbeddingStore:
    """Encode a corpus into its store, or finish what an earlier run began.

    Args:
        manifest: the corpus, with its root.
        encoder: the frozen model.
        cache_dir: folder of the stores.
        distortion: what is done to the waveforms; None for nothing.
        texts: what an encoder of text reads; those of the manifest unless given.
        frames: which frames to keep beside the pooled values; None for none.
        shard: (i, n): only every n-th block, beginning with block i; others do the rest.
        decode_workers: processes that decode; None for what suits the device.
        max_failures: stop when more recordings than this have failed; None for never.
        retry_failed: do the blocks with failed recordings again.
        progress: called after every batch.
        block_rows: rows per block of a new store.

    Returns:
        The store, opened for reading; complete unless other shards are not.

    Raises:
        ProvenanceError: a store made from something else is there.
        StoreError: another process is writing it.
        StorageError: the disk is full or cannot be written.
        AudioError: not one recording of the first block can be used, or the corpus' folder has gone.
        FailuresError: more than ``max_failures`` recordings failed.
        ManifestError: more than ``max_failures`` utterances have no transcript.
        ConfigError: texts for an encoder of recordings, or a distortion for one of texts.
    """
    texts = texts_for(manifest, encoder.spec, texts, distorted=distortion is not None, allowed=max_failures)
    provenance = extraction_provenance(manifest, encoder, distortion=distortion, texts=texts)
    path = store_path(cache_dir, manifest.corpus, encoder.spec.name, provenance.condition)
    with open_writer(
        path,
        provenance=provenance,
        utterance_ids=manifest.utterance_ids,
        block_rows=block_rows,
        frames=frames,
        shard=shard,
        retry_failed=retry_failed,
    ) as writer:
        tally = Tally(writer, shard=shard, max_failures=max_failures, retry_failed=retry_failed, progress=progress)
        work = Work(manifest, writer.store.block_rows, distortion, frames, decode_workers, texts)
        with BlockSink(writer=writer, manifest=manifest, failures=tally.failures, recordings=texts is None) as sink:
            for block, result in run_blocks(work, encoder, tally.indices, done=tally.add):
                sink.accept(block, result)
        if tally.indices:
            tally.add(0, 0.0)  # the last failures
    return open_store(path, complete=shard is None)
