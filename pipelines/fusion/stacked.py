"""Stacked layers: H small heads in one set of tensors, each with the result it would have alone.

Conventions:

* Parameters carry the head first: weight [H, in, out], bias [H, 1, out], scale [H, 1, D]. Inputs are [H, B,
  D].
* Every random number of a head comes from the head's own stream (:func:`head_generators`), so initial values
  and dropout masks do not depend on which heads share the stack, nor on their order.
* Bits do not depend on the stack either, if the caller keeps two rules that this module helps to keep:

  1. B is a multiple of :data:`ROW_MULTIPLE`. Vectorised loops treat the last few numbers of a tensor with
     scalar code whose rounding differs (measured: ``atanh``, ``sigmoid``, ``silu``); with such a B every head
     starts and ends on a whole number of vector registers.
  2. One intra-op thread (a product may be split along the summed dimension otherwise).

  :func:`stacked_product` does a third thing itself: a result matrix that starts off a 16-byte boundary is
  rounded differently by MKL (measured: widths 6 and 7), so it computes a multiple of eight columns and cuts
  the rest off. A number per head goes through :func:`per_row` before any function of it is taken, for the
  sake of rule 1.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "ROW_MULTIPLE",
    "StackedDropout",
    "StackedLayerNorm",
    "StackedLinear",
    "StackedModalityDropout",
    "head_generators",
    "padded_rows",
    "per_row",
    "stacked_product",
    "stacked_scalar",
]

ROW_MULTIPLE = 32
"""Rows per head come in multiples of this: two AVX-512 registers of float32, the step of torch's vectorised
loops."""

_COLUMN_MULTIPLE = 8


def padded_rows(rows: int) -> int:
    """The smallest multiple of :data:`ROW_MULTIPLE` that holds ``rows`` rows."""
    return -(-rows // ROW_MULTIPLE) * ROW_MULTIPLE


def head_generators(head_seeds: Sequence[int], purpose: str) -> list[np.random.Generator]:
    """One random stream per head for one purpose.

    Args:
        head_seeds: H non-negative integers, one per head.
        purpose: what the numbers are for ("left.weight", "dropout", …); other purposes get independent
            streams, so a layer that is added to a head leaves the other layers' numbers as they were.

    Returns:
        H numpy generators (SFC64: small, fast, and the same numbers on every platform and torch version).
    """
    word = int.from_bytes(hashlib.sha256(purpose.encode()).digest()[:8], "little")
    return [np.random.Generator(np.random.SFC64(np.random.SeedSequence([seed, word]))) for seed in head_seeds]


def stacked_scalar(value: float, *, head_count: int) -> nn.Parameter:
    """A learnable number per head, [H, 1, 1], starting at ``value``."""
    return nn.Parameter(torch.full((head_count, 1, 1), value))


def per_row(scalar: Tensor, rows: int) -> Tensor:
    """A copy per row of a number per head: [H, 1, n] to [H, rows, n], contiguous.

    On [H, 1, 1] the rounding of a sigmoid would depend on the head's place in the stack.
    """
    return scalar.expand(-1, rows, -1).contiguous()


def stacked_product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """H matrix products side by side, each with the bits it has alone.

    Args:
        x: [H, B, in].
        weight: [H, in, out].
        bias: [H, 1, out], added to every row; None adds nothing.

    Returns:
        [H, B, out].
    """
    out_features = weight.shape[2]
    excess = -out_features % _COLUMN_MULTIPLE
    if excess:
        weight = F.pad(weight, (0, excess))
        bias = None if bias is None else F.pad(bias, (0, excess))
    product = torch.bmm(x, weight) if bias is None else torch.baddbmm(bias, x, weight)
    return product[..., :out_features] if excess else product


class StackedLinear(nn.Module):
    """H affine maps side by side: [H, B, in] to [H, B, out].

    Initial values are those of ``torch.nn.Linear`` (uniform within 1/sqrt(in) for weight and bias), drawn
    from the head's own stream.

    Args:
        in_features: width of the input.
        out_features: width of the output.
        head_seeds: H seeds, one per head.
        name: the layer's name within its head; part of the random stream.
    """

    def __init__(self, in_features: int, out_features: int, *, head_seeds: Sequence[int], name: str) -> None:
        super().__init__()
        bound = 1.0 / math.sqrt(in_features)
        weights, biases = [], []
        for generator in head_generators(head_seeds, f"{name}.linear"):
            weights.append(generator.uniform(-bound, bound, size=(in_features, out_features)))
            biases.append(generator.uniform(-bound, bound, size=(1, out_features)))
        self.weight = nn.Parameter(torch.from_numpy(np.stack(weights).astype(np.float32)))  # [H, in, out]
        self.bias = nn.Parameter(torch.from_numpy(np.stack(biases).astype(np.float32)))  # [H, 1, out]

    def forward(self, x: Tensor) -> Tensor:
        """Apply every head's map to its own rows.

        Args:
            x: [H, B, in].

        Returns:
            [H, B, out].
        """
        return stacked_product(x, self.weight, self.bias)


class StackedLayerNorm(nn.Module):
    """Layer normalisation over the last dimension with a scale and a shift per head: [H, B, D] to [H, B, D].

    Args:
        features: D.
        head_count: H.
    """

    def __init__(self, features: int, *, head_count: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(head_count, 1, features))
        self.shift = nn.Parameter(torch.zeros(head_count, 1, features))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each row to mean 0 and variance 1, then scale and shift it.

        Args:
            x: [H, B, D].

        Returns:
            [H, B, D].
        """
        return F.layer_norm(x, x.shape[-1:]) * self.scale + self.shift


