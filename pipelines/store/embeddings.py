"""The store: one encoder's pooled embeddings of one corpus under one condition, as a Zarr v3 group.

Arrays (N utterances in manifest order, R representations, D features):

============ ============== ======= ==================================================================
array        shape          type    meaning
============ ============== ======= ==================================================================
mean         [N, R, D]      float32 mean over frames; NaN where there is none
std          [N, R, D]      float32 standard deviation over frames (biased); 0 for one frame
num_frames   [N]            int32   frames T that were pooled
duration_s   [N]            float64 seconds of decoded audio
status       [N]            uint8   0 to do, 1 done, 2 failed
failure      [N]            text    why a recording failed, empty otherwise
utterance_id [N]            text    rows are joined by id, never by position
============ ============== ======= ==================================================================

and, if frames are kept, ``frames/…`` (see :mod:`pipelines.store.frames`). Attributes are the
:class:`~pipelines.store.provenance.Provenance`, ``block_rows`` and ``frames``. A block is ``block_rows`` manifest rows and
exactly one Zarr shard of every row array, so two blocks never touch the same file, and different processes may write different
blocks (:mod:`pipelines.store.locks` keeps them from writing the same ones). A block's data is written first and its ``status``
last, each file by an atomic rename: whatever moment a run is killed at, the next one finds whole blocks only, redoes the others,
and ends with the same bytes. Before a block is written once more its status goes back to 0. Data reaches the disk (``fsync``)
before the status is written, so that this holds for a power failure, too. Inside a shard every representation is a chunk of its
own, so that training reads one layer out of thirteen; chunks carry a checksum.

A new store is built under a temporary name and renamed when its group and arrays are complete; on object storage, the group's own
metadata is put last. Reading needs no lock. Nothing here depends on clocks.

Measured on two shared cores, ext4 on a virtual disk. Writing a block of 256 rows takes 9 ms with R D = 8 (5 ms without ``fsync``),
90 ms with R D = 13 · 768 (37 ms without), 0.4 s with 150 frames per row of 768 numbers. Of a store of 1,000,000 rows
(``pytest -s tests/store/test_scale.py``) making and opening takes 1.4 s and 36 MB of memory; its status is read in 0.6 s, a
thousand rows of it in 2.5 s and 120 MB if all blocks are done.
"""

from __future__ import annotations

import glob
import hashlib
import os
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.abc.store import Store
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.storage import LocalStore, MemoryStore, ObjectStore

from pipelines.errors import ConfigError, ProvenanceError, StorageError, StoreError, UtteranceError, unknown_name
from pipelines.files import TEMPORARY_PREFIX
from pipelines.locations import Location, ObjectPath, is_storage_failure, storage_errors
from pipelines.store.frames import FrameSpec, block_folder, fits, open_block, read_ranges, write_block_frames
from pipelines.store.locks import Shard, lock_files, making_lock, store_lock
from pipelines.store.provenance import ENVIRONMENT_FIELDS, IDENTITY_FIELDS, Provenance

__all__ = [
    "BLOCK_ROWS",
    "DONE",
    "FAILED",
    "POOLS",
    "TODO",
    "BlockResult",
    "EmbeddingStore",
    "FrameSpec",
    "StoreWriter",
    "attach_writer",
    "find_stores",
    "open_store",
    "open_writer",
    "remove_store",
    "store_digest",
    "store_path",
    "verify_store",
]

BLOCK_ROWS = 256
TODO, DONE, FAILED = 0, 1, 2
POOLS = ("mean", "std", "mean+std")

_ROW_ARRAYS = ("mean", "std", "num_frames", "duration_s", "failure", "status")
_ID_ROWS = 65_536  # utterance ids per chunk: neither many files nor all ids in memory at once
_FRAME_BYTES = 2**26  # of frames that are read at a time
_AT_ONCE = 64 * BLOCK_ROWS  # rows that are looked at together where the whole store is gone through


@dataclass(frozen=True)
class BlockResult:
    """What extraction found out about the rows of one block (n of them).

    Attributes:
        mean: float32 [n, R, D]; NaN in failed rows.
        std: float32 [n, R, D]; NaN in failed rows.
        num_frames: int32 [n]; 0 in failed rows.
        duration_s: float64 [n]; NaN where the recording could not be decoded.
        failure: n reasons; empty for rows that are done.
        frames: representation to n arrays [T, D], T as in ``num_frames``; None for a store without frames.
    """

    mean: NDArray[np.float32]
    std: NDArray[np.float32]
    num_frames: NDArray[np.int32]
    duration_s: NDArray[np.float64]
    failure: Sequence[str]
    frames: Mapping[str, Sequence[NDArray[np.floating]]] | None = None


def store_path(cache_dir: Location, corpus: str, encoder: str, condition: str = "clean") -> Location:
    """Where the store of an encoder's embeddings of a corpus under a condition lies."""
    return cache_dir / corpus / encoder / f"{condition}.zarr"


def _command(path: Location, verb: str) -> str:
    """A `hyfuse cache` command for the store at ``path``."""
    corpus, encoder, cache_dir = path.parent.parent.name, path.parent.name, path.parent.parent.parent
    return f"`hyfuse cache {verb} {corpus}/{encoder}/{path.stem} --cache-dir {cache_dir}`"


