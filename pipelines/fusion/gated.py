"""Gated fusion: a gate per dimension decides how much of either stream passes.

h_s = tanh(W_s x_s + b_s), g = sigmoid(G [h_l ; h_r] + e), z = g h_l + (1 - g) h_r, logits = V z + a (gated multimodal unit,
Arevalo et al. 2017, arXiv 1702.01992, section 3.1). There the gate looks at the inputs; here at the projections, whose 240
numbers overfit less than a thousand. x_l [H, B, Dl], x_r [H, B, Dr], g and z [H, B, D], logits [H, B, C].
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pipelines.fusion.front_ends import StackedDense, make_front_end
from pipelines.fusion.stacked import StackedDropout, StackedLinear, StackedModalityDropout

__all__ = ["GatedHead"]


class GatedHead(nn.Module):
    """H heads that mix the two projected streams by a gate per dimension.

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
        self.gate = StackedLinear(2 * hidden_dim, hidden_dim, head_seeds=head_seeds, name="gate")
        self.dense = StackedDense(hidden_dim, dense_dim, head_seeds=head_seeds)
        self.drop = StackedDropout(dropout, head_seeds=head_seeds, name="hidden")
        self.classify = StackedLinear(self.dense.out_features, num_classes, head_seeds=head_seeds, name="classify")

    def forward(self, left: Tensor, right: Tensor, *, record: dict[str, Tensor] | None = None) -> Tensor:
        """Fuse and classify.

        Args:
            left: [H, B, Dl].
            right: [H, B, Dr].
            record: takes ``gate_left``, [H, B]: the mean of the gate over the dimensions, the share that passes of the left
                stream; the rest is the right one's.

        Returns:
            Logits, [H, B, C].
        """
        left, right = self.hide(left, right)
        left_hidden = self.left_project(self.left_drop(left)).tanh()  # [H, B, D]
        right_hidden = self.right_project(self.right_drop(right)).tanh()
        gate = torch.sigmoid(self.gate(torch.cat([left_hidden, right_hidden], dim=-1)))  # [H, B, D]
        if record is not None:
            record["gate_left"] = gate.mean(dim=-1)
        fused = torch.lerp(right_hidden, left_hidden, gate)  # [H, B, D]
        logits: Tensor = self.classify(self.drop(self.dense(fused)))
        return logits
