"""The benchmark of extraction: what it measures, and that it measures that."""

from __future__ import annotations

import json
import mmap
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipelines.audio.decode import decode
from pipelines.encoders.base import Encoder, PaddedRepresentation
from pipelines.encoders.catalogue import load_encoder
from pipelines.encoders.cpu_linear import PackedLinear
from pipelines.encoders.naive import NaiveCall
from pipelines.errors import ConfigError
from pipelines.extraction import bench
from pipelines.extraction.bench import bench_extract, recorded_batches, synthetic_corpus
from pipelines.extraction.engines.local import extract_corpus
from pipelines.extraction.measure import (
    PeakMemory,
    Stopwatch,
    count_flops,
    high_water_mb,
    matrix_product_flops_per_s,
    median,
    processor_name,
    resident_mb,
)

CPU = torch.device("cpu")

# ------------------------------------------------------------------------------------------------ measuring


def test_flops_of_what_torch_cannot_count() -> None:
    frames, lstm = torch.randn(10, 2, 8), nn.LSTM(8, 5, num_layers=2)
    # Per frame 4 gates of 5, seeing 8 inputs and 5 states in the first layer, 5 and 5 in the second.
    assert count_flops(lambda: lstm(frames)) == 2 * 10 * 2 * (4 * 5 * (8 + 5) + 4 * 5 * (5 + 5))
    query, key, value = (torch.randn(1, 2, steps, 4) for steps in (10, 12, 12))
    assert count_flops(lambda: F.scaled_dot_product_attention(query, key, value)) == 2 * 2 * 10 * 12 * (4 + 4)
    packed = PackedLinear(nn.Linear(8, 3))
    assert count_flops(lambda: packed(torch.randn(7, 8))) == 2 * 7 * 8 * 3


def test_flops_of_a_convolution_and_a_product() -> None:
    layer = nn.Conv1d(2, 3, 5)
    assert count_flops(lambda: layer(torch.randn(1, 2, 20))) == 2 * 16 * 2 * 5 * 3
    assert count_flops(lambda: torch.randn(4, 5) @ torch.randn(5, 6)) == 2 * 4 * 5 * 6


@pytest.mark.parametrize("name", ["wavlm-tiny", "encodec-tiny", "soundstream-tiny", "xvector-tiny", "byols-tiny"])
def test_flops_of_an_encoder_are_those_of_its_upstream_network(name: str) -> None:
    """Two independent programs for the same network; the encoders here also count their quantisers' distances."""
    from pipelines.encoders.naive import naive_call

    encoder, clip = load_encoder(name, weights="random"), torch.randn(24000) * 0.1
    upstream = count_flops(lambda: naive_call(encoder).encode(clip))
    assert count_flops(lambda: encoder.encode([clip])) == pytest.approx(upstream, rel=0.03)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_the_peak_is_a_rate(precision: str) -> None:
    assert 1e8 < matrix_product_flops_per_s(CPU, precision, size=256) < 1e14


def test_resident_memory_is_seen_to_grow() -> None:
    with PeakMemory(interval_s=0.01) as memory:
        before = resident_mb()
        block = mmap.mmap(-1, 64 * 2**20)  # straight from the system, never memory that was freed before
        block.write(bytes(64 * 2**20))
        assert 60 < resident_mb() - before < 150
        time.sleep(0.5)  # it looks every hundredth of a second, on a busy machine a little later
        block.close()
    assert memory.peak_mb >= before + 60
    assert high_water_mb() > before - 50  # of this process alone; `before` counts what it has started, too


def test_memory_of_children_counts() -> None:
    code = "import sys; block = bytearray(b'x' * 96 * 2**20); print('ready', flush=True); sys.stdin.read()"
    before = resident_mb()
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert resident_mb() > before + 90
        assert resident_mb(child.pid) > 90
        child.communicate()
    assert resident_mb(child.pid) == 0.0


def test_small_things() -> None:
    assert median([3.0, 1.0, 2.0, 10.0]) == 2.5
    assert processor_name(CPU)
    watch = Stopwatch(CPU)
    with watch:
        sum(range(10000))
    assert 0 < watch.seconds < 1


# ---------------------------------------------------------------------------------------------- the corpus


@pytest.mark.parametrize("files", ["wav", "flac"])
def test_the_corpus_is_the_same_every_time(tmp_path: Path, files: str) -> None:
    first, second = (synthetic_corpus(tmp_path / name, audio_s=60, files=files) for name in ("a", "b"))
    assert first.digest == second.digest
    durations = []
    for one, other in zip(first.audio_paths(), second.audio_paths(), strict=True):
        assert one.suffix == f".{files}"
        assert soundfile.info(one).subtype == "PCM_16"
        np.testing.assert_array_equal(decode(one, 16000).samples, decode(other, 16000).samples)
        durations.append(decode(one, 16000).duration_s)
    assert 1.5 <= min(durations) < 2.6 < 3.4 < max(durations) <= 6.0
    assert 60 <= sum(durations) < 66


def test_at_least_two_clips_and_only_known_files(tmp_path: Path) -> None:
    assert len(synthetic_corpus(tmp_path, audio_s=1)) == 2
    with pytest.raises(ConfigError, match=r"--files must be one of wav, flac, not 'mp3'"):
        synthetic_corpus(tmp_path, audio_s=1, files="mp3")


