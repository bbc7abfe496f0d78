"""Every head against a plain formula, head by head; what it records; what order and dropout do."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipelines.fusion.attention import AttentionHead
from pipelines.fusion.catalogue import FUSIONS, SINGLE, build_head
from pipelines.fusion.concat import ConcatHead
from pipelines.fusion.hyperbolic import HyperbolicHead
from pipelines.fusion.single import SingleHead
from pipelines.fusion.stacked import StackedLinear

SEEDS = (3, 1, 4)
SHAPE = {"left_dim": 20, "right_dim": 12, "num_classes": 5, "head_seeds": SEEDS, "hidden_dim": 16}


def inputs(factor: float = 1.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(3, 32, 20, generator=generator) * factor,
        torch.randn(3, 32, 12, generator=generator) * factor,
    )


def affine(layer: StackedLinear, head: int, x: Tensor) -> Tensor:
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
        lifted = []
        for layer, radius, x in (
            (head.left_project, head.left_radius, left),
            (head.right_project, head.right_radius, right),
        ):
            direction = F.layer_norm(affine(layer, h, x[h]), (16,)) / math.sqrt(16)
            lifted.append(ball.expmap0(direction * 0.7 * torch.sigmoid(radius[h])))
        first, second = lifted if order == "left-right" else lifted[::-1]
        tangent = ball.logmap0(ball.mobius_add(first, second)) * (6 / 0.7)
        torch.testing.assert_close(logits[h], affine(head.classify, h, tangent), rtol=1e-4, atol=1e-4)


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


def test_hyperbolic_lift_keeps_its_bits_in_a_large_stack() -> None:
    """The sigmoid of 63 radii would round the first 32 with vector code and the rest with scalar code."""
    head = HyperbolicHead(left_dim=8, right_dim=8, num_classes=2, head_seeds=range(63), hidden_dim=16)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        radius = torch.randn(63, 1, 1, generator=generator) * 3
        stream = torch.randn(63, 32, 16, generator=generator)
        turned = head.lift(stream.flip(0), radius.flip(0)).flip(0)
        assert torch.equal(head.lift(stream, radius), turned)
