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

Attributes are the :class:`~pipelines.store.provenance.Provenance` and ``block_rows``. A block is ``block_rows`` manifest rows
and exactly one Zarr shard of every row array, so two blocks never touch the same file. A block's data is written first and
its ``status`` last, each file by an atomic rename: whatever moment a run is killed at, the next one finds whole blocks only,
redoes the others, and ends with the same bytes. Inside a shard every representation is a chunk of its own, so that training
reads one layer out of thirteen; chunks carry a checksum.

A new store is built under a temporary name and renamed when its group and arrays are complete. One process writes a store
at a time (a lock that the system releases when the process dies); reading needs no lock.
"""

from __future__ import annotations

import glob
import os
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec, ZstdCodec

from pipelines.errors import ConfigError, ProvenanceError, StorageError, StoreError, UtteranceError, unknown_name
from pipelines.files import take_lock
from pipelines.store.provenance import ENVIRONMENT_FIELDS, IDENTITY_FIELDS, Provenance

__all__ = [
    "BLOCK_ROWS",
    "DONE",
    "FAILED",
    "POOLS",
    "TODO",
    "BlockResult",
    "EmbeddingStore",
    "StoreWriter",
    "find_stores",
    "open_store",
    "open_writer",
    "remove_store",
    "store_path",
    "verify_store",
]

BLOCK_ROWS = 256
TODO, DONE, FAILED = 0, 1, 2
POOLS = ("mean", "std", "mean+std")


@dataclass(frozen=True)
class BlockResult:
    """What extraction found out about the rows of one block (n of them).

    Attributes:
        mean: float32 [n, R, D]; NaN in failed rows.
        std: float32 [n, R, D]; NaN in failed rows.
        num_frames: int32 [n]; 0 in failed rows.
        duration_s: float64 [n]; NaN where the recording could not be decoded.
        failure: n reasons; empty for rows that are done.
    """

    mean: NDArray[np.float32]
    std: NDArray[np.float32]
    num_frames: NDArray[np.int32]
    duration_s: NDArray[np.float64]
    failure: Sequence[str]


def store_path(cache_dir: Path, corpus: str, encoder: str, condition: str = "clean") -> Path:
    """Where the store of an encoder's embeddings of a corpus under a condition lies."""
    return cache_dir / corpus / encoder / f"{condition}.zarr"


def _command(path: Path, verb: str) -> str:
    """A `hyfuse cache` command for the store at ``path``."""
    corpus, encoder, cache_dir = path.parent.parent.name, path.parent.name, path.parent.parent.parent
    return f"`hyfuse cache {verb} {corpus}/{encoder}/{path.stem} --cache-dir {cache_dir}`"


# ---------------------------------------------------------------------------------------------------- reading


