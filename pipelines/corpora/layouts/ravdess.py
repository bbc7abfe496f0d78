"""RAVDESS, speech: ``Actor_NN/03-01-EE-II-SS-RR-AA.wav``.

The fields are modality (03: audio only), vocal channel (01: speech, 02: song), emotion, intensity (01 normal, 02 strong),
statement, repetition, actor. Odd actors are male. Song is left out. Copies of the whole corpus that lie in further folders, as
in some redistributions, are not read twice.
"""

from __future__ import annotations

import re
from pathlib import Path

from pipelines.corpora.layouts import Finding, Listing
from pipelines.corpora.layouts._files import add_unparsed, by_id, has_match, recordings, relative, subfolder, subfolders

__all__ = ["SHAPE", "read", "recognise"]

SHAPE = "Actor_01/03-01-05-01-01-01-01.wav"
"""The official shape, for messages."""

_NAME = re.compile(r"(\d\d)-(\d\d)-(\d\d)-(\d\d)-(\d\d)-(\d\d)-(\d\d)")
_ACTOR = re.compile(r"actor_\d\d", re.IGNORECASE)
_AUDIO_ONLY, _SPEECH = "03", "01"
_STATEMENTS = {"01": "Kids are talking by the door.", "02": "Dogs are sitting by the door."}
_INTENSITIES = {"01": "normal", "02": "strong"}


def recognise(root: Path) -> bool:
    """Whether the folder looks like RAVDESS."""
    return any(has_match(actor, _NAME) for actor in _actors(root))


def read(root: Path) -> Listing:
    """List the speech part of RAVDESS."""
    findings: list[Finding] = []
    rows, unparsed, others = [], [], []
    for path in (path for actor in _actors(root) for path in recordings(actor)):
        match = _NAME.fullmatch(path.stem)
        if match is None:
            unparsed.append(path)
            continue
        modality, channel, emotion, intensity, statement, repetition, actor = match.groups()
        if (modality, channel) != (_AUDIO_ONLY, _SPEECH):
            others.append(relative(path, root))
            continue
        rows.append(
            {
                "utterance_id": path.stem,
                "path": relative(path, root),
                "speaker": actor,
                "sex": "male" if int(actor) % 2 else "female",
                "language": "en",
                "emotion_raw": emotion,
                "transcript": _STATEMENTS.get(statement, ""),
                "intensity": _INTENSITIES.get(intensity, ""),
                "repetition": repetition,
            }
        )
    add_unparsed(findings, root, unparsed, "03-01-EE-II-SS-RR-AA.wav")
    if others:
        findings.append(
            Finding(
                "note",
                f"{len(others)} recording(s) are song or video, not audio-only speech; left out.",
                tuple(others[:5]),
            )
        )
    return Listing(by_id(rows), tuple(findings))


def _actors(root: Path) -> list[Path]:
    """Folders of the actors: in the root, or, in audb's release, in ``speech``."""
    folder = subfolder(root, "speech") or root
    return [actor for actor in subfolders(folder) if _ACTOR.fullmatch(actor.name)]
