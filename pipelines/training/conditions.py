"""Rows over conditions: the same utterances, several stores, one matrix.

Whoever trains or tests under several conditions (clean, noise, rooms, transcripts by a recogniser) needs the same n utterances
under each, in the same order. Here the stores of all of them are joined by utterance id; utterances that one store could not
encode are left out everywhere, and counted. The matrices of b stores are laid below each other, *blocks* of n rows: row
``block * n + utterance`` is that utterance in that store, so that one training run may learn from some blocks and be tested on
others, and a fold's rows in a block are the fold's rows plus ``block * n``.

Matrices lie in files, mapped into every process that trains: in memory once, however many processes there are.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipelines.corpora.manifest import Manifest
from pipelines.errors import ManifestError, StorageError, StoreError, UtteranceError, unknown_name
from pipelines.files import TEMPORARY_PREFIX
from pipelines.locations import Location
from pipelines.store.embeddings import open_store, store_path
from pipelines.store.transcripts import parse_text_condition
from pipelines.training.data import Dataset, Source, load_dataset, read_source, source_shape

if TYPE_CHECKING:
    import torch

__all__ = [
    "StoreName",
    "StoredRows",
    "block_rows",
    "check_stores",
    "extract_command",
    "load_conditions",
    "place_of",
    "write_blocks",
]

StoreName = tuple[str, str]
"""Encoder and condition: which store of a corpus."""

_ASR = "asr:"


def extract_command(corpus: str, encoder: str, condition: str, *, frames: bool = False) -> str:
    """The command that makes a store, for messages."""
    command = f"hyfuse extract --model {encoder} --corpus {corpus}"
    if condition.startswith(_ASR):
        model, condition = parse_text_condition(condition)
        command += f" --transcripts {_ASR}{model}"
    if condition != "clean":
        command += f" --condition {condition}"
    command += " --frames" if frames else ""
    return command + (" --weights random" if encoder.endswith("-tiny") else "")


def check_stores(corpus: str, stores: Sequence[StoreName], *, cache_dir: Location) -> None:
    """See whether stores are there.

    Args:
        corpus: its name.
        stores: which.
        cache_dir: folder of the stores.

    Raises:
        StoreError: some are not; the message has the commands that make all of them.
    """
    missing = [
        (encoder, condition)
        for encoder, condition in dict.fromkeys(stores)
        if not (store_path(cache_dir, corpus, encoder, condition) / "zarr.json").is_file()
    ]
    if missing:
        listed = ", ".join(f"{encoder} under {condition}" for encoder, condition in missing)
        commands = "; ".join(f"`{extract_command(corpus, *store)}`" for store in missing)
        raise StoreError(
            f"{len(missing)} of the {len(dict.fromkeys(stores))} stores of corpus {corpus!r} needed here are not in {cache_dir}:"
            f" {listed}. Make them with {commands}, or name another cache with --cache-dir."
        )


def load_conditions(
    manifest: Manifest,
    stores: Sequence[StoreName],
    *,
    cache_dir: Location,
    classes: Sequence[str] = (),
    dimensions: Sequence[str] = (),
    soft: bool = False,
    representations: Mapping[str, str] | None = None,
    layer: str = "",
    pool: str = "mean+std",
) -> tuple[Dataset, dict[StoreName, Source]]:
    """Find stores and the utterances that all of them hold.

    Args:
        manifest: the corpus.
        stores: which, each with the condition it was made under.
        cache_dir: folder of the stores.
        classes: emotions to train on.
        dimensions: what to train on in place of classes.
        soft: whether classes are to be learned from the votes of the raters.
        representations: encoder to representation, the same under every condition.
        layer: as in :func:`pipelines.training.data.load_dataset`; encoders without layers keep their default.
        pool: ``mean``, ``std`` or ``mean+std``.

    Returns:
        The utterances, with one source per encoder (that of its first store), and the source of every store.

    Raises:
        StoreError: a store is absent, unfinished or damaged; the message has the command that makes it.
        UtteranceError: no utterance, or none of a class, is in all of the stores.
        HyfuseError: what :func:`pipelines.training.data.load_dataset` raises.
    """
    wanted = list(dict.fromkeys(stores))
    check_stores(manifest.corpus, wanted, cache_dir=cache_dir)
    chosen = dict(representations or {})
    for name in chosen:
        if name not in {encoder for encoder, _ in wanted}:
            raise unknown_name("encoder in --representation", name, {encoder for encoder, _ in wanted})
    found: dict[StoreName, Dataset] = {}
    for encoder, condition in wanted:
        names = open_store(store_path(cache_dir, manifest.corpus, encoder, condition)).provenance.representations
        found[encoder, condition] = load_dataset(
            manifest,
            cache_dir=cache_dir,
            encoders=[encoder],
            classes=classes,
            dimensions=dimensions,
            soft=soft,
            representations={encoder: chosen[encoder]} if encoder in chosen else {},
            layer=layer if any(name.startswith("layer_") for name in names) else "",
            pool=pool,
            condition=condition,
        )
    shared = set.intersection(*(set(dataset.utterance_ids) for dataset in found.values()))
    dataset = _restricted(next(iter(found.values())), shared)
    left_out = {_under(reason, store): count for store, one in found.items() for reason, count in one.left_out.items()}
    _check_shared(manifest, dataset, left_out)
    sources = {store: one.sources[store[0]] for store, one in found.items()}
    by_encoder: dict[str, Source] = {}
    for (encoder, _), source in sources.items():
        by_encoder.setdefault(encoder, source)
    failed = frozenset().union(*(one.failed for one in found.values()))
    return replace(dataset, sources=by_encoder, left_out=left_out, failed=failed), sources


def _under(reason: str, store: StoreName) -> str:
    """A reason for leaving utterances out; a failure names the condition as well."""
    return f"{reason} under {store[1]}" if reason == f"failed in {store[0]}" and store[1] != "clean" else reason


def _restricted(dataset: Dataset, ids: set[str]) -> Dataset:
    rows = np.array([row for row, name in enumerate(dataset.utterance_ids) if name in ids], dtype=np.int64)
    if len(rows) == len(dataset.utterance_ids):
        return dataset

    def kept(column: Sequence[str]) -> tuple[str, ...]:
        return tuple(column[row] for row in rows)

    return replace(
        dataset,
        utterance_ids=kept(dataset.utterance_ids),
        speakers=kept(dataset.speakers),
        sessions=kept(dataset.sessions),
        official=kept(dataset.official),
        labels=dataset.labels[rows],
        values=dataset.values[rows],
        votes=None if dataset.votes is None else dataset.votes[rows],
    )


def _check_shared(manifest: Manifest, dataset: Dataset, left_out: Mapping[str, int]) -> None:
    listed = ", ".join(f"{count} {reason}" for reason, count in left_out.items()) or "none"
    help_ = (
        f"Left out: {listed}. See what failed with `hyfuse cache list`, and extract again what should not have failed."
    )
    if not dataset.utterance_ids:
        raise UtteranceError(f"No utterance of corpus {manifest.corpus!r} is in all of the stores. {help_}")
    for position, name in enumerate(dataset.classes):
        if not (dataset.labels == position).any():
            raise UtteranceError(
                f"No utterance of {name} of corpus {manifest.corpus!r} is in all of the stores. {help_}"
            )
    for name, column in zip(dataset.dimensions, dataset.values.T, strict=True):
        if column.min() == column.max():
            raise ManifestError(
                f"All {len(column)} utterances of corpus {manifest.corpus!r} that are in all of the stores have the same {name},"
                f" {column[0]:g}: its concordance is not defined. {help_}"
            )


def block_rows(rows: NDArray[np.int64], blocks: Sequence[int], utterances: int) -> NDArray[np.int64]:
    """Rows of the same utterances in several blocks, block after block.

    Args:
        rows: m positions of utterances.
        blocks: b positions of blocks.
        utterances: n.

    Returns:
        int64 [b m].
    """
    at = np.asarray(blocks, dtype=np.int64)[:, None] * utterances + rows[None, :]
    flat: NDArray[np.int64] = at.reshape(-1)
    return flat


def place_of(rows: NDArray[np.int64], utterances: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Block and utterance of each row; reverse of :func:`block_rows`."""
    block, utterance = np.divmod(rows, utterances)
    return block, utterance


