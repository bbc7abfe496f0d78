"""What all layouts need of a folder: its recordings, a subfolder by name, a table as text. Standard library only.

Names are compared without regard to case, because copies of a corpus that went through another file system carry ``.WAV``
or ``audiowav``. Files whose name starts with a dot are no recordings: macOS leaves ``._x.wav`` beside every ``x.wav``.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from pipelines.corpora.layouts import Finding
from pipelines.errors import DataRootError, ManifestError

__all__ = [
    "LFS_MAGIC",
    "add_unparsed",
    "by_id",
    "file_named",
    "has_match",
    "read_table",
    "read_text",
    "recordings",
    "relative",
    "sex_of",
    "subfolder",
    "subfolders",
]

LFS_MAGIC = b"version https://git-lfs"
"""First bytes of the text file that Git leaves in place of a large file until ``git lfs pull``."""

_SUFFIXES = (".wav", ".flac")
_LOOK_AT_MOST = 2000  # names that has_match reads before it gives up


def recordings(folder: Path, *, deep: bool = False) -> list[Path]:
    """WAV and FLAC files in a folder (with ``deep``, in everything below it), sorted by path."""
    found = []
    for current, folders, names in os.walk(folder, onerror=_raise):
        folders[:] = [name for name in folders if deep and not name.startswith(".")]
        found += [Path(current, name) for name in names if _is_recording(name)]
    return sorted(found, key=lambda path: path.as_posix())


def subfolders(folder: Path) -> list[Path]:
    """Folders in a folder that are not hidden, sorted by name."""
    with os.scandir(folder) as entries:
        return sorted(Path(entry.path) for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def subfolder(folder: Path, *names: str) -> Path | None:
    """The folder ``folder/names[0]/names[1]/…``, in any case; None if there is none."""
    return _descend(folder, names, last_is_file=False)


def file_named(folder: Path, *names: str) -> Path | None:
    """The file ``folder/names[0]/…/names[-1]``, in any case; None if there is none."""
    return _descend(folder, names, last_is_file=True)


def has_match(folder: Path | None, pattern: re.Pattern[str]) -> bool:
    """Whether the folder holds a recording whose name without suffix matches the whole pattern. Reads names only."""
    if folder is None:
        return False
    with os.scandir(folder) as entries:
        for count, entry in enumerate(entries):
            if _is_recording(entry.name) and pattern.fullmatch(Path(entry.name).stem):
                return True
            if count >= _LOOK_AT_MOST:
                break
    return False


def relative(path: Path, root: Path) -> str:
    """A path as a manifest writes it: relative to the root, forward slashes."""
    return path.relative_to(root).as_posix()


def by_id(rows: Iterable[Mapping[str, object]]) -> list[Mapping[str, object]]:
    """Rows sorted by utterance id, as a listing promises."""
    return sorted(rows, key=lambda row: str(row["utterance_id"]))


def sex_of(word: str) -> str:
    """``female``, ``male`` or empty, from any spelling of it."""
    return {"f": "female", "female": "female", "m": "male", "male": "male"}.get(word.strip().lower(), "")


def add_unparsed(findings: list[Finding], root: Path, paths: Iterable[Path], expected: str) -> None:
    """Report recordings whose name does not follow the corpus' scheme; they are not in the manifest."""
    names = [relative(path, root) for path in paths]
    if names:
        findings.append(
            Finding(
                "warning",
                f"{len(names)} recording(s) are left out, because their names do not follow the scheme {expected}.",
                tuple(names[:5]),
            )
        )


def read_text(path: Path, *, encoding: str = "utf-8-sig") -> str:
    """A text file; what is not in the given encoding is read as Windows-1252, then Latin-1.

    Raises:
        DataRootError: it is a Git LFS pointer.
    """
    content = path.read_bytes()
    if content.startswith(LFS_MAGIC):
        raise DataRootError(
            f"{path} is a Git LFS pointer ({len(content)} bytes of text), not the file itself. Fetch the files with"
            " `git lfs pull` in the corpus folder."
        )
    for attempt in (encoding, "cp1252"):
        try:
            return content.decode(attempt)
        except UnicodeDecodeError:
            continue
    return content.decode("latin-1")


def read_table(path: Path, columns: Sequence[str], *, delimiter: str = ",") -> list[dict[str, str]]:
    """Rows of a table with a header; names and values lose padding, empty lines are skipped.

    Args:
        path: the table.
        columns: names that must be there; they are found in any case and returned in the spelling asked for.
        delimiter: between the fields.

    Raises:
        ManifestError: a column is missing.
        DataRootError: the file is a Git LFS pointer.
    """
    reader = csv.reader(io.StringIO(read_text(path), newline=""), delimiter=delimiter)
    try:
        header, *lines = [[field.strip() for field in fields] for fields in reader] or [[]]
    except csv.Error as error:
        raise ManifestError(f"{path}, line {reader.line_num}, cannot be read as a table: {error}.") from error
    known = {name.lower(): name for name in columns}
    names = [known.get(name.lower(), name) for name in header]
    missing = [name for name in columns if name not in names]
    if missing:
        raise ManifestError(
            f"{path} lacks the column(s) {', '.join(missing)}; found: {', '.join(header) or 'none'}. It is of another release, or"
            " was changed; take the official one."
        )
    rows = []
    for values in lines:
        if any(values):
            rows.append(dict(zip(names, values + [""] * (len(names) - len(values)), strict=False)))
    return rows


def _is_recording(name: str) -> bool:
    return name.lower().endswith(_SUFFIXES) and not name.startswith(".")


def _descend(folder: Path, names: Sequence[str], *, last_is_file: bool) -> Path | None:
    current = folder
    for position, name in enumerate(names):
        want_file = last_is_file and position == len(names) - 1
        chosen = _entry(current, name, want_file=want_file)
        if chosen is None:
            return None
        current = chosen
    return current


def _entry(folder: Path, name: str, *, want_file: bool) -> Path | None:
    exact = folder / name
    if exact.is_file() if want_file else exact.is_dir():
        return exact
    if not folder.is_dir():
        return None
    with os.scandir(folder) as entries:
        near = sorted(
            entry.path
            for entry in entries
            if entry.name.lower() == name.lower() and (entry.is_file() if want_file else entry.is_dir())
        )
    return Path(near[0]) if near else None


def _raise(error: OSError) -> None:
    """os.walk hides folders that may not be read; a corpus with a hole is worse than an error."""
    raise error
