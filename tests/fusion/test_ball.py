"""What the heads in the ball share: lift, curvature, classifier."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from pipelines.errors import ConfigError
from pipelines.fusion import poincare
from pipelines.fusion.ball import BallOutput, Curvature, lift, lift_lengths, record_points
from pipelines.fusion.stacked import stacked_scalar

SEEDS = (5, 6, 7)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("c", [0.3, 1.0, 4.0])
def test_lift_is_exp0_of_a_direction(c: float) -> None:
    stream, radius = random(3, 32, 120), random(3, 1, 1, seed=1)
    (length,) = lift_lengths([radius], c, max_radius=0.7, rows=32)
    points = lift(stream, length)
    centred = stream - stream.mean(dim=-1, keepdim=True)
    direction = centred / centred.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(points, poincare.exp0(direction * 0.7 * torch.sigmoid(radius), c), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("factor", [0.0, 1e-20, 1e-6, 1.0, 1e6, 1e15])
@pytest.mark.parametrize("c", [0.001, 1.0, 10.0])
def test_lift_keeps_any_input_inside_with_finite_gradients(factor: float, c: float) -> None:
    stream = (random(2, 32, 16) * factor).requires_grad_()
    radius = stacked_scalar(50.0, head_count=2)
    (length,) = lift_lengths([radius], c, max_radius=3.0, rows=32)
    points = lift(stream, length)
    assert (math.sqrt(c) * points.norm(dim=-1) < 1).all()
    gradients = torch.autograd.grad(points.sum(), (stream, radius))
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


def test_lengths_keep_their_bits_in_a_large_stack() -> None:
    """The sigmoid of 63 radii would round the first 32 with vector code and the rest with scalar code."""
    for seed in range(20):
        radii = [random(63, 1, 1, seed=seed) * 3, random(63, 1, 1, seed=100 + seed) * 3]
        straight = lift_lengths(radii, 1.0, max_radius=0.5, rows=32)
        turned = lift_lengths([radius.flip(0) for radius in radii], 1.0, max_radius=0.5, rows=32)
        assert all(torch.equal(one, other.flip(0)) for one, other in zip(straight, turned, strict=True))


def test_fixed_curvature() -> None:
    curvature = Curvature(2.5, "no", head_count=3)
    assert curvature(32) == 2.5
    assert not list(curvature.parameters())


def test_learned_curvature() -> None:
    curvature = Curvature(2.0, "yes", head_count=3)
    (parameter,) = curvature.parameters()
    assert parameter.shape == (3, 1, 1)
    c = curvature(32)
    assert isinstance(c, torch.Tensor)
    assert c.shape == (3, 32, 1)
    torch.testing.assert_close(c, torch.full((3, 32, 1), 2.0))
    (slope,) = torch.autograd.grad(c.log().sum() / 32, parameter)
    torch.testing.assert_close(slope, torch.ones(3, 1, 1))  # it starts as the logarithm
    with torch.no_grad():
        parameter.copy_(torch.tensor([-1e3, 0.1, 1e3]).view(3, 1, 1))
    c = curvature(1)
    assert isinstance(c, torch.Tensor)
    torch.testing.assert_close(c.flatten(), torch.tensor([0.2, 2.0 * math.exp(0.1), 20.0]), rtol=1e-3, atol=0)


@pytest.mark.parametrize("c", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("classifier", ["dense", "mlr"])
def test_output_equals_the_formula(classifier: str, c: float) -> None:
    output = BallOutput(8, 5, classifier=classifier, dense_dim=0, dropout=0.0, scale=12.0, head_seeds=SEEDS)
    points = poincare.exp0(random(3, 32, 8) * 0.2, c)
    for h in range(3):
        if classifier == "dense":
            weight, bias = output.classify.weight[h], output.classify.bias[h]  # type: ignore[index,union-attr]
            expected = 12.0 * poincare.log0(points[h], c) @ weight + bias
        else:
            torch.nn.init.normal_(output.classify.offset, std=0.1)  # type: ignore[arg-type]
            normal, offset = output.classify.weight[h], output.classify.offset[h]  # type: ignore[index,union-attr]
            lengths = normal.norm(dim=0, keepdim=True)
            expected = 3.0 * poincare.hyperplane_logits(points[h], points[h] @ normal, lengths, offset, c)
        torch.testing.assert_close(output(points, c)[h], expected, rtol=1e-4, atol=1e-5)


def test_mlr_is_a_linear_layer_in_the_flat_limit() -> None:
    output = BallOutput(8, 5, classifier="mlr", dense_dim=0, dropout=0.0, scale=1.0, head_seeds=SEEDS)
    points = random(3, 32, 8) * 0.2
    expected = points @ output.classify.weight  # type: ignore[operator]
    torch.testing.assert_close(output(points, 1e-6), expected, rtol=1e-3, atol=1e-5)


def test_dropout_before_mlr_stays_in_the_ball() -> None:
    """Coordinates of points that are scaled up would leave it; tangent vectors may be."""
    output = BallOutput(16, 5, classifier="mlr", dense_dim=0, dropout=0.9, scale=1.0, head_seeds=SEEDS)
    seen: list[torch.Tensor] = []
    output.classify.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    points = poincare.exp0(F.normalize(random(3, 32, 16), dim=-1) * 2)
    output(points, 1.0)
    output.eval()(points, 1.0)
    assert (seen[0].norm(dim=-1) < 1).all()
    assert (seen[0] == 0).float().mean() > 0.8
    assert torch.equal(seen[1], points)


def test_mlr_takes_no_dense_layer() -> None:
    with pytest.raises(ConfigError, match=r"dense layer of 32 cannot stand before the classifier 'mlr'.*dense_dim=0"):
        BallOutput(8, 5, classifier="mlr", dense_dim=32, dropout=0.0, scale=1.0, head_seeds=SEEDS)


def test_records() -> None:
    points = poincare.exp0(random(3, 32, 8) * 0.2, 2.0)
    record: dict[str, torch.Tensor] = {}
    record_points(record, torch.full((3, 32, 1), 2.0), left=points)
    assert set(record) == {"left_norm", "left_edge", "curvature"}
    torch.testing.assert_close(record["left_norm"], math.sqrt(2.0) * points.norm(dim=-1))
    torch.testing.assert_close(record["left_edge"], 1 - 2.0 * points.square().sum(dim=-1))
    assert all(values.shape == (3, 32) for values in record.values())
    record_points(None, 1.0, left=points)  # nobody asks
