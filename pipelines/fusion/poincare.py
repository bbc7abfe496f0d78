"""The Poincaré ball: pure functions on points and tangent vectors, curvature -c.

Conventions:

* A point is a vector y [..., D] with sqrt(c) |y| < 1; a tangent vector at the origin is any u [..., D].
* ``c`` is a positive number, or a tensor that broadcasts against [..., 1] ([H, 1, 1] for one curvature per
  head).
* float32 or float64, never less. Points are kept inside sqrt(c) |y| <= 1 - :data:`EDGE`; the head that lifts
  its inputs is responsible for staying well inside, because the gradient along the radius vanishes at the
  edge.
* Formulas: Ganea, Bécigneul, Hofmann, "Hyperbolic neural networks" (NeurIPS 2018), equations in the
  docstrings.

geoopt computes the same (the tests compare), but is not used here: its functions are compiled by torch.jit,
whose first calls in a process give other gradient bits than later ones (measured: up to 3e-6 after
log0(exp0(u) + exp0(v))), it loses the norm of short vectors in float32 (1.7 % at |u| = 1e-6), and its ball
ends at |u| = 3.1.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["EDGE", "dist", "dist0", "edge_distance", "exp0", "log0", "mobius_add"]

EDGE = {torch.float32: 1e-5, torch.float64: 1e-12}
"""How close a point may come to the rim, as 1 - sqrt(c) |y|, per dtype (float32: |log0| up to 6.1 /
sqrt(c))."""

_TINY = 1e-30  # square of the norm below which a vector counts as zero


def exp0(u: Tensor, c: Tensor | float = 1.0) -> Tensor:
    """Exponential map at the origin: tanh(sqrt(c) |u|) u / (sqrt(c) |u|) (Ganea et al. 2018, eq. 13).

    Args:
        u: tangent vectors at the origin, [..., D].
        c: minus the curvature.

    Returns:
        Points of the ball, [..., D]; ``dist0`` of them is 2 |u|.
    """
    length = _root(c) * _norm(u)
    radius = torch.tanh(length).clamp(max=1.0 - EDGE[u.dtype])
    return u * (radius / length)


def log0(y: Tensor, c: Tensor | float = 1.0) -> Tensor:
    """Logarithmic map at the origin, inverse of :func:`exp0`: artanh(sqrt(c) |y|) y / (sqrt(c) |y|) (eq. 13).

    Args:
        y: points of the ball, [..., D].
        c: minus the curvature.

    Returns:
        Tangent vectors at the origin, [..., D].
    """
    radius = _root(c) * _norm(y)
    return y * (_artanh(radius) / radius)


def mobius_add(x: Tensor, y: Tensor, c: Tensor | float = 1.0) -> Tensor:
    """Möbius addition x + y, neither commutative nor associative (Ganea et al. 2018, eq. 1).

    [(1 + 2c<x,y> + c|y|^2) x + (1 - c|x|^2) y] / [1 + 2c<x,y> + c^2 |x|^2 |y|^2]. The second operand enters
    with 1 - c|x|^2: when x is near the rim, y hardly counts.

    Args:
        x: points, [..., D].
        y: points, [..., D].
        c: minus the curvature.

    Returns:
        Points, [..., D].
    """
    xx, yy, xy = c * _dot(x, x), c * _dot(y, y), 2.0 * c * _dot(x, y)
    denominator = (1.0 + xy + xx * yy).clamp(min=_TINY)
    return ((1.0 + xy + yy) / denominator) * x + ((1.0 - xx) / denominator) * y


def dist(x: Tensor, y: Tensor, c: Tensor | float = 1.0) -> Tensor:
    """Geodesic distance (2 / sqrt(c)) artanh(sqrt(c) |(-x) + y|) (Ganea et al. 2018, eq. 2).

    Args:
        x: points, [..., D].
        y: points, [..., D].
        c: minus the curvature.

    Returns:
        [..., 1], not negative.
    """
    return dist0(mobius_add(-x, y, c), c)


def dist0(x: Tensor, c: Tensor | float = 1.0) -> Tensor:
    """Geodesic distance from the origin, (2 / sqrt(c)) artanh(sqrt(c) |x|).

    Args:
        x: points, [..., D].
        c: minus the curvature.

    Returns:
        [..., 1], not negative.
    """
    root = _root(c)
    return (2.0 / root) * _artanh(root * _norm(x))


def edge_distance(x: Tensor, c: Tensor | float = 1.0) -> Tensor:
    """1 - c|x|^2: one at the origin, zero at the rim; what Möbius addition leaves of a second operand.

    Args:
        x: points, [..., D].
        c: minus the curvature.

    Returns:
        [..., 1], in (0, 1].
    """
    return 1.0 - c * _dot(x, x)


def _root(c: Tensor | float) -> Tensor | float:
    return c.sqrt() if isinstance(c, Tensor) else c**0.5


def _dot(x: Tensor, y: Tensor) -> Tensor:
    return (x * y).sum(dim=-1, keepdim=True)


def _norm(x: Tensor) -> Tensor:
    # The clamp makes |0| a small constant: the maps are then the identity near 0, with the gradient of the
    # identity.
    return _dot(x, x).clamp(min=_TINY).sqrt()


def _artanh(radius: Tensor) -> Tensor:
    # log1p keeps the leading digits of a small radius, which log(1 + r) loses.
    inside = radius.clamp(max=1.0 - EDGE[radius.dtype])
    return 0.5 * (torch.log1p(inside) - torch.log1p(-inside))
