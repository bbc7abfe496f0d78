"""Embeddings out of a store, for other programs, and into a store, from other programs.

An export holds the utterances that are done, in manifest order, with what the manifest says of them; utterances that failed are
listed with their reasons and hold no place among the numbers. The formats are those of ``feature_files.py``.

An import becomes an ordinary store, so that it can be fused and compared with everything else. What it says about itself:
``encoder`` is the name that the user chose; ``weights_kind`` is ``imported``, or ``random`` where the file was exported by hyfuse
from random weights: they keep saying so; ``condition`` is that of an export of hyfuse, else ``clean``; ``weights_digest`` is the
sha256 of the imported numbers with their ids, whatever file format they came in. An utterance whose numbers are not finite in
float32 fails, with the reason; one that is not in the file is an error, or fails if the user allows that.

Rows of a file are matched to utterances by key, never by position: by utterance id, else by path, else by a path that ends
alike, else by file name without its suffix. A key that fits several utterances, or two keys that fit the same, are errors.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import zipfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

import pipelines
from pipelines.corpora.manifest import NUMBER_COLUMNS, Manifest
from pipelines.errors import ConfigError, HyfuseError, ProvenanceError, StoreError, UtteranceError, unknown_name
from pipelines.locations import Location
from pipelines.store.embeddings import DONE, POOLS, BlockResult, EmbeddingStore, open_store, open_writer, store_path
from pipelines.store.feature_arrays import open_h5, open_npz
from pipelines.store.feature_files import BLOCK, Features, FeatureTable, Progress, check_suffix, damaged
from pipelines.store.feature_tables import open_csv, open_parquet
from pipelines.store.feature_writing import write_features
from pipelines.store.provenance import Provenance

__all__ = [
    "IMPORTED",
    "Exported",
    "Imported",
    "check_import_name",
    "export_store",
    "export_table",
    "import_features",
    "is_imported",
    "match_utterances",
    "read_features",
]

IMPORTED = "imported"
"""``weights_kind`` of a store that hyfuse did not compute."""

_SOURCE = "imported from "

FAMILIES = ("RLR", "CBR")

_ABSENT = "The imported file does not hold this utterance."
_NOT_FINITE = "The imported numbers are not finite (NaN, infinite, or beyond float32)."
_EXPORTED_COLUMNS = ("path", "speaker", "sex", "language", "session", "emotion", "emotion_raw", "arousal", "valence", "dominance",
                     "official_split")  # fmt: skip


# ---------------------------------------------------------------------------------------------------- export


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        path: the file.
        rows: utterances with an embedding.
        failed: utterances that are listed with their reason only.
        representations: names.
        arrays: which of ``mean`` and ``std``.
    """

    path: Path
    rows: int
    failed: int
    representations: tuple[str, ...]
    arrays: tuple[str, ...]


def export_store(
    store: EmbeddingStore,
    manifest: Manifest,
    path: Path,
    *,
    representations: Sequence[str] = (),
    pool: str = "mean+std",
    progress: Progress | None = None,
) -> Exported:
    """Write a store to a file that other programs read; the suffix chooses the format.

    Args:
        store: a finished one.
        manifest: the one the store was made from: ids, speakers, labels.
        path: ``.h5``, ``.npz``, ``.parquet`` or ``.csv``; a file that is there is replaced when the new one is whole.
        representations: which; all, if none is named.
        pool: ``mean``, ``std`` or ``mean+std``. Utterance-level embeddings have no std: ``mean+std`` writes their mean alone.
        progress: called after every block of utterances.

    Raises:
        UnknownNameError: no such representation.
        ConfigError: no such pooling or file format, or ``std`` of utterance-level embeddings.
        ProvenanceError: the manifest is another one.
        StoreError: the store is unfinished or damaged, or every utterance of it failed.
        StorageError: the disk is full or cannot be written.
    """
    check_suffix(path)
    table = export_table(store, manifest, representations=representations, pool=pool)
    write_features(table, path, progress=progress)
    return Exported(path, len(table), len(table.failed), table.representations, table.arrays)


