"""The store: resume to the same bytes, provenance, locks, damage, a full disk."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr
from zarr.storage import LocalStore

from pipelines.errors import (
    ConfigError,
    HyfuseError,
    ProvenanceError,
    StorageError,
    StoreError,
    UnknownNameError,
    UtteranceError,
)
from pipelines.store import embeddings
from pipelines.store.embeddings import (
    DONE,
    FAILED,
    TODO,
    StoreWriter,
    find_stores,
    open_store,
    open_writer,
    remove_store,
    store_digest,
    store_path,
    verify_store,
)
from pipelines.store.provenance import Provenance
from tests.store.stores import (
    BLOCK_ROWS,
    IDS,
    block_result,
    filled,
    make_provenance,
    toy_path,
    tree_digest,
    write_rest,
)


def _writer(path: Path, *, provenance: Provenance | None = None, ids: list[str] | None = None):  # type: ignore[no-untyped-def]
    return open_writer(
        path, provenance=provenance or make_provenance(), utterance_ids=ids or IDS, block_rows=BLOCK_ROWS
    )


# ------------------------------------------------------------------------------------------------ layout and contract


def test_arrays_are_as_documented(tmp_path: Path) -> None:
    path = filled(tmp_path)
    group = zarr.open_group(path, mode="r", zarr_format=3)
    shapes = {name: (array.shape, str(array.dtype)) for name, array in group.arrays()}
    assert shapes["mean"] == shapes["std"] == ((10, 2, 3), "float32")
    assert shapes["num_frames"] == ((10,), "int32")
    assert shapes["duration_s"] == ((10,), "float64")
    assert shapes["status"] == ((10,), "uint8")
    assert set(shapes) == {"mean", "std", "num_frames", "duration_s", "status", "failure", "utterance_id"}
    for name in ("mean", "std"):
        array = group[name]
        assert isinstance(array, zarr.Array)
        assert array.shards == (BLOCK_ROWS, 2, 3)  # a block is one shard
        assert array.chunks == (BLOCK_ROWS, 1, 3)  # a representation is a chunk of its own


def test_two_blocks_never_share_a_file(tmp_path: Path) -> None:
    path = toy_path(tmp_path)
    touched = []
    with _writer(path) as writer:
        for block in writer.blocks_to_do():
            before = tree_digest(path)
            writer.write_block(block, block_result(writer.rows_of(block), failed={1, 9}))
            after = tree_digest(path)
            touched.append({name for name in after if before.get(name) != after[name]})
    assert all(touched)
    assert not touched[0] & touched[1]
    assert not touched[1] & touched[2]


def test_a_new_store_is_all_to_do(tmp_path: Path) -> None:
    with _writer(toy_path(tmp_path)) as writer:
        assert writer.num_blocks == 3
        assert [writer.rows_of(block) for block in range(3)] == [range(4), range(4, 8), range(8, 10)]
        assert writer.blocks_to_do() == [0, 1, 2]
        assert writer.rows_done() == 0
    store = open_store(toy_path(tmp_path), complete=False)
    assert store.counts == (10, 0, 0)
    assert store.utterance_ids == IDS
    assert store.provenance == make_provenance()
    assert not store.is_complete


def test_rows_come_back_as_written(tmp_path: Path) -> None:
    store = open_store(filled(tmp_path, failed={1, 8}))
    expected = block_result(range(10), failed={1, 8})
    good = [row for row in range(10) if row not in {1, 8}]
    for index, name in enumerate(("first", "second")):
        for pool, array in (("mean", expected.mean), ("std", expected.std)):
            found = store.features([IDS[row] for row in good], representation=name, pool=pool)
            np.testing.assert_array_equal(found, array[good, index])
            assert found.dtype == np.float32
    np.testing.assert_array_equal(store.num_frames, expected.num_frames)
    np.testing.assert_array_equal(store.duration_s, expected.duration_s)
    assert store.counts == (0, 8, 2)
    assert store.is_complete


def test_failed_rows_keep_their_reason_and_are_never_zeros(tmp_path: Path) -> None:
    path = filled(tmp_path, failed={1, 8})
    store = open_store(path)
    assert store.failures() == {"utt01": "row 1 is broken – wirklich", "utt08": "row 8 is broken – wirklich"}
    assert store.status.tolist() == [FAILED if row in {1, 8} else DONE for row in range(10)]
    group = zarr.open_group(path, mode="r", zarr_format=3)
    for name in ("mean", "std"):
        array = group[name]
        assert isinstance(array, zarr.Array)
        assert np.isnan(np.asarray(array[:])[[1, 8]]).all()
    assert verify_store(path) == []


def test_a_block_in_which_everything_failed(tmp_path: Path) -> None:
    path = filled(tmp_path, failed=set(range(4, 8)))
    assert open_store(path).counts == (0, 6, 4)
    assert verify_store(path) == []


def test_ids_and_reasons_of_any_script(tmp_path: Path) -> None:
    ids = ["Ärger 1", "日本語", "a/b", "🙂", "x" * 200, "NA", "007", "0", "ü" * 50, "\u00a0y"]
    with _writer(toy_path(tmp_path), ids=ids) as writer:
        write_rest(writer)
    assert open_store(toy_path(tmp_path)).utterance_ids == ids


def test_a_single_utterance(tmp_path: Path) -> None:
    with _writer(toy_path(tmp_path), ids=["only"]) as writer:
        write_rest(writer)
    assert open_store(toy_path(tmp_path)).features(["only"], representation="first", pool="mean+std").shape == (1, 6)
    assert verify_store(toy_path(tmp_path)) == []


def test_block_of_another_length_is_refused(tmp_path: Path) -> None:
    with _writer(toy_path(tmp_path)) as writer:
        with pytest.raises(ValueError, match="Block 2 has 2 rows, not 4"):
            writer.write_block(2, block_result(range(4)))
        assert writer.blocks_to_do() == [0, 1, 2]


def test_blocks_may_be_written_in_any_order(tmp_path: Path) -> None:
    with _writer(toy_path(tmp_path / "turned")) as writer:
        for block in (2, 0, 1):
            writer.write_block(block, block_result(writer.rows_of(block), failed={8}))
    assert tree_digest(toy_path(tmp_path / "turned")) == tree_digest(filled(tmp_path / "straight", failed={8}))


# ------------------------------------------------------------------------------------------------ features by id


def test_features_are_joined_by_id_in_any_order(tmp_path: Path) -> None:
    store = open_store(filled(tmp_path))
    asked = ["utt07", "utt00", "utt09", "utt07"]
    found = store.features(asked, representation="second", pool="mean+std")
    expected = block_result(range(10))
    for row, name in enumerate(asked):
        position = IDS.index(name)
        np.testing.assert_array_equal(found[row], np.r_[expected.mean[position, 1], expected.std[position, 1]])


def test_one_frame_has_no_spread(tmp_path: Path) -> None:
    store = open_store(filled(tmp_path, frames=1))
    both = store.features(IDS, representation="first", pool="mean+std")
    np.testing.assert_array_equal(both, store.features(IDS, representation="first", pool="mean"))
    with pytest.raises(ConfigError, match=r"enc gives one frame per utterance, so there is no std.*`--pool mean`"):
        store.features(IDS, representation="first", pool="std")


def test_number_of_features_does_not_depend_on_which_are_asked_for(tmp_path: Path) -> None:
    """A frame-level encoder may give one frame for a very short clip; its row is as wide as the others."""
    path = toy_path(tmp_path)
    with _writer(path) as writer:
        writer.write_block(0, block_result(writer.rows_of(0), frames=1))
        write_rest(writer)
    store = open_store(path)
    short = store.features(IDS[:2], representation="first", pool="mean+std")
    assert short.shape == (2, 6)
    assert (short[:, 3:] == 0).all()
    assert store.features(IDS[:2], representation="first", pool="std").shape == (2, 3)


def test_unknown_representation_and_pooling(tmp_path: Path) -> None:
    store = open_store(filled(tmp_path))
    with pytest.raises(UnknownNameError, match=r"representation of enc 'frist'\. Did you mean 'first'"):
        store.features(IDS, representation="frist", pool="mean")
    with pytest.raises(ConfigError, match=r"one of mean, std, mean\+std, not 'max'"):
        store.features(IDS, representation="first", pool="max")


def test_ids_that_are_not_in_the_store(tmp_path: Path) -> None:
    path = filled(tmp_path)
    asked = ["utt00", "x1", "x2", "x3", "x4"]
    with pytest.raises(UtteranceError) as caught:
        open_store(path).features(asked, representation="first", pool="mean")
    message = str(caught.value)
    assert "4 of 5 utterances are not in" in message
    assert "x1, x2, x3, …" in message
    assert "another manifest (digest a1a1a1a1a1a1…)" in message
    assert f"`hyfuse cache remove toy/enc/clean --cache-dir {tmp_path}`" in message
    assert "x4" not in message


def test_ids_that_failed(tmp_path: Path) -> None:
    store = open_store(filled(tmp_path, failed={1}))
    with pytest.raises(UtteranceError, match=r"1 of 2 utterances failed in .*: utt01 \(row 1 is broken – wirklich\)"):
        store.features(["utt00", "utt01"], representation="first", pool="mean")


def test_ids_that_are_still_to_do(tmp_path: Path) -> None:
    with _writer(toy_path(tmp_path)) as writer:
        writer.write_block(0, block_result(range(4)))
    store = open_store(toy_path(tmp_path), complete=False)
    assert len(store.features(IDS[:4], representation="first", pool="mean")) == 4
    with pytest.raises(
        UtteranceError, match=r"6 of 10 utterances are still to do .*`hyfuse extract --model enc --corpus toy`"
    ):
        store.features(IDS, representation="first", pool="mean")


# ------------------------------------------------------------------------------------------------ opening


def test_there_is_no_store(tmp_path: Path) -> None:
    with pytest.raises(
        StoreError, match=r"no store at .*toy/enc/clean\.zarr.*`hyfuse extract --model enc --corpus toy`"
    ):
        open_store(toy_path(tmp_path))


def test_an_unfinished_store(tmp_path: Path) -> None:
    with _writer(toy_path(tmp_path)) as writer:
        writer.write_block(0, block_result(range(4), failed={2}))
    with pytest.raises(StoreError, match=r"unfinished: 3 done, 1 failed, 6 to do.*`hyfuse extract --model enc"):
        open_store(toy_path(tmp_path))


def test_opening_for_another_manifest_or_other_weights(tmp_path: Path) -> None:
    path = filled(tmp_path)
    open_store(path, manifest_digest="a1" * 32, weights_kind="random")
    with pytest.raises(
        ProvenanceError, match=r"manifest_digest: the store has a1a1a1a1a1a1.* asked for is c3c3c3c3c3c3"
    ):
        open_store(path, manifest_digest="c3" * 32)
    with pytest.raises(ProvenanceError, match=r"weights_kind: the store has random, asked for is pretrained") as caught:
        open_store(path, weights_kind="pretrained")
    assert f"`hyfuse cache remove toy/enc/clean --cache-dir {tmp_path}`" in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"manifest_digest": "c3" * 32}, r"manifest_digest: the store has a1a1a1a1a1a1…, asked for is c3c3c3c3c3c3…"),
        ({"weights_kind": "pretrained"}, r"weights_kind: the store has random, asked for is pretrained"),
        ({"weights_digest": "c3" * 32}, r"weights_digest: the store has b2b2b2b2b2b2…, asked for is c3c3c3c3c3c3…"),
        ({"representations": ("first",)}, r"representations: the store has first, second, asked for is first"),
        ({"dim": 4, "precision": "bfloat16"}, r"dim: the store has 3, asked for is 4; precision: .*float32.*bfloat16"),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_writing_into_a_store_of_something_else(
    tmp_path: Path, changes: dict[str, object], message: str, finished: bool
) -> None:
    path = filled(tmp_path) if finished else toy_path(tmp_path)
    if not finished:
        with _writer(path):
            pass
    before = tree_digest(path)
    with pytest.raises(ProvenanceError, match=message) as caught, _writer(path, provenance=make_provenance(**changes)):
        pass
    assert f"`hyfuse cache remove toy/enc/clean --cache-dir {tmp_path}`" in str(caught.value)
    assert tree_digest(path) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"device": "cuda"}, "device: the store has cpu, asked for is cuda"),
        (
            {"versions": {"torch": "2.14", "numpy": "2.4"}},
            r"versions: the store has torch 2\.13, asked for is torch 2\.14\.",
        ),
    ],
)
def test_another_environment_may_read_but_not_continue(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    here = make_provenance(**changes)
    with _writer(toy_path(tmp_path)) as writer:
        writer.write_block(0, block_result(range(4)))
    with pytest.raises(ProvenanceError, match=message), _writer(toy_path(tmp_path), provenance=here):
        pass
    with _writer(toy_path(tmp_path)) as writer:
        write_rest(writer)
    with _writer(toy_path(tmp_path), provenance=here) as writer:
        assert writer.blocks_to_do() == []
    assert open_store(toy_path(tmp_path)).provenance == make_provenance()


def test_other_ids_under_the_same_digest_are_damage(tmp_path: Path) -> None:
    path = filled(tmp_path)
    with pytest.raises(StoreError, match="damaged: its utterance ids are not those"), _writer(path, ids=IDS[::-1]):
        pass


def test_message_names_the_store_under_any_condition(tmp_path: Path) -> None:
    path = store_path(tmp_path, "my.corpus", "enc", "reverb:0.6s")
    assert path.name == "reverb:0.6s.zarr"
    with _writer(path):
        pass
    with pytest.raises(ProvenanceError) as caught, _writer(path, provenance=make_provenance(dim=9)):
        pass
    assert "`hyfuse cache remove my.corpus/enc/reverb:0.6s --cache-dir" in str(caught.value)


# ------------------------------------------------------------------------------------------------ interruption


class _Stop(BaseException):
    """Stands for the end of the process: nothing in the code may catch it."""


def _stop_at_write(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Stop at the ``number``-th array that is assigned to, before it is."""
    assign = zarr.Array.__setitem__
    count = iter(range(10**6))

    def counted(self: object, *args: object) -> None:
        if next(count) == number:
            raise _Stop
        assign(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(zarr.Array, "__setitem__", counted)


@pytest.mark.parametrize("number", range(19))
def test_stopped_between_any_two_writes_ends_with_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Write 0 are the ids; each of the three blocks is six writes, the last one its status."""
    path = toy_path(tmp_path / "stopped")
    with monkeypatch.context() as patch:
        _stop_at_write(patch, number)
        with pytest.raises(_Stop), _writer(path) as writer:
            write_rest(writer, failed={1, 9})
    whole_blocks = max(number - 1, 0) // 6
    if number == 0:
        assert not path.exists()
    else:
        todo = open_store(path, complete=False).counts[0]
        assert todo == len(IDS) - BLOCK_ROWS * whole_blocks
        assert verify_store(path) == []
    with _writer(path) as writer:
        assert writer.blocks_to_do() == list(range(whole_blocks, 3))
        write_rest(writer, failed={1, 9})
    assert tree_digest(tmp_path / "stopped" / "toy" / "enc" / "clean.zarr") == tree_digest(
        filled(tmp_path / "straight", failed={1, 9})
    )
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["clean.lock", "clean.zarr"]


def test_a_row_that_failed_before_the_kill_and_not_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = toy_path(tmp_path / "stopped")
    with monkeypatch.context() as patch:
        _stop_at_write(patch, 6)  # everything of block 0 but its status
        with pytest.raises(_Stop), _writer(path) as writer:
            writer.write_block(0, block_result(writer.rows_of(0), failed={0, 1, 2, 3}))
    with _writer(path) as writer:
        write_rest(writer)
    assert tree_digest(path) == tree_digest(filled(tmp_path / "straight"))


def test_leftovers_of_a_killed_run_are_cleaned(tmp_path: Path) -> None:
    path = toy_path(tmp_path)
    with _writer(path) as writer:
        writer.write_block(0, block_result(range(4)))
    (path / "mean" / "c" / "1" / "0").mkdir(parents=True)
    partial = path / "mean" / "c" / "1" / "0" / "0.0123456789abcdef.partial"
    partial.write_bytes(b"half")
    for name in (".making-clean.zarr", ".removing-clean.zarr"):
        (path.parent / name / "mean").mkdir(parents=True)
        (path.parent / name / "mean" / "zarr.json").write_text("{")
    other = path.parent / ".making-noise.zarr"
    other.mkdir()
    with _writer(path) as writer:
        write_rest(writer)
    assert not partial.exists()
    assert sorted(entry.name for entry in path.parent.iterdir()) == [other.name, "clean.lock", "clean.zarr"]
    assert tree_digest(path) == tree_digest(filled(tmp_path / "straight"))


def test_zarr_still_names_its_partial_files_as_expected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cleaning relies on ``*.partial``: another name in another zarr would leave files behind and break the same bytes."""
    renamed: list[Path] = []
    replace = Path.replace

    def noted(self: Path, target: Path) -> Path:
        renamed.append(self)
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", noted)
    filled(tmp_path)
    assert len(renamed) > 20
    assert {name.suffix for name in renamed} == {".partial"}


# ------------------------------------------------------------------------------------------------ locks

_HOLD = """
import sys
from pathlib import Path
from tests.store.stores import IDS, BLOCK_ROWS, make_provenance
from pipelines.store.embeddings import open_writer
with open_writer(Path(sys.argv[1]), provenance=make_provenance(), utterance_ids=IDS, block_rows=BLOCK_ROWS):
    print("held", flush=True)
    sys.stdin.read()
"""


def _hold(path: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).resolve().parents[2],
    )
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "held"
    return process


