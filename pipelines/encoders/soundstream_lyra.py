"""SoundStream as Google trained it for Lyra v1.2.0: 64 features per 20 ms of 16 kHz audio.

The weights are two TensorFlow Lite files, which are read as FlatBuffers and run in torch; no TensorFlow is needed. Input is
mono 16 kHz in [-1, 1]. ``latent`` [T, 64] is the output of the encoder; ``quantized`` [T, 64] is the sum of the vectors
that the residual quantiser chooses, with all 46 codebooks of 16 entries (9.2 kbps; Lyra itself sends 16, 30 or 46 of them).

Network, from the operators of the file (slope 0.3 for every LeakyReLU): convolution over 64 samples with stride 16; three
stages, each of three residual units with dilation 1, 3, 9 [LeakyReLU, depthwise convolution over 3 steps, 1x1 convolution,
LeakyReLU, grouped 1x1 convolution, added to the input], then LeakyReLU and a strided convolution (10/5, 4/2, 4/2 steps);
last LeakyReLU and a grouped convolution over 3 steps.

Every convolution is causal with zeros on the left, so padding on the right reaches no frame of the clip: batched equals
alone by itself. Lyra works in frames of 320 samples; each clip is extended with zeros to a whole number of them and has
T = ceil(samples / 320) frames. The quantiser is the one discontinuous step; see ``residual_quantizer``.

A frame depends on the 8224 samples up to its own last one (64, and 26, 9, 26, 3, 26, 3 and 2 steps of 16, 16, 80, 80, 160, 160 and
320), so one that begins 0.5 s (8000 samples) or more after the beginning of its window has all of them: long recordings come out
of windows as in one piece.

Not done here: the int8 model of Lyra v1.3.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipelines.encoders.base import Encoder, PaddedRepresentation
from pipelines.encoders.catalogue import EncoderSpec
from pipelines.encoders.causal import convolve, prepare, run_in_passes
from pipelines.encoders.padding import extended_length, pad_batch, valid_mask
from pipelines.encoders.random_weights import gaussian_codebooks, initialise
from pipelines.encoders.residual_quantizer import quantize_residual
from pipelines.encoders.state_check import check_state, pretrained_info, random_info
from pipelines.encoders.tflite_reader import TFLiteOperator, read_tflite
from pipelines.encoders.weights import Progress, WeightsInfo, find_file, random_initialisation

__all__ = ["SoundStreamLyraEncoder"]

_HOP = 320
_SLOPE = 0.3
_FIRST_KERNEL, _FIRST_STRIDE = 64, 16
_STRIDES = (5, 2, 2)
"""Of the stages; each doubles the channels."""
_DILATIONS = (1, 3, 9)
_LAST_GROUPS = 4


def _sizes(spec: EncoderSpec) -> tuple[int, int, int]:
    """Channels behind the first convolution, codebooks, and vectors per codebook."""
    channels, codebooks, size = (int(str(spec.settings[key])) for key in ("channels", "codebooks", "codebook_size"))
    return channels, codebooks, size


class _Network(nn.Module):
    """Encoder and codebooks. Feature maps are [B, T, C]."""

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__()
        channels, codebooks, size = _sizes(spec)
        self.first = nn.Conv1d(1, channels, _FIRST_KERNEL, stride=_FIRST_STRIDE)
        # Grouped convolutions take as many channels per group as there are at first, except the last one.
        self.stages = nn.ModuleList(
            _Stage(channels << stage, stride, groups=1 << stage) for stage, stride in enumerate(_STRIDES)
        )
        self.last = nn.Conv1d(channels << len(_STRIDES), spec.dim, 3, groups=_LAST_GROUPS)
        self.register_buffer("codebooks", torch.empty(codebooks, size, spec.dim))

    def forward(self, waveforms: Tensor) -> Tensor:
        """Latents [B, T, D] of waveforms [B, 320 * T]."""
        maps = convolve(waveforms[:, :, None], self.first)  # [B, 20 * T, channels]
        for stage in self.stages:
            maps = stage(maps)
        return convolve(F.leaky_relu_(maps, _SLOPE), self.last)


class _Stage(nn.Module):
    """Three residual units and a strided convolution."""

    def __init__(self, width: int, stride: int, *, groups: int) -> None:
        super().__init__()
        self.units = nn.ModuleList(_Unit(width, dilation, groups=groups) for dilation in _DILATIONS)
        self.down = nn.Conv1d(width, 2 * width, 2 * stride, stride=stride, groups=groups)

    def forward(self, maps: Tensor) -> Tensor:
        for unit in self.units:
            maps = unit(maps)
        return convolve(F.leaky_relu_(maps, _SLOPE), self.down)


class _Unit(nn.Module):
    """One residual unit; ``depthwise`` has no bias (the file holds one shared vector of zeros)."""

    def __init__(self, width: int, dilation: int, *, groups: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv1d(width, width, 3, dilation=dilation, groups=width, bias=False)
        self.pointwise = nn.Conv1d(width, width, 1)
        self.grouped = nn.Conv1d(width, width, 1, groups=groups)
        self.dilation = dilation

    def forward(self, maps: Tensor) -> Tensor:
        inner = F.leaky_relu(maps, _SLOPE)  # [B, T, C]
        early, middle, late = self.depthwise.weight[:, 0].T  # [C] each
        # Three shifted multiply-adds instead of a padded depthwise convolution: 2 to 10 times faster on CPU.
        mixed = inner * late
        for weight, delay in ((middle, self.dilation), (early, 2 * self.dilation)):
            mixed[:, delay:].addcmul_(inner[:, :-delay], weight)
        mixed = F.leaky_relu_(convolve(mixed, self.pointwise), _SLOPE)
        return convolve(mixed, self.grouped).add_(maps)


def _torch_kernel(operator: TFLiteOperator) -> Tensor:
    """The kernel of a convolution in torch's order, [out, in / groups, k]; left as it is if it is not one-dimensional.

    TFLite keeps [out, 1, k, in / groups] for a convolution and [1, 1, k, C] for a depthwise one.
    """
    kernel = torch.from_numpy(operator.constants[0].copy())
    if kernel.ndim != 4 or kernel.shape[1] != 1:
        return kernel
    if operator.kind == "DEPTHWISE_CONV_2D":
        return kernel[0, 0].T[:, None].contiguous()
    return kernel[:, 0].transpose(1, 2).contiguous()


def _state_of_files(encoder_path: Path, quantizer_path: Path, spec: EncoderSpec) -> dict[str, Tensor]:
    """The parameters in the two TFLite files under the names of :class:`_Network`, checked.

    Convolutions are told apart by their order of execution, codebooks by the order in which they are compared with.
    """
    network = _empty_network(spec)
    expected = network.state_dict()
    codebooks = expected.pop("codebooks")
    names = [name for name, module in network.named_modules() if isinstance(module, nn.Conv1d)]
    operators = [
        operator
        for graph in read_tflite(encoder_path).values()
        for operator in graph
        if operator.kind in {"CONV_2D", "DEPTHWISE_CONV_2D"} and operator.constants
    ]
    state: dict[str, Tensor] = {}
    for index, operator in enumerate(operators):
        name = names[index] if index < len(names) else f"convolution {index}"
        state[f"{name}.weight"] = _torch_kernel(operator)
        for bias in operator.constants[1:2]:
            if f"{name}.bias" in expected or bias.any():
                state[f"{name}.bias"] = torch.from_numpy(bias.copy())
    state = check_state(state, expected, path=encoder_path, spec=spec)
    compared = [
        torch.from_numpy(operator.constants[0].copy())
        for operator in read_tflite(quantizer_path).get("encode", [])
        if operator.kind == "SQUARED_DIFFERENCE" and operator.constants
    ]
    wanted = {f"codebook {index}": codebook[None] for index, codebook in enumerate(codebooks)}
    found = {f"codebook {index}": codebook for index, codebook in enumerate(compared)}
    found = check_state(found, wanted, path=quantizer_path, spec=spec)
    return {**state, "codebooks": torch.cat(list(found.values()))}


def _empty_network(spec: EncoderSpec) -> _Network:
    """The network without numbers; torch's random state is not touched."""
    with torch.device("meta"):
        return _Network(spec)


