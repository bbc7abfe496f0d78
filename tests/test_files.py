from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from pipelines.errors import StorageError
from pipelines.files import take_lock, write_atomically


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
