"""Embeddings out of a store and into a store: the same bits, matched by name, and nothing hostile gets in."""

from __future__ import annotations

import csv
import errno
import json
import os
import pickle
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from pipelines.corpora.manifest import Manifest, manifest_from_rows
from pipelines.errors import (
    ConfigError,
    HyfuseError,
    ProvenanceError,
    StorageError,
    StoreError,
    UnknownNameError,
    UtteranceError,
)
from pipelines.locations import ObjectPath
from pipelines.store import feature_files
from pipelines.store.embeddings import EmbeddingStore, StoreWriter, open_store, open_writer, store_path, verify_store
from pipelines.store.feature_files import BLOCK, FeatureTable
from pipelines.store.feature_writing import write_features
from pipelines.store.interchange import (
    check_import_name,
    export_store,
    import_features,
    is_imported,
    match_utterances,
    read_features,
)
from tests.store.stores import BLOCK_ROWS, IDS, block_result, make_provenance, toy_path, tree_digest

FORMATS = ("h5", "npz", "parquet", "csv")
FAILED = {2: "row 2 is broken – wirklich", 7: "row 7 is broken – wirklich"}
DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "interchange.md"


def make_manifest(ids: list[str] | None = None, *, folder: str = "wav/") -> Manifest:
    names = IDS if ids is None else ids
    rows = [
        {
            "utterance_id": name,
            "path": f"{folder}{name}.wav",
            "speaker": f"sp{row % 3}",
            "emotion": ["anger", "", "fear"][row % 3],
            "arousal": row / 3 if row else None,
            "duration_s": 1.0 + row,
        }
        for row, name in enumerate(names)
    ]
    return manifest_from_rows("toy", rows)


@pytest.fixture
def manifest() -> Manifest:
    return make_manifest()


def make_store(cache_dir: Path, manifest: Manifest, *, frames: int = 5, **changes: Any) -> EmbeddingStore:
    """Ten rows, two of them failed."""
    path = toy_path(cache_dir)
    provenance = make_provenance(manifest_digest=manifest.digest, **changes)
    with open_writer(path, provenance=provenance, utterance_ids=IDS, block_rows=BLOCK_ROWS) as writer:
        for block in writer.blocks_to_do():
            writer.write_block(block, block_result(writer.rows_of(block), failed=FAILED, frames=frames))
    return open_store(path)


@pytest.fixture
def store(tmp_path: Path, manifest: Manifest) -> EmbeddingStore:
    return make_store(tmp_path / "cache", manifest)


DONE_IDS = [name for row, name in enumerate(IDS) if row not in FAILED]


def bits(values: Any) -> bytes:
    return np.ascontiguousarray(np.asarray(values, dtype=np.float32)).tobytes()


# ---------------------------------------------------------------------------------------------------- export


def test_hdf5_holds_ids_labels_numbers_and_provenance(
    tmp_path: Path, manifest: Manifest, store: EmbeddingStore
) -> None:
    """Read by h5py alone."""
    written = export_store(store, manifest, tmp_path / "out.h5")
    assert (written.rows, written.failed, written.arrays) == (8, 2, ("mean", "std"))
    with h5py.File(tmp_path / "out.h5") as file:
        assert file["utterance_id"].asstr()[:].tolist() == DONE_IDS
        assert file["speaker"].asstr()[:].tolist() == [f"sp{int(name[3:]) % 3}" for name in DONE_IDS]
        assert file["emotion"].asstr()[:].tolist() == [["anger", "", "fear"][int(name[3:]) % 3] for name in DONE_IDS]
        np.testing.assert_array_equal(
            file["arousal"][:], [np.nan if n == "utt00" else int(n[3:]) / 3 for n in DONE_IDS]
        )
        assert "language" not in file  # empty for every utterance
        assert file["representations"].asstr()[:].tolist() == ["first", "second"]
        for array in ("mean", "std"):
            assert file[array].dtype == np.float32
            for index, name in enumerate(("first", "second")):
                expected = store.features(DONE_IDS, representation=name, pool=array)
                assert bits(file[array][:, index]) == bits(expected)
        assert file["num_frames"][:].tolist() == [5] * 8
        assert file["duration_s"][:].tolist() == [1.0 + int(name[3:]) for name in DONE_IDS]
        provenance = json.loads(file.attrs["provenance"])
        assert provenance["encoder"] == "enc"
        assert provenance["weights_kind"] == "random"
        assert provenance["manifest_digest"] == manifest.digest
        assert file["failed/utterance_id"].asstr()[:].tolist() == ["utt02", "utt07"]
        assert file["failed/reason"].asstr()[:].tolist() == list(FAILED.values())


def test_npz_is_read_without_pickles(tmp_path: Path, manifest: Manifest, store: EmbeddingStore) -> None:
    export_store(store, manifest, tmp_path / "out.npz")
    with np.load(tmp_path / "out.npz", allow_pickle=False) as file:
        assert file["utterance_id"].tolist() == DONE_IDS
        assert file["representations"].tolist() == ["first", "second"]
        assert file["mean"].shape == (8, 2, 3)
        assert bits(file["std"][:, 1]) == bits(store.features(DONE_IDS, representation="second", pool="std"))
        assert json.loads(file["provenance"].item())["encoder"] == "enc"
        assert dict(zip(file["failed_utterance_id"].tolist(), file["failed_reason"].tolist(), strict=True)) == {
            IDS[row]: reason for row, reason in FAILED.items()
        }


def test_parquet_is_read_by_pandas(tmp_path: Path, manifest: Manifest, store: EmbeddingStore) -> None:
    export_store(store, manifest, tmp_path / "out.parquet", representations=["second"], pool="mean")
    table = pd.read_parquet(tmp_path / "out.parquet")
    assert [name for name in table.columns if "/" in name] == ["mean/second"]
    assert table["utterance_id"].tolist() == DONE_IDS
    assert bits(np.stack(table["mean/second"])) == bits(store.features(DONE_IDS, representation="second", pool="mean"))