@dataclass(frozen=True)
class EmbeddingStore:
    """A store opened for reading; nothing is read before it is asked for.

    Attributes:
        path: the ``.zarr`` folder.
        provenance: where the numbers come from.
        block_rows: rows per block.
    """

    path: Path
    provenance: Provenance
    block_rows: int
    _group: zarr.Group = field(repr=False)

    @cached_property
    def utterance_ids(self) -> list[str]:
        """Ids in manifest order."""
        return [str(value) for value in self._read("utterance_id")]

    @cached_property
    def status(self) -> NDArray[np.uint8]:
        """uint8 [N]: 0 to do, 1 done, 2 failed."""
        return np.asarray(self._read("status"))

    @cached_property
    def num_frames(self) -> NDArray[np.int32]:
        """int32 [N]."""
        return np.asarray(self._read("num_frames"))

    @cached_property
    def duration_s(self) -> NDArray[np.float64]:
        """float64 [N], seconds."""
        return np.asarray(self._read("duration_s"))

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
        reasons = self._read("failure")
        return {self.utterance_ids[row]: str(reasons[row]) for row in rows}

    def features(self, utterance_ids: Sequence[str], *, representation: str, pool: str) -> NDArray[np.float32]:
        """Embeddings of the utterances asked for, joined by id.

        Args:
            utterance_ids: n ids.
            representation: one of ``provenance.representations``.
            pool: ``mean``, ``std`` or ``mean+std`` (the two beside each other). Utterance-level representations have one frame
                and no spread: ``mean+std`` gives their mean alone.

        Returns:
            float32 [n, D], or [n, 2 D] for ``mean+std``.

        Raises:
            UnknownNameError: no such representation.
            ConfigError: no such pooling, or ``std`` of an utterance-level representation.
            UtteranceError: an id is not in the store, failed there, or is still to do.
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
        return np.concatenate([self._read(name, index)[rows] for name in arrays], axis=1)

    def _rows(self, utterance_ids: Sequence[str]) -> NDArray[np.int64]:
        """Positions of ids that are done."""
        position = {name: row for row, name in enumerate(self.utterance_ids)}
        absent = [name for name in utterance_ids if name not in position]
        if absent:
            raise UtteranceError(
                f"{len(absent)} of {len(utterance_ids)} utterances are not in {self.path}: {_few(absent)}. It was made from"
                f" another manifest (digest {self.provenance.manifest_digest[:12]}…). Remove it with"
                f" {_command(self.path, 'remove')} and run `hyfuse extract` again."
            )
        rows = np.array([position[name] for name in utterance_ids], dtype=np.int64)
        todo = [name for name, row in zip(utterance_ids, rows, strict=True) if self.status[row] == TODO]
        if todo:
            raise UtteranceError(
                f"{len(todo)} of {len(utterance_ids)} utterances are still to do in {self.path}: {_few(todo)}. Finish it with"
                f" `hyfuse extract --model {self.provenance.encoder} --corpus {self.provenance.corpus}`."
            )
        failed = [name for name, row in zip(utterance_ids, rows, strict=True) if self.status[row] == FAILED]
        if failed:
            reason = self.failures()[failed[0]]
            raise UtteranceError(
                f"{len(failed)} of {len(utterance_ids)} utterances failed in {self.path}: {_few(failed)} ({reason})."
            )
        return rows

    def _read(self, name: str, representation: int | None = None) -> Any:
        """A whole array, or one representation [N, D] of it."""
        try:
            array = self._group[name]
            assert isinstance(array, zarr.Array)
            return array[:] if representation is None else array[:, representation]
        except (
            Exception
        ) as error:  # what damage leads to has no common base: JSON, codecs, checksums and disk all complain
            raise StoreError(
                f"{self.path} is damaged: array {name!r} cannot be read ({error}). See {_command(self.path, 'verify')}; remove it"
                f" with {_command(self.path, 'remove')} and extract again."
            ) from error


def _few(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")


def open_store(
    path: Path, *, manifest_digest: str | None = None, weights_kind: str | None = None, complete: bool = True
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


def _open(path: Path) -> EmbeddingStore:
    if not path.is_dir():
        corpus, encoder = path.parent.parent.name, path.parent.name
        raise StoreError(
            f"There is no store at {path}. Make it with `hyfuse extract --model {encoder} --corpus {corpus}`, or name another"
            " cache with --cache-dir."
        )
    try:
        group = zarr.open_group(path, mode="r", zarr_format=3)
        attributes = dict(group.attrs)
        block_rows = int(str(attributes["block_rows"]))
    except Exception as error:  # see EmbeddingStore._read
        raise StoreError(
            f"{path} is not a hyfuse store, or is damaged ({type(error).__name__}: {error}). Remove it with"
            f" {_command(path, 'remove')} and extract again."
        ) from error
    return EmbeddingStore(path, Provenance.from_attributes(attributes, origin=str(path)), block_rows, group)


def _mismatch(path: Path, differences: Sequence[tuple[str, str, str]]) -> ProvenanceError:
    listed = "; ".join(f"{name}: the store has {found}, asked for is {asked}" for name, found, asked in differences)
    return ProvenanceError(
        f"The store {path} was made from something else. {listed}. To make it anew, remove it with {_command(path, 'remove')};"
        " to keep both, use another --cache-dir."
    )


# ---------------------------------------------------------------------------------------------------- writing


class StoreWriter:
    """A store opened for writing, one block at a time; made by :func:`open_writer`."""

    def __init__(self, *, store: EmbeddingStore, group: zarr.Group) -> None:
        self.store = store
        self._group = group
        self._status: NDArray[np.uint8] = store.status.copy()

    @property
    def num_blocks(self) -> int:
        """Blocks in all."""
        return -(-len(self._status) // self.store.block_rows)

    def rows_of(self, block: int) -> range:
        """Manifest rows of a block."""
        start = block * self.store.block_rows
        return range(start, min(start + self.store.block_rows, len(self._status)))

    def blocks_to_do(self) -> list[int]:
        """Blocks with a row to do, in order."""
        return sorted({int(row) // self.store.block_rows for row in np.flatnonzero(self._status == TODO)})

    def rows_done(self) -> int:
        """Rows that need no more work."""
        return int((self._status != TODO).sum())

    def write_block(self, block: int, result: BlockResult) -> None:
        """Write one block, its status last.

        Raises:
            StorageError: the disk is full or cannot be written; blocks written before stay.
        """
        rows = self.rows_of(block)
        where = slice(rows.start, rows.stop)
        status = np.array([FAILED if reason else DONE for reason in result.failure], dtype=np.uint8)
        if len(status) != len(rows):
            raise ValueError(f"Block {block} has {len(rows)} rows, not {len(status)}.")
        with _disk(self.store.path):
            for name in ("mean", "std", "num_frames", "duration_s"):
                self._array(name)[where] = getattr(result, name)
            self._array("failure")[where] = np.array(result.failure, dtype=np.dtypes.StringDType())
            self._array("status")[where] = status
        self._status[where] = status

    def _array(self, name: str) -> zarr.Array:  # type: ignore[type-arg]
        array = self._group[name]
        assert isinstance(array, zarr.Array)
        return array


@contextmanager
def _disk(path: Path) -> Iterator[None]:
    """Explain what the disk complains about."""
    try:
        yield
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError(
            f"{path} cannot be written: {error.strerror or error}. Whatever was finished is kept; free disk space or permission,"
            " and run the same command again to go on."
        ) from error


@contextmanager
def open_writer(
    path: Path, *, provenance: Provenance, utterance_ids: Sequence[str], block_rows: int = BLOCK_ROWS
) -> Iterator[StoreWriter]:
    """Open a store for writing: continue the one at ``path``, or make it.

    Args:
        path: the ``.zarr`` folder.
        provenance: what is about to be written.
        utterance_ids: N ids in manifest order.
        block_rows: rows per block of a new store; an existing one keeps its own.

    Raises:
        ProvenanceError: the store there was made from something else (an unfinished one also when library versions or the
            device differ, since it would mix numbers of both).
        StoreError: another process is writing it.
        StorageError: the disk is full or cannot be written.
    """
    with _disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with _lock(path):
        with _disk(path):
            for unfinished in (_making(path), _removing(path)):
                shutil.rmtree(unfinished, ignore_errors=True)
            for leftover in path.rglob("*.partial"):  # of writes that were killed between file and rename
                leftover.unlink(missing_ok=True)
        if not path.exists():
            _create(path, provenance=provenance, utterance_ids=utterance_ids, block_rows=block_rows)
        store = _open(path)
        names = IDENTITY_FIELDS if store.is_complete else IDENTITY_FIELDS + ENVIRONMENT_FIELDS
        differences = store.provenance.differences(provenance, names)
        if differences:
            raise _mismatch(path, differences)
        if store.utterance_ids != list(utterance_ids):
            raise StoreError(
                f"{path} is damaged: its utterance ids are not those of the manifest it was made from. Remove it with"
                f" {_command(path, 'remove')} and extract again."
            )
        with _disk(path):
            group = zarr.open_group(path, mode="r+", zarr_format=3)
        yield StoreWriter(store=store, group=group)


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold the store's lock; the system lets go of it when the process ends, however it ends."""
    with _disk(path):
        handle, writer = take_lock(path.with_suffix(".lock"))
    with handle:
        if writer:
            raise StoreError(
                f"Another process (pid {writer}) is writing {path}. Wait for it, or stop it and run the command again."
            )
        yield


