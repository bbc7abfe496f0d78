"""MSP-Podcast: ``Audios/*.wav``, ``Labels/labels_consensus.csv``, ``Transcripts/*.txt``.

The table is spelled ``labels_concensus.csv`` in older releases. Its columns are FileName, EmoClass (``A H S N U F D C O X``),
EmoAct, EmoVal, EmoDom (1 to 7), SpkrID, Gender, Split_Set (``Train``, ``Development``, ``Test1`` …; ``Development`` was
``Validation`` up to release 1.8). ``SpkrID`` may be ``Unknown``: such utterances are by nobody in particular, neither one
person nor different ones, and the manifest says ``Unknown`` as well. Recordings without a row (Test3, whose labels are not
published) are counted, not listed.

``Labels/labels_detailed.csv`` has one row per recording and worker, in one of two forms: a column ``EmoDetail``
(``WORKER00000001; Happy; Happy,Amused; A:5.000000; V:6.000000; D:4.000000;``), or columns ``EmoClass_Major``, ``EmoAct``,
``EmoVal``, ``EmoDom`` (release 1.6). The first choice of emotion is read, the second, of any number, is not.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path

from pipelines.corpora.layouts import Finding, Listing
from pipelines.corpora.layouts._files import (
    by_id,
    file_named,
    has_match,
    read_table,
    read_text,
    recordings,
    relative,
    sex_of,
    subfolder,
)
from pipelines.corpora.raters import RATINGS, VOTES, format_ratings, format_votes, one_vote_each
from pipelines.errors import ManifestError

__all__ = ["SHAPE", "read", "recognise"]

SHAPE = "Audios/MSP-PODCAST_0001_0008.wav and Labels/labels_consensus.csv"
"""The official shape, for messages."""

_NAME = re.compile(r"MSP-PODCAST_\d+_\w+")
_SPELLINGS = ("labels_consensus.csv", "labels_concensus.csv")
_COLUMNS = ("FileName", "EmoClass", "EmoAct", "EmoVal", "EmoDom", "SpkrID", "Gender", "Split_Set")
_RELEASE = re.compile(r"Release\s+(\d+\.\d+)", re.IGNORECASE)
_UNKNOWN = "Unknown"
_DETAIL = re.compile(r";\s*A:\s*([\d.]+)\s*;\s*V:\s*([\d.]+)\s*;\s*D:\s*([\d.]+)")
_WORDS = {
    "angry": "A",
    "contempt": "C",
    "disgust": "D",
    "fear": "F",
    "happy": "H",
    "neutral": "N",
    "sad": "S",
    "surprise": "U",
}
_OTHER = "O"  # whatever else workers wrote themselves, mostly "Other-…"
_SPLITS = {
    "train": "train",
    "development": "development",
    "validation": "development",
    "test1": "test1",
    "test2": "test2",
    "test3": "test3",
}


def recognise(root: Path) -> bool:
    """Whether the folder looks like MSP-Podcast."""
    return _table(root) is not None or has_match(subfolder(root, "Audios"), _NAME)


def read(root: Path) -> Listing:
    """List all rows of the table of consensus labels."""
    findings: list[Finding] = []
    table = _table(root)
    if table is None:
        return Listing(
            [], (Finding("error", "Labels/labels_consensus.csv is missing: the recordings have no labels without it."),)
        )
    audio = subfolder(root, "Audios") or subfolder(root, "Audio")
    paths = {path.stem: relative(path, root) for path in recordings(audio, deep=True)} if audio else {}
    transcripts = _transcripts(root)
    workers = _workers(root, findings)
    rows, splits, unknown = [], set(), 0
    for entry in read_table(table, _COLUMNS):
        name = Path(entry["FileName"]).stem
        speaker = entry["SpkrID"] or _UNKNOWN
        if speaker.lower() == _UNKNOWN.lower():
            speaker, unknown = _UNKNOWN, unknown + 1
        splits.add(entry["Split_Set"])
        transcript = transcripts.get(name)
        rows.append(
            {
                "utterance_id": name,
                "path": paths.pop(name, f"Audios/{name}.wav"),
                "speaker": speaker,
                "sex": sex_of(entry["Gender"]),
                "language": "en",
                "emotion_raw": entry["EmoClass"],
                "arousal": entry["EmoAct"],
                "valence": entry["EmoVal"],
                "dominance": entry["EmoDom"],
                "transcript": read_text(transcript).strip() if transcript else "",
                "official_split": _SPLITS.get(entry["Split_Set"].lower(), ""),
                **workers.get(name, {}),
            }
        )
    _report(root, rows, splits, unknown, paths, findings)
    return Listing(by_id(rows), tuple(findings))


def _report(
    root: Path,
    rows: list[dict[str, str]],
    splits: set[str],
    unknown: int,
    unlabelled: dict[str, str],
    findings: list[Finding],
) -> None:
    readme = file_named(root, "readme.txt")
    release = _RELEASE.search(read_text(readme)) if readme else None
    if release:
        findings.append(Finding("note", f"readme.txt says release {release[1]}."))
    if "validation" in {name.lower() for name in splits}:
        findings.append(
            Finding(
                "note",
                "Split_Set says Validation, as releases up to 1.8 do; it is called development here."
                " Splits and labels differ between releases: name the release beside every result.",
            )
        )
    odd = sorted(name or "(empty)" for name in splits if name.lower() not in _SPLITS)
    if odd:
        findings.append(
            Finding(
                "warning",
                f"Split_Set has values that no release uses: {', '.join(odd)}; the official split is empty there.",
            )
        )
    if unknown:
        findings.append(
            Finding(
                "warning",
                f"{unknown} of {len(rows)} utterances are by unknown speakers (SpkrID Unknown). They are neither one person nor"
                " different ones, so folds by speaker are not speaker-independent for them; use `--protocol official`.",
                tuple(row["utterance_id"] for row in rows if row["speaker"] == _UNKNOWN)[:3],
            )
        )
    if unlabelled:
        findings.append(
            Finding(
                "note",
                f"{len(unlabelled)} recording(s) have no row in the table and are left out: most likely Test3, whose labels are not"
                " published.",
                tuple(sorted(unlabelled.values())[:5]),
            )
        )


def _table(root: Path) -> Path | None:
    return next((path for name in _SPELLINGS if (path := file_named(root, "Labels", name))), None)


def _workers(root: Path, findings: list[Finding]) -> dict[str, dict[str, str]]:
    """Recording without suffix to what its workers said."""
    path = file_named(root, "Labels", "labels_detailed.csv")
    if path is None:
        findings.append(
            Finding(
                "note", "Labels/labels_detailed.csv is missing: only the consensus is known, not what each worker said."
            )
        )
        return {}
    named: dict[str, list[list[str]]] = {}
    ratings: dict[str, list[tuple[float, ...]]] = {}
    for name, emotion, numbers in _answers(path):
        named.setdefault(name, []).append([_WORDS.get(emotion.lower(), _OTHER)] if emotion else [])
        if numbers:
            ratings.setdefault(name, []).append(numbers)
    result = {}
    for name, emotions in named.items():
        given = zip(*ratings.get(name, ()), strict=True)
        result[name] = {VOTES: format_votes(one_vote_each(emotions))} | {
            RATINGS[dimension]: format_ratings(values)
            for dimension, values in zip(("arousal", "valence", "dominance"), given, strict=False)
        }
    return result


def _answers(path: Path) -> Iterator[tuple[str, str, tuple[float, ...]]]:
    """Recording, emotion, and activation, valence, dominance (empty where not given) of every row; a row at a time, of 650,000.

    Raises:
        ManifestError: neither form of the table.
    """
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as handle:
        rows = csv.reader(handle)
        header = [name.strip().lower() for name in next(rows, [])]
        one_cell = ("filename", "emodetail")
        columns = ("filename", "emoclass_major", "emoact", "emoval", "emodom")
        wanted = next((form for form in (one_cell, columns) if set(form) <= set(header)), None)
        if wanted is None:
            raise ManifestError(
                f"{path} has the columns {', '.join(header) or 'none'}; expected FileName and EmoDetail, or FileName,"
                " EmoClass_Major, EmoAct, EmoVal, EmoDom. It is of another release, or was changed; take the official one, or"
                " move it away to use the consensus alone."
            )
        places = [header.index(name) for name in wanted]
        for number, row in enumerate(rows, start=2):
            if len(row) <= max(places):
                continue
            name, *answers = (row[place].strip() for place in places)
            if wanted is one_cell:
                found = _DETAIL.search(answers[0])
                emotion = answers[0].partition(";")[2].partition(";")[0].strip()
                texts = found.groups() if found else ()
            else:
                emotion, texts = answers[0], tuple(answers[1:])
            try:
                yield Path(name).stem, emotion, tuple(map(float, texts)) if all(texts) else ()
            except ValueError:
                raise ManifestError(f"{path}, line {number}: {', '.join(texts)} are not all numbers.") from None


def _transcripts(root: Path) -> dict[str, Path]:
    """Recording without suffix to the file that holds its text; one look at the folder instead of one per recording."""
    folder = subfolder(root, "Transcripts")
    if folder is None:
        return {}
    return {
        path.stem: path for path in folder.iterdir() if path.suffix.lower() == ".txt" and not path.name.startswith(".")
    }