class SoundStreamLyraEncoder(Encoder):
    """Lyra's SoundStream; representations ``latent`` and ``quantized``, both [T, 64] (fewer in the tiny size)."""

    context_s = 0.5

    def __init__(self, *, spec: EncoderSpec, weights: WeightsInfo, device: torch.device, network: nn.Module) -> None:
        super().__init__(spec=spec, weights=weights, device=device)
        prepare(network, device)
        self._network = network
        channels, _, _ = _sizes(spec)
        self._bytes_per_sample = 4 * channels // _FIRST_STRIDE

    @classmethod
    def build(
        cls,
        *,
        spec: EncoderSpec,
        weights_kind: str,
        device: torch.device,
        weights_dir: Path | None = None,
        progress: Progress | None = None,
    ) -> SoundStreamLyraEncoder:
        """Build the encoder; see ``catalogue.load_encoder``.

        Raises:
            WeightsError: a file is absent, damaged, or of another network.
        """
        if weights_kind == "random":
            with random_initialisation(spec):
                network = _Network(spec)
                initialise(network)
                _, codebooks, size = _sizes(spec)
                # What random weights make of speech, roughly; random codebooks are drawn to that scale.
                scale = float(str(spec.settings["random_latent_scale"]))
                network.codebooks = gaussian_codebooks(count=codebooks, size=size, dim=spec.dim, scale=scale)
            return cls(spec=spec, weights=random_info(spec, network.state_dict()), device=device, network=network)
        paths = [find_file(spec, file, weights_dir=weights_dir, progress=progress) for file in spec.files]
        state = _state_of_files(paths[0], paths[1], spec)
        network = _empty_network(spec)
        network.load_state_dict(state, assign=True)
        return cls(spec=spec, weights=pretrained_info(spec, paths, state), device=device, network=network)

    def num_frames(self, num_samples: int) -> int:
        """ceil(samples / 320)."""
        return extended_length(num_samples, multiple_of=_HOP) // _HOP

    @torch.inference_mode()
    def encode_padded(self, batch: Sequence[Tensor]) -> Iterator[PaddedRepresentation]:
        """Yield ``latent``, then ``quantized``; see the base class."""
        waveforms, lengths = pad_batch(batch, multiple_of=_HOP, device=self.device)
        latent = run_in_passes(self._network, waveforms, lengths, bytes_per_sample=self._bytes_per_sample)
        num_frames = lengths // _HOP
        yield PaddedRepresentation(name="latent", frames=latent, num_frames=num_frames)
        codebooks = self._network.get_buffer("codebooks")
        valid = valid_mask(num_frames, latent.shape[1])
        quantized = torch.zeros_like(latent)
        quantized[valid] = quantize_residual(latent[valid], codebooks)
        yield PaddedRepresentation(name="quantized", frames=quantized, num_frames=num_frames)
