"""nEMO: ``samples/{SPEAKER}_{emotion}_{sentence}.wav`` and ``data.tsv``.

The columns of the table are file_id, emotion, raw_text, normalized_text, speaker_id, gender, age; its values are padded with
spaces. Without the table, speaker and emotion are read from the names.
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
)

__all__ = ["SHAPE", "read", "recognise"]

SHAPE = "samples/EB0_anger_1.wav and data.tsv"
"""The official shape, for messages."""

_NAME = re.compile(r"([A-Z]{2}\d)_([a-z]+)_(\d+)")
_COLUMNS = ("file_id", "emotion", "raw_text", "speaker_id", "gender", "age")


def recognise(root: Path) -> bool:
    """Whether the folder looks like nEMO."""
    return has_match(_samples(root), _NAME)


def read(root: Path) -> Listing:
    """List nEMO: what the table names, and what lies in ``samples`` without being named."""
    findings: list[Finding] = []
    folder = _samples(root)
    paths = {path.stem: path for path in recordings(folder)} if folder else {}
    table = file_named(root, "data.tsv")
    rows = []
    if table is None:
        findings.append(
            Finding(
                "warning", "data.tsv is missing: sex, age and transcripts are unknown; labels are read from the names."
            )
        )
    else:
        for entry in read_table(table, _COLUMNS, delimiter="\t"):
            name = Path(entry["file_id"]).stem
            path = paths.pop(name, None)
            rows.append(
                {
                    "utterance_id": name,
                    "path": relative(path, root) if path else f"samples/{name}.wav",
                    "speaker": entry["speaker_id"],
                    "sex": sex_of(entry["gender"]),
                    "language": "pl",
                    "emotion_raw": entry["emotion"],
                    "transcript": entry["raw_text"],
                    "age": entry["age"],
                }
            )
    unparsed = []
    for name, path in sorted(paths.items()):
        match = _NAME.fullmatch(name)
        if match is None:
            unparsed.append(path)
            continue
        rows.append(
            {
                "utterance_id": name,
                "path": relative(path, root),
                "speaker": match[1],
                "language": "pl",
                "emotion_raw": match[2],
            }
        )
    if table is not None and len(paths) > len(unparsed):
        findings.append(
            Finding(
                "warning",
                f"{len(paths) - len(unparsed)} recording(s) are not in data.tsv; their labels are read from the names.",
                tuple(sorted(paths))[:5],
            )
        )
    add_unparsed(findings, root, unparsed, "SPEAKER_emotion_sentence.wav")
    return Listing(by_id(rows), tuple(findings))


def _samples(root: Path) -> Path | None:
    """Folder of the recordings; audb's release calls it ``audios``."""
    return subfolder(root, "samples") or subfolder(root, "audios")
