"""Long recordings as ``windows.py`` cuts them, put together again by hand."""

from __future__ import annotations

import torch
from torch import Tensor

from pipelines.encoders.base import Encoder
from pipelines.encoders.windows import plan_windows


def frames_of_windows(encoder: Encoder, samples: Tensor) -> dict[str, Tensor]:
    """The kept frames of all windows of a recording, [T, D] for every representation."""
    parts: dict[str, list[Tensor]] = {name: [] for name in encoder.spec.representations}
    for window in plan_windows(encoder, len(samples)):
        for name, frames in encoder.encode([samples[window.start : window.stop]])[0].items():
            parts[name].append(frames[window.first : window.last])
    return {name: torch.cat(frames) for name, frames in parts.items()}


def embeddings_of_windows(encoder: Encoder, samples: Tensor) -> tuple[Tensor, Tensor]:
    """Of an utterance-level encoder: the windows' embeddings [windows, D], and their mean by the windows' lengths [D]."""
    windows = plan_windows(encoder, len(samples))
    lengths = torch.tensor([window.stop - window.start for window in windows], dtype=torch.float64)
    embeddings = frames_of_windows(encoder, samples)["embedding"]
    return embeddings, ((lengths / lengths.sum()) @ embeddings.double()).float()


def distance(found: Tensor, expected: Tensor) -> float:
    """Euclidean distance over the length of ``expected``."""
    return float((found - expected).norm() / expected.norm())
