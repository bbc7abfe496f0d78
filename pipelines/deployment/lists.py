"""Which recordings are meant: files, folders, patterns, and CSV lists of files with their transcripts."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.errors import ConfigError
from pipelines.extraction.single_files import find_recordings

__all__ = ["Wanted", "read_wanted"]

_PATH, _TRANSCRIPT = "path", "transcript"


@dataclass(frozen=True)
class Wanted:
    """A recording to be predicted.

    Attributes:
        path: of it.
        transcript: what was said, if a list told; else empty.
    """

    path: Path
    transcript: str = ""


def read_wanted(given: Sequence[str]) -> list[Wanted]:
    """Recordings in the order given, each once.

    Args:
        given: a recording, a folder, a pattern, or a CSV file whose column ``path`` names recordings relative to the list's folder
            and whose column ``transcript``, if there is one, tells what was said. UTF-8, with or without a byte-order mark, any
            line ends, separated by commas.

    Raises:
        ConfigError: a list that is no text, has no column ``path``, or is empty.
        AudioError: a folder or a pattern without recordings.
    """
    found: dict[Path, Wanted] = {}
    for entry in given:
        path = Path(entry)
        listed = path.suffix.lower() == ".csv" and not path.is_dir()
        for one in _read_list(path) if listed else map(Wanted, find_recordings([entry])):
            found.setdefault(one.path, one)
    return list(found.values())


def _read_list(path: Path) -> list[Wanted]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"The list {path} cannot be read: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"The list {path} is not UTF-8 (byte {error.start}). Save it as UTF-8, for instance with `iconv -f latin1 -t utf-8`."
        ) from error
    rows = csv.DictReader(io.StringIO(text, newline=""))  # not splitlines, which knows more ends of lines than CSV does
    try:
        if _PATH not in (rows.fieldnames or ()):
            there = ", ".join(rows.fieldnames or ()) or "none"
            raise ConfigError(
                f"The list {path} has no column {_PATH!r}; its columns are: {there}. Name the recordings in {_PATH!r}, with commas"
                " between the columns."
            )
        found = [Wanted(path.parent / row[_PATH], row.get(_TRANSCRIPT) or "") for row in rows if row[_PATH]]
    except csv.Error as error:
        raise ConfigError(f"The list {path} is no CSV (line {rows.line_num}: {error}).") from error
    if not found:
        raise ConfigError(f"The list {path} names no recording.")
    return found
