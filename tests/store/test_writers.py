"""Several writers of one store: shards, workers, blocks that are tried again, and ``kill -9`` at any moment."""

from __future__ import annotations

import ast
import errno
import fcntl
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import zarr

from pipelines import files
from pipelines.errors import ConfigError, ProvenanceError, StorageError, StoreError
from pipelines.store import embeddings, locks
from pipelines.store.embeddings import FAILED, attach_writer, open_store, remove_store, store_digest, verify_store
from tests.store.stores import (
    IDS,
    block_result,
    filled,
    make_provenance,
    open_toy,
    toy_path,
    tree_digest,
    write_rest,
)
from tests.store.writer_process import FRAMES, toy_ids, write

_ROOT = Path(__file__).resolve().parents[2]


def start(path: object, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.store.writer_process", str(path), *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=_ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def _wait_until_open(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "open", process.communicate()


def _finish(process: subprocess.Popen[str]) -> None:
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err


@pytest.fixture
def held() -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that are ended after the test, whatever happened."""
    processes: list[subprocess.Popen[str]] = []
    yield processes
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.communicate()


class _StopError(BaseException):
    """Stands for the end of the process: nothing in the code may catch it."""


# ------------------------------------------------------------------------------------------------ shards


def test_shards_one_after_the_other_equal_one_process(tmp_path: Path) -> None:
    path = toy_path(tmp_path / "shards")
    for i in (1, 0):
        with open_toy(path, shard=(i, 2), frames=FRAMES) as writer:
            assert writer.blocks_to_do() == ([0, 2] if i == 0 else [1])
            write_rest(writer, failed={1, 5})
            assert writer.blocks_to_do() == []
    assert tree_digest(path) == tree_digest(filled(tmp_path / "whole", spec=FRAMES, failed={1, 5}))


def test_more_shards_than_blocks(tmp_path: Path) -> None:
    path = toy_path(tmp_path)
    for i in range(5):
        with open_toy(path, shard=(i, 5)) as writer:
            assert writer.blocks_to_do() == ([i] if i < 3 else [])
            write_rest(writer)
    assert open_store(path).is_complete


def test_shards_run_at_once(tmp_path: Path) -> None:
    path = toy_path(tmp_path)
    with open_toy(path, shard=(0, 2)) as first, open_toy(path, shard=(1, 2)) as second:
        second.write_block(1, block_result(range(4, 8)))
        write_rest(first)
        assert first.blocks_to_do() == second.blocks_to_do() == []
        assert first.rows_done() == 6
        first.refresh()
        assert first.rows_done() == 10
        assert first.store.is_complete
    assert tree_digest(path) == tree_digest(filled(tmp_path / "whole"))


def test_many_shards_that_start_at_once_make_one_store(tmp_path: Path, held: list[subprocess.Popen[str]]) -> None:
    path = toy_path(tmp_path)
    held += [start(path, "--shard", f"{i}/4", "--ids", 60) for i in range(4)]
    for process in held:
        _finish(process)
    whole = toy_path(tmp_path / "whole")
    with open_toy(whole, utterance_ids=toy_ids(60)) as writer:
        write_rest(writer)
    assert tree_digest(path) == tree_digest(whole)
    assert not [entry for entry in path.parent.iterdir() if entry.name.startswith(".")]


@pytest.mark.parametrize("shard", [(2, 2), (-1, 2), (0, 0)])
def test_shards_that_do_not_exist(tmp_path: Path, shard: tuple[int, int]) -> None:
    with (
        pytest.raises(ConfigError, match=rf"Shard {shard[0]}/{shard[1]} does not exist"),
        open_toy(toy_path(tmp_path), shard=shard),
    ):
        pass


def test_the_same_shard_twice_is_refused(tmp_path: Path, held: list[subprocess.Popen[str]]) -> None:
    path = toy_path(tmp_path)
    held.append(start(path, "--shard", "1/2", "--hold"))
    _wait_until_open(held[0])
    with (
        pytest.raises(StoreError, match=rf"Shard 1/2 of .*clean\.zarr is being written .*pid {held[0].pid}\)"),
        open_toy(path, shard=(1, 2)),
    ):
        pass
    with open_toy(path, shard=(0, 2)):  # the other one is free
        pass
    held[0].kill()
    held[0].communicate()
    with open_toy(path, shard=(1, 2)):  # the lock has died with its process
        pass


def test_the_whole_and_a_shard_exclude_each_other(tmp_path: Path, held: list[subprocess.Popen[str]]) -> None:
    path = toy_path(tmp_path)
    held.append(start(path, "--shard", "1/2", "--hold"))
    held.append(start(path, "--shard", "0/2", "--hold"))
    for process in held:
        _wait_until_open(process)
    for attempt in (lambda: open_toy(path).__enter__(), lambda: remove_store(path)):
        with pytest.raises(
            StoreError, match=rf"each its shard: 0/2 \(pid {held[1].pid}\), 1/2 \(pid {held[0].pid}\)\. Wait for them"
        ):
            attempt()
    assert open_store(path, complete=False).counts == (10, 0, 0)
    held[0].kill()
    held[0].communicate()
    with pytest.raises(StoreError, match=rf"each its shard: 0/2 \(pid {held[1].pid}\)\."), open_toy(path):
        pass
    held[1].kill()
    held[1].communicate()
    match = rf"Another process \(pid {os.getpid()}\) .* whole store; .* start every process with --shard"
    with open_toy(path), pytest.raises(StoreError, match=match), open_toy(path, shard=(1, 2)):
        pass


def test_another_number_of_shards_is_refused(tmp_path: Path, held: list[subprocess.Popen[str]]) -> None:
    path = toy_path(tmp_path)
    held.append(start(path, "--shard", "1/2", "--hold"))
    _wait_until_open(held[0])
    with (
        pytest.raises(
            StoreError,
            match=rf"being written in 2 shards \(1/2 by pid {held[0].pid}\); shard 0/3 would do some blocks again",
        ),
        open_toy(path, shard=(0, 3)),
    ):
        pass
    held[0].kill()
    held[0].communicate()
    with open_toy(path, shard=(0, 3)):
        pass


def test_a_holder_on_another_machine_is_named_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = toy_path(tmp_path)
    with open_toy(path):
        monkeypatch.setattr(files.socket, "gethostname", lambda: "here")
        machine = os.uname().nodename
        with pytest.raises(StoreError, match=rf"pid {os.getpid()} on {machine}\)"), open_toy(path):
            pass


def test_looking_at_a_lock_does_not_make_its_owner_fail(tmp_path: Path) -> None:
    """To name who holds which shard, the locks are tried for a moment; a shard that starts right then has to bear it."""
    path = toy_path(tmp_path)
    path.parent.mkdir(parents=True)
    lock = path.with_suffix(".shard-0-of-2.lock")
    with lock.open("ab") as looker:
        fcntl.flock(looker, fcntl.LOCK_SH)
        threading.Timer(0.08, fcntl.flock, (looker, fcntl.LOCK_UN)).start()
        with open_toy(path, shard=(0, 2)) as writer:
            assert writer.blocks_to_do() == [0, 2]


def test_a_shard_waits_while_another_makes_the_store(tmp_path: Path) -> None:
    path = toy_path(tmp_path)
    opened: list[list[int]] = []

    def second() -> None:
        with open_toy(path, shard=(1, 2)) as writer:
            opened.append(writer.blocks_to_do())

    path.parent.mkdir(parents=True)
    with locks.making_lock(path):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(0.3)
        assert thread.is_alive()
        assert not path.exists()
    thread.join()
    assert opened == [[1]]


def test_removing_takes_all_locks_along(tmp_path: Path) -> None:
    path = toy_path(tmp_path)
    for i in range(2):
        with open_toy(path, shard=(i, 2)) as writer:
            write_rest(writer)
    assert len(locks.lock_files(path)) == 4
    remove_store(path)
    assert list(path.parent.iterdir()) == []


def test_a_file_system_without_locks_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", broken)
    with pytest.raises(StorageError, match="Function not implemented"), open_toy(toy_path(tmp_path), shard=(0, 2)):
        pass


def test_nothing_depends_on_clocks() -> None:
    """No modification time, no wall clock: neither decides who may write or what is done."""
    for module in (embeddings, locks, files):
        assert module.__file__ is not None
        tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
        names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        assert not names & {"st_mtime", "st_mtime_ns", "st_ctime", "getmtime", "time", "monotonic", "now", "utcnow"}


def test_files_from_the_future_change_nothing(tmp_path: Path) -> None:
    path = toy_path(tmp_path)
    with open_toy(path) as writer:
        writer.write_block(1, block_result(range(4, 8)))
    for file in [*path.rglob("*"), path, path.with_suffix(".lock")]:
        os.utime(file, (4e9, 4e9) if "status" in file.parts else (0, 0))
    with open_toy(path) as writer:
        assert writer.blocks_to_do() == [0, 2]
        write_rest(writer)
    assert tree_digest(path) == tree_digest(filled(tmp_path / "straight"))


# ------------------------------------------------------------------------------------------------ workers of one process


def test_workers_write_what_they_are_given(tmp_path: Path, held: list[subprocess.Popen[str]]) -> None:
    path = toy_path(tmp_path)
    with open_toy(path, utterance_ids=toy_ids(40), frames=FRAMES) as writer:
        todo = writer.blocks_to_do()
        held += [start(path, "--attach", *todo[i::2], "--failed", 3, 17) for i in range(2)]
        for process in held:
            _finish(process)
        assert writer.blocks_to_do() == todo
        writer.refresh()
        assert writer.blocks_to_do() == []
        assert writer.store.counts == (0, 38, 2)
    whole = toy_path(tmp_path / "whole")
    with open_toy(whole, utterance_ids=toy_ids(40), frames=FRAMES) as writer:
        write(writer, writer.blocks_to_do(), {3, 17})
    assert tree_digest(path) == tree_digest(whole)


def test_what_a_killed_worker_leaves_is_cleaned_by_the_run_that_lost_it(tmp_path: Path) -> None:
    path = toy_path(tmp_path)
    with open_toy(path) as writer:
        write_rest(attach_writer(path))
        (path / "mean" / "c" / "1" / "0" / "0.0123456789abcdef.partial").write_bytes(b"half")
        (path / "status" / "c" / "2.0123456789abcdef.partial").write_bytes(b"half")
        writer.refresh()
    assert tree_digest(path) == tree_digest(filled(tmp_path / "straight"))


def test_a_shard_cleans_its_own_blocks_only(tmp_path: Path) -> None:
    path = toy_path(tmp_path)
    with open_toy(path, shard=(0, 2), frames=FRAMES) as writer:
        write_rest(writer)
    leftovers = [
        path / "mean" / "c" / "0" / "0" / "0.ab.partial",
        path / "status" / "c" / "2.ab.partial",
        path / "frames" / "first" / "000000" / "c" / "0" / ".writing-0-99",
        path / "frames" / "first" / "000000" / ".writing-zarr.json-99",
    ]
    foreign = [path / "mean" / "c" / "1" / "0" / "0.ab.partial", path / "duration_s" / "c" / "1.ab.partial"]
    (path / "mean" / "c" / "1" / "0").mkdir(parents=True)
    for file in (*leftovers, *foreign):
        file.write_bytes(b"half")
    with open_toy(path, shard=(0, 2), frames=FRAMES):
        assert not [file for file in leftovers if file.exists()]
        assert all(file.exists() for file in foreign)  # their writer may be at work
    with open_toy(path, shard=(1, 2), frames=FRAMES) as writer:
        assert not [file for file in foreign if file.exists()]
        write_rest(writer)
    assert tree_digest(path) == tree_digest(filled(tmp_path / "straight", spec=FRAMES))


def test_a_block_that_another_worker_has_finished_is_done_again_safely(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker dies after its block is whole and before it can say so; the next one is killed half-way through the same block."""
    path = toy_path(tmp_path)
    with open_toy(path) as writer:
        first, second = attach_writer(path), attach_writer(path)
        first.write_block(1, block_result(range(4, 8), failed={4, 5, 6}))
        with monkeypatch.context() as patch:
            _stop_at_write(patch, 3)
            with pytest.raises(_StopError):
                second.write_block(1, block_result(range(4, 8)))
        writer.refresh()
        assert writer.blocks_to_do() == [0, 1, 2]
        write_rest(attach_writer(path))
        write(attach_writer(path), writer.blocks_to_do(), set())
    assert tree_digest(path) == tree_digest(filled(tmp_path / "straight"))


def test_attaching_to_nothing(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="There is no store"):
        attach_writer(toy_path(tmp_path))


def test_threads_may_write_different_blocks(tmp_path: Path) -> None:
    path = toy_path(tmp_path)
    with open_toy(path, utterance_ids=toy_ids(40), frames=FRAMES) as writer:
        threads = [
            threading.Thread(target=write, args=(writer, writer.blocks_to_do()[i::3], {2, 30})) for i in range(3)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert writer.blocks_to_do() == []
    whole = toy_path(tmp_path / "whole")
    with open_toy(whole, utterance_ids=toy_ids(40), frames=FRAMES) as writer:
        write(writer, writer.blocks_to_do(), {2, 30})
    assert tree_digest(path) == tree_digest(whole)


# ------------------------------------------------------------------------------------------------ failed rows once more


def _stop_at_write(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Stop at the ``number``-th array that is assigned to, before it is."""
    assign = zarr.Array.__setitem__
    count = iter(range(10**6))

    def counted(self: object, *args: object) -> None:
        if next(count) == number:
            raise _StopError
        assign(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(zarr.Array, "__setitem__", counted)


def test_failed_rows_are_kept_unless_asked_for_again(tmp_path: Path) -> None:
    path = filled(tmp_path, failed={1, 9})
    before = tree_digest(path)
    with open_toy(path) as writer:
        assert writer.blocks_to_do() == []
        assert writer.rows_done() == 10
    with open_toy(path, retry_failed=True) as writer:
        assert writer.blocks_to_do() == [0, 2]
        assert writer.rows_done() == 8
        writer.refresh()
        assert writer.blocks_to_do() == [0, 2]
    assert tree_digest(path) == before
    with open_toy(path, retry_failed=True, shard=(1, 2)) as writer:
        assert writer.blocks_to_do() == []
    with open_toy(path, retry_failed=True) as writer:
        writer.write_block(0, block_result(range(4)))
        assert writer.blocks_to_do() == [2]
        writer.write_block(2, block_result(range(8, 10), failed={9}))  # fails again: not tried for ever
        assert writer.blocks_to_do() == []
        assert writer.rows_done() == 10
    assert tree_digest(path) == tree_digest(filled(tmp_path / "straight", failed={9}))


@pytest.mark.parametrize("number", range(10))
@pytest.mark.parametrize("again", [False, True])
def test_stopped_while_a_block_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, again: bool
) -> None:
    """Before its first file changes the block is to do again; whichever run comes next, it ends like a clean one.

    Write 0 resets the status of block 1, five are its pooled values and reasons, two its frames, then comes its status.
    """
    path = filled(tmp_path / "stopped", spec=FRAMES, failed={4, 6, 9})
    with monkeypatch.context() as patch:
        _stop_at_write(patch, number)
        with pytest.raises(_StopError), open_toy(path, frames=FRAMES, retry_failed=True) as writer:
            write_rest(writer, failed={9})
    assert verify_store(path) == []
    todo = open_store(path, complete=False).counts[0]
    assert todo == (0 if number in {0, 9} else 4)
    with open_toy(path, frames=FRAMES, retry_failed=again) as writer:
        write_rest(writer, failed={9})
    if number == 0 and not again:
        assert tree_digest(path) == tree_digest(filled(tmp_path / "old", spec=FRAMES, failed={4, 6, 9}))
    else:
        assert tree_digest(path) == tree_digest(filled(tmp_path / "straight", spec=FRAMES, failed={9}))


def test_retrying_is_refused_in_another_environment(tmp_path: Path) -> None:
    """A finished store may be opened by other library versions, but nothing may be written into it by them."""
    path = filled(tmp_path, failed={1})
    here = make_provenance(versions={"torch": "2.14", "numpy": "2.4"})
    with open_toy(path, provenance=here):
        pass
    with (
        pytest.raises(ProvenanceError, match=r"versions: the store has torch 2\.13"),
        open_toy(path, provenance=here, retry_failed=True),
    ):
        pass


def test_retrying_where_nothing_failed(tmp_path: Path) -> None:
    path = filled(tmp_path)
    with open_toy(path, provenance=make_provenance(device="cuda"), retry_failed=True) as writer:
        assert writer.blocks_to_do() == []


# ------------------------------------------------------------------------------------------------ kill -9


def _kill_at_random(path: Path, moments: random.Random, arguments: list[list[object]], kills: int) -> int:
    """Start the processes, kill one of them at a random moment and start it again, ``kills`` times; how many were cut off."""
    running = [start(path, *one) for one in arguments]
    cut = 0
    for _ in range(kills):
        index = moments.randrange(len(running))
        victim = running[index]
        if moments.random() < 0.8:
            assert victim.stdout is not None
            victim.stdout.readline()  # at work: the rest of the moment is drawn from its few hundred milliseconds
        time.sleep(moments.uniform(0.0, 0.25))
        if victim.poll() is None:
            victim.send_signal(signal.SIGKILL)
            cut += 1
        victim.communicate()
        running[index] = start(path, *arguments[index])
    for process in running:
        _finish(process)
    return cut


@pytest.mark.slow
@pytest.mark.parametrize("shards", [1, 3])
def test_killed_writers_end_with_the_same_bytes(tmp_path: Path, shards: int) -> None:
    ids, failed = 160, [3, 50, 51, 52, 53, 99]  # 40 blocks
    whole = toy_path(tmp_path / "whole")
    with open_toy(whole, utterance_ids=toy_ids(ids), frames=FRAMES) as writer:
        write(writer, writer.blocks_to_do(), set(failed))
    path = toy_path(tmp_path / "killed")
    common = ["--ids", ids, "--frames", "--failed", *failed, "--pause", 0.03]
    arguments = [[*common, *(["--shard", f"{i}/{shards}"] if shards > 1 else [])] for i in range(shards)]
    assert _kill_at_random(path, random.Random(shards), arguments, 8) >= 3
    assert verify_store(path) == []
    assert tree_digest(path) == tree_digest(whole)
    assert store_digest(path) == store_digest(whole)


@pytest.mark.slow
def test_killed_retries_end_with_the_same_bytes(tmp_path: Path) -> None:
    ids = 120
    path = toy_path(tmp_path / "killed")
    with open_toy(path, utterance_ids=toy_ids(ids), frames=FRAMES) as writer:
        write(writer, writer.blocks_to_do(), set(range(0, ids, 3)))  # every block has failures
    arguments: list[list[object]] = [["--ids", ids, "--frames", "--retry-failed", "--failed", 7, "--pause", 0.03]]
    assert _kill_at_random(path, random.Random(5), arguments, 6) >= 3
    whole = toy_path(tmp_path / "whole")
    with open_toy(whole, utterance_ids=toy_ids(ids), frames=FRAMES) as writer:
        write(writer, writer.blocks_to_do(), {7})
    assert tree_digest(path) == tree_digest(whole)


def test_a_killed_holder_leaves_no_lock(tmp_path: Path, held: list[subprocess.Popen[str]]) -> None:
    path = toy_path(tmp_path)
    held.append(start(path, "--hold"))
    _wait_until_open(held[0])
    held[0].kill()
    held[0].communicate()
    assert files.lock_holder(path.with_suffix(".lock")) == ""
    with ExitStack() as stack:
        writer = stack.enter_context(open_toy(path))
        assert files.lock_holder(path.with_suffix(".lock")) == str(os.getpid())
        write_rest(writer)
    assert np.all(open_store(path).status != FAILED)
    assert open_store(path).utterance_ids == IDS
