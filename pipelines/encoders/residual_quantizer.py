"""Residual vector quantisation: a frame is approximated by one vector from each of several codebooks, one after another.

Each codebook quantises what the ones before it left over, by smallest Euclidean distance; the quantised frame is the sum of
the chosen vectors (Zeghidour et al. 2021, "SoundStream", Algorithm 1).

The choice is a comparison, so it is the one step of a codec that is not continuous: where two vectors are equally near to
within rounding, another batch size may choose the other one (a frame then differs by the distance between the two, at the
level where they are; nothing later in time is touched). Equal distances take the lower index. Compare quantised frames with
a tolerance, and codes never.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["quantize_residual"]


def quantize_residual(latent: Tensor, codebooks: Tensor) -> Tensor:
    """Sum of the chosen vectors of all codebooks.

    Args:
        latent: float32 [N, D].
        codebooks: float32 [Q, K, D], in the order in which they are applied.

    Returns:
        float32 [N, D].
    """
    residual = latent.clone()
    quantized = torch.zeros_like(latent)
    squared_norms = codebooks.square().sum(-1)  # [Q, K]
    for codebook, squared_norm in zip(codebooks, squared_norms, strict=True):
        # |r - c|^2 less |r|^2, which is the same for every c: [N, K]
        distances = torch.addmm(squared_norm, residual, codebook.T, alpha=-2.0)
        chosen = codebook.index_select(0, distances.argmin(dim=1))  # [N, D]
        quantized += chosen
        residual -= chosen
    return quantized
