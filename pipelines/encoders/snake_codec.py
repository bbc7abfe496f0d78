"""The network that DAC and SNAC share: convolutions with Snake activations, and a quantiser of factorised codes.

Encoder (Kumar et al. 2023, "High-Fidelity Audio Compression with Improved RVQGAN"): a convolution, then blocks of three
residual units (dilations 1, 3, 9) and a strided convolution that doubles the channels, then a last convolution. SNAC (Siuzdak
et al. 2024) has depthwise convolutions in the units. Before a convolution stands Snake, x + sin(a x)^2 / a, with a learnt per
channel (Ziyin et al. 2020). Quantiser: each codebook projects what is left of a latent frame to a few features, takes the code
vector of the nearest direction and projects that vector back. SNAC's coarser codebooks see the mean of several frames.

Parameters have the names that transformers gives those of DAC. Feature maps are [B, T, C], as in :mod:`causal`.

What would break "batched equals alone" upstream: every convolution pads with zeros on both sides, and biases and Snake
make something else of the zeros that follow a clip in a batch, so that padding reaches the last 8 to 10 frames. Here a clip is
extended with zeros to whole frames, alone as in a batch (lengths below are those), and what follows it is zeroed again before
every convolution. On the CPU clips run one by one instead, which needs no zeroing: the same numbers bit by bit, batched or
alone. Each block then runs over a piece of the clip at a time, as much as stays in the processor's cache, with the steps on
either side that the piece's frames see; that changes results by rounding only.

A frame sees a bounded stretch of audio (:func:`reach`), so windows over a long recording that overlap by that much give the
recording's own frames.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipelines.encoders.padding import valid_mask
from pipelines.encoders.random_weights import initialise

__all__ = ["SnakeCodec", "fold_weight_norm", "initialise_codec", "reach"]

_KERNEL = 7
_DILATIONS = (1, 3, 9)
_UNITS_REACH = (_KERNEL - 1) // 2 * sum(_DILATIONS)
"""Steps that the three residual units of a block see on either side."""
_PIECE_BYTES = 4 * 2**20
"""Feature maps of 2 to 8 MiB are alike (one thread of an AMD EPYC, clips of 3 s: ``dac`` 6.4 to 7.3 times real time by CPU time,
0.5 MiB 5.3, whole clips 6.5; ``snac`` 14.7 to 16.9, 0.5 MiB 13.8, whole clips 10). Their neighbours cost the rest below that."""


class _Snake(nn.Module):
    """x + sin(a x)^2 / a, one a per channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1, channels, 1))

    def into(self, maps: Tensor, out: Tensor) -> None:
        """Write the result for ``maps`` [B, T, C] to ``out``."""
        alpha = self.alpha.view(-1)
        wave = (maps * alpha).sin_()
        torch.addcmul(maps, wave, wave * (alpha + 1e-9).reciprocal(), out=out)


