"""From clips of any length to one rectangle, and back to what is valid in it.

A clip is extended with zeros on the right to a *length of its own*: at least ``min_samples``, then up to the next multiple
of ``multiple_of`` (the hop of a codec). That length depends on the clip alone, never on what else is in the batch; it is
what the model would be given for this clip alone, and it is what the lengths here mean. All zeros beyond it are padding,
which only makes the batch rectangular and must not reach any result. Nothing is ever cut.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pipelines.errors import AudioError

__all__ = ["extended_length", "pad_batch", "reflect_at_own_end", "valid_mask"]


def extended_length(num_samples: int, *, multiple_of: int = 1, min_samples: int = 1) -> int:
    """Length in samples of one clip after its own zero-extension."""
    return -(-max(num_samples, min_samples) // multiple_of) * multiple_of


def pad_batch(
    batch: Sequence[Tensor],
    *,
    multiple_of: int = 1,
    min_samples: int = 1,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, Tensor]:
    """Collate waveforms into one tensor, zeros on the right.

    Args:
        batch: B >= 1 waveforms, float32 [samples], at least one sample each, on the CPU.
        multiple_of: every clip's own length is rounded up to a multiple of this (1: not at all).
        min_samples: every clip's own length is at least this.
        device: where the result goes.

    Returns:
        Waveforms float32 [B, L], L the largest own length (so a multiple of ``multiple_of``), and the own lengths, int64 [B],
        in samples: those of :func:`extended_length`, *with* the clip's zero-extension and *without* the padding to L. Both
        are on ``device``.

    Raises:
        AudioError: a waveform is not one-dimensional float32, or is empty.
    """
    for row, clip in enumerate(batch):
        if clip.ndim != 1 or clip.dtype != torch.float32 or not clip.numel():
            raise AudioError(
                f"Waveform {row} of the batch is {clip.dtype} of shape {tuple(clip.shape)}; expected float32 [samples] with"
                f" at least one sample. Decode it with pipelines.audio.decode."
            )
    own = [extended_length(clip.numel(), multiple_of=multiple_of, min_samples=min_samples) for clip in batch]
    target = torch.device(device)
    padded = torch.zeros(len(own), max(own), pin_memory=target.type == "cuda")
    for row, clip in enumerate(batch):
        padded[row, : clip.numel()] = clip
    lengths = torch.tensor(own)
    return padded.to(target, non_blocking=True), lengths.to(target)


def valid_mask(lengths: Tensor, size: int) -> Tensor:
    """Which positions of a padded axis belong to the clip.

    Args:
        lengths: int64 [B], in samples or frames.
        size: length of the padded axis.

    Returns:
        bool [B, size], on the device of ``lengths``.
    """
    return torch.arange(size, device=lengths.device) < lengths[:, None]


def reflect_at_own_end(frames: Tensor, lengths: Tensor, margin: int) -> Tensor:
    """Reflection padding on both sides of every clip, as if it were alone.

    ``F.pad(..., mode="reflect")`` mirrors the end of the rectangle; here every clip is mirrored about its own last frame.

    Args:
        frames: [B, C, T].
        lengths: int64 [B], frames of each clip, each larger than ``margin``.
        margin: frames added on either side.

    Returns:
        [B, C, T + 2 margin]; beyond a clip's own right margin anything.
    """
    padded = torch.nn.functional.pad(frames, (margin, margin), mode="reflect")
    offsets = torch.arange(margin, device=lengths.device)
    end = margin + lengths[:, None]  # first position behind the clip, [B, 1]
    shape = (-1, frames.shape[1], -1)
    mirrored = padded.gather(2, (end - 2 - offsets)[:, None].expand(shape))  # [B, C, margin]
    return padded.scatter_(2, (end + offsets)[:, None].expand(shape), mirrored)
