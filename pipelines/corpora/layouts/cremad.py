"""CREMA-D: ``AudioWAV/1001_DFA_ANG_XX.wav``, ``VideoDemographics.csv``, and in ``processedResults`` two tables of votes.

A name is actor, sentence, emotion, level (``LO``, ``MD``, ``HI``, ``XX`` for unspecified). One file of the release is misnamed
``1040_ITH_SAD_X``; its id is kept as published. ``1076_MTI_SAD_XX`` is silent. The label is the emotion that the actor was
asked for. What listeners heard most often stands in ``voice_vote`` (``A D F H N S``, ties joined by a colon; ``summaryTable.csv``),
and how many of them heard what in ``emotion_votes`` (``tabulatedVotes.csv``). The latter table has a row for each clip heard,
seen, and both; the number in its first column is 100000 times the kind (1: heard) plus the clip's. Audio in one folder per actor
(``1001/1001_DFA_ANG_XX.wav``) is read as well.
"""

from __future__ import annotations

import re
from pathlib import Path

from pipelines.corpora.layouts import Finding, Listing
from pipelines.corpora.layouts._files import (
    add_unparsed,
    by_id,
    file_named,
    has_match,
    read_table,
    recordings,
    relative,
    sex_of,
    subfolder,
    subfolders,
)
from pipelines.corpora.raters import VOTES, format_votes
from pipelines.errors import ManifestError

__all__ = ["SHAPE", "read", "recognise"]

SHAPE = "AudioWAV/1001_DFA_ANG_XX.wav and VideoDemographics.csv"
"""The official shape, for messages."""

_NAME = re.compile(r"(\d{4})_([A-Z]{3})_([A-Z]{3})_([A-Z]{1,2})")
_ACTOR = re.compile(r"1\d{3}")
_SILENT = "1076_MTI_SAD_XX"
_LETTERS = {"A": "ANG", "D": "DIS", "F": "FEA", "H": "HAP", "N": "NEU", "S": "SAD"}
_HEARD = "1"  # first digit of six: the clip was heard, not seen

_SENTENCES = {
    "DFA": "Don't forget a jacket.",
    "IEO": "It's eleven o'clock.",
    "IOM": "I'm on my way to the meeting.",
    "ITH": "I think I have a doctor's appointment.",
    "ITS": "I think I've seen this before.",
    "IWL": "I would like a new alarm clock.",
    "IWW": "I wonder what this is about.",
    "MTI": "Maybe tomorrow it will be cold.",
    "TAI": "The airplane is almost full.",
    "TIE": "That is exactly what happened.",
    "TSI": "The surface is slick.",
    "WSI": "We'll stop in a couple of minutes.",
}


def recognise(root: Path) -> bool:
    """Whether the folder looks like CREMA-D."""
    folder = subfolder(root, "AudioWAV")
    if folder is not None:
        return has_match(folder, _NAME)
    return any(has_match(actor, _NAME) for actor in _actors(root))


def read(root: Path) -> Listing:
    """List CREMA-D."""
    findings: list[Finding] = []
    people = _demographics(root, findings)
    votes = _votes(root, findings)
    counts = _counts(root, findings)
    folder = subfolder(root, "AudioWAV")
    folders = [folder] if folder else _actors(root)
    rows, unparsed = [], []
    for path in (path for one in folders for path in recordings(one)):
        match = _NAME.fullmatch(path.stem)
        if match is None:
            unparsed.append(path)
            continue
        actor, sentence, emotion, level = match.groups()
        person = people.get(actor, {})
        full_name = f"{actor}_{sentence}_{emotion}_{level.ljust(2, 'X')}"
        rows.append(
            {
                "utterance_id": path.stem,
                "path": relative(path, root),
                "speaker": actor,
                "sex": sex_of(person.get("Sex", "")),
                "language": "en",
                "emotion_raw": emotion,
                "transcript": _SENTENCES.get(sentence, ""),
                "sentence": sentence,
                "level": level.ljust(2, "X"),
                "age": person.get("Age", ""),
                "voice_vote": votes.get(path.stem) or votes.get(full_name, ""),
                **({VOTES: counts.get(path.stem) or counts.get(full_name, "")} if counts else {}),
            }
        )
        if len(level) == 1:
            findings.append(
                Finding(
                    "note", f"{path.stem} is misnamed in the release (level X for XX); its id is kept.", (path.name,)
                )
            )
        if path.stem == _SILENT:
            findings.append(
                Finding("note", f"{_SILENT} is silent in the release; extraction records it as failed.", (path.name,))
            )
    add_unparsed(findings, root, unparsed, "ACTOR_SENTENCE_EMOTION_LEVEL.wav")
    return Listing(by_id(rows), tuple(findings))


def _actors(root: Path) -> list[Path]:
    return [folder for folder in subfolders(root) if _ACTOR.fullmatch(folder.name)]


def _demographics(root: Path, findings: list[Finding]) -> dict[str, dict[str, str]]:
    path = file_named(root, "VideoDemographics.csv")
    if path is None:
        findings.append(Finding("note", "VideoDemographics.csv is missing: sex and age of the actors are unknown."))
        return {}
    return {row["ActorID"]: row for row in read_table(path, ("ActorID", "Age", "Sex"))}


def _votes(root: Path, findings: list[Finding]) -> dict[str, str]:
    path = file_named(root, "processedResults", "summaryTable.csv")
    if path is None:
        findings.append(
            Finding(
                "note", "processedResults/summaryTable.csv is missing: what listeners heard (voice_vote) is unknown."
            )
        )
        return {}
    return {Path(row["FileName"]).stem: row["VoiceVote"] for row in read_table(path, ("FileName", "VoiceVote"))}


def _counts(root: Path, findings: list[Finding]) -> dict[str, str]:
    """Recording to how many listeners heard which emotion, as raw labels."""
    path = file_named(root, "processedResults", "tabulatedVotes.csv")
    if path is None:
        findings.append(
            Finding(
                "note",
                f"processedResults/tabulatedVotes.csv is missing: how many listeners heard what ({VOTES}) is unknown.",
            )
        )
        return {}
    counts = {}
    for row in read_table(path, ("fileName", *_LETTERS)):
        key = next(iter(row.values()))
        if len(key) == 6 and key.startswith(_HEARD):
            try:
                counts[row["fileName"]] = format_votes({raw: int(row[letter]) for letter, raw in _LETTERS.items()})
            except ValueError:
                listed = ", ".join(row[letter] for letter in _LETTERS)
                raise ManifestError(f"{path}, {row['fileName']}: {listed} are not all whole numbers.") from None
    return counts
