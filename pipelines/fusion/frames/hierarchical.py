"""Hierarchical co-attention: two stages, in each of which a further stream joins.

Stage 1: the acoustic stream and one stream of the recogniser look at each other. Stage 2: what came out, both sequences one
after the other, and the remaining stream look at each other. Every sequence is pooled and all go side by side into the
classifier. Which stream joins first is the option ``order``: the paper's is unknown, ``asr-text`` (hidden frames first, as
they are the nearer to speech) is our default. Without a third stream there is one stage.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pipelines.fusion.frames.sequences import Classifier, CoAttention, Frames, joined, statistics_pool

__all__ = ["ORDERS", "HierarchicalHead"]

ORDERS = ("asr-text", "text-asr")


class HierarchicalHead(nn.Module):
    """A head in stages.

    Args:
        dims: stream to its features; the first one is the acoustic stream, then one or two of ``asr`` and ``text``.
        num_outputs: C classes or K dimensions.
        hidden_dim: width D of every stream after its projection.
        attention_heads: parallel attentions.
        dropout: share dropped in training.
        order: which of the others joins first, one of :data:`ORDERS`.
    """

    def __init__(
        self,
        *,
        dims: Mapping[str, int],
        num_outputs: int,
        hidden_dim: int,
        attention_heads: int,
        dropout: float,
        order: str = "asr-text",
    ) -> None:
        super().__init__()
        first, *others = dims
        self.streams = (first, *(name for name in order.split("-") if name in others))
        self.project = nn.ModuleDict({name: nn.Linear(dim, hidden_dim) for name, dim in dims.items()})
        self.stages = nn.ModuleList(
            CoAttention(hidden_dim, attention_heads=attention_heads, dropout=dropout) for _ in others
        )
        self.classify = Classifier(
            2 * len(dims) * hidden_dim, hidden_dim=hidden_dim, num_outputs=num_outputs, dropout=dropout
        )

    def forward(self, streams: Mapping[str, Frames]) -> Tensor:
        """Fuse and classify.

        Args:
            streams: name to [B, T of the stream, its features].

        Returns:
            [B, outputs].
        """
        projected = {
            name: Frames(project(streams[name].values), streams[name].valid) for name, project in self.project.items()
        }
        parts = [projected[self.streams[0]]]
        for stage, name in zip(self.stages, self.streams[1:], strict=True):
            before, joining = stage(joined(parts), projected[name])
            lengths = [part.valid.shape[1] for part in parts]
            parts = [
                Frames(values, part.valid)
                for values, part in zip(before.values.split(lengths, dim=1), parts, strict=True)
            ]
            parts.append(joining)
        pooled = torch.cat([statistics_pool(part) for part in parts], dim=-1)  # [B, 2 D per stream]
        outputs: Tensor = self.classify(pooled)
        return outputs
