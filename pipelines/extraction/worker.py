"""One block through one encoder: decode, batch by length, encode, pool.

A recording that cannot be used fails alone, with its reason; the others of its block go on. Longer recordings than
``LONGEST_S`` fail as well rather than being cut: attention over minutes of audio needs memory in proportion to the square of
its length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from pipelines.audio.decode import Waveform, decode
from pipelines.encoders.base import Encoder
from pipelines.errors import AudioError
from pipelines.extraction.batching import plan_batches
from pipelines.extraction.pooling import pool_frames
from pipelines.store.embeddings import BlockResult

__all__ = ["BATCH_S", "LONGEST_S", "DecodedClip", "decode_clips", "encode_block"]

LONGEST_S = 120.0
"""Longest recording, in seconds, that is encoded in one piece."""

BATCH_S = 64.0
"""Seconds of audio per batch, padding included."""


@dataclass(frozen=True)
class DecodedClip:
    """A recording, decoded or not.

    Attributes:
        waveform: the recording; None if it failed.
        failure: why it failed; empty if it did not.
    """

    waveform: Waveform | None
    failure: str


def _decode_clip(path: Path, rate_hz: int) -> DecodedClip:
    try:
        return DecodedClip(decode(path, rate_hz, longest_s=LONGEST_S), "")
    except AudioError as error:
        return DecodedClip(None, str(error))


def decode_clips(paths: Sequence[Path], rate_hz: int, pool: Executor) -> list[DecodedClip]:
    """Decode recordings with the threads of a pool; order is kept."""
    return list(pool.map(lambda path: _decode_clip(path, rate_hz), paths))


@torch.inference_mode()
def encode_block(
    clips: Sequence[DecodedClip], encoder: Encoder, *, done: Callable[[int, float], None] | None = None
) -> BlockResult:
    """Encode and pool the clips of one block.

    Args:
        clips: n decoded recordings.
        encoder: the frozen model.
        done: called after every batch with (utterances, seconds of audio) it held.

    Returns:
        n rows; NaN and a reason where a recording failed or its embedding is not finite.
    """
    spec = encoder.spec
    shape = (len(clips), len(spec.representations), spec.dim)
    mean, std = np.full(shape, np.nan, np.float32), np.full(shape, np.nan, np.float32)
    num_frames = np.zeros(len(clips), np.int32)
    duration_s = np.array([clip.waveform.duration_s if clip.waveform else np.nan for clip in clips], np.float64)
    failure = [clip.failure for clip in clips]
    usable = [(row, clip.waveform.samples) for row, clip in enumerate(clips) if clip.waveform is not None]
    lengths = [len(samples) for _, samples in usable]
    for batch in plan_batches(lengths, max_padded_samples=int(BATCH_S * spec.sample_rate_hz)):
        rows = [usable[position][0] for position in batch]
        waveforms = [torch.from_numpy(usable[position][1]) for position in batch]
        for representation in encoder.encode_padded(waveforms):
            index = spec.representations.index(representation.name)
            batch_mean, batch_std = pool_frames(representation.frames, representation.num_frames)
            mean[rows, index] = batch_mean.cpu().numpy()
            std[rows, index] = batch_std.cpu().numpy()
            num_frames[rows] = representation.num_frames.cpu().numpy()
        if done is not None:
            done(len(rows), float(duration_s[rows].sum()))
    for row in range(len(clips)):
        if not failure[row] and not (np.isfinite(mean[row]).all() and np.isfinite(std[row]).all()):
            failure[row] = f"The embedding by {spec.name} is not finite (NaN or infinite)."
        if failure[row]:
            mean[row], std[row], num_frames[row] = np.nan, np.nan, 0
    return BlockResult(mean, std, num_frames, duration_s, failure)
