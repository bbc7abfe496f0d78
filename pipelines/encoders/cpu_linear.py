"""Faster linear layers and convolutions on the CPU, same arithmetic.

torch multiplies float32 matrices on the CPU through MKL, which leaves more than half of an AMD processor unused. oneDNN, the
other library inside torch, does not, and can keep a frozen weight in the order in which its kernels read it. Measured on one
core of an AMD EPYC (family 26, AVX-512 with bf16), torch 2.13, 745 frames, least of five, GFLOP/s:

| layer | float32, torch | float32, here | bfloat16, torch | bfloat16, here |
|---|---|---|---|---|
| linear 768 x 3072 | 110 | 256 | 480 | 517 |
| convolution 512 to 512, kernel 3, stride 2 | 245 | 256 | 437 | 520 |
| convolution 768, 16 groups, kernel 128 (5 clips of 149) | 105 | 266 | 154 | 440 |

A processor without bfloat16 instructions computes these layers in bfloat16 correctly and slowly: where oneDNN refuses, torch's own
kernels are used.

torch offers this only through the operators that its own compiler emits (``torch.ops.mkldnn``); where a torch lacks
them the layers stay as they are, and results differ by rounding only.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["FrameConv", "PackedConv1d", "PackedLinear", "can_pack", "linear", "pack_linears"]


class PackedLinear(nn.Module):
    """A frozen ``nn.Linear`` on the CPU, its weight packed for oneDNN; with ``gelu`` the exact GELU is applied in the same pass."""

    def __init__(self, linear: nn.Linear, *, gelu: bool = False) -> None:
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach().contiguous())
        self.bias = None if linear.bias is None else linear.bias.detach().clone()
        self.activation = "gelu" if gelu else "none"

    def forward(self, inputs: Tensor) -> Tensor:
        """[..., in] to [..., out]."""
        output: Tensor = torch.ops.mkldnn._linear_pointwise(
            inputs, self.weight, self.bias, self.activation, [], "none" if self.activation == "gelu" else ""
        )
        return output


class PackedConv1d(nn.Module):
    """A frozen ``nn.Conv1d`` of stride 1 on the CPU, its weight packed for oneDNN; with ``gelu`` as :class:`PackedLinear`."""

    def __init__(self, conv: nn.Conv1d, *, gelu: bool = False) -> None:
        super().__init__()
        if (
            conv.stride != (1,)
            or conv.dilation != (1,)
            or conv.padding_mode != "zeros"
            or isinstance(conv.padding, str)
        ):
            raise ValueError(f"PackedConv1d takes convolutions of stride 1 with zeros on either side, not {conv}.")
        self.padding, self.groups = [0, conv.padding[0]], conv.groups
        # oneDNN's convolutions of torch have two dimensions; the likely length only helps to choose a layout.
        self.weight = torch.ops.mkldnn._reorder_convolution_weight(
            conv.weight.detach()[:, :, None].contiguous(),
            self.padding,
            [1, 1],
            [1, 1],
            conv.groups,
            [1, conv.in_channels, 1, 256],
        )
        self.bias = None if conv.bias is None else conv.bias.detach().clone()
        self.activation = "gelu" if gelu else "none"

    def forward(self, inputs: Tensor) -> Tensor:
        """[B, in, T] to [B, out, T + 2 padding - kernel + 1]."""
        output: Tensor = torch.ops.mkldnn._convolution_pointwise(
            inputs[:, :, None],
            self.weight,
            self.bias,
            self.padding,
            [1, 1],
            [1, 1],
            self.groups,
            self.activation,
            [],
            "none" if self.activation == "gelu" else "",
        )
        return output[:, :, 0]


class FrameConv(nn.Module):
    """A frozen ``nn.Conv1d`` without padding over the frames of one clip, [T, C], as one matrix product.

    The windows of a convolution over contiguous frames are a matrix with overlapping rows; no copy is made of them. With
    ``gelu`` the exact GELU is applied as well.
    """

    def __init__(self, conv: nn.Conv1d, *, gelu: bool = False) -> None:
        super().__init__()
        if conv.padding != (0,) or conv.dilation != (1,) or conv.groups != 1:
            raise ValueError(f"FrameConv takes convolutions without padding, dilation and groups, not {conv}.")
        self.kernel, self.stride = conv.kernel_size[0], conv.stride[0]
        weight = conv.weight.detach().permute(0, 2, 1).flatten(1).contiguous()  # [out, kernel in]
        product = nn.Linear(weight.shape[1], weight.shape[0], bias=conv.bias is not None, device="meta")
        product.weight = nn.Parameter(weight, requires_grad=False)
        if conv.bias is not None:
            product.bias = nn.Parameter(conv.bias.detach().clone(), requires_grad=False)
        self.product: nn.Module = PackedLinear(product, gelu=gelu) if can_pack(product) else product
        self.gelu = gelu and not isinstance(self.product, PackedLinear)

    def forward(self, frames: Tensor) -> Tensor:
        """[T, in], contiguous, to [(T - kernel) // stride + 1, out]."""
        length, channels = frames.shape
        count = (length - self.kernel) // self.stride + 1
        windows = frames.as_strided((count, self.kernel * channels), (self.stride * channels, 1))
        output: Tensor = self.product(windows)
        return F.gelu(output) if self.gelu else output


def linear(inputs: Tensor, weight: Tensor, bias: Tensor, *, gelu: bool = False) -> Tensor:
    """``F.linear`` in float32, through oneDNN where this torch has it: for a weight on the CPU that is used only once."""
    if inputs.device.type == "cpu" and _has_operators():
        activation, algorithm = ("gelu", "none") if gelu else ("none", "")
        output: Tensor = torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, activation, [], algorithm)
        return output
    output = F.linear(inputs, weight, bias)
    return F.gelu(output) if gelu else output


def pack_linears(module: nn.Module) -> bool:
    """Replace every ``nn.Linear`` below ``module`` by a :class:`PackedLinear`, in place; call it on frozen models only.

    Layers that are neither float32 nor bfloat16 stay as they are.

    Returns:
        Whether this torch and device have what it takes; if not, nothing has changed.
    """
    if not can_pack(module):
        return False
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and can_pack(child):
                setattr(parent, name, PackedLinear(child))
    return True


def can_pack(module: nn.Module) -> bool:
    """Whether the module is float32 or bfloat16 on a CPU that has instructions for it, and this torch has the operators."""
    parameter = next(module.parameters(), None)
    if parameter is None or parameter.device.type != "cpu" or not _has_operators():
        return False
    if parameter.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return parameter.dtype == torch.float32


def _has_operators() -> bool:
    """Whether this torch has oneDNN and the operators that its compiler emits."""
    return torch.backends.mkldnn.is_available() and all(  # type: ignore[no-untyped-call]
        hasattr(torch.ops.mkldnn, name)
        for name in (
            "_linear_pointwise",
            "_reorder_linear_weight",
            "_convolution_pointwise",
            "_reorder_convolution_weight",
            "_is_mkldnn_bf16_supported",
        )
    )