def _zarr_store(path: Location, *, read_only: bool) -> Store:
    """The files of a store, as Zarr sees them."""
    if isinstance(path, ObjectPath):
        return ObjectStore(path.client(below=True), read_only=read_only)
    return LocalStore(path, read_only=read_only)


def _is_there(path: Location) -> bool:
    """Whether there is a store; on object storage its group is put last, so what is without one is half made or half removed."""
    return (path / "zarr.json").is_file() if isinstance(path, ObjectPath) else path.is_dir()


def _array_of(group: zarr.Group, name: str) -> zarr.Array:  # type: ignore[type-arg]
    array = group[name]
    assert isinstance(array, zarr.Array)
    return array


def _blocks_of(rows: NDArray[np.int64], block_rows: int) -> list[int]:
    """The blocks that rows lie in, in order."""
    return [int(block) for block in np.unique(rows // block_rows)]


# ---------------------------------------------------------------------------------------------------- reading


@dataclass(frozen=True)
class EmbeddingStore:
    """A store opened for reading; nothing is read before it is asked for.

    Attributes:
        path: the ``.zarr`` folder.
        provenance: where the numbers come from.
        block_rows: rows per block.
        frame_spec: which frames it keeps; None for none.
    """

    path: Location
    provenance: Provenance
    block_rows: int
    frame_spec: FrameSpec | None
    _group: zarr.Group = field(repr=False)
    _arrays: dict[str, zarr.Array] = field(default_factory=dict, repr=False, compare=False)  # type: ignore[type-arg]

    def __len__(self) -> int:
        return int(self._array("status").shape[0])

    @cached_property
    def utterance_ids(self) -> list[str]:
        """Ids in manifest order."""
        return [name for start in range(0, len(self), _ID_ROWS) for name in self._ids(start)]

    @cached_property
    def status(self) -> NDArray[np.uint8]:
        """uint8 [N]: 0 to do, 1 done, 2 failed."""
        return np.asarray(self._read("status"))

    @cached_property
    def num_frames(self) -> NDArray[np.int32]:
        """int32 [N].

        Raises:
            StoreError: a row that is done has none, so the array is damaged.
        """
        found = np.asarray(self._read("num_frames"))
        if (found[self.status == DONE] < 1).any():
            raise self._damaged("array 'num_frames' has lost a part: rows that are done have no frames")
        return found

    @cached_property
    def duration_s(self) -> NDArray[np.float64]:
        """float64 [N], seconds."""
        return np.asarray(self._read("duration_s"))

    @cached_property
    def offsets(self) -> NDArray[np.int64]:
        """int64 [N + 1]: where each utterance's frames would begin if all frames of the store lay after each other."""
        counts = np.where(self.status == DONE, self.num_frames, 0)  # of a block to do, anything may be there
        return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])

    @property
    def frame_representations(self) -> tuple[str, ...]:
        """Representations whose frames are kept; empty for none."""
        return self.frame_spec.representations if self.frame_spec is not None else ()

    @property
    def frame_dtype(self) -> str:
        """``float16``, ``float32``, or empty where no frames are kept."""
        return self.frame_spec.dtype if self.frame_spec is not None else ""

    @property
    def counts(self) -> tuple[int, int, int]:
        """How many rows are (to do, done, failed)."""
        found = np.bincount(self.status, minlength=3)
        return int(found[TODO]), int(found[DONE]), int(found[FAILED])

    @property
    def is_complete(self) -> bool:
        """Whether no row is left to do."""
        return self.counts[0] == 0

    def failures(self) -> dict[str, str]:
        """Utterance id to reason, for every recording that failed."""
        rows = np.flatnonzero(self.status == FAILED)
        if not len(rows):
            return {}
        names = self._read("utterance_id", rows) if "utterance_ids" not in self.__dict__ else None
        reasons = self._read("failure", rows)
        return {
            str(names[position]) if names is not None else self.utterance_ids[row]: str(reasons[position])
            for position, row in enumerate(rows.tolist())
        }

    def features(self, utterance_ids: Sequence[str], *, representation: str, pool: str) -> NDArray[np.float32]:
        """Embeddings of the utterances asked for, joined by id; of the store, only the blocks they lie in are read.

        Args:
            utterance_ids: n ids.
            representation: one of ``provenance.representations``.
            pool: ``mean``, ``std`` or ``mean+std`` (the two beside each other). Utterance-level representations have one frame
                and no spread: ``mean+std`` gives their mean alone.

        Returns:
            float32 [n, D], or [n, 2 D] for ``mean+std``. Never NaN.

        Raises:
            UnknownNameError: no such representation.
            ConfigError: no such pooling, or ``std`` of an utterance-level representation.
            UtteranceError: an id is not in the store, failed there, or is still to do.
            StoreError: a part of the store is damaged or lost.
        """
        names = self.provenance.representations
        if representation not in names:
            raise unknown_name(f"representation of {self.provenance.encoder}", representation, names)
        if pool not in POOLS:
            raise ConfigError(f"Pooling must be one of {', '.join(POOLS)}, not {pool!r}.")
        rows = self._rows(utterance_ids)
        # Of the whole store: which utterances are asked for must not decide how many features come back.
        has_spread = bool((self.num_frames > 1).any())
        if pool == "std" and not has_spread:
            raise ConfigError(
                f"{self.provenance.encoder} gives one frame per utterance, so there is no std to pool. Use `--pool mean`."
            )
        arrays = {"mean": ["mean"], "std": ["std"], "mean+std": ["mean", "std"] if has_spread else ["mean"]}[pool]
        index = names.index(representation)
        found = np.empty((len(rows), self.provenance.dim * len(arrays)), np.float32)
        for position, name in enumerate(arrays):
            values = self._read(name, rows, index)
            if not np.isfinite(values).all():
                row = rows[np.flatnonzero(~np.isfinite(values).all(axis=1))[0]]
                raise self._damaged(
                    f"array {name!r} holds no numbers for {self.utterance_ids[row]}, which is done: a part of it is lost"
                )
            found[:, position * self.provenance.dim : (position + 1) * self.provenance.dim] = values
        return found

    def frames(self, utterance_ids: Sequence[str], *, representation: str) -> Iterator[NDArray[np.floating]]:
        """Frames of the utterances asked for, one after the other; of every block, only the chunks they lie in are read.

        Args:
            utterance_ids: n ids. Asked for in manifest order, no chunk is read twice.
            representation: one of ``frame_representations``.

        Returns:
            n arrays [T, D] of ``frame_dtype``. Never NaN.

        Raises:
            StoreError: no frames are kept, or a part of them is damaged or lost.
            UnknownNameError: not of this representation.
            UtteranceError: as for :meth:`features`.
        """
        if self.frame_spec is None:
            raise StoreError(
                f"{self.path} keeps no frames. Remove it with {_command(self.path, 'remove')} and extract again with `--frames`, or"
                " into another --cache-dir."
            )
        if representation not in self.frame_representations:
            raise unknown_name(f"representation with frames in {self.path}", representation, self.frame_representations)
        return self._frames(self._rows(utterance_ids), representation)

    def _frames(self, rows: NDArray[np.int64], representation: str) -> Iterator[NDArray[np.floating]]:
        start = 0
        while start < len(rows):
            block, stop = int(rows[start]) // self.block_rows, start + 1
            while stop < len(rows) and rows[stop] // self.block_rows == block and stop - start < self.block_rows:
                stop += 1
            yield from self._frames_of_block(block, rows[start:stop], representation)
            start = stop

    def _frames_of_block(
        self, block: int, rows: NDArray[np.int64], representation: str
    ) -> Iterator[NDArray[np.floating]]:
        first = block * self.block_rows
        begins = self.offsets[rows] - self.offsets[first]
        ends = begins + self.num_frames[rows]
        total = int(self.offsets[min(first + self.block_rows, len(self))] - self.offsets[first])
        name = block_folder(representation, block)
        most = max(1, _FRAME_BYTES // (self.provenance.dim * np.dtype(self.frame_dtype).itemsize))
        start = 0
        while start < len(rows):
            stop, count = start + 1, int(ends[start] - begins[start])
            while stop < len(rows) and count + ends[stop] - begins[stop] <= most:
                count += int(ends[stop] - begins[stop])
                stop += 1
            with self._explained(name):
                array = open_block(self._group.store, representation=representation, block=block)
                ranges = [(int(begins[row]), int(ends[row])) for row in range(start, stop)]
                found = read_ranges(array, ranges) if array.shape == (total, self.provenance.dim) else []
            if not found or not all(np.isfinite(one).all() for one in found):
                raise self._damaged(f"array {name!r} has lost a part")
            yield from found
            start = stop

    def _rows(self, utterance_ids: Sequence[str]) -> NDArray[np.int64]:
        """Positions of ids that are done."""
        wanted = set(utterance_ids)
        position = {name: row for row, name in enumerate(self.utterance_ids) if name in wanted}
        absent = [name for name in utterance_ids if name not in position]
        if absent:
            if "" in self.utterance_ids:
                raise self._damaged("array 'utterance_id' has lost a part")
            raise UtteranceError(
                f"{len(absent)} of {len(utterance_ids)} utterances are not in {self.path}: {_few(absent)}. It was made from"
                f" another manifest (digest {self.provenance.manifest_digest[:12]}…). Remove it with"
                f" {_command(self.path, 'remove')} and run `hyfuse extract` again."
            )
        rows = np.fromiter((position[name] for name in utterance_ids), dtype=np.int64, count=len(utterance_ids))
        status = self.status[rows]
        if todo := [utterance_ids[index] for index in np.flatnonzero(status == TODO).tolist()]:
            raise UtteranceError(
                f"{len(todo)} of {len(utterance_ids)} utterances are still to do in {self.path}: {_few(todo)}. Finish it with"
                f" `hyfuse extract --model {self.provenance.encoder} --corpus {self.provenance.corpus}`."
            )
        if failed := [utterance_ids[index] for index in np.flatnonzero(status == FAILED).tolist()]:
            reason = self.failures()[failed[0]]
            raise UtteranceError(
                f"{len(failed)} of {len(utterance_ids)} utterances failed in {self.path}: {_few(failed)} ({reason})."
            )
        return rows

    def _ids(self, start: int) -> list[str]:
        """One chunk of ids, from a row on."""
        return [str(name) for name in self._read("utterance_id", slice(start, start + _ID_ROWS)).tolist()]

    def _read(
        self, name: str, rows: slice | NDArray[np.int64] = slice(None), representation: int | None = None
    ) -> NDArray[Any]:
        """Rows of an array, or of one representation [n, D] of it."""
        with self._explained(name):
            array = self._array(name)
            if isinstance(rows, slice):
                return np.asarray(array[rows] if representation is None else array[rows, representation])
            needed, where = np.unique(rows, return_inverse=True)
            if len(needed) == array.shape[0]:
                return np.asarray(array[:] if representation is None else array[:, representation])[rows]
            parts = [
                np.asarray(array.oindex[chosen] if representation is None else array.oindex[chosen, representation])
                for chosen in (needed[start : start + _AT_ONCE] for start in range(0, len(needed), _AT_ONCE))
            ]
            found = (
                np.concatenate(parts) if parts else np.asarray(array[:0] if representation is None else array[:0, 0])
            )
            return found if np.array_equal(where, np.arange(len(found))) else found[where]

    def _array(self, name: str) -> zarr.Array:  # type: ignore[type-arg]
        """An array; opened once."""
        if name not in self._arrays:
            with self._explained(name):
                self._arrays[name] = _array_of(self._group, name)
        return self._arrays[name]

    @contextmanager
    def _explained(self, name: str) -> Iterator[None]:
        """What damage leads to has no common base: JSON, codecs, checksums and disk all complain."""
        try:
            yield
        except (StoreError, StorageError, MemoryError):
            raise
        except Exception as error:
            if is_storage_failure(error):
                with storage_errors(self.path, doing="read"):
                    raise
            raise self._damaged(f"array {name!r} cannot be read ({error})") from error

    def _damaged(self, what: str) -> StoreError:
        return StoreError(
            f"{self.path} is damaged: {what}. See {_command(self.path, 'verify')}; remove it with {_command(self.path, 'remove')}"
            " and extract again."
        )


def _few(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")


def open_store(
    path: Location, *, manifest_digest: str | None = None, weights_kind: str | None = None, complete: bool = True
) -> EmbeddingStore:
    """Open a store for reading and check it against what is asked for.

    Args:
        path: the ``.zarr`` folder.
        manifest_digest: the manifest it must have been made from.
        weights_kind: ``pretrained`` or ``random``, where it matters.
        complete: whether rows that are still to do are an error.

    Raises:
        StoreError: absent, damaged, of another schema, or unfinished.
        ProvenanceError: made from another manifest or with other weights.
        StorageError: object storage cannot be reached.
    """
    store = _open(path)
    made = store.provenance
    for name, found, asked in (
        ("manifest_digest", made.manifest_digest, manifest_digest),
        ("weights_kind", made.weights_kind, weights_kind),
    ):
        if asked is not None and asked != found:
            raise _mismatch(path, [(name, found[:12], asked[:12])])
    if complete and not store.is_complete:
        todo, done, failed = store.counts
        raise StoreError(
            f"{path} is unfinished: {done} done, {failed} failed, {todo} to do. Finish it with"
            f" `hyfuse extract --model {made.encoder} --corpus {made.corpus}`."
        )
    return store


def _open(path: Location) -> EmbeddingStore:
    if not _is_there(path):
        corpus, encoder = path.parent.parent.name, path.parent.name
        if isinstance(path, ObjectPath):
            path.is_dir()  # a bucket that does not exist is another error
        raise StoreError(
            f"There is no store at {path}. Make it with `hyfuse extract --model {encoder} --corpus {corpus}`, or name another"
            " cache with --cache-dir."
        )
    try:
        group = zarr.open_group(_zarr_store(path, read_only=True), mode="r", zarr_format=3)
        attributes = dict(group.attrs)
        block_rows = int(str(attributes["block_rows"]))
        frames = FrameSpec.from_attributes(attributes.get("frames"))
    except Exception as error:  # see EmbeddingStore._explained
        if is_storage_failure(error):
            with storage_errors(path, doing="read"):
                raise
        raise StoreError(
            f"{path} is not a hyfuse store, or is damaged ({type(error).__name__}: {error}). Remove it with"
            f" {_command(path, 'remove')} and extract again."
        ) from error
    return EmbeddingStore(path, Provenance.from_attributes(attributes, origin=str(path)), block_rows, frames, group)


def _mismatch(path: Location, differences: Sequence[tuple[str, str, str]]) -> ProvenanceError:
    listed = "; ".join(f"{name}: the store has {found}, asked for is {asked}" for name, found, asked in differences)
    return ProvenanceError(
        f"The store {path} was made from something else. {listed}. To make it anew, remove it with {_command(path, 'remove')};"
        " to keep both, use another --cache-dir."
    )


# ---------------------------------------------------------------------------------------------------- writing


class StoreWriter:
    """A store opened for writing, one block at a time; made by :func:`open_writer` and :func:`attach_writer`.

    Different blocks may be written by different threads and processes at once.
    """

    def __init__(
        self, *, store: EmbeddingStore, shard: Shard | None = None, retry_failed: bool = False, attached: bool = False
    ) -> None:
        with storage_errors(store.path, doing="written"):
            group = zarr.open_group(_zarr_store(store.path, read_only=False), mode="r+", zarr_format=3)
            self._arrays = {name: _array_of(group, name) for name in _ROW_ARRAYS}
        self.store = store
        self._shard = shard
        self._attached = attached
        self._stored: NDArray[np.uint8] = store.status.copy()
        failed = np.flatnonzero(self._stored == FAILED) if retry_failed else np.empty(0, np.int64)
        self._retry = set(_blocks_of(failed, store.block_rows))

    @property
    def num_blocks(self) -> int:
        """Blocks in all."""
        return -(-len(self._stored) // self.store.block_rows)

    def rows_of(self, block: int) -> range:
        """Manifest rows of a block."""
        start = block * self.store.block_rows
        return range(start, min(start + self.store.block_rows, len(self._stored)))

    def blocks_to_do(self) -> list[int]:
        """Blocks with a row to do (or, to be tried again, a failed one), in order; of a shard, those that are its own."""
        todo = {*_blocks_of(np.flatnonzero(self._stored == TODO), self.store.block_rows), *self._retry}
        i, n = self._shard or (0, 1)
        return sorted(block for block in todo if block % n == i)

    def rows_done(self) -> int:
        """Rows that need no more work, whoever did them."""
        retried = sum(int((self._stored[self._slice(block)] == FAILED).sum()) for block in self._retry)
        return int((self._stored != TODO).sum()) - retried

    def refresh(self) -> None:
        """Read again what other processes have done meanwhile. Blocks to be tried again stay so until this writer writes them."""
        self.store = _open(self.store.path)
        self._stored = self.store.status.copy()

    def write_block(self, block: int, result: BlockResult) -> None:
        """Write one block, its status last.

        Raises:
            ValueError: the result is not what this store's block needs, for instance has frames that are not finite in its type.
            StorageError: the disk is full or cannot be written, or object storage cannot; blocks written before stay.
        """
        status = np.array([FAILED if reason else DONE for reason in result.failure], dtype=np.uint8)
        self._check(block, result)
        where, path = self._slice(block), self.store.path
        with storage_errors(path, doing="written"):
            if self._attached or (self._stored[where] != TODO).any():
                self._arrays["status"][where] = np.full(len(status), TODO, np.uint8)
                if isinstance(path, Path) and (path / "status" / "c").is_dir():
                    _fsync(path / "status" / "c")
            for name in ("mean", "std", "num_frames", "duration_s"):
                self._arrays[name][where] = getattr(result, name)
            self._arrays["failure"][where] = np.array(result.failure, dtype=np.dtypes.StringDType())
            written: list[Location] = []
            for representation in self.store.frame_representations:
                assert result.frames is not None
                written += write_block_frames(
                    path,
                    representation=representation,
                    block=block,
                    frames=result.frames[representation],
                    dim=self.store.provenance.dim,
                    dtype=self.store.frame_dtype,
                )
            if isinstance(path, Path):
                chunks = [f"mean/c/{block}/0/0", f"std/c/{block}/0/0"]
                chunks += [f"{name}/c/{block}" for name in ("num_frames", "duration_s", "failure")]
                _reach_disk(
                    path, [*(path / name for name in chunks), *(file for file in written if isinstance(file, Path))]
                )
            self._arrays["status"][where] = status
        self._stored[where] = status
        self._retry.discard(block)

    def _slice(self, block: int) -> slice:
        rows = self.rows_of(block)
        return slice(rows.start, rows.stop)

    def _check(self, block: int, result: BlockResult) -> None:
        """Whether a result fits: mistakes of the caller, not of the user."""
        count, made = len(self.rows_of(block)), self.store.provenance
        if len(result.failure) != count:
            raise ValueError(f"Block {block} has {count} rows, not {len(result.failure)}.")
        shape = (count, len(made.representations), made.dim)
        if result.mean.shape != shape or result.std.shape != shape:
            raise ValueError(f"Block {block} is {shape}, not {result.mean.shape} and {result.std.shape}.")
        if set(result.frames or {}) != set(self.store.frame_representations):
            raise ValueError(
                f"This store keeps frames of {self.store.frame_representations}, not of {tuple(result.frames or ())}."
            )
        for name, frames in (result.frames or {}).items():
            lengths = [len(one) for one in frames]
            if lengths != np.asarray(result.num_frames).tolist():
                raise ValueError(f"Frames of {name} are {lengths} long; num_frames is {list(result.num_frames)}.")
            if any(one.ndim != 2 or one.shape[1] != made.dim for one in frames):
                raise ValueError(f"Frames of {name} must be [T, {made.dim}].")
            if not all(fits(one, self.store.frame_dtype) for one in frames):
                raise ValueError(f"Frames of {name} are not finite as {self.store.frame_dtype}.")


def _reach_disk(root: Path, files: Sequence[Path]) -> None:
    """Have the disk hold files, and the folders that name them, before anything is built upon them.

    Raises:
        OSError: it cannot.
    """
    there = [file for file in files if file.exists()]  # chunks of nothing but fill values are not written
    folders = {folder for file in there for folder in file.parents if root in folder.parents}
    with ThreadPoolExecutor(8) as threads:  # at once, the file system commits them together
        list(threads.map(_fsync, [*there, *folders]))


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def open_writer(
    path: Location,
    *,
    provenance: Provenance,
    utterance_ids: Sequence[str],
    block_rows: int = BLOCK_ROWS,
    frames: FrameSpec | None = None,
    shard: Shard | None = None,
    retry_failed: bool = False,
) -> Iterator[StoreWriter]:
    """Open a store for writing: continue the one at ``path``, or make it.

    Args:
        path: the ``.zarr`` folder.
        provenance: what is about to be written.
        utterance_ids: N ids in manifest order.
        block_rows: rows per block of a new store; an existing one keeps its own.
        frames: which frames it keeps; None for none.
        shard: (i, n) to write every n-th block from block i, while other processes write the others; None to write the whole.
        retry_failed: also do blocks with failed rows once more.

    Raises:
        ProvenanceError: the store there was made from something else (where rows are to be written, also when library versions
            or the device differ, since it would mix numbers of both), or keeps other frames.
        ConfigError: there is no such shard.
        StoreError: another process is writing it.
        StorageError: the disk is full or cannot be written, or object storage cannot.
    """
    if isinstance(path, Path):
        with storage_errors(path, doing="written"):
            path.parent.mkdir(parents=True, exist_ok=True)
    with store_lock(path, shard):
        if shard is None:
            _prepare(path, provenance, utterance_ids, block_rows, frames)
        else:
            with making_lock(path):
                _prepare(path, provenance, utterance_ids, block_rows, frames)
        _clean(path, shard)
        store = _open(path)
        todo, _, failed = store.counts
        something_to_do = todo or (retry_failed and failed)
        names = IDENTITY_FIELDS + ENVIRONMENT_FIELDS if something_to_do else IDENTITY_FIELDS
        differences = store.provenance.differences(provenance, names)
        if differences:
            raise _mismatch(path, differences)
        if store.frame_spec != frames:
            raise _frames_mismatch(store, frames)
        if not _same_ids(store, utterance_ids):
            raise StoreError(
                f"{path} is damaged: its utterance ids are not those of the manifest it was made from. Remove it with"
                f" {_command(path, 'remove')} and extract again."
            )
        yield StoreWriter(store=store, shard=shard, retry_failed=retry_failed)
        _clean(path, shard)  # of worker processes that were killed meanwhile


def attach_writer(path: Location) -> StoreWriter:
    """Open a store that another process has opened with :func:`open_writer`, to write the blocks that it hands out.

    It takes no lock: the other process, which must not end before, keeps strangers out.

    Raises:
        StoreError: there is no store.
    """
    return StoreWriter(store=_open(path), attached=True)


def _prepare(
    path: Location, provenance: Provenance, utterance_ids: Sequence[str], block_rows: int, frames: FrameSpec | None
) -> None:
    """Make the store if there is none."""
    if isinstance(path, Path):
        with storage_errors(path, doing="written"):
            for unfinished in (_making(path), _removing(path)):
                shutil.rmtree(unfinished, ignore_errors=True)
    if not (path.exists() if isinstance(path, Path) else _is_there(path)):
        _create(path, provenance, utterance_ids, block_rows, frames)


def _same_ids(store: EmbeddingStore, utterance_ids: Sequence[str]) -> bool:
    """Whether a store holds these ids; compared chunk by chunk, so that they need not be in memory twice."""
    if len(store) != len(utterance_ids):
        return False
    return all(
        store._ids(start) == list(utterance_ids[start : start + _ID_ROWS]) for start in range(0, len(store), _ID_ROWS)
    )


def _frames_mismatch(store: EmbeddingStore, asked: FrameSpec | None) -> ProvenanceError:
    kept = store.frame_spec

    def said(spec: FrameSpec | None) -> str:
        return f"frames of {', '.join(spec.representations)} as {spec.dtype}" if spec is not None else "no frames"

    options = ""
    if kept is not None:
        options = " ".join(f"--frames-of {name}" for name in kept.representations) + f" --frames-dtype {kept.dtype}"
    go_on = f"To go on with it, use `{options}`." if options else "To go on with it, leave --frames out."
    return ProvenanceError(
        f"The store {store.path} keeps {said(kept)}; asked for is {said(asked)}. {go_on} To make it anew, remove it with"
        f" {_command(store.path, 'remove')}; to keep both, use another --cache-dir."
    )


def _clean(path: Location, shard: Shard | None) -> None:
    """Remove files of writes that were killed between file and rename; as a shard, in one's own blocks only."""
    if isinstance(path, ObjectPath):
        return  # there are none: objects are put whole
    i, n = shard or (0, 1)
    with storage_errors(path, doing="written"):
        for leftover in [file for file in path.rglob("*") if _is_unfinished(file.name)]:
            block = _block_of(leftover.relative_to(path).parts)
            if shard is None or (block is not None and block % n == i):
                leftover.unlink(missing_ok=True)


def _is_unfinished(name: str) -> bool:
    return name.endswith(".partial") or name.startswith(TEMPORARY_PREFIX)


def _block_of(parts: Sequence[str]) -> int | None:
    """The block that a file belongs to: ``mean/c/7/0/0…``, ``status/c/7…``, ``frames/latent/000007/…``; None for metadata."""
    found = parts[2] if len(parts) > 2 and (parts[0] == "frames" or parts[1] == "c") else ""
    number = re.match(r"\d+", found.removeprefix(TEMPORARY_PREFIX))
    return int(number[0]) if number else None


def _making(path: Path) -> Path:
    """Name under which a store is built."""
    return path.with_name(f".making-{path.name}")


def _removing(path: Path) -> Path:
    """Name under which a store is removed."""
    return path.with_name(f".removing-{path.name}")


def _create(
    path: Location,
    provenance: Provenance,
    utterance_ids: Sequence[str],
    block_rows: int,
    frames: FrameSpec | None,
) -> None:
    """Make an empty store that appears when it is whole."""
    with storage_errors(path, doing="written"):
        if isinstance(path, ObjectPath):
            if any((path / "status" / "c").rglob("*")):
                raise StoreError(
                    f"{path} is a store that was half removed. Remove the rest with {_command(path, 'remove')}, then run the"
                    " command again."
                )
            files: dict[str, Any] = {}
            _fill(MemoryStore(files), provenance, utterance_ids, block_rows, frames)
            for key in sorted(files, key=lambda key: (key == "zarr.json", key)):  # the group last
                (path / key).write_bytes(files[key].to_bytes())
            return
        making = _making(path)
        _fill(LocalStore(making), provenance, utterance_ids, block_rows, frames)
        _reach_disk(making.parent, [file for file in making.rglob("*") if file.is_file()])
        os.replace(making, path)
        _fsync(path.parent)


def _fill(
    store: Store,
    provenance: Provenance,
    utterance_ids: Sequence[str],
    block_rows: int,
    frames: FrameSpec | None,
) -> None:
    """Groups, arrays and ids of an empty store."""
    total, representations, dim = len(utterance_ids), len(provenance.representations), provenance.dim
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", category=UserWarning)
        attributes = {
            **provenance.to_attributes(),
            "block_rows": block_rows,
            "frames": frames.to_attributes() if frames is not None else None,
        }
        group = zarr.create_group(store, zarr_format=3, attributes=attributes)
        codecs = (ZstdCodec(level=1), Crc32cCodec())
        for name in ("mean", "std"):
            group.create_array(
                name,
                shape=(total, representations, dim),
                chunks=(block_rows, 1, dim),
                shards=(block_rows, representations, dim),
                dtype="float32",
                fill_value=float("nan"),
                compressors=codecs,
            )
        for name, dtype, fill in (
            ("num_frames", "int32", 0),
            ("duration_s", "float64", float("nan")),
            ("status", "uint8", TODO),
            ("failure", "str", ""),
        ):
            group.create_array(
                name, shape=(total,), chunks=(block_rows,), dtype=dtype, fill_value=fill, compressors=codecs
            )
        if frames is not None:
            for name in frames.representations:
                group.require_group("frames").create_group(name)
        ids = group.create_array(
            "utterance_id",
            shape=(total,),
            chunks=(max(1, min(total, _ID_ROWS)),),
            dtype="str",
            fill_value="",
            compressors=codecs,
        )
        for start in range(0, total, _ID_ROWS):
            part = list(utterance_ids[start : start + _ID_ROWS])
            ids[start : start + len(part)] = np.array(part, dtype=np.dtypes.StringDType())


# ---------------------------------------------------------------------------------------------------- looking after


def find_stores(cache_dir: Location, corpus: str | None = None) -> list[Location]:
    """Stores below a cache folder, sorted; of one corpus only, if named.

    Raises:
        StorageError: object storage cannot be reached.
    """
    if not cache_dir.is_dir():
        return []
    folder = glob.escape(corpus) if corpus else "*"
    return sorted(path for path in cache_dir.glob(f"{folder}/*/*.zarr") if not path.name.startswith("."))


def remove_store(path: Location) -> None:
    """Remove a store and its locks.

    Raises:
        StoreError: there is none, or another process is writing it.
        StorageError: it cannot be removed.
    """
    if not path.is_dir():
        raise StoreError(f"There is no store at {path}. See `hyfuse cache list`.")
    if isinstance(path, ObjectPath):
        _remove_objects(path)
        return
    with store_lock(path), storage_errors(path, doing="removed"):
        # Renamed first: a removal that is killed half-way leaves no half store under the store's own name.
        doomed = _removing(path)
        shutil.rmtree(doomed, ignore_errors=True)
        os.replace(path, doomed)
        shutil.rmtree(doomed)
        for lock in lock_files(path):
            lock.unlink(missing_ok=True)


def _remove_objects(path: ObjectPath) -> None:
    """Objects cannot be renamed: the status goes first, so that what is left at any moment is a store with rows to do."""
    keys = [file.key for file in path.rglob("*")]
    metadata = [key for key in keys if key.endswith("/zarr.json")]
    status = [key for key in keys if key.startswith(f"{path.key}/status/c/")]
    rest = set(keys) - set(metadata) - set(status)
    own = f"{path.key}/zarr.json"
    for group in (
        status,
        sorted(rest),
        [key for key in metadata if key != own],
        [key for key in metadata if key == own],
    ):
        path.delete(group)


def verify_store(path: Location) -> list[str]:
    """Read everything in a store and say what is wrong with it.

    Every chunk is decompressed and checked against its checksum; done rows must be finite with at least one frame, failed
    rows must hold a reason and no numbers, ids must be unique, kept frames must be as many as were pooled.

    Returns:
        One sentence per problem; empty if there is none. Rows still to do are not a problem.

    Raises:
        StoreError: there is no store.
        StorageError: object storage cannot be reached.
    """
    if not path.is_dir():
        _open(path)
    problems: list[str] = []
    try:
        store = _open(path)
        ids, status = store.utterance_ids, store.status
        if len(set(ids)) != len(ids) or "" in ids:
            problems.append("Utterance ids are empty or not unique.")
        if unknown := sorted(set(np.unique(status).tolist()) - {TODO, DONE, FAILED}):
            problems.append(f"Unknown status values: {unknown}.")
        num_frames, durations = store._read("num_frames"), store.duration_s
        done, failed = status == DONE, status == FAILED
        if (num_frames[done] < 1).any() or not np.isfinite(durations[done]).all():
            problems.append("Rows that are done have no frames or no duration.")
        if any(not str(reason) for reason in store._read("failure", np.flatnonzero(failed))):
            problems.append("Rows that failed give no reason.")
        for index, representation in enumerate(store.provenance.representations):
            for name in ("mean", "std"):
                finite = np.empty((len(store), 2), bool)  # every, any
                for start in range(0, len(store), _AT_ONCE):
                    rows = slice(start, start + _AT_ONCE)
                    there = np.isfinite(store._read(name, rows, index))
                    finite[rows] = np.stack([there.all(axis=1), there.any(axis=1)], axis=1)
                if wrong := [ids[row] for row in np.flatnonzero(done & ~finite[:, 0])]:
                    problems.append(f"{name} of {representation} is not finite for {_few(wrong)}.")
                if (failed & finite[:, 1]).any():
                    problems.append(f"{name} of {representation} holds numbers for rows that failed.")
        problems += _wrong_frames(store) if not problems else []
    except StoreError as error:
        problems.append(str(error))
    return problems


def _wrong_frames(store: EmbeddingStore) -> list[str]:
    """Blocks whose frames are damaged; the rest of the store is in order."""
    found = []
    for representation in store.frame_representations:
        for block in _blocks_of(np.flatnonzero(store.status != TODO), store.block_rows):
            rows = np.arange(block * store.block_rows, min((block + 1) * store.block_rows, len(store)))
            try:
                for _ in store._frames_of_block(block, rows[store.status[rows] == DONE], representation):
                    pass
            except StoreError as error:
                found.append(str(error))
    return found


def store_digest(path: Location) -> str:
    """sha256 over what a store holds: the ids, the status, and of rows that are done every number and frame.

    It depends neither on the machine, nor on compression, block size or library versions: two stores with the same digest hold the
    same numbers, bit for bit. Reasons of failures, which may name folders, are left out.

    Raises:
        StoreError: the store is absent or damaged.
        StorageError: object storage cannot be reached.
    """
    store = _open(path)
    done, made = store.status == DONE, store.provenance
    digest = hashlib.sha256()

    def add(*parts: object) -> None:
        digest.update(("\x1f".join(map(str, parts)) + "\x1e").encode())

    add("hyfuse store 1", len(store), *made.representations, made.dim, *store.frame_representations, store.frame_dtype)
    for start in range(0, len(store), _ID_ROWS):
        add(*store._ids(start))
    digest.update(store.status.tobytes())
    digest.update(store.num_frames[done].astype("<i4").tobytes())
    digest.update(store.duration_s[done].astype("<f8").tobytes())
    for index, representation in enumerate(made.representations):
        for name in ("mean", "std"):
            add(name, representation)
            for start in range(0, len(store), _AT_ONCE):
                rows = slice(start, start + _AT_ONCE)
                values = store._read(name, rows, index)[done[rows]]
                if not np.isfinite(values).all():
                    raise store._damaged(f"array {name!r} holds no numbers for rows that are done")
                digest.update(values.astype("<f4").tobytes())
    for representation in store.frame_representations:
        add("frames", representation)
        for frames in store._frames(np.flatnonzero(done), representation):
            digest.update(np.ascontiguousarray(frames, np.dtype(store.frame_dtype).newbyteorder("<")).tobytes())
    return digest.hexdigest()
