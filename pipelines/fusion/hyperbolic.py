"""Möbius addition in the Poincaré ball, with the radius of both operands under control: the default fusion.

For each stream s: direction n_s = layernorm(W_s x_s + b_s) / sqrt(D), radius r_s = R sigmoid(rho_s) learned per head, so r_s < R;
lift p_s = exp0(r_s n_s); fuse p = p_l + p_r (Möbius); back z = log0(p); logits = V (6 / R) z + a, or multinomial logistic
regression on p. (HYFuse, arXiv 2506.03403, for the idea; Ganea et al. 2018 for the operators; the radius control is ours.)

Why not exp0(W x + b) directly, as the idea is published and ``mobius.py`` has it: standardised inputs give |u| of 6 to 13, all
points sit on the rim, and Möbius addition multiplies its second operand by 1 - c|p|^2, about 0: that head scores exactly as its
first input does.

The bound R trades hyperbolic distortion against the influence of the second operand; R = 0.5 uses both inputs in either order
(``docs/fusion.md`` has the measurements). The honest reading: the radii hardly leave their start at R / 2, and the more curved
the head, the less it fuses; the default is nearly a Euclidean sum.

Normalisation, lift, sum and the way back are one step with its gradient written out (``lifted_sum.py``), which the tests compare
with the maps one by one.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from pipelines.fusion.ball import OUTPUT_LENGTH, BallOutput, Curvature, lift_lengths, record_point
from pipelines.fusion.front_ends import make_front_end
from pipelines.fusion.lifted_sum import lifted_mobius_sum
from pipelines.fusion.stacked import StackedDropout, StackedModalityDropout, stacked_scalar

__all__ = ["HyperbolicHead"]


class HyperbolicHead(nn.Module):
    """H heads that fuse by Möbius addition at a controlled radius.

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
        max_radius: R, upper bound of r_s; training starts at half of it.
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
        max_radius: float = 0.5,
        front_end: str = "linear",
        dense_dim: int = 0,
        modality_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.order = order
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
        self.output = BallOutput(
            hidden_dim,
            num_classes,
            classifier=classifier,
            dense_dim=dense_dim,
            dropout=dropout,
            scale=OUTPUT_LENGTH / max_radius,
            head_seeds=head_seeds,
        )

    def forward(self, left: Tensor, right: Tensor, *, record: dict[str, Tensor] | None = None) -> Tensor:
        """Fuse and classify.

        Args:
            left: [H, B, Dl].
            right: [H, B, Dr].
            record: takes, for each of ``left``, ``right`` and ``fused``, ``<point>_norm`` = sqrt(c) |p| (0 at
                the origin, 1 at the rim) and ``<point>_edge`` = 1 - c|p|^2, [H, B], and ``curvature`` where it is learned.

        Returns:
            Logits, [H, B, C].
        """
        left, right = self.hide(left, right)
        rows = left.shape[1]
        c = self.curvature(rows)
        x, y = self.left_project(self.left_drop(left)), self.right_project(self.right_drop(right))  # [H, B, D] each
        radii = [self.left_radius, self.right_radius]
        lengths = lift_lengths(radii, c, max_radius=self.max_radius, rows=rows)  # of the points, [2, H, B, 1]
        turned = self.order == "right-left"
        if turned:
            x, y, lengths = y, x, lengths.flip(0)
        tangent = self.output.classifier == "dense"
        scale = self.output.scale if tangent else 1.0
        fused = lifted_mobius_sum(x, y, lengths, c, tangent=tangent, scale=scale)
        if record is not None:
            record_point(record, "right" if turned else "left", fused.first_squared)
            record_point(record, "left" if turned else "right", fused.second_squared)
            record_point(record, "fused", fused.fused_squared)
            if isinstance(c, Tensor):
                record["curvature"] = c.squeeze(-1)
        logits: Tensor = self.output.tangent(fused.fused) if tangent else self.output(fused.fused, c)
        return logits
