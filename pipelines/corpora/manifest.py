"""The manifest: one row per utterance of a corpus, the contract between a corpus and everything else.

Columns (only the first three are required; the others are present and empty where unknown):

================ ====== =========================================================================================
column           kind   meaning
================ ====== =========================================================================================
utterance_id     text   unique in the corpus
path             text   recording, relative to the corpus root, with forward slashes (a user's own may be absolute)
speaker          text   who speaks
sex              text   ``female``, ``male`` or empty
language         text   ISO 639-1
session          text   recording session, where the corpus has sessions
emotion          text   word of the vocabulary (``cards.VOCABULARY``), empty for no label
emotion_raw      text   the label as the corpus writes it
arousal          number on the corpus' own scale (also called activation)
valence          number on the corpus' own scale
dominance        number on the corpus' own scale
transcript       text   what is said
duration_s       number seconds
official_split   text   ``train``, ``development``, ``test`` … where the corpus comes with a split
================ ====== =========================================================================================

Further columns are kept, as text. What several raters said (``emotion_votes``, ``arousal_ratings`` …, see
:mod:`pipelines.corpora.raters`) is checked and brought into one form where it is there.

The *digest* is the sha256 of the canonical content (all columns in a fixed order, one
text form per number); it does not depend on where the corpus lies, on the file format or on line ends. Everything made from
a manifest records it.
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
import re
import shlex
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipelines.corpora.cards import canonical_emotion
from pipelines.corpora.raters import RATER_COLUMNS, VOTES, format_ratings, format_votes, parse_ratings, parse_votes
from pipelines.errors import ManifestError
from pipelines.files import write_atomically
from pipelines.locations import Location

__all__ = [
    "COLUMNS",
    "NUMBER_COLUMNS",
    "REQUIRED_COLUMNS",
    "Manifest",
    "manifest_from_rows",
    "read_manifest",
    "write_manifest",
]

COLUMNS: tuple[str, ...] = (
    "utterance_id",
    "path",
    "speaker",
    "sex",
    "language",
    "session",
    "emotion",
    "emotion_raw",
    "arousal",
    "valence",
    "dominance",
    "transcript",
    "duration_s",
    "official_split",
)
REQUIRED_COLUMNS: tuple[str, ...] = COLUMNS[:3]
NUMBER_COLUMNS: tuple[str, ...] = ("arousal", "valence", "dominance", "duration_s")

_MAX_ID_LENGTH = 200
_HEADER_BYTES = 2**16
_SPREADSHEET_ERROR = re.compile(r"#(N/A|NAME\?|REF!|VALUE!|DIV/0!|NUM!|NULL!|NV|BEZUG!|WERT!)|\d(\.\d+)?E\+\d+")


@dataclass(frozen=True)
class Manifest:
    """A checked manifest.

    Attributes:
        corpus: name of the corpus.
        table: one row per utterance; the columns of the module docstring, in that order, then further ones.
        root: folder that ``path`` is relative to; None where recordings are not needed.
    """

    corpus: str
    table: pd.DataFrame = field(repr=False)
    root: Path | None = None

    def __len__(self) -> int:
        return len(self.table)

    @cached_property
    def digest(self) -> str:
        """sha256 of the canonical content, as lower-case hex."""
        digest = hashlib.sha256()
        for text in _canonical_csv(self.table):
            digest.update(text.encode())
        return digest.hexdigest()

    @property
    def utterance_ids(self) -> list[str]:
        """Ids in manifest order."""
        return list(self.table["utterance_id"])

    def audio_paths(self, rows: range | None = None) -> list[Path]:
        """Recordings in manifest order; of some rows only, if given.

        Raises:
            ManifestError: the manifest has no root.
        """
        if self.root is None:
            raise ManifestError(f"Corpus {self.corpus!r} has no folder of recordings. Name it with `--data-root DIR`.")
        paths = self.table["path"] if rows is None else self.table["path"].iloc[rows.start : rows.stop : rows.step]
        return [self.root / path for path in paths]


def manifest_from_rows(
    corpus: str, rows: Sequence[Mapping[str, object]], *, root: Path | None = None, origin: str = ""
) -> Manifest:
    """Build and check a manifest from rows (column to value; missing columns are empty).

    Args:
        corpus: name of the corpus.
        rows: one mapping per utterance.
        root: folder that paths are relative to.
        origin: where the rows came from, for messages.

    Raises:
        ManifestError: there is no row, or the rows break the contract.
    """
    if not rows:
        raise ManifestError(f"{origin or f'corpus {corpus!r}'} lists no utterance.")
    return Manifest(corpus, _checked(pd.DataFrame(list(rows), dtype=object), origin or f"corpus {corpus!r}"), root)


def read_manifest(path: Path, *, corpus: str = "", root: Path | None = None) -> Manifest:
    """Read a manifest from CSV or Parquet.

    Args:
        path: the file.
        corpus: name; the file's stem unless given.
        root: folder that ``path`` entries are relative to; the file's own folder unless given.

    Raises:
        ManifestError: not readable as a table, a required column is missing, ids are missing or duplicate, or a number column
            holds something else.
    """
    if not path.is_file():
        raise ManifestError(f"There is no manifest at {path}. Check the path; it must be a .csv or .parquet file.")
    try:
        table = pd.read_parquet(path) if path.suffix.lower() in {".parquet", ".pq"} else _read_csv(path)
    except UnicodeDecodeError as error:
        with path.open("rb") as handle:
            written = "utf-16" if handle.read(2) in {b"\xff\xfe", b"\xfe\xff"} else "latin1"
        raise ManifestError(
            f"{path} is not UTF-8 (byte {error.start}). Save it as 'CSV UTF-8', or convert it:"
            f" `iconv -f {written} -t utf-8 {shlex.quote(path.name)} > new.csv`."
        ) from error
    except pd.errors.EmptyDataError:
        raise ManifestError(f"{path} is empty. A manifest needs a header and one row per utterance.") from None
    except pd.errors.ParserWarning:
        raise ManifestError(
            f"{path} has more fields in its rows than columns in its header. Put text that holds commas into quotation marks, and"
            " give every column a name."
        ) from None
    except (ValueError, OSError) as error:
        raise ManifestError(f"{path} cannot be read as a table: {str(error).strip().rstrip('.')}.") from error
    name = corpus or path.stem
    return Manifest(name, _checked(table, str(path)), root if root is not None else path.resolve().parent)


def _read_csv(path: Path) -> pd.DataFrame:
    """A CSV as text, also as spreadsheets write it: a mark at its start, semicolons, empty rows and columns."""
    delimiter, first = _delimiter(path)
    with warnings.catch_warnings():
        # Rows with more fields than the header: pandas would take the first column for an index and shift all others.
        warnings.simplefilter("error", category=pd.errors.ParserWarning)
        # Everything as text, and only the empty field is missing: a speaker may be called "NA" or "007".
        table = pd.read_csv(
            path,
            sep=delimiter,
            skiprows=first,
            dtype=str,
            index_col=False,
            keep_default_na=False,
            na_values=[""],
            encoding="utf-8-sig",
            skipinitialspace=True,
        )
    unnamed = [name for name in table.columns if str(name).startswith("Unnamed: ") and table[name].isna().all()]
    table = table.drop(columns=unnamed).dropna(how="all").reset_index(drop=True)
    if delimiter == ";":  # the decimal point is a comma where the comma cannot separate fields
        for name in set(NUMBER_COLUMNS) & set(table.columns):
            table[name] = table[name].str.replace(r"^\s*([+-]?\d+),(\d+)\s*$", r"\1.\2", regex=True)
    return table


def _delimiter(path: Path) -> tuple[str, int]:
    """What separates the fields of a CSV, told from its header, and the lines before the header."""
    with path.open("rb") as handle:
        start = handle.read(_HEADER_BYTES).decode("utf-8-sig", errors="replace")
    header = start.splitlines()[0] if start else ""
    if announced := re.fullmatch(r"\"?sep=(.)\"?[,;]*", header.strip(" "), re.IGNORECASE):  # Excel's own line
        return announced[1], 1
    bare = re.sub(r'"[^"]*"', "", header)
    if "," in bare:
        return ",", 0
    return max(",;\t", key=bare.count), 0


def write_manifest(manifest: Manifest, path: Location) -> None:
    """Write a manifest in canonical form (CSV, UTF-8); the name appears only when the file is whole.

    Raises:
        StorageError: the disk is full or the folder cannot be written.
    """
    write_atomically(path, "".join(_canonical_csv(manifest.table)), option="--cache-dir")


def _checked(table: pd.DataFrame, origin: str) -> pd.DataFrame:
    """Check a table against the contract and bring it into canonical column order and types."""
    table = table.rename(columns={name: str(name).strip() for name in table.columns})
    # "Speaker" is the column speaker, unless that is there as well.
    capitals = {name: name.lower() for name in table.columns if name not in COLUMNS and name.lower() in COLUMNS}
    table = table.rename(columns={name: lower for name, lower in capitals.items() if lower not in table.columns})
    # pandas has already renamed the second of two equal names, to "speaker.1".
    names = [re.sub(r"\.\d+$", "", name) for name in table.columns]
    if twice := [name for name in _duplicates(names) if name in COLUMNS]:
        raise ManifestError(f"{origin} has more than one column {', '.join(twice)}. Rename or remove the others.")
    missing = [name for name in REQUIRED_COLUMNS if name not in table.columns]
    if missing:
        found = ", ".join(map(str, table.columns)) or "none"
        separator = (
            " The columns look separated by something else than commas, semicolons or tabs."
            if len(table.columns) == 1
            else ""
        )
        raise ManifestError(
            f"{origin} lacks the column{'s' if len(missing) > 1 else ''} {', '.join(missing)}. A manifest needs at least"
            f" {', '.join(REQUIRED_COLUMNS)} (and emotion, to train on it); found: {found}.{separator}"
        )
    if table.empty:
        raise ManifestError(f"{origin} lists no utterance.")
    result: dict[str, Any] = {}
    further = sorted(str(name) for name in table.columns if name not in COLUMNS)
    for name in (*COLUMNS, *further):
        column = table[name] if name in table.columns else pd.Series([None] * len(table))
        if name in NUMBER_COLUMNS:
            result[name] = np.array(_numbers(column, name, origin))
            continue
        values = [_text(value) for value in column]
        _check_unicode(values, name, origin)
        if name in RATER_COLUMNS:
            # As with emotions: labels of the user's own are brought into the vocabulary, those of a corpus are left alone.
            spelled = str if "emotion_raw" in table.columns else canonical_emotion
            values = [
                _answers(value, name, f"{origin}, row {row}", spelled) for row, value in enumerate(values, start=1)
            ]
        result[name] = values if name in {*REQUIRED_COLUMNS, "emotion", "emotion_raw"} else _array(name, values)
    if "emotion" in table.columns and "emotion_raw" not in table.columns:
        result["emotion_raw"] = result["emotion"]
        result["emotion"] = [canonical_emotion(label) for label in result["emotion_raw"]]
    _check_required(result, origin)
    return pd.DataFrame({name: _array(name, result.pop(name)) for name in list(result)})


def _array(name: str, values: Any) -> Any:
    """A column; text as pandas' strings, which take a third of the memory of a list of Python's."""
    return np.asarray(values, dtype=np.float64) if name in NUMBER_COLUMNS else pd.array(values, dtype="str")


def _text(value: Any) -> str:
    """A cell as text; missing becomes empty, whole floats lose their point (speakers read from Parquet as 3.0)."""
    if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    return str(value).strip().replace("\r\n", " ").replace("\n", " ").replace("\r", " ")


def _numbers(column: pd.Series, name: str, origin: str) -> list[float]:
    """A number column; empty cells become NaN."""
    numbers = []
    for row, value in enumerate(column):
        text = _text(value)
        try:
            number = float(text) if text else math.nan
            if math.isinf(number) or "_" in text:  # float() takes "1_000" for a number
                raise ValueError
            numbers.append(number)
        except ValueError:
            raise ManifestError(
                f"{origin}, row {row + 1}: {name} is {value!r}, expected a number with a decimal point, or nothing."
            ) from None
    return numbers


def _answers(text: str, name: str, where: str, spelled: Callable[[str], str]) -> str:
    """A cell of what raters said, in its one form."""
    try:
        if name != VOTES:
            return format_ratings(parse_ratings(text))
        votes: dict[str, float] = {}
        for emotion, number in parse_votes(text).items():
            votes[spelled(emotion)] = votes.get(spelled(emotion), 0.0) + number
        return format_votes(votes)
    except ValueError:
        form = (
            "emotions and how many raters named each, such as 'anger:3;neutral:1'"
            if name == VOTES
            else "one number per rater, such as '4;4;5'"
        )
        raise ManifestError(f"{where}: {name} is {text!r}, expected {form}, or nothing.") from None


def _check_unicode(values: Sequence[str], name: str, origin: str) -> None:
    """File names that are not UTF-8 reach Python as half surrogates, which cannot be written down."""
    try:
        "".join(values).encode()
    except UnicodeEncodeError:
        row = next(row for row, value in enumerate(values) if value.encode("utf-8", "ignore").decode() != value)
        raise ManifestError(
            f"{origin}, row {row + 1}: {name} {values[row]!a} is not valid UTF-8. Rename the files:"
            " `convmv -f latin1 -t utf-8 --notest -r FOLDER`."
        ) from None


def _check_required(columns: Mapping[str, Sequence[Any]], origin: str) -> None:
    ids = columns["utterance_id"]
    for name in REQUIRED_COLUMNS:
        empty = [row for row, value in enumerate(columns[name]) if not value]
        if empty:
            raise ManifestError(
                f"{origin}: {name} is empty in {len(empty)} row(s), first in row {empty[0] + 1}. Every utterance needs one."
            )
    for name in (*REQUIRED_COLUMNS, "emotion"):
        mangled = [row for row, value in enumerate(columns[name]) if _SPREADSHEET_ERROR.fullmatch(value)]
        if mangled:
            raise ManifestError(
                f"{origin}, row {mangled[0] + 1}: {name} is {columns[name][mangled[0]]!r}, which a spreadsheet wrote in place of"
                " what was there. Set the column's format to Text before typing or pasting, and save again."
            )
    unusable = [name for name in ids if len(name) > _MAX_ID_LENGTH or not name.isprintable()]
    if unusable:
        raise ManifestError(
            f"{origin}: utterance_id {unusable[0][:60]!r} is unusable: printable characters only, at most {_MAX_ID_LENGTH}."
        )
    duplicates = _duplicates(ids)
    if duplicates:
        shown = ", ".join(duplicates[:5]) + (" …" if len(duplicates) > 5 else "")
        raise ManifestError(
            f"{origin}: {len(duplicates)} utterance_id(s) occur more than once: {shown}. Ids join labels to embeddings, so each"
            " must be unique; add the folder or take to the id."
        )


def _duplicates(values: Iterable[str]) -> list[str]:
    seen: set[str] = set()
    twice: dict[str, None] = {}
    for value in values:
        if value in seen:
            twice[value] = None
        seen.add(value)
    return list(twice)


def _canonical_csv(table: pd.DataFrame, rows_at_once: int = 10_000) -> Iterator[str]:
    """The one text form of a manifest, in pieces: fixed column order, shortest exact numbers, ``\\n`` line ends."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table.columns)
    yield text.getvalue()
    for start in range(0, len(table), rows_at_once):
        text = io.StringIO()
        columns = []
        for name in table.columns:
            values = table[name].iloc[start : start + rows_at_once]
            if name in NUMBER_COLUMNS:
                columns.append(["" if math.isnan(value) else repr(float(value)) for value in values])
            else:
                columns.append(list(values))
        csv.writer(text, lineterminator="\n").writerows(zip(*columns, strict=True))
        yield text.getvalue()
