"""TESS: ``OAF_angry/OAF_back_angry.wav`` (or all recordings flat in the root).

OAF and YAF are the older and the younger of two women; the last field is the emotion (``ps``: pleasant surprise), the middle
one the word in "Say the word …". One file of the release lacks a letter, ``OA_bite_neutral.wav``; its speaker is OAF. A second
copy of the corpus in a further folder, as in some redistributions, is not read.
"""

from __future__ import annotations

import re
from pathlib import Path

from pipelines.corpora.layouts import Finding, Listing
from pipelines.corpora.layouts._files import add_unparsed, by_id, has_match, recordings, relative, subfolders

__all__ = ["SHAPE", "read", "recognise"]

SHAPE = "OAF_angry/OAF_back_angry.wav"
"""The official shape, for messages."""

_NAME = re.compile(r"(OAF?|YAF)_(\w+)_(angry|disgust|fear|happy|neutral|ps|sad)", re.IGNORECASE)
_FOLDER = re.compile(r"(OAF|YAF)_\w+", re.IGNORECASE)


def recognise(root: Path) -> bool:
    """Whether the folder looks like TESS."""
    return any(has_match(folder, _NAME) for folder in _folders(root))


def read(root: Path) -> Listing:
    """List TESS."""
    findings: list[Finding] = []
    rows, unparsed = [], []
    for path in (path for folder in _folders(root) for path in recordings(folder)):
        match = _NAME.fullmatch(path.stem)
        if match is None:
            unparsed.append(path)
            continue
        speaker, word, emotion = match.groups()
        if speaker.upper() == "OA":
            findings.append(
                Finding("note", f"{path.stem} is misnamed in the release (OA for OAF); its id is kept.", (path.name,))
            )
        rows.append(
            {
                "utterance_id": path.stem,
                "path": relative(path, root),
                "speaker": "YAF" if speaker.upper() == "YAF" else "OAF",
                "sex": "female",
                "language": "en",
                "emotion_raw": emotion.lower(),
                "transcript": f"Say the word {word}.",
            }
        )
    add_unparsed(findings, root, unparsed, "OAF_word_emotion.wav")
    return Listing(by_id(rows), tuple(findings))


def _folders(root: Path) -> list[Path]:
    return [root, *(folder for folder in subfolders(root) if _FOLDER.fullmatch(folder.name))]
