"""Frames in a store: every representation's frames of every utterance, block by block.

The frames of one representation in one block of utterances are one Zarr array ``frames/<representation>/<block>`` of shape
[sum of T, D] (the block's index has six digits), rows after each other in manifest order; failed utterances have none. How many
frames an utterance has is ``num_frames``, and where they begin follows from it. There is not one array [sum of T, D] of the whole
store, because its length is known only when every block is done, and because writers of different blocks must never meet in one
shard: here they do not even share an array.

Chunks are about 1 MiB, so that one utterance can be read without its block, and shards at most 64 chunks, so that writing needs
little memory. A block's array is encoded in memory and its files are put whole; what an earlier attempt left and this one does not
overwrite is removed.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.abc.store import Store
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.storage import MemoryStore

from pipelines.errors import ConfigError
from pipelines.files import write_atomically
from pipelines.locations import Location, ObjectPath

__all__ = [
    "FrameSpec",
    "block_folder",
    "fits",
    "open_block",
    "read_ranges",
    "write_block_frames",
]

DTYPES = ("float16", "float32")
_CHUNK_BYTES = 2**20
_CHUNKS_PER_SHARD = 64


@dataclass(frozen=True)
class FrameSpec:
    """Which frames a store keeps.

    Attributes:
        representations: names, in the order of the encoder.
        dtype: ``float16`` or ``float32``.
    """

    representations: tuple[str, ...]
    dtype: str = "float16"

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ConfigError(f"Frames are kept as {' or '.join(DTYPES)}, not {self.dtype!r}.")
        if not self.representations or len(set(self.representations)) != len(self.representations):
            raise ConfigError(
                f"Frames need at least one representation, each once; given: {', '.join(self.representations) or 'none'}."
            )

    def to_attributes(self) -> dict[str, Any]:
        """As Zarr attributes (JSON values only)."""
        return {"representations": list(self.representations), "dtype": self.dtype}

    @classmethod
    def from_attributes(cls, attributes: Any) -> FrameSpec | None:
        """Read back; None for a store without frames."""
        return None if attributes is None else cls(tuple(attributes["representations"]), str(attributes["dtype"]))


def fits(frames: NDArray[np.floating], dtype: str) -> bool:
    """Whether every number is finite, and still is in ``dtype``: float16 ends at 65504."""
    if frames.dtype.itemsize <= np.dtype(dtype).itemsize or not frames.size:
        return bool(np.isfinite(frames).all())
    most = np.finfo(dtype).max
    return bool(frames.min() >= -most and frames.max() <= most)  # False for NaN, too


def block_folder(representation: str, block: int) -> str:
    """Name of a block's array within the store."""
    return f"frames/{representation}/{block:06d}"


def write_block_frames(
    store: Location, *, representation: str, block: int, frames: Sequence[NDArray[np.floating]], dim: int, dtype: str
) -> list[Location]:
    """Write the frames of one block and representation.

    Args:
        store: the ``.zarr`` folder.
        representation: its name.
        block: its index.
        frames: n arrays [T, D] in manifest order.
        dim: D.
        dtype: as which they are kept.

    Returns:
        The files that were written.

    Raises:
        StorageError: they cannot be written.
    """
    total = sum(len(one) for one in frames)
    kept = np.dtype(dtype)
    chunk_rows = max(1, min(_CHUNK_BYTES // (dim * kept.itemsize), total))
    shard_rows = chunk_rows * max(1, min(_CHUNKS_PER_SHARD, -(-total // chunk_rows)))
    files: dict[str, Any] = {}
    memory = MemoryStore(files)
    array = zarr.create_array(
        memory,
        name="a",
        shape=(total, dim),
        chunks=(chunk_rows, dim),
        shards=(shard_rows, dim),
        dtype=kept,
        fill_value=float("nan"),
        compressors=(ZstdCodec(level=1), Crc32cCodec()),
    )
    folder = store / block_folder(representation, block)
    metadata = files["a/zarr.json"].to_bytes()
    written: list[Location] = []
    for number, rows in enumerate(_in_runs(frames, shard_rows, dim, kept)):
        start = number * shard_rows
        array[start : start + len(rows)] = rows
        key = f"c/{number}/0"
        write_atomically(folder / key, files.pop(f"a/{key}").to_bytes(), option="--cache-dir")
        written.append(folder / key)
    write_atomically(folder / "zarr.json", metadata, option="--cache-dir")
    written.append(folder / "zarr.json")
    _remove_others(folder, keep=written)
    return written


def _in_runs(
    frames: Sequence[NDArray[np.floating]], rows: int, dim: int, dtype: np.dtype[Any]
) -> Iterator[NDArray[np.floating]]:
    """All frames after each other, in arrays of ``rows`` rows (the last one may be shorter)."""
    buffer, filled = np.empty((rows, dim), dtype), 0
    for one in frames:
        start = 0
        while start < len(one):
            count = min(rows - filled, len(one) - start)
            buffer[filled : filled + count] = one[start : start + count]
            filled, start = filled + count, start + count
            if filled == rows:
                yield buffer
                filled = 0
    if filled:
        yield buffer[:filled]


def _remove_others(folder: Location, *, keep: Sequence[Location]) -> None:
    """Remove what an earlier attempt at this block left: shards beyond the last one of now, and unfinished files."""
    kept = set(keep)
    if isinstance(folder, ObjectPath):
        folder.delete([path.key for path in folder.rglob("*") if path not in kept])
        return
    for path in list(folder.rglob("*")):
        if path.is_file() and path not in kept:
            path.unlink()
    for path in sorted(folder.glob("c/*"), reverse=True):
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()
    if (folder / "c").is_dir() and not any((folder / "c").iterdir()):
        (folder / "c").rmdir()


def open_block(store: Store, *, representation: str, block: int) -> zarr.Array:  # type: ignore[type-arg]
    """The array of a block; what goes wrong is for the caller to explain."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", category=UserWarning)
        return zarr.open_array(store, path=block_folder(representation, block), mode="r", zarr_format=3)


def read_ranges(
    array: zarr.Array,  # type: ignore[type-arg]
    ranges: Sequence[tuple[int, int]],
) -> list[NDArray[np.floating]]:
    """Rows ``start`` to ``stop`` of a block's array for every range; ranges that lie close together are read in one go."""
    chunk_rows = array.chunks[0]
    order = sorted(range(len(ranges)), key=lambda position: ranges[position])
    found: list[NDArray[np.floating]] = [np.empty((0, 0))] * len(ranges)
    group: list[int] = []
    begin = end = 0

    def read() -> None:
        rows = np.asarray(array[begin:end])
        for position in group:
            start, stop = ranges[position]
            found[position] = rows[start - begin : stop - begin].copy()

    for position in order:
        start, stop = ranges[position]
        # Up to a chunk further is no more to read: it is the chunk that ends there, or the next one.
        if group and (start - end > chunk_rows or stop - begin > chunk_rows * _CHUNKS_PER_SHARD):
            read()
            group = []
        if not group:
            begin, end = start, stop
        group.append(position)
        end = max(end, stop)
    if group:
        read()
    return found
