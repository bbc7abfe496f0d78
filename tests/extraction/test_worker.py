from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.audio.decode import Waveform
from pipelines.extraction import worker
from pipelines.extraction.worker import DecodedClip, decode_clips, encode_block
from tests.extraction.fakes import HOP, RATE, FakeEncoder, make_corpus, sine


def _clip(number: int, **options: float) -> DecodedClip:
    samples = sine(number, **options).astype(np.float32)
    return DecodedClip(Waveform(samples, len(samples) / RATE), "")


BROKEN = DecodedClip(None, "nowhere.wav does not exist.")


# ------------------------------------------------------------------------------------------------ decoding


def test_decoding_keeps_the_order_and_the_reasons(tmp_path: Path) -> None:
    manifest = make_corpus(tmp_path, count=20, odd={3: b"", 7: None, 12: b"text" * 1000, 15: np.zeros(800)})
    with ThreadPoolExecutor(4) as pool:
        clips = decode_clips(manifest.audio_paths(), RATE, pool)
    assert [number for number, clip in enumerate(clips) if clip.waveform is None] == [3, 7, 12, 15]
    assert [clip.failure != "" for clip in clips] == [clip.waveform is None for clip in clips]
    for number, words in {3: "is empty", 7: "does not exist", 12: "cannot be read", 15: "is silent"}.items():
        assert words in clips[number].failure
        assert f"clip{number:03d}.wav" in clips[number].failure
    waveform = clips[5].waveform
    assert waveform is not None
    np.testing.assert_allclose(waveform.samples, sine(5), atol=1e-7)


def test_long_recordings_fail_and_are_not_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "LONGEST_S", 1.0)
    manifest = make_corpus(tmp_path, count=3, odd={1: sine(1, seconds=1.5), 2: sine(2, seconds=1.0)})
    with ThreadPoolExecutor(1) as pool:
        clips = decode_clips(manifest.audio_paths(), RATE, pool)
    assert [clip.waveform is None for clip in clips] == [False, True, False]
    assert "lasts 2 s; recordings above 1 s" in clips[1].failure
    assert "Cut it into utterances" in clips[1].failure


# ------------------------------------------------------------------------------------------------ encoding


def test_equals_one_by_one() -> None:
    encoder = FakeEncoder()
    clips = [_clip(number) for number in range(30)]
    together = encode_block(clips, encoder)
    assert max(encoder.batches) > 1
    for number, clip in enumerate(clips):
        alone = encode_block([clip], encoder)
        np.testing.assert_allclose(together.mean[number], alone.mean[0], rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(together.std[number], alone.std[0], rtol=1e-6, atol=1e-7)
        assert together.num_frames[number] == alone.num_frames[0]


def test_equals_the_frames_of_encode() -> None:
    encoder = FakeEncoder()
    clip = _clip(3)
    assert clip.waveform is not None
    (frames,) = encoder.encode([torch.from_numpy(clip.waveform.samples)])
    result = encode_block([clip], encoder)
    for index, name in enumerate(encoder.spec.representations):
        np.testing.assert_allclose(result.mean[0, index], frames[name].double().mean(0), rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(
            result.std[0, index], frames[name].double().std(0, correction=0), rtol=1e-5, atol=1e-7
        )
    assert result.num_frames[0] == len(frames["level"]) == len(clip.waveform.samples) // HOP


@pytest.mark.parametrize("seconds", [0.01, 0.7, 1e9])
def test_batch_composition_does_not_matter(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    clips = [_clip(number) for number in range(25)]
    expected = encode_block(clips, FakeEncoder())
    monkeypatch.setitem(worker.BATCH_S, "cpu", seconds)
    encoder = FakeEncoder()
    result = encode_block(clips, encoder)
    if seconds == 0.01:
        assert encoder.batches == [1] * 25
    np.testing.assert_allclose(result.mean, expected.mean, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(result.std, expected.std, rtol=1e-6, atol=1e-7)


def test_batches_respect_the_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(worker.BATCH_S, "cpu", 1.0)
    encoder = FakeEncoder()
    encode_block([_clip(1, seconds=0.25) for _ in range(10)], encoder)
    assert encoder.batches == [4, 4, 2]


def test_broken_clip_in_the_middle_fails_alone() -> None:
    clips = [_clip(number) for number in range(9)]
    expected = encode_block(clips, FakeEncoder())
    clips[4] = BROKEN
    result = encode_block(clips, FakeEncoder())
    others = [row for row in range(9) if row != 4]
    assert result.failure == ["" if row != 4 else BROKEN.failure for row in range(9)]
    np.testing.assert_allclose(result.mean[others], expected.mean[others], rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(result.num_frames[others], expected.num_frames[others])
    assert np.isnan(result.mean[4]).all()
    assert np.isnan(result.std[4]).all()
    assert result.num_frames[4] == 0
    assert np.isnan(result.duration_s[4])


def test_embedding_that_is_not_finite_fails_alone() -> None:
    clips = [_clip(number) for number in range(5)]
    clips[2] = _clip(2, level=1.0)
    result = encode_block(clips, FakeEncoder())
    assert result.failure == ["", "", "The embedding by fake is not finite (NaN or infinite).", "", ""]
    assert np.isnan(result.mean[2]).all()
    assert np.isnan(result.std[2]).all()
    assert result.num_frames.tolist()[2] == 0
    assert np.isfinite(result.mean[[0, 1, 3, 4]]).all()
    assert np.isfinite(result.duration_s).all()  # it could be decoded, after all


def test_all_broken() -> None:
    encoder = FakeEncoder()
    result = encode_block([BROKEN, BROKEN], encoder)
    assert encoder.batches == []
    assert result.failure == [BROKEN.failure] * 2
    assert result.mean.shape == (2, 2, 4)
    assert np.isnan(result.mean).all()


def test_one_sample() -> None:
    clip = DecodedClip(Waveform(np.array([0.5], np.float32), 1 / RATE), "")
    result = encode_block([clip, _clip(1)], FakeEncoder())
    assert result.failure == ["", ""]
    assert result.num_frames[0] == 1
    assert (result.std[0] == 0).all()


def test_done_is_told_of_every_clip_that_was_encoded() -> None:
    told: list[tuple[int, float]] = []
    clips = [_clip(number) for number in range(12)]
    clips[3] = BROKEN
    encode_block(clips, FakeEncoder(), done=lambda rows, seconds: told.append((rows, seconds)))
    assert sum(rows for rows, _ in told) == 11
    expected = sum(clip.waveform.duration_s for clip in clips if clip.waveform is not None)
    assert sum(seconds for _, seconds in told) == pytest.approx(expected)


def test_types_are_those_of_the_store() -> None:
    result = encode_block([_clip(0)], FakeEncoder())
    assert result.mean.dtype == result.std.dtype == np.float32
    assert result.num_frames.dtype == np.int32
    assert result.duration_s.dtype == np.float64