def export_table(
    store: EmbeddingStore, manifest: Manifest, *, representations: Sequence[str] = (), pool: str = "mean+std"
) -> FeatureTable:
    """What :func:`export_store` writes; numbers are read when they are asked for."""
    made = store.provenance
    for name in representations:
        if name not in made.representations:
            raise unknown_name(f"representation of {made.encoder}", name, made.representations)
    if pool not in POOLS:
        raise ConfigError(f"Pooling must be one of {', '.join(POOLS)}, not {pool!r}.")
    if manifest.digest != made.manifest_digest:
        raise ProvenanceError(
            f"The remembered manifest of {manifest.corpus!r} (digest {manifest.digest[:12]}…) is not the one that {store.path} was"
            f" made from ({made.manifest_digest[:12]}…). Remove the store and extract again, or name another --cache-dir."
        )
    if not store.is_complete:
        todo, finished, failed = store.counts
        raise StoreError(
            f"{store.path} is unfinished: {finished} done, {failed} failed, {todo} to do. Finish it with the command that began it."
        )
    done = np.flatnonzero(store.status == DONE)
    if not len(done):
        raise StoreError(
            f"Every utterance of {store.path} failed: there is nothing to export. See `hyfuse cache list`."
        )
    has_spread = bool((store.num_frames > 1).any())
    if pool == "std" and not has_spread:
        raise ConfigError(
            f"{made.encoder} gives one frame per utterance, so there is no std to export. Use `--pool mean`."
        )
    ids = [store.utterance_ids[row] for row in done.tolist()]
    row_of = {name: row for row, name in enumerate(manifest.utterance_ids)}
    rows = [row_of[name] for name in ids]
    columns: dict[str, Any] = {}
    for name in _EXPORTED_COLUMNS:
        values = manifest.table[name].to_numpy()[rows]
        if name in NUMBER_COLUMNS:
            if not np.isnan(values.astype(np.float64)).all():
                columns[name] = values.astype(np.float64)
        elif name in {"speaker", "emotion"} or any(values):
            columns[name] = [str(value) for value in values]

    def read(array: str, representation: str, start: int, stop: int) -> NDArray[np.float32]:
        return store.features(ids[start:stop], representation=representation, pool=array)

    return FeatureTable(
        utterance_ids=ids,
        columns=columns,
        num_frames=store.num_frames[done],
        duration_s=store.duration_s[done],
        representations=tuple(dict.fromkeys(representations)) or made.representations,
        dim=made.dim,
        arrays={"mean": ("mean",), "std": ("std",), "mean+std": ("mean", "std") if has_spread else ("mean",)}[pool],
        provenance={"hyfuse": pipelines.__version__, **made.to_attributes()},
        failed=store.failures(),
        read=read,
    )


# ---------------------------------------------------------------------------------------------------- import


@contextmanager
def read_features(path: Path) -> Iterator[Features]:
    """Open a file of embeddings.

    Besides what hyfuse writes: HDF5 or npz with ``utterance_id`` (or ``file``, ``path``, ``name``) and ``embeddings`` (or
    ``mean``, ``features``), [N, D] or [N, R, D], and optionally ``std`` of the same shape, ``num_frames`` and ``duration_s``;
    HDF5 or npz with one array per utterance, named after it, [D] or, varying in T, frames [T, D], which are pooled; CSV and
    Parquet with a column of ids or files and otherwise numbers (audformat, openSMILE, nkululeko), or a list column.

    Raises:
        ConfigError: not a suffix that is read.
        StoreError: no such file, empty, damaged, or not of a layout above.
    """
    suffix = check_suffix(path)
    if not path.is_file():
        raise StoreError(f"There is no file {path}. Check the path.")
    if path.stat().st_size == 0:
        raise StoreError(f"{path} is empty (0 bytes). Write it again.")
    opener = {".h5": open_h5, ".npz": open_npz, ".parquet": open_parquet, ".csv": open_csv}[suffix]
    with contextlib.ExitStack() as stack:
        try:
            features = opener(path, stack)
        except HyfuseError:
            raise
        except (
            OSError,
            ValueError,
            TypeError,
            KeyError,
            RuntimeError,
            MemoryError,
            EOFError,
            zipfile.BadZipFile,
        ) as error:
            raise damaged(path, error) from error
        if not features.keys and not features.failed:
            raise StoreError(f"{path} lists no utterance. Write it again, with one row per recording.")
        yield features


@dataclass(frozen=True)
class Imported:
    """What became of a file.

    Attributes:
        store: the finished store.
        failed: utterance id to reason.
        missing: how many of them are not in the file.
        unused: keys of the file that fit no utterance of the corpus.
        ignored: columns that were not taken for features.
    """

    store: EmbeddingStore
    failed: Mapping[str, str]
    missing: int
    unused: tuple[str, ...]
    ignored: tuple[str, ...]


