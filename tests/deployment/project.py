"""A small corpus, its stores by tiny random encoders, and runs of which models are exported; made once per process."""

from __future__ import annotations

import csv
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import pytest
import soundfile

from pipelines.deployment.card import model_card
from pipelines.deployment.export import choose_cell, export_cell
from pipelines.deployment.model_folder import ModelFolder, write_model
from pipelines.evaluation.runs import read_run
from tests.cli.conftest import write_corpus

__all__ = ["EMOTIONS", "FOLD", "LEFT", "RIGHT", "TEXT", "Project", "project"]

LEFT, RIGHT, TEXT = "wavlm-tiny", "encodec-tiny", "minilm-tiny"
EMOTIONS = ("anger", "neutral", "sadness")
FOLD = "speaker-3fold"
_SHORT = ("--protocol", FOLD, "--seeds", "2", "--epochs", "3", "--workers", "1", "--device", "cpu")


@dataclass(frozen=True)
class Project:
    """Where everything lies.

    Attributes:
        root: folder of all of it.
        data: folder of the recordings, with ``my.csv``.
        cache: stores.
        runs: folder of runs.
    """

    root: Path
    data: Path
    cache: Path
    runs: Path

    def hyfuse(self, *arguments: object) -> None:
        """Run a command; it must succeed."""
        from hyfuse_cli.app import main

        before = sys.argv
        sys.argv = ["hyfuse", *map(str, arguments)]
        try:
            main()
        except SystemExit as ended:
            if ended.code:
                raise AssertionError(f"hyfuse {arguments[0]} ended with {ended.code}") from ended
        finally:
            sys.argv = before

    @cache  # noqa: B019 - one project per process, which lives as long
    def run(self, name: str, *arguments: str) -> Path:
        """A run of ``hyfuse train`` or ``compare``, made when it is asked for."""
        where = ("--corpus", "my", "--cache-dir", self.cache, "--runs-dir", self.runs, "--run", name)
        self.hyfuse(*arguments, *_SHORT, *where)
        return self.runs / name

    def compared(self) -> Path:
        """A comparison of a pair under concat and, in both orders, hyperbolic; with both singles."""
        return self.run(
            "compared", "compare", "--models", f"{LEFT} {RIGHT}", "--fusions", "concat,hyperbolic", "--order", "both"
        )

    @cache  # noqa: B019
    def exported(self, run: Path, title: str, fold: str = "all", seeds: int | None = None) -> ModelFolder:
        """A cell of a run as a model."""
        found = read_run(run)
        cell, score = choose_cell(found, title=title)
        return export_cell(found, cell, score, cache_dir=self.cache, fold=fold, seeds=seeds)

    @cache  # noqa: B019
    def model(self, title: str = f"{LEFT}+{RIGHT} hyperbolic", fold: str = "all", seeds: int | None = None) -> Path:
        """A cell of the comparison as a folder."""
        folder = Path(mkdtemp(dir=self.root)) / "my model"
        model = self.exported(self.compared(), title, fold, seeds)
        write_model(model, folder, model_card(model, folder=folder.name))
        return folder


@cache
def _project() -> Project:
    root = Path(mkdtemp(prefix="hyfuse-project-"))
    table = write_corpus(root / "data", emotions=EMOTIONS, takes=2)
    _with_columns(table)
    found = Project(root, table.parent, root / "cache", root / "runs")
    where = ("--weights", "random", "--corpus", table, "--cache-dir", found.cache)
    for name in (LEFT, RIGHT, TEXT):
        found.hyfuse("extract", "--model", name, *where, "--engine", "local", "--device", "cpu")
    return found


def _with_columns(table: Path) -> None:
    """Transcripts, dimensions and votes beside the emotion, and a recording that cannot be read."""
    with table.open(newline="", encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle))
    generator = np.random.default_rng(3)
    for row in rows:
        place = EMOTIONS.index(row["emotion"])
        row["transcript"] = f"take {row['utterance_id'].replace('_', ' ')} 🙂"
        row["arousal"] = f"{1 + place + generator.uniform(0, 0.5):.3f}"
        row["valence"] = f"{5 - 2 * place + generator.uniform(0, 0.5):.3f}"
        row["emotion_votes"] = f"{row['emotion']}:3;{EMOTIONS[(place + 1) % 3]}:1"
        row["language"] = "en"
    soundfile.write(table.parent / "silent.wav", np.zeros(8000), 16000)
    rows.append({**rows[0], "utterance_id": "silent", "path": "silent.wav"})
    with table.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture
def project() -> Project:
    """The project of this process."""
    return _project()
