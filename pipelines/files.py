"""Small files written whole or not at all, and locks that die with their process.

Locks are the system's (``flock``): nothing has to be tidied up after a crash, and nothing depends on clocks. On NFS they hold
between machines unless the folder is mounted with ``nolock`` or ``local_lock``; Lustre needs the mount option ``flock``. Object
storage has none.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from pathlib import Path
from typing import BinaryIO

from pipelines.errors import StorageError
from pipelines.locations import Location, ObjectPath

__all__ = ["TEMPORARY_PREFIX", "lock_holder", "take_lock", "write_atomically"]

TEMPORARY_PREFIX = ".writing-"
"""What the names of unfinished files begin with; a killed process may leave one, to be removed by the next."""


def write_atomically(path: Location, content: bytes | str, *, option: str) -> None:
    """Write a file under a temporary name and rename it: readers see the old or the new one, never half of it.

    Args:
        path: the file; its folder is made if need be. On object storage, the object, which is put whole.
        content: bytes, or text to be written as UTF-8.
        option: the command-line option that chooses the folder, for the message.

    Raises:
        StorageError: the disk is full or cannot be written; object storage cannot be reached or refuses.
    """
    data = content.encode() if isinstance(content, str) else content
    if isinstance(path, ObjectPath):
        path.write_bytes(data)
        return
    # Not by tempfile: its files are for their owner's eyes only, and caches are shared.
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{path.name}-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise StorageError(
            f"{path} cannot be written: {error.strerror or error}. Whatever was finished is kept; free disk space or choose"
            f" another folder with {option}, and run the same command again."
        ) from error


def take_lock(lock: Path, *, shared: bool = False) -> tuple[BinaryIO, str]:
    """Lock a file; the system lets go of the lock when the handle is closed or the process ends, however it ends.

    Args:
        lock: the lock file; made if need be.
        shared: beside others that share it, rather than alone.

    Returns:
        The handle, to be closed by the caller, and an empty text; or, where another process holds the lock, what the last process
        that had it alone wrote into it: its process id (and machine, if another one), or ``unknown``.

    Raises:
        OSError: the file cannot be opened or the file system knows no locks.
    """
    handle = lock.open("a+b", buffering=0)
    try:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        # A removal takes the lock file with it: whoever locked the file of before has locked nothing.
        held = lock.exists() and os.path.samestat(lock.stat(), os.fstat(handle.fileno()))
    except BlockingIOError:
        held = False
    except OSError:
        handle.close()
        raise
    if not held:
        handle.seek(0)
        return handle, _owner(handle.read().decode(errors="replace"))
    if not shared:
        try:
            handle.truncate(0)
            handle.write(f"{os.getpid()}\n{socket.gethostname()}\n".encode())
        except OSError:
            handle.close()
            raise
    return handle, ""


def lock_holder(lock: Path) -> str:
    """Who holds a lock alone, as :func:`take_lock` says it; empty if nobody does.

    Raises:
        OSError: the file cannot be opened or the file system knows no locks.
    """
    try:
        with lock.open("rb") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return _owner(handle.read().decode(errors="replace"))
    except FileNotFoundError:
        pass  # removed with its store
    return ""


def _owner(content: str) -> str:
    """Who wrote into a lock file, for a message."""
    pid, _, machine = content.strip().partition("\n")
    return f"{pid} on {machine}" if machine and machine != socket.gethostname() else pid or "unknown"
