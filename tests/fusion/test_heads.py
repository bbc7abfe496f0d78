"""Every head against a plain formula, head by head; what it records; what order and dropout do."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipelines.fusion.attention import AttentionHead
from pipelines.fusion.bilinear import BilinearHead
from pipelines.fusion.catalogue import FUSIONS, SINGLE, build_head
from pipelines.fusion.concat import ConcatHead
from pipelines.fusion.gated import GatedHead
from pipelines.fusion.hyperbolic import HyperbolicHead
from pipelines.fusion.single import SingleHead

SEEDS = (3, 1, 4)
SHAPE = {"left_dim": 20, "right_dim": 12, "num_classes": 5, "head_seeds": SEEDS, "hidden_dim": 16}


def inputs(factor: float = 1.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(3, 32, 20, generator=generator) * factor,
        torch.randn(3, 32, 12, generator=generator) * factor,
    )


def affine(layer: Any, head: int, x: Tensor) -> Tensor:
    return x @ layer.weight[head] + layer.bias[head, 0]


def test_single() -> None:
    left, _ = inputs()
    head = SingleHead(left_dim=20, num_classes=5, head_seeds=SEEDS, hidden_dim=16)
    for h in range(3):
        expected = affine(head.classify, h, affine(head.left_project, h, left[h]).relu())
        torch.testing.assert_close(head(left)[h], expected)


def test_concat() -> None:
    left, right = inputs()
    head = ConcatHead(**SHAPE)  # type: ignore[arg-type]
    for h in range(3):
        streams = [affine(head.left_project, h, left[h]).relu(), affine(head.right_project, h, right[h]).relu()]
        torch.testing.assert_close(head(left, right)[h], affine(head.classify, h, torch.cat(streams, dim=-1)))


def test_attention_equals_torch() -> None:
    left, right = inputs()
    head = AttentionHead(**SHAPE, attention_heads=4)  # type: ignore[arg-type]
    nn.init.normal_(head.norm.scale)
    record: dict[str, Tensor] = {}
    logits = head(left, right, record=record)
    for h in range(3):
        oracle = nn.MultiheadAttention(16, 4, batch_first=True)
        with torch.no_grad():
            oracle.in_proj_weight.copy_(head.query_key_value.weight[h].T)
            oracle.in_proj_bias.copy_(head.query_key_value.bias[h, 0])
            oracle.out_proj.weight.copy_(head.join.weight[h].T)
            oracle.out_proj.bias.copy_(head.join.bias[h, 0])
        streams = [affine(head.left_project, h, left[h]), affine(head.right_project, h, right[h])]
        tokens = torch.stack(streams, dim=1)  # [B, 2, D]
        mixed, weights = oracle(tokens, tokens, tokens)
        attended = F.layer_norm(tokens + mixed, (16,), head.norm.scale[h, 0], head.norm.shift[h, 0])
        torch.testing.assert_close(logits[h], affine(head.classify, h, attended.flatten(1)), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(record["attention_left_to_right"][h], weights[:, 0, 1])
        torch.testing.assert_close(record["attention_right_to_left"][h], weights[:, 1, 0])


def test_gated() -> None:
    left, right = inputs()
    head = GatedHead(**SHAPE)  # type: ignore[arg-type]
    record: dict[str, Tensor] = {}
    logits = head(left, right, record=record)
    for h in range(3):
        streams = [affine(head.left_project, h, left[h]).tanh(), affine(head.right_project, h, right[h]).tanh()]
        gate = torch.sigmoid(affine(head.gate, h, torch.cat(streams, dim=-1)))
        fused = gate * streams[0] + (1 - gate) * streams[1]
        torch.testing.assert_close(logits[h], affine(head.classify, h, fused))
        torch.testing.assert_close(record["gate_left"][h], gate.mean(dim=-1))


def test_gate_decides_what_passes() -> None:
    left, right = inputs()
    head = GatedHead(**SHAPE)  # type: ignore[arg-type]
    for bias, kept, lost in ((100.0, 0, 1), (-100.0, 1, 0)):
        nn.init.constant_(head.gate.bias, bias)
        streams = [left, right]
        logits = head(*streams)
        streams[lost] = streams[lost].flip(1)
        torch.testing.assert_close(head(*streams), logits)
        streams[kept] = streams[kept].flip(1)
        assert not torch.allclose(head(*streams), logits)


def test_bilinear() -> None:
    left, right = inputs()
    head = BilinearHead(**SHAPE, rank=24)  # type: ignore[arg-type]
    record: dict[str, Tensor] = {}
    logits = head(left, right, record=record)
    for h in range(3):
        factors = [
            affine(layers[1], h, affine(layers[0], h, x[h]).relu())
            for layers, x in (
                ((head.left_project, head.left_factors), left),
                ((head.right_project, head.right_factors), right),
            )
        ]
        fused = 1 + factors[0] + factors[1] + factors[0] * factors[1]  # both first-order terms, and the products
        torch.testing.assert_close(logits[h], affine(head.classify, h, fused))
        products, others = (factors[0] * factors[1]).abs().sum(-1), (factors[0].abs() + factors[1].abs()).sum(-1)
        torch.testing.assert_close(record["interaction_share"][h], products / (products + others))


def lifted(head: nn.Module, h: int, left: Tensor, right: Tensor, ball: Any, bound: float) -> list[Tensor]:
    """Points of both streams of one head, by geoopt."""
    points = []
    for side, x in (("left", left), ("right", right)):
        direction = F.layer_norm(affine(getattr(head, f"{side}_project"), h, x[h]), (16,)) / math.sqrt(16)
        points.append(ball.expmap0(direction * bound * torch.sigmoid(getattr(head, f"{side}_radius")[h])))
    return points


@pytest.mark.parametrize("curvature", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("name", ["midpoint", "barycentre", "beta-concat"])
def test_symmetric_ball_heads_equal_geoopt(name: str, curvature: float) -> None:
    ball = pytest.importorskip("geoopt").PoincareBall(c=curvature)
    left, right = inputs()
    head = build_head(name, **SHAPE, options={"curvature": curvature, "max_radius": 0.7})  # type: ignore[arg-type]
    parameters = dict(head.named_parameters())
    for key in ("left_radius", "right_radius", "balance"):
        if key in parameters:
            nn.init.normal_(parameters[key])
    record: dict[str, Tensor] = {}
    logits = head(left, right, record=record)
    for h in range(3):
        points = lifted(head, h, left, right, ball, 0.7)
        if name == "beta-concat":
            ratio = math.exp(math.lgamma(16) - math.lgamma(16.5) - math.lgamma(8) + math.lgamma(8.5))
            tangent = torch.cat([ball.logmap0(point) for point in points], dim=-1) * (ratio * math.sqrt(2) * 6 / 0.7)
        else:
            weight = torch.sigmoid(parameters["balance"][h, 0, 0]) if name == "barycentre" else torch.tensor(0.5)
            weights = torch.stack([weight, 1 - weight])
            fused = ball.weighted_midpoint(torch.stack(points, dim=1), weights, reducedim=[1], dim=-1)
            tangent = ball.logmap0(fused) * (12 / 0.7)
            if name == "barycentre":
                torch.testing.assert_close(record["weight_left"][h], weight.expand(32))
        torch.testing.assert_close(logits[h], affine(head.output.classify, h, tangent), rtol=1e-3, atol=1e-4)  # type: ignore[union-attr,arg-type]


@pytest.mark.parametrize("order", ["left-right", "right-left"])
def test_mobius_is_the_textbook_head(order: str) -> None:
    ball = pytest.importorskip("geoopt").PoincareBall(c=1.0)
    left, right = inputs(0.2)  # geoopt's ball ends earlier than ours
    options = {"order": order, "dense_dim": 24}
    head = build_head("mobius", **SHAPE, options=options)  # type: ignore[arg-type]
    record: dict[str, Tensor] = {}
    logits = head(left, right, record=record)
    output = head.output
    for h in range(3):
        points = [
            ball.expmap0(affine(layer, h, x[h]))
            for layer, x in ((head.left_project, left), (head.right_project, right))
        ]  # type: ignore[arg-type]
        first, second = points if order == "left-right" else points[::-1]
        hidden = affine(output.dense.layer, h, ball.logmap0(ball.mobius_add(first, second))).relu()  # type: ignore[union-attr,arg-type]
        torch.testing.assert_close(logits[h], affine(output.classify, h, hidden), rtol=1e-3, atol=1e-4)  # type: ignore[union-attr,arg-type]
        torch.testing.assert_close(record["left_norm"][h], points[0].norm(dim=-1))


def test_mobius_has_no_control_of_the_radius() -> None:
    left, right = inputs(30.0)
    head = build_head("mobius", **SHAPE)  # type: ignore[arg-type]
    record: dict[str, Tensor] = {}
    logits = head(left, right, record=record)
    assert record["left_edge"].max() < 1e-4  # on the rim
    torch.testing.assert_close(
        head(left, right.flip(1)), logits, rtol=1e-2, atol=1e-2
    )  # what the right input is, does not count


@pytest.mark.parametrize("name", [name for name in FUSIONS if "classifier" in FUSIONS[name].options])
def test_mlr_and_learned_curvature(name: str) -> None:
    left, right = inputs()
    options = {"classifier": "mlr", "learn_curvature": "yes", "curvature": 2.0}
    head = build_head(name, **SHAPE, options=options)  # type: ignore[arg-type]
    record: dict[str, Tensor] = {}
    logits = head(left, right, record=record)
    torch.testing.assert_close(record["curvature"], torch.full((3, 32), 2.0))
    names = [key for key, _ in head.named_parameters()]
    for key, gradient in zip(names, torch.autograd.grad(logits.square().sum(), list(head.parameters())), strict=True):
        assert torch.isfinite(gradient).all(), key
        assert all(gradient[h].abs().sum() > 0 for h in range(3)), key
    fixed = build_head(name, **SHAPE, options={**options, "learn_curvature": "no"})  # type: ignore[arg-type]
    torch.testing.assert_close(fixed(left, right), logits)  # where it starts
    dense = build_head(name, **SHAPE, options={**options, "classifier": "dense"})  # type: ignore[arg-type]
    assert not torch.allclose(dense(left, right), logits, atol=1e-2)


@pytest.mark.parametrize("factor", [0.0, 1e-20, 1.0, 1e4, 1e15])
@pytest.mark.parametrize("classifier", ["dense", "mlr"])
@pytest.mark.parametrize("name", [name for name in FUSIONS if "classifier" in FUSIONS[name].options])
def test_ball_heads_are_finite_for_any_input(name: str, classifier: str, factor: float) -> None:
    left, right = inputs(factor)
    options: dict[str, object] = {"classifier": classifier, "learn_curvature": "yes", "curvature": 10.0}
    if "max_radius" in FUSIONS[name].options:
        options["max_radius"] = 3.0
    head = build_head(name, **SHAPE, options=options)  # type: ignore[arg-type]
    for key, parameter in head.named_parameters():
        if key.endswith("bias") or factor == 0.0:
            nn.init.zeros_(parameter)  # with zero inputs: zero vectors, and zero normals of the hyperplanes
        elif key.endswith("radius"):
            nn.init.constant_(parameter, 50.0)
    logits = head(left, right)
    gradients = torch.autograd.grad(logits.sum() + logits.square().sum(), list(head.parameters()))
    assert all(torch.isfinite(values).all() for values in (logits, *gradients))


@pytest.mark.parametrize("name", FUSIONS)
def test_modality_dropout_hides_one_input_in_training_only(name: str) -> None:
    left, right = inputs()
    plain = build_head(name, **SHAPE)  # type: ignore[arg-type]
    head = build_head(name, **SHAPE, options={"modality_dropout": 0.5})  # type: ignore[arg-type]
    logits, whole = head(left, right), plain(left, right)
    without = [plain(torch.zeros_like(left), right), plain(left, torch.zeros_like(right))]
    kind = torch.stack([torch.isclose(logits, other, atol=1e-5).all(dim=-1) for other in (whole, *without)])
    assert kind.any(dim=0).all()  # every row is one of the three
    assert all(20 < int(count) < 70 for count in kind.sum(dim=(1, 2)) * torch.tensor([1, 2, 2]) / 1)
    assert torch.equal(head.eval()(left, right), whole)


@pytest.mark.parametrize("order", ["left-right", "right-left"])
@pytest.mark.parametrize("curvature", [0.3, 1.0, 4.0])
def test_hyperbolic_equals_geoopt(order: str, curvature: float) -> None:
    ball = pytest.importorskip("geoopt").PoincareBall(c=curvature)
    left, right = inputs()
    head = HyperbolicHead(**SHAPE, order=order, curvature=curvature, max_radius=0.7)  # type: ignore[arg-type]
    nn.init.normal_(head.left_radius)
    nn.init.normal_(head.right_radius)
    logits = head(left, right)
    for h in range(3):
        points = lifted(head, h, left, right, ball, 0.7)
        first, second = points if order == "left-right" else points[::-1]
        tangent = ball.logmap0(ball.mobius_add(first, second)) * (6 / 0.7)
        torch.testing.assert_close(logits[h], affine(head.output.classify, h, tangent), rtol=1e-4, atol=1e-4)


def test_hyperbolic_order_is_an_exchange_of_operands() -> None:
    left, right = inputs()
    straight = build_head("hyperbolic", **SHAPE, options={"order": "left-right"})  # type: ignore[arg-type]
    turned = build_head("hyperbolic", **SHAPE, options={"order": "right-left"})  # type: ignore[arg-type]
    assert not torch.allclose(straight(left, right), turned(left, right))
    swapped = HyperbolicHead(**{**SHAPE, "left_dim": 12, "right_dim": 20}, order="right-left")  # type: ignore[arg-type]
    names = {"left": "right", "right": "left"}
    state = straight.state_dict()
    swapped.load_state_dict(
        {"_".join([names.get(k.split("_")[0], k.split("_")[0]), *k.split("_")[1:]]): v for k, v in state.items()}
    )
    torch.testing.assert_close(swapped(right, left), straight(left, right), rtol=0, atol=0)


@pytest.mark.parametrize("factor", [1e-3, 1.0, 10.0, 1e4])
def test_hyperbolic_radius_is_under_control(factor: float) -> None:
    """Whatever the inputs are scaled by, points stay at the learned radius, away from the rim."""
    left, right = inputs(factor)
    head = HyperbolicHead(**SHAPE, max_radius=0.5)  # type: ignore[arg-type]
    nn.init.constant_(head.left_radius, 100.0)  # the bound itself
    record: dict[str, Tensor] = {}
    logits = head(left, right, record=record)
    assert record.keys() == {f"{point}_{what}" for point in ("left", "right", "fused") for what in ("norm", "edge")}
    assert all(values.shape == (3, 32) for values in record.values())
    # Small inputs leave the projection's bias, whose length LayerNorm's epsilon shortens by a part in 1e-3.
    torch.testing.assert_close(record["left_norm"], torch.full((3, 32), math.tanh(0.5)), rtol=2e-3, atol=0)
    torch.testing.assert_close(record["right_norm"], torch.full((3, 32), math.tanh(0.25)), rtol=2e-3, atol=0)
    assert record["fused_norm"].max() < math.tanh(0.75) + 1e-6  # no longer than both lengths together
    torch.testing.assert_close(record["left_edge"], 1 - record["left_norm"] ** 2)
    gradients = torch.autograd.grad(logits.sum(), list(head.parameters()))
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize("name", [*FUSIONS, SINGLE])
def test_heads_are_independent(name: str) -> None:
    """A head of the stack equals the head built alone, and a gradient of one head touches no other."""
    shape = {**SHAPE, "right_dim": None if name == SINGLE else 12}
    streams = inputs()[: 1 if name == SINGLE else 2]
    stack = build_head(name, **shape)  # type: ignore[arg-type]
    alone = build_head(name, **{**shape, "head_seeds": SEEDS[1:2]})  # type: ignore[arg-type]
    logits = stack(*streams)
    torch.testing.assert_close(alone(*(x[1:2] for x in streams)), logits[1:2])
    logits[1].sum().backward()
    for parameter in stack.parameters():
        assert parameter.grad is not None
        assert parameter.grad[0].abs().sum() == parameter.grad[2].abs().sum() == 0


@pytest.mark.parametrize("name", [*FUSIONS, SINGLE])
def test_dropout_acts_in_training_only(name: str) -> None:
    shape = {**SHAPE, "right_dim": None if name == SINGLE else 12}
    streams = inputs()[: 1 if name == SINGLE else 2]
    plain = build_head(name, **shape)  # type: ignore[arg-type]
    for option in ("input_dropout", "dropout"):
        head = build_head(name, **shape, **{option: 0.5})  # type: ignore[arg-type]
        assert not torch.allclose(head(*streams), plain(*streams))
        assert torch.equal(head.eval()(*streams), plain(*streams))
