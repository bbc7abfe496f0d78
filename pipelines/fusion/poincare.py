"""The Poincaré ball: pure functions on points and tangent vectors, curvature -c.

Conventions:

* A point is a vector y [..., D] with sqrt(c) |y| < 1; a tangent vector at the origin is any u [..., D].
* ``c`` is a positive number, or a tensor that broadcasts against [..., 1] ([H, 1, 1] for one curvature per
  head).
* float32 or float64, never less. Points are kept inside sqrt(c) |y| <= 1 - :data:`EDGE`; the head that lifts
  its inputs is responsible for staying well inside, because the gradient along the radius vanishes at the
  edge. Rounding may put the sum of two points at the rim onto it; every function takes such points.
* Formulas: Ganea, Bécigneul, Hofmann, "Hyperbolic neural networks" (NeurIPS 2018), equations in the
  docstrings; "HNN++" is Shimizu, Mukuta, Harada, "Hyperbolic neural networks++" (ICLR 2021).

geoopt computes the same (the tests compare), but is not used here: its functions are compiled by torch.jit,
whose first calls in a process give other gradient bits than later ones (measured: up to 3e-6 after
log0(exp0(u) + exp0(v))), it loses the norm of short vectors in float32 (1.7 % at |u| = 1e-6), and its ball
ends at |u| = 3.1.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = [
    "EDGE",
    "beta_concat",
    "dist",
    "dist0",
    "edge_distance",
    "exp0",
    "gyromidpoint",
    "hyperplane_logits",
    "log0",
    "mobius_add",
    "mobius_coefficients",
    "norm",
    "tangent_ratio",
]

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
    length = _root(c) * norm(u)
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
    return y * tangent_ratio(c * _dot(y, y))


def tangent_ratio(squared: Tensor) -> Tensor:
    """What :func:`log0` multiplies a point by: artanh(r) / r.

    Args:
        squared: r^2 = c|y|^2, [..., 1]; below 0 by rounding counts as 0.

    Returns:
        [..., 1], at least 1.
    """
    radius = squared.clamp(min=_TINY).sqrt()
    return _artanh(radius) / radius


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
    first, second = mobius_coefficients(c * _dot(x, x), c * _dot(y, y), c * _dot(x, y))
    return first * x + second * y


def mobius_coefficients(xx: Tensor, yy: Tensor, xy: Tensor) -> tuple[Tensor, Tensor]:
    """How much of x and of y there is in x + y (Möbius), from their products alone.

    Args:
        xx: c|x|^2, [..., 1].
        yy: c|y|^2, [..., 1].
        xy: c<x,y>, [..., 1].

    Returns:
        The factors of x and of y, [..., 1] each.
    """
    # 1 + 2 xy + yy and the denominator, rearranged so that nothing cancels at the rim.
    sum_squared, edge = (xx + yy + 2.0 * xy).clamp(min=0.0), 1.0 - xx
    inverse = (sum_squared + edge * (1.0 - yy)).clamp(min=_TINY).reciprocal()
    return (sum_squared + edge) * inverse, edge * inverse


def gyromidpoint(x: Tensor, y: Tensor, c: Tensor | float = 1.0, weight: Tensor | float = 0.5) -> Tensor:
    """Weighted midpoint of two points, the Einstein midpoint in this model (Ungar 2008; HNN++, "Poincaré weighted centroid").

    m = 1/2 * (w l_x x + (1 - w) l_y y) / (w (l_x - 1) + (1 - w) (l_y - 1)) with l_p = 2 / (1 - c|p|^2) and the Möbius multiple
    1/2 * p = p / (1 + sqrt(1 - c|p|^2)). For w = 1/2 it is the point halfway on the geodesic, the same for both orders. Computed
    with all fractions multiplied out, so that nothing is divided by 1 - c|p|^2.

    Args:
        x: points, [..., D].
        y: points, [..., D].
        c: minus the curvature.
        weight: w, the weight of x, in [0, 1].

    Returns:
        Points, [..., D].
    """
    xx, yy, xy = c * _dot(x, x), c * _dot(y, y), c * _dot(x, y)
    edge_x, edge_y, other = 1.0 - xx, 1.0 - yy, 1.0 - weight
    sum_ = weight * (1.0 + xx) * edge_y + other * (1.0 + yy) * edge_x
    # sum_^2 - c |numerator|^2, simplified: every term is positive.
    crossed = (1.0 + xx) * (1.0 + yy) - 4.0 * xy
    rest = edge_x * edge_y * ((weight**2 + other**2) * edge_x * edge_y + 2.0 * weight * other * crossed)
    inverse = 2.0 / (sum_ + rest.clamp(min=_TINY).sqrt())
    return (weight * edge_y * inverse) * x + (other * edge_x * inverse) * y


def beta_concat(x: Tensor, y: Tensor, c: Tensor | float = 1.0) -> Tensor:
    """Concatenation in the ball: exp0 [b_n / b_k log0 x ; b_n / b_m log0 y] with b_i = B(i / 2, 1 / 2) (HNN++, "β-concatenation").

    The Beta functions keep the expected length of a random vector the same when its dimension grows from k or m to n = k + m.

    Args:
        x: points, [..., k].
        y: points, [..., m].
        c: minus the curvature.

    Returns:
        Points, [..., k + m].
    """
    widths = x.shape[-1], y.shape[-1]
    whole = _log_beta(sum(widths))
    parts = [math.exp(whole - _log_beta(width)) * log0(p, c) for width, p in zip(widths, (x, y), strict=True)]
    return exp0(torch.cat(parts, dim=-1), c)


def hyperplane_logits(x: Tensor, products: Tensor, lengths: Tensor, offsets: Tensor, c: Tensor | float = 1.0) -> Tensor:
    """Multinomial logistic regression in the ball: 2|z|/sqrt(c) asinh((2 sqrt(c) <x, z/|z|> cosh(s) - (1 + c|x|^2) sinh(s)) / (1 -
    c|x|^2)), s = 2 sqrt(c) r (HNN++, "unidirectional re-generalization of the hyperbolic MLR").

    It is Ganea et al.'s (eq. 24 and 25, distance to the hyperplane through exp0(r z/|z|) with normal z) without their surplus
    parameters. As c goes to 0 it becomes 4 (<x, z> - r |z|), four times a linear layer.

    Args:
        x: points, [..., D].
        products: <x, z_k>, [..., K].
        lengths: |z_k|, [..., K], positive.
        offsets: r_k, distance of the hyperplane from the origin in tangent length, [..., K]; one beyond the end of the
            dtype's ball counts as at its end.
        c: minus the curvature.

    Returns:
        [..., K].
    """
    root = _root(c)
    xx = c * _dot(x, x)
    end = 2.0 * math.atanh(1.0 - EDGE[x.dtype])
    shift = (2.0 * root * offsets).clamp(min=-end, max=end)
    straight = 2.0 * root * products / lengths
    sine = (straight * shift.cosh() - (1.0 + xx) * shift.sinh()) / (1.0 - xx).clamp(min=EDGE[x.dtype])
    return (2.0 / root) * lengths * sine.asinh()


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
    return (2.0 / root) * _artanh(root * norm(x))


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


def norm(x: Tensor) -> Tensor:
    """Length of vectors, 1e-15 for zero vectors: the maps are then the identity near 0, with the gradient of the identity.

    Args:
        x: [..., D].

    Returns:
        [..., 1], positive.
    """
    return _dot(x, x).clamp(min=_TINY).sqrt()


def _log_beta(width: int) -> float:
    """Logarithm of B(width / 2, 1 / 2)."""
    return math.lgamma(width / 2) + math.lgamma(0.5) - math.lgamma((width + 1) / 2)


def _artanh(radius: Tensor) -> Tensor:
    # log1p keeps the leading digits of a small radius, which log(1 + r) loses.
    inside = radius.clamp(max=1.0 - EDGE[radius.dtype])
    return 0.5 * (torch.log1p(inside) - torch.log1p(-inside))
