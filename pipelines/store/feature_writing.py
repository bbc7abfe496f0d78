"""Writing files of embeddings, whole or not at all; ``feature_files.py`` describes the formats."""

from __future__ import annotations

import contextlib
import csv
import json
import math
import os
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import ConfigError, HyfuseError, StorageError
from pipelines.files import TEMPORARY_PREFIX, write_atomically
from pipelines.store.feature_files import (
    BLOCK,
    FORMAT,
    FeatureTable,
    Progress,
    check_suffix,
    sidecar_path,
)

__all__ = ["write_csv", "write_features"]


def write_features(table: FeatureTable, path: Path, *, progress: Progress | None = None) -> None:
    """Write a table in the format of the file's name; the name appears when the file is whole.

    Args:
        table: what is written.
        path: the file; one that is there is replaced.
        progress: called after every block.

    Raises:
        ConfigError: another suffix, or frames for a format that has none.
        StorageError: the disk is full or cannot be written.
    """
    suffix = check_suffix(path)
    if table.frames is not None and suffix not in {".h5", ".npz"}:
        raise ConfigError(f"{path.name}: frames go into .h5 or .npz; {suffix} has one row per utterance.")
    writer = {".h5": _write_h5, ".npz": _write_npz, ".parquet": _write_parquet, ".csv": _write_csv_file}[suffix]
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{path.name}-{os.getpid()}")
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            writer(table, temporary, progress or (lambda done, total: None))
            if suffix == ".csv":
                text = json.dumps(table.sidecar(), indent=2, ensure_ascii=False) + "\n"
                write_atomically(sidecar_path(path), text, option="the file's name")
            os.replace(temporary, path)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
    except HyfuseError:
        raise
    except (OSError, RuntimeError) as error:  # h5py says RuntimeError where a write within the library fails
        reason = getattr(error, "strerror", None) or error
        raise StorageError(
            f"{path} cannot be written: {reason}. Nothing is left of it; free disk space or choose another folder, and run the"
            " same command again."
        ) from error


def _write_h5(table: FeatureTable, path: Path, progress: Progress) -> None:
    import h5py

    def write_array(group: Any, name: str, values: NDArray[Any]) -> None:
        group.create_dataset(name, data=values, fletcher32=len(values) > 0)  # a checksum

    def write_text(group: Any, name: str, values: Sequence[str]) -> None:
        # Of fixed length: text of any length lies in a heap, and libhdf5 crashes or hangs on one that is damaged.
        encoded = [value.encode() for value in values]
        kind = h5py.string_dtype("utf-8", max(map(len, encoded), default=1) or 1)
        write_array(group, name, np.array(encoded, dtype=kind))

    rows, count = len(table), len(table.representations)
    with h5py.File(path, "w", libver=("earliest", "v110")) as file:
        for name, value in (("format", FORMAT), ("provenance", table.provenance_text())):
            file.attrs.create(name, value.encode(), dtype=h5py.string_dtype("utf-8", len(value.encode())))
        write_text(file, "representations", table.representations)
        write_text(file, "utterance_id", table.utterance_ids)
        for name, values in table.columns.items():
            if isinstance(values, np.ndarray):
                write_array(file, name, values)
            else:
                write_text(file, name, values)
        write_array(file, "num_frames", table.num_frames)
        write_array(file, "duration_s", table.duration_s)
        failed = file.create_group("failed")
        write_text(failed, "utterance_id", list(table.failed))
        write_text(failed, "reason", list(table.failed.values()))
        targets = {
            # One representation of a block is a chunk: a layer is read without the other twelve.
            name: file.create_dataset(
                name,
                (rows, count, table.dim),
                "float32",
                chunks=(min(BLOCK, max(rows, 1)), 1, table.dim),
                fletcher32=True,
            )
            for name in table.arrays
        }
        for start, stop in table.blocks():
            for name, target in targets.items():
                target[start:stop] = table.block(name, start, stop)
            progress(stop, rows)
        if table.frames is not None:
            offsets = np.concatenate([[0], np.cumsum(table.num_frames, dtype=np.int64)])
            write_array(file, "offsets", offsets)
            frames = file.create_group("frames")
            for name in table.representations:
                target = frames.create_dataset(name, (int(offsets[-1]), table.dim), "float32")
                for row in range(rows):
                    target[offsets[row] : offsets[row + 1]] = table.frames(name, row)


