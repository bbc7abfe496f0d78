"""A database in audEERING's audformat, read as it is: ``db.yaml`` and tables ``db.TABLE.csv`` or ``db.TABLE.parquet``.

Read without the package audformat, which reads YAML that may run code and prefers tables that are pickled. Here YAML is read safely
and a ``.pkl`` is never opened.

How a database becomes a manifest:

================== ====================================================================================================
column             from
================== ====================================================================================================
path               the index ``file`` of tables of type ``filewise``
emotion            the column ``emotion`` (or the only one with the scheme ``emotion``) of one table, or of several that
                   belong together: ``emotion.train`` and ``emotion.test``. Where several such tables say different
                   things, nothing is guessed: ``--table`` chooses
speaker            the column ``speaker`` of any filewise table; where there is none, ``unknown``
sex, language      columns ``gender`` or ``sex`` and ``language`` of a filewise table, or of the speakers (labels of the
                   scheme, or the misc table that they are in); the database's language, if it has one
arousal …          columns ``arousal`` or ``activation``, ``valence``, ``dominance``
transcript         columns ``transcription``, ``transcript`` or ``text``, spelled out by the scheme's labels
session            column ``session``
official_split     the split of the table that the emotion is from
================== ====================================================================================================

Tables of type ``segmented`` label parts of recordings, which a manifest cannot; they are left out, and said. The utterance id is
the file's name without suffix, with its folders where names alone are not unique.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pandas as pd

from pipelines.corpora.cards import canonical_emotion
from pipelines.corpora.layouts import Finding, Listing
from pipelines.corpora.layouts._files import by_id, sex_of
from pipelines.errors import ManifestError, unknown_name

__all__ = ["HEADER", "is_audformat", "read_audformat", "utterance_ids"]

HEADER = "db.yaml"
"""Name of the file by which a folder is known as such a database."""

_SPLITS = {"train": "train", "dev": "development", "development": "development", "validation": "development",
           "devel": "development", "test": "test"}  # fmt: skip
_LANGUAGES = {
    "ara": "ar", "ben": "bn", "cmn": "zh", "dan": "da", "deu": "de", "ell": "el", "eng": "en", "est": "et", "fas": "fa",
    "fin": "fi", "fra": "fr", "hin": "hi", "hun": "hu", "ita": "it", "jpn": "ja", "kan": "kn", "kor": "ko", "nld": "nl",
    "nor": "no", "pol": "pl", "por": "pt", "que": "qu", "rus": "ru", "spa": "es", "swe": "sv", "tur": "tr", "urd": "ur",
    "zho": "zh",
}  # fmt: skip
_SOURCES: dict[str, tuple[str, ...]] = {
    "speaker": ("speaker", "speaker_id", "speaker-id"),
    "sex": ("sex", "gender"),
    "language": ("language",),
    "session": ("session",),
    "arousal": ("arousal", "activation"),
    "valence": ("valence",),
    "dominance": ("dominance",),
    "transcript": ("transcription", "transcript", "text"),
}


@dataclass(frozen=True)
class _Group:
    """Tables that say one thing about different files: those of one name but for ``train``, ``dev``, ``test`` in it."""

    name: str
    tables: tuple[str, ...]
    labels: dict[str, str]  # file to emotion
    splits: dict[str, str]  # file to part of the official split


def is_audformat(folder: Path) -> bool:
    """Whether a folder holds an audformat database."""
    return (folder / HEADER).is_file()


def read_audformat(folder: Path, *, tables: Sequence[str] = (), emotion: str = "emotion", speaker: str = "") -> Listing:
    """List the utterances of an audformat database.

    Args:
        folder: with ``db.yaml``.
        tables: tables to take the emotion from; chosen by itself unless given.
        emotion: column (or scheme) of the emotion.
        speaker: column (or scheme) of the speaker; ``speaker`` and the like unless given.

    Returns:
        Rows with ``emotion_raw`` as written and ``emotion`` in the vocabulary's spelling, and what is odd.

    Raises:
        ManifestError: the header or a table cannot be read, exists only as a pickle, or labels segments only; or tables
            disagree about the emotion.
        UnknownNameError: a table or column that was asked for does not exist.
    """
    header = _header(folder)
    schemes = _mapping(header.get("schemes"))
    misc = {name: _mapping(entry) for name, entry in _mapping(header.get("misc_tables")).items()}
    declared = {name: _mapping(entry) for name, entry in _mapping(header.get("tables")).items()}
    filewise = {name: entry for name, entry in declared.items() if entry.get("type") == "filewise"}
    segmented = sorted(name for name, entry in declared.items() if entry.get("type") != "filewise")
    if tables:
        for name in tables:
            if name not in declared:
                raise unknown_name("table", name, declared)
            if name in segmented:
                raise _only_segments(folder, [name])
    if not filewise:
        raise _only_segments(folder, segmented) if segmented else ManifestError(f"{folder / HEADER} lists no table.")
    content = {name: _table(folder, name, ["file"]) for name in filewise}
    group = _choose(folder, _groups(header, filewise, content, schemes, tables, emotion), tables, emotion)

    files = list(group.labels) if group else sorted({file for table in content.values() for file in table["file"]})
    columns = {
        name: _column(filewise, content, schemes, (speaker,) if name == "speaker" and speaker else wanted)
        for name, wanted in _SOURCES.items()
    }
    if speaker and not columns["speaker"]:
        known = {str(column) for entry in filewise.values() for column in _mapping(entry.get("columns"))}
        raise unknown_name("column", speaker, known)
    people = _people(folder, schemes, misc, speaker or "speaker")
    languages = [_LANGUAGES.get(str(code), "") for code in header.get("languages") or []]
    rows = []
    for file, identity in zip(files, utterance_ids(files), strict=True):
        row: dict[str, object] = {"utterance_id": identity, "path": file}
        row |= {name: values.get(file, "") for name, values in columns.items()}
        person = people.get(str(row["speaker"]), {})
        row["sex"] = sex_of(str(row["sex"] or person.get("sex") or person.get("gender") or ""))
        code = str(row["language"] or person.get("language") or "")
        row["language"] = _LANGUAGES.get(code, code if len(code) == 2 else "")
        if not row["language"] and len(languages) == 1:
            row["language"] = languages[0]
        row["speaker"] = row["speaker"] or "unknown"
        if group:
            row["emotion_raw"] = group.labels[file]
            row["emotion"] = canonical_emotion(group.labels[file])
            row["official_split"] = group.splits.get(file, "")
        rows.append(row)
    return Listing(by_id(rows), tuple(_findings(group, columns, segmented, files, content)))


def utterance_ids(files: Sequence[str]) -> list[str]:
    """Ids of recordings: their names without suffix; with their folders where names alone are not unique."""
    names = [PurePosixPath(file).stem for file in files]
    if len(set(names)) == len(names):
        return names
    paths = [str(PurePosixPath(file).with_suffix("")) for file in files]
    return paths if len(set(paths)) == len(paths) else list(files)


# ---------------------------------------------------------------------------------------------------------------------
# Reading


def _header(folder: Path) -> dict[str, Any]:
    import yaml  # type: ignore[import-untyped]

    path = folder / HEADER
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        # SafeLoader knows no tags that make objects: a header with one is damaged, or an attack.
        raise ManifestError(
            f"{path} cannot be read as the header of an audformat database: {' '.join(str(error).split())[:200]}."
        ) from error
    if (
        isinstance(content, dict)
        and len(content) == 1
        and "tables" not in content
        and isinstance(next(iter(content.values())), dict)
    ):
        content = next(iter(content.values()))  # the oldest form has the database's name above everything
    if not isinstance(content, dict) or not isinstance(content.get("tables"), dict):
        raise ManifestError(f"{path} is not the header of an audformat database: it has no tables.")
    return content


def _mapping(value: object) -> dict[str, Any]:
    return {str(key): entry for key, entry in value.items()} if isinstance(value, dict) else {}


def _table(folder: Path, name: str, index: list[str]) -> pd.DataFrame:
    """A table as text; missing values are empty."""
    if "/" in name or "\\" in name:
        raise ManifestError(f"{folder / HEADER} has a table {name!r}: slashes are not allowed in names of tables.")
    parquet, text, pickled = (folder / f"db.{name}.{suffix}" for suffix in ("parquet", "csv", "pkl"))
    try:
        if parquet.is_file():
            table = pd.read_parquet(parquet)
        elif text.is_file():
            table = pd.read_csv(text, dtype=str, keep_default_na=False, na_values=[""], encoding="utf-8")
        elif pickled.is_file():
            raise ManifestError(
                f"Table {name} exists only as {pickled.name}. hyfuse opens no pickles, because they can run any code. If you"
                ' trust where it is from, write it as CSV: `python -c "import audformat;'
                f" audformat.Database.load('{folder}').save('{folder}', storage_format='csv')\"`."
            )
        else:
            raise ManifestError(
                f"{folder} lacks db.{name}.parquet or db.{name}.csv, a table that {HEADER} lists. The download is not complete:"
                " run it again."
            )
    except (ValueError, OSError) as error:
        if isinstance(error, ManifestError):
            raise
        raise ManifestError(
            f"Table {name} in {folder} cannot be read: {' '.join(str(error).split())[:200]}."
        ) from error
    if index and table.index.names == index:
        table = table.reset_index()
    if missing := [column for column in index if column not in table.columns]:
        raise ManifestError(f"Table {name} in {folder} lacks the column {', '.join(missing)}.")
    return pd.DataFrame({str(column): [_text(value) for value in table[column]] for column in table.columns})


def _text(value: object) -> str:
    if value is None or value is pd.NaT or value is pd.NA or (isinstance(value, float) and value != value):
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def _only_segments(folder: Path, names: Sequence[str]) -> ManifestError:
    return ManifestError(
        f"{', '.join(names)} in {folder} label parts of recordings (type segmented); hyfuse's utterances are whole files. Write"
        " every segment to a file of its own, for instance with audinterface or ffmpeg, and list the files in a CSV manifest."
    )


# ---------------------------------------------------------------------------------------------------------------------
# Choosing


def _groups(
    header: Mapping[str, Any],
    filewise: Mapping[str, Mapping[str, Any]],
    content: Mapping[str, pd.DataFrame],
    schemes: Mapping[str, Any],
    tables: Sequence[str],
    emotion: str,
) -> list[_Group]:
    """Tables with a column of the emotion, those that belong together joined."""
    kinds = {name: str(_mapping(entry).get("type", name)) for name, entry in _mapping(header.get("splits")).items()}
    members: dict[str, list[str]] = {}
    chosen: dict[str, str] = {}
    for name, entry in filewise.items():
        if tables and name not in tables:
            continue
        column = _named(_mapping(entry.get("columns")), (emotion,))
        if column:
            chosen[name] = column
            members.setdefault("chosen" if tables else _family(name), []).append(name)
    groups = []
    for family, names in members.items():
        labels: dict[str, str] = {}
        splits: dict[str, str] = {}
        spelled = {name: _labels(schemes, filewise[name], chosen[name]) for name in names}
        for name in names:
            split = kinds.get(str(filewise[name].get("split_id", "")), "")
            part = _SPLITS.get(split) or next((_SPLITS[word] for word in name.split(".") if word in _SPLITS), "")
            for file, raw in zip(content[name]["file"], content[name][chosen[name]], strict=True):
                label = spelled[name].get(raw, raw)
                if labels.get(file, label) != label:
                    raise ManifestError(
                        f"Tables {', '.join(names)} disagree about the emotion of {file}: {labels[file]!r} and {label!r}."
                        " Choose with --table."
                    )
                labels[file] = label
                if part:
                    splits[file] = part
        groups.append(_Group(family, tuple(names), labels, splits))
    return groups


def _family(table: str) -> str:
    return ".".join(word for word in table.split(".") if word not in _SPLITS) or table


def _choose(folder: Path, groups: list[_Group], tables: Sequence[str], emotion: str) -> _Group | None:
    """The one group that the emotion is from; None if no table has an emotion."""
    if not groups:
        if tables or emotion != "emotion":
            where = f"table {', '.join(tables)}" if tables else f"any filewise table of {folder}"
            raise ManifestError(f"There is no column {emotion!r} in {where}. Name another with --emotion or --table.")
        return None
    # A group that only repeats a part of another adds nothing, but perhaps the split.
    groups = sorted(groups, key=lambda group: (-len(group.labels), len(group.name), group.name))
    distinct: list[_Group] = []
    for group in groups:
        same = [
            index
            for index, other in enumerate(distinct)
            if all(other.labels.get(file) == label for file, label in group.labels.items())
        ]
        if not same:
            distinct.append(group)
        elif not distinct[same[0]].splits:
            kept = distinct[same[0]]
            distinct[same[0]] = _Group(kept.name, kept.tables, kept.labels, group.splits)
    if len(distinct) > 1:
        listed = "; ".join(
            f"`{' '.join(f'--table {name}' for name in group.tables)}` ({len(group.labels)} files)"
            for group in distinct
        )
        raise ManifestError(
            f"Several tables of {folder} say what the emotion is, and not the same, or not of the same files. Choose, with `hyfuse"
            f" corpora prepare {folder}` and: {listed}."
        )
    return distinct[0]


def _named(columns: Mapping[str, Any], wanted: Sequence[str]) -> str:
    """A column by its own name, or by its scheme where only one has it."""
    for name in wanted:
        if name in columns:
            return name
    for name in wanted:
        having = [column for column, entry in columns.items() if _mapping(entry).get("scheme_id") == name]
        if len(having) == 1:
            return having[0]
    return ""


def _column(
    filewise: Mapping[str, Mapping[str, Any]],
    content: Mapping[str, pd.DataFrame],
    schemes: Mapping[str, Any],
    wanted: Sequence[str],
) -> dict[str, str]:
    """File to value, from all filewise tables that have the column; the first that says anything counts."""
    values: dict[str, str] = {}
    for name, entry in filewise.items():
        column = _named(_mapping(entry.get("columns")), wanted)
        if column and column in content[name]:
            spelled = _labels(schemes, entry, column)
            for file, raw in zip(content[name]["file"], content[name][column], strict=True):
                if raw and file not in values:
                    values[file] = spelled.get(raw, raw)
    return values


def _labels(schemes: Mapping[str, Any], table: Mapping[str, Any], column: str) -> dict[str, str]:
    """What a scheme's labels spell out: ``a01`` to the sentence, ``W`` to anger."""
    scheme = str(_mapping(_mapping(table.get("columns")).get(column)).get("scheme_id", ""))
    labels = _mapping(schemes.get(scheme)).get("labels")
    if not isinstance(labels, dict):
        return {}
    return {str(key): value for key, value in labels.items() if isinstance(value, str) and value}


