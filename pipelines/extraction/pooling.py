"""Frames to one vector: mean and standard deviation over an utterance's own frames, on the device, in float32 or better."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["combine_windows", "pool_frames"]


def pool_frames(frames: Tensor, stop: Tensor, start: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over time; frames outside ``start:stop`` never enter.

    Args:
        frames: [B, T, D], anything (also NaN) outside.
        stop: int64 [B], frame behind the last one of each utterance, from 1 to T.
        start: int64 [B], first frame of each, below ``stop``; 0 for all if left out.

    Returns:
        mean [B, D] and std [B, D], float32. The deviation is the biased one, sqrt(mean((x - mean)^2)): 0 for one frame. It is
        computed in two passes, so that a large mean costs no digits.
    """
    position = torch.arange(frames.shape[1], device=frames.device)
    own = position < stop.unsqueeze(1)  # own is [B, T]
    count = stop
    if start is not None:
        own &= position >= start.unsqueeze(1)
        count = stop - start
    mask = own.unsqueeze(2)
    count = count.to(torch.float32).unsqueeze(1)
    kept = torch.where(mask, frames.to(torch.float32), 0.0)
    mean = kept.sum(dim=1) / count
    deviation = torch.where(mask, kept - mean.unsqueeze(1), 0.0)
    std = (deviation.square().sum(dim=1) / count).sqrt()
    return mean, std


def combine_windows(
    mean: NDArray[np.float32], std: NDArray[np.float32], weight: NDArray[np.int64], *, between: bool
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and standard deviation of a recording from those of its windows (the law of total variance).

    Args:
        mean: [W, ...], of every window.
        std: [W, ...], biased.
        weight: [W], frames of every window, or samples where a window gives one embedding.
        between: whether the windows' means differ by variation over time, which belongs to the deviation; False for
            utterance-level embeddings, which have none.

    Returns:
        mean [...] and std [...].
    """
    share = (weight / weight.sum()).reshape(-1, *[1] * (mean.ndim - 1))
    total = (share * mean.astype(np.float64)).sum(axis=0)
    variance = share * np.square(std, dtype=np.float64)
    if between:
        variance = variance + share * np.square(mean - total)
    return total.astype(np.float32), np.sqrt(variance.sum(axis=0)).astype(np.float32)