def test_second_writer_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    path = toy_path(tmp_path)
    process = _hold(path)
    try:
        with (
            pytest.raises(StoreError, match=rf"Another process \(pid {process.pid}\) is writing .*clean\.zarr"),
            _writer(path),
        ):
            pass
        with pytest.raises(StoreError, match=rf"pid {process.pid}"):
            remove_store(path)
        assert open_store(path, complete=False).counts == (10, 0, 0)  # reading needs no lock
    finally:
        process.kill()  # kill -9: the lock file stays, the lock does not
        process.communicate()
    assert path.with_suffix(".lock").read_text().split() == [str(process.pid), socket.gethostname()]
    with _writer(path) as writer:
        assert path.with_suffix(".lock").read_text().split() == [str(os.getpid()), socket.gethostname()]
        write_rest(writer)
    assert open_store(path).is_complete


def test_second_writer_in_the_same_process_is_refused(tmp_path: Path) -> None:
    path = toy_path(tmp_path)
    with _writer(path):
        with pytest.raises(StoreError, match=rf"pid {os.getpid()}"), _writer(path):
            pass
        with pytest.raises(StoreError, match=rf"pid {os.getpid()}"), _writer(path):
            pass  # the failed attempt has not taken the name of the owner away


def test_stores_beside_each_other_have_locks_of_their_own(tmp_path: Path) -> None:
    with _writer(store_path(tmp_path, "toy", "enc")), _writer(store_path(tmp_path, "toy", "enc", "reverb:0.6s")):
        pass


