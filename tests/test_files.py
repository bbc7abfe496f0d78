from __future__ import annotations

import errno
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.errors import StorageError
from pipelines.files import lock_holder, take_lock, write_atomically


def test_text_and_bytes_and_new_folders(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a" / "b.txt", "é\n", option="--runs-dir")
    write_atomically(tmp_path / "a" / "b.bin", b"\x00", option="--runs-dir")
    assert (tmp_path / "a" / "b.txt").read_bytes() == "é\n".encode()
    assert (tmp_path / "a" / "b.bin").read_bytes() == b"\x00"


def test_others_may_read_what_the_umask_lets_them(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        write_atomically(tmp_path / "a", "", option="--runs-dir")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o644


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "table.csv"
    write_atomically(path, "old", option="--runs-dir")

    def full(source: object, target: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(StorageError, match=r"cannot be written: No space left on device.*with --runs-dir"):
        write_atomically(path, "new", option="--runs-dir")
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["table.csv"]


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        write_atomically(tmp_path / "runs" / "table.csv", "x", option="--runs-dir")


def test_a_second_taker_learns_who_holds_the_lock(tmp_path: Path) -> None:
    handle, other = take_lock(tmp_path / "lock")
    assert other == ""
    second, holder = take_lock(tmp_path / "lock")
    assert holder == str(os.getpid())
    second.close()
    handle.close()
    third, other = take_lock(tmp_path / "lock")
    assert other == ""
    third.close()


def test_locks_may_be_shared(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    alone, _ = take_lock(lock)
    refused, holder = take_lock(lock, shared=True)
    assert holder == str(os.getpid())
    refused.close()
    alone.close()
    first, other = take_lock(lock, shared=True)
    second, another = take_lock(lock, shared=True)
    assert other == another == ""
    refused, holder = take_lock(lock)
    assert holder
    for handle in (first, second, refused):
        handle.close()
    alone, other = take_lock(lock)
    assert other == ""
    alone.close()


def test_who_holds_a_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = tmp_path / "lock"
    assert lock_holder(lock) == ""
    handle, _ = take_lock(lock)
    assert lock_holder(lock) == str(os.getpid())
    machine = socket.gethostname()
    monkeypatch.setattr(socket, "gethostname", lambda: "another")
    assert lock_holder(lock) == f"{os.getpid()} on {machine}"
    handle.close()
    assert lock_holder(lock) == ""


def test_locks_die_with_their_process(tmp_path: Path) -> None:
    code = "import sys, pathlib, pipelines.files as f\nheld = f.take_lock(pathlib.Path(sys.argv[1]))\nprint('held', flush=True)"
    process = subprocess.Popen(
        [sys.executable, "-c", f"{code}\nsys.stdin.read()", str(tmp_path / "lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).resolve().parents[1],
    )
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "held"
    assert lock_holder(tmp_path / "lock") == str(process.pid)
    process.kill()
    process.communicate()
    assert lock_holder(tmp_path / "lock") == ""