@dataclass(frozen=True)
class StoredRows:
    """A matrix in a file; cheap to send to another process.

    Attributes:
        path: the file, float32.
        shape: [N, D] or [N, R, D].
    """

    path: Path
    shape: tuple[int, ...]

    def tensor(self) -> torch.Tensor:
        """The matrix, mapped: all processes share its pages, and the system may let go of them."""
        import torch

        # Mode "c": torch wants memory that it might write to; nothing does.
        return torch.from_numpy(np.memmap(self.path, dtype=np.float32, mode="c", shape=self.shape))

    def remove(self) -> None:
        """Remove the file."""
        self.path.unlink(missing_ok=True)


def write_blocks(sources: Sequence[Source], utterance_ids: Sequence[str], *, folder: Path, name: str) -> StoredRows:
    """Write the matrices of several stores below each other into one file.

    A source that comes several times (transcripts by hand, which no noise changes) is read once and written every time.

    Args:
        sources: of the blocks; of the same width.
        utterance_ids: n ids.
        folder: where; a file that a killed process left there is removed by the next call of the study.
        name: what tells the file from others of this process.

    Raises:
        StoreError: stores of different width.
        StorageError: the folder cannot hold it.
    """
    shapes = {source_shape(source, len(utterance_ids)) for source in sources}
    if len(shapes) > 1:
        listed = ", ".join(f"{source.path.name}: {source.dim}" for source in sources)
        raise StoreError(
            f"Stores of one encoder differ in their width ({listed}). Extract them again with one version."
        )
    (shape,) = shapes
    whole = (len(sources) * shape[0], *shape[1:])
    path = folder / f"{TEMPORARY_PREFIX}{name}-{os.getpid()}.f32"
    try:
        with path.open("wb") as handle:  # reserves the space: a full disk is no crash later
            os.posix_fallocate(handle.fileno(), 0, 4 * int(np.prod(whole)))
        mapped = np.memmap(path, dtype=np.float32, mode="r+", shape=whole)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise StorageError(
            f"{path} cannot hold the {4 * np.prod(whole) / 1e9:.1f} GB of {sources[0].encoder} under {len(sources)} condition(s):"
            f" {error.strerror or error}. Free disk space, or choose another folder with --runs-dir."
        ) from error
    first: dict[str, int] = {}
    for block, source in enumerate(sources):
        own = mapped[block * shape[0] : (block + 1) * shape[0]]
        known = first.setdefault(f"{source.path} {source.representation}", block)
        if known < block:
            own[:] = mapped[known * shape[0] : (known + 1) * shape[0]]
        else:
            read_source(source, utterance_ids, out=own)
    mapped.flush()
    return StoredRows(path, whole)