def _people(
    folder: Path, schemes: Mapping[str, Any], misc: Mapping[str, Any], scheme: str
) -> dict[str, dict[str, str]]:
    """What is known about each speaker."""
    labels = _mapping(schemes.get(scheme)).get("labels")
    if isinstance(labels, dict):
        return {str(key): {str(k): _text(v) for k, v in _mapping(entry).items()} for key, entry in labels.items()}
    if isinstance(labels, str) and labels in misc:
        levels = misc[labels].get("levels")
        index = [str(level) for level in levels][:1] if isinstance(levels, dict | list) else []
        table = _table(folder, labels, index)
        key = index[0] if index else str(table.columns[0])
        return {str(row[key]): {str(k): str(v) for k, v in row.items()} for row in table.to_dict("records")}
    return {}


def _findings(
    group: _Group | None,
    columns: Mapping[str, Mapping[str, str]],
    segmented: Sequence[str],
    files: Sequence[str],
    content: Mapping[str, pd.DataFrame],
) -> list[Finding]:
    findings = []
    if group:
        findings.append(Finding("note", f"The emotion is from {_shown(group.tables)}."))
    if segmented:
        findings.append(
            Finding("note", f"{_shown(segmented)} label parts of recordings (type segmented) and are left out.")
        )
    elsewhere = {file for table in content.values() for file in table["file"]} - set(files)
    if elsewhere:
        findings.append(
            Finding(
                "note",
                f"{len(elsewhere)} recording(s) of the database have no emotion in the table chosen; they are left out.",
                tuple(sorted(elsewhere)[:5]),
            )
        )
    if not columns["speaker"]:
        findings.append(
            Finding(
                "warning",
                "No column says who speaks: every speaker is `unknown`, and only the speaker-dependent `--protocol random-5fold` is"
                " possible. Name the column with `hyfuse corpora prepare DIR --speaker COLUMN`.",
            )
        )
    return findings


def _shown(names: Sequence[str]) -> str:
    some = ", ".join(re.sub(r"\s+", " ", name) for name in names[:4])
    return f"{'table' if len(names) == 1 else 'tables'} {some}{f' and {len(names) - 4} more' if len(names) > 4 else ''}"
