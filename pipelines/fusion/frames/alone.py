"""Alone: one stream, projected, pooled over time and classified; the baseline of every fusion of frames."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from pipelines.fusion.frames.sequences import Classifier, Frames, statistics_pool

__all__ = ["AloneHead"]


class AloneHead(nn.Module):
    """A head on one stream.

    Args:
        dims: the stream and its features.
        num_outputs: C classes or K dimensions.
        hidden_dim: width D.
        attention_heads: not used here.
        dropout: share dropped in training.
    """

    def __init__(
        self, *, dims: Mapping[str, int], num_outputs: int, hidden_dim: int, attention_heads: int, dropout: float
    ) -> None:
        super().__init__()
        ((self.stream, dim),) = dims.items()
        self.project = nn.Linear(dim, hidden_dim)
        self.classify = Classifier(2 * hidden_dim, hidden_dim=hidden_dim, num_outputs=num_outputs, dropout=dropout)

    def forward(self, streams: Mapping[str, Frames]) -> Tensor:
        """Classify.

        Args:
            streams: the stream, [B, T, dim].

        Returns:
            [B, outputs].
        """
        values, valid = streams[self.stream]
        outputs: Tensor = self.classify(statistics_pool(Frames(self.project(values), valid)))
        return outputs