def _making(path: Path) -> Path:
    """Name under which a store is built."""
    return path.with_name(f".making-{path.name}")


def _removing(path: Path) -> Path:
    """Name under which a store is removed."""
    return path.with_name(f".removing-{path.name}")


def _create(path: Path, *, provenance: Provenance, utterance_ids: Sequence[str], block_rows: int) -> None:
    """Make an empty store under a temporary name and give it its own when it is whole."""
    making = _making(path)
    total, representations, dim = len(utterance_ids), len(provenance.representations), provenance.dim
    with _disk(path), warnings.catch_warnings():
        warnings.simplefilter("ignore", category=UserWarning)
        group = zarr.create_group(
            making, zarr_format=3, attributes={**provenance.to_attributes(), "block_rows": block_rows}
        )
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
        ids = group.create_array(
            "utterance_id", shape=(total,), chunks=(max(total, 1),), dtype="str", fill_value="", compressors=codecs
        )
        ids[:] = np.array(list(utterance_ids), dtype=np.dtypes.StringDType())
        os.replace(making, path)


# ---------------------------------------------------------------------------------------------------- looking after


def find_stores(cache_dir: Path, corpus: str | None = None) -> list[Path]:
    """Stores below a cache folder, sorted; of one corpus only, if named."""
    if not cache_dir.is_dir():
        return []
    folder = glob.escape(corpus) if corpus else "*"
    return sorted(path for path in cache_dir.glob(f"{folder}/*/*.zarr") if not path.name.startswith("."))


