"""Files of embeddings that other programs read and write: HDF5, npz, Parquet and CSV.

What is written (n utterances, R representations, D features; ``docs/interchange.md`` shows how to read each without hyfuse):

========== ==================================================================================================================
suffix     layout
========== ==================================================================================================================
.h5        datasets ``utterance_id``, ``mean`` and ``std`` [n, R, D], ``representations``, ``num_frames``, ``duration_s`` and one
           per column of text or numbers; ``failed/utterance_id``, ``failed/reason``; attribute ``provenance``
.npz       arrays of the same names; ``failed_utterance_id``, ``failed_reason``, ``provenance``
.parquet   one row per utterance, a list column ``mean/<representation>`` of D numbers each; the rest is JSON under the key
           ``hyfuse`` of the schema's metadata
.csv       one row per utterance, a column ``<representation>.mean.<feature>`` per number; the rest is JSON in ``<name>.csv.json``
========== ==================================================================================================================

``provenance`` is JSON text. Frames, where they are written (.h5, .npz), are ``frames/<representation>`` [sum of T, D] with
``offsets`` [n + 1]. A file is written under another name and renamed when it is whole, block by block: memory does not grow with
the number of utterances. float32 numbers come back bit for bit from every format; CSV writes nine significant digits, which are
enough for that.

What is read: the above, and what other tools write (:func:`read_features` lists it). Nothing is unpickled and no file is
followed into another one. A file is read whole except HDF5, which is read where it is needed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.corpora.manifest import COLUMNS
from pipelines.errors import ConfigError, StoreError

__all__ = [
    "BLOCK",
    "FORMAT",
    "FORMAT_VERSION",
    "KEYS",
    "LABELS",
    "SUFFIXES",
    "UNNAMED",
    "WRITE_BYTES",
    "FeatureTable",
    "Features",
    "Progress",
    "check_memory",
    "check_suffix",
    "damaged",
    "parse_provenance",
    "representation_names",
    "sidecar_path",
    "texts",
]

FORMAT, FORMAT_VERSION = "hyfuse-embeddings", 1
SUFFIXES = (".h5", ".npz", ".parquet", ".csv")
_ALIASES = {".hdf5": ".h5", ".hdf": ".h5", ".pq": ".parquet", ".tsv": ".csv"}
_PICKLES = {".pkl", ".pickle", ".joblib", ".pt", ".pth", ".ckpt", ".p"}
BLOCK = 256
"""Utterances per piece of a file, and that are in memory at a time when reading."""

WRITE_BYTES = 2**27
"""Numbers, in bytes, that are in memory at a time when writing; long runs of a store are read faster than short ones."""

Progress = Callable[[int, int], None]
"""Called with (utterances done, in all)."""


def check_suffix(path: Path) -> str:
    """The format that a file's name asks for, one of ``SUFFIXES``.

    Raises:
        ConfigError: none of them.
    """
    suffix = path.suffix.lower()
    suffix = _ALIASES.get(suffix, suffix)
    if suffix in SUFFIXES:
        return suffix
    if suffix in _PICKLES:
        raise ConfigError(
            f"{path} would have to be unpickled, and a pickle can run any program when it is opened: hyfuse reads none. Write the"
            " numbers in another format where the file was made, for instance with pandas: `table.to_parquet('features.parquet')`."
        )
    hint = (
        " A bare array has no utterance ids: use `numpy.savez(file, utterance_id=..., mean=...)`."
        if suffix == ".npy"
        else ""
    )
    raise ConfigError(
        f"{path.name}: a file of embeddings ends in {', '.join(SUFFIXES)}, not in {suffix or 'no suffix at all'}.{hint}"
    )


@dataclass(frozen=True, kw_only=True)
class FeatureTable:
    """What is to be written.

    Attributes:
        utterance_ids: n ids.
        columns: further columns, text or numbers, n values each: speaker, emotion, …
        num_frames: n numbers of frames.
        duration_s: n durations.
        representations: R names.
        dim: features D.
        arrays: which of ``mean`` and ``std`` are written.
        provenance: where the numbers come from, JSON values only.
        failed: utterances without an embedding, with the reason.
        read: (array, representation, first row, row behind the last) to float32 [rows, D].
        frames: (representation, row) to [T, D], where frames are written too.
    """

    utterance_ids: Sequence[str]
    columns: Mapping[str, Sequence[str] | NDArray[np.float64]]
    num_frames: NDArray[np.int32]
    duration_s: NDArray[np.float64]
    representations: tuple[str, ...]
    dim: int
    arrays: tuple[str, ...]
    provenance: Mapping[str, Any]
    failed: Mapping[str, str]
    read: Callable[[str, str, int, int], NDArray[np.float32]] = field(repr=False)
    frames: Callable[[str, int], NDArray[np.floating]] | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.utterance_ids)

    def blocks(self) -> Iterator[tuple[int, int]]:
        """(first row, row behind the last) of every block: ``WRITE_BYTES`` of numbers, at least ``BLOCK`` rows."""
        row_bytes = 4 * self.dim * max(1, len(self.representations) * len(self.arrays))
        step = BLOCK * max(1, WRITE_BYTES // (row_bytes * BLOCK))
        for start in range(0, len(self), step):
            yield start, min(start + step, len(self))

    def block(self, array: str, start: int, stop: int) -> NDArray[np.float32]:
        """All representations of some rows, float32 [rows, R, D]."""
        parts = [self.read(array, name, start, stop) for name in self.representations]
        return np.stack(parts, axis=1) if parts else np.zeros((stop - start, 0, self.dim), np.float32)

    def provenance_text(self) -> str:
        """The provenance as JSON, with the name and version of this format."""
        content = {"format": FORMAT, "format_version": FORMAT_VERSION, **self.provenance}
        return json.dumps(content, ensure_ascii=False, sort_keys=True)

    def sidecar(self) -> dict[str, Any]:
        """What CSV and Parquet say beside the table."""
        return {
            "provenance": json.loads(self.provenance_text()),
            "representations": list(self.representations),
            "arrays": list(self.arrays),
            "failed": dict(self.failed),
        }


@dataclass(frozen=True, kw_only=True)
class Features:
    """What a file offers; its rows have the keys by which they are matched to utterances.

    Attributes:
        keys: one per row: an utterance id, a path, or a file's name.
        representations: R names.
        dim: features D.
        has_std: whether there are deviations beside the means.
        num_frames: int64 [rows]; None where the file does not tell.
        duration_s: float64 [rows]; None where the file does not tell.
        failed: key to reason, for utterances that the file says have no embedding.
        provenance: what a file written by hyfuse says about itself; None for others.
        ignored: columns that were not taken for features.
        segmented: whether rows are parts of files (columns ``start`` and ``end``).
        read: int64 rows to mean and std [rows, R, D], numbers of any kind; std is None without ``has_std``.
    """

    keys: Sequence[str]
    representations: tuple[str, ...]
    dim: int
    has_std: bool
    num_frames: NDArray[np.int64] | None = None
    duration_s: NDArray[np.float64] | None = None
    failed: Mapping[str, str] = field(default_factory=dict)
    provenance: Mapping[str, Any] | None = None
    ignored: tuple[str, ...] = ()
    segmented: bool = False
    read: Callable[[NDArray[np.int64]], tuple[NDArray[Any], NDArray[Any] | None]] = field(repr=False)


KEYS = ("utterance_id", "utterance_ids", "id", "ids", "utterance", "file", "files", "path", "paths", "filename",
         "filenames", "name", "names", "wav", "audio")  # fmt: skip
"""What other tools call the column, dataset or array that says which recording a row belongs to, best first."""

_MEANS = ("mean", "embeddings", "embedding", "features", "X", "x")
UNNAMED = {"", "index", "__index_level_0__", "unnamed: 0"}
LABELS = {
    *COLUMNS, *KEYS, "start", "end", "frametime", "frameindex", "num_frames", "label", "labels", "class", "class_label", "target",
    "gender", "age", "split", "fold", "subset", "database", "rater", "votes",
}  # fmt: skip
"""Columns that are no features, compared in lower case: training on a column of labels would look like a discovery."""


def sidecar_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def damaged(path: Path, error: BaseException) -> StoreError:
    reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    return StoreError(
        f"{path} cannot be read as {check_suffix(path)}: {reason}. It may be damaged or half-written; get it again."
    )


def check_memory(path: Path, num_bytes: int) -> None:
    """Refuse what would not fit: also a small file can announce a huge array."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if num_bytes > 0.8 * memory:
        raise StoreError(
            f"{path} holds {num_bytes / 1e9:.1f} GB of numbers, and this machine has {memory / 1e9:.1f} GB of memory. Write it as"
            " .h5, which is read piece by piece, or check that it is what you think it is."
        )