def test_csv_has_one_column_per_number_and_a_file_beside_it(
    tmp_path: Path, manifest: Manifest, store: EmbeddingStore
) -> None:
    export_store(store, manifest, tmp_path / "out.csv")
    table = pd.read_csv(tmp_path / "out.csv", keep_default_na=False)
    assert table["utterance_id"].tolist() == DONE_IDS
    columns = [f"second.std.{index}" for index in range(3)]
    assert bits(table[columns].to_numpy()) == bits(store.features(DONE_IDS, representation="second", pool="std"))
    beside = json.loads((tmp_path / "out.csv.json").read_text(encoding="utf-8"))
    assert beside["failed"] == {IDS[row]: reason for row, reason in FAILED.items()}
    assert beside["provenance"]["encoder"] == "enc"


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_store_comes_back_bit_for_bit(tmp_path: Path, manifest: Manifest, store: EmbeddingStore, suffix: str) -> None:
    export_store(store, manifest, tmp_path / f"out.{suffix}")
    done = import_features(tmp_path / f"out.{suffix}", manifest, name="again", cache_dir=tmp_path / "cache")
    again = done.store
    assert again.utterance_ids == IDS
    assert again.failures() == store.failures()
    assert again.status.tolist() == store.status.tolist()
    assert again.num_frames.tolist() == store.num_frames.tolist()
    assert again.provenance.representations == ("first", "second")
    assert again.provenance.default_representation == "second"
    for name in ("first", "second"):
        for pool in ("mean", "std", "mean+std"):
            expected = store.features(DONE_IDS, representation=name, pool=pool)
            assert bits(again.features(DONE_IDS, representation=name, pool=pool)) == bits(expected)
    assert verify_store(again.path) == []
    assert done.ignored == ()


def test_the_digest_of_the_numbers_is_that_of_no_format(
    tmp_path: Path, manifest: Manifest, store: EmbeddingStore
) -> None:
    digests = set()
    for suffix in FORMATS:
        export_store(store, manifest, tmp_path / f"out.{suffix}")
        done = import_features(tmp_path / f"out.{suffix}", manifest, name="x", cache_dir=tmp_path / suffix)
        digests.add(done.store.provenance.weights_digest)
        # The second import of the same numbers finds its work done, whatever format they come in.
        import_features(tmp_path / f"out.{suffix}", manifest, name="x", cache_dir=tmp_path / "one")
    assert len(digests) == 1
    assert re.fullmatch("[0-9a-f]{64}", digests.pop())


def test_exporting_twice_gives_the_same_bytes(tmp_path: Path, manifest: Manifest, store: EmbeddingStore) -> None:
    for folder in ("a", "b"):
        for suffix in FORMATS:
            export_store(store, manifest, tmp_path / folder / f"out.{suffix}")
    assert tree_digest(tmp_path / "a") == tree_digest(tmp_path / "b")


def table_of(numbers: NDArray[np.float32], *, blocks: list[tuple[int, int]] | None = None) -> FeatureTable:
    """A table of one representation, [n, D]; ``blocks`` collects what is read."""

    def read(array: str, representation: str, start: int, stop: int) -> NDArray[np.float32]:
        if blocks is not None:
            blocks.append((start, stop))
        return numbers[start:stop]

    count = len(numbers)
    return FeatureTable(
        utterance_ids=[f"u{row}" for row in range(count)],
        columns={},
        num_frames=np.ones(count, np.int32),
        duration_s=np.ones(count),
        representations=("embedding",),
        dim=numbers.shape[1],
        arrays=("mean",),
        provenance={},
        failed={},
        read=read,
    )


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_float32_survives(tmp_path: Path, suffix: str) -> None:
    """Random bit patterns, denormals, both zeros and the extremes; an oracle for the nine digits of CSV."""
    patterns = np.random.default_rng(0).integers(0, 2**32, 20_000, dtype=np.uint64).astype(np.uint32)
    numbers = patterns.view(np.float32)
    limits = np.finfo(np.float32)
    special = np.array([0.0, -0.0, limits.max, limits.min, limits.tiny, limits.smallest_subnormal, 1 / 3], np.float32)
    numbers = np.concatenate([special, numbers[np.isfinite(numbers)]])
    numbers = numbers[: len(numbers) // 8 * 8].reshape(-1, 8)
    write_features(table_of(numbers), tmp_path / f"x.{suffix}")
    with read_features(tmp_path / f"x.{suffix}") as features:
        mean, std = features.read(np.arange(len(numbers)))
    assert std is None
    assert bits(mean[:, 0]) == bits(numbers)


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize(("most_bytes", "step"), [(1, BLOCK), (2 * BLOCK * 4, 2 * BLOCK)])
def test_a_block_is_all_that_is_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, most_bytes: int, step: int
) -> None:
    monkeypatch.setattr(feature_files, "WRITE_BYTES", most_bytes)
    read: list[tuple[int, int]] = []
    numbers = np.arange(4 * BLOCK + 5, dtype=np.float32)[:, None]
    done: list[int] = []
    write_features(
        table_of(numbers, blocks=read), tmp_path / f"x.{suffix}", progress=lambda rows, total: done.append(rows)
    )
    assert max(stop - start for start, stop in read) == step
    assert sum(stop - start for start, stop in read) == len(numbers)
    assert done == [*range(step, 4 * BLOCK + 1, step), 4 * BLOCK + 5]


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_full_disk_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    monkeypatch.setattr(feature_files, "WRITE_BYTES", 1)
    target = tmp_path / f"x.{suffix}"
    target.write_text("the old one")

    def full(array: str, representation: str, start: int, stop: int) -> NDArray[np.float32]:
        if start:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return np.zeros((stop - start, 2), np.float32)

    table = table_of(np.zeros((2 * BLOCK, 2), np.float32))
    object.__setattr__(table, "read", full)
    with pytest.raises(StorageError, match=r"cannot be written: No space left on device.*run the same command again"):
        write_features(table, target)
    assert target.read_text() == "the old one"
    assert [path.name for path in tmp_path.iterdir()] == [target.name]


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"cannot be written"):
        write_features(table_of(np.zeros((1, 2), np.float32)), tmp_path / "file" / "x.h5")


def test_utterance_level_embeddings_have_no_std_to_export(tmp_path: Path, manifest: Manifest) -> None:
    store = make_store(tmp_path / "cache", manifest, frames=1)
    assert export_store(store, manifest, tmp_path / "out.npz").arrays == ("mean",)
    with pytest.raises(ConfigError, match=r"one frame per utterance, so there is no std to export"):
        export_store(store, manifest, tmp_path / "out.npz", pool="std")
    done = import_features(tmp_path / "out.npz", manifest, name="again", cache_dir=tmp_path / "cache")
    assert done.store.features(DONE_IDS, representation="first", pool="mean+std").shape == (8, 3)


def test_what_cannot_be_exported(tmp_path: Path, manifest: Manifest, store: EmbeddingStore) -> None:
    out = tmp_path / "out.h5"
    with pytest.raises(UnknownNameError, match=r"Unknown representation of enc 'layer_1'.*first, second"):
        export_store(store, manifest, out, representations=["layer_1"])
    with pytest.raises(ConfigError, match=r"Pooling must be one of mean, std, mean\+std, not 'max'"):
        export_store(store, manifest, out, pool="max")
    with pytest.raises(
        ConfigError, match=r"out.mat: a file of embeddings ends in \.h5, \.npz, \.parquet, \.csv, not in \.mat"
    ):
        export_store(store, manifest, tmp_path / "out.mat")
    with pytest.raises(ProvenanceError, match=r"The remembered manifest of 'toy' \(digest .*is not the one"):
        export_store(store, make_manifest(folder="other/"), out)
    assert not out.exists()


