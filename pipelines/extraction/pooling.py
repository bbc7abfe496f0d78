"""Frames to one vector: mean and standard deviation over an utterance's own frames, on the device, in float32 or better."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["pool_frames"]


def pool_frames(frames: Tensor, num_frames: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over time; frames beyond an utterance's own never enter.

    Args:
        frames: [B, T, D], anything (also NaN) beyond ``num_frames``.
        num_frames: int64 [B], each from 1 to T.

    Returns:
        mean [B, D] and std [B, D], float32. The deviation is the biased one, sqrt(mean((x - mean)^2)): 0 for one frame. It is
        computed in two passes, so that a large mean costs no digits.
    """
    own = torch.arange(frames.shape[1], device=frames.device) < num_frames.unsqueeze(1)  # own is [B, T]
    mask = own.unsqueeze(2)
    count = num_frames.to(torch.float32).unsqueeze(1)
    kept = torch.where(mask, frames.to(torch.float32), 0.0)
    mean = kept.sum(dim=1) / count
    deviation = torch.where(mask, kept - mean.unsqueeze(1), 0.0)
    std = (deviation.square().sum(dim=1) / count).sqrt()
    return mean, std
