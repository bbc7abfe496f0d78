"""Extraction and its benchmark on a GPU; without one, the same checks on the CPU with tiny encoders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.audio.decode import decode
from pipelines.encoders.base import Encoder
from pipelines.extraction.bench import bench_extract, recorded_batches, synthetic_corpus
from pipelines.extraction.engines.local import extract_corpus
from pipelines.store.embeddings import EmbeddingStore
from tests.gpu.devices import DEVICES, encoder_on, little_memory


def _features(store: EmbeddingStore, representation: str, pool: str = "mean") -> np.ndarray:
    return store.features(store.utterance_ids, representation=representation, pool=pool)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["wavlm-tiny", "encodec-tiny", "xvector-tiny"])
def test_a_store_equals_that_of_the_cpu_and_itself(device: str, name: str, tmp_path: Path) -> None:
    manifest = synthetic_corpus(tmp_path / "audio", audio_s=40)
    encoder = encoder_on(device, name)
    stores = [extract_corpus(manifest, encoder, cache_dir=tmp_path / cache) for cache in ("first", "second")]
    on_cpu = extract_corpus(manifest, encoder_on("cpu", name), cache_dir=tmp_path / "cpu")
    assert stores[0].provenance.device == device
    representation = encoder.spec.representations[0]  # of a codec, the latents
    first, second, expected = (_features(store, representation) for store in (*stores, on_cpu))
    np.testing.assert_allclose(first, expected, rtol=0, atol=1e-3 * np.abs(expected).max())
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("device", DEVICES)
def test_a_batch_that_does_not_fit_is_halved(device: str, tmp_path: Path) -> None:
    """Memory is limited to between what one clip needs and what a whole batch needs."""
    manifest = synthetic_corpus(tmp_path / "audio", audio_s=300 if device == "cuda" else 60)
    encoder = encoder_on(device, "soundstream" if device == "cuda" else "soundstream-tiny")
    clips = [torch.from_numpy(decode(path, encoder.spec.sample_rate_hz).samples) for path in manifest.audio_paths()]
    with recorded_batches(encoder) as planned:
        plenty = extract_corpus(manifest, encoder, cache_dir=tmp_path / "plenty")
    with (
        little_memory(encoder, clip=max(clips, key=len), batch=max(planned, key=len)),
        recorded_batches(encoder) as attempted,
    ):
        scarce = extract_corpus(manifest, encoder, cache_dir=tmp_path / "scarce")
    assert len(attempted) > len(planned)
    assert min(map(len, attempted)) <= max(map(len, planned)) // 2
    assert scarce.counts == (0, len(manifest), 0)
    expected = _features(plenty, "latent")
    np.testing.assert_allclose(_features(scarce, "latent"), expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    _works_as_before(encoder, manifest_seconds=20, folder=tmp_path)


def _works_as_before(encoder: Encoder, *, manifest_seconds: float, folder: Path) -> None:
    """Nothing is left of the shortage."""
    manifest = synthetic_corpus(folder / "more", audio_s=manifest_seconds)
    with recorded_batches(encoder) as batches:
        extract_corpus(manifest, encoder, cache_dir=folder / "afterwards")
    assert sum(map(len, batches)) == len(manifest)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_the_benchmark_runs(device: str, precision: str, tmp_path: Path) -> None:
    encoder = encoder_on(device, "hubert-tiny", precision=precision)
    manifest = synthetic_corpus(tmp_path, audio_s=20, files="flac")
    measured = bench_extract(encoder, manifest, repeats=1, naive_s=10, product_size=256)
    assert measured["files"] == "flac"
    assert measured["device"] == device
    assert measured["precision"] == precision
    assert measured["share_of_forward"] > 0
    assert measured["share_of_peak"] > 0
    assert (measured["peak_cuda_memory_mb"] is not None) == (device == "cuda")
    assert measured["naive_kind"] == "transformers HubertModel"
    assert measured["naive_relative_error"] <= (1e-3 if precision == "float32" else 0.2)
