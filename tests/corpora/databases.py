"""Tiny databases for tests: in audformat, written by hand or published with audb in a repository on the file system."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile

RATE_HZ = 16000

HEADER = """\
name: tiny
source: made for a test
usage: research
languages: [deu]
license: CC0-1.0
schemes:
  emotion: {dtype: str, labels: [anger, neutral]}
  speaker: {dtype: int, labels: {3: {gender: male, language: deu}, 8: {gender: female, language: deu}}}
  sentence: {dtype: str, labels: {a01: Der Lappen liegt da.}}
splits:
  train: {type: train}
  test: {type: test}
tables:
  emotion.train: {type: filewise, split_id: train, columns: {emotion: {scheme_id: emotion}}}
  emotion.test: {type: filewise, split_id: test, columns: {emotion: {scheme_id: emotion}}}
  files:
    type: filewise
    columns: {speaker: {scheme_id: speaker}, transcription: {scheme_id: sentence}, arousal: {}}
"""


def tone(path: Path, number: int = 0, *, seconds: float = 0.2) -> None:
    """A recording that differs from those of other numbers."""
    path.parent.mkdir(parents=True, exist_ok=True)
    time_s = np.arange(int(RATE_HZ * seconds)) / RATE_HZ
    soundfile.write(path, 0.1 * np.sin(2 * np.pi * (200 + 10 * number) * time_s), RATE_HZ)


def audformat_folder(root: Path, header: str = HEADER) -> Path:
    """A database as audformat writes it: two speakers, two emotions, eight recordings."""
    files = [f"wav/{speaker:02d}a01{letter}{take}.wav" for speaker in (3, 8) for letter in "WN" for take in "ab"]
    for number, file in enumerate(files):
        tone(root / file, number)
    (root / "db.yaml").write_text(header, encoding="utf-8")
    for part, speaker in (("train", "03"), ("test", "08")):
        rows = [f"{file},{'anger' if 'W' in file else 'neutral'}" for file in files if file[4:6] == speaker]
        _write(root / f"db.emotion.{part}.csv", "file,emotion", rows)
    rows = [f"{file},{int(file[4:6])},a01,{0.25 * number}" for number, file in enumerate(files)]
    _write(root / "db.files.csv", "file,speaker,transcription,arousal", rows)
    return root


def _write(path: Path, header: str, rows: Sequence[str]) -> None:
    path.write_text("\n".join((header, *rows)) + "\n", encoding="utf-8")