def check_import_name(name: str, taken: Collection[str]) -> None:
    """Whether imported embeddings may be called so.

    Args:
        name: what the user wants to call them.
        taken: names of encoders that hyfuse computes itself.

    Raises:
        ConfigError: not a name, or one that means something else.
    """
    if not re.fullmatch(r"[A-Za-z0-9][\w.+-]{0,99}", name, re.ASCII):
        raise ConfigError(
            f"--name {name!r} cannot be used. Use letters, digits, '.', '_', '+' and '-', such as my-features."
        )
    if name.casefold() in {other.casefold() for other in taken}:
        raise ConfigError(
            f"--name {name!r} is the name of an encoder that hyfuse computes itself, and tables could not tell them apart. Choose"
            f" another one, such as `--name my-{name}`."
        )
    if name.casefold().startswith("hf--"):
        raise ConfigError(
            f"--name {name!r} is how stores of `hf:` models are called. Choose another one, such as my-features."
        )
    if name.casefold() == "recordings":  # the demo corpus keeps its recordings beside its stores
        raise ConfigError(
            "--name 'recordings' is a folder of the demo corpus. Choose another one, such as my-features."
        )


def is_imported(made: Provenance) -> bool:
    """Whether a store's numbers came from a file, so that hyfuse cannot compute them again."""
    return made.weights_source.startswith(_SOURCE)


def import_features(
    path: Path,
    manifest: Manifest,
    *,
    name: str,
    cache_dir: Location,
    family: str = "",
    taken: Collection[str] = (),
    allow_missing: bool = False,
    progress: Progress | None = None,
) -> Imported:
    """Make a store of a file of embeddings. An import that was interrupted is finished by the same call.

    Args:
        path: ``.h5``, ``.npz``, ``.parquet`` or ``.csv``; see :func:`read_features`.
        manifest: the corpus.
        name: what the embeddings are called from now on.
        cache_dir: folder of the stores.
        family: ``RLR`` or ``CBR``: which side of a pair they are on; empty for what a file of hyfuse says, else RLR.
        taken: names of encoders, which may not be used.
        allow_missing: record utterances that are not in the file as failed, instead of refusing.
        progress: called after every block of utterances.

    Raises:
        ConfigError: a name or family that cannot be used, or a format that is not read.
        StoreError: the file is absent, damaged or of no known layout, or nothing in it can be used.
        UtteranceError: keys are ambiguous or doubled, or utterances are missing.
        ProvenanceError: other embeddings of that name are there already.
        StorageError: the disk is full or cannot be written.
    """
    check_import_name(name, taken)
    if family and family not in FAMILIES:
        raise ConfigError(f"--family must be one of {', '.join(FAMILIES)}, not {family!r}.")
    with read_features(path) as features:
        source = _Source(path, manifest, features, allow_missing=allow_missing)
        provenance = _provenance(path, manifest, features, source.digest(progress), name=name, family=family)
        if source.num_usable == 0:
            raise StoreError(
                f"{path}: not one utterance of {manifest.corpus!r} can be used. The first reason: {source.first_reason()}"
            )
        target = store_path(cache_dir, manifest.corpus, name, provenance.condition)
        with open_writer(target, provenance=provenance, utterance_ids=manifest.utterance_ids) as writer:
            for block in writer.blocks_to_do():
                rows = writer.rows_of(block)
                writer.write_block(block, source.rows(rows.start, rows.stop))
                if progress is not None:
                    progress(rows.stop, len(manifest))
        store = open_store(target)
        return Imported(
            store, store.failures(), source.num_missing, source.unused, () if features.provenance else features.ignored
        )


