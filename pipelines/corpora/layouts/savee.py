"""SAVEE: ``AudioData/DC/a01.wav``, or flat ``DC_a01.wav`` (in the root, or in ``ALL/`` or ``AudioData/``).

Four men (DC, JE, JK, KL); a, d, f, h, n, sa, su is the emotion, the number is the sentence.
"""

from __future__ import annotations

import re
from pathlib import Path

from pipelines.corpora.layouts import Finding, Listing
from pipelines.corpora.layouts._files import add_unparsed, has_match, recordings, relative, subfolder

__all__ = ["SHAPE", "read", "recognise"]

SHAPE = "AudioData/DC/a01.wav (or flat, DC_a01.wav)"
"""The official shape, for messages."""

_SPEAKERS = ("DC", "JE", "JK", "KL")
_NAME = re.compile(r"(sa|su|[adfhn])(\d\d)")
_FLAT = re.compile(r"(DC|JE|JK|KL)_(sa|su|[adfhn])(\d\d)")


def recognise(root: Path) -> bool:
    """Whether the folder looks like SAVEE."""
    audio = subfolder(root, "AudioData")
    by_speaker = audio is not None and any(has_match(subfolder(audio, name), _NAME) for name in _SPEAKERS)
    return by_speaker or any(has_match(folder, _FLAT) for folder in _flat_folders(root))


def read(root: Path) -> Listing:
    """List SAVEE."""
    findings: list[Finding] = []
    rows: dict[str, dict[str, str]] = {}
    unparsed: list[Path] = []
    audio = subfolder(root, "AudioData")
    for speaker in _SPEAKERS:
        folder = subfolder(audio, speaker) if audio else None
        for path in recordings(folder) if folder else []:
            match = _NAME.fullmatch(path.stem)
            if match:
                rows[f"{speaker}_{path.stem}"] = _row(root, path, speaker, match[1])
            else:
                unparsed.append(path)
    twice = []
    for path in (path for folder in _flat_folders(root) for path in recordings(folder)):
        match = _FLAT.fullmatch(path.stem)
        if match is None:
            unparsed.append(path)
        elif path.stem in rows:
            twice.append(relative(path, root))
        else:
            rows[path.stem] = _row(root, path, match[1], match[2])
    add_unparsed(findings, root, unparsed, "AudioData/DC/a01.wav or DC_a01.wav")
    if twice:
        findings.append(
            Finding("note", f"{len(twice)} recording(s) lie in two places; one of each is used.", tuple(twice[:5]))
        )
    return Listing([rows[name] for name in sorted(rows)], tuple(findings))


def _flat_folders(root: Path) -> list[Path]:
    return [folder for folder in (root, subfolder(root, "ALL"), subfolder(root, "AudioData")) if folder is not None]


def _row(root: Path, path: Path, speaker: str, emotion: str) -> dict[str, str]:
    name = path.stem.removeprefix(f"{speaker}_")
    return {
        "utterance_id": f"{speaker}_{name}",
        "path": relative(path, root),
        "speaker": speaker,
        "sex": "male",
        "language": "en",
        "emotion_raw": emotion,
    }
