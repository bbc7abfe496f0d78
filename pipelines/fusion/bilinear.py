"""Low-rank bilinear fusion: products of the two streams.

h_s = relu(W_s x_s + b_s), z = (1 + U_l h_l) * (1 + U_r h_r) elementwise, logits = V z + a. This is low-rank multimodal fusion
(Liu et al. 2018, arXiv 1806.00064, eq. 6 and 7: a constant 1 appended to each input keeps the first-order terms), with U_s
[D, rank] and the sum over factors done by V. Its terms are the sum of both streams and, unlike any other head without a dense
layer but attention and the gate, their products. x_l [H, B, Dl], x_r [H, B, Dr], z [H, B, rank], logits [H, B, C].
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from pipelines.fusion.front_ends import StackedDense, make_front_end
from pipelines.fusion.stacked import StackedDropout, StackedLinear, StackedModalityDropout

__all__ = ["BilinearHead"]


class BilinearHead(nn.Module):
    """H heads that fuse by a low-rank bilinear form.

    Args:
        left_dim: Dl, features of the left representation.
        right_dim: Dr, features of the right one.
        num_classes: C.
        head_seeds: H seeds, one per head.
        hidden_dim: D, width of each stream after its projection.
        input_dropout: share of input features dropped in training.
        dropout: share of fused features dropped in training.
        rank: number of products.
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
        rank: int = 64,
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
        self.left_factors = StackedLinear(hidden_dim, rank, head_seeds=head_seeds, name="left.factors")
        self.right_factors = StackedLinear(hidden_dim, rank, head_seeds=head_seeds, name="right.factors")
        self.dense = StackedDense(rank, dense_dim, head_seeds=head_seeds)
        self.drop = StackedDropout(dropout, head_seeds=head_seeds, name="hidden")
        self.classify = StackedLinear(self.dense.out_features, num_classes, head_seeds=head_seeds, name="classify")

    def forward(self, left: Tensor, right: Tensor, *, record: dict[str, Tensor] | None = None) -> Tensor:
        """Fuse and classify.

        Args:
            left: [H, B, Dl].
            right: [H, B, Dr].
            record: takes ``interaction_share``, [H, B]: sum over the factors of |f_l f_r|, divided by that of |f_l| + |f_r| +
                |f_l f_r| with f_s = U_s h_s: how much of the fused vector is products.

        Returns:
            Logits, [H, B, C].
        """
        left, right = self.hide(left, right)
        left_factors = self.left_factors(self.left_project(self.left_drop(left)).relu())  # [H, B, rank]
        right_factors = self.right_factors(self.right_project(self.right_drop(right)).relu())
        if record is not None:
            products = (left_factors * right_factors).abs().sum(dim=-1)
            single = left_factors.abs().sum(dim=-1) + right_factors.abs().sum(dim=-1)
            record["interaction_share"] = products / (products + single).clamp(min=1e-30)
        fused = (1.0 + left_factors) * (1.0 + right_factors)  # [H, B, rank]
        logits: Tensor = self.classify(self.drop(self.dense(fused)))
        return logits
