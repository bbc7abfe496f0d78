"""What brings a representation to the hidden width, and what may stand before the output layer: the layers that
every head shares.

* ``linear``: W x + b.
* ``cnn``: the embedding as a sequence of length D with one channel; twice convolution (64, then 128 channels, kernel 3, no
  padding), max-pooling by 2 and ReLU; then flattened and W x + b. The front end of the HYFuse group's papers.

Neither ends in an activation: whether one follows is the head's business.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pipelines.errors import ConfigError
from pipelines.fusion.stacked import StackedLinear

__all__ = ["StackedCnn", "StackedDense", "make_front_end"]

_CHANNELS = (64, 128)
_KERNEL = 3


def make_front_end(
    kind: str, in_features: int, out_features: int, *, head_seeds: Sequence[int], name: str
) -> nn.Module:
    """Build a front end.

    Args:
        kind: "linear" or "cnn".
        in_features: width of the representation.
        out_features: hidden width.
        head_seeds: H seeds, one per head.
        name: "left" or "right"; part of the random stream.

    Returns:
        A module from [H, B, in] to [H, B, out].

    Raises:
        ConfigError: a representation too short for two convolutions.
    """
    layer = StackedCnn if kind == "cnn" else StackedLinear
    return layer(in_features, out_features, head_seeds=head_seeds, name=name)


class StackedCnn(nn.Module):
    """H convolutional front ends: [H, B, in] to [H, B, out].

    Convolutions are written as matrix products on [H, B T, channels x kernel], because the algorithm, and with it the
    rounding, of a grouped convolution may depend on the number of groups. Flattening puts the channel last, torch's order
    with the rows of the affine map permuted. Initial values are those of ``torch.nn.Conv1d`` and ``torch.nn.Linear``.

    Args:
        in_features: width of the input, at least 10.
        out_features: width of the output.
        head_seeds: H seeds, one per head.
        name: the layer's name within its head; part of the random streams.

    Raises:
        ConfigError: ``in_features`` is below 10.
    """

    def __init__(self, in_features: int, out_features: int, *, head_seeds: Sequence[int], name: str) -> None:
        super().__init__()
        length, channels = in_features, 1
        layers = []
        for step, wider in enumerate(_CHANNELS):
            layers.append(StackedLinear(_KERNEL * channels, wider, head_seeds=head_seeds, name=f"{name}.conv{step}"))
            length, channels = (length - _KERNEL + 1) // 2, wider
        if length < 1:
            raise ConfigError(
                f"The front end 'cnn' needs representations of at least 10 features, but the {name} one has {in_features}: "
                "two convolutions of kernel 3, each pooled by 2, leave nothing of it. Use front_end=linear."
            )
        self.convolutions = nn.ModuleList(layers)
        self.project = StackedLinear(length * channels, out_features, head_seeds=head_seeds, name=name)

    def forward(self, x: Tensor) -> Tensor:
        """Apply every head's layers to its own rows.

        Args:
            x: [H, B, in].

        Returns:
            [H, B, out].
        """
        heads, rows = x.shape[:2]
        sequence = x.unsqueeze(-1)  # [H, B, T, channels]
        for convolve in self.convolutions:
            pairs = (sequence.shape[2] - _KERNEL + 1) // 2  # what pooling makes of it; an odd last frame is left out
            shifted = [sequence[:, :, k : k + 2 * pairs] for k in range(_KERNEL)]
            windows = torch.cat(shifted, dim=-1).view(heads, rows * 2 * pairs, -1)  # [H, B 2 P, kernel x channels]
            frames = convolve(windows).view(heads, rows, pairs, 2, -1)
            sequence = torch.maximum(frames[:, :, :, 0], frames[:, :, :, 1]).relu()  # [H, B, P, channels]
        projected: Tensor = self.project(sequence.reshape(heads, rows, -1))
        return projected


class StackedDense(nn.Module):
    """The dense layer that may stand between fusion and output: relu(W x + b), or nothing.

    Args:
        in_features: width of the input.
        dense_dim: width of the layer; 0 passes the input on.
        head_seeds: H seeds, one per head.
    """

    def __init__(self, in_features: int, dense_dim: int, *, head_seeds: Sequence[int]) -> None:
        super().__init__()
        self.out_features = dense_dim or in_features
        """Width of the output."""
        self.layer = StackedLinear(in_features, dense_dim, head_seeds=head_seeds, name="dense") if dense_dim else None

    def forward(self, x: Tensor) -> Tensor:
        """Apply it.

        Args:
            x: [H, B, in].

        Returns:
            [H, B, out].
        """
        if self.layer is None:
            return x
        hidden: Tensor = self.layer(x).relu()
        return hidden
