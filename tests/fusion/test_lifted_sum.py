"""The step that ``hyperbolic`` takes at once, against the maps one after the other: values, gradients, extremes, bits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pipelines.fusion import poincare
from pipelines.fusion.ball import lift
from pipelines.fusion.lifted_sum import lifted_mobius_sum


def random(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def arguments(length: float, c: float, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Two streams, the lengths of their points and a curvature, all with gradients."""
    first, second = random(2, 3, 7, seed=0, dtype=dtype), random(2, 3, 7, seed=1, dtype=dtype)
    shares = torch.rand(2, 2, 3, 1, dtype=dtype, generator=torch.Generator().manual_seed(2))
    lengths = length * (0.5 + 0.5 * shares) / c**0.5
    return [x.requires_grad_() for x in (first, second, lengths, torch.full((2, 3, 1), c, dtype=dtype))]


def one_by_one(first: Tensor, second: Tensor, lengths: Tensor, c: Tensor, *, tangent: bool, scale: float) -> Tensor:
    fused = poincare.mobius_add(lift(first, lengths[0]), lift(second, lengths[1]), c)
    return scale * (poincare.log0(fused, c) if tangent else fused)


@pytest.mark.parametrize("tangent", [True, False])
@pytest.mark.parametrize("c", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("length", [1e-3, 0.05, 0.3, 0.9, 0.999])
def test_equals_the_maps_one_by_one(length: float, c: float, tangent: bool) -> None:
    first, second, lengths, curvature = inputs = arguments(length, c)
    ours = lifted_mobius_sum(first, second, lengths, curvature, tangent=tangent, scale=3.0)
    expected = one_by_one(first, second, lengths, curvature, tangent=tangent, scale=3.0)
    torch.testing.assert_close(ours.fused, expected, rtol=1e-8, atol=1e-10)
    points = [lift(first, lengths[0]), lift(second, lengths[1])]
    points.append(poincare.mobius_add(*points, curvature))
    for squared, point in zip(ours[1:], points, strict=True):
        torch.testing.assert_close(1 - squared, poincare.edge_distance(point, curvature), rtol=1e-8, atol=1e-10)
        assert not squared.requires_grad
    direction = random(2, 3, 7, seed=9)
    gradients = torch.autograd.grad(ours.fused, inputs, direction)
    for gradient, reference in zip(gradients, torch.autograd.grad(expected, inputs, direction), strict=True):
        torch.testing.assert_close(gradient, reference, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("tangent", [True, False])
def test_gradcheck(tangent: bool) -> None:
    inputs = arguments(0.6, 1.3)
    assert torch.autograd.gradcheck(
        lambda x, y, t, c: lifted_mobius_sum(x, y, t, c, tangent=tangent, scale=2.0)[0], inputs
    )
    assert torch.autograd.gradcheck(lambda x, y, t: lifted_mobius_sum(x, y, t, 0.7, tangent=tangent)[0], inputs[:3])


@pytest.mark.parametrize("factor", [0.0, 1e-20, 1e-6, 1.0, 1e6, 1e15])
@pytest.mark.parametrize("length", [0.0, 1e-20, 1e-4, 0.5, 1 - 1e-5])
def test_float32_is_finite_everywhere(length: float, factor: float) -> None:
    base = [random(2, 32, 16, seed=seed, dtype=torch.float32) * factor for seed in (0, 1)]
    for second in (base[1], base[0], -base[0]):
        inputs = [x.clone().requires_grad_() for x in (base[0], second, torch.full((2, 2, 32, 1), length))]
        for tangent in (True, False):
            fused = lifted_mobius_sum(inputs[0], inputs[1], inputs[2], 1.0, tangent=tangent).fused
            gradients = torch.autograd.grad(fused.sum() + fused.square().sum(), inputs)
            assert all(torch.isfinite(values).all() for values in (fused, *gradients))


def test_float32_gradients_equal_float64() -> None:
    for length in (1e-3, 0.24, 0.46, 0.9):
        narrow, wide = (arguments(length, 1.0, dtype) for dtype in (torch.float32, torch.float64))
        with torch.no_grad():
            for one, other in zip(wide, narrow, strict=True):
                one.copy_(other)
        sums = [lifted_mobius_sum(x, y, t, c, tangent=True).fused for x, y, t, c in (narrow, wide)]
        direction = random(2, 3, 7, seed=9, dtype=torch.float32)
        for ours, expected in zip(
            torch.autograd.grad(sums[0], narrow, direction),
            torch.autograd.grad(sums[1], wide, direction.double()),
            strict=True,
        ):
            torch.testing.assert_close(ours.double(), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_bits_are_those_of_the_head_alone() -> None:
    streams = [random(5, 32, 120, seed=seed, dtype=torch.float32) for seed in (0, 1, 2)]
    lengths = torch.rand(2, 5, 32, 1, generator=torch.Generator().manual_seed(3))

    def compute(heads: slice) -> list[Tensor]:
        x, y, t = (
            values.clone().requires_grad_() for values in (streams[0][heads], streams[1][heads], lengths[:, heads])
        )
        out = lifted_mobius_sum(x, y, t, 1.0, tangent=True, scale=12.0)
        gradients = torch.autograd.grad(out.fused, (x, y, t), streams[2][heads].clone())
        return [*out, *gradients[:2], *gradients[2]]

    whole = compute(slice(None))
    for heads in (slice(0, 1), slice(3, 4), slice(4, 5), slice(1, 3)):
        assert all(torch.equal(ours, expected[heads]) for ours, expected in zip(compute(heads), whole, strict=True))
