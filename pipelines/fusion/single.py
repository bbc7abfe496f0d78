"""Baseline: one representation alone.

logits = V relu(W x + b) + a. The same front end and output layer as the fusion heads, so that a difference in
score is a difference of the fusion. x [H, B, Dl], hidden [H, B, D], logits [H, B, C].
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from pipelines.fusion.front_ends import StackedDense, make_front_end
from pipelines.fusion.stacked import StackedDropout, StackedLinear

__all__ = ["SingleHead"]


class SingleHead(nn.Module):
    """H heads on one representation.

    Args:
        left_dim: Dl, features of the representation.
        num_classes: C.
        head_seeds: H seeds, one per head.
        hidden_dim: D, width after the projection.
        input_dropout: share of input features dropped in training.
        dropout: share of hidden features dropped in training.
        front_end: "linear" or "cnn".
        dense_dim: width of a dense layer before the output; 0 for none.
    """

    def __init__(
        self,
        *,
        left_dim: int,
        num_classes: int,
        head_seeds: Sequence[int],
        hidden_dim: int = 120,
        input_dropout: float = 0.0,
        dropout: float = 0.0,
        front_end: str = "linear",
        dense_dim: int = 0,
    ) -> None:
        super().__init__()
        self.left_drop = StackedDropout(input_dropout, head_seeds=head_seeds, name="left")
        self.left_project = make_front_end(front_end, left_dim, hidden_dim, head_seeds=head_seeds, name="left")
        self.dense = StackedDense(hidden_dim, dense_dim, head_seeds=head_seeds)
        self.drop = StackedDropout(dropout, head_seeds=head_seeds, name="hidden")
        self.classify = StackedLinear(self.dense.out_features, num_classes, head_seeds=head_seeds, name="classify")

    def forward(self, left: Tensor, *, record: dict[str, Tensor] | None = None) -> Tensor:
        """Classify.

        Args:
            left: [H, B, Dl].
            record: accepted for the common interface; this head has nothing to record.

        Returns:
            Logits, [H, B, C].
        """
        hidden = self.left_project(self.left_drop(left)).relu()  # [H, B, D]
        logits: Tensor = self.classify(self.drop(self.dense(hidden)))
        return logits
