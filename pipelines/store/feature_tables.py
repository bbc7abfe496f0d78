"""Reading embeddings from tables: CSV and Parquet, one row per utterance."""

from __future__ import annotations

import contextlib
import csv
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import HyfuseError, StoreError
from pipelines.store.feature_files import (
    KEYS,
    LABELS,
    UNNAMED,
    Features,
    check_memory,
    damaged,
    parse_provenance,
    representation_names,
    sidecar_path,
)

__all__ = ["open_csv", "open_parquet"]


def _in_memory(
    path: Path,
    keys: Sequence[str],
    parts: Mapping[tuple[str, str], NDArray[Any]],
    **further: Any,
) -> Features:
    """Features from whole columns: (``mean`` or ``std``, representation) to [rows, D]."""
    names = list(dict.fromkeys(name for _, name in parts))
    stds = [name for array, name in parts if array == "std"]
    dims = {part.shape[1] for part in parts.values()}
    if [name for array, name in parts if array == "mean"] != names or (stds and stds != names) or len(dims) != 1:
        raise StoreError(
            f"{path}: its columns are not whole: every representation needs as many numbers as the others, and either all or none"
            " have a std. Export it again."
        )
    mean = np.stack([parts["mean", name] for name in names], axis=1)
    std = np.stack([parts["std", name] for name in names], axis=1) if stds else None

    def read(rows: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[Any] | None]:
        return mean[rows], None if std is None else std[rows]

    return Features(
        keys=keys,
        representations=representation_names(names, len(names), path),
        dim=dims.pop(),
        has_std=std is not None,
        read=read,
        **further,
    )


def _key_column(path: Path, names: Sequence[str]) -> str:
    """The column that says which recording a row belongs to; an unnamed one if no other does."""
    lower = {name.casefold(): name for name in reversed(names)}
    for candidate in KEYS:
        if candidate in lower:
            return lower[candidate]
    for name in names:
        if name.casefold() in UNNAMED:
            return name
    shown = ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
    raise StoreError(
        f"{path} has no column that names the utterances: expected one of utterance_id, file, path or name; found: {shown}."
    )


def _feature_columns(path: Path, names: Sequence[str], key: str) -> tuple[list[str], tuple[str, ...]]:
    """Columns of numbers, and columns that are left out because they are labels or positions."""
    ignored = tuple(name for name in names if name != key and (name.casefold() in LABELS or name.casefold() in UNNAMED))
    features = [name for name in names if name != key and name not in ignored]
    if not features:
        raise StoreError(f"{path} has no column of features beside {', '.join([key, *ignored])}.")
    return features, ignored


_WIDE = re.compile(r"(.+)\.(mean|std)\.(\d+)")


