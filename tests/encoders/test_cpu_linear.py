from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pipelines.encoders.cpu_linear import PackedLinear, can_pack, pack_linears

needs_packing = pytest.mark.skipif(not can_pack(nn.Linear(2, 2)), reason="this torch has no packed linear layers")


def _relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@needs_packing
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5, 24), (2, 3, 24), (2, 4, 1, 24)])
def test_equals_nn_linear(shape: tuple[int, ...], bias: bool) -> None:
    linear = nn.Linear(24, 40, bias=bias)
    inputs = torch.randn(shape)
    with torch.inference_mode():
        assert _relative(PackedLinear(linear)(inputs), linear(inputs)) < 1e-6


@needs_packing
def test_gelu_is_the_exact_one() -> None:
    linear = nn.Linear(24, 40)
    inputs = torch.randn(7, 24) * 3
    with torch.inference_mode():
        packed = PackedLinear(linear, gelu=True)(inputs)
        assert _relative(packed, F.gelu(linear(inputs))) < 1e-6
        assert _relative(packed, F.gelu(linear(inputs), approximate="tanh")) > 1e-5


@needs_packing
def test_inputs_of_any_layout() -> None:
    linear = nn.Linear(24, 8)
    inputs = torch.randn(3, 24, 10).transpose(1, 2)
    with torch.inference_mode():
        assert _relative(PackedLinear(linear)(inputs), linear(inputs)) < 1e-6


@needs_packing
def test_packs_every_linear_and_nothing_else() -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4)), nn.Conv1d(4, 4, 1))
    model.requires_grad_(False)
    inputs = torch.randn(3, 6)
    expected = model[:2](inputs)
    assert pack_linears(model)
    assert [type(module) for module in model.modules() if not isinstance(module, nn.Sequential)] == [
        PackedLinear,
        PackedLinear,
        nn.LayerNorm,
        nn.Conv1d,
    ]
    assert _relative(model[:2](inputs), expected) < 1e-6


def test_leaves_other_precisions_alone() -> None:
    model = nn.Sequential(nn.Linear(6, 5)).double()
    assert not pack_linears(model)
    assert type(model[0]) is nn.Linear
