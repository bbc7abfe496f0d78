"""What heads on frames are trained on: utterances with a label, and every frame of them, joined by utterance id.

Stores keep frames in compressed chunks of a megabyte, so an utterance at a time, in random order, would unpack each chunk many
times over. Frames are therefore unpacked once, in manifest order, into a plain file beside the run, [sum of T, D] in the store's
own type, which every process maps and from which a batch takes what it needs (:class:`FrameFile`). What is in memory is a batch
and whatever the system keeps of the file, which it may drop at any time. IEMOCAP (5,531 utterances, about 225 frames of 768
numbers in float16) makes a file of 1.9 GB per stream; a batch of 32 such utterances takes 22 MB in float32. The file is removed at
the end.

Standardisation is per feature over all frames of the rows trained on; sums and sums of squares per utterance lie in a file of their
own, float64 [n, 2, D] (68 MB for IEMOCAP), so that the scaler of another fold costs no second pass over the frames.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipelines.corpora.manifest import Manifest
from pipelines.errors import ConfigError, ManifestError, ProvenanceError, StorageError, StoreError, unknown_name
from pipelines.files import TEMPORARY_PREFIX
from pipelines.locations import Location
from pipelines.store.embeddings import DONE, EmbeddingStore, open_store, store_path
from pipelines.training.conditions import extract_command
from pipelines.training.data import Dataset, canonical_dimensions, default_dimensions

__all__ = [
    "FrameDataset",
    "FrameFile",
    "FrameScaler",
    "FrameSource",
    "batches_by_length",
    "frame_files",
    "load_frame_dataset",
    "open_frame_source",
]

Rows = NDArray[np.int64]

_POOL = 16  # batches that are sorted by length together
_SUMMED_ROWS = 4096  # utterances whose sums are read at a time


@dataclass(frozen=True)
class FrameSource:
    """The frames of one representation of one encoder under one condition.

    Attributes:
        encoder: catalogue name.
        representation: whose frames.
        condition: of the store: of the recording, or for texts also where the text comes from.
        path: the store.
        family: RLR, CBR or LEX.
        weights_kind: ``pretrained`` or ``random``.
        store_digest: identity of the store.
        dim: features D.
        dtype: ``float16`` or ``float32``.
        stride: frames that are averaged to one.
    """

    encoder: str
    representation: str
    condition: str
    path: Location
    family: str
    weights_kind: str
    store_digest: str
    dim: int
    dtype: str
    stride: int = 1

    @property
    def title(self) -> str:
        """What it is called, different for every source of a study."""
        averaged = "" if self.stride == 1 else f", {self.stride} averaged"
        return f"{self.encoder} {self.representation} ({self.condition}{averaged})"


@dataclass(frozen=True)
class FrameDataset:
    """The utterances of a study and the frames that it has of them.

    Attributes:
        corpus: name.
        manifest_digest: of the manifest.
        utterance_ids: n ids, in manifest order.
        speakers: n speakers.
        sessions: n sessions, maybe empty.
        official: n official parts, maybe empty.
        transcripts: n transcripts of the manifest, maybe empty.
        labels: int64 [n], positions in ``classes``; -1 where the target is dimensions.
        classes: emotions; empty where the target is dimensions.
        dimensions: K names; empty where the target is emotion.
        values: float32 [n, K], of the dimensions on the corpus' scale.
        sources: name to source, in the order they were asked for.
        left_out: reason to number of utterances that were left out.
        failed: ids that some store could not encode.
    """

    corpus: str
    manifest_digest: str
    utterance_ids: tuple[str, ...] = field(repr=False)
    speakers: tuple[str, ...] = field(repr=False)
    sessions: tuple[str, ...] = field(repr=False)
    official: tuple[str, ...] = field(repr=False)
    transcripts: tuple[str, ...] = field(repr=False)
    labels: NDArray[np.int64] = field(repr=False)
    classes: tuple[str, ...]
    dimensions: tuple[str, ...]
    values: NDArray[np.float32] = field(repr=False)
    sources: Mapping[str, FrameSource]
    left_out: Mapping[str, int]
    failed: frozenset[str] = field(repr=False)

    @property
    def utterances(self) -> Dataset:
        """The same without frames, as folds are made of it."""
        return Dataset(
            corpus=self.corpus,
            manifest_digest=self.manifest_digest,
            utterance_ids=self.utterance_ids,
            speakers=self.speakers,
            sessions=self.sessions,
            official=self.official,
            labels=self.labels,
            classes=self.classes,
            sources={},
            left_out=self.left_out,
            target=self.target,
            dimensions=self.dimensions,
            values=self.values,
            failed=self.failed,
        )

    @property
    def target(self) -> str:
        """``emotion`` or ``dimensions``."""
        return "dimensions" if self.dimensions else "emotion"

    @property
    def truth(self) -> NDArray[Any]:
        """What is learned: int64 [n] classes or float32 [n, K] values."""
        return self.values if self.dimensions else self.labels

    @property
    def num_outputs(self) -> int:
        """C or K."""
        return len(self.dimensions or self.classes)


def open_frame_source(
    manifest: Manifest,
    *,
    cache_dir: Location,
    encoder: str,
    representation: str = "",
    condition: str = "clean",
    stride: int = 1,
) -> tuple[FrameSource, EmbeddingStore]:
    """Find the frames of one encoder.

    Args:
        manifest: the corpus.
        cache_dir: folder of the stores.
        encoder: its name.
        representation: whose frames; the only one whose frames are kept, or the encoder's default, unless given.
        condition: of the store.
        stride: consecutive frames that are averaged to one; the last run of an utterance may be shorter.

    Raises:
        StoreError: the store is absent, unfinished, damaged, or keeps no frames.
        ProvenanceError: it belongs to another manifest.
        UnknownNameError: frames of that representation are not kept.
    """
    path = store_path(cache_dir, manifest.corpus, encoder, condition)
    extract = _extract_command(manifest.corpus, encoder, condition, cache_dir)
    try:
        store = open_store(path, manifest_digest=manifest.digest)
    except ProvenanceError:
        raise
    except StoreError as error:
        if not str(error).startswith("There is no store"):
            raise
        raise StoreError(
            f"There is no store of {encoder} under {condition!r} at {path}; its frames are needed. Make it with {extract}."
        ) from error
    kept = store.frame_representations
    if not kept:
        raise StoreError(
            f"{path} keeps no frames, only their mean and spread. Remove it with `hyfuse cache remove"
            f" {manifest.corpus}/{encoder}/{condition} --cache-dir {cache_dir}` and make it anew with {extract}."
        )
    default = store.provenance.default_representation
    chosen = representation or (default if default in kept else kept[-1])
    if chosen not in kept:
        hint = f"Others are kept if the store is made with --frames-of {chosen}."
        raise unknown_name(f"representation with frames in {path}", chosen, kept, hint=hint)
    made = store.provenance
    source = FrameSource(
        encoder=encoder,
        representation=chosen,
        condition=condition,
        path=path,
        family=made.family,
        weights_kind=made.weights_kind,
        store_digest=made.identity_digest(),
        dim=made.dim,
        dtype=store.frame_dtype,
        stride=stride,
    )
    return source, store


def _extract_command(corpus: str, encoder: str, condition: str, cache_dir: Location) -> str:
    """What makes a store with frames."""
    return f"`{extract_command(corpus, encoder, condition, frames=True)} --cache-dir {cache_dir}`"


def load_frame_dataset(
    manifest: Manifest,
    sources: Mapping[str, tuple[FrameSource, EmbeddingStore]],
    *,
    classes: Sequence[str] = (),
    dimensions: Sequence[str] = (),
) -> FrameDataset:
    """The utterances of some classes, or with values of some dimensions, that every store holds.

    Args:
        manifest: the corpus.
        sources: name to what :func:`open_frame_source` gave.
        classes: emotions.
        dimensions: in place of classes.

    Raises:
        UnknownNameError: no such class or dimension.
        ConfigError: fewer than two classes, or one of them twice; classes and dimensions.
        ManifestError: of a class, no utterance is left; the corpus has no value of a dimension, or a single one.
    """
    wanted = canonical_dimensions(dimensions)
    if wanted:
        keep, why = _with_values(manifest, wanted, classes)
    else:
        keep, why = _of_classes(manifest, classes)
    left_out = {}
    if not keep.all():
        left_out[why] = int((~keep).sum())
    broken = np.zeros(len(keep), dtype=bool)
    for source, store in {source.title: (source, store) for source, store in sources.values()}.values():
        status = dict(zip(store.utterance_ids, store.status.tolist(), strict=True))
        failed = np.array([status.get(name) != DONE for name in manifest.utterance_ids], dtype=bool)
        if (failed & keep).any():
            left_out[f"failed in {source.encoder} under {source.condition}"] = int((failed & keep).sum())
        keep &= ~failed
        broken |= failed
    table = manifest.table[keep]
    listed = ", ".join(f"{count} {reason}" for reason, count in left_out.items()) or "none"
    if not wanted and (gone := [name for name in classes if name not in set(table["emotion"])]):
        raise ManifestError(
            f"No utterance of {', '.join(gone)} of corpus {manifest.corpus!r} is left to train on; left out: {listed}. Name the"
            " classes that are left with `--classes`, or see what failed with `hyfuse extract`."
        )
    values = table[list(wanted)].to_numpy(dtype=np.float32, copy=True)
    for name, column in zip(wanted, values.T, strict=True):
        if not len(column) or column.min() == column.max():
            raise ManifestError(
                f"Of {name}, corpus {manifest.corpus!r} has {'the same value everywhere' if len(column) else 'no value'} among the"
                f" {len(column)} utterances that are left (left out: {listed}), so its CCC is not defined. Leave it out of"
                " --dimensions, or check the column of the manifest."
            )
    position = {name: index for index, name in enumerate(classes)}
    return FrameDataset(
        corpus=manifest.corpus,
        manifest_digest=manifest.digest,
        utterance_ids=tuple(table["utterance_id"]),
        speakers=tuple(table["speaker"]),
        sessions=tuple(table["session"]),
        official=tuple(table["official_split"]),
        transcripts=tuple(table["transcript"]),
        labels=np.array([position.get(name, -1) for name in table["emotion"]], dtype=np.int64),
        classes=tuple(classes),
        dimensions=wanted,
        values=values,
        sources={name: source for name, (source, _) in sources.items()},
        left_out=left_out,
        failed=frozenset(manifest.table["utterance_id"][broken]),
    )


def _of_classes(manifest: Manifest, classes: Sequence[str]) -> tuple[NDArray[np.bool_], str]:
    """Which rows have a class among some, and what is to be said of the others."""
    present = set(manifest.table["emotion"]) - {""}
    for name in classes:
        if name not in present:
            raise unknown_name(f"class of corpus {manifest.corpus!r}", name, present)
    if len(set(classes)) < max(2, len(classes)):
        raise ConfigError(f"At least two classes are needed, each once, not {', '.join(classes) or 'none'}.")
    keep = manifest.table["emotion"].isin(list(classes)).to_numpy(dtype=bool, copy=True)
    return keep, "no label among the classes"


def _with_values(
    manifest: Manifest, dimensions: Sequence[str], classes: Sequence[str]
) -> tuple[NDArray[np.bool_], str]:
    """Which rows have a value of every dimension, and what is to be said of the others."""
    if classes:
        raise ConfigError(
            f"--classes {','.join(classes)} means nothing to --target dimensions, which has no classes. Leave it out, or use"
            " --target emotion."
        )
    for name in dimensions:
        if not manifest.table[name].notna().any():
            there = default_dimensions(manifest)
            raise ManifestError(
                f"Corpus {manifest.corpus!r} has no values of {name}; it has {', '.join(there)}. Choose among them:"
                f" `--dimensions {','.join(there)}`."
            )
    keep = manifest.table[list(dimensions)].notna().all(axis=1).to_numpy(dtype=bool, copy=True)
    return keep, f"no value of {' or '.join(dimensions)}"


# ---------------------------------------------------------------------------------------------------------------------
# Frames on disk


@dataclass(frozen=True)
class FrameScaler:
    """Standardisation of frames: (x - mean) / std.

    Attributes:
        mean: float32 [D].
        std: float32 [D], 1 where the feature is constant.
    """

    mean: Tensor
    std: Tensor


@dataclass(frozen=True)
class FrameFile:
    """The frames of n utterances in one plain file; cheap to send to another process, mapped where it is used.

    Attributes:
        path: the file, [sum of T, D].
        dtype: ``float16`` or ``float32``.
        dim: D.
        offsets: int64 [n + 1], where each utterance's frames begin.
        moments: a file, float64 [n, 2, D]: sums and sums of squares over each utterance's frames.
        digest: sha256 of ids, lengths and frames.
    """

    path: Path
    dtype: str
    dim: int
    offsets: NDArray[np.int64] = field(repr=False)
    moments: Path
    digest: str

    @property
    def lengths(self) -> NDArray[np.int64]:
        """int64 [n], frames of every utterance."""
        return np.diff(self.offsets)

    def open(self) -> NDArray[np.floating]:
        """The file, mapped for reading."""
        return np.memmap(self.path, dtype=self.dtype, mode="r", shape=(int(self.offsets[-1]), self.dim))

    def batch(self, mapped: NDArray[np.floating], rows: Rows, scaler: FrameScaler | None) -> tuple[Tensor, Tensor]:
        """Frames of some utterances, standardised, zero beyond each.

        Args:
            mapped: of :meth:`open`.
            rows: B positions.
            scaler: None to leave the frames as they are.

        Returns:
            float32 [B, T, D] and bool [B, T].
        """
        lengths = self.lengths[rows]
        values = np.zeros((len(rows), int(lengths.max()), self.dim), np.float32)
        for place, (row, length) in enumerate(zip(rows.tolist(), lengths.tolist(), strict=True)):
            values[place, :length] = mapped[self.offsets[row] : self.offsets[row] + length]
        valid = torch.arange(values.shape[1])[None] < torch.from_numpy(lengths)[:, None]
        frames = torch.from_numpy(values)
        if scaler is not None:
            frames = frames.sub_(scaler.mean).div_(scaler.std).masked_fill_(~valid[..., None], 0.0)
        return frames, valid

    def scaler(self, rows: Rows) -> FrameScaler:
        """Mean and standard deviation over all frames of some utterances.

        A feature counts as constant when it varies by less than float32 can tell from its mean (1e-6 of it).
        """
        count = float(self.lengths[rows].sum())
        moments = np.memmap(self.moments, dtype=np.float64, mode="r", shape=(len(self.offsets) - 1, 2, self.dim))
        sums = np.zeros((2, self.dim))
        for start in range(0, len(rows), _SUMMED_ROWS):
            sums += moments[rows[start : start + _SUMMED_ROWS]].sum(axis=0)
        total, squares = sums / count  # each [D]
        std = np.sqrt(np.maximum(squares - total**2, 0.0))
        std[std <= 1e-6 * np.abs(total)] = 1.0
        std[std == 0.0] = 1.0
        return FrameScaler(torch.from_numpy(total).float(), torch.from_numpy(std).float())


@contextmanager
def frame_files(
    dataset: FrameDataset, stores: Mapping[str, EmbeddingStore], folder: Path
) -> Iterator[dict[str, FrameFile]]:
    """Unpack the frames of every source of a dataset; the files are removed at the end.

    Args:
        dataset: whose utterances.
        stores: source name to its store; sources that are the same frames share a file.
        folder: where the files are made.

    Raises:
        StorageError: the folder cannot hold them.
        StoreError: a part of a store is damaged or lost.
    """
    made: dict[str, FrameFile] = {}
    by_title: dict[str, FrameFile] = {}
    try:
        for name, source in dataset.sources.items():
            if source.title not in by_title:
                key = hashlib.sha256(source.title.encode()).hexdigest()[:20]
                # A name by which the next call removes it, should this process be killed.
                path = folder / f"{TEMPORARY_PREFIX}{key}-{os.getpid()}.frames"
                by_title[source.title] = _unpack(source, stores[name], dataset.utterance_ids, path)
            made[name] = by_title[source.title]
        yield made
    finally:
        for kind in ("frames", "moments"):
            for path in folder.glob(f"{TEMPORARY_PREFIX}*-{os.getpid()}.{kind}"):
                path.unlink(missing_ok=True)


def _unpack(source: FrameSource, store: EmbeddingStore, utterance_ids: Sequence[str], path: Path) -> FrameFile:
    wanted = dict(zip(store.utterance_ids, store.num_frames.tolist(), strict=True))
    lengths = -(-np.array([wanted[name] for name in utterance_ids], dtype=np.int64) // source.stride)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    sums = path.with_suffix(".moments")
    size = int(offsets[-1]) * source.dim * np.dtype(source.dtype).itemsize
    digest = hashlib.sha256("\n".join(utterance_ids).encode() + lengths.tobytes() + source.dtype.encode())
    try:
        with path.open("wb") as handle, sums.open("wb") as moments:
            os.posix_fallocate(handle.fileno(), 0, max(size, 1))  # a full disk is no crash later
            found = store.frames(utterance_ids, representation=source.representation)
            for frames in found:
                content = np.ascontiguousarray(_averaged(frames, source.stride), dtype=source.dtype)
                handle.write(content.tobytes())
                digest.update(content.data)
                exact = content.astype(np.float64)
                moments.write(np.stack([exact.sum(axis=0), np.square(exact).sum(axis=0)]).tobytes())
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError(
            f"{path} cannot hold the {size / 1e9:.1f} GB of frames of {source.title} that are to be trained on:"
            f" {error.strerror or error}. Free disk space, or choose another folder with --runs-dir."
        ) from error
    return FrameFile(path, source.dtype, source.dim, offsets, sums, digest.hexdigest())


def _averaged(frames: NDArray[np.floating], stride: int) -> NDArray[np.floating]:
    """Means of runs of ``stride`` frames, [T, D] to [ceil(T / stride), D]."""
    if stride == 1:
        return frames
    starts = np.arange(0, len(frames), stride)
    sums = np.add.reduceat(frames.astype(np.float64), starts, axis=0)
    means: NDArray[np.floating] = sums / np.diff([*starts, len(frames)])[:, None]
    return means


# ---------------------------------------------------------------------------------------------------------------------
# Batches


def batches_by_length(
    rows: Rows, lengths: NDArray[np.int64], *, batch_size: int, stream: np.random.Generator | None = None
) -> list[Rows]:
    """Divide rows into batches of similar lengths, so that little of a batch is padding.

    For training (with a ``stream``) rows are shuffled, sorted by length within pools of 16 batches, and the batches shuffled; for
    testing they are sorted as a whole. Every row is in one batch; the last one of a pool may be smaller.

    Args:
        rows: positions.
        lengths: of all utterances.
        batch_size: rows per batch.
        stream: random numbers; None for testing.
    """
    pool = _POOL * batch_size if stream is not None else len(rows)
    order = stream.permutation(rows) if stream is not None else rows
    batches: list[Rows] = []
    for start in range(0, len(order), max(1, pool)):
        part = order[start : start + pool]
        part = part[np.argsort(lengths[part], kind="stable")]
        batches += [part[at : at + batch_size] for at in range(0, len(part), batch_size)]
    return batches if stream is None else [batches[index] for index in stream.permutation(len(batches))]
