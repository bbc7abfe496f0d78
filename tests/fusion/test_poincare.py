"""The ball's maps: identities, limits, extremes, and geoopt as the oracle."""

from __future__ import annotations

import math

import pytest
import torch

from pipelines.fusion import poincare

CURVATURES = (0.1, 1.0, 2.5)
LENGTHS = (1e-6, 1e-4, 0.01, 0.3, 1.0, 2.0, 3.0)
# float32 keeps 1 - |y| to 6e-8 only, and artanh multiplies that by 1 / (1 - |y|^2): 100 at a length of 3.
ROUND_TRIP = {torch.float32: 3e-5, torch.float64: 1e-12}


def tangents(length: float, dtype: torch.dtype = torch.float64, *, seed: int = 0, rows: int = 50) -> torch.Tensor:
    u = torch.randn(rows, 12, dtype=dtype, generator=torch.Generator().manual_seed(seed))
    return u / u.norm(dim=-1, keepdim=True) * length


def points(seed: int, *, c: float = 1.0, largest: float = 1.5) -> torch.Tensor:
    lengths = torch.rand(50, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * largest
    return poincare.exp0(tangents(1.0, seed=seed) * lengths, c)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("length", LENGTHS)
def test_log0_inverts_exp0(length: float, dtype: torch.dtype) -> None:
    u = tangents(length, dtype)
    back = poincare.log0(poincare.exp0(u))
    assert back.dtype == dtype
    assert ((back - u).norm(dim=-1) / length).max() < ROUND_TRIP[dtype]


@pytest.mark.parametrize("c", CURVATURES)
@pytest.mark.parametrize("length", LENGTHS)
def test_distance_from_the_origin_is_twice_the_length(length: float, c: float) -> None:
    u = tangents(length)
    torch.testing.assert_close(poincare.dist0(poincare.exp0(u, c), c), 2 * u.norm(dim=-1, keepdim=True))


@pytest.mark.parametrize("c", CURVATURES)
def test_left_cancellation(c: float) -> None:
    x, y = points(1, c=c), points(2, c=c)
    torch.testing.assert_close(poincare.mobius_add(-x, poincare.mobius_add(x, y, c), c), y, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("c", CURVATURES)
def test_gyrocommutativity(c: float) -> None:
    """x + y = gyr[x, y](y + x), gyr[x, y] v = -(x + y) + (x + (y + v)) (Ganea et al. 2018, section 2.3)."""
    x, y = points(3, c=c, largest=1.0), points(4, c=c, largest=1.0)
    xy, yx = poincare.mobius_add(x, y, c), poincare.mobius_add(y, x, c)
    turned = poincare.mobius_add(-xy, poincare.mobius_add(x, poincare.mobius_add(y, yx, c), c), c)
    torch.testing.assert_close(turned, xy, rtol=1e-7, atol=1e-9)
    assert not torch.allclose(xy, yx)
    torch.testing.assert_close(xy.norm(dim=-1), yx.norm(dim=-1))


def test_the_origin_is_neutral() -> None:
    x, zero = points(5), torch.zeros(50, 12, dtype=torch.float64)
    torch.testing.assert_close(poincare.mobius_add(x, zero), x)
    torch.testing.assert_close(poincare.mobius_add(zero, x), x)
    torch.testing.assert_close(poincare.mobius_add(x, -x), zero)


def test_flat_limit() -> None:
    """As c goes to 0 the ball becomes the plane (distances twice as long)."""
    u, v, c = tangents(0.7, seed=6), tangents(0.4, seed=7), 1e-10
    torch.testing.assert_close(poincare.exp0(u, c), u)
    torch.testing.assert_close(poincare.log0(u, c), u)
    torch.testing.assert_close(poincare.mobius_add(u, v, c), u + v)
    torch.testing.assert_close(poincare.dist(u, v, c), 2 * (u - v).norm(dim=-1, keepdim=True))


def test_distance_is_a_distance() -> None:
    x, y, z = points(8), points(9), points(10)
    torch.testing.assert_close(poincare.dist(x, y), poincare.dist(y, x))
    assert (poincare.dist(x, x) < 1e-6).all()
    assert (poincare.dist(x, z) <= poincare.dist(x, y) + poincare.dist(y, z) + 1e-9).all()
    moved = poincare.dist(poincare.mobius_add(z, x), poincare.mobius_add(z, y))
    torch.testing.assert_close(moved, poincare.dist(x, y), rtol=1e-6, atol=1e-9)  # left translations are isometries


def test_what_the_second_operand_keeps() -> None:
    """x + y = x + edge(x) y to first order in y: the reason why the radius must be controlled."""
    x, y = points(11), tangents(1e-7, seed=12)
    moved = poincare.mobius_add(x, y) - x
    across = y - (y * x).sum(dim=-1, keepdim=True) * x / (x * x).sum(dim=-1, keepdim=True)
    gained = (moved * across).sum(dim=-1, keepdim=True) / (across * across).sum(dim=-1, keepdim=True)
    torch.testing.assert_close(gained, poincare.edge_distance(x), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("c", CURVATURES)
def test_gradients(c: float) -> None:
    curvature = torch.tensor([[c]], dtype=torch.float64, requires_grad=True)
    u = tangents(0.6, seed=13, rows=4).requires_grad_()
    v = tangents(0.3, seed=14, rows=4).requires_grad_()
    assert torch.autograd.gradcheck(lambda u, c: poincare.exp0(u, c), (u, curvature))
    assert torch.autograd.gradcheck(lambda u, c: poincare.log0(0.5 * u, c), (u, curvature))
    assert torch.autograd.gradcheck(lambda u, v, c: poincare.mobius_add(u, v, c), (u, v, curvature))
    assert torch.autograd.gradcheck(lambda u, v, c: poincare.dist(0.5 * u, v, c), (u, v, curvature))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("map_", [poincare.exp0, poincare.log0])
def test_gradient_at_the_origin_is_the_identity(map_: object, dtype: torch.dtype) -> None:
    zero = torch.zeros(12, dtype=dtype)
    jacobian = torch.autograd.functional.jacobian(map_, zero)  # type: ignore[no-untyped-call]
    torch.testing.assert_close(jacobian, torch.eye(12, dtype=dtype))
    short = torch.autograd.functional.jacobian(map_, tangents(1e-5, dtype, rows=1)[0])  # type: ignore[no-untyped-call]
    torch.testing.assert_close(short, torch.eye(12, dtype=dtype), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_long_vectors_stay_inside_with_finite_gradients(dtype: torch.dtype) -> None:
    for length in (5.0, 30.0, 1e3, 1e6):
        u = tangents(length, dtype).requires_grad_()
        v = tangents(length, dtype, seed=1).requires_grad_()
        x, y = poincare.exp0(u), poincare.exp0(v)
        assert (x.norm(dim=-1) < 1).all()
        fused = poincare.mobius_add(x, y)
        back = poincare.log0(fused)
        gradients = torch.autograd.grad(back.sum(), (u, v))
        assert all(torch.isfinite(values).all() for values in (fused, back, *gradients))


def test_a_curvature_per_head_equals_the_loop_bit_for_bit() -> None:
    c = torch.tensor([0.2, 1.0, 3.0], dtype=torch.float32).view(3, 1, 1)
    u, v = torch.randn(3, 32, 16) * 0.1, torch.randn(3, 32, 16) * 0.1

    def fuse(u: torch.Tensor, v: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        return poincare.log0(poincare.mobius_add(poincare.exp0(u, c), poincare.exp0(v, c), c), c)

    assert torch.equal(fuse(u, v, c), torch.cat([fuse(u[h : h + 1], v[h : h + 1], c[h : h + 1]) for h in range(3)]))


@pytest.mark.parametrize("c", CURVATURES)
def test_equals_geoopt(c: float) -> None:
    ball = pytest.importorskip("geoopt").PoincareBall(c=c)
    u, v = tangents(0.8, seed=15), tangents(0.5, seed=16)
    x, y = poincare.exp0(u, c), poincare.exp0(v, c)
    torch.testing.assert_close(x, ball.expmap0(u), check_dtype=False)
    torch.testing.assert_close(poincare.log0(x, c), ball.logmap0(x))
    torch.testing.assert_close(poincare.mobius_add(x, y, c), ball.mobius_add(x, y))
    torch.testing.assert_close(poincare.dist(x, y, c)[..., 0], ball.dist(x, y))
    torch.testing.assert_close(poincare.dist0(x, c)[..., 0], ball.dist0(x))
    torch.testing.assert_close(poincare.edge_distance(x, c)[..., 0], 2 / ball.lambda_x(x))


def test_shorter_than_geoopt_can_see() -> None:
    """float32, |u| = 1e-6: log(1 + r) of geoopt loses the leading digits, log1p keeps them."""
    geoopt = pytest.importorskip("geoopt")
    u = tangents(1e-6, torch.float32)
    ours = poincare.log0(poincare.exp0(u)).norm(dim=-1)
    theirs = geoopt.PoincareBall(c=1.0).logmap0(poincare.exp0(u)).norm(dim=-1)
    assert math.isclose(float(ours.mean()), 1e-6, rel_tol=1e-5)
    assert not math.isclose(float(theirs.mean()), 1e-6, rel_tol=1e-3)