class _Source:
    """A file's rows in manifest order."""

    def __init__(self, path: Path, manifest: Manifest, features: Features, *, allow_missing: bool) -> None:
        self._features = features
        self._ids = manifest.utterance_ids
        self._known_s = manifest.table["duration_s"].to_numpy(dtype=np.float64)
        origin = str(path)
        order, unused = match_utterances(features.keys, manifest, origin=origin, segmented=features.segmented)
        failed_keys = list(features.failed)
        failed_order, _ = match_utterances(failed_keys, manifest, origin=f"{origin} (failed)")
        self._order = order
        self._reasons = {
            row: features.failed[failed_keys[failed_order[row]]] or _ABSENT
            for row in np.flatnonzero((order < 0) & (failed_order >= 0)).tolist()
        }
        missing = [row for row in np.flatnonzero(order < 0).tolist() if row not in self._reasons]
        if (order < 0).all() and not self._reasons:
            raise UtteranceError(
                f"No row of {path} fits an utterance of {manifest.corpus!r}. Keys there: {_few(features.keys)}; utterances:"
                f" {_few(self._ids)}; their paths: {_few(list(manifest.table['path']))}. Name rows by utterance id or path."
            )
        if missing and not allow_missing:
            raise UtteranceError(
                f"{len(missing)} of {len(manifest)} utterances of {manifest.corpus!r} are not in {path}:"
                f" {_few([self._ids[row] for row in missing], 5)}. Make their embeddings too, or leave them out of every comparison"
                " with `--allow-missing`."
            )
        self._reasons |= {row: _ABSENT for row in missing}
        self.num_missing = len(missing)
        self.unused = tuple(unused)
        self.num_usable = 0

    def digest(self, progress: Progress | None) -> str:
        """sha256 of ids, numbers and reasons; counts what can be used."""
        digest = hashlib.sha256()
        header = [list(self._features.representations), self._features.dim, self._features.has_std]
        digest.update(json.dumps(header).encode())
        total = len(self._ids)
        for start in range(0, total, BLOCK):
            stop = min(start + BLOCK, total)
            block = self.rows(start, stop)
            for position, row in enumerate(range(start, stop)):
                digest.update(
                    json.dumps([self._ids[row], block.failure[position], int(block.num_frames[position])]).encode()
                )
                if not block.failure[position]:
                    digest.update(block.mean[position].astype("<f4").tobytes())
                    digest.update(block.std[position].astype("<f4").tobytes())
                    self.num_usable += 1
            if progress is not None:
                progress(0, total)
        return digest.hexdigest()

    def first_reason(self) -> str:
        """Why the first utterance cannot be used."""
        return self.rows(0, 1).failure[0]

    def rows(self, start: int, stop: int) -> BlockResult:
        """Manifest rows as a block of a store."""
        features, count = self._features, stop - start
        shape = (count, len(features.representations), features.dim)
        mean, std = np.full(shape, np.nan, np.float32), np.full(shape, np.nan, np.float32)
        num_frames, duration_s = np.zeros(count, np.int32), np.full(count, np.nan)
        failure = [self._reasons.get(row, "") for row in range(start, stop)]
        there = np.flatnonzero(self._order[start:stop] >= 0)
        if len(there):
            keys = self._order[start:stop][there]
            with np.errstate(over="ignore", invalid="ignore"):  # what is beyond float32 fails below
                means, stds = features.read(keys)
                mean[there] = means.astype(np.float32)
                std[there] = 0.0 if stds is None else stds.astype(np.float32)
            if features.num_frames is not None:
                num_frames[there] = features.num_frames[keys]
            else:
                num_frames[there] = (
                    1 if stds is None else 2
                )  # see docs/interchange.md: more than one, nobody knows how many
            known = self._known_s[start:stop][there]
            told = features.duration_s[keys] if features.duration_s is not None else known
            duration_s[there] = np.nan_to_num(np.where(np.isfinite(told), told, known), nan=0.0)
        for position in there.tolist():
            if not (np.isfinite(mean[position]).all() and np.isfinite(std[position]).all()):
                failure[position] = _NOT_FINITE
            elif (std[position] < 0).any():
                failure[position] = "The imported standard deviation is negative."
            elif num_frames[position] < 1:
                failure[position] = f"The imported number of frames is {num_frames[position]}, expected at least 1."
        for position, reason in enumerate(failure):
            if reason:
                mean[position], std[position], num_frames[position] = np.nan, np.nan, 0
        return BlockResult(mean=mean, std=std, num_frames=num_frames, duration_s=duration_s, failure=failure)


def _provenance(
    path: Path, manifest: Manifest, features: Features, digest: str, *, name: str, family: str
) -> Provenance:
    """What the store of an import says about itself."""
    made = features.provenance or {}

    def told(field: str, kind: type, otherwise: Any) -> Any:
        value = made.get(field)
        return value if isinstance(value, kind) else otherwise

    representations = features.representations
    default = told("default_representation", str, "")
    source = f"{_SOURCE}{path.name}"
    if made:
        source += (
            f", written by hyfuse: {told('encoder', str, 'unknown')}, {told('weights_kind', str, 'unknown')} weights"
        )
        source += f" {told('weights_source', str, '')} {told('weights_revision', str, '')}".rstrip()
    versions = told("versions", dict, {})
    condition = told("condition", str, "clean")
    if not re.fullmatch(r"\w[\w.:@+-]{0,199}", condition):  # it names the store's folder
        raise StoreError(f"{path}: {condition!r} cannot be the name of a condition. Export it again.")
    return Provenance(
        corpus=manifest.corpus,
        manifest_digest=manifest.digest,
        encoder=name,
        family=family or (str(made["family"]) if made.get("family") in FAMILIES else "RLR"),
        condition=condition,
        condition_digest=told("condition_digest", str, ""),
        # Random numbers must not become respectable by a detour through a file.
        weights_kind="random" if made.get("weights_kind") == "random" else IMPORTED,
        weights_source=source,
        weights_revision="",
        weights_digest=digest,
        weights_licence=told("weights_licence", str, "unknown: imported"),
        representations=representations,
        default_representation=default if default in representations else representations[-1],
        dim=features.dim,
        sample_rate_hz=told("sample_rate_hz", int, 0),
        resampler=told("resampler", str, "unknown"),
        precision=told("precision", str, "float32"),
        device=told("device", str, "unknown"),
        versions={str(library): str(version) for library, version in versions.items()},
    )


