"""Front end of the wav2vec2-like encoders: waveform normalisation, strided convolutions, projection, positional convolution.

Every clip as if it were alone; ``ssl.py`` says what upstream does to a padded batch.

* The checkpoints with ``feat_extract_norm="group"`` (all base sizes) normalise the output of the first convolution over
  *time*, padding included. Here its mean and variance are those of the clip's own frames. They are not read off the
  output: a convolution is linear, so they follow from the mean and covariance of the windows that go in (10 numbers and
  10 x 10 per clip, in float64), and the normalisation is folded into the convolution's weights.
* Frames beyond the clip are set to zero before every convolution that pads with zeros, as its own padding is for a clip alone.

On the CPU the convolutions work through one clip after another, a second at a time, with frames along the rows: each is then one
matrix product (``cpu_linear.FrameConv``), and small pieces stay in the cache. Every frame sees the same samples either way. A
GPU takes the whole batch at once.

In bf16 the first convolution, all statistics and all normalisations stay in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pipelines.encoders.cpu_linear import FrameConv, PackedConv1d, can_pack, linear
from pipelines.encoders.padding import valid_mask

__all__ = ["FrontEnd", "normalise_waveforms", "output_frames", "receptive_field"]

_PIECE_FRAMES = 50
"""Frames per piece. Layers 2 to 7 for four clips of 10 s on one core, as torch's convolutions: 1.72 s as a batch, 1.61 s clip by
clip, 1.03 s in pieces of 50 frames, 1.05 s in pieces of 100."""


def output_frames(config: Any, num_samples: Any) -> Any:
    """Frames that the front end makes of ``num_samples`` samples; an int, or an int64 tensor of any shape."""
    return _output_length(list(zip(config.conv_kernel, config.conv_stride, strict=True)), num_samples)


def receptive_field(config: Any) -> int:
    """Samples that one frame sees: the shortest clip that gives a frame."""
    return _input_range(list(zip(config.conv_kernel, config.conv_stride, strict=True)), 0, 1)[1]


def _output_length(layers: Sequence[tuple[int, int]], num_inputs: Any) -> Any:
    """Outputs of a stack of (kernel, stride) convolutions without padding."""
    for kernel, stride in layers:
        num_inputs = (num_inputs - kernel) // stride + 1
    return num_inputs


def _input_range(layers: Sequence[tuple[int, int]], start: int, stop: int) -> tuple[int, int]:
    """Range of inputs that the outputs ``start:stop`` of a stack of (kernel, stride) convolutions depend on."""
    for kernel, stride in reversed(layers):
        start, stop = start * stride, (stop - 1) * stride + kernel
    return start, stop


def normalise_waveforms(waveforms: Tensor, lengths: Tensor) -> Tensor:
    """Zero mean and unit variance over each clip's own samples: (x - mean) / sqrt(var + 1e-7), as Wav2Vec2FeatureExtractor.

    Args:
        waveforms: [B, L], zero beyond each clip.
        lengths: int64 [B], samples.

    Returns:
        [B, L], zero beyond each clip.
    """
    count = lengths[:, None]
    mean = waveforms.sum(1, keepdim=True) / count
    centred = (waveforms - mean) * valid_mask(lengths, waveforms.shape[1])
    variance = centred.square().sum(1, keepdim=True) / count
    return centred * (variance + 1e-7).rsqrt()


@dataclass(frozen=True)
class _Layer:
    """One strided convolution.

    Attributes:
        conv: [B, C, T] to [B, C', T'].
        norm: over channels, behind the convolution; None where there is none. GroupNorm only in the first layer.
        activation: behind that.
        frame_conv: the same as ``conv`` for one clip, [T, C] to [T', C']; on the CPU only.
        fused: whether ``frame_conv`` applies the activation as well.
    """

    conv: nn.Conv1d
    norm: Any
    activation: Any
    frame_conv: Any
    fused: bool


class FrontEnd:
    """Waveforms to the input of the transformer layers. Holds the parts of a model, nothing of a batch.

    Args:
        model: a frozen model of the family, weight normalisation folded in, its modules in the dtypes they work in.
        dtype: of everything behind the first convolution.
    """

    def __init__(self, model: Any, *, dtype: torch.dtype) -> None:
        gelu = model.config.feat_extract_activation == "gelu"
        self._dtype = dtype
        self._layers: list[_Layer] = []
        for layer in model.feature_extractor.conv_layers:
            norm = getattr(layer, "layer_norm", None)
            fused = gelu and norm is None
            frame_conv = FrameConv(layer.conv, gelu=fused) if layer.conv.weight.device.type == "cpu" else None
            self._layers.append(_Layer(layer.conv, norm, layer.activation, frame_conv, fused))
        self._shapes = [(layer.conv.kernel_size[0], layer.conv.stride[0]) for layer in self._layers]
        self._gelu = gelu
        self._projection = model.feature_projection
        self._positional = _positional_steps(model.encoder.pos_conv_embed, gelu=gelu)

    def convolve(self, waveforms: Tensor, lengths: Tensor, *, in_pieces: bool) -> Tensor:
        """The stack of convolutions.

        Args:
            waveforms: float32 [B, L], zero beyond each clip.
            lengths: int64 [B], samples, each at least the receptive field.
            in_pieces: clip by clip and a second at a time (for the CPU) instead of the whole batch at once.

        Returns:
            [B, T, features of the last convolution]; finite beyond each clip's own frames.
        """
        first, (kernel, stride) = self._layers[0], self._shapes[0]
        folded = None
        if isinstance(first.norm, nn.GroupNorm):
            folded = _fold_group_norm(first.conv, first.norm, waveforms, (lengths - kernel) // stride + 1)
        if not in_pieces:
            return self._convolve_batch(waveforms, folded)
        total = _output_length(self._shapes, waveforms.shape[1])
        frames = waveforms.new_zeros(len(waveforms), total, self._layers[-1].conv.out_channels, dtype=self._dtype)
        for row, num_samples in enumerate(lengths.tolist()):
            own = _output_length(self._shapes, num_samples)
            for start in range(0, own, _PIECE_FRAMES):
                stop = min(own, start + _PIECE_FRAMES)
                begin, end = _input_range(self._shapes, start, stop)
                of_clip = None if folded is None else (folded[0][row], folded[1][row])
                frames[row, start:stop] = self._convolve_piece(waveforms[row, begin:end], of_clip)
        return frames

    def _convolve_batch(self, waveforms: Tensor, folded: tuple[Tensor, Tensor] | None) -> Tensor:
        first = self._layers[0]
        hidden: Tensor
        if folded is None:
            hidden = first.activation(_over_channels(first.norm, first.conv(waveforms[:, None])))
        else:
            weight, centre = folded
            windows = waveforms.unfold(1, *self._shapes[0]) - centre  # [B, T0, K]
            hidden = torch.baddbmm(first.norm.bias[:, None], weight, windows.transpose(1, 2))
            hidden = first.activation(hidden)
        hidden = hidden.to(self._dtype)
        for layer in self._layers[1:]:
            hidden = layer.activation(_over_channels(layer.norm, layer.conv(hidden)))
        return hidden.transpose(1, 2)

    def _convolve_piece(self, samples: Tensor, folded: tuple[Tensor, Tensor] | None) -> Tensor:
        """A stretch of one clip, [samples] to [frames, C]."""
        first = self._layers[0]
        hidden: Tensor
        if folded is None:
            hidden = first.activation(_normalised(first.norm, first.frame_conv(samples[:, None])))
        else:
            weight, centre = folded
            windows = samples.unfold(0, *self._shapes[0]) - centre  # [T0, K]
            hidden = linear(windows, weight, first.norm.bias, gelu=self._gelu)
            if not self._gelu:
                hidden = first.activation(hidden)
        hidden = hidden.to(self._dtype)
        for layer in self._layers[1:]:
            hidden = _normalised(layer.norm, layer.frame_conv(hidden))
            if not layer.fused:
                hidden = layer.activation(hidden)
        return hidden

    def embed(self, features: Tensor, valid: Tensor) -> Tensor:
        """Projection and positional convolution, before any layer.

        Args:
            features: [B, T, C] of :meth:`convolve`.
            valid: bool [B, T], frames that belong to the clip.

        Returns:
            float32 [B, T, D], without the layer normalisation that the base sizes apply next.
        """
        features = _normalised(getattr(self._projection, "layer_norm", None), features)
        projected = self._projection.projection(features) * valid[..., None]  # [B, T, D]
        positions: Tensor = projected.transpose(1, 2)
        for index, step in enumerate(self._positional):
            if step.batch_norm is not None:
                positions = step.batch_norm(positions.float()).to(positions.dtype)
            if index or step.batch_norm is not None:
                positions = positions * valid[:, None]
            positions = step.conv(positions)[..., : valid.shape[1]]  # an even kernel makes one frame too many
            positions = _over_channels(step.norm, positions)
            if not step.fused:
                positions = step.activation(positions)
        embedded: Tensor = projected.float() + positions.transpose(1, 2)
        return embedded


@dataclass(frozen=True)
class _PositionalStep:
    """One convolution of the positional embedding; data2vec has several, all others one."""

    batch_norm: Any
    conv: Any
    norm: Any
    activation: Any
    fused: bool


def _positional_steps(embedding: Any, *, gelu: bool) -> list[_PositionalStep]:
    steps = []
    for part in getattr(embedding, "layers", [embedding]):
        conv, norm = part.conv, getattr(part, "layer_norm", None)
        fused = gelu and norm is None and can_pack(conv)
        if can_pack(conv):
            conv = PackedConv1d(conv, gelu=fused)
        steps.append(_PositionalStep(getattr(part, "batch_norm", None), conv, norm, part.activation, fused))
    return steps


def _normalised(norm: nn.Module | None, frames: Tensor) -> Tensor:
    """A normalisation of [..., C] in float32, or none; the dtype stays."""
    if norm is None:
        return frames
    normalised: Tensor = norm(frames.float())
    return normalised.to(frames.dtype)


def _over_channels(norm: nn.Module | None, maps: Tensor) -> Tensor:
    """A layer normalisation over the channels of [B, C, T], or none."""
    return maps if norm is None else _normalised(norm, maps.transpose(1, 2)).transpose(1, 2)


def _fold_group_norm(conv: nn.Conv1d, norm: nn.GroupNorm, waveforms: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
    """The first convolution and its normalisation over time (one group per channel) as one convolution per clip.

    With windows x of the waveform, the output is y = w . x + b, so over a clip's frames mean(y) = w . mean(x) + b and
    var(y) = w' cov(x) w (biased, as GroupNorm's); the convolution's bias b cancels in y - mean(y).

    Args:
        conv: first convolution.
        norm: its normalisation.
        waveforms: [B, L], zero beyond each clip.
        frames: int64 [B], frames of each clip behind this layer.

    Returns:
        Weight [B, C, K] and centre [B, 1, K]: the layer's output before its activation is
        weight . (window - centre) + bias of the normalisation.
    """
    windows = waveforms.unfold(1, conv.kernel_size[0], conv.stride[0])  # [B, T0, K]
    valid = valid_mask(frames, windows.shape[1])[..., None]
    windows = windows.double() * valid
    count = frames[:, None, None]
    centre = windows.sum(1, keepdim=True) / count  # [B, 1, K]
    centred = (windows - centre) * valid
    covariance = centred.transpose(1, 2) @ centred / count  # [B, K, K]
    kernel = conv.weight[:, 0].double()  # [C, K]
    variance = ((kernel @ covariance) * kernel).sum(-1)  # [B, C]
    scale = norm.weight * (variance + norm.eps).rsqrt()
    return (kernel * scale[..., None]).float(), centre.float()
