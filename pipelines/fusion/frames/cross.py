"""Cross-attention: speech and language look at each other once.

Speech is the acoustic stream; language is everything from the recogniser, its hidden frames and the tokens of its text, one
after the other. One co-attention, then both sequences are pooled and classified side by side. The block is that of the first
author's later public code; how three streams go into its two inputs is ours.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pipelines.fusion.frames.sequences import Classifier, CoAttention, Frames, joined, statistics_pool

__all__ = ["CrossHead"]


class CrossHead(nn.Module):
    """A head on the acoustic stream and one or two others.

    Args:
        dims: stream to its features; the first one is the acoustic stream.
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
        self.attend = CoAttention(hidden_dim, attention_heads=attention_heads, dropout=dropout)
        self.classify = Classifier(4 * hidden_dim, hidden_dim=hidden_dim, num_outputs=num_outputs, dropout=dropout)

    def forward(self, streams: Mapping[str, Frames]) -> Tensor:
        """Fuse and classify.

        Args:
            streams: name to [B, T of the stream, its features].

        Returns:
            [B, outputs].
        """
        speech, *others = (
            Frames(project(streams[name].values), streams[name].valid) for name, project in self.project.items()
        )
        speech, language = self.attend(speech, joined(others))
        pooled = torch.cat([statistics_pool(speech), statistics_pool(language)], dim=-1)  # [B, 4 D]
        outputs: Tensor = self.classify(pooled)
        return outputs