def open_csv(path: Path, stack: contextlib.ExitStack) -> Features:
    """A table of text: separated by comma, semicolon or tab; numbers with a decimal point."""
    import pyarrow
    from pyarrow import csv as arrow_csv

    names, separator = _csv_header(path)
    key = _key_column(path, names)
    columns, ignored = _feature_columns(path, names, key)
    told = {name: name in names and name in ignored for name in ("num_frames", "duration_s")}
    types = {key: pyarrow.string(), **{name: pyarrow.float64() for name in columns}}
    types |= {name: pyarrow.float64() for name, there in told.items() if there}
    keys: list[str] = []
    blocks: list[NDArray[np.float32]] = []
    extra: dict[str, list[NDArray[np.float64]]] = {name: [] for name, there in told.items() if there}
    try:
        reader = arrow_csv.open_csv(
            path,
            read_options=arrow_csv.ReadOptions(
                column_names=names, skip_rows=1, use_threads=False, block_size=max(2**24, 64 * len(names))
            ),
            parse_options=arrow_csv.ParseOptions(delimiter=separator, newlines_in_values=True),
            convert_options=arrow_csv.ConvertOptions(
                column_types=types, include_columns=list(types), null_values=["", "NA", "N/A", "null", "?"]
            ),
        )
        for batch in reader:
            check_memory(path, 8 * len(columns) * (len(keys) + batch.num_rows))
            keys += [str(value).strip().strip("'") for value in batch.column(key).to_pylist()]
            with np.errstate(over="ignore"):  # beyond float32 becomes infinite, which fails that utterance
                blocks.append(np.column_stack([_numbers(batch.column(name)) for name in columns]).astype(np.float32))
            for name, values in extra.items():
                values.append(_numbers(batch.column(name)))
    except pyarrow.ArrowInvalid as error:
        raise _bad_table(path, str(error), list(types), separator) from error
    if not keys:
        raise StoreError(f"{path} has a header and no rows. Write it again, with one row per recording.")
    whole = np.concatenate(blocks)
    told_values = {name: np.concatenate(parts) for name, parts in extra.items()}
    wide = [_WIDE.fullmatch(name) for name in columns]
    parts: dict[tuple[str, str], NDArray[np.float32]] = {("mean", "embedding"): whole}
    sidecar: dict[str, Any] = {}
    if all(wide) and len(told_values) == 2:
        parts = {}
        grouped: dict[tuple[str, str], list[int]] = {}
        for position, match in enumerate(wide):
            assert match is not None
            group = grouped.setdefault((match[2], match[1]), [])
            if int(match[3]) != len(group):
                raise StoreError(f"{path}: column {match[0]!r} is out of order. Export it again.")
            group.append(position)
        parts = {name: whole[:, positions] for name, positions in grouped.items()}
        if ("std" in {array for array, _ in parts}) and "mean" not in {array for array, _ in parts}:
            raise StoreError(
                f"{path} was exported with `--pool std`: the means are missing. Export it with `--pool mean+std`."
            )
        sidecar = _read_sidecar(sidecar_path(path))
    return _in_memory(
        path,
        keys,
        parts,
        ignored=ignored,
        segmented=_is_segmented(ignored),
        **_told(path, told_values),
        **_of_sidecar(sidecar, path),
    )


def _csv_header(path: Path) -> tuple[list[str], str]:
    """Column names and the separator, by the first line."""
    most = 2**26
    try:
        with path.open(encoding="utf-8-sig", newline="") as handle:
            line = handle.readline(most)
    except UnicodeDecodeError as error:
        raise _not_utf8(path, error.start) from None
    if len(line) == most:
        raise StoreError(f"{path}: its first line has more than {most} characters. It is no table of features.")
    if "\0" in line:
        raise StoreError(f"{path} is not text. Check what it is, and give it its own suffix.")
    if not line.strip():
        raise StoreError(f"{path} begins with an empty line; expected is a header that names the columns.")
    bare = re.sub(r'"[^"]*"', "", line)
    separator = max(",;\t", key=bare.count)
    try:
        names = [name.strip() for name in next(csv.reader([line], delimiter=separator))]
    except csv.Error as error:  # a name of more than 131072 characters
        raise StoreError(f"{path}: its first line is no header ({error}). It is no table of features.") from None
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice:
        raise StoreError(
            f"{path} has more than one column {', '.join(map(repr, twice[:3]))}. Rename or remove the others."
        )
    if line.lower().startswith("@relation"):
        raise StoreError(f"{path} is ARFF, not CSV. Let openSMILE write CSV: `SMILExtract … -csvoutput features.csv`.")
    return names, separator


def _not_utf8(path: Path, position: int | None = None) -> StoreError:
    with path.open("rb") as handle:
        written = "utf-16" if handle.read(2) in {b"\xff\xfe", b"\xfe\xff"} else "latin1"
    where = f" (byte {position})" if position is not None else ""
    return StoreError(f"{path} is not UTF-8{where}. Convert it: `iconv -f {written} -t utf-8 {path.name} > new.csv`.")


