"""The weighted midpoint of both streams in the Poincaré ball; each head learns the weight.

As ``midpoint.py``, with p = the gyromidpoint of p_l with weight w and p_r with weight 1 - w (Ungar 2008; HNN++, Shimizu et al.
2021, "Poincaré weighted centroid"), w = sigmoid(omega), omega per head from 0. logits = V (12 / R) log0(p) + a, or multinomial
logistic regression in the ball. The radii weigh already, since a point further out counts more; w can undo that.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pipelines.fusion import poincare
from pipelines.fusion.ball import OUTPUT_LENGTH, BallOutput, Curvature, lift, lift_lengths, record_points
from pipelines.fusion.front_ends import make_front_end
from pipelines.fusion.stacked import StackedDropout, StackedModalityDropout, per_row, stacked_scalar

__all__ = ["BarycentreHead"]


class BarycentreHead(nn.Module):
    """H heads that fuse by a weighted midpoint.

    Args:
        left_dim: Dl, features of the left representation.
        right_dim: Dr, features of the right one.
        num_classes: C.
        head_seeds: H seeds, one per head.
        hidden_dim: D, width of each stream after its projection, the dimension of the ball.
        input_dropout: share of input features dropped in training.
        dropout: share of fused features dropped in training.
        curvature: c of the ball of curvature -c, fixed, or where it starts.
        learn_curvature: "yes" to learn c within a factor of ten of its start, "no" to keep it.
        classifier: "dense" on the tangent vector, or "mlr" in the ball.
        max_radius: R, upper bound of |u_s|; training starts at half of it.
        front_end: "linear" or "cnn".
        dense_dim: width of a dense layer before the output; 0 for none.
        modality_dropout: share of training rows that one input is hidden from.

    Raises:
        ConfigError: a dense layer with the classifier "mlr".
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
        curvature: float = 1.0,
        learn_curvature: str = "no",
        classifier: str = "dense",
        max_radius: float = 0.5,
        front_end: str = "linear",
        dense_dim: int = 0,
        modality_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.max_radius = max_radius
        heads = len(head_seeds)
        self.curvature = Curvature(curvature, learn_curvature, head_count=heads)
        self.hide = StackedModalityDropout(modality_dropout, head_seeds=head_seeds)
        self.left_drop = StackedDropout(input_dropout, head_seeds=head_seeds, name="left")
        self.right_drop = StackedDropout(input_dropout, head_seeds=head_seeds, name="right")
        self.left_project = make_front_end(front_end, left_dim, hidden_dim, head_seeds=head_seeds, name="left")
        self.right_project = make_front_end(front_end, right_dim, hidden_dim, head_seeds=head_seeds, name="right")
        self.left_radius = stacked_scalar(0.0, head_count=heads)
        self.right_radius = stacked_scalar(0.0, head_count=heads)
        self.balance = stacked_scalar(0.0, head_count=heads)
        self.output = BallOutput(
            hidden_dim,
            num_classes,
            classifier=classifier,
            dense_dim=dense_dim,
            dropout=dropout,
            scale=2.0 * OUTPUT_LENGTH / max_radius,  # a midpoint is half as long as a sum
            head_seeds=head_seeds,
        )

    def forward(self, left: Tensor, right: Tensor, *, record: dict[str, Tensor] | None = None) -> Tensor:
        """Fuse and classify.

        Args:
            left: [H, B, Dl].
            right: [H, B, Dr].
            record: takes, for each of ``left``, ``right`` and ``fused``, ``<point>_norm`` = sqrt(c) |p| (0 at
                the origin, 1 at the rim) and ``<point>_edge`` = 1 - c|p|^2, [H, B],
                ``weight_left`` = w, and ``curvature`` where it is learned.

        Returns:
            Logits, [H, B, C].
        """
        left, right = self.hide(left, right)
        rows = left.shape[1]
        c = self.curvature(rows)
        radii = [self.left_radius, self.right_radius]
        left_length, right_length = lift_lengths(radii, c, max_radius=self.max_radius, rows=rows)
        left_point = lift(self.left_project(self.left_drop(left)), left_length)  # [H, B, D]
        right_point = lift(self.right_project(self.right_drop(right)), right_length)
        weight = torch.sigmoid(per_row(self.balance, rows))  # [H, B, 1]
        fused = poincare.gyromidpoint(left_point, right_point, c, weight)
        record_points(record, c, left=left_point, right=right_point, fused=fused)
        if record is not None:
            record["weight_left"] = weight.squeeze(-1)
        logits: Tensor = self.output(fused, c)
        return logits
