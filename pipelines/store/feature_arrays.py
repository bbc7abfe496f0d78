"""Reading embeddings from HDF5 and npz: a matrix with ids, or one array per utterance."""

from __future__ import annotations

import contextlib
import math
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import StoreError
from pipelines.store.feature_files import (
    FORMAT,
    KEYS,
    Features,
    check_memory,
    damaged,
    parse_provenance,
    representation_names,
    texts,
)

__all__ = ["open_h5", "open_npz"]

_MEANS = ("mean", "embeddings", "embedding", "features", "X", "x")


def _expected(path: Path, found: Iterable[str]) -> StoreError:
    listed = list(found)
    shown = ", ".join(listed[:8]) + (", …" if len(listed) > 8 else "") or "nothing"
    return StoreError(
        f"{path} is not a file of embeddings that hyfuse understands. Expected are 'utterance_id' [N] and 'embeddings' [N, D] or"
        f" [N, R, D], or one array of numbers per utterance, named after it. Found: {shown}. See docs/interchange.md."
    )


@dataclass(frozen=True)
class _Array:
    """An array in a file, not read yet.

    Attributes:
        shape: its shape.
        dtype: its type; kind ``O`` for text of HDF5.
        load: reads some rows, or all.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    load: Callable[[NDArray[np.int64] | None], NDArray[Any]]

    @property
    def is_number(self) -> bool:
        return self.dtype.kind in "fiu"


def _from_arrays(
    path: Path, arrays: Mapping[str, _Array], *, provenance: object, representations: Sequence[str] | None
) -> Features:
    """Make sense of named arrays: a matrix with ids, or one array per utterance."""
    made = parse_provenance(provenance, path) if provenance is not None else None
    key = next((name for name in KEYS if name in arrays and not arrays[name].is_number), None) or next(
        (name for name in KEYS[:4] if name in arrays and arrays[name].dtype.kind in "iu"), None
    )
    means = next((name for name in _MEANS if name in arrays), None)
    if key is not None and means is not None:
        return _matrix(path, arrays, key, means, made, representations)
    if made is not None and "std" in arrays:
        raise StoreError(
            f"{path} was exported with `--pool std`: the means are missing. Export it with `--pool mean+std`."
        )
    if key is not None or means is not None or not arrays:
        raise _expected(path, arrays)
    return _one_per_utterance(path, arrays)


def _matrix(
    path: Path,
    arrays: Mapping[str, _Array],
    key: str,
    means: str,
    made: Mapping[str, Any] | None,
    representations: Sequence[str] | None,
) -> Features:
    keys = texts(arrays[key].load(None), path, key)
    mean = arrays[means]
    std = arrays.get("std")
    for name, array in ((means, mean), ("std", std)):
        if array is None:
            continue
        if not array.is_number:
            raise StoreError(f"{path}: {name!r} must hold numbers, not {array.dtype}.")
        if (
            array.shape != mean.shape
            or len(array.shape) not in (2, 3)
            or array.shape[0] != len(keys)
            or 0 in array.shape[1:]
        ):
            raise StoreError(
                f"{path}: {name!r} has shape {list(array.shape)}; with {len(keys)} ids in {key!r} it must be [{len(keys)}, D] or"
                f" [{len(keys)}, R, D]{f' as {means!r} is: {list(mean.shape)}' if name == 'std' else ''}."
            )
    flat = len(mean.shape) == 2
    if "representations" in arrays and representations is None:
        representations = texts(arrays["representations"].load(None), path, "representations")

    def numbers(name: str, kinds: str) -> NDArray[Any] | None:
        array = arrays.get(name)
        if array is None:
            return None
        if array.shape != (len(keys),) or array.dtype.kind not in kinds:
            raise StoreError(
                f"{path}: {name!r} must be {len(keys)} numbers, one per id, not {array.dtype} {list(array.shape)}."
            )
        return array.load(None)

    def read(rows: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[Any] | None]:
        found = []
        for array in (mean, std):
            part = None if array is None else array.load(rows)
            found.append(part[:, None] if part is not None and flat else part)
        assert found[0] is not None
        return found[0], found[1]

    failed: dict[str, str] = {}
    for group in ("failed/", "failed_"):
        if f"{group}utterance_id" in arrays and f"{group}reason" in arrays:
            names = texts(arrays[f"{group}utterance_id"].load(None), path, f"{group}utterance_id")
            failed.update(zip(names, texts(arrays[f"{group}reason"].load(None), path, f"{group}reason"), strict=False))
    num_frames = numbers("num_frames", "iu")
    duration_s = numbers("duration_s", "fiu")
    return Features(
        keys=keys,
        representations=representation_names(representations, 1 if flat else mean.shape[1], path),
        dim=mean.shape[-1],
        has_std=std is not None,
        num_frames=None if num_frames is None else num_frames.astype(np.int64),
        duration_s=None if duration_s is None else duration_s.astype(np.float64),
        failed=failed,
        provenance=made,
        read=read,
    )


def _one_per_utterance(path: Path, arrays: Mapping[str, _Array]) -> Features:
    """One array per utterance, named after it: [D], or frames [T, D]; a leading axis of 1 is dropped."""
    keys = list(arrays)
    shapes = []
    for name, array in arrays.items():
        shape = array.shape
        while len(shape) > 1 and shape[0] == 1:
            shape = shape[1:]
        if not array.is_number or len(shape) not in (1, 2) or 0 in shape:
            raise StoreError(
                f"{path}: {name!r} is {array.dtype} {list(array.shape)}; one array per utterance must hold numbers, [D] or"
                " frames [T, D]."
            )
        shapes.append(shape)
    dims = {shape[-1] for shape in shapes}
    if len(dims) > 1:
        other = next(name for name, shape in zip(keys, shapes, strict=True) if shape[-1] != shapes[0][-1])
        raise StoreError(
            f"{path}: utterances differ in their number of features D: {keys[0]!r} is {list(arrays[keys[0]].shape)},"
            f" {other!r} is {list(arrays[other].shape)}. All must have the same."
        )
    lengths = {shape[0] for shape in shapes if len(shape) == 2}
    if len(lengths) == 1 and all(len(shape) == 2 for shape in shapes) and len(shapes) > 1:
        raise StoreError(
            f"{path}: every utterance is {list(shapes[0])}: {shapes[0][0]} frames, or {shapes[0][0]} layers? hyfuse cannot tell."
            " Pool frames to [D] before; give layers as one array 'embeddings' [N, R, D] beside 'utterance_id'."
        )
    pooled = bool(lengths)

    def read(rows: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[Any] | None]:
        mean = np.zeros((len(rows), 1, shapes[0][-1]))
        std = np.zeros_like(mean)
        for position, row in enumerate(rows.tolist()):
            values = arrays[keys[row]].load(None).astype(np.float64).reshape(-1, mean.shape[2])  # [T, D]
            with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is reported per utterance
                mean[position, 0], std[position, 0] = values.mean(axis=0), values.std(axis=0)
        return mean, std if pooled else None

    return Features(
        keys=keys,
        representations=("embedding",),
        dim=dims.pop(),
        has_std=pooled,
        num_frames=np.array([shape[0] if len(shape) == 2 else 1 for shape in shapes], np.int64),
        read=read,
    )


def open_h5(path: Path, stack: contextlib.ExitStack) -> Features:
    import h5py

    if not h5py.is_hdf5(path):
        raise StoreError(f"{path} is not an HDF5 file, or its beginning is damaged. Get it again.")
    file = stack.enter_context(h5py.File(path, "r"))
    arrays: dict[str, _Array] = {}

    def loader(dataset: Any) -> Callable[[NDArray[np.int64] | None], NDArray[Any]]:
        def load(rows: NDArray[np.int64] | None) -> NDArray[Any]:
            try:
                if rows is None:
                    return np.asarray(dataset[()])
                # HDF5 wants rows in rising order, each once; runs of rows are read at one go.
                order, back = np.unique(rows, return_inverse=True)
                if len(order) and order[-1] - order[0] < 4 * len(order):
                    block = dataset[int(order[0]) : int(order[-1]) + 1]
                    return np.asarray(block[rows - order[0]])
                return np.asarray(dataset[order])[back] if len(order) else np.asarray(dataset[:0])
            except (OSError, ValueError, RuntimeError) as error:
                raise damaged(path, error) from error

        return load

    def walk(group: Any, prefix: str, above: tuple[Any, ...]) -> None:
        for name in group:
            link = group.get(name, getlink=True)
            if isinstance(link, h5py.ExternalLink):
                raise StoreError(
                    f"{path}: {prefix + name!r} is a link into another file, which is not followed. Copy it."
                )
            if isinstance(link, h5py.SoftLink):
                continue  # another name for something that is met anyway
            item = group[name]
            if isinstance(item, h5py.Group):
                if item in above:
                    raise StoreError(f"{path}: the group {prefix + name!r} contains itself. Write the file again.")
                walk(item, f"{prefix}{name}/", (*above, item))
            elif isinstance(item, h5py.Dataset):
                if item.is_virtual or item.external:
                    raise StoreError(
                        f"{path}: {prefix + name!r} lies in other files, which are not followed. Copy it into this one."
                    )
                if item.shape is None:
                    raise StoreError(f"{path}: {prefix + name!r} has no shape. Write the file again.")
                if h5py.check_string_dtype(item.dtype) is None and item.dtype.kind == "O":
                    raise StoreError(f"{path}: {prefix + name!r} holds objects, expected numbers or text.")
                arrays[prefix + name] = _Array(tuple(item.shape), item.dtype, loader(item))

    walk(file, "", (file,))
    given = file.attrs.get("representations")
    return _from_arrays(
        path,
        {name: array for name, array in arrays.items() if not name.startswith("frames/") or "offsets" not in arrays},
        provenance=_attribute(file, "provenance") if _attribute(file, "format") == FORMAT else None,
        representations=None if given is None else texts(given, path, "representations"),
    )


def _attribute(file: Any, name: str) -> str | None:
    """An attribute that is text."""
    value = file.attrs.get(name)
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return value if isinstance(value, str) else None


def open_npz(path: Path, stack: contextlib.ExitStack) -> Features:
    archive = stack.enter_context(zipfile.ZipFile(path))
    arrays: dict[str, _Array] = {}
    for member in archive.infolist():
        if not member.filename.endswith(".npy"):
            raise StoreError(f"{path}: {member.filename!r} is no array. An .npz holds .npy files only.")
        with archive.open(member) as handle:
            version = np.lib.format.read_magic(handle)
            reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = reader(handle)
            header_bytes = handle.tell()
        name = member.filename.removesuffix(".npy")
        if dtype.hasobject:
            raise StoreError(
                f"{path}: {name!r} holds Python objects, which would have to be unpickled, and a pickle can run any program. Save"
                f" it with a plain type: `{name}.astype(str)` for text, `.astype('float32')` for numbers."
            )
        announced = math.prod(shape) * dtype.itemsize
        if announced != member.file_size - header_bytes:
            raise StoreError(
                f"{path}: {name!r} announces {announced} bytes and holds {member.file_size - header_bytes}. It is damaged: get it"
                " again."
            )
        arrays[name] = _Array(tuple(shape), dtype, _npz_loader(path, archive, member))
    if "offsets" in arrays:
        arrays = {name: array for name, array in arrays.items() if not name.startswith("frames/")}
    check_memory(path, max((math.prod(array.shape) * array.dtype.itemsize for array in arrays.values()), default=0))
    provenance = arrays.get("provenance")
    own = provenance is not None and provenance.shape == () and provenance.dtype.kind == "U"
    return _from_arrays(
        path,
        arrays,
        provenance=provenance.load(None).item() if own and provenance is not None else None,
        representations=None,
    )


def _npz_loader(
    path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo
) -> Callable[[NDArray[np.int64] | None], NDArray[Any]]:
    """Reads an array once, when it is first needed."""
    kept: list[NDArray[Any]] = []

    def load(rows: NDArray[np.int64] | None) -> NDArray[Any]:
        if not kept:
            try:
                with archive.open(member) as handle:
                    kept.append(np.lib.format.read_array(handle, allow_pickle=False))
            except (OSError, ValueError, EOFError, MemoryError, zipfile.BadZipFile) as error:
                raise damaged(path, error) from error
        return kept[0] if rows is None else np.asarray(kept[0][rows])

    return load