def _bad_table(path: Path, message: str, read: Sequence[str], separator: str) -> HyfuseError:
    """What the CSV reader complains about, in our words."""
    if "UTF8" in message or "utf-8" in message.lower():
        return _not_utf8(path)
    found = re.search(r"column #(\d+): (?:Row #(\d+): )?.*invalid value '(.*)'", message, re.DOTALL)
    if found:
        column = read[int(found[1])] if int(found[1]) < len(read) else f"number {found[1]}"
        row = f"row {found[2]}, " if found[2] else ""
        value = found[3] if len(found[3]) < 60 else found[3][:60] + "…"
        comma = " Write numbers with a decimal point." if separator != "," and "," in value else ""
        return StoreError(
            f"{path}, {row}column {column!r}: {value!r} is not a number. Features must be numbers; remove columns that are none"
            f" (labels and known positions are left out by name).{comma}"
        )
    counted = re.search(r"Expected (\d+) columns, got (\d+)", message)
    if counted:
        return StoreError(
            f"{path}: a row has {counted[2]} fields, the header {counted[1]}. Put text that holds {separator!r} into quotation"
            " marks, or write the file again."
        )
    if "Empty CSV" in message:
        return StoreError(f"{path} has a header and no rows. Write it again, with one row per recording.")
    return StoreError(f"{path} cannot be read as a table: {' '.join(message.split())[:300]}.")


def _numbers(column: Any) -> NDArray[np.float64]:
    """A column as float64; missing values become NaN."""
    import pyarrow

    values = column.cast(pyarrow.float64(), safe=False)
    return np.asarray(values.to_numpy(zero_copy_only=False), dtype=np.float64)


def _told(path: Path, values: Mapping[str, NDArray[np.float64]]) -> dict[str, Any]:
    """Frames and durations that a table tells."""
    found: dict[str, Any] = dict(values)
    if "num_frames" in found:
        frames = found["num_frames"]
        if not (np.isfinite(frames).all() and (frames == np.round(frames)).all() and (np.abs(frames) < 2**31).all()):
            raise StoreError(f"{path}: num_frames must be whole numbers.")
        found["num_frames"] = frames.astype(np.int64)
    return found


def _is_segmented(names: Iterable[str]) -> bool:
    return {"start", "end"} <= {name.casefold() for name in names}


def _read_sidecar(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} cannot be read: {error}. Remove it, or export again.") from None
    return content if isinstance(content, dict) else {}


