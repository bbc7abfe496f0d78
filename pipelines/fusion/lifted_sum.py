"""Normalise two streams, lift both into the ball, add them by Möbius and come back, in one step with its gradient written out.

The result lies in the plane of the two centred streams, z = a d + b e, and a and b follow from the three inner products of d
and e alone. So all maps are computed on a few numbers per row. At the sizes of this project a step costs its call, not its
numbers: what both operands need is computed for both at once, [2, H, B, 1], and autograd sees one step instead of a hundred.
The tests hold values and gradients against the maps one by one.

For stream u of width D with length t of its point (``lift``, ``ball.py``):

    d = u - mean(u),  p = t d / sqrt(|d|^2 + D eps)             (layer normalisation divided by sqrt(D), times t)
    X = c|p|^2,  Y = c|q|^2,  P = c<p, q>                        (p and q the points of the two streams)
    m = X + Y + 2P,  n = m + (1 - X)(1 - Y),  s = c|p + q|^2 = m / n
    log0(p + q) = k(s) ((m + 1 - X) p + (1 - X) q) / n,  k(s) = artanh(sqrt(s)) / sqrt(s)

This is Möbius addition (Ganea et al. 2018, eq. 1) rearranged so that nothing cancels at the rim. Everything rounds row by
row: bits do not depend on the stack.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pipelines.fusion import poincare

__all__ = ["LiftedSum", "lifted_mobius_sum"]

_EPSILON = 1e-5  # of layer normalisation


class LiftedSum(NamedTuple):
    """What comes out, the last three without gradient."""

    fused: Tensor
    """The tangent vector or the point, [H, B, D]."""
    first_squared: Tensor
    """c|p|^2 of the first operand, [H, B, 1]."""
    second_squared: Tensor
    """c|q|^2 of the second one, [H, B, 1]."""
    fused_squared: Tensor
    """c|p + q|^2, [H, B, 1]."""


def lifted_mobius_sum(
    first: Tensor, second: Tensor, lengths: Tensor, c: Tensor | float, *, tangent: bool, scale: float = 1.0
) -> LiftedSum:
    """Möbius sum of two normalised and lifted streams.

    Args:
        first: stream of the first operand, [H, B, D].
        second: stream of the second one, [H, B, D].
        lengths: |p| and |q| of the operands' points, [2, H, B, 1].
        c: minus the curvature, a number or [H, B, 1].
        tangent: whether to return scale log0(p + q) rather than scale (p + q).
        scale: see ``tangent``.

    Returns:
        The sum and the squared norms of the three points.
    """
    return LiftedSum(*_LiftedSum.apply(first, second, lengths, c, tangent, scale))  # type: ignore[no-untyped-call]


def _dot(x: Tensor, y: Tensor) -> Tensor:
    return (x * y).sum(dim=-1, keepdim=True)


class _LiftedSum(torch.autograd.Function):
    """``forward`` follows the module's formulas, ``backward`` goes through them in reverse; ``for_x`` is the gradient of x. A
    name in the plural, or Z for (X, Y), is a pair [2, H, B, ...]."""

    @staticmethod
    def forward(
        ctx: Any, first: Tensor, second: Tensor, lengths: Tensor, c: Tensor | float, tangent: bool, scale: float
    ) -> tuple[Tensor, ...]:
        streams = torch.stack([first, second])
        streams -= streams.mean(dim=-1, keepdim=True)
        d, e = streams
        squares, de = _dot(streams, streams), _dot(d, e)
        overs = (squares + _EPSILON * first.shape[-1]).rsqrt()
        factors = lengths * overs  # p = factors[0] d, q = factors[1] e
        curved = c * factors
        Z, P = curved * factors * squares, curved[0] * factors[1] * de
        edges = 1.0 - Z
        m = torch.add(Z[0] + Z[1], P, alpha=2.0).clamp_(min=0.0)  # the square of a length
        over_n = torch.addcmul(m, edges[0], edges[1]).reciprocal_()
        s = m * over_n
        # float64: the slope of k is a difference of nearly equal numbers.
        inside = s.double().clamp_(1e-10, (1.0 - poincare.EDGE[s.dtype]) ** 2) if tangent else None
        k = None
        weights = torch.stack([m + edges[0], edges[0]]) * over_n
        if inside is not None:
            root = inside.sqrt()
            k = root.atanh() / root
            weights *= k.to(s.dtype)
        weights *= scale
        both = weights * factors  # a and b
        ctx.save_for_backward(streams, lengths, squares, de, overs, edges, over_n, s, inside, k, weights, both)
        ctx.c, ctx.scale = c, scale
        X, Y = Z[0].clone(), Z[1].clone()
        ctx.mark_non_differentiable(X, Y, s)
        ctx.set_materialize_grads(False)
        return (d * both[0]).addcmul_(e, both[1]), X, Y, s

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        if gradients[0] is None:
            return (None,) * 6
        streams, lengths, squares, de, overs, edges, over_n, s, inside, k, weights, both = ctx.saved_tensors
        c = ctx.c
        gradient = gradients[0] - gradients[0].mean(dim=-1, keepdim=True)  # centred here: d and e are centred
        factors = lengths * overs
        curved = c * factors
        for_both = _dot(gradient, streams)
        products = for_both * both
        for_k = products[0] + products[1]  # times k
        # weights are (m + edges[0], edges[0]) k scale / n
        scaled = for_both * factors * (over_n * ctx.scale if k is None else k.to(s.dtype) * over_n * ctx.scale)
        for_n = -for_k * over_n
        for_m = scaled[0] + for_n
        if k is not None:
            slope = ((1.0 - inside).reciprocal_() - k).div_(inside * k).to(s.dtype)  # 2 k' / k
            for_s = (0.5 * for_k) * slope * over_n  # divided by n: m / n is s
            for_n = torch.addcmul(for_n, for_s, s, value=-1.0)
            for_m = torch.addcmul(scaled[0], for_s, 1.0 - s) - for_k * over_n
        for_edges = torch.stack([torch.addcmul(scaled[0] + scaled[1], for_n, edges[1]), for_n * edges[0]])
        for_Z = for_m - for_edges
        for_P = 2.0 * for_m
        along = for_Z * curved
        across = c * for_P * de
        for_factors = torch.addcmul(for_both * weights, along, squares, value=2.0)
        for_factors = torch.addcmul(for_factors, factors.flip(0), across)
        for_squares = torch.addcmul(2.0 * along * factors, for_factors * factors, overs.square(), value=-1.0)  # twice
        for_de = for_P * curved[0] * factors[1]
        for_streams = torch.addcmul(gradient * both, streams, for_squares)
        for_streams[0].addcmul_(streams[1], for_de)
        for_streams[1].addcmul_(streams[0], for_de)
        for_c = None
        if isinstance(c, Tensor):
            shares = for_Z * factors.square() * squares
            for_c = shares[0] + shares[1] + for_P * factors[0] * factors[1] * de
        return for_streams[0], for_streams[1], for_factors * overs, for_c, None, None
