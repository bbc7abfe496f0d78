"""Memory of extraction and reading, as the corpus grows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.corpora.manifest import read_manifest
from pipelines.errors import WorkerError
from pipelines.extraction import scale
from pipelines.extraction.scale import bench_scale, write_corpus

BYTES_PER_ROW = 1100
"""1.5 GB for a million utterances, less what torch, transformers and the rest take (about 350 MB)."""


def test_the_simulated_corpus_is_a_manifest(tmp_path: Path) -> None:
    manifest = read_manifest(write_corpus(tmp_path, 600))
    assert len(manifest) == 600
    assert manifest.utterance_ids[599] == "utterance_00000599"
    paths = manifest.audio_paths()
    assert len(set(paths)) == 251
    assert paths[0] == paths[251]
    assert all(path.is_file() for path in paths)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scale")


@pytest.fixture(scope="module")
def measured(folder: Path) -> dict[str, Any]:
    return bench_scale(700, folder=folder)


def test_extraction_and_reading_are_measured_from_outside(measured: dict[str, Any], folder: Path) -> None:
    assert measured["rows"] == measured["read_rows"] == 700
    for name in ("peak_memory_mb", "start_memory_mb", "read_peak_memory_mb"):
        assert 50 < measured[name] < 1500, name
    assert measured["peak_memory_mb"] >= measured["start_memory_mb"]
    assert measured["store_files"] > 5
    assert measured["seconds"] > 0
    assert (folder / "cache" / "scale" / "free" / "clean.zarr").is_dir()


@pytest.mark.usefixtures("measured")
def test_wrongly_joined_rows_are_noticed(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check of what was read: rows of one recording must have one embedding."""
    store, report = folder / "cache" / "scale" / "free" / "clean.zarr", tmp_path / "read.json"
    scale.read_stage(store, 700, report)
    assert json.loads(report.read_text())["right"] is True
    monkeypatch.setattr(scale, "_RECORDINGS", 250)
    scale.read_stage(store, 700, report)
    assert json.loads(report.read_text())["right"] is False


def test_a_stage_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match=r"extract_stage .* ended with status 1; it said: .*There is no manifest at"):
        scale._run_stage("extract_stage", tmp_path / "none.csv", tmp_path / "cache", report=tmp_path / "report.json")


@pytest.mark.slow
def test_memory_per_utterance_is_bounded() -> None:
    """Between 20,000 and 60,000 utterances, so that what does not depend on their number drops out."""
    small, large = (bench_scale(rows) for rows in (20_000, 60_000))
    per_row = (large["peak_memory_mb"] - small["peak_memory_mb"]) * 2**20 / 40_000
    assert per_row <= BYTES_PER_ROW, (small, large)
    read_per_row = (large["read_peak_memory_mb"] - small["read_peak_memory_mb"]) * 2**20 / 40_000
    assert read_per_row <= BYTES_PER_ROW / 2, (small, large)
    assert np.isfinite(per_row)
