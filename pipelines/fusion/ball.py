"""The parts that the heads in the Poincaré ball share: lifts with a controlled radius, the curvature, and the classifier in
the ball.

Shapes: streams and points [H, B, D]; a curvature is a number, or [H, B, 1] where it is learned (the same in all rows of a
head; one copy per row keeps the bits independent of the stack, ``fusion/stacked.py``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipelines.errors import ConfigError
from pipelines.fusion import poincare
from pipelines.fusion.front_ends import StackedDense
from pipelines.fusion.stacked import (
    StackedDropout,
    StackedLinear,
    head_generators,
    per_row,
    stacked_product,
    stacked_scalar,
)

__all__ = [
    "OUTPUT_LENGTH",
    "BallOutput",
    "Curvature",
    "lift",
    "lift_lengths",
    "record_point",
    "record_points",
]

OUTPUT_LENGTH = 6.0
"""Length of a tangent vector at the bound of the radius as the output layer sees it: there its weights learn at the pace of
those of a Euclidean head, whose inputs have lengths of this order."""

_DECADE = math.log(10.0)


class Curvature(nn.Module):
    """c of the ball of curvature -c, fixed or learned by each head.

    Learned, c = start exp(ln 10 tanh(g / ln 10)): g starts at 0, where it is the logarithm of c / start, and c stays within a
    factor of ten of its start. Log space and the decade are MERU's (Desai et al. 2023, arXiv 2304.09172), which clamps; a
    clamp at the bound passes no gradient back. g is not decayed.

    Args:
        start: c, or where it starts.
        learned: "no" or "yes".
        head_count: H.
    """

    def __init__(self, start: float, learned: str, *, head_count: int) -> None:
        super().__init__()
        self.start = start
        self.log_ratio = stacked_scalar(0.0, head_count=head_count) if learned == "yes" else None

    def forward(self, rows: int) -> Tensor | float:
        """The curvature for a batch of so many rows per head.

        Args:
            rows: B.

        Returns:
            c: a number, or [H, B, 1].
        """
        if self.log_ratio is None:
            return self.start
        return self.start * torch.exp(_DECADE * torch.tanh(per_row(self.log_ratio, rows) / _DECADE))


def lift_lengths(radii: Sequence[Tensor], c: Tensor | float, *, max_radius: float, rows: int) -> Tensor:
    """How far from the origin each stream's points lie.

    Args:
        radii: the parameters rho of n streams, [H, 1, 1] each.
        c: the curvature.
        max_radius: R.
        rows: B.

    Returns:
        tanh(sqrt(c) r) / sqrt(c) with r = R sigmoid(rho), [n, H, B, 1].
    """
    root = c.sqrt() if isinstance(c, Tensor) else math.sqrt(c)
    shares = torch.sigmoid(per_row(torch.cat(list(radii)), rows)).view(len(radii), -1, rows, 1)
    tangent = shares * (root * max_radius)
    return torch.tanh(tangent).clamp(max=1.0 - poincare.EDGE[tangent.dtype]) / root


def lift(stream: Tensor, length: Tensor) -> Tensor:
    """Put projected vectors into the ball, all at the same distance from the origin.

    p = t layernorm(s) / sqrt(D). With t of :func:`lift_lengths` this is exp0(r n) of the direction n = layernorm(s) / sqrt(D),
    whose length is 1 up to layernorm's epsilon and is taken as 1 in the map.

    Args:
        stream: s, [H, B, D].
        length: t, [H, B, 1].

    Returns:
        Points, [H, B, D].
    """
    width = stream.shape[-1]
    return F.layer_norm(stream, (width,)) * (length / math.sqrt(width))


def record_point(record: dict[str, Tensor], name: str, squared: Tensor) -> None:
    """Note where points lie.

    Args:
        record: takes ``<name>_norm`` = sqrt(c) |p| (0 at the origin, 1 at the rim) and ``<name>_edge`` = 1 - c|p|^2, [H, B].
        name: "left", "right" or "fused".
        squared: c|p|^2, [H, B, 1].
    """
    record[f"{name}_norm"] = squared.clamp(min=0.0).sqrt().squeeze(-1)
    record[f"{name}_edge"] = (1.0 - squared).squeeze(-1)


def record_points(record: dict[str, Tensor] | None, c: Tensor | float, **points: Tensor) -> None:
    """:func:`record_point` of several points, and the curvature where it is learned.

    Args:
        record: takes the numbers; None takes nothing.
        c: the curvature, recorded as ``curvature`` where it is a tensor.
        **points: points by name, [H, B, D].
    """
    if record is None:
        return
    for name, point in points.items():
        record_point(record, name, 1.0 - poincare.edge_distance(point, c))
    if isinstance(c, Tensor):
        record["curvature"] = c.squeeze(-1)


class BallOutput(nn.Module):
    """From fused points to logits.

    * ``dense``: V relu(W s log0(p) + b) + a with the dense layer, V s log0(p) + a without; s brings the tangent vector to the
      length the output layer learns well at.
    * ``mlr``: multinomial logistic regression in the ball. logit_k = s v_k(p) / 4, v_k(p) the distance to a hyperplane times
      the length of its normal z_k (:func:`pipelines.fusion.poincare.hyperplane_logits`); the 4 makes the flat limit a linear layer,
      so that learning rates compare. Dropout then acts on the tangent vector, and the point is lifted again.

    Args:
        in_features: dimension of the ball.
        num_classes: C.
        classifier: "dense" or "mlr".
        dense_dim: width of the dense layer; 0 for none.
        dropout: share of tangent or hidden features dropped in training.
        scale: s.
        head_seeds: H seeds, one per head.

    Raises:
        ConfigError: a dense layer before "mlr", which works on points.
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        classifier: str,
        dense_dim: int,
        dropout: float,
        scale: float,
        head_seeds: Sequence[int],
    ) -> None:
        super().__init__()
        if classifier == "mlr" and dense_dim:
            raise ConfigError(
                f"A dense layer of {dense_dim} cannot stand before the classifier 'mlr', which works on points of the ball. Use "
                "dense_dim=0 with mlr, or classifier=dense."
            )
        self.classifier = classifier
        self.scale = scale
        self.dense = StackedDense(in_features, dense_dim, head_seeds=head_seeds)
        self.drop = StackedDropout(dropout, head_seeds=head_seeds, name="hidden")
        self.classify: nn.Module
        if classifier == "mlr":
            self.classify = _StackedHyperplanes(in_features, num_classes, head_seeds=head_seeds)
        else:
            self.classify = StackedLinear(self.dense.out_features, num_classes, head_seeds=head_seeds, name="classify")

    def forward(self, fused: Tensor, c: Tensor | float) -> Tensor:
        """Classify points.

        Args:
            fused: [H, B, D].
            c: the curvature.

        Returns:
            Logits, [H, B, C].
        """
        if self.classifier == "dense":
            return self.tangent(poincare.log0(fused, c) * self.scale)
        if self.training and self.drop.threshold:
            fused = poincare.exp0(self.drop(poincare.log0(fused, c)), c)
        logits: Tensor = self.classify(fused, c) * (0.25 * self.scale)
        return logits

    def tangent(self, tangent: Tensor) -> Tensor:
        """Classify tangent vectors that are scaled already; for the classifier "dense" only.

        Args:
            tangent: s log0(p), [H, B, D].

        Returns:
            Logits, [H, B, C].
        """
        logits: Tensor = self.classify(self.drop(self.dense(tangent)))
        return logits


class _StackedHyperplanes(nn.Module):
    """H times C hyperplanes: normals z [H, D, C], starting as a linear layer's weight does, offsets r [H, 1, C] from 0."""

    def __init__(self, in_features: int, num_classes: int, *, head_seeds: Sequence[int]) -> None:
        super().__init__()
        bound = 1.0 / math.sqrt(in_features)
        shape = (in_features, num_classes)
        normals = [g.uniform(-bound, bound, size=shape) for g in head_generators(head_seeds, "classify.hyperplanes")]
        self.weight = nn.Parameter(torch.from_numpy(np.stack(normals).astype(np.float32)))
        self.offset = nn.Parameter(torch.zeros(len(normals), 1, num_classes))

    def forward(self, points: Tensor, c: Tensor | float) -> Tensor:
        classes = self.weight.shape[2]
        normals = self.weight.transpose(1, 2).contiguous()  # rows of D: their sums round alike in any stack
        lengths = poincare.norm(normals).transpose(1, 2)  # [H, 1, C]
        rows = points.shape[1]
        return poincare.hyperplane_logits(
            points,
            stacked_product(points, self.weight),
            per_row(lengths, rows),
            per_row(self.offset, rows),
            c,
        )[..., :classes]
