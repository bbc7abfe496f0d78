from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pipelines.encoders import cpu_linear
from pipelines.encoders.cpu_linear import FrameConv, PackedConv1d, PackedLinear, can_pack, linear, pack_linears

DTYPES = [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)]

needs_packing = pytest.mark.skipif(not can_pack(nn.Linear(2, 2)), reason="this torch has no packed linear layers")


def _relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.float() - expected).norm() / expected.norm())


@needs_packing
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5, 24), (2, 3, 24), (2, 4, 1, 24)])
def test_equals_nn_linear(shape: tuple[int, ...], bias: bool) -> None:
    linear = nn.Linear(24, 40, bias=bias)
    inputs = torch.randn(shape)
    with torch.inference_mode():
        assert _relative(PackedLinear(linear)(inputs), linear(inputs)) < 1e-6


@needs_packing
@pytest.mark.parametrize("gelu", [False, True])
def test_linear_in_bfloat16(gelu: bool) -> None:
    layer = nn.Linear(24, 40)
    inputs = torch.randn(7, 24).bfloat16()
    with torch.inference_mode():
        expected = F.linear(inputs.float(), layer.weight.bfloat16().float(), layer.bias.bfloat16().float())
        packed = nn.Sequential(layer.bfloat16())
        if not pack_linears(packed):
            pytest.skip("this processor has no instructions for bfloat16")
        found = PackedLinear(layer, gelu=gelu)(inputs)
        assert found.dtype == torch.bfloat16
        assert _relative(found, F.gelu(expected) if gelu else expected) < 5e-3
        assert torch.equal(packed(inputs), PackedLinear(layer)(inputs))


@pytest.mark.parametrize("operators", [True, False])
@pytest.mark.parametrize("gelu", [False, True])
def test_linear_used_once(gelu: bool, operators: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not operators:
        monkeypatch.setattr(cpu_linear, "_has_operators", lambda: False)
    layer, inputs = nn.Linear(10, 40), torch.randn(23).unfold(0, 10, 5)
    with torch.inference_mode():
        expected = layer(inputs)
        found = linear(inputs, layer.weight, layer.bias, gelu=gelu)
        assert _relative(found, F.gelu(expected) if gelu else expected) < 1e-6


@needs_packing
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize(("groups", "kernel", "padding"), [(4, 16, 8), (1, 19, 9), (2, 3, 0)])
@pytest.mark.parametrize("shape", [(2, 32, 40), (1, 32, 3), (3, 32, 400)])
def test_convolution_equals_nn_conv1d(
    shape: tuple[int, ...], groups: int, kernel: int, padding: int, gelu: bool, dtype: torch.dtype, tolerance: float
) -> None:
    conv = nn.Conv1d(32, 32, kernel, padding=padding, groups=groups).to(dtype)
    if not can_pack(conv):
        pytest.skip("this processor has no instructions for bfloat16")
    packed, inputs = PackedConv1d(conv, gelu=gelu), torch.randn(shape).to(dtype)
    with torch.inference_mode():
        expected = conv.float()(inputs.float())
        expected = F.gelu(expected) if gelu else expected
        for layout in (inputs, inputs.transpose(1, 2).contiguous().transpose(1, 2)):
            assert packed(layout).shape == expected.shape
            assert _relative(packed(layout), expected) < tolerance


def test_convolutions_that_cannot_be_packed() -> None:
    for conv in (nn.Conv1d(4, 4, 3, stride=2), nn.Conv1d(4, 4, 3, dilation=2), nn.Conv1d(4, 4, 3, padding="same")):
        with pytest.raises(ValueError, match="takes convolutions of stride 1"):
            PackedConv1d(conv)
    for conv in (nn.Conv1d(4, 4, 3, padding=1), nn.Conv1d(4, 4, 3, dilation=2), nn.Conv1d(4, 4, 3, groups=2)):
        with pytest.raises(ValueError, match="takes convolutions without padding"):
            FrameConv(conv)


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("operators", [True, False])
@pytest.mark.parametrize(("channels", "kernel", "stride"), [(1, 10, 5), (16, 3, 2), (16, 2, 2), (16, 4, 1)])
def test_frame_convolution_equals_nn_conv1d(
    channels: int,
    kernel: int,
    stride: int,
    operators: bool,
    gelu: bool,
    dtype: torch.dtype,
    tolerance: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not operators:
        monkeypatch.setattr(cpu_linear, "_has_operators", lambda: False)
    conv = nn.Conv1d(channels, 24, kernel, stride=stride, bias=kernel % 2 == 0).to(dtype)
    layer = FrameConv(conv, gelu=gelu)
    conv.float()
    with torch.inference_mode():
        for length in (kernel, kernel + 1, 50, 401):
            frames = torch.randn(length + 3, channels)[3:].to(dtype)  # not at the beginning of its memory
            expected = conv(frames.float().T[None])[0].T
            found = layer(frames)
            assert found.shape == expected.shape
            assert found.dtype == dtype
            assert _relative(found, F.gelu(expected) if gelu else expected) < tolerance


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
    mixed = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4).double())
    pack_linears(mixed)
    assert type(mixed[1]) is nn.Linear