def test_a_lock_file_that_was_removed_meanwhile_locks_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A removal takes the lock file along; who waited on it must not go on beside a third process with a new one."""
    path = toy_path(tmp_path)
    path.parent.mkdir(parents=True)
    flock = fcntl.flock

    def slow(handle: int, operation: int) -> None:
        flock(handle, operation)
        path.with_suffix(".lock").unlink()

    monkeypatch.setattr(fcntl, "flock", slow)
    with pytest.raises(StoreError, match="Another process"), _writer(path):
        pass
    assert not path.exists()


def test_locking_that_does_not_work_is_not_another_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", broken)
    with pytest.raises(StorageError, match="No locks available"), _writer(toy_path(tmp_path)):
        pass


# ------------------------------------------------------------------------------------------------ the disk


def _full_after(monkeypatch: pytest.MonkeyPatch, writes: int, code: int = errno.ENOSPC) -> None:
    """The disk takes ``writes`` more files; every further one fails half-way, as it does when a disk is full."""
    from zarr.storage import _local

    put = _local._put
    count = iter(range(10**6))

    def limited(path: Path, value: object, *args: object, **options: object) -> object:
        if next(count) >= writes:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.with_suffix(".feedbeef.partial").write_bytes(b"half")
            raise OSError(code, os.strerror(code), str(path))
        return put(path, value, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(_local, "_put", limited)


@pytest.mark.parametrize("writes", [0, 5, 9, 10, 12, 14, 15, 20, 26])
def test_full_disk_is_explained_and_can_be_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    path = toy_path(tmp_path / "full")
    with monkeypatch.context() as patch:
        _full_after(patch, writes)
        with (
            pytest.raises(StorageError, match=r"cannot be written: No space left on device.*same command again"),
            _writer(path) as writer,
        ):
            write_rest(writer, failed={1})
    with _writer(path) as writer:
        write_rest(writer, failed={1})
    assert tree_digest(path) == tree_digest(filled(tmp_path / "straight", failed={1}))


def test_a_block_that_did_not_fit_is_still_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with _writer(toy_path(tmp_path)) as writer:
        writer.write_block(0, block_result(range(4)))
        with monkeypatch.context() as patch:
            _full_after(patch, 3)
            with pytest.raises(StorageError, match="No space left"):
                writer.write_block(1, block_result(range(4, 8)))
        assert writer.blocks_to_do() == [1, 2]
        assert writer.rows_done() == 4


def test_full_disk_at_the_lock_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings.os, "getpid", lambda: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left")))
    with pytest.raises(StorageError, match="No space left"), _writer(toy_path(tmp_path)):
        pass


def test_no_permission_as_the_system_reports_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _full_after(monkeypatch, 0, errno.EACCES)
    with pytest.raises(StorageError, match=r"Permission denied.*permission, and run the same command"):
        filled(tmp_path)


def test_cache_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        filled(tmp_path / "cache")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_cache(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(StorageError, match=r"cannot be written: Permission denied"):
            filled(tmp_path)
    finally:
        tmp_path.chmod(0o755)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_store_can_be_read(tmp_path: Path) -> None:
    path = filled(tmp_path)
    for folder in (path, path.parent):
        folder.chmod(0o555)
    try:
        assert len(open_store(path).features(IDS, representation="first", pool="mean")) == 10
        assert verify_store(path) == []
        with pytest.raises(StorageError, match="Permission denied"):
            remove_store(path)
    finally:
        for folder in (path, path.parent):
            folder.chmod(0o755)


# ------------------------------------------------------------------------------------------------ verify


def _flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 0x10
    path.write_bytes(content)


def _assign(name: str, rows: slice | list[int], value: object) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        array = zarr.open_group(path, mode="r+", zarr_format=3)[name]
        assert isinstance(array, zarr.Array)
        content = np.asarray(array[:])
        content[rows] = value
        array[:] = content

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: _flip(path / "mean" / "c" / "0" / "0" / "0", 10), r"damaged: array 'mean' cannot be read.*cache verify"),
        (lambda path: _flip(path / "std" / "c" / "1" / "0" / "0", -6), r"array 'std' cannot be read"),
        (lambda path: _flip(path / "duration_s" / "c" / "0", 5), r"array 'duration_s' cannot be read"),
        (lambda path: _flip(path / "utterance_id" / "c" / "0", 7), r"array 'utterance_id' cannot be read"),
        (lambda path: (path / "mean" / "c" / "1" / "0" / "0").unlink(), r"mean of first is not finite for utt04, utt05, utt06, …"),
        (lambda path: (path / "std" / "c" / "2" / "0" / "0").unlink(), r"std of second is not finite for utt09\."),
        (lambda path: (path / "num_frames" / "c" / "0").unlink(), r"done have no frames"),
        (lambda path: (path / "duration_s" / "c" / "0").unlink(), r"no duration"),
        (lambda path: (path / "failure" / "c" / "2").unlink(), r"failed give no reason"),
        (lambda path: (path / "utterance_id" / "c" / "0").unlink(), r"ids are empty or not unique"),
        (lambda path: os.truncate(path / "mean" / "c" / "0" / "0" / "0", 40), r"array 'mean' cannot be read"),
        (lambda path: os.truncate(path / "mean" / "c" / "0" / "0" / "0", 0), r"array 'mean' cannot be read"),
        (lambda path: os.truncate(path / "mean" / "zarr.json", 100), r"array 'mean' cannot be read"),
        (lambda path: os.truncate(path / "zarr.json", 100), r"or is damaged.*`hyfuse cache remove toy/enc/clean"),
        (lambda path: (path / "zarr.json").unlink(), r"not a hyfuse store, or is damaged"),
        (lambda path: (path / "status" / "zarr.json").unlink(), r"array 'status' cannot be read"),
        (_assign("status", [3], 7), r"Unknown status values: \[7\]"),
        (_assign("mean", [0], np.inf), r"mean of first is not finite for utt00\."),
        (_assign("mean", [8], 0.0), r"mean of first holds numbers for rows that failed"),
        (_assign("num_frames", [0], 0), r"done have no frames"),
        (_assign("utterance_id", [1], "utt00"), r"ids are empty or not unique"),
    ],
)  # fmt: skip
def test_verify_finds(tmp_path: Path, damage: Callable[[Path], None], message: str) -> None:
    path = filled(tmp_path, failed={8})
    assert verify_store(path) == []
    damage(path)
    problems = verify_store(path)
    assert any(re.search(message, problem, re.DOTALL) for problem in problems), problems


def test_verify_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="There is no store"):
        verify_store(toy_path(tmp_path))


def test_rows_to_do_are_no_problem(tmp_path: Path) -> None:
    with _writer(toy_path(tmp_path)) as writer:
        writer.write_block(1, block_result(range(4, 8)))
    assert verify_store(toy_path(tmp_path)) == []


def test_a_lost_status_means_the_block_is_done_again(tmp_path: Path) -> None:
    path = filled(tmp_path)
    before = tree_digest(path)
    (path / "status" / "c" / "1").unlink()
    with _writer(path) as writer:
        assert writer.blocks_to_do() == [1]
        write_rest(writer)
    assert tree_digest(path) == before


def test_damage_is_always_explained(tmp_path: Path) -> None:
    """Any file of the store cut, emptied, removed or with a byte flipped: our errors only, and numbers never change unseen."""
    path = filled(tmp_path, failed={8})
    good = [name for name in IDS if name != "utt08"]
    reference = open_store(path).features(good, representation="second", pool="mean+std")
    files = [file for file in sorted(path.rglob("*")) if file.is_file()]
    rng = np.random.default_rng(0)
    explained = 0
    for _ in range(150):
        file = files[rng.integers(len(files))]
        content = file.read_bytes()
        damaged = bytearray(content)
        match rng.integers(4):
            case 0:
                damaged[rng.integers(len(damaged))] ^= 1 << int(rng.integers(8))
            case 1:
                del damaged[rng.integers(len(damaged)) :]
            case 2:
                damaged = bytearray(len(damaged))
            case 3:
                damaged.clear()
        file.write_bytes(damaged)
        try:
            verify_store(path)
            found = open_store(path, complete=False).features(good, representation="second", pool="mean+std")
            assert np.array_equal(found, reference)
        except HyfuseError:
            explained += 1
        file.write_bytes(content)
    assert explained > 75
    assert verify_store(path) == []


# ------------------------------------------------------------------------------------------------ finding and removing


def test_find_stores(tmp_path: Path) -> None:
    assert find_stores(tmp_path / "nowhere") == []
    first, second = store_path(tmp_path, "a", "enc"), store_path(tmp_path, "[a]", "enc", "noise:esc10@5dB")
    for path in (first, second):
        with _writer(path):
            pass
    (first.parent / ".making-clean.zarr").mkdir()
    (tmp_path / "a" / "manifest.csv").write_text("")
    assert find_stores(tmp_path) == sorted([first, second])
    assert find_stores(tmp_path, "a") == [first]
    assert find_stores(tmp_path, "[a]") == [second]


def test_remove_store(tmp_path: Path) -> None:
    path = filled(tmp_path)
    remove_store(path)
    assert list(path.parent.iterdir()) == []
    with pytest.raises(StoreError, match=r"no store at .*`hyfuse cache list`"):
        remove_store(path)
    assert tree_digest(filled(tmp_path)) == tree_digest(filled(tmp_path / "other"))


def test_a_removal_that_was_killed_leaves_no_half_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = filled(tmp_path)

    def killed(*_: object, **__: object) -> None:
        raise _Stop

    with monkeypatch.context() as patch:
        # The first call tidies up an older removal; the second one is the removal itself.
        calls = iter([lambda *_, **__: None, killed])
        patch.setattr(embeddings.shutil, "rmtree", lambda *args, **options: next(calls)(*args, **options))
        with pytest.raises(_Stop):
            remove_store(path)
    assert not path.exists()
    assert find_stores(tmp_path) == []
    filled(tmp_path)
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["clean.lock", "clean.zarr"]


def test_a_folder_that_is_no_store(tmp_path: Path) -> None:
    toy_path(tmp_path).mkdir(parents=True)
    for attempt in (lambda: open_store(toy_path(tmp_path)), lambda: filled(tmp_path)):
        with pytest.raises(StoreError, match=r"is not a hyfuse store.*`hyfuse cache remove toy/enc/clean"):
            attempt()
    remove_store(toy_path(tmp_path))
    filled(tmp_path)


def test_reading_is_lazy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening reads the status alone; features read one representation of the pools and the blocks that are asked for."""
    path = filled(tmp_path)
    read: list[str] = []
    get = LocalStore.get

    async def noted(self: LocalStore, key: str, *args: object, **options: object) -> object:
        read.append(key)
        return await get(self, key, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(LocalStore, "get", noted)
    store = open_store(path)
    assert {key.split("/")[0] for key in read} == {"zarr.json", "status"}
    store.features(IDS[4:8], representation="first", pool="mean")
    assert {key for key in read if key.startswith(("mean/c", "std"))} == {"mean/c/1/0/0"}
    store.features(["utt00", "utt09"], representation="first", pool="mean")
    assert {key for key in read if key.startswith(("mean/c", "std"))} == {f"mean/c/{block}/0/0" for block in range(3)}


def test_arrays_are_opened_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    get_item = zarr.Group.__getitem__

    def noted(self: zarr.Group, name: str) -> object:
        opened.append(name)
        return get_item(self, name)

    path = filled(tmp_path)
    monkeypatch.setattr(zarr.Group, "__getitem__", noted)
    store = open_store(path)
    store.features(IDS, representation="first", pool="mean+std")
    store.features(IDS[:3], representation="second", pool="mean+std")
    assert sorted(opened) == ["mean", "num_frames", "status", "std", "utterance_id"]


def test_the_writer_opens_arrays_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with _writer(toy_path(tmp_path)) as writer:

        def unexpected(self: zarr.Group, name: str) -> object:
            raise AssertionError(f"{name} is opened again")

        monkeypatch.setattr(zarr.Group, "__getitem__", unexpected)
        write_rest(writer)


@pytest.mark.parametrize("name", ["mean", "std"])
def test_a_lost_file_is_never_read_as_numbers(tmp_path: Path, name: str) -> None:
    """After a power failure a file may be gone though its block is done; Zarr fills in NaN for it."""
    path = filled(tmp_path, failed={8})
    (path / name / "c" / "1" / "0" / "0").unlink()
    store = open_store(path)
    assert store.features(IDS[:4], representation="first", pool="mean+std").shape == (4, 6)
    with pytest.raises(
        StoreError, match=rf"damaged: array '{name}' holds no numbers for utt05, .*`hyfuse cache remove toy/enc/clean"
    ):
        store.features(["utt00", "utt05"], representation="first", pool="mean+std")
    with pytest.raises(StoreError, match="damaged"):
        store_digest(path)


def test_lost_lengths_do_not_change_the_width_of_features(tmp_path: Path) -> None:
    path = filled(tmp_path)
    for block in range(3):
        (path / "num_frames" / "c" / str(block)).unlink()
    with pytest.raises(StoreError, match="'num_frames' has lost a part"):
        open_store(path).features(IDS, representation="first", pool="mean+std")


def test_lost_ids_are_damage_not_another_manifest(tmp_path: Path) -> None:
    path = filled(tmp_path)
    (path / "utterance_id" / "c" / "0").unlink()
    with pytest.raises(StoreError, match="'utterance_id' has lost a part"):
        open_store(path).features(IDS, representation="first", pool="mean")


def test_no_features_of_nothing(tmp_path: Path) -> None:
    assert open_store(filled(tmp_path)).features([], representation="first", pool="mean+std").shape == (0, 6)


# ------------------------------------------------------------------------------------------------ what the disk holds


def test_data_reach_the_disk_before_the_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = toy_path(tmp_path)
    with _writer(path) as writer:
        events: list[str] = []
        fsync, assign = os.fsync, zarr.Array.__setitem__

        def noted_fsync(handle: int) -> None:
            events.append(os.path.relpath(os.readlink(f"/proc/self/fd/{handle}"), path))
            fsync(handle)

        def noted_assign(self: zarr.Array, *args: object) -> None:  # type: ignore[type-arg]
            events.append(f"write {self.basename}")
            assign(self, *args)  # type: ignore[arg-type]

        monkeypatch.setattr(os, "fsync", noted_fsync)
        monkeypatch.setattr(zarr.Array, "__setitem__", noted_assign)
        writer.write_block(1, block_result(range(4, 8), failed={5}))
    assert events[-1] == "write status"
    held = set(events[:-1])
    files = {"mean/c/1/0/0", "std/c/1/0/0", "num_frames/c/1", "duration_s/c/1", "failure/c/1"}
    folders = {"mean", "mean/c", "mean/c/1", "mean/c/1/0", "failure", "failure/c"}
    assert files | folders <= held
    assert max(events.index(f"write {name}") for name in ("mean", "std", "failure")) < min(map(events.index, files))


def test_a_disk_that_fails_to_hold_data_leaves_the_block_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Network file systems report a full disk as late as this."""
    path = toy_path(tmp_path)
    with _writer(path) as writer:
        with monkeypatch.context() as patch:

            def full(handle: int) -> None:
                raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

            patch.setattr(os, "fsync", full)
            with pytest.raises(StorageError, match=r"Disk quota exceeded.*same command again"):
                writer.write_block(1, block_result(range(4, 8)))
        assert writer.blocks_to_do() == [0, 1, 2]
    assert open_store(path, complete=False).counts == (10, 0, 0)


# ------------------------------------------------------------------------------------------------ digest


def test_digest_is_of_the_content_alone(tmp_path: Path) -> None:
    """Not of block sizes, library versions, the machine's folders, or the order of writing."""
    first = store_digest(filled(tmp_path / "one", failed={1, 8}))
    path = toy_path(tmp_path / "two")
    versions = {"torch": "9.9", "numpy": "9.9"}
    with open_writer(path, provenance=make_provenance(versions=versions), utterance_ids=IDS, block_rows=3) as writer:
        for block in reversed(writer.blocks_to_do()):
            result = block_result(writer.rows_of(block), failed={1, 8})
            writer.write_block(block, replace(result, failure=[reason and "elsewhere" for reason in result.failure]))
    assert store_digest(path) == first
    assert re.fullmatch("[0-9a-f]{64}", first)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: _assign("mean", [0], np.float32(1.0))(path),
        lambda path: _assign("std", [9], np.float32(1.0))(path),
        lambda path: _assign("status", [0], TODO)(path),
        lambda path: _assign("num_frames", [0], 6)(path),
        lambda path: _assign("duration_s", [0], 6.0)(path),
        lambda path: _assign("utterance_id", [0], "utt0x")(path),
    ],
)
def test_digest_sees_every_change(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    path = filled(tmp_path, failed={1})
    before = store_digest(path)
    damage(path)
    assert store_digest(path) != before


def test_digest_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="There is no store"):
        store_digest(toy_path(tmp_path))


def test_writer_reports_its_state(tmp_path: Path) -> None:
    with _writer(toy_path(tmp_path)) as writer:
        assert isinstance(writer, StoreWriter)
        writer.write_block(2, block_result(range(8, 10), failed={9}))
        assert writer.rows_done() == 2
        assert writer.blocks_to_do() == [0, 1]
    assert (TODO, DONE, FAILED) == (0, 1, 2)
