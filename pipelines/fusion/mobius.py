"""Möbius addition in the Poincaré ball as the idea is published, without control of the radius.

For each stream s: u_s = W_s x_s + b_s, lift p_s = exp0(u_s); fuse p = p_l + p_r (Möbius); back z = log0(p); logits = V z + a,
or V relu(W z + b) + a with the published dense layer (HYFuse, arXiv 2506.03403; operators of Ganea et al. 2018). c is 1 unless
it is learned.

**It is here to be checked, not to be used**: standardised inputs give |u_s| of 6 to 13, every point sits on the rim, and Möbius
addition multiplies its second operand by 1 - c|p|^2, about 0, so that the head scores as its first input alone does.
``hyperbolic`` is the same operator with the radius of both operands under control. ``docs/fusion.md`` has both side by
side.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from pipelines.fusion import poincare
from pipelines.fusion.ball import BallOutput, Curvature, record_points
from pipelines.fusion.front_ends import make_front_end
from pipelines.fusion.stacked import StackedDropout, StackedModalityDropout

__all__ = ["MobiusHead"]


class MobiusHead(nn.Module):
    """H heads that fuse by Möbius addition of whatever the projections give.

    Args:
        left_dim: Dl, features of the left representation.
        right_dim: Dr, features of the right one.
        num_classes: C.
        head_seeds: H seeds, one per head.
        hidden_dim: D, width of each stream after its projection, the dimension of the ball.
        input_dropout: share of input features dropped in training.
        dropout: share of fused features dropped in training.
        order: "left-right" for p_l + p_r, "right-left" for p_r + p_l.
        curvature: c of the ball of curvature -c, fixed, or where it starts.
        learn_curvature: "yes" to learn c within a factor of ten of its start, "no" to keep it.
        classifier: "dense" on the tangent vector, or "mlr" in the ball.
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
        order: str = "left-right",
        curvature: float = 1.0,
        learn_curvature: str = "no",
        classifier: str = "dense",
        front_end: str = "linear",
        dense_dim: int = 0,
        modality_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.order = order
        heads = len(head_seeds)
        self.curvature = Curvature(curvature, learn_curvature, head_count=heads)
        self.hide = StackedModalityDropout(modality_dropout, head_seeds=head_seeds)
        self.left_drop = StackedDropout(input_dropout, head_seeds=head_seeds, name="left")
        self.right_drop = StackedDropout(input_dropout, head_seeds=head_seeds, name="right")
        self.left_project = make_front_end(front_end, left_dim, hidden_dim, head_seeds=head_seeds, name="left")
        self.right_project = make_front_end(front_end, right_dim, hidden_dim, head_seeds=head_seeds, name="right")
        self.output = BallOutput(
            hidden_dim,
            num_classes,
            classifier=classifier,
            dense_dim=dense_dim,
            dropout=dropout,
            scale=1.0,
            head_seeds=head_seeds,
        )

    def forward(self, left: Tensor, right: Tensor, *, record: dict[str, Tensor] | None = None) -> Tensor:
        """Fuse and classify.

        Args:
            left: [H, B, Dl].
            right: [H, B, Dr].
            record: takes, for each of ``left``, ``right`` and ``fused``, ``<point>_norm`` = sqrt(c) |p| (0 at
                the origin, 1 at the rim) and ``<point>_edge`` = 1 - c|p|^2, [H, B],
                and ``curvature`` where it is learned.

        Returns:
            Logits, [H, B, C].
        """
        left, right = self.hide(left, right)
        c = self.curvature(left.shape[1])
        left_point = poincare.exp0(self.left_project(self.left_drop(left)), c)  # [H, B, D]
        right_point = poincare.exp0(self.right_project(self.right_drop(right)), c)
        if self.order == "left-right":
            fused = poincare.mobius_add(left_point, right_point, c)
        else:
            fused = poincare.mobius_add(right_point, left_point, c)
        record_points(record, c, left=left_point, right=right_point, fused=fused)
        logits: Tensor = self.output(fused, c)
        return logits