def texts(values: Any, path: Path, name: str) -> list[str]:
    """Ids from an array of text, bytes or whole numbers."""
    array = np.asarray(values).reshape(-1)
    if array.dtype.kind in "iu":
        return [str(value) for value in array.tolist()]
    if array.dtype.kind not in "USOT":
        raise StoreError(f"{path}: {name!r} must hold text, one id per row, not {array.dtype}.")
    found = []
    for value in array.tolist():
        if isinstance(value, bytes):
            try:
                value = value.decode()
            except UnicodeDecodeError:
                raise StoreError(f"{path}: {name!r} holds an id that is not UTF-8: {value!r}.") from None
        if not isinstance(value, str):
            raise StoreError(f"{path}: {name!r} must hold text, one id per row, not {type(value).__name__}.")
        found.append(value)
    return found


def parse_provenance(text: object, path: Path) -> Mapping[str, Any]:
    """The JSON that hyfuse wrote into a file."""
    try:
        content = json.loads(str(text))
        version = content["format_version"]
        if content["format"] != FORMAT:
            raise ValueError(f"format is {content['format']!r}")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise StoreError(f"{path}: what it says of its provenance cannot be read ({error}). Export it again.") from None
    if version != FORMAT_VERSION:
        raise StoreError(
            f"{path} was written by another version of hyfuse: format version {version!r}, expected {FORMAT_VERSION}. Export it"
            " again with this version."
        )
    return content  # type: ignore[no-any-return]


def representation_names(given: Sequence[str] | None, count: int, path: Path) -> tuple[str, ...]:
    """Names of R representations: those of the file, else numbered ones."""
    if given is None:
        return ("embedding",) if count == 1 else tuple(f"representation_{index:02d}" for index in range(count))
    if (
        len(given) != count
        or len(set(given)) != count
        or not all(name.strip() and name.isprintable() for name in given)
    ):
        raise StoreError(
            f"{path}: 'representations' must give {count} different name(s), one per entry of the second axis, not"
            f" {', '.join(map(repr, list(given)[:5])) or 'none'}."
        )
    return tuple(given)
