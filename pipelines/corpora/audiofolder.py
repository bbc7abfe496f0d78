"""Folders in the layout that the Hugging Face library calls audiofolder, read as they are and without that library.

Either the folders name the classes, ``anger/x.wav`` or ``train/anger/x.wav``; or tables called ``metadata.csv``,
``metadata.jsonl`` or ``metadata.parquet`` do, whose column ``file_name`` is relative to the folder that the table lies in. Folders
``train``, ``validation`` (``dev``, ``valid``) and ``test`` just below the root are the official split.

=========== ============================================================================================================
column      from the column of the metadata (in any case)
=========== ============================================================================================================
emotion     ``emotion``, ``label``, ``labels``, ``category`` or ``class``; else the name of the recording's folder
speaker     ``speaker``, ``speaker_id``, ``spk``, ``spk_id``, ``actor``, ``actor_id`` or ``client_id``; else ``unknown``
sex         ``sex`` or ``gender``
language    ``language`` or ``lang``, of two letters
transcript  ``transcription``, ``transcript``, ``text`` or ``sentence``
arousal …   ``arousal`` or ``activation``, ``valence``, ``dominance``
session     ``session``
=========== ============================================================================================================
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from pipelines.corpora.audformat_folder import utterance_ids
from pipelines.corpora.cards import canonical_emotion
from pipelines.corpora.layouts import Finding, Listing
from pipelines.corpora.layouts._files import by_id, read_table, sex_of
from pipelines.errors import DataRootError, ManifestError, unknown_name

__all__ = ["AUDIO_SUFFIXES", "audio_files", "is_audiofolder", "read_audiofolder"]

AUDIO_SUFFIXES = frozenset(
    {".aif", ".aifc", ".aiff", ".au", ".caf", ".flac", ".mp3", ".oga", ".ogg", ".opus", ".rf64", ".snd", ".w64", ".wav"}
)
"""Files that are taken for recordings; the value of ``pipelines.audio.recordings``."""

_METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
_SPLITS = {"train": "train", "training": "train", "validation": "development", "valid": "development", "val": "development",
           "dev": "development", "test": "test", "testing": "test"}  # fmt: skip
_SOURCES: dict[str, tuple[str, ...]] = {
    "emotion": ("emotion", "label", "labels", "category", "class"),
    "speaker": ("speaker", "speaker_id", "spk", "spk_id", "actor", "actor_id", "client_id"),
    "sex": ("sex", "gender"),
    "language": ("language", "lang"),
    "transcript": ("transcription", "transcript", "text", "sentence"),
    "arousal": ("arousal", "activation"),
    "valence": ("valence",),
    "dominance": ("dominance",),
    "session": ("session",),
}


def audio_files(folder: Path) -> Iterator[str]:
    """Recordings below a folder, as paths relative to it with forward slashes, sorted; hidden ones are left out.

    Raises:
        DataRootError: a folder may not be read.
    """

    def refuse(error: OSError) -> None:
        raise DataRootError(
            f"{error.filename or folder} may not be read ({error.strerror}). Change its permissions: `chmod -R u+rX {folder}`."
        ) from error

    found = []
    for current, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        base = os.path.relpath(current, folder)
        for name in names:
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in AUDIO_SUFFIXES:
                found.append(PurePosixPath(name if base == "." else f"{Path(base).as_posix()}/{name}").as_posix())
    yield from sorted(found)


def is_audiofolder(folder: Path) -> bool:
    """Whether a folder holds recordings, at any depth."""
    return next(audio_files(folder), None) is not None


def read_audiofolder(folder: Path, *, emotion: str = "", speaker: str = "") -> Listing:
    """List the utterances of an audiofolder.

    Args:
        folder: with recordings below it.
        emotion: column of the metadata that holds the emotion; found by its name unless given.
        speaker: likewise, of the speaker.

    Raises:
        ManifestError: there is no recording, or a table cannot be read or lacks ``file_name``.
        UnknownNameError: a column that was asked for does not exist.
    """
    files = list(audio_files(folder))
    entries: dict[str, Mapping[str, str]] = {}
    tables = []
    for current, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in _METADATA:
            if name in names:
                tables.append(Path(current, name))
                base = Path(current).relative_to(folder)
                for entry in _metadata(Path(current, name)):
                    path = os.path.normpath(os.path.join(base, entry["file_name"].replace("\\", "/")))
                    entries[Path(path).as_posix()] = entry
    if not files and not entries:
        raise ManifestError(f"{folder} holds no recordings (.wav, .flac, .mp3, …), at any depth.")
    columns = {name.lower(): name for entry in entries.values() for name in entry}
    for asked in (emotion, speaker):
        if asked and asked.lower() not in columns:
            raise unknown_name("column", asked, columns.values() if columns else ["file_name"])
    findings: list[Finding] = []
    if tables:
        unlisted = sorted(set(files) - set(entries))
        files = sorted(entries)
        if unlisted:
            findings.append(
                Finding(
                    "note",
                    f"{len(unlisted)} recording(s) are not in {tables[0].name}; they are left out.",
                    tuple(unlisted[:5]),
                )
            )

    def value(entry: Mapping[str, str], column: str, asked: str = "") -> str:
        wanted = (asked.lower(),) if asked else _SOURCES[column]
        return next((entry[columns[name]] for name in wanted if name in columns and entry.get(columns[name])), "")

    rows = []
    for file, identity in zip(files, utterance_ids(files), strict=True):
        entry = entries.get(file, {})
        above = PurePosixPath(file).parts[:-1]
        split = _SPLITS.get(above[0].lower(), "") if above else ""
        folder_name = above[-1] if len(above) > (1 if split else 0) else ""
        raw = value(entry, "emotion", emotion) or (folder_name if not emotion else "")
        language = value(entry, "language").lower()
        rows.append(
            {
                "utterance_id": identity,
                "path": file,
                "speaker": value(entry, "speaker", speaker) or "unknown",
                "sex": sex_of(value(entry, "sex")),
                "language": language if len(language) == 2 else "",
                "session": value(entry, "session"),
                "emotion_raw": raw,
                "emotion": canonical_emotion(raw),
                "transcript": value(entry, "transcript"),
                **{name: value(entry, name) for name in ("arousal", "valence", "dominance")},
                "official_split": split,
            }
        )
    if all(row["speaker"] == "unknown" for row in rows):
        findings.append(
            Finding(
                "warning",
                "Nothing says who speaks: every speaker is `unknown`, and only the speaker-dependent `--protocol random-5fold` is"
                " possible. If the file names tell: `hyfuse corpora new"
                f" {folder} --pattern '{{emotion}}/{{speaker}}_*'`; if a column of the metadata does, name it with `hyfuse corpora"
                " prepare DIR --speaker COLUMN`.",
            )
        )
    return Listing(by_id(rows), tuple(findings))


def _metadata(path: Path) -> list[Mapping[str, str]]:
    """Rows of one table of metadata, as text."""
    rows: list[Mapping[str, str]]
    if path.suffix == ".csv":
        return list(read_table(path, ["file_name"]))
    if path.suffix == ".jsonl":
        rows = []
        for number, line in enumerate(path.read_text(encoding="utf-8-sig", errors="replace").splitlines(), start=1):
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
            except ValueError as error:
                raise ManifestError(f"{path}, line {number}, is not JSON: {error}.") from error
            if not isinstance(entry, dict):
                raise ManifestError(f"{path}, line {number}, is not a JSON object.")
            rows.append({str(key): _text(value) for key, value in entry.items()})
    else:
        import pandas as pd

        try:
            table = pd.read_parquet(path)
        except (ValueError, OSError) as error:
            raise ManifestError(f"{path} cannot be read as Parquet: {error}.") from error
        rows = [{str(key): _text(value) for key, value in row.items()} for row in table.to_dict("records")]
    lacking = next((number for number, row in enumerate(rows, start=1) if not row.get("file_name")), None)
    if lacking is not None:
        raise ManifestError(f"{path}, row {lacking}, has no `file_name`, which says what recording the row is about.")
    return rows


def _text(value: object) -> str:
    if value is None or value != value:
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()
