from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from pipelines.encoders.padding import extended_length, pad_batch, reflect_at_own_end, valid_mask
from pipelines.errors import AudioError


@pytest.mark.parametrize(
    ("num_samples", "multiple_of", "min_samples", "expected"),
    [(1, 1, 1, 1), (1, 320, 1, 320), (320, 320, 1, 320), (321, 320, 1, 640), (5, 1, 400, 400), (5, 320, 400, 640)],
)
def test_extended_length(num_samples: int, multiple_of: int, min_samples: int, expected: int) -> None:
    assert extended_length(num_samples, multiple_of=multiple_of, min_samples=min_samples) == expected


def test_pad_batch_keeps_every_sample_and_adds_zeros_only() -> None:
    clips = [torch.randn(length) for length in (3, 11, 8)]
    padded, lengths = pad_batch(clips, multiple_of=4, min_samples=6)
    assert padded.shape == (3, 12)
    assert padded.dtype == torch.float32
    assert lengths.tolist() == [8, 12, 8]
    assert lengths.dtype == torch.int64
    for row, clip in zip(padded, clips, strict=True):
        assert torch.equal(row[: len(clip)], clip)
        assert not row[len(clip) :].any()


def test_own_length_does_not_depend_on_the_batch() -> None:
    clip = torch.randn(7)
    _, alone = pad_batch([clip], multiple_of=5)
    _, together = pad_batch([torch.randn(1000), clip], multiple_of=5)
    assert alone[0] == together[1] == 10


def test_pad_batch_leaves_its_input_alone() -> None:
    clip = torch.ones(4)
    padded, _ = pad_batch([clip])
    padded.zero_()
    assert torch.equal(clip, torch.ones(4))


@pytest.mark.parametrize("bad", [torch.zeros(0), torch.zeros(2, 5), torch.zeros(5, dtype=torch.float64)])
def test_pad_batch_refuses_what_is_no_waveform(bad: torch.Tensor) -> None:
    with pytest.raises(AudioError, match=r"Waveform 1 of the batch is .* expected float32 \[samples\]"):
        pad_batch([torch.zeros(5), bad])


def test_valid_mask() -> None:
    assert valid_mask(torch.tensor([0, 2, 3]), 3).tolist() == [[False] * 3, [True, True, False], [True] * 3]


@pytest.mark.parametrize("margin", [1, 2, 3])
def test_reflection_equals_that_of_each_clip_alone(margin: int) -> None:
    lengths = [9, 4, 7, 9]
    frames = torch.full((4, 2, 9), torch.nan)
    for row, length in enumerate(lengths):
        frames[row, :, :length] = torch.randn(2, length)
    padded = reflect_at_own_end(frames, torch.tensor(lengths), margin)
    assert padded.shape == (4, 2, 9 + 2 * margin)
    for row, length in enumerate(lengths):
        alone = F.pad(frames[row : row + 1, :, :length], (margin, margin), mode="reflect")[0]
        assert torch.equal(padded[row, :, : length + 2 * margin], alone)
