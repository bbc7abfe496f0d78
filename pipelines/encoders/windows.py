"""Recordings too long for one piece, as overlapping windows.

A window covers ``longest_s`` of the recording. Its frames lie on the same grid as those of the whole recording (windows begin
at whole hops), and of the frames that two windows share, each window gives those that lie ``context_s`` or further from its own
edge. So every frame of the recording comes from exactly one window, with at least ``context_s`` of audio on either side of it,
and the number of frames is that of the recording in one piece.

Texts, whose samples and frames are tokens, go the same way; their ``longest_s`` and ``context_s`` are in tokens.

Utterance-level encoders (hop 0) have windows side by side, equally long to a sample; their embeddings are averaged, weighted by
the windows' lengths.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from pipelines.encoders.base import Encoder

__all__ = ["Window", "plan_windows"]


@dataclass(frozen=True)
class Window:
    """A piece of a recording that is encoded like a clip.

    Attributes:
        start: first sample.
        stop: sample behind the last one.
        first: first frame of the window that is kept.
        last: frame behind the last one that is kept, counted within the window.
    """

    start: int
    stop: int
    first: int
    last: int


def plan_windows(encoder: Encoder, num_samples: int) -> list[Window]:
    """Windows of a recording; one that holds all of it where it is short enough.

    Args:
        encoder: gives rate, hop, ``longest_s`` and ``context_s``.
        num_samples: samples of the recording.
    """
    rate_hz, hop = encoder.spec.sample_rate_hz or 1, encoder.spec.hop_samples
    longest = int(encoder.longest_s * rate_hz)
    if num_samples <= longest:
        return [Window(0, num_samples, 0, encoder.num_frames(num_samples))]
    if hop == 0:
        count = -(-num_samples // longest)
        edges = [num_samples * index // count for index in range(count + 1)]
        return [Window(start, stop, 0, 1) for start, stop in pairwise(edges)]
    length, context = longest // hop, -(-int(encoder.context_s * rate_hz) // hop)  # in hops
    step = length - 2 * context
    if step < 1:
        raise ValueError(
            f"Windows of {encoder.longest_s} s have no frame that is {encoder.context_s} s from both edges."
        )
    total = encoder.num_frames(num_samples)
    windows: list[Window] = []
    begin, kept = 0, 0  # first hop of the window; frames of the recording that windows before it give
    while True:
        start, stop = begin * hop, min((begin + length) * hop, num_samples)
        last = total - begin if stop == num_samples else length - context
        windows.append(Window(start, stop, kept - begin, last))
        if stop == num_samples:
            return windows
        kept = begin + last
        begin += step
