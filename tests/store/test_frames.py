"""Frames: ragged, block by block, in two precisions; kills, damage, and asking for other frames than there are."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr

from pipelines import files
from pipelines.errors import ConfigError, ProvenanceError, StorageError, StoreError, UnknownNameError, UtteranceError
from pipelines.locations import Location
from pipelines.store import frames as frames_module
from pipelines.store.embeddings import FrameSpec, open_store, store_digest, verify_store
from pipelines.store.frames import fits
from tests.store.stores import (
    BLOCK_ROWS,
    IDS,
    block_result,
    filled,
    frames_of,
    open_toy,
    toy_path,
    tree_digest,
    with_frames,
    write_rest,
)

_BOTH = FrameSpec(("first", "second"), "float32")
_HALF = FrameSpec(("second",), "float16")


@pytest.fixture
def tiny_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two frames per chunk, two chunks per shard: a block of a few frames is many shards."""
    monkeypatch.setattr(frames_module, "_CHUNK_BYTES", 2 * 3 * 4)
    monkeypatch.setattr(frames_module, "_CHUNKS_PER_SHARD", 2)


@pytest.mark.parametrize("spec", [_BOTH, _HALF])
@pytest.mark.parametrize("tiny", [False, True])
def test_frames_come_back_as_written(
    tmp_path: Path, spec: FrameSpec, tiny: bool, request: pytest.FixtureRequest
) -> None:
    if tiny:
        request.getfixturevalue("tiny_chunks")
    store = open_store(filled(tmp_path, spec=spec, failed={1, 8}))
    assert store.frame_representations == spec.representations
    assert store.frame_dtype == spec.dtype
    good = [row for row in range(10) if row not in {1, 8}]
    for order in (good, good[::-1], [7, 0, 7, 3, 4, 4, 0]):
        for name in spec.representations:
            found = list(store.frames([IDS[row] for row in order], representation=name))
            assert len(found) == len(order)
            for row, one in zip(order, found, strict=True):
                assert one.dtype == np.dtype(spec.dtype)
                np.testing.assert_array_equal(one, frames_of(row, name, frames=1 + row % 7).astype(spec.dtype))
    counts = [0 if row in {1, 8} else 1 + row % 7 for row in range(10)]
    np.testing.assert_array_equal(store.offsets, np.cumsum([0, *counts]))
    assert verify_store(store.path) == []


def test_a_block_is_an_array_of_its_own(tmp_path: Path) -> None:
    path = filled(tmp_path, spec=_BOTH)
    names = sorted(folder.relative_to(path).as_posix() for folder in path.glob("frames/*/*") if folder.is_dir())
    assert names == [f"frames/{name}/{block:06d}" for name in ("first", "second") for block in range(3)]
    array = zarr.open_group(path, mode="r", zarr_format=3)["frames/first/000001"]
    assert isinstance(array, zarr.Array)
    assert array.shape == (sum(1 + row % 7 for row in range(4, 8)), 3)
    assert isinstance(zarr.open_group(path, mode="r", zarr_format=3)["frames/first"], zarr.Group)