# ------------------------------------------------------------------------------------------- the benchmark


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("wavlm-tiny", "transformers WavLMModel"),
        ("encodec-tiny", "encodec EncodecModel: encoder, quantizer"),
        ("soundstream-tiny", "plain torch network of Conv1d"),
    ],
)
def test_what_is_reported(name: str, kind: str, tmp_path: Path) -> None:
    encoder = load_encoder(name, weights="random")
    manifest = synthetic_corpus(tmp_path, audio_s=30)
    measured = bench_extract(encoder, manifest, repeats=2, naive_s=10, product_size=128)
    assert json.loads(json.dumps(measured)) == measured
    assert measured["naive_kind"] == kind
    assert measured["naive_relative_error"] <= 1e-4
    assert 10 <= measured["naive_audio_s"] < 16
    assert 30 <= measured["audio_s"] < 36
    assert (measured["model"], measured["weights"], measured["device"]) == (name, "random", "cpu")
    assert measured["repeats"] == 2
    assert 0 <= measured["padding_waste"] < 0.1
    assert measured["share_of_forward"] == pytest.approx(
        measured["audio_s_per_s"] / measured["forward_audio_s_per_s"], rel=0.01
    )
    assert measured["speedup_over_naive"] == pytest.approx(
        measured["audio_s_per_s"] / measured["naive_audio_s_per_s"], rel=0.05
    )
    assert 100 < measured["peak_memory_mb"] < 4000
    assert measured["peak_cuda_memory_mb"] is None
    assert measured["share_of_peak"] > 0
    assert measured["gflop_per_audio_s"] > 0


def test_without_the_naive_loop(tmp_path: Path) -> None:
    encoder, manifest = load_encoder("xvector-tiny", weights="random"), synthetic_corpus(tmp_path, audio_s=4)
    measured = bench_extract(encoder, manifest, repeats=1, naive_s=0, product_size=128)
    assert measured["naive_audio_s_per_s"] is None
    assert measured["naive_audio_s"] is None
    assert measured["speedup_over_naive"] is None
    assert measured["naive_kind"].startswith("speechbrain")


class _Counting(Encoder):
    """Writes down every batch it is given."""

    def __init__(self, inner: Encoder) -> None:
        super().__init__(spec=inner.spec, weights=inner.weights, device=inner.device)
        self.min_samples = inner.min_samples
        self.inner = inner
        self.seen: list[list[int]] = []

    def num_frames(self, num_samples: int) -> int:
        return self.inner.num_frames(num_samples)

    def encode_padded(self, batch: Sequence[Tensor]) -> Iterator[PaddedRepresentation]:
        self.seen.append([clip.numel() for clip in batch])
        return self.inner.encode_padded(batch)


def test_the_ceiling_runs_the_batches_of_the_extraction(tmp_path: Path) -> None:
    encoder = _Counting(load_encoder("byols-tiny", weights="random"))
    manifest = synthetic_corpus(tmp_path / "audio", audio_s=60)
    with recorded_batches(encoder) as batches:
        extract_corpus(manifest, encoder, cache_dir=tmp_path / "cache")
    extracted = sorted(encoder.seen)
    assert sorted([clip.numel() for clip in batch] for batch in batches) == extracted
    assert sum(map(len, extracted)) == len(manifest)
    encoder.seen.clear()
    bench._forward(encoder, batches)
    assert sorted(encoder.seen) == extracted
    assert len(batches) == len(extracted)  # recording has ended


def test_the_naive_loop_saves_the_mean_of_every_clip(tmp_path: Path) -> None:
    encoder = load_encoder("soundstream-tiny", weights="random")
    paths = synthetic_corpus(tmp_path / "audio", audio_s=6).audio_paths()
    naive = bench.naive_call(encoder)
    bench._naive_loop(naive, paths, encoder.spec.sample_rate_hz, tmp_path / "naive")
    assert sorted(path.name for path in (tmp_path / "naive").iterdir()) == [f"{path.stem}.npy" for path in paths]
    for path in paths:
        saved = np.load(tmp_path / "naive" / f"{path.stem}.npy")
        clip = torch.from_numpy(decode(path, encoder.spec.sample_rate_hz).samples)
        expected = torch.stack([frames.mean(0) for frames in encoder.encode([clip])[0].values()])
        np.testing.assert_allclose(saved, expected, atol=1e-3 * float(expected.abs().max()))


def test_another_architecture_is_refused() -> None:
    encoder = load_encoder("xvector-tiny", weights="random")
    wrong = NaiveCall("something else", lambda clip: [torch.zeros(1, 33)])
    with pytest.raises(
        AssertionError, match=r"something else gives \(1, 33\) for embedding of xvector-tiny, not \(1, 32\)"
    ):
        bench._disagreement(wrong, encoder, [torch.randn(16000)])


def test_other_weights_are_not_compared() -> None:
    encoder = load_encoder("xvector-tiny", weights="random")
    other = NaiveCall("other weights", lambda clip: [torch.zeros(1, 32)], same_weights=False)
    assert bench._disagreement(other, encoder, [torch.randn(16000)]) is None
    same = NaiveCall("same weights", lambda clip: [torch.zeros(1, 32)])
    assert bench._disagreement(same, encoder, [torch.randn(16000)]) == pytest.approx(1.0)


def test_nothing_is_repeated_that_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(bench, "_ENOUGH_S", 0.0)
    seconds = bench._repeat(5, lambda: calls.append("a"), lambda: calls.append("b"), device=CPU)
    assert calls == ["a", "b"]
    assert [len(taken) for taken in seconds] == [1, 1]
    monkeypatch.setattr(bench, "_ENOUGH_S", 60.0)
    bench._repeat(2, lambda: calls.append("c"), lambda: calls.append("d"), device=CPU)
    assert calls[2:] == ["c", "d", "c", "d"]
