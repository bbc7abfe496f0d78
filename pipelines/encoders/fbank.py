"""SpeechBrain's log mel frames, every clip as if it were alone; for the x-vector and ECAPA-TDNN.

Windows of 25 ms every 10 ms, mel bands in dB, clipped 80 dB below the clip's loudest band, minus their mean over the clip
(``Fbank`` and ``InputNormalization(norm_type="sentence", std_norm=False)``). A clip of L samples has 1 + L // 160 frames.

What breaks the promise of ``base.py`` upstream, and the cure:

* Upstream counts a clip's frames as its share of the longest clip's samples, rounded, which is often one off. Here they are
  counted from its own samples.
* The loudest band, 80 dB above the floor, is sought among the clip's own frames: the frame behind the last one still sees the
  last samples and can be louder.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from pipelines.encoders.padding import pad_batch, valid_mask

__all__ = ["HOP_SAMPLES", "cpu_groups", "own_frames"]

HOP_SAMPLES = 160
_CPU_GROUP_SAMPLES = 240_000  # 15 s: what a layer makes of it stays in the cache


def own_frames(fbank: Any, batch: Sequence[Tensor], *, min_samples: int, device: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Features of a batch.

    Args:
        fbank: speechbrain's ``Fbank``.
        batch: B waveforms, float32 [samples].
        min_samples: shorter clips are extended to it with zeros.
        device: where the result goes.

    Returns:
        Frames [B, T, mel bands] without their mean over the clip, finite beyond its end; their numbers int64 [B]; and which of
        them belong to the clip, 0 or 1 in float32 [B, T, 1].
    """
    waveforms, lengths = pad_batch(batch, min_samples=min_samples, device=device)
    lengths = 1 + lengths // HOP_SAMPLES  # frames from here on
    real, imaginary = fbank.compute_STFT(waveforms).unbind(-1)
    spectra = real.square() + imaginary.square()  # power, [B, T, bins]
    valid = valid_mask(lengths, spectra.shape[1]).float()[..., None]
    frames = fbank.compute_fbanks(spectra * valid)  # [B, T, mel bands], dB
    return frames - (frames * valid).sum(1, keepdim=True) / lengths[:, None, None], lengths, valid


def cpu_groups(batch: Sequence[Tensor]) -> Iterator[Sequence[Tensor]]:
    """Runs of the batch of at most 15 s once padded, at least one clip each."""
    start, longest = 0, 0
    for index, clip in enumerate(batch):
        longest = max(longest, clip.numel())
        if index > start and longest * (index + 1 - start) > _CPU_GROUP_SAMPLES:
            yield batch[start:index]
            start, longest = index, clip.numel()
    yield batch[start:]