# ---------------------------------------------------------------------------------------------------- matching


def match_utterances(
    keys: Sequence[str], manifest: Manifest, *, origin: str, segmented: bool = False
) -> tuple[NDArray[np.int64], list[str]]:
    """Which row of a file belongs to which utterance.

    Args:
        keys: utterance ids, paths or file names, one per row of the file.
        manifest: N utterances.
        origin: the file, for messages.
        segmented: whether the file's rows are parts of recordings.

    Returns:
        int64 [N], the file's row of every utterance, -1 for none; and the keys that fit no utterance.

    Raises:
        UtteranceError: a key fits several utterances, or several keys fit the same one.
    """
    levels = _levels(manifest)
    order = np.full(len(manifest), -1, np.int64)
    unused: list[str] = []
    doubled: dict[int, list[int]] = {}
    for position, key in enumerate(keys):
        row = _find(key, levels, manifest, origin)
        if row is None:
            unused.append(key)
        elif order[row] >= 0:
            doubled.setdefault(row, [int(order[row])]).append(position)
        else:
            order[row] = position
    if doubled:
        row, positions = next(iter(doubled.items()))
        cause = (
            " Its rows are segments (columns start and end): write one row per recording."
            if segmented
            else " If its rows are frames, average them first; if it holds an utterance twice, remove one."
        )
        raise UtteranceError(
            f"{origin}: {len(doubled)} utterance(s) of {manifest.corpus!r} have more than one row."
            f" {manifest.utterance_ids[row]} has {len(positions)}: {_few([keys[position] for position in positions])}.{cause}"
        )
    return order, unused


_Level = Mapping[str, Sequence[int]]


def _levels(manifest: Manifest) -> tuple[_Level, _Level, _Level, _Level]:
    """Manifest rows by id, by path, by path without suffix, and by file name without suffix."""
    ids: dict[str, list[int]] = {}
    paths: dict[str, list[int]] = {}
    bare: dict[str, list[int]] = {}
    stems: dict[str, list[int]] = {}
    for row, (name, path) in enumerate(zip(manifest.utterance_ids, manifest.table["path"], strict=True)):
        ids.setdefault(name, []).append(row)
        pure = PurePosixPath(_normal(path))
        paths.setdefault(str(pure), []).append(row)
        bare.setdefault(str(pure.with_suffix("")), []).append(row)
        stems.setdefault(pure.stem, []).append(row)
    return ids, paths, bare, stems


def _normal(path: str) -> str:
    return path.replace("\\", "/").removeprefix("./")


def _find(key: str, levels: tuple[_Level, _Level, _Level, _Level], manifest: Manifest, origin: str) -> int | None:
    """The utterance that a key means; None if there is none."""
    ids, paths, bare, stems = levels
    if found := ids.get(key):
        return found[0]
    if not key:
        return None
    pure = PurePosixPath(_normal(key))
    endings = [str(PurePosixPath(*pure.parts[first:])) for first in range(len(pure.parts))]  # longest first
    for level in (paths, bare):
        for ending in endings:
            if found := level.get(ending):
                return _only(key, found, manifest, origin)
    without = [str(PurePosixPath(ending).with_suffix("")) for ending in endings if PurePosixPath(ending).name]
    for ending in without:
        for level in (ids, bare):
            if found := level.get(ending):
                return _only(key, found, manifest, origin)
    for stem in (pure.name, pure.stem):
        for level in (ids, stems):
            if found := level.get(stem):
                return _only(key, found, manifest, origin)
    return None


def _only(key: str, rows: Sequence[int], manifest: Manifest, origin: str) -> int:
    if len(rows) > 1:
        fitting = [f"{manifest.utterance_ids[row]} ({manifest.table['path'].iloc[row]})" for row in rows]
        raise UtteranceError(
            f"{origin}: {key!r} fits {len(rows)} utterances of {manifest.corpus!r}: {_few(fitting)}. Name rows by utterance id, or"
            " by the path as the manifest has it."
        )
    return rows[0]


def _few(names: Sequence[str], most: int = 3) -> str:
    return (", ".join(names[:most]) + (", …" if len(names) > most else "")) or "none"
