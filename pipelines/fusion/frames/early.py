"""Early concatenation: all streams laid one after the other along time, then one transformer layer over all of it.

Streams of different frame rates cannot be laid side by side, so they are joined in time; a learned vector per stream tells
them apart. Whether the paper's early fusion does the same is unknown; this is ours.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pipelines.fusion.frames.sequences import Classifier, Frames, SelfAttentionLayer, joined, statistics_pool

__all__ = ["EarlyHead"]


class EarlyHead(nn.Module):
    """A head on streams joined along time.

    Args:
        dims: stream to its features.
        num_outputs: C classes or K dimensions.
        hidden_dim: width D of every stream after its projection.
        attention_heads: parallel attentions.
        dropout: share dropped in training.
    """

    def __init__(
        self, *, dims: Mapping[str, int], num_outputs: int, hidden_dim: int, attention_heads: int, dropout: float
    ) -> None:
        super().__init__()
        self.project = nn.ModuleDict({name: nn.Linear(dim, hidden_dim) for name, dim in dims.items()})
        self.marks = nn.Parameter(torch.randn(len(dims), hidden_dim) * hidden_dim**-0.5)
        self.layer = SelfAttentionLayer(hidden_dim, attention_heads=attention_heads, dropout=dropout)
        self.classify = Classifier(2 * hidden_dim, hidden_dim=hidden_dim, num_outputs=num_outputs, dropout=dropout)

    def forward(self, streams: Mapping[str, Frames]) -> Tensor:
        """Fuse and classify.

        Args:
            streams: name to [B, T of the stream, its features].

        Returns:
            [B, outputs].
        """
        parts = [
            Frames(project(streams[name].values) + mark, streams[name].valid)
            for (name, project), mark in zip(self.project.items(), self.marks, strict=True)
        ]
        outputs: Tensor = self.classify(statistics_pool(self.layer(joined(parts))))
        return outputs