def _write_npz(table: FeatureTable, path: Path, progress: Progress) -> None:
    rows, count = len(table), len(table.representations)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:

        def write(name: str, shape: tuple[int, ...], dtype: np.dtype[Any], parts: Iterable[NDArray[Any]]) -> None:
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(member, header)
                for part in parts:
                    member.write(np.ascontiguousarray(part, dtype=dtype).tobytes())

        def write_whole(name: str, values: Any) -> None:
            array = np.asarray(values)
            write(name, array.shape, array.dtype, [array])

        def write_text(name: str, values: Sequence[str]) -> None:
            write_whole(name, np.array(list(values), dtype=np.str_))

        write_whole("provenance", np.array(table.provenance_text()))
        write_text("representations", table.representations)
        write_text("utterance_id", table.utterance_ids)
        for name, values in table.columns.items():
            if isinstance(values, np.ndarray):
                write_whole(name, values)
            else:
                write_text(name, values)
        write_whole("num_frames", table.num_frames)
        write_whole("duration_s", table.duration_s)
        write_text("failed_utterance_id", list(table.failed))
        write_text("failed_reason", list(table.failed.values()))
        number = np.dtype("<f4")
        for index, name in enumerate(table.arrays):

            def parts(name: str = name, index: int = index) -> Iterator[NDArray[np.float32]]:
                for start, stop in table.blocks():
                    yield table.block(name, start, stop)
                    progress((rows * index + stop) // len(table.arrays), rows)

            write(name, (rows, count, table.dim), number, parts())
        if table.frames is not None:
            offsets = np.concatenate([[0], np.cumsum(table.num_frames, dtype=np.int64)])
            write_whole("offsets", offsets)
            for name in table.representations:
                read = table.frames
                write(
                    f"frames/{name}",
                    (int(offsets[-1]), table.dim),
                    number,
                    (read(name, row) for row in range(rows)),
                )


def _write_parquet(table: FeatureTable, path: Path, progress: Progress) -> None:
    import pyarrow
    from pyarrow import parquet

    vector = pyarrow.list_(pyarrow.float32(), table.dim)
    wide = [(array, name) for array in table.arrays for name in table.representations]
    fields = [
        pyarrow.field("utterance_id", pyarrow.string()),
        *(
            pyarrow.field(name, pyarrow.float64() if isinstance(values, np.ndarray) else pyarrow.string())
            for name, values in table.columns.items()
        ),
        pyarrow.field("num_frames", pyarrow.int32()),
        pyarrow.field("duration_s", pyarrow.float64()),
        *(pyarrow.field(f"{array}/{name}", vector) for array, name in wide),
    ]
    metadata = {"hyfuse": json.dumps(table.sidecar(), ensure_ascii=False)}
    schema = pyarrow.schema(fields, metadata=metadata)
    plain = ["utterance_id", *table.columns]
    with parquet.ParquetWriter(path, schema, compression="zstd", use_dictionary=plain) as writer:
        for start, stop in table.blocks():
            values: list[Any] = [list(table.utterance_ids[start:stop])]
            values += [column[start:stop] for column in table.columns.values()]
            values += [table.num_frames[start:stop], table.duration_s[start:stop]]
            arrays = [pyarrow.array(value, type=item.type) for value, item in zip(values, fields, strict=False)]
            for array, name in wide:
                numbers = np.ascontiguousarray(table.read(array, name, start, stop), dtype=np.float32)
                arrays.append(pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(numbers.ravel()), type=vector))
            writer.write_batch(pyarrow.RecordBatch.from_arrays(arrays, schema=schema))
            progress(stop, len(table))


def _write_csv_file(table: FeatureTable, path: Path, progress: Progress) -> None:
    with path.open("w", encoding="utf-8", newline="") as handle:
        write_csv(table, handle, progress=progress)


def write_csv(table: FeatureTable, handle: TextIO, *, progress: Progress | None = None) -> None:
    """Write a table as CSV to an open text file, one row per utterance; numbers in nine significant digits."""
    writer = csv.writer(handle, lineterminator="\n")
    wide = [(array, name) for array in table.arrays for name in table.representations]
    writer.writerow([
        "utterance_id", *table.columns, "num_frames", "duration_s",
        *(f"{name}.{array}.{index}" for array, name in wide for index in range(table.dim)),
    ])  # fmt: skip
    for start, stop in table.blocks():
        numbers = [table.read(array, name, start, stop) for array, name in wide]
        for row in range(start, stop):
            cells: list[object] = [table.utterance_ids[row]]
            for column in table.columns.values():
                value = column[row]
                if isinstance(value, float):
                    value = "" if math.isnan(value) else repr(float(value))
                cells.append(value)
            cells += [int(table.num_frames[row]), repr(float(table.duration_s[row]))]
            for part in numbers:
                cells += ["%.9g" % value for value in part[row - start].tolist()]  # noqa: UP031 - twice as fast
            writer.writerow(cells)
        if progress is not None:
            progress(stop, len(table))
