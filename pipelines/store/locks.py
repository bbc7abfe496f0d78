"""Who may write a store: one process alone, or several that each write blocks of their own.

Beside ``<condition>.zarr`` lie lock files. A process that writes the whole store holds ``<condition>.lock`` alone. A process
that writes shard i of n (every n-th block, from block i) shares that lock with other shards, so that it excludes whoever writes
the whole, and holds ``<condition>.shard-<i>-of-<n>.lock`` alone, so that nobody does the same shard twice. Shards of another n
overlap and are refused. While a store is made, ``<condition>.making.lock`` is held, and other shards wait. See
:mod:`pipelines.files` for what happens to a lock when a process dies (the system releases it at once) and for network file systems.

Object storage has no locks: nothing keeps two processes from doing the same blocks twice there. It costs time and nothing else,
since both write the same bytes and every object is put whole.
"""

from __future__ import annotations

import fcntl
import glob
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pipelines.errors import ConfigError, StoreError
from pipelines.files import lock_holder, take_lock
from pipelines.locations import Location, ObjectPath, storage_errors

__all__ = ["Shard", "lock_files", "making_lock", "store_lock"]

Shard = tuple[int, int]
"""(i, n): every n-th block, from block i."""

_ATTEMPTS = 4


@contextmanager
def store_lock(path: Location, shard: Shard | None = None) -> Iterator[None]:
    """Hold the right to write a store, or one shard of it.

    Args:
        path: the ``.zarr`` folder; its own folder must be there.
        shard: (i, n), or None for the whole store.

    Raises:
        ConfigError: not 0 <= i < n.
        StoreError: another process holds it; the message says which.
        StorageError: the file system has no locks or is full.
    """
    if shard is not None and not 0 <= shard[0] < shard[1]:
        raise ConfigError(
            f"Shard {shard[0]}/{shard[1]} does not exist: of n shards, the first is 0/n and the last n-1/n."
        )
    if isinstance(path, ObjectPath):
        yield
        return
    with ExitStack() as held:
        _take_whole(path, held, shard)
        if shard is not None:
            _take_shard(path, held, shard)
            _refuse_other_division(path, shard)
        yield


@contextmanager
def making_lock(path: Location) -> Iterator[None]:
    """Wait until no other shard makes the store, and keep others from it."""
    if isinstance(path, ObjectPath):
        yield
        return
    with storage_errors(path, doing="written"):
        handle = path.with_suffix(".making.lock").open("ab")
    with handle:
        with storage_errors(path, doing="written"):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def lock_files(path: Path) -> list[Path]:
    """All lock files of a store; to be removed by who holds it whole."""
    names = {path.with_suffix(".lock"), path.with_suffix(".making.lock"), *_shard_locks(path)}
    return sorted(file for file in names if file.exists())


def _take_whole(path: Path, held: ExitStack, shard: Shard | None) -> None:
    """The lock of the whole store: alone, or shared among shards."""
    with storage_errors(path, doing="written"):
        handle, other = take_lock(path.with_suffix(".lock"), shared=shard is not None)
    held.enter_context(handle)
    if not other:
        return
    shards = [f"{i}/{n} (pid {holder})" for (i, n), holder in _running_shards(path)]
    if shards:
        raise StoreError(
            f"Other processes are writing {path}, each its shard: {', '.join(shards)}. Wait for them, or stop them and run the"
            " command again."
        )
    raise StoreError(
        f"Another process (pid {other}) is writing {path}. Wait for it, or stop it and run the command again."
        + (
            " It writes the whole store; to divide the work, start every process with --shard."
            if shard is not None
            else ""
        )
    )


def _take_shard(path: Path, held: ExitStack, shard: Shard) -> None:
    for _ in range(_ATTEMPTS):
        with storage_errors(path, doing="written"):
            handle, other = take_lock(_shard_lock(path, shard))
        if not other:
            held.enter_context(handle)
            return
        handle.close()
        time.sleep(0.05)  # somebody may just have looked whether the lock is held
    raise StoreError(
        f"Shard {shard[0]}/{shard[1]} of {path} is being written by another process (pid {other}). Give every process its own"
        " number, or wait for it."
    )


def _refuse_other_division(path: Path, shard: Shard) -> None:
    """Shards of another n would overlap with this one."""
    for (i, n), holder in _running_shards(path, but=shard[1]):
        raise StoreError(
            f"{path} is being written in {n} shards ({i}/{n} by pid {holder}); shard {shard[0]}/{shard[1]} would do some blocks"
            " again. Use the same number of shards in every process, or wait for them."
        )


def _running_shards(path: Path, *, but: int | None = None) -> list[tuple[Shard, str]]:
    """Shards that are being written, and by whom; not those of ``but`` shards."""
    found = []
    for lock in _shard_locks(path):
        numbers = re.fullmatch(r".*\.shard-(\d+)-of-(\d+)\.lock", lock.name)
        if numbers is None or int(numbers[2]) == but:
            continue
        with storage_errors(path, doing="read"):
            holder = lock_holder(lock)
        if holder:
            found.append(((int(numbers[1]), int(numbers[2])), holder))
    return sorted(found)


def _shard_lock(path: Path, shard: Shard) -> Path:
    return path.with_suffix(f".shard-{shard[0]}-of-{shard[1]}.lock")


def _shard_locks(path: Path) -> list[Path]:
    return sorted(path.parent.glob(f"{glob.escape(path.stem)}.shard-*-of-*.lock"))
