"""A sample of a store's rows computed again from the recordings: agreement is agreement, and every deviation is seen."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import soundfile

from pipelines.audio.conditions import parse_condition, prepare_condition
from pipelines.corpora.manifest import Manifest
from pipelines.errors import ProvenanceError
from pipelines.extraction.engines.local import extract_corpus
from pipelines.extraction.recheck import Recheck, environment_differences, recheck_rows, tolerance_of
from pipelines.store.embeddings import DONE, BlockResult, EmbeddingStore, open_store, open_writer, store_path
from tests.extraction.fakes import RATE, FakeEncoder, make_corpus, sine

COUNT = 12


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return make_corpus(tmp_path / "data", count=COUNT, odd={4: b"no recording"})


@pytest.fixture
def store(tmp_path: Path, manifest: Manifest) -> EmbeddingStore:
    return extract_corpus(manifest, FakeEncoder(), cache_dir=tmp_path / "cache", block_rows=4)


def _check(store: EmbeddingStore, manifest: Manifest, *, sample: int = COUNT, seed: int = 0) -> Recheck:
    return recheck_rows(store, manifest, FakeEncoder(), sample=sample, seed=seed)


def _forged(store: EmbeddingStore, cache_dir: Path, *, row: int, factor: float) -> EmbeddingStore:
    """The same store, one number of one row changed; its checksums are right."""
    ids, done = store.utterance_ids, store.status == DONE
    names = store.provenance.representations
    shape = (len(ids), len(names), store.provenance.dim)
    mean, std = np.full(shape, np.nan, np.float32), np.full(shape, np.nan, np.float32)
    known = [name for name, there in zip(ids, done, strict=True) if there]
    for index, name in enumerate(names):
        mean[done, index] = store.features(known, representation=name, pool="mean")
        std[done, index] = store.features(known, representation=name, pool="std")
    place = int(np.argmax(np.abs(std[row, 1])))
    std[row, 1, place] *= factor
    reasons = store.failures()
    with open_writer(
        store_path(cache_dir, "toy", "fake"), provenance=store.provenance, utterance_ids=ids, block_rows=len(ids)
    ) as writer:
        writer.write_block(
            0,
            BlockResult(
                mean=mean,
                std=std,
                num_frames=store.num_frames,
                duration_s=store.duration_s,
                failure=[reasons.get(name, "") for name in ids],
            ),
        )
    return open_store(store_path(cache_dir, "toy", "fake"))


def test_a_store_agrees_with_its_recordings(manifest: Manifest, store: EmbeddingStore) -> None:
    progress: list[tuple[int, int]] = []
    found = recheck_rows(
        store, manifest, FakeEncoder(), sample=5, progress=lambda done, total: progress.append((done, total))
    )
    assert (found.rows, found.problems, found.tolerance) == (5, (), 1e-5)
    assert 0 <= found.largest <= 1e-6
    assert progress == [(row, 5) for row in range(1, 6)]


def test_all_rows_that_are_done_are_the_most(manifest: Manifest, store: EmbeddingStore) -> None:
    assert _check(store, manifest, sample=100).rows == COUNT - 1
    assert _check(store, manifest, sample=0) == Recheck(0, 0.0, "", 1e-5, (), ())


def test_the_sample_follows_from_the_seed(manifest: Manifest, store: EmbeddingStore) -> None:
    """Of recordings that all differ from the store, those that are named were drawn."""
    for number, path in enumerate(manifest.audio_paths()):
        soundfile.write(path, sine(number, level=0.3), RATE, subtype="FLOAT")
    drawn = []
    for seed in (0, 0, 1):
        found = _check(store, manifest, sample=3, seed=seed)
        drawn.append(sorted({problem.split(",")[0] for problem in found.problems}))
    assert len(drawn[0]) == 3
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_number_that_was_changed_is_found(tmp_path: Path, manifest: Manifest, store: EmbeddingStore) -> None:
    """Though its checksum is right: what was written is not what the recording gives."""
    forged = _forged(store, tmp_path / "forged", row=7, factor=1.0001)
    found = _check(forged, manifest)
    assert len(found.problems) == 1
    assert found.problems[0].startswith("clip007, std of shape: differs by 1.0e-04, allowed are 1e-05")
    assert found.where == "clip007, std of shape"
    assert found.largest == pytest.approx(1e-4, rel=0.01)
    assert _check(_forged(store, tmp_path / "faithful", row=7, factor=1.0), manifest).problems == ()


def test_another_recording_is_found(manifest: Manifest, store: EmbeddingStore) -> None:
    paths = manifest.audio_paths()
    soundfile.write(paths[0], sine(0, seconds=1.0), RATE, subtype="FLOAT")
    paths[1].unlink()
    problems = _check(store, manifest).problems
    assert len(problems) == 2
    assert "clip000 has 5 frames in the store and 100 when computed again: the recording is another one." in problems
    assert any(problem.startswith("clip001 is done in the store and cannot be computed again") for problem in problems)


def test_other_weights_or_another_manifest_are_refused(
    tmp_path: Path, manifest: Manifest, store: EmbeddingStore
) -> None:
    with pytest.raises(ProvenanceError, match=r"cannot be computed again: its weights_digest is f0f0.*at hand is abab"):
        recheck_rows(store, manifest, FakeEncoder(digest="ab" * 32), sample=1)
    other = make_corpus(tmp_path / "data", count=COUNT - 1)
    with pytest.raises(ProvenanceError, match=r"its manifest_digest is"):
        recheck_rows(store, other, FakeEncoder(), sample=1)
    encoder = FakeEncoder()
    encoder.precision = "bf16"
    with pytest.raises(ProvenanceError, match=r"its precision is float32, at hand is bf16"):
        recheck_rows(store, manifest, encoder, sample=1)


def test_a_condition_is_applied_again(tmp_path: Path, manifest: Manifest) -> None:
    noisy, other = (
        prepare_condition(parse_condition(text), manifest=manifest) for text in ("white@5dB", "white@5dB+seed:1")
    )
    store = extract_corpus(manifest, FakeEncoder(), cache_dir=tmp_path / "noisy", distortion=noisy)
    found = recheck_rows(store, manifest, FakeEncoder(), sample=4, distortion=noisy)
    assert found.problems == ()
    assert found.rows == 4
    with pytest.raises(ProvenanceError, match=r"its condition is white@5dB, at hand is clean"):
        recheck_rows(store, manifest, FakeEncoder(), sample=4)
    with pytest.raises(ProvenanceError, match=r"its condition is white@5dB, at hand is white@5dB\+seed:1"):
        recheck_rows(store, manifest, FakeEncoder(), sample=4, distortion=other)


def test_other_libraries_and_devices_are_named(store: EmbeddingStore) -> None:
    assert environment_differences(store, "cpu") == ()
    versions = {**store.provenance.versions, "torch": "1.13", "numpy": "1.0", "vanished": "3"}
    changed = dataclasses.replace(store, provenance=dataclasses.replace(store.provenance, versions=versions))
    found = environment_differences(changed, "cuda")
    assert [line.split()[0] for line in found] == ["numpy", "torch", "vanished", "The"]
    assert found[2] == "vanished is not installed, the store was made with 3."
    assert found[3] == "The device is cuda, the store was made on cpu."


def test_tolerances() -> None:
    assert tolerance_of("float32", "layer_01") == 1e-5
    assert tolerance_of("float32", "quantized") == 1e-2
    assert tolerance_of("bf16", "layer_01") == tolerance_of("bf16", "quantized") == 2e-2