def _of_sidecar(content: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """What hyfuse wrote beside a table."""
    if "provenance" not in content:
        return {}
    failed = content.get("failed", {})
    if not isinstance(failed, dict):
        raise StoreError(f"{path}: what it says of failed utterances cannot be read. Export it again.")
    return {
        "provenance": parse_provenance(json.dumps(content["provenance"]), path),
        "failed": {str(name): str(reason) for name, reason in failed.items()},
    }


def open_parquet(path: Path, stack: contextlib.ExitStack) -> Features:
    """A table of numbers, one column per feature, or a list column of D numbers per representation."""
    import pyarrow
    from pyarrow import parquet

    file = stack.enter_context(parquet.ParquetFile(path))
    schema = file.schema_arrow
    names = list(schema.names)
    if len(set(names)) < len(names):
        raise StoreError(f"{path} has two columns of one name. Rename or remove one of them.")
    key = _key_column(path, names)
    lists = [name for name in names if _is_list(schema.field(name).type)]
    metadata = (schema.metadata or {}).get(b"hyfuse")
    columns, ignored = (
        (lists, tuple(n for n in names if n != key and n not in lists)) if lists else _feature_columns(path, names, key)
    )
    if not lists:
        for name in columns:
            kind = schema.field(name).type
            if not (pyarrow.types.is_integer(kind) or pyarrow.types.is_floating(kind)):
                raise StoreError(
                    f"{path}, column {name!r} holds {kind}, not numbers. Features must be numbers; remove columns that are none."
                )
    told = [name for name in ("num_frames", "duration_s") if name in ignored and _is_number(schema.field(name).type)]
    check_memory(path, 8 * file.metadata.num_rows * len(columns))
    keys: list[str] = []
    blocks: dict[str, list[NDArray[Any]]] = {name: [] for name in ([*columns] if lists else ["embedding"])}
    extra: dict[str, list[NDArray[np.float64]]] = {name: [] for name in told}
    held = 0
    try:
        for batch in file.iter_batches(batch_size=1024, columns=[key, *columns, *told]):
            column = batch.column(key)
            if column.null_count:
                raise StoreError(f"{path}: {column.null_count} row(s) have no {key!r}.")
            keys += [str(value).strip() for value in column.to_pylist()]
            if lists:
                for name in columns:
                    blocks[name].append(_vectors(path, name, batch.column(name)))
            else:
                with np.errstate(over="ignore"):
                    numbers = np.column_stack([_numbers(batch.column(name)) for name in columns])
                    blocks["embedding"].append(numbers.astype(np.float32))
            held += sum(parts[-1].nbytes for parts in blocks.values())
            check_memory(path, 2 * held)
            for name, values in extra.items():
                values.append(_numbers(batch.column(name)))
    except pyarrow.ArrowInvalid as error:
        raise damaged(path, error) from error
    if not keys:
        raise StoreError(f"{path} lists no utterance. Write it again, with one row per recording.")
    for name, vectors in blocks.items():
        if len({part.shape[1] for part in vectors}) > 1:
            raise StoreError(
                f"{path}, column {name!r}: its lists differ in length. Every utterance needs the same D numbers."
            )
    wholes = {name: np.concatenate(vectors) for name, vectors in blocks.items()}
    parts = {_array_and_name(name, own=metadata is not None): whole for name, whole in wholes.items()}
    if {array for array, _ in parts} == {"std"}:
        raise StoreError(
            f"{path} was exported with `--pool std`: the means are missing. Export it with `--pool mean+std`."
        )
    sidecar: dict[str, Any] = {}
    if metadata is not None:
        try:
            sidecar = json.loads(metadata)
        except ValueError as error:
            raise damaged(path, error) from error
    return _in_memory(
        path,
        keys,
        parts,
        ignored=ignored,
        segmented=_is_segmented(ignored),
        **_told(path, {name: np.concatenate(values) for name, values in extra.items()}),
        **_of_sidecar(sidecar, path),
    )


def _array_and_name(column: str, *, own: bool) -> tuple[str, str]:
    """``mean/layer_06`` is the mean of layer_06; a list column of another tool is a representation of its own."""
    array, slash, name = column.partition("/")
    return (array, name) if own and slash and array in {"mean", "std"} else ("mean", column)


def _is_list(kind: Any) -> bool:
    import pyarrow

    types = pyarrow.types
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def _is_number(kind: Any) -> bool:
    import pyarrow

    return bool(pyarrow.types.is_integer(kind) or pyarrow.types.is_floating(kind))


def _vectors(path: Path, name: str, column: Any) -> NDArray[Any]:
    """A list column as [rows, D]."""
    if not _is_number(column.type.value_type):
        raise StoreError(f"{path}, column {name!r} holds lists of {column.type.value_type}, expected numbers.")
    if column.null_count:
        raise StoreError(f"{path}, column {name!r}: {column.null_count} row(s) have no list. Remove those rows.")
    lengths = set(np.asarray(column.value_lengths() if hasattr(column, "value_lengths") else []).tolist())
    if len(lengths) > 1 or lengths == {0}:
        raise StoreError(
            f"{path}, column {name!r}: its lists differ in length. Every utterance needs the same D numbers."
        )
    flat = _numbers(column.flatten())
    with np.errstate(over="ignore"):
        return flat.reshape(len(column), -1).astype(np.float32)
