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


@pytest.mark.parametrize("c", CURVATURES)
def test_midpoint_lies_halfway(c: float) -> None:
    x, y = points(17, c=c), points(18, c=c)
    middle = poincare.gyromidpoint(x, y, c)
    torch.testing.assert_close(poincare.gyromidpoint(y, x, c), middle)
    torch.testing.assert_close(2 * poincare.dist(x, middle, c), poincare.dist(x, y, c), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(2 * poincare.dist(y, middle, c), poincare.dist(x, y, c), rtol=1e-6, atol=1e-9)
    moved = poincare.gyromidpoint(poincare.mobius_add(x, x, c), poincare.mobius_add(x, y, c), c)
    torch.testing.assert_close(moved, poincare.mobius_add(x, middle, c), rtol=1e-6, atol=1e-9)  # moves with its points


@pytest.mark.parametrize("c", CURVATURES)
@pytest.mark.parametrize("weight", [0.0, 0.2, 0.5, 1.0])
def test_weighted_midpoint_equals_geoopt(c: float, weight: float) -> None:
    ball = pytest.importorskip("geoopt").PoincareBall(c=c)
    x, y = points(19, c=c), points(20, c=c)
    weights = torch.tensor([weight, 1 - weight], dtype=torch.float64)
    expected = ball.weighted_midpoint(torch.stack([x, y], dim=1), weights, reducedim=[1], dim=-1)
    torch.testing.assert_close(poincare.gyromidpoint(x, y, c, weight), expected, rtol=1e-6, atol=1e-8)


def test_midpoint_with_all_weight_on_one_point_is_that_point() -> None:
    x, y = points(21), points(22)
    torch.testing.assert_close(poincare.gyromidpoint(x, y, 1.0, 1.0), x)
    torch.testing.assert_close(poincare.gyromidpoint(x, y, 1.0, 0.0), y)
    torch.testing.assert_close(poincare.gyromidpoint(x, x), x)
    torch.testing.assert_close(poincare.gyromidpoint(x, -x), torch.zeros_like(x))
    torch.testing.assert_close(poincare.gyromidpoint(x, y, 1e-10), (x + y) / 2)  # the flat limit


def test_beta_concat() -> None:
    x, y = points(23)[:, :5], points(24)[:, :7]
    joined = poincare.beta_concat(x, y, 0.8)
    beta = pytest.importorskip("scipy.special").beta
    expected = [poincare.log0(p, 0.8) * beta(6, 0.5) / beta(p.shape[1] / 2, 0.5) for p in (x, y)]
    torch.testing.assert_close(poincare.log0(joined, 0.8), torch.cat(expected, dim=-1))
    torch.testing.assert_close(poincare.beta_concat(y, x, 0.8), joined.roll(7, dims=-1))  # symmetric but for the order


@pytest.mark.parametrize("width", [2, 8, 120])
def test_beta_concat_keeps_the_expected_coordinate(width: int) -> None:
    """What the Beta functions are for: for random directions of length 1, the mean of a coordinate's size stays the same."""
    generator = torch.Generator().manual_seed(0)
    whole = torch.nn.functional.normalize(
        torch.randn(20_000, 2 * width, dtype=torch.float64, generator=generator), dim=-1
    )
    part = torch.nn.functional.normalize(torch.randn(20_000, width, dtype=torch.float64, generator=generator), dim=-1)
    ratio = whole[:, 0].abs().mean() / part[:, 0].abs().mean()
    joined = poincare.log0(poincare.beta_concat(0.01 * part, 0.0 * part))
    assert float(joined.norm(dim=-1).mean() / 0.01) == pytest.approx(float(ratio), rel=0.03)


def ganea_logits(x: torch.Tensor, z: torch.Tensor, r: torch.Tensor, c: float) -> torch.Tensor:
    """Ganea et al. 2018, eq. 25: lambda_p |a| / sqrt(c) asinh(2 sqrt(c) <-p + x, a> / ((1 - c|-p + x|^2) |a|)) through the point p
    = exp0(r z/|z|) with the normal a = z / (1 - c|p|^2) * ..., parallel transported so that lambda_p |a| = 2 |z|."""
    logits = []
    for k in range(z.shape[1]):
        unit = z[:, k] / z[:, k].norm()
        p = poincare.exp0((r[k] * unit)[None], c)
        a = z[:, k] * poincare.edge_distance(p, c)[0]  # transported from the origin: lambda_p |a| = 2 |z|
        moved = poincare.mobius_add(-p, x, c)
        inner = 2 * c**0.5 * (moved @ a) / (poincare.edge_distance(moved, c)[:, 0] * a.norm())
        logits.append(2 / poincare.edge_distance(p, c)[0] * a.norm() / c**0.5 * inner.asinh())
    return torch.stack(logits, dim=1)


@pytest.mark.parametrize("c", CURVATURES)
def test_hyperplane_logits_equal_ganea(c: float) -> None:
    x = points(25, c=c)
    generator = torch.Generator().manual_seed(26)
    z, r = (torch.randn(*shape, dtype=torch.float64, generator=generator) for shape in ((12, 4), (4,)))
    lengths = z.norm(dim=0)
    ours = poincare.hyperplane_logits(x, x @ z, lengths, 0.5 * r, c)
    torch.testing.assert_close(ours, ganea_logits(x, z, 0.5 * r, c), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("c", CURVATURES)
def test_hyperplane_logits_are_distances(c: float) -> None:
    """Of a point on the line along the normal: its distance to the plane through exp0(r z/|z|), times 2 |z|, signed."""
    unit = tangents(1.0, seed=27, rows=1)[0]
    plane, lengths = 0.3, torch.tensor([2.0], dtype=torch.float64)
    for along in (-0.8, 0.0, 0.3, 0.9):
        x = poincare.exp0((along * unit)[None], c)
        logit = poincare.hyperplane_logits(x, 2.0 * (x @ unit[:, None]), lengths, torch.tensor([plane]).double(), c)
        distance = poincare.dist(x, poincare.exp0((plane * unit)[None], c), c)
        torch.testing.assert_close(logit, math.copysign(1.0, along - plane) * 2.0 * lengths * distance)


def test_hyperplane_logits_in_the_flat_limit() -> None:
    x = tangents(0.7, seed=28)
    z = tangents(2.0, seed=29, rows=3).T
    r = torch.tensor([0.2, 0.0, -0.5], dtype=torch.float64)
    logits = poincare.hyperplane_logits(x, x @ z, z.norm(dim=0), r, 1e-10)
    torch.testing.assert_close(logits, 4 * (x @ z - r * z.norm(dim=0)), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("c", CURVATURES)
def test_gradients_of_the_newer_maps(c: float) -> None:
    curvature = torch.tensor([[c]], dtype=torch.float64, requires_grad=True)
    weight = torch.tensor([[0.3]], dtype=torch.float64, requires_grad=True)
    u = tangents(0.5, seed=30, rows=4).requires_grad_()
    v = tangents(0.3, seed=31, rows=4).requires_grad_()
    z = tangents(1.5, seed=32, rows=3).T.clone().requires_grad_()
    r = torch.tensor([[0.2, 0.1, -0.5]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(poincare.gyromidpoint, (u, v, curvature, weight))
    assert torch.autograd.gradcheck(poincare.beta_concat, (u, v, curvature))
    assert torch.autograd.gradcheck(
        lambda x, z, r, c: poincare.hyperplane_logits(x, x @ z, z.norm(dim=0, keepdim=True), r, c), (u, z, r, curvature)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("length", [0.0, 1e-20, 1e-6, 1.0, 5.0, 30.0, 1e6])
def test_finite_everywhere(length: float, dtype: torch.dtype) -> None:
    """At the origin, at the rim, for the same point twice and for opposite ones: values and gradients."""
    u = (tangents(1.0, dtype) * length).requires_grad_()
    v = (tangents(1.0, dtype, seed=1) * length).requires_grad_()
    z = (tangents(1.0, dtype, seed=2, rows=3).T.clone() * torch.tensor([0.0, 1.0, 1e3], dtype=dtype)).requires_grad_()
    r = torch.tensor([[0.0, 100.0, -1e4]], dtype=dtype, requires_grad=True)
    for left, right in ((u, v), (u, u), (u, -u), (u, 0.0 * v)):
        x, y = poincare.exp0(left), poincare.exp0(right)
        fused = [poincare.mobius_add(x, y), poincare.gyromidpoint(x, y), poincare.beta_concat(x, y)]
        logits = [poincare.hyperplane_logits(p[:, :12], p[:, :12] @ z, poincare.norm(z.T).T, r, 1.0) for p in fused]
        total = sum((values.sum() for values in (*fused, *logits, *map(poincare.log0, fused))), torch.zeros(()))
        assert torch.isfinite(total)
        for point in fused:
            assert (point.norm(dim=-1) < 1 + 1e-6).all()  # rounding may put a sum of points at the rim onto it
        gradients = torch.autograd.grad(total, (u, v, z, r), allow_unused=True)
        assert all(gradient is None or torch.isfinite(gradient).all() for gradient in gradients)