def test_chunks_are_about_a_megabyte_and_shards_bounded(tmp_path: Path) -> None:
    folder = tmp_path / "toy" / "enc" / "clean.zarr"
    frames = [np.full((30_000, 64), row, np.float16) for row in range(3)]  # 3.8 MB each
    frames_module.write_block_frames(folder, representation="x", block=0, frames=frames, dim=64, dtype="float16")
    array = zarr.open_array(folder / "frames/x/000000", mode="r", zarr_format=3)
    assert array.chunks == (8192, 64)  # 1 MiB
    assert array.shards is not None
    assert array.shards[0] == 8192 * 11  # one shard, as long as is needed
    for spec, most in ((1, 1), (10, 10), (1000, 64)):
        rows = frames_module._CHUNK_BYTES // 128 * spec
        assert min(frames_module._CHUNKS_PER_SHARD, -(-rows // 8192)) == most
    np.testing.assert_array_equal(np.asarray(array[:]), np.concatenate(frames))


def test_only_the_chunks_of_an_utterance_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_chunks: None
) -> None:
    store = open_store(filled(tmp_path, spec=_BOTH))
    sizes: list[int] = []
    get = zarr.Array.__getitem__

    def noted(self: zarr.Array, selection: object) -> object:  # type: ignore[type-arg]
        found = get(self, selection)  # type: ignore[arg-type]
        if self.path.startswith("frames"):
            sizes.append(len(np.asarray(found)))
        return found

    monkeypatch.setattr(zarr.Array, "__getitem__", noted)
    list(store.frames(["utt05"], representation="first"))
    assert sizes == [6]
    sizes.clear()
    list(store.frames(IDS[:4], representation="first"))  # neighbours in one go, as far as a shard's worth of memory
    assert sum(sizes) == 10
    assert len(sizes) < 4
    sizes.clear()
    list(store.frames(["utt00", "utt03"], representation="first"))
    assert sum(sizes) == 5


def test_memory_is_that_of_a_few_utterances(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a block that is asked for whole, no more than some of it is in memory before the first utterance comes."""
    store = open_store(filled(tmp_path, spec=_BOTH))
    asked: list[int] = []
    read = frames_module.read_ranges

    def noted(array: object, ranges: list[tuple[int, int]]) -> object:
        asked.append(sum(stop - start for start, stop in ranges))
        return read(array, ranges)  # type: ignore[arg-type]

    monkeypatch.setattr("pipelines.store.embeddings.read_ranges", noted)
    monkeypatch.setattr("pipelines.store.embeddings._FRAME_BYTES", 5 * 3 * 4)
    found = store.frames(IDS, representation="first")
    assert len(next(found)) == 1
    assert len(asked) == 1
    assert len(list(found)) == 9
    assert max(asked) <= 7  # an utterance is read whole, however long


def test_float16_ends_at_65504() -> None:
    assert fits(np.array([[65504.0, -65504.0]], np.float32), "float16")
    assert not fits(np.array([[65505.0]], np.float32), "float16")
    assert not fits(np.array([[-np.inf]], np.float16), "float16")
    assert not fits(np.array([[np.nan]], np.float32), "float32")
    assert fits(np.array([[65505.0]], np.float32), "float32")
    assert fits(np.zeros((0, 3), np.float32), "float16")


def test_frames_that_float16_cannot_hold_are_refused_not_stored(tmp_path: Path) -> None:
    path = toy_path(tmp_path)
    with open_toy(path, frames=_HALF) as writer:
        result = with_frames(block_result(range(4)), range(4), FrameSpec(("second",), "float32"))
        assert result.frames is not None
        result.frames["second"][2][1, 1] = 7e4
        with pytest.raises(ValueError, match="Frames of second are not finite as float16"):
            writer.write_block(0, result)
        assert writer.blocks_to_do() == [0, 1, 2]
    assert not list(path.glob("mean/c/*"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda frames: {}, r"keeps frames of \('first', 'second'\), not of \(\)"),
        (lambda frames: {"first": frames["first"]}, r"not of \('first',\)"),
        (lambda frames: {**frames, "first": [one[:-1] for one in frames["first"]]}, r"Frames of first are \[0, 1, 2, 3\] long"),
        (lambda frames: {**frames, "first": [one[:, :2] for one in frames["first"]]}, r"must be \[T, 3\]"),
    ],
)  # fmt: skip
def test_results_that_do_not_fit_are_refused(tmp_path: Path, change: Callable[[object], object], message: str) -> None:
    with open_toy(toy_path(tmp_path), frames=_BOTH) as writer:
        result = with_frames(block_result(range(4)), range(4), _BOTH)
        with pytest.raises(ValueError, match=message):
            writer.write_block(0, replace(result, frames=change(result.frames)))  # type: ignore[arg-type]


def test_frames_for_a_store_that_keeps_none(tmp_path: Path) -> None:
    with open_toy(toy_path(tmp_path)) as writer, pytest.raises(ValueError, match="keeps frames of"):
        writer.write_block(0, with_frames(block_result(range(4)), range(4), _BOTH))


def test_asking_for_frames_that_are_not_there(tmp_path: Path) -> None:
    store = open_store(filled(tmp_path / "none"))
    assert store.frame_representations == ()
    assert store.frame_dtype == ""
    with pytest.raises(StoreError, match=r"keeps no frames\. Remove it with `hyfuse cache remove .*`--frames`"):
        store.frames(IDS, representation="first")
    store = open_store(filled(tmp_path / "half", spec=_HALF, failed={3}))
    with pytest.raises(UnknownNameError, match=r"representation with frames in .*'first'.*Valid names: second"):
        store.frames(IDS, representation="first")
    with pytest.raises(UtteranceError, match="1 of 2 utterances failed"):
        store.frames(["utt02", "utt03"], representation="second")
    with pytest.raises(UtteranceError, match="not in"):
        store.frames(["nobody"], representation="second")


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    ("kept", "asked", "message"),
    [
        (None, _BOTH, r"keeps no frames; asked for is frames of first, second as float32\. To go on with it, leave --frames out\."),
        (_HALF, None, r"keeps frames of second as float16; .* is no frames\. .* use `--frames-of second --frames-dtype float16`"),
        (_HALF, FrameSpec(("second",), "float32"), r"as float16; asked for is frames of second as float32"),
        (_BOTH, FrameSpec(("first",), "float32"), r"`--frames-of first --frames-of second --frames-dtype float32`"),
    ],
)  # fmt: skip
def test_other_frames_than_there_are(
    tmp_path: Path, kept: FrameSpec | None, asked: FrameSpec | None, message: str, finished: bool
) -> None:
    path = filled(tmp_path, spec=kept) if finished else toy_path(tmp_path)
    if not finished:
        with open_toy(path, frames=kept):
            pass
    before = tree_digest(path)
    with pytest.raises(ProvenanceError, match=message) as caught, open_toy(path, frames=asked):
        pass
    assert f"`hyfuse cache remove toy/enc/clean --cache-dir {tmp_path}`" in str(caught.value)
    assert tree_digest(path) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((), "float16"), "at least one representation"),
        ((("a", "a"), "float16"), "each once"),
        ((("a",), "bfloat16"), "float16 or float32, not 'bfloat16'"),
    ],
)
def test_frame_specs_that_make_no_sense(arguments: tuple[tuple[str, ...], str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FrameSpec(*arguments)


# ------------------------------------------------------------------------------------------------ interruption


class _StopError(BaseException):
    """Stands for the end of the process: nothing in the code may catch it."""


def _stop_at_frame_file(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    write = files.write_atomically
    count = iter(range(10**6))

    def counted(path: Location, content: bytes | str, *, option: str) -> None:
        if next(count) == number:
            raise _StopError
        write(path, content, option=option)

    monkeypatch.setattr(frames_module, "write_atomically", counted)


@pytest.mark.parametrize("number", range(0, 24, 3))
def test_stopped_between_any_two_files_ends_with_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_chunks: None, number: int
) -> None:
    path = toy_path(tmp_path / "stopped")
    with monkeypatch.context() as patch:
        _stop_at_frame_file(patch, number)
        with pytest.raises(_StopError), open_toy(path, frames=_BOTH) as writer:
            write_rest(writer, failed={1, 9})
    assert verify_store(path) == []
    with open_toy(path, frames=_BOTH) as writer:
        assert writer.blocks_to_do()
        write_rest(writer, failed={1, 9})
    assert tree_digest(path) == tree_digest(filled(tmp_path / "straight", spec=_BOTH, failed={1, 9}))


@pytest.mark.parametrize("failed_before", [set(), {4, 5}, {4, 5, 6, 7}])
@pytest.mark.parametrize("failed_after", [{7}, {4, 5, 6, 7}])
def test_a_block_with_fewer_frames_than_before_leaves_nothing_behind(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tiny_chunks: None,
    failed_before: set[int],
    failed_after: set[int],
) -> None:
    path = toy_path(tmp_path / "stopped")
    assign = zarr.Array.__setitem__

    def stop(self: zarr.Array, *args: object) -> None:  # type: ignore[type-arg]
        if self.basename == "status":
            raise _StopError
        assign(self, *args)  # type: ignore[arg-type]

    rows = range(4, 8)
    result = with_frames(block_result(rows, failed=failed_before, seed=5), rows, _BOTH)
    with monkeypatch.context() as patch, open_toy(path, frames=_BOTH) as writer:
        patch.setattr(zarr.Array, "__setitem__", stop)
        with pytest.raises(_StopError):
            writer.write_block(1, result)
    with open_toy(path, frames=_BOTH) as writer:
        write_rest(writer, failed=failed_after)
    clean = filled(tmp_path / "straight", spec=_BOTH, failed=failed_after)
    assert tree_digest(path) == tree_digest(clean)
    assert sorted(folder.relative_to(path) for folder in path.glob("frames/**/*")) == sorted(
        folder.relative_to(clean) for folder in clean.glob("frames/**/*")
    )


def test_unfinished_frame_files_are_cleaned(tmp_path: Path) -> None:
    path = toy_path(tmp_path)
    with open_toy(path, frames=_BOTH) as writer:
        writer.write_block(0, with_frames(block_result(range(4)), range(4), _BOTH))
    leftover = path / "frames" / "first" / "000000" / "c" / "0" / f"{files.TEMPORARY_PREFIX}0-123"
    leftover.write_bytes(b"half")
    with open_toy(path, frames=_BOTH) as writer:
        write_rest(writer)
    assert tree_digest(path) == tree_digest(filled(tmp_path / "straight", spec=_BOTH))


def test_a_full_disk_is_explained_and_can_be_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = toy_path(tmp_path / "full")
    with monkeypatch.context() as patch:

        def full(source: object, target: object) -> None:
            if "frames" in str(target):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            replace_file(source, target)  # type: ignore[arg-type]

        replace_file = os.replace
        patch.setattr(os, "replace", full)
        with (
            pytest.raises(StorageError, match=r"No space left on device.*same command again"),
            open_toy(path, frames=_HALF) as writer,
        ):
            write_rest(writer)
    with open_toy(path, frames=_HALF) as writer:
        assert writer.blocks_to_do() == [0, 1, 2]
        write_rest(writer)
    assert tree_digest(path) == tree_digest(filled(tmp_path / "straight", spec=_HALF))


# ------------------------------------------------------------------------------------------------ damage and digest


def _flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 0x10
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        lambda block: (block / "c" / "0" / "0").unlink(),
        lambda block: os.truncate(block / "c" / "0" / "0", 10),
        lambda block: os.truncate(block / "c" / "0" / "0", 0),
        lambda block: _flip(block / "c" / "0" / "0", 9),
        lambda block: (block / "zarr.json").unlink(),
        lambda block: os.truncate(block / "zarr.json", 30),
        lambda block: (block / "zarr.json").write_text(
            re.sub(r'"shape": \[\s*19,', '"shape": [18,', (block / "zarr.json").read_text())
        ),
    ],
)
def test_damage_is_found_and_named(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    path = filled(tmp_path, spec=_BOTH)
    block = path / "frames" / "first" / "000001"
    before = tree_digest(path)
    damage(block)
    assert tree_digest(path) != before
    (problem,) = verify_store(path)
    assert re.search(r"damaged: array 'frames/first/000001'.*`hyfuse cache remove toy/enc/clean", problem)
    store = open_store(path)
    with pytest.raises(StoreError, match="frames/first/000001"):
        list(store.frames(IDS, representation="first"))
    assert len(list(store.frames(IDS[:4], representation="first"))) == 4
    assert len(list(store.frames(IDS, representation="second"))) == 10
    assert store.features(IDS, representation="first", pool="mean").shape == (10, 3)


def test_blocks_to_do_are_not_verified(tmp_path: Path) -> None:
    path = toy_path(tmp_path)
    with open_toy(path, frames=_BOTH) as writer:
        writer.write_block(1, with_frames(block_result(range(4, 8)), range(4, 8), _BOTH))
    assert verify_store(path) == []


def test_digest_covers_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digests = {
        store_digest(filled(tmp_path / "none")),
        store_digest(filled(tmp_path / "both", spec=_BOTH)),
        store_digest(filled(tmp_path / "half", spec=_HALF)),
        store_digest(filled(tmp_path / "other", spec=_BOTH, seed=1)),
    }
    assert len(digests) == 4
    monkeypatch.setattr(frames_module, "_CHUNK_BYTES", 24)
    path = toy_path(tmp_path / "blocks")
    with open_toy(path, frames=_BOTH, block_rows=BLOCK_ROWS - 1) as writer:
        write_rest(writer)
    assert store_digest(path) in digests
