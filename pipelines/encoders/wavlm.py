"""The gated relative position bias of WavLM (Chen et al., 2022, "WavLM: Large-Scale Self-Supervised Pre-Training for Full Stack
Speech Processing", section 3.2): what sets its attention apart from the rest of the family, which ``ssl.py`` describes.

transformers has no fused attention for WavLM and computes every attention weight; here the bias is the mask of torch's fused
attention. A bias depends on the distance between two frames alone, so it is kept per distance: at 60 s all pairs of frames would
take 432 MB, and 6 times as much while they are looked up.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["GatedPositionBias"]


class GatedPositionBias:
    """Biases between the frames of a batch; implements ``ssl_layers.PositionBias``.

    Attributes:
        windows: biases before they are gated, [heads, T, T], queries descending, keys ascending; a view of 2 T - 1 per head.

    Args:
        model: transformers' ``WavLMModel``. One table serves all layers; only the first layer holds it.
        length: frames of the batch, T.
    """

    def __init__(self, model: Any, length: int) -> None:
        attention = model.encoder.layers[0].attention
        ahead = attention.compute_bias(1, length)[:, 0]  # [heads, T]: keys 0 to T - 1 frames behind the query
        back = attention.compute_bias(length, 1)[:, :, 0]  # keys 0 to T - 1 frames before it
        by_distance = torch.cat([back.flip(1)[:, :-1], ahead], dim=1)  # [heads, 2 T - 1], key minus query ascending
        self.windows = by_distance.unfold(1, length, 1)

    def gate(self, attention: Any, hidden: Tensor) -> Tensor:
        """The gate of every query, from its own features before projection (equation 3); float32 [B, heads, T, 1].

        Args:
            attention: transformers' ``WavLMAttention`` of the layer.
            hidden: float32 [B, T, D], the input of attention.
        """
        split = hidden.view(*hidden.shape[:2], attention.num_heads, attention.head_dim)
        gates: Tensor = attention.gru_rel_pos_linear(split).transpose(1, 2)  # [B, heads, T, 8]
        first, second = gates.view(*gates.shape[:-1], 2, 4).sum(-1).sigmoid().chunk(2, dim=-1)
        return first * (second * attention.gru_rel_pos_const - 1.0) + 2.0  # type: ignore[no-any-return]
