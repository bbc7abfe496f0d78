from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pipelines.audio.decode import Waveform
from pipelines.encoders.base import PaddedRepresentation
from pipelines.errors import DeviceError
from pipelines.extraction import worker
from pipelines.extraction.decoding import DecodedClip
from pipelines.extraction.worker import BatchLimit, Work, encode_clips, run_blocks
from pipelines.store.embeddings import FrameSpec
from tests.extraction.fakes import HOP, RATE, FakeEncoder, make_corpus, sine


def _clip(number: int, **options: float) -> DecodedClip:
    samples = sine(number, **options).astype(np.float32)
    return DecodedClip(Waveform(samples, len(samples) / RATE), "")


BROKEN = DecodedClip(None, "nowhere.wav does not exist.")


# ------------------------------------------------------------------------------------------------ encoding


def test_equals_one_by_one() -> None:
    encoder = FakeEncoder()
    clips = [_clip(number) for number in range(30)]
    together = encode_clips(clips, encoder)
    assert max(encoder.batches) > 1
    for number, clip in enumerate(clips):
        alone = encode_clips([clip], encoder)
        np.testing.assert_allclose(together.mean[number], alone.mean[0], rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(together.std[number], alone.std[0], rtol=1e-6, atol=1e-7)
        assert together.num_frames[number] == alone.num_frames[0]


def test_equals_the_frames_of_encode() -> None:
    encoder = FakeEncoder()
    clip = _clip(3)
    assert clip.waveform is not None
    (frames,) = encoder.encode([torch.from_numpy(clip.waveform.samples)])
    result = encode_clips([clip], encoder)
    for index, name in enumerate(encoder.spec.representations):
        np.testing.assert_allclose(result.mean[0, index], frames[name].double().mean(0), rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(
            result.std[0, index], frames[name].double().std(0, correction=0), rtol=1e-5, atol=1e-7
        )
    assert result.num_frames[0] == len(frames["level"]) == len(clip.waveform.samples) // HOP


@pytest.mark.parametrize("seconds", [0.01, 0.7, 1e9])
def test_batch_composition_does_not_matter(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    clips = [_clip(number) for number in range(25)]
    expected = encode_clips(clips, FakeEncoder())
    monkeypatch.setitem(worker.BATCH_S, "cpu", seconds)
    encoder = FakeEncoder()
    result = encode_clips(clips, encoder)
    if seconds == 0.01:
        assert encoder.batches == [1] * 25
    np.testing.assert_allclose(result.mean, expected.mean, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(result.std, expected.std, rtol=1e-6, atol=1e-7)


def test_batches_respect_the_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(worker.BATCH_S, "cpu", 1.0)
    encoder = FakeEncoder()
    encode_clips([_clip(1, seconds=0.25) for _ in range(10)], encoder)
    assert encoder.batches == [4, 4, 2]


def test_broken_clip_in_the_middle_fails_alone() -> None:
    clips = [_clip(number) for number in range(9)]
    expected = encode_clips(clips, FakeEncoder())
    clips[4] = BROKEN
    result = encode_clips(clips, FakeEncoder())
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
    result = encode_clips(clips, FakeEncoder())
    assert result.failure == ["", "", "The embedding by fake is not finite (NaN or infinite).", "", ""]
    assert np.isnan(result.mean[2]).all()
    assert np.isnan(result.std[2]).all()
    assert result.num_frames.tolist()[2] == 0
    assert np.isfinite(result.mean[[0, 1, 3, 4]]).all()
    assert np.isfinite(result.duration_s).all()  # it could be decoded, after all


def test_all_broken() -> None:
    encoder = FakeEncoder()
    result = encode_clips([BROKEN, BROKEN], encoder)
    assert encoder.batches == []
    assert result.failure == [BROKEN.failure] * 2
    assert result.mean.shape == (2, 2, 4)
    assert np.isnan(result.mean).all()


def test_one_sample() -> None:
    clip = DecodedClip(Waveform(np.array([0.5], np.float32), 1 / RATE), "")
    result = encode_clips([clip, _clip(1)], FakeEncoder())
    assert result.failure == ["", ""]
    assert result.num_frames[0] == 1
    assert (result.std[0] == 0).all()


def test_done_is_told_of_every_clip_that_was_encoded() -> None:
    told: list[tuple[int, float]] = []
    clips = [_clip(number) for number in range(12)]
    clips[3] = BROKEN
    encode_clips(clips, FakeEncoder(), done=lambda rows, seconds: told.append((rows, seconds)))
    assert sum(rows for rows, _ in told) == 11
    expected = sum(clip.waveform.duration_s for clip in clips if clip.waveform is not None)
    assert sum(seconds for _, seconds in told) == pytest.approx(expected)


def test_types_are_those_of_the_store() -> None:
    result = encode_clips([_clip(0)], FakeEncoder())
    assert result.mean.dtype == result.std.dtype == np.float32
    assert result.num_frames.dtype == np.int32
    assert result.duration_s.dtype == np.float64


# ------------------------------------------------------------------------------------------------ long recordings


def test_windows_are_put_together_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames of the fake encoder see their own samples only, so windows change nothing but the last bits."""
    clips = [_clip(0, seconds=0.5), _clip(1, seconds=7.777), BROKEN, _clip(2, seconds=30.01), _clip(3, seconds=2.0)]
    frames = FrameSpec(("level", "shape"), "float32")
    whole = encode_clips(clips, FakeEncoder(), frames=frames)
    encoder = FakeEncoder()
    monkeypatch.setattr(encoder, "longest_s", 2.0)
    monkeypatch.setattr(encoder, "context_s", 0.25)
    told: list[tuple[int, float]] = []
    parts = encode_clips(clips, encoder, frames=frames, done=lambda rows, seconds: told.append((rows, seconds)))
    assert sum(encoder.batches) > 20
    np.testing.assert_allclose(parts.mean, whole.mean, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(parts.std, whole.std, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(parts.num_frames, whole.num_frames)
    np.testing.assert_array_equal(parts.duration_s, whole.duration_s)
    assert parts.failure == whole.failure
    assert sum(rows for rows, _ in told) == 4
    assert sum(seconds for _, seconds in told) == pytest.approx(np.nansum(whole.duration_s))
    assert parts.frames is not None
    assert whole.frames is not None
    for name, rows in parts.frames.items():
        for found, expected in zip(rows, whole.frames[name], strict=True):
            np.testing.assert_array_equal(found, expected)


# ------------------------------------------------------------------------------------------------ frames


def test_frames_are_those_of_encode() -> None:
    encoder = FakeEncoder()
    clips = [_clip(number) for number in range(7)]
    clips[3] = BROKEN
    result = encode_clips(clips, encoder, frames=FrameSpec(("shape",), "float32"))
    assert result.frames is not None
    assert list(result.frames) == ["shape"]
    for row, clip in enumerate(clips):
        found = result.frames["shape"][row]
        assert found.shape == (result.num_frames[row], encoder.spec.dim)
        if clip.waveform is not None:
            expected = encoder.encode([torch.from_numpy(clip.waveform.samples)])[0]["shape"]
            np.testing.assert_array_equal(found, expected)


class _Loud(FakeEncoder):
    """Frames beyond float16 for clips of more than 0.3 s."""

    def encode_padded(self, batch: Sequence[Tensor]) -> Iterator[PaddedRepresentation]:
        for made in super().encode_padded(batch):
            loud = torch.tensor([1e7 if len(clip) > 0.3 * RATE else 1.0 for clip in batch])
            yield PaddedRepresentation(made.name, made.frames * loud[:, None, None], made.num_frames)


def test_frames_that_float16_cannot_hold_fail_with_the_option_that_helps() -> None:
    clips = [_clip(0, seconds=0.1), _clip(1, seconds=0.35), _clip(2, seconds=0.1)]
    result = encode_clips(clips, _Loud(), frames=FrameSpec(("shape",), "float16"))
    assert [bool(reason) for reason in result.failure] == [False, True, False]
    assert "exceeds 65504" in result.failure[1]
    assert "--frames-dtype float32" in result.failure[1]
    assert result.frames is not None
    assert [len(rows) for rows in result.frames["shape"]] == [10, 0, 10]
    assert np.isnan(result.mean[1]).all()
    assert encode_clips(clips, _Loud(), frames=FrameSpec(("shape",), "float32")).failure == ["", "", ""]


# ------------------------------------------------------------------------------------------------ memory


class _Small(FakeEncoder):
    """Runs out of memory above so many clips at once."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most
        self.tried: list[int] = []

    def encode_padded(self, batch: Sequence[Tensor]) -> Iterator[PaddedRepresentation]:
        self.tried.append(len(batch))
        if len(batch) > self.most:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        yield from super().encode_padded(batch)


def test_a_batch_that_does_not_fit_is_halved() -> None:
    clips = [_clip(1, seconds=0.25) for _ in range(40)]
    expected = encode_clips(clips, FakeEncoder())
    encoder, limit = _Small(9), BatchLimit(16.0)
    result = encode_clips(clips, encoder, limit=limit)
    np.testing.assert_allclose(result.mean, expected.mean, rtol=1e-6, atol=1e-7)
    assert max(encoder.batches) <= 9
    assert sum(encoder.batches) == 40
    assert encoder.tried[0] == 40
    assert limit.seconds == 1.25  # of 10 s, 5 s and 2.5 s, none fitted
    encoder.tried.clear()
    encode_clips(clips, encoder, limit=BatchLimit(2.25))  # as a later group is planned
    assert max(encoder.tried) == 9


def test_one_recording_that_does_not_fit_stops_the_run() -> None:
    with pytest.raises(DeviceError, match=r"memory of cpu does not hold one recording of 60 s.*fake.*--device cpu"):
        encode_clips([_clip(1)], _Small(0))


def test_other_errors_are_not_taken_for_lack_of_memory() -> None:
    with pytest.raises(RuntimeError, match="gave up"):
        encode_clips([_clip(1), _clip(2)], FakeEncoder(fail_at=0))


# ------------------------------------------------------------------------------------------------ blocks


@pytest.mark.parametrize(("group_s", "decode_workers"), [(3600.0, None), (0.7, None), (0.0, None), (0.7, 2)])
def test_groups_within_a_block_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group_s: float, decode_workers: int | None
) -> None:
    manifest = make_corpus(tmp_path, count=21, odd={3: b"", 4: None, 20: np.zeros(80)})
    encoder, frames = FakeEncoder(), FrameSpec(("level",), "float16")
    expected = list(run_blocks(Work(manifest, 8, None, frames), encoder, [0, 1, 2]))
    monkeypatch.setattr(worker, "GROUP_S", group_s)
    told: list[int] = []
    work = Work(manifest, 8, None, frames, decode_workers)
    found = list(run_blocks(work, FakeEncoder(), [0, 1, 2], done=lambda rows, _: told.append(rows)))
    assert sum(told) == 21
    assert [block for block, _ in found] == [block for block, _ in expected]
    assert [len(block.paths) for block, _ in found] == [8, 8, 5]
    for (_, one), (_, other) in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.mean, other.mean, rtol=1e-6, atol=1e-7)
        np.testing.assert_array_equal(one.duration_s, other.duration_s)
        assert one.failure == other.failure
        assert one.frames is not None
        assert other.frames is not None
        for rows, others in zip(one.frames["level"], other.frames["level"], strict=True):
            np.testing.assert_array_equal(rows, others)


def test_blocks_that_are_told_of_late(tmp_path: Path) -> None:
    """A worker process hears of its next block while it does the one before."""
    manifest = make_corpus(tmp_path, count=12)
    told = threading.Event()

    def indices() -> Iterator[int]:
        yield 2
        assert told.wait(10)
        yield 0

    blocks = run_blocks(Work(manifest, 4), FakeEncoder(), indices())
    assert next(blocks)[0].index == 2
    told.set()
    assert [block.index for block, _ in blocks] == [0]
