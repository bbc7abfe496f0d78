"""Concatenation: the Euclidean baseline that HYFuse compares with.

logits = V [relu(W_l x_l + b_l) ; relu(W_r x_r + b_r)] + a, with x_l [H, B, Dl], x_r [H, B, Dr], logits [H, B,
C]. Without a dense layer the logits are a sum of one function of each input: classes that only the interaction of both
tells apart are out of its reach.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pipelines.fusion.front_ends import StackedDense, make_front_end
from pipelines.fusion.stacked import StackedDropout, StackedLinear, StackedModalityDropout

__all__ = ["ConcatHead"]


class ConcatHead(nn.Module):
    """H heads that put the two projected streams side by side.

    Args:
        left_dim: Dl, features of the left representation.
        right_dim: Dr, features of the right one.
        num_classes: C.
        head_seeds: H seeds, one per head.
        hidden_dim: D, width of each stream after its projection.
        input_dropout: share of input features dropped in training.
        dropout: share of fused features dropped in training.
        front_end: "linear" or "cnn".
        dense_dim: width of a dense layer before the output; 0 for none.
        modality_dropout: share of training rows that one input is hidden from.
    """

    def __init__(
        self,
        *,
        left_dim: int,
        right_dim: int,
        num_classes: int,
        head_seeds: Sequence[int],
        hidden_dim: int = 120,
        input_dropout: float = 0.0,
        dropout: float = 0.0,
        front_end: str = "linear",
        dense_dim: int = 0,
        modality_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.hide = StackedModalityDropout(modality_dropout, head_seeds=head_seeds)
        self.left_drop = StackedDropout(input_dropout, head_seeds=head_seeds, name="left")
        self.right_drop = StackedDropout(input_dropout, head_seeds=head_seeds, name="right")
        self.left_project = make_front_end(front_end, left_dim, hidden_dim, head_seeds=head_seeds, name="left")
        self.right_project = make_front_end(front_end, right_dim, hidden_dim, head_seeds=head_seeds, name="right")
        self.dense = StackedDense(2 * hidden_dim, dense_dim, head_seeds=head_seeds)
        self.drop = StackedDropout(dropout, head_seeds=head_seeds, name="hidden")
        self.classify = StackedLinear(self.dense.out_features, num_classes, head_seeds=head_seeds, name="classify")

    def forward(self, left: Tensor, right: Tensor, *, record: dict[str, Tensor] | None = None) -> Tensor:
        """Fuse and classify.

        Args:
            left: [H, B, Dl].
            right: [H, B, Dr].
            record: accepted for the common interface; this head has nothing to record.

        Returns:
            Logits, [H, B, C].
        """
        left, right = self.hide(left, right)
        left_hidden = self.left_project(self.left_drop(left)).relu()  # [H, B, D]
        right_hidden = self.right_project(self.right_drop(right)).relu()
        fused = torch.cat([left_hidden, right_hidden], dim=-1)  # [H, B, 2 D]
        logits: Tensor = self.classify(self.drop(self.dense(fused)))
        return logits
