"""One block through one encoder: decode, batch by length, encode, pool.

A recording that cannot be used fails alone, with its reason; the others of its block go on. Longer recordings than
``LONGEST_S`` fail as well rather than being cut: attention over minutes of audio needs memory in proportion to the square of
its length.

On a CPU every batch is computed by one thread, and several threads take batches side by side. A matrix product that is split
among threads rounds differently with their number; a batch on one thread does not, so the store is the same on one core and on
many. It is no slower: small products gain little from being split.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
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

__all__ = ["BATCH_S", "LONGEST_S", "DecodedClip", "decode_clips", "encode_block", "run_batches"]

LONGEST_S = 120.0
"""Longest recording, in seconds, that is encoded in one piece."""

BATCH_S = {"cpu": 16.0, "cuda": 64.0}
"""Seconds of audio per batch, padding included, by kind of device. On a CPU as many batches as cores are in memory."""


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


def run_batches(
    encoder: Encoder, batches: Sequence[list[int]], compute: Callable[[list[int]], None]
) -> Iterator[list[int]]:
    """Compute batches, on a CPU one per thread and several at a time; yield each when it is done, in the order given.

    Args:
        encoder: decides by its device.
        batches: what to compute.
        compute: called with every batch, in inference mode, from several threads.
    """

    def task(batch: list[int]) -> list[int]:
        with torch.inference_mode():
            compute(batch)
        return batch

    if encoder.device.type != "cpu":
        yield from map(task, batches)
        return
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield from pool.map(task, batches)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(threads)


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

    def compute(batch: list[int]) -> None:
        rows = [usable[position][0] for position in batch]
        waveforms = [torch.from_numpy(usable[position][1]) for position in batch]
        for representation in encoder.encode_padded(waveforms):
            index = spec.representations.index(representation.name)
            batch_mean, batch_std = pool_frames(representation.frames, representation.num_frames)
            mean[rows, index] = batch_mean.cpu().numpy()
            std[rows, index] = batch_std.cpu().numpy()
            num_frames[rows] = representation.num_frames.cpu().numpy()

    batches = plan_batches(lengths, max_padded_samples=int(BATCH_S[encoder.device.type] * spec.sample_rate_hz))
    for batch in run_batches(encoder, batches, compute):
        if done is not None:
            done(len(batch), float(sum(duration_s[usable[position][0]] for position in batch)))
    for row in range(len(clips)):
        if not failure[row] and not (np.isfinite(mean[row]).all() and np.isfinite(std[row]).all()):
            failure[row] = f"The embedding by {spec.name} is not finite (NaN or infinite)."
        if failure[row]:
            mean[row], std[row], num_frames[row] = np.nan, np.nan, 0
    return BlockResult(mean, std, num_frames, duration_s, failure)
