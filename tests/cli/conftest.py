"""Running the command line inside the test process, and corpora small enough for it."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import soundfile

RATE_HZ = 16000


@dataclass(frozen=True)
class Outcome:
    """How a command ended: exit status, standard output, standard error (both with line breaks as spaces)."""

    status: int
    out: str
    err: str


Runner = Callable[..., Outcome]


@pytest.fixture
def hyfuse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Runner:
    """``hyfuse("extract", "--model", …)`` in an empty working folder, as the shell would run it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("HYFUSE_CACHE", "HYFUSE_WEIGHTS", "HYFUSE_WEIGHTS_KIND", "HYFUSE_DEBUG"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: object) -> Outcome:
        from hyfuse_cli.app import main

        monkeypatch.setattr(sys, "argv", ["hyfuse", *map(str, arguments)])
        capfd.readouterr()
        status = 0
        try:
            main()
        except SystemExit as ended:
            status = int(ended.code or 0)
        captured = capfd.readouterr()
        return Outcome(status, " ".join(captured.out.split()), " ".join(captured.err.split()))

    return run


def write_corpus(
    folder: Path, *, speakers: int = 6, emotions: Sequence[str] = ("anger", "neutral", "sadness"), takes: int = 3
) -> Path:
    """A corpus whose emotion is its pitch and level: a CSV manifest beside its recordings."""
    generator = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for speaker in range(speakers):
        for index, emotion in enumerate(emotions):
            for take in range(takes):
                time_s = np.arange(int(RATE_HZ * generator.uniform(0.4, 0.9))) / RATE_HZ
                pitch_hz = 110 * (1 + 0.05 * speaker) * (1 + 0.6 * index) * generator.uniform(0.97, 1.03)
                wave = (0.08 + 0.08 * index) * np.sign(np.sin(2 * np.pi * pitch_hz * time_s))
                wave += 0.01 * generator.standard_normal(len(time_s))
                name = f"s{speaker}_{emotion}_{take}"
                soundfile.write(folder / f"{name}.wav", wave, RATE_HZ)
                rows.append((name, f"{name}.wav", f"s{speaker}", emotion))
    path = folder / "my.csv"
    with path.open("w", newline="", encoding="utf-8") as handle:
        csv.writer(handle).writerows([("utterance_id", "path", "speaker", "emotion"), *rows])
    return path


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Manifest of 6 speakers, 3 emotions, 54 utterances."""
    return write_corpus(tmp_path / "data")