def test_unfinished_and_empty_stores_are_not_exported(tmp_path: Path, manifest: Manifest) -> None:
    path = toy_path(tmp_path)
    provenance = make_provenance(manifest_digest=manifest.digest)
    with open_writer(path, provenance=provenance, utterance_ids=IDS, block_rows=BLOCK_ROWS) as writer:
        writer.write_block(0, block_result(writer.rows_of(0), failed=range(10)))
        with pytest.raises(StoreError, match=r"is unfinished: 0 done, 4 failed, 6 to do"):
            export_store(open_store(path, complete=False), manifest, tmp_path / "x.h5")
        for block in (1, 2):
            writer.write_block(block, block_result(writer.rows_of(block), failed=range(10)))
    with pytest.raises(StoreError, match=r"Every utterance of .* failed: there is nothing to export"):
        export_store(open_store(path), manifest, tmp_path / "x.h5")


# ---------------------------------------------------------------------------------------------------- import: layouts

MATRIX = np.random.default_rng(1).standard_normal((10, 4)).astype(np.float32)


def h5(path: Path, **arrays: Any) -> Path:
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            file[name] = values
    return path


def npz(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def text(path: Path, content: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(content.encode(encoding))
    return path


def rows_of(names: list[str], numbers: NDArray[Any] = MATRIX, separator: str = ",") -> str:
    return "\n".join(
        separator.join([name, *map(repr, values.tolist())]) for name, values in zip(names, numbers, strict=False)
    )


def frame(**further: Any) -> pd.DataFrame:
    return pd.DataFrame({**further, **{f"f{index}": MATRIX[:, index] for index in range(4)}})


def _keyed(path: Path) -> Path:
    with h5py.File(path, "w") as file:
        for name, values in zip(IDS, MATRIX, strict=True):
            file.create_group("wav", track_order=True) if "wav" not in file else None
            file[f"wav/{name}.wav"] = values[None]
    return path


LAYOUTS: dict[str, Callable[[Path], Path]] = {
    "h5 embeddings": lambda folder: h5(folder / "x.h5", utterance_id=IDS, embeddings=MATRIX),
    "h5 bytes and float64": lambda folder: h5(
        folder / "x.hdf5", file=np.array([f"wav/{n}.wav".encode() for n in IDS]), features=MATRIX.astype(np.float64)
    ),
    "h5 one dataset per utterance": lambda folder: _keyed(folder / "x.h5"),
    "npz mean": lambda folder: npz(folder / "x.npz", utterance_id=np.array(IDS), mean=MATRIX),
    "npz other order": lambda folder: npz(folder / "x.npz", utterance_id=np.array(IDS[::-1]), X=MATRIX[::-1]),
    "npz Fortran order": lambda folder: npz(folder / "x.npz", ids=np.array(IDS), x=np.asfortranarray(MATRIX)),
    "npz compressed": lambda folder: (
        np.savez_compressed(folder / "x.npz", name=np.array(IDS), embedding=MATRIX),
        folder / "x.npz",
    )[1],
    "npz one array per utterance": lambda folder: npz(folder / "x.npz", **dict(zip(IDS, MATRIX, strict=True))),
    "csv by id": lambda folder: text(folder / "x.csv", "utterance_id,a,b,c,d\n" + rows_of(IDS)),
    "csv by absolute path, with byte order mark and CRLF": lambda folder: text(
        folder / "x.csv",
        "\ufeffpath,a,b,c,d\r\n" + rows_of([f"/data/toy/wav/{n}.wav" for n in IDS]).replace("\n", "\r\n"),
    ),
    "csv by file name, semicolons": lambda folder: text(
        folder / "x.csv", "name;a;b;c;d\n" + rows_of([f"{n}.wav" for n in IDS], separator=";")
    ),
    "tsv by stem in quotation marks": lambda folder: text(
        folder / "x.tsv", "file\ta\tb\tc\td\n" + rows_of([f'"{n}"' for n in IDS], separator="\t")
    ),
    "openSMILE": lambda folder: text(
        folder / "x.csv", "name;frameTime;a;b;c;d\n" + rows_of([f"'{n}.wav';0.000000" for n in IDS], separator=";")
    ),
    "audformat": lambda folder: text(
        folder / "x.csv",
        "file,start,end,a,b,c,d\n" + rows_of([f"/x/wav/{n}.wav,0 days,0 days 00:00:01.000000" for n in IDS]),
    ),
    "pandas with an unnamed index": lambda folder: (frame().set_index(pd.Index(IDS)).to_csv(folder / "x.csv"), folder / "x.csv")[1],
    "pandas with a useless index": lambda folder: (frame(file=IDS).to_csv(folder / "x.csv"), folder / "x.csv")[1],
    "nkululeko with labels": lambda folder: text(
        folder / "x.csv", "file,speaker,gender,emotion,class_label,a,b,c,d\n" + rows_of([f"{n},s,male,happy,1" for n in IDS])
    ),
    "parquet columns": lambda folder: (frame(file=IDS).to_parquet(folder / "x.parquet"), folder / "x.parquet")[1],
    "parquet with an index": lambda folder: (
        frame().set_index(pd.Index(IDS)).to_parquet(folder / "x.pq"),
        folder / "x.pq",
    )[1],
    "audformat parquet": lambda folder: (
        frame(file=IDS, start=pd.to_timedelta([0] * 10), end=pd.to_timedelta([1] * 10))
        .set_index(["file", "start", "end"])
        .to_parquet(folder / "x.parquet"),
        folder / "x.parquet",
    )[1],
    "parquet list column": lambda folder: (
        pd.DataFrame({"utterance_id": IDS, "emotion": "x", "vector": list(MATRIX)}).to_parquet(folder / "x.parquet"),
        folder / "x.parquet",
    )[1],
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_other_tools_write(tmp_path: Path, manifest: Manifest, layout: str) -> None:
    done = import_features(LAYOUTS[layout](tmp_path), manifest, name="mine", cache_dir=tmp_path / "cache")
    store = done.store
    made = store.provenance
    assert store.counts == (0, 10, 0)
    assert made.representations == ("vector" if "list" in layout else "embedding",)
    assert bits(store.features(IDS, representation=made.default_representation, pool="mean+std")) == bits(MATRIX)
    assert store.duration_s.tolist() == [1.0 + row for row in range(10)]  # as the manifest says
    assert verify_store(store.path) == []
    assert (made.encoder, made.family, made.weights_kind, made.condition) == ("mine", "RLR", "imported", "clean")
    assert made.weights_source.startswith("imported from x.")
    assert is_imported(made)


def test_labels_are_no_features_and_that_is_said(tmp_path: Path, manifest: Manifest) -> None:
    done = import_features(LAYOUTS["nkululeko with labels"](tmp_path), manifest, name="mine", cache_dir=tmp_path)
    assert done.ignored == ("speaker", "gender", "emotion", "class_label")


def test_layers_and_deviations(tmp_path: Path, manifest: Manifest) -> None:
    mean = np.random.default_rng(2).standard_normal((10, 3, 4))
    path = npz(tmp_path / "x.npz", utterance_id=IDS, mean=mean, std=np.abs(mean), duration_s=np.arange(10) + 0.5)
    store = import_features(path, manifest, name="mine", cache_dir=tmp_path, family="CBR").store
    assert store.provenance.representations == ("representation_00", "representation_01", "representation_02")
    assert store.provenance.family == "CBR"
    found = store.features(IDS, representation="representation_01", pool="mean+std")
    assert bits(found) == bits(np.concatenate([mean[:, 1], np.abs(mean[:, 1])], axis=1))
    assert store.num_frames.tolist() == [2] * 10  # more than one; the file does not say how many
    assert store.duration_s.tolist() == [row + 0.5 for row in range(10)]


def test_named_layers_and_frames(tmp_path: Path, manifest: Manifest) -> None:
    mean = np.random.default_rng(2).standard_normal((10, 2, 4)).astype(np.float32)
    path = h5(tmp_path / "x.h5", utterance_id=IDS, mean=mean, std=np.abs(mean), num_frames=np.arange(10) + 3)
    with h5py.File(path, "a") as file:
        file.attrs["representations"] = ["layer_06", "layer_12"]
    store = import_features(path, manifest, name="mine", cache_dir=tmp_path).store
    assert store.provenance.representations == ("layer_06", "layer_12")
    assert store.num_frames.tolist() == list(range(3, 13))


@pytest.mark.parametrize("write", [h5, npz])
def test_frames_of_every_utterance_are_pooled(tmp_path: Path, manifest: Manifest, write: Any) -> None:
    """As numpy pools them."""
    generator = np.random.default_rng(3)
    frames = {name: 1000 + generator.standard_normal((5 + row, 4)) for row, name in enumerate(IDS)}
    path = write(tmp_path / f"x.{write.__name__}", **frames)
    store = import_features(path, manifest, name="mine", cache_dir=tmp_path).store
    found = store.features(IDS, representation="embedding", pool="mean+std")
    expected = np.stack([np.concatenate([values.mean(0), values.std(0)]) for values in frames.values()])
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert store.num_frames.tolist() == [5 + row for row in range(10)]


def test_as_many_frames_as_layers_is_not_guessed(tmp_path: Path, manifest: Manifest) -> None:
    path = npz(tmp_path / "x.npz", **{name: np.ones((13, 4)) for name in IDS})
    with pytest.raises(StoreError, match=r"every utterance is \[13, 4\]: 13 frames, or 13 layers\? hyfuse cannot tell"):
        import_features(path, manifest, name="mine", cache_dir=tmp_path)


# ---------------------------------------------------------------------------------------------------- import: what it says


def test_random_weights_stay_random_through_a_file(tmp_path: Path, manifest: Manifest) -> None:
    """They must not become respectable; pretrained ones are what a file claims, so they count as imported."""
    for kind, expected in (("random", "random"), ("pretrained", "imported")):
        store = make_store(tmp_path / kind, manifest, weights_kind=kind, family="CBR", sample_rate_hz=24000)
        export_store(store, manifest, tmp_path / f"{kind}.h5")
        made = import_features(
            tmp_path / f"{kind}.h5", manifest, name="again", cache_dir=tmp_path / kind
        ).store.provenance
        assert made.weights_kind == expected
        assert made.weights_source == f"imported from {kind}.h5, written by hyfuse: enc, {kind} weights random"
        assert (made.family, made.sample_rate_hz, made.resampler) == ("CBR", 24000, "soxr-VHQ")
        assert is_imported(made)
        assert not is_imported(store.provenance)


def test_a_condition_goes_along(tmp_path: Path, manifest: Manifest) -> None:
    store = make_store(tmp_path / "cache", manifest, condition="noise:esc10@5dB", condition_digest="cd" * 32)
    export_store(store, manifest, tmp_path / "x.npz")
    again = import_features(tmp_path / "x.npz", manifest, name="again", cache_dir=tmp_path / "cache").store
    assert again.path == store_path(tmp_path / "cache", "toy", "again", "noise:esc10@5dB")
    assert (again.provenance.condition, again.provenance.condition_digest) == ("noise:esc10@5dB", "cd" * 32)


@pytest.mark.parametrize("condition", ["../../up", "/etc", "", ".hidden", "a b"])
def test_a_condition_cannot_lead_elsewhere(tmp_path: Path, manifest: Manifest, condition: str) -> None:
    store = make_store(tmp_path / "cache", manifest, condition="white@5dB")
    export_store(store, manifest, tmp_path / "x.csv")
    beside = json.loads((tmp_path / "x.csv.json").read_text(encoding="utf-8"))
    beside["provenance"]["condition"] = condition
    (tmp_path / "x.csv.json").write_text(json.dumps(beside), encoding="utf-8")
    with pytest.raises(StoreError, match=r"cannot be the name of a condition"):
        import_features(tmp_path / "x.csv", manifest, name="again", cache_dir=tmp_path / "cache")


@pytest.mark.parametrize("name", ["", "a b", "a,b", "../up", "a/b", ".hidden", "-m", "ä", "a" * 101, "a:b"])
def test_names_that_cannot_be_used(name: str) -> None:
    with pytest.raises(ConfigError, match=r"cannot be used\. Use letters, digits"):
        check_import_name(name, ())


def test_names_that_mean_something_else() -> None:
    with pytest.raises(
        ConfigError, match=r"'WavLM' is the name of an encoder that hyfuse computes itself.*--name my-WavLM"
    ):
        check_import_name("WavLM", ["wavlm", "encodec"])
    with pytest.raises(ConfigError, match=r"'recordings' is a folder of the demo corpus"):
        check_import_name("recordings", ())
    with pytest.raises(ConfigError, match=r"'hf--a--b' is how stores of `hf:` models are called"):
        check_import_name("hf--a--b", ())
    check_import_name("wavlm.finetuned_v2+x", ["wavlm"])


def test_an_unknown_family(tmp_path: Path, manifest: Manifest) -> None:
    with pytest.raises(ConfigError, match=r"--family must be one of RLR, CBR, not 'LEX'"):
        import_features(LAYOUTS["csv by id"](tmp_path), manifest, name="mine", cache_dir=tmp_path, family="LEX")


def test_the_same_again_is_nothing_to_do_and_others_are_refused(tmp_path: Path, manifest: Manifest) -> None:
    path = LAYOUTS["npz mean"](tmp_path)
    first = import_features(path, manifest, name="mine", cache_dir=tmp_path / "cache").store
    before = tree_digest(first.path)
    import_features(path, manifest, name="mine", cache_dir=tmp_path / "cache")
    assert tree_digest(first.path) == before
    changed = MATRIX.copy()
    changed[3, 2] = np.nextafter(changed[3, 2], np.float32(9))  # one bit
    npz(path, utterance_id=np.array(IDS), mean=changed)
    with pytest.raises(
        ProvenanceError, match=r"weights_digest: the store has .*asked for is .*hyfuse cache remove toy/mine"
    ):
        import_features(path, manifest, name="mine", cache_dir=tmp_path / "cache")
    assert tree_digest(first.path) == before


def test_an_interrupted_import_is_finished_by_the_same_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = [f"u{row:04d}" for row in range(600)]  # three blocks
    manifest = make_manifest(ids)
    path = npz(tmp_path / "x.npz", utterance_id=np.array(ids), mean=np.arange(1200.0).reshape(600, 2))
    clean = import_features(path, manifest, name="mine", cache_dir=tmp_path / "clean").store
    write = StoreWriter.write_block

    def dying(self: StoreWriter, block: int, *rest: Any, **named: Any) -> None:
        if block == 1:
            raise KeyboardInterrupt
        write(self, block, *rest, **named)

    monkeypatch.setattr(StoreWriter, "write_block", dying)
    with pytest.raises(KeyboardInterrupt):
        import_features(path, manifest, name="mine", cache_dir=tmp_path / "cache")
    monkeypatch.undo()
    store = open_store(store_path(tmp_path / "cache", "toy", "mine"), complete=False)
    assert store.counts == (344, 256, 0)
    again = import_features(path, manifest, name="mine", cache_dir=tmp_path / "cache").store
    assert tree_digest(again.path) == tree_digest(clean.path)


# ---------------------------------------------------------------------------------------------------- import: which rows


def test_missing_utterances_are_an_error_or_a_reason(tmp_path: Path, manifest: Manifest) -> None:
    path = npz(tmp_path / "x.npz", utterance_id=np.array(IDS[:8]), mean=MATRIX[:8])
    with pytest.raises(
        UtteranceError, match=r"2 of 10 utterances of 'toy' are not in .*x\.npz: utt08, utt09\..*--allow-missing"
    ):
        import_features(path, manifest, name="mine", cache_dir=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
    done = import_features(path, manifest, name="mine", cache_dir=tmp_path / "cache", allow_missing=True)
    assert done.missing == 2
    assert done.store.counts == (0, 8, 2)
    assert done.store.failures() == dict.fromkeys(IDS[8:], "The imported file does not hold this utterance.")


def test_rows_of_no_utterance_are_counted(tmp_path: Path, manifest: Manifest) -> None:
    names = np.array([*IDS, "stranger", "/x/wav/utt99.wav"])
    path = npz(tmp_path / "x.npz", utterance_id=names, mean=np.ones((12, 2)))
    assert import_features(path, manifest, name="mine", cache_dir=tmp_path).unused == ("stranger", "/x/wav/utt99.wav")


def test_no_row_fits(tmp_path: Path, manifest: Manifest) -> None:
    path = npz(tmp_path / "x.npz", utterance_id=np.array(["a", "b"]), mean=np.ones((2, 2)))
    with pytest.raises(
        UtteranceError, match=r"No row of .* fits an utterance of 'toy'. Keys there: a, b; utterances: utt00.*wav/"
    ):
        import_features(path, manifest, name="mine", cache_dir=tmp_path, allow_missing=True)


def test_numbers_that_are_not_finite_fail_their_utterance_alone(tmp_path: Path, manifest: Manifest) -> None:
    numbers = MATRIX.astype(np.float64)
    numbers[1, 0], numbers[4, 3], numbers[6, 1] = np.nan, np.inf, 1e39  # the last one is beyond float32
    path = npz(tmp_path / "x.npz", utterance_id=np.array(IDS), mean=numbers)
    store = import_features(path, manifest, name="mine", cache_dir=tmp_path).store
    assert set(store.failures()) == {"utt01", "utt04", "utt06"}
    assert all("not finite (NaN, infinite, or beyond float32)" in reason for reason in store.failures().values())
    assert verify_store(store.path) == []
    npz(path, utterance_id=np.array(IDS), mean=np.full((10, 4), np.nan))
    with pytest.raises(
        StoreError, match=r"not one utterance of 'toy' can be used. The first reason: The imported numbers"
    ):
        import_features(path, manifest, name="other", cache_dir=tmp_path)
    assert not store_path(tmp_path, "toy", "other").exists()


def test_deviations_and_frames_that_cannot_be(tmp_path: Path, manifest: Manifest) -> None:
    std, num_frames = np.ones((10, 4)), np.full(10, 7)
    std[2, 1], num_frames[5] = -0.1, 0
    path = npz(tmp_path / "x.npz", utterance_id=np.array(IDS), mean=MATRIX, std=std, num_frames=num_frames)
    failures = import_features(path, manifest, name="mine", cache_dir=tmp_path).store.failures()
    assert failures == {
        "utt02": "The imported standard deviation is negative.",
        "utt05": "The imported number of frames is 0, expected at least 1.",
    }


@pytest.mark.parametrize(
    ("keys", "row"),
    [
        (["utt03"], 3),
        (["wav/utt03.wav"], 3),
        (["./wav/utt03.wav"], 3),
        (["wav\\utt03.wav"], 3),
        (["/home/me/toy/wav/utt03.wav"], 3),
        (["C:\\toy\\wav\\utt03.wav"], 3),
        (["utt03.flac"], 3),
        (["/elsewhere/utt03"], 3),
        (["UTT03"], -1),
        (["xutt03.wav"], -1),
        ([""], -1),
        (["/"], -1),
        (["."], -1),
    ],
)
def test_keys(manifest: Manifest, keys: list[str], row: int) -> None:
    order, unused = match_utterances(keys, manifest, origin="x")
    assert order.tolist() == [0 if position == row else -1 for position in range(10)]
    assert unused == ([] if row >= 0 else keys)


def test_an_id_goes_before_a_path_and_dots_are_no_suffix() -> None:
    rows = [
        {"utterance_id": name, "path": path, "speaker": "s"}
        for name, path in (("b", "a.wav"), ("a", "b.wav"), ("x.1", "c/x.1.wav"), ("x.2", "c/x.2.wav"))
    ]
    manifest = manifest_from_rows("toy", rows)
    order, _ = match_utterances(["a", "b", "x.2", "x.1"], manifest, origin="x")
    assert order.tolist() == [1, 0, 3, 2]


def test_file_names_that_occur_in_several_folders() -> None:
    rows = [
        {"utterance_id": f"{speaker}-{take}", "path": f"{speaker}/{take}.wav", "speaker": speaker}
        for speaker in ("ann", "bob")
        for take in (1, 2)
    ]
    manifest = manifest_from_rows("toy", rows)
    order, _ = match_utterances(["/d/bob/1.wav", "/d/ann/1.wav"], manifest, origin="x")
    assert order.tolist() == [1, -1, 0, -1]
    with pytest.raises(UtteranceError, match=r"x: '1\.wav' fits 2 utterances of 'toy': ann-1 \(ann/1\.wav\), bob-1"):
        match_utterances(["1.wav"], manifest, origin="x")


@pytest.mark.parametrize(
    ("segmented", "cause"), [(False, "If its rows are frames, average them first"), (True, "Its rows are segments")]
)
def test_two_rows_of_one_utterance(manifest: Manifest, segmented: bool, cause: str) -> None:
    with pytest.raises(
        UtteranceError, match=rf"1 utterance\(s\) of 'toy' have more than one row. utt01 has 2.*{cause}"
    ):
        match_utterances(["utt01", "utt02", "wav/utt01.wav"], manifest, origin="x", segmented=segmented)


def test_segments_of_audformat(tmp_path: Path, manifest: Manifest) -> None:
    lines = [f"wav/{name}.wav,0 days 00:00:0{second},x,1.0" for name in IDS for second in (0, 1)]
    path = text(tmp_path / "x.csv", "file,start,end,a\n" + "\n".join(lines))
    with pytest.raises(
        UtteranceError, match=r"10 utterance\(s\).*utt00 has 2.*Its rows are segments \(columns start and end\)"
    ):
        import_features(path, manifest, name="mine", cache_dir=tmp_path)


# ---------------------------------------------------------------------------------------------------- import: bad files


def _cut(path: Path, share: float = 0.5) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path


def _external_link(folder: Path) -> Path:
    h5(folder / "secret.h5", mean=MATRIX)
    with h5py.File(folder / "x.h5", "w") as file:
        file["utterance_id"] = IDS
        file["mean"] = h5py.ExternalLink("secret.h5", "/mean")
    return folder / "x.h5"


def _virtual(folder: Path) -> Path:
    h5(folder / "secret.h5", mean=MATRIX)
    layout = h5py.VirtualLayout(MATRIX.shape, np.float32)
    layout[:] = h5py.VirtualSource(folder / "secret.h5", "mean", MATRIX.shape)
    with h5py.File(folder / "x.h5", "w") as file:
        file["utterance_id"] = IDS
        file.create_virtual_dataset("mean", layout)
    return folder / "x.h5"


def _raw_external(folder: Path) -> Path:
    with h5py.File(folder / "x.h5", "w") as file:
        file["utterance_id"] = IDS
        file.create_dataset("mean", MATRIX.shape, "f4", external=[("/etc/passwd", 0, h5py.h5f.UNLIMITED)])
    return folder / "x.h5"


def _circle(folder: Path) -> Path:
    with h5py.File(folder / "x.h5", "w") as file:
        group = file.create_group("a")
        group["again"] = group
    return folder / "x.h5"


def _references(folder: Path) -> Path:
    with h5py.File(folder / "x.h5", "w") as file:
        file["utterance_id"] = IDS
        file.create_dataset("mean", (10,), dtype=h5py.ref_dtype)
    return folder / "x.h5"


def _lying_header(folder: Path) -> Path:
    """A small file that announces an array of 800 TB."""
    with zipfile.ZipFile(folder / "x.npz", "w") as archive, archive.open("mean.npy", "w") as member:
        np.lib.format.write_array_header_1_0(member, {"descr": "<f8", "fortran_order": False, "shape": (10**7, 10**7)})
        member.write(b"\0" * 64)
    return folder / "x.npz"


def _foreign_member(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "x.npz", "w") as archive:
        archive.writestr("evil.py", "print()")
    return folder / "x.npz"


def _pickled(folder: Path) -> Path:
    np.savez(folder / "x.npz", allow_pickle=True, utterance_id=np.array(IDS, dtype=object), mean=MATRIX)
    return folder / "x.npz"


def _parquet(folder: Path, **columns: Any) -> Path:
    pd.DataFrame(columns).to_parquet(folder / "x.parquet")
    return folder / "x.parquet"


BAD: dict[str, tuple[Callable[[Path], Path], str]] = {
    "absent": (lambda f: f / "x.h5", r"There is no file .*x\.h5"),
    "a folder": (lambda f: ((f / "x.h5").mkdir(), f / "x.h5")[1], r"There is no file"),
    "empty": (lambda f: text(f / "x.npz", ""), r"is empty \(0 bytes\)"),
    "suffix": (lambda f: text(f / "x.mat", "x"), r"ends in \.h5, \.npz, \.parquet, \.csv, not in \.mat"),
    "no suffix": (lambda f: text(f / "x", "x"), r"not in no suffix at all"),
    "npy": (lambda f: text(f / "x.npy", "x"), r"A bare array has no utterance ids"),
    "pickle": (lambda f: text(f / "x.pkl", "x"), r"a pickle can run any program.*to_parquet"),
    "h5 that is none": (lambda f: text(f / "x.h5", "hello"), r"is not an HDF5 file"),
    "h5 cut off": (lambda f: _cut(LAYOUTS["h5 embeddings"](f), 0.9), r"cannot be read as \.h5: .*It may be damaged"),
    "h5 external link": (_external_link, r"'mean' is a link into another file, which is not followed"),
    "h5 virtual": (_virtual, r"'mean' lies in other files, which are not followed"),
    "h5 raw external": (_raw_external, r"'mean' lies in other files, which are not followed"),
    "h5 circle": (_circle, r"the group 'a/again' contains itself"),
    "h5 references": (_references, r"'mean' holds objects, expected numbers or text"),
    "h5 nothing": (lambda f: h5(f / "x.h5"), r"is not a file of embeddings.*Found: nothing"),
    "h5 no numbers": (lambda f: h5(f / "x.h5", utterance_id=IDS), r"is not a file of embeddings.*Found: utterance_id"),
    "h5 no ids": (lambda f: h5(f / "x.h5", mean=MATRIX), r"is not a file of embeddings.*Found: mean"),
    "h5 numbers as text": (lambda f: h5(f / "x.h5", id=IDS, mean=IDS), r"'mean' must hold numbers"),
    "h5 complex": (lambda f: h5(f / "x.h5", id=IDS, mean=MATRIX + 1j), r"'mean' must hold numbers, not complex64"),
    "h5 ids not UTF-8": (
        lambda f: h5(f / "x.h5", id=np.array([b"\xff%d" % row for row in range(10)]), mean=MATRIX),
        r"'id' holds an id that is not UTF-8",
    ),
    "too few ids": (lambda f: h5(f / "x.h5", id=IDS[:9], mean=MATRIX), r"'mean' has shape \[10, 4\]; with 9 ids in 'id' it must"),
    "one dimension": (lambda f: npz(f / "x.npz", id=np.array(IDS), mean=MATRIX[:, 0]), r"shape \[10\].*must be \[10, D\]"),
    "four dimensions": (
        lambda f: npz(f / "x.npz", id=np.array(IDS), mean=MATRIX.reshape(10, 2, 2, 1)), r"shape \[10, 2, 2, 1\]",
    ),
    "no features": (lambda f: npz(f / "x.npz", id=np.array(IDS), mean=MATRIX[:, :0]), r"shape \[10, 0\]"),
    "other std": (
        lambda f: npz(f / "x.npz", id=np.array(IDS), mean=MATRIX, std=MATRIX[:, :2]),
        r"'std' has shape \[10, 2\].*as 'mean' is: \[10, 4\]",
    ),
    "frames as text": (
        lambda f: npz(f / "x.npz", id=np.array(IDS), mean=MATRIX, num_frames=np.array(IDS)), r"'num_frames' must be 10 numbers",
    ),
    "names of layers": (
        lambda f: npz(f / "x.npz", id=np.array(IDS), mean=MATRIX, representations=np.array(["a", "b"])),
        r"'representations' must give 1 different name",
    ),
    "npz that is none": (lambda f: text(f / "x.npz", "hello"), r"cannot be read as \.npz"),
    "npz cut off": (lambda f: _cut(LAYOUTS["npz mean"](f)), r"cannot be read as \.npz"),
    "npz with objects": (_pickled, r"'utterance_id' holds Python objects, which would have to be unpickled"),
    "npz that lies": (_lying_header, r"'mean' announces 800000000000000 bytes and holds 64"),
    "npz with a program": (_foreign_member, r"'evil\.py' is no array"),
    "utterances of other dims": (
        lambda f: npz(f / "x.npz", utt00=np.ones(3), utt01=np.ones(4)), r"differ in their number of features D: 'utt00' is \[3\]",
    ),
    "an utterance of text": (lambda f: npz(f / "x.npz", utt00=np.ones(3), utt01=np.array(["x"])), r"'utt01' is <U1 \[1\]"),
    "csv without ids": (lambda f: text(f / "x.csv", "a,b\n1,2\n"), r"no column that names the utterances.*found: a, b"),
    "csv without features": (lambda f: text(f / "x.csv", "file,emotion\na,b\n"), r"no column of features beside file, emotion"),
    "csv header only": (lambda f: text(f / "x.csv", "file,a\n"), r"has a header and no rows"),
    "csv empty line": (lambda f: text(f / "x.csv", "\nfile,a\nx,1\n"), r"begins with an empty line"),
    "csv words": (
        lambda f: text(f / "x.csv", "file,a,b\nutt00,1,2\nutt01,1,loud\n"), r"column 'b': 'loud' is not a number\. Features must",
    ),
    "csv decimal comma": (
        lambda f: text(f / "x.csv", "file;a\nutt00;0,5\n"), r"'0,5' is not a number.*Write numbers with a decimal point",
    ),
    "csv too many fields": (lambda f: text(f / "x.csv", "file,a\nutt00,1,2\n"), r"a row has 3 fields, the header 2"),
    "csv same name twice": (lambda f: text(f / "x.csv", "file,a,a\nutt00,1,2\n"), r"more than one column 'a'"),
    "csv latin1": (lambda f: text(f / "x.csv", "file,a\nä,1\n", "latin1"), r"is not UTF-8.*iconv -f latin1 -t utf-8 x\.csv"),
    "csv latin1 header": (lambda f: text(f / "x.csv", "file,ä\nx,1\n", "latin1"), r"is not UTF-8 \(byte 5\)"),
    "csv utf-16": (lambda f: text(f / "x.csv", "file,a\nx,1\n", "utf-16"), r"is not UTF-8.*iconv -f utf-16"),
    "csv of one endless line": (lambda f: text(f / "x.csv", "a" * 200_000 + ",b\n"), r"its first line is no header"),
    "csv that is binary": (lambda f: text(f / "x.csv", "\0\1\2,a\n"), r"is not text"),
    "csv that is ARFF": (lambda f: text(f / "x.csv", "@relation openSMILE\n\n@data\n"), r"is ARFF, not CSV.*-csvoutput"),
    "parquet that is none": (lambda f: text(f / "x.parquet", "hello"), r"cannot be read as \.parquet"),
    "parquet cut off": (lambda f: _cut(LAYOUTS["parquet columns"](f)), r"cannot be read as \.parquet"),
    "parquet of words": (
        lambda f: _parquet(f, file=IDS, a=MATRIX[:, 0], b=["x"] * 10), r"column 'b' holds .*string, not numbers",
    ),
    "parquet without an id": (lambda f: _parquet(f, file=[None, *IDS[1:]], a=MATRIX[:, 0]), r"1 row\(s\) have no 'file'"),
    "parquet lists of other lengths": (
        lambda f: _parquet(f, file=IDS, v=[np.ones(2 + row % 2) for row in range(10)]), r"column 'v': its lists differ in length",
    ),
    "parquet lists of words": (lambda f: _parquet(f, file=IDS, v=[["x"]] * 10), r"column 'v' holds lists of string"),
    "parquet without rows": (lambda f: _parquet(f, file=[], a=np.zeros(0)), r"lists no utterance"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_file_that_cannot_be_used_is_explained(tmp_path: Path, manifest: Manifest, case: str) -> None:
    make, message = BAD[case]
    path = make(tmp_path)
    with pytest.raises(HyfuseError, match=message):
        import_features(path, manifest, name="mine", cache_dir=tmp_path / "cache", allow_missing=True)
    assert not (tmp_path / "cache").exists()


def test_a_pickle_in_an_npz_is_never_run(tmp_path: Path, manifest: Manifest) -> None:
    flag = tmp_path / "was-here"

    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(flag),)

    np.savez(tmp_path / "x.npz", allow_pickle=True, utterance_id=np.array([Evil()], dtype=object), mean=np.ones((1, 2)))
    with pytest.raises(StoreError, match=r"Python objects"):
        import_features(tmp_path / "x.npz", manifest, name="mine", cache_dir=tmp_path / "cache")
    assert not flag.exists()
    pickle.loads(pickle.dumps(Evil()))
    assert flag.exists()  # the trap works


def test_numbers_that_do_not_fit_into_memory(
    tmp_path: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [LAYOUTS[name](tmp_path) for name in ("npz mean", "csv by id", "parquet columns", "parquet with an index")]
    h5_path = LAYOUTS["h5 embeddings"](tmp_path)
    monkeypatch.setattr(feature_files.os, "sysconf", lambda name: 10)
    for path in paths:
        with pytest.raises(
            StoreError, match=r"GB of numbers, and this machine has .*Write it as \.h5, which is read piece by"
        ):
            import_features(path, manifest, name="mine", cache_dir=tmp_path / "cache")
    assert import_features(h5_path, manifest, name="mine", cache_dir=tmp_path / "cache").store.is_complete


def test_an_export_of_deviations_alone_is_not_imported(
    tmp_path: Path, manifest: Manifest, store: EmbeddingStore
) -> None:
    for suffix in FORMATS:
        export_store(store, manifest, tmp_path / f"x.{suffix}", pool="std")
        with pytest.raises(StoreError, match=r"was exported with `--pool std`: the means are missing"):
            import_features(tmp_path / f"x.{suffix}", manifest, name="mine", cache_dir=tmp_path / "cache")


def test_an_export_of_another_version(tmp_path: Path, manifest: Manifest, store: EmbeddingStore) -> None:
    export_store(store, manifest, tmp_path / "x.h5")
    with h5py.File(tmp_path / "x.h5", "a") as file:
        text_of_it = file.attrs["provenance"].decode()
        file.attrs["provenance"] = text_of_it.replace('"format_version": 1', '"format_version": 2')
    with pytest.raises(StoreError, match=r"another version of hyfuse: format version 2, expected 1"):
        import_features(tmp_path / "x.h5", manifest, name="mine", cache_dir=tmp_path / "cache")
    export_store(store, manifest, tmp_path / "x.csv")
    (tmp_path / "x.csv.json").write_text("{")
    with pytest.raises(StoreError, match=r"x\.csv\.json cannot be read"):
        import_features(tmp_path / "x.csv", manifest, name="mine", cache_dir=tmp_path / "cache")


def test_a_csv_without_the_file_beside_it_lacks_the_reasons(
    tmp_path: Path, manifest: Manifest, store: EmbeddingStore
) -> None:
    export_store(store, manifest, tmp_path / "x.csv")
    (tmp_path / "x.csv.json").unlink()
    with pytest.raises(UtteranceError, match=r"2 of 10 utterances of 'toy' are not in"):
        import_features(tmp_path / "x.csv", manifest, name="mine", cache_dir=tmp_path / "cache")
    done = import_features(tmp_path / "x.csv", manifest, name="mine", cache_dir=tmp_path / "cache", allow_missing=True)
    assert done.store.provenance.weights_kind == "imported"
    assert bits(done.store.features(DONE_IDS, representation="first", pool="mean+std")) == bits(
        store.features(DONE_IDS, representation="first", pool="mean+std")
    )


@pytest.mark.parametrize("suffix", FORMATS[:3])
def test_damage_anywhere_is_explained_or_harmless(
    tmp_path: Path, manifest: Manifest, store: EmbeddingStore, suffix: str
) -> None:
    """A wrong byte is an explained mistake, or changes numbers only where the format has no checksum; no other error gets out.

    Every byte of the three files was tried once this way; here every fortieth part.
    """
    path = tmp_path / f"x.{suffix}"
    export_store(store, manifest, path)
    content = bytearray(path.read_bytes())
    explained = 0
    for position in range(3, len(content), len(content) // 40):
        broken = content.copy()
        broken[position] ^= 0xFF
        path.write_bytes(broken)
        cache_dir = tmp_path / f"c{position}"
        try:
            done = import_features(path, manifest, name="mine", cache_dir=cache_dir)
        except HyfuseError:
            explained += 1
        else:
            assert verify_store(done.store.path) == []
    assert explained > 0


# ---------------------------------------------------------------------------------------------------- the document


def _snippets() -> Iterator[tuple[str, str]]:
    for match in re.finditer(r"```python\n# (\S+)[^\n]*\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL):
        yield match[1], match[2]


def test_the_document_has_a_snippet_per_format() -> None:
    assert [name.rpartition(".")[2] for name, _ in _snippets()][:4] == list(FORMATS)


@pytest.mark.parametrize(("name", "code"), list(_snippets()))
def test_the_snippets_of_the_document_run(
    tmp_path: Path, manifest: Manifest, store: EmbeddingStore, monkeypatch: pytest.MonkeyPatch, name: str, code: str
) -> None:
    """In a folder that holds an export; each leaves ids, labels and numbers in variables of the same names."""
    monkeypatch.chdir(tmp_path)
    reads = name.startswith("features.")
    if reads:
        export_store(store, manifest, tmp_path / name)
    assert "hyfuse" not in code.replace('b"hyfuse"', "")
    found: dict[str, Any] = {"ids": IDS, "matrix": MATRIX}
    exec(compile(code, name, "exec"), found)
    if reads:
        assert list(found["ids"]) == DONE_IDS
        assert next(iter(found["labels"])) == "anger"
        assert bits(found["X"]) == bits(store.features(DONE_IDS, representation="second", pool="mean"))
        assert found["provenance"]["encoder"] == "enc"
    else:
        made = import_features(tmp_path / name, manifest, name="mine", cache_dir=tmp_path / "cache").store
        assert bits(made.features(IDS, representation="embedding", pool="mean")) == bits(MATRIX)


def test_the_table_of_csv_is_one_line_per_utterance(tmp_path: Path, manifest: Manifest, store: EmbeddingStore) -> None:
    export_store(store, manifest, tmp_path / "x.csv", representations=["first"], pool="mean")
    with (tmp_path / "x.csv").open(encoding="utf-8", newline="") as handle:
        rows = list(csv.reader(handle))
    assert rows[0] == ["utterance_id", "path", "speaker", "emotion", "emotion_raw", "arousal", "num_frames", "duration_s",
                       "first.mean.0", "first.mean.1", "first.mean.2"]  # fmt: skip
    assert {len(row) for row in rows} == {11}
    assert len(rows) == 9


def test_a_cache_on_object_storage(tmp_path: Path, manifest: Manifest, s3: ObjectPath) -> None:
    """Into it and out of it, to files on this machine."""
    path = npz(tmp_path / "x.npz", utterance_id=np.array(IDS), mean=MATRIX)
    done = import_features(path, manifest, name="mine", cache_dir=s3)
    assert done.store.path == s3 / "toy" / "mine" / "clean.zarr"
    export_store(done.store, manifest, tmp_path / "out.npz")
    with np.load(tmp_path / "out.npz") as file:
        assert bits(file["mean"][:, 0]) == bits(MATRIX)