def remove_store(path: Path) -> None:
    """Remove a store and its lock.

    Raises:
        StoreError: there is none.
        StorageError: it cannot be removed.
    """
    if not path.is_dir():
        raise StoreError(f"There is no store at {path}. See `hyfuse cache list`.")
    with _disk(path), _lock(path):
        # Renamed first: a removal that is killed half-way leaves no half store under the store's own name.
        doomed = _removing(path)
        shutil.rmtree(doomed, ignore_errors=True)
        os.replace(path, doomed)
        shutil.rmtree(doomed)
        path.with_suffix(".lock").unlink(missing_ok=True)


def verify_store(path: Path) -> list[str]:
    """Read everything in a store and say what is wrong with it.

    Every chunk is decompressed and checked against its checksum; done rows must be finite with at least one frame, failed
    rows must hold a reason and no numbers, ids must be unique.

    Returns:
        One sentence per problem; empty if there is none. Rows still to do are not a problem.

    Raises:
        StoreError: there is no store.
    """
    if not path.is_dir():
        _open(path)
    problems: list[str] = []
    try:
        store = _open(path)
        ids, status = store.utterance_ids, store.status
        if len(set(ids)) != len(ids) or "" in ids:
            problems.append("Utterance ids are empty or not unique.")
        if unknown := sorted(set(status.tolist()) - {TODO, DONE, FAILED}):
            problems.append(f"Unknown status values: {unknown}.")
        reasons = store._read("failure")
        frames, durations = store.num_frames, store.duration_s
        done, failed = status == DONE, status == FAILED
        if (frames[done] < 1).any() or not np.isfinite(durations[done]).all():
            problems.append("Rows that are done have no frames or no duration.")
        if any(not str(reasons[row]) for row in np.flatnonzero(failed)):
            problems.append("Rows that failed give no reason.")
        for index, representation in enumerate(store.provenance.representations):
            for name in ("mean", "std"):
                values = store._read(name, index)
                if not np.isfinite(values[done]).all():
                    rows = [ids[row] for row in np.flatnonzero(done & ~np.isfinite(values).all(axis=1))]
                    problems.append(f"{name} of {representation} is not finite for {_few(rows)}.")
                if np.isfinite(values[failed]).any():
                    problems.append(f"{name} of {representation} holds numbers for rows that failed.")
    except StoreError as error:
        problems.append(str(error))
    return problems
