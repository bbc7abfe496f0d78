"""Random weights through which a signal passes.

torch's default initialisation divides the signal by about 1.7 per layer while the biases stay, so what comes out of a deep
untrained network hardly depends on what goes in: Lyra's encoder so initialised varies over time by a ninth of its mean, and all
its frames were quantised alike (one Emo-DB recording). Here kernels keep the variance (He et al. 2015, "Delving deep into
rectifiers") and biases are zero. Call these inside ``random_initialisation(spec)``, which seeds torch's generator.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["gaussian_codebooks", "initialise"]


def initialise(module: nn.Module) -> None:
    """Redraw every convolution and linear layer: normal with variance 2 / fan-in, bias zero.

    Layers under ``torch.nn.utils.weight_norm`` are redrawn in its terms, direction and magnitude.
    """
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Linear):
                kernel = getattr(layer, "weight_v", layer.weight)
                kernel.normal_(0.0, (2.0 / kernel[0].numel()) ** 0.5)
                magnitude = getattr(layer, "weight_g", None)
                if magnitude is not None:
                    # In float64, because the rounding of a float32 sum differs between processors.
                    magnitude.copy_(kernel.double().flatten(1).norm(dim=1).reshape(magnitude.shape))
                if layer.bias is not None:
                    layer.bias.zero_()


def gaussian_codebooks(*, count: int, size: int, dim: int, scale: float) -> Tensor:
    """Codebooks for residual quantisation of a Gaussian source, float32 [count, size, dim].

    An ideal code of ``log2(size)`` bits leaves the fraction d = size^(-2/dim) of the variance (Shannon's rate-distortion
    function); each codebook's vectors carry the rest of what the ones before it left.

    Args:
        scale: standard deviation of the source.
    """
    left = size ** (-2.0 / dim)
    deviations: Tensor = scale * (1.0 - left) ** 0.5 * left ** (0.5 * torch.arange(count))
    return torch.randn(count, size, dim) * deviations[:, None, None]