class StackedDropout(nn.Module):
    """Dropout whose masks come from each head's own stream.

    The probability is rounded to a multiple of 1/256, because a mask element costs one random byte; what is
    kept is scaled by the rounded probability's own factor, so the expectation is exact. In evaluation mode it
    does nothing.

    Args:
        probability: share of elements set to zero, in [0, 1).
        head_seeds: H seeds, one per head.
        name: the layer's name within its head; part of the random stream.
    """

    def __init__(self, probability: float, *, head_seeds: Sequence[int], name: str) -> None:
        super().__init__()
        self.threshold = round(256 * probability)
        self._streams = [generator.bit_generator for generator in head_generators(head_seeds, f"{name}.dropout")]

    def forward(self, x: Tensor) -> Tensor:
        """Set random elements to zero and scale the others up.

        Args:
            x: [H, B, D].

        Returns:
            [H, B, D].
        """
        if not self.training or self.threshold == 0:
            return x
        per_head = x[0].numel()
        draws = np.empty((len(self._streams), -(-per_head // 8)), dtype=np.uint64)
        for row, stream in zip(draws, self._streams, strict=True):
            row[:] = stream.random_raw(row.size)
        keep = (draws.view(np.uint8)[:, :per_head] >= self.threshold).view(np.uint8)
        factor = np.float32(256.0 / (256 - self.threshold))
        mask = torch.from_numpy(np.multiply(keep, factor, dtype=np.float32))  # torch converts booleans at half the pace
        return x * mask.view(x.shape).to(device=x.device, dtype=x.dtype)


class StackedModalityDropout(nn.Module):
    """Hides one of two inputs from some rows in training, either with the same probability, never both.

    A hidden input is set to zero, the mean of standardised features; nothing is scaled up. The probability is rounded to a
    multiple of 1/128. Idea: ModDrop, Neverova et al. 2016 (arXiv 1501.00102).

    Args:
        probability: share of rows that lose an input, in [0, 1).
        head_seeds: H seeds, one per head.
    """

    def __init__(self, probability: float, *, head_seeds: Sequence[int]) -> None:
        super().__init__()
        self.threshold = round(128 * probability)
        self._streams = [generator.bit_generator for generator in head_generators(head_seeds, "modality.dropout")]

    def forward(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """Hide inputs.

        Args:
            left: [H, B, Dl].
            right: [H, B, Dr].

        Returns:
            Both, with the hidden rows zero.
        """
        if not self.training or self.threshold == 0:
            return left, right
        rows = left.shape[1]
        draws = np.empty((len(self._streams), -(-rows // 8)), dtype=np.uint64)
        for row, stream in zip(draws, self._streams, strict=True):
            row[:] = stream.random_raw(row.size)
        levels = draws.view(np.uint8)[
            :, :rows, None
        ]  # 0..255: left is hidden below threshold, right from its other end
        keep_left, keep_right = levels >= self.threshold, levels < 256 - self.threshold
        return tuple(  # type: ignore[return-value]
            x * torch.from_numpy(keep).to(device=x.device, dtype=x.dtype)
            for x, keep in ((left, keep_left), (right, keep_right))
        )
