"""What every encoder's tests need: ragged batches, and the comparison of one result with another."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pipelines.encoders.base import Encoder

TOLERANCE = 1e-5


def speechlike(samples: int, *, seed: int) -> Tensor:
    """A buzz with a wandering pitch, noise, and pauses, at the level of speech; float32 [samples]."""
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(samples) / 16000.0
    pitch = 120.0 + 40.0 * torch.sin(3.0 * time + seed)
    buzz = torch.sign(torch.sin(2.0 * torch.pi * torch.cumsum(pitch, 0) / 16000.0))
    envelope = torch.sin(5.0 * time + seed).clamp_min(0.0)
    noise = torch.randn(samples, generator=generator)
    return (envelope * (0.1 * buzz + 0.05 * noise) + 0.002 * noise).float()


def clip_for(encoder: Encoder, samples: int, *, seed: int) -> Tensor:
    """What an encoder takes: speech-like sound of so many samples; of text, token ids, fewer of them for fewer samples."""
    if not encoder.spec.takes_text:
        return speechlike(samples, seed=seed)
    count, vocabulary = max(2, min(512, samples // 200)), int(str(encoder.spec.settings["vocab_size"]))
    ids = torch.randint(5, vocabulary, (count,), generator=torch.Generator().manual_seed(seed))
    # Special tokens at both ends, as a tokenizer puts them.
    ids[[0, -1]] = torch.tensor([0, 2] if encoder.spec.settings["model_type"] == "roberta" else [2, 3])
    return ids


def ragged_clips(encoder: Encoder) -> list[Tensor]:
    """Below the shortest length, at it and around it, odd remainders, equal lengths, long ones, one with appended silence."""
    if encoder.spec.takes_text:
        lengths = (1, 600, 700, 1400, 1400, 2600, 8000, 25_000, 51_199, 102_400)
        return [clip_for(encoder, samples, seed=index) for index, samples in enumerate(lengths)]
    shortest, hop = encoder.min_samples, encoder.spec.hop_samples or 160
    lengths = [1, shortest - 1, shortest, shortest + 1, 7 * hop, 9 * hop + 1, 12 * hop - 1, 20011, 20011, 33333]
    clips = [speechlike(max(1, length), seed=index) for index, length in enumerate(lengths)]
    clips.append(torch.cat([clips[7], torch.zeros(4001)]))
    order = torch.randperm(len(clips), generator=torch.Generator().manual_seed(3)).tolist()
    return [clips[index] for index in order]


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Largest absolute difference over largest absolute value; infinite where shapes differ or a value is not finite."""
    if found.shape != expected.shape or not bool(torch.isfinite(found).all()):
        return float("inf")
    return float((found - expected).abs().max() / expected.abs().max())


def frames_off(found: Tensor, expected: Tensor) -> int:
    """Frames that differ by more than the tolerance: what a quantiser may do where two vectors are equally near."""
    assert found.shape == expected.shape
    return int(((found - expected).abs().amax(1) > TOLERANCE * expected.abs().max()).sum())


def assert_batched_equals_alone(encoder: Encoder, clips: Sequence[Tensor]) -> None:
    """Batched, in another order, and alone give the same; quantised frames may differ in one frame of two hundred."""
    alone = [encoder.encode([clip])[0] for clip in clips]
    order = torch.randperm(len(clips), generator=torch.Generator().manual_seed(11)).tolist()
    permuted = encoder.encode([clips[index] for index in order])
    batches = {
        "in one batch": encoder.encode(clips),
        "permuted": [permuted[order.index(index)] for index in range(len(clips))],
    }
    for how, batch in batches.items():
        off = total = 0
        for clip, found, expected in zip(clips, batch, alone, strict=True):
            assert list(found) == list(encoder.spec.representations)
            for name, frames in found.items():
                assert frames.shape == (encoder.num_frames(clip.numel()), encoder.spec.dim)
                assert frames.dtype == torch.float32
                if name in ("quantized", "semantic"):
                    off += frames_off(frames, expected[name])
                    total += len(frames)
                else:
                    error = relative_error(frames, expected[name])
                    assert error <= TOLERANCE, f"{how}: {name} of {clip.numel()} samples is off by {error:.1e}"
        assert off <= total // 200, f"{how}: {off} of {total} quantised frames differ"
