"""Estimates: what is counted exactly, and that what is measured grows with what is left to do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from pipelines.corpora.manifest import Manifest, manifest_from_rows
from pipelines.errors import AudioError
from pipelines.extraction.engines.local import extract_corpus
from pipelines.guidance.estimate import estimate_comparison, estimate_extraction
from pipelines.store.embeddings import FrameSpec, store_path
from pipelines.studies.pairs import ComparisonConfig, compare_cells
from pipelines.training.grid import make_cells
from pipelines.training.trainer import TrainConfig
from tests.extraction.fakes import RATE, FakeEncoder

ROWS = 60


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    """Sixty recordings of half a second, of ten speakers and two emotions."""
    rows = []
    for row in range(ROWS):
        wave = 0.1 * np.random.default_rng(row).standard_normal(RATE // 2)
        soundfile.write(tmp_path / f"{row}.wav", wave, RATE)
        emotion = ("anger", "neutral")[row // 10 % 2]
        rows.append({"utterance_id": f"u{row}", "path": f"{row}.wav", "speaker": f"s{row % 10}", "emotion": emotion})
    return manifest_from_rows("made", rows, root=tmp_path)


def test_counts_what_is_left_and_what_it_fills(manifest: Manifest, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    found = estimate_extraction(manifest, FakeEncoder(), cache_dir=cache)
    spec = FakeEncoder().spec
    assert (found.utterances, found.done) == (ROWS, 0)
    assert found.audio_s == pytest.approx(ROWS * 0.5)
    assert found.disk_bytes == 2 * 4 * ROWS * len(spec.representations) * spec.dim
    assert found.seconds > 0
    assert 0 < found.measured_s <= ROWS * 0.5
    assert not cache.exists()

    extract_corpus(manifest, FakeEncoder(), cache_dir=cache)
    found = estimate_extraction(manifest, FakeEncoder(), cache_dir=cache)
    assert (found.done, found.audio_s, found.seconds) == (ROWS, 0, 0)
    real = sum(
        path.stat().st_size for path in Path(str(store_path(cache, "made", spec.name))).rglob("*") if path.is_file()
    )
    assert found.disk_bytes < 3 * real


def test_frames_need_room(manifest: Manifest, tmp_path: Path) -> None:
    spec = FakeEncoder().spec
    without = estimate_extraction(manifest, FakeEncoder(), cache_dir=tmp_path / "cache")
    kept = FrameSpec(spec.representations[:1], "float16")
    more = estimate_extraction(manifest, FakeEncoder(), cache_dir=tmp_path / "cache", frames=kept)
    per_clip = FakeEncoder().num_frames(RATE // 2)
    assert more.disk_bytes - without.disk_bytes == ROWS * per_clip * spec.dim * 2


def test_recordings_that_cannot_be_read(manifest: Manifest, tmp_path: Path) -> None:
    for row in range(0, ROWS, 2):
        (tmp_path / f"{row}.wav").unlink()
    assert estimate_extraction(manifest, FakeEncoder(), cache_dir=tmp_path / "cache").seconds > 0
    for row in range(1, ROWS, 2):
        (tmp_path / f"{row}.wav").unlink()
    with pytest.raises(AudioError, match="None of the recordings that were tried can be read"):
        estimate_extraction(manifest, FakeEncoder(), cache_dir=tmp_path / "cache")


def test_a_comparison_counts_its_heads(manifest: Manifest, tmp_path: Path) -> None:
    cache, run = tmp_path / "cache", tmp_path / "run"
    extract_corpus(manifest, FakeEncoder(), cache_dir=cache)
    name = FakeEncoder().spec.name
    cells = make_cells([], [], [name])
    config = ComparisonConfig(protocol="speaker-5fold", seeds=2, train=TrainConfig(epochs=3))
    found = estimate_comparison(manifest, cells, config=config, cache_dir=cache, run_dir=run)
    assert (found.heads, found.finished) == (2 * 5 + 5, 0)  # the head under two seeds, and the linear rung
    assert found.seconds > 0
    assert not run.exists()

    first = replace(config, seeds=1)
    compared = compare_cells(manifest, cells, config=first, cache_dir=cache, run_dir=run)
    found = estimate_comparison(manifest, cells, config=config, cache_dir=cache, run_dir=run)
    assert (found.heads, found.finished) == (15, 10)
    assert found.data_bytes == 4 * ROWS * compared.dataset.sources[name].dim
    found = estimate_comparison(manifest, cells, config=first, cache_dir=cache, run_dir=run)
    assert (found.finished, found.seconds) == (found.heads, 0)