def _convolve(
    maps: Tensor,
    layer: nn.Conv1d,
    *,
    left: int = 0,
    right: int = 0,
    snake: _Snake | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """Snake, zeros around it, convolution.

    Args:
        maps: float32 [B, T, C]; left unchanged.
        layer: its kernel, bias, stride, dilation and groups are used; its own padding is not.
        left: zeros before the first step.
        right: zeros behind the last step.
        snake: applied first, if any.
        mask: float32 [B, T, 1], 0 where the input counts as zero too; none if all of it counts.

    Returns:
        float32 [B, T', C'].
    """
    (kernel,), (stride,), (dilation,) = layer.kernel_size, layer.stride, layer.dilation
    if left or right or snake is not None or mask is not None:
        batch, steps, channels = maps.shape
        padded = maps.new_empty(batch, left + steps + right, channels)
        padded[:, :left] = 0.0
        padded[:, left + steps :] = 0.0
        inner = padded[:, left : left + steps]
        if snake is None:
            inner.copy_(maps)
        else:
            snake.into(maps, inner)
        if mask is not None:
            inner.mul_(mask)
        maps = padded
    if kernel == 1:
        dilation = 2  # as in causal.convolve: keeps torch on oneDNN
    image = maps.transpose(1, 2)[:, :, None]  # [B, C, 1, T]
    result = F.conv2d(image, layer.weight[:, :, None], layer.bias, (1, stride), 0, (1, dilation), layer.groups)
    return result[:, :, 0].transpose(1, 2)


class _Unit(nn.Module):
    """Residual unit: Snake, dilated convolution, Snake, 1x1 convolution, added to the input."""

    def __init__(self, channels: int, dilation: int, groups: int) -> None:
        super().__init__()
        self.snake1 = _Snake(channels)
        self.conv1 = nn.Conv1d(channels, channels, _KERNEL, dilation=dilation, groups=groups)
        self.snake2 = _Snake(channels)
        self.conv2 = nn.Conv1d(channels, channels, 1)
        self.reach = (_KERNEL - 1) // 2 * dilation

    def forward(self, maps: Tensor, *, begins: bool, ends: bool, mask: Tensor | None) -> Tensor:
        """The steps whose neighbours are all known: where the clip begins or ends here, up to there; else ``reach`` fewer."""
        left, right = (self.reach if at_edge else 0 for at_edge in (begins, ends))
        inner = _convolve(maps, self.conv1, left=left, right=right, snake=self.snake1, mask=mask)
        inner = _convolve(inner, self.conv2, snake=self.snake2)
        return inner.add_(maps[:, self.reach - left : maps.shape[1] - self.reach + right])


class _Block(nn.Module):
    """Three residual units, Snake, and a strided convolution that doubles the channels."""

    def __init__(self, channels: int, stride: int, groups: int) -> None:
        super().__init__()
        self.res_unit1, self.res_unit2, self.res_unit3 = (_Unit(channels, dilation, groups) for dilation in _DILATIONS)
        self.snake1 = _Snake(channels)
        self.conv1 = nn.Conv1d(channels, 2 * channels, 2 * stride, stride=stride)
        self.channels, self.stride = channels, stride

    def forward(self, maps: Tensor, *, first: nn.Conv1d | None, mask: Tensor | None, in_pieces: bool) -> Tensor:
        """Frames [B, T // stride, 2 C] of all steps.

        Args:
            maps: [B, T, C], or what ``first`` takes; T a multiple of the stride.
            first: a convolution before the units, if any.
            mask: [B, T, 1], 0 beyond each clip; none if every clip fills its row.
            in_pieces: one piece after another; only without a mask.
        """
        total = maps.shape[1] // self.stride
        step = max(1, _PIECE_BYTES // (4 * self.channels * self.stride)) if in_pieces else total
        if total <= step:
            return self._piece(maps, 0, total, first=first, mask=mask)
        frames = maps.new_empty(len(maps), total, 2 * self.channels)
        for start in range(0, total, step):
            stop = min(start + step, total)
            frames[:, start:stop] = self._piece(maps, start, stop, first=first, mask=None)
        return frames

    def _piece(self, maps: Tensor, start: int, stop: int, *, first: nn.Conv1d | None, mask: Tensor | None) -> Tensor:
        """Frames ``start:stop``."""
        total, margin = maps.shape[1], math.ceil(self.stride / 2)
        # What the strided convolution takes, then what the units need for it; both may lie beyond the clip.
        low, high = start * self.stride - margin, (stop + 1) * self.stride - margin
        begin, end = max(0, low - _UNITS_REACH), min(total, high + _UNITS_REACH)
        begins, ends = begin == 0, end == total
        if first is None:
            inner = maps[:, begin:end]
        else:
            extra = first.kernel_size[0] // 2
            known = maps[:, max(0, begin - extra) : end + extra]
            # As many zeros as lie beyond the clip.
            left, right = max(0, extra - begin), max(0, end + extra - total)
            inner = _convolve(known, first, left=left, right=right)
        for unit in (self.res_unit1, self.res_unit2, self.res_unit3):
            inner = unit(inner, begins=begins, ends=ends, mask=mask)
        begin += 0 if begins else _UNITS_REACH  # of what is left
        inner = inner[:, max(0, low) - begin : min(total, high) - begin]
        left, right = max(0, -low), max(0, high - total)
        return _convolve(inner, self.conv1, left=left, right=right, snake=self.snake1, mask=mask)


class _Encoder(nn.Module):
    """Waveforms [B, L] to latents [B, L // hop, D]."""

    def __init__(
        self, *, channels: int, strides: Sequence[int], last_kernel: int, last_snake: bool, depthwise: bool
    ) -> None:
        super().__init__()
        widths = [channels << level for level in range(len(strides) + 1)]
        self.conv1 = nn.Conv1d(1, channels, _KERNEL)
        self.block = nn.ModuleList(
            _Block(width, stride, width if depthwise else 1) for width, stride in zip(widths, strides, strict=False)
        )
        self.snake1 = _Snake(widths[-1]) if last_snake else None
        self.conv2 = nn.Conv1d(widths[-1], widths[-1], last_kernel, groups=widths[-1] if depthwise else 1)

    def forward(self, waveforms: Tensor, lengths: Tensor, *, in_pieces: bool = False) -> Tensor:
        """Latents of a batch.

        Args:
            waveforms: [B, L], zero beyond each clip.
            lengths: int64 [B], multiples of the hop.
            in_pieces: save memory, for one clip or several of one length.
        """
        padded = bool((lengths != waveforms.shape[1]).any())
        maps, hop = waveforms[:, :, None], 1
        first: nn.Conv1d | None = self.conv1
        for block in cast(Sequence[_Block], self.block):
            maps = block(
                maps, first=first, mask=_mask(maps, lengths // hop, padded), in_pieces=in_pieces and not padded
            )
            hop *= block.stride
            first = None
        margin = self.conv2.kernel_size[0] // 2
        mask = _mask(maps, lengths // hop, padded)
        return _convolve(maps, self.conv2, left=margin, right=margin, snake=self.snake1, mask=mask)


def _mask(maps: Tensor, lengths: Tensor, padded: bool) -> Tensor | None:
    return valid_mask(lengths, maps.shape[1])[:, :, None].to(maps.dtype) if padded else None


class _Codebook(nn.Module):
    """Codes of a few features, and the projections to them and back."""

    def __init__(self, dim: int, size: int, code_dim: int) -> None:
        super().__init__()
        self.in_proj = nn.Conv1d(dim, code_dim, 1)
        self.out_proj = nn.Conv1d(code_dim, dim, 1)
        self.codebook = nn.Embedding(size, code_dim)

    def forward(self, frames: Tensor) -> Tensor:
        """What this codebook makes of frames [N, D]: the same shape."""
        projected = F.linear(frames, self.in_proj.weight[:, :, 0], self.in_proj.bias)  # [N, code_dim]
        codes = self.codebook.weight
        # The largest product with a unit vector: the nearest direction, whatever the length of the frame.
        nearest = (projected @ F.normalize(codes).T).argmax(1)
        return F.linear(codes[nearest], self.out_proj.weight[:, :, 0], self.out_proj.bias)


class _Quantizer(nn.Module):
    def __init__(self, *, dim: int, size: int, code_dim: int, strides: Sequence[int]) -> None:
        super().__init__()
        self.quantizers = nn.ModuleList(_Codebook(dim, size, code_dim) for _ in strides)
        self.strides = tuple(strides)

    def forward(self, latent: Tensor) -> Tensor:
        """Quantised frames [N, D] of latents [N, D] of whole clips, each a multiple of every stride long."""
        residual, quantized = latent.clone(), torch.zeros_like(latent)
        for codebook, stride in zip(self.quantizers, self.strides, strict=True):
            seen = residual if stride == 1 else residual.view(-1, stride, residual.shape[1]).mean(1)
            chosen = codebook(seen)
            if stride > 1:
                chosen = chosen.repeat_interleave(stride, dim=0)
            quantized += chosen
            residual -= chosen
        return quantized


class SnakeCodec(nn.Module):
    """Encoder and quantiser of DAC or SNAC.

    Args:
        channels: behind the first convolution; each block doubles them.
        strides: of the blocks; their product is the hop.
        last_kernel: taps of the last convolution.
        last_snake: whether Snake stands before the last convolution.
        depthwise: whether the units' dilated convolutions, and the last one, treat each channel alone.
        codebook_size: entries of a codebook.
        codebook_dim: features of a code vector.
        codebook_strides: frames that share a code, per codebook.
    """

    def __init__(
        self,
        *,
        channels: int,
        strides: Sequence[int],
        last_kernel: int,
        last_snake: bool,
        depthwise: bool,
        codebook_size: int,
        codebook_dim: int,
        codebook_strides: Sequence[int],
    ) -> None:
        super().__init__()
        self.encoder = _Encoder(
            channels=channels, strides=strides, last_kernel=last_kernel, last_snake=last_snake, depthwise=depthwise
        )
        self.quantizer = _Quantizer(
            dim=channels << len(strides), size=codebook_size, code_dim=codebook_dim, strides=codebook_strides
        )

    def latent(self, waveforms: Tensor, lengths: Tensor) -> Tensor:
        """Latents float32 [B, T, D] of waveforms [B, L], zero beyond each clip; ``lengths`` [B] are multiples of the hop."""
        if waveforms.device.type != "cpu":
            return cast(Tensor, self.encoder(waveforms, lengths))
        own = lengths.tolist()
        clips = [
            self.encoder(waveforms[row : row + 1, :length], lengths[row : row + 1], in_pieces=True)[0]
            for row, length in enumerate(own)
        ]
        return nn.utils.rnn.pad_sequence(clips, batch_first=True)

    def quantized(self, latent: Tensor, num_frames: Tensor) -> Tensor:
        """Quantised frames [B, T, D]; zero beyond each clip's ``num_frames`` [B], multiples of the codebooks' strides."""
        quantized = torch.zeros_like(latent)
        if latent.device.type != "cpu":
            valid = valid_mask(num_frames, latent.shape[1])
            quantized[valid] = self.quantizer(latent[valid])
            return quantized
        for row, length in enumerate(num_frames.tolist()):
            quantized[row, :length] = self.quantizer(latent[row, :length])
        return quantized


def reach(strides: Sequence[int], *, last_kernel: int) -> tuple[int, int]:
    """Samples that a latent frame sees before its own first sample, and behind its own last one."""
    before, behind, hop = _KERNEL // 2, _KERNEL // 2, 1
    for stride in strides:
        margin = math.ceil(stride / 2)
        before += (_UNITS_REACH + margin) * hop
        behind += (_UNITS_REACH + 2 * stride - 1 - margin) * hop
        hop *= stride
    return before + last_kernel // 2 * hop, behind + last_kernel // 2 * hop - (hop - 1)


def initialise_codec(codec: SnakeCodec, *, latent_scale: float) -> None:
    """Random weights through which a signal passes; call inside ``random_initialisation(spec)``.

    Snake passes the variance of what it is given, so kernels are normal with variance 1 / fan-in, half of what ReLU needs
    (``random_weights``); biases are zero and a is 1. The last kernel of every residual unit is halved: sums of twelve equal
    parts would drive the signal to where Snake multiplies rounding (latents of speech by ``dac`` are then off by 1e-5 in float32,
    so by 2e-6). A codebook's vectors are normal, of deviation ``latent_scale``, that of the latents; the projection back is the
    transpose of the projection to them, so that a code stands for the part of a frame that it was chosen by.
    """
    initialise(codec)
    with torch.no_grad():
        for layer in codec.modules():
            if isinstance(layer, nn.Conv1d):
                layer.weight.mul_(0.5**0.5)
            elif isinstance(layer, _Unit):
                layer.conv2.weight.mul_(0.5)
        for codebook in cast(Sequence[_Codebook], codec.quantizer.quantizers):
            codebook.codebook.weight.normal_(0.0, latent_scale)
            codebook.out_proj.weight.copy_(codebook.in_proj.weight.transpose(0, 1))


def fold_weight_norm(state: Mapping[str, object]) -> dict[str, object]:
    """Replace the two parts of each normalised kernel, length and direction, by the kernel itself.

    Args:
        state: a checkpoint; kernels may be plain (``.weight``), or in the parts of either of torch's two weight
            normalisations (``.weight_g`` and ``.weight_v``; ``.parametrizations.weight.original0`` and ``…1``).

    Returns:
        A new dictionary; parts without their counterpart, or of shapes that do not belong together, are left as they are.
    """
    folded = dict(state)
    for name, length in state.items():
        for ends in (
            (".weight_g", ".weight_v"),
            (".parametrizations.weight.original0", ".parametrizations.weight.original1"),
        ):
            if not name.endswith(ends[0]):
                continue
            layer = name.removesuffix(ends[0])
            direction = state.get(layer + ends[1])
            if not isinstance(length, Tensor) or not isinstance(direction, Tensor):
                continue
            if direction.ndim != 3 or length.shape != (direction.shape[0], 1, 1):
                continue
            wide = direction.double()
            del folded[name], folded[layer + ends[1]]
            folded[f"{layer}.weight"] = (wide * (length.double() / wide.norm(dim=(1, 2), keepdim=True))).float()
    return folded
