"""SoundStream as trained by haydenshively after NaturalSpeech 2: 256 features per 12.5 ms of 16 kHz audio.

Our own network under the parameter names of the published checkpoint, because the PyPI package ``soundstream`` cannot be
installed beside current libraries; ``tests/oracles/soundstream_oracle.py`` runs both. Input: mono 16 kHz in [-1, 1].
``latent`` [T, 256] is the output of the encoder (Zeghidour et al. 2021, without FiLM; strides 2, 4, 5, 5; ELU), ``quantized``
[T, 256] the sum of the vectors chosen by the residual quantiser of 16 codebooks with 1024 entries (12.8 kbps). Of the
checkpoint, the decoder and the running averages that trained the codebooks are not used.

Every convolution is causal and mirrored on its left, so padding on the right reaches no frame of the clip: batched equals
alone by itself, as long as mirroring finds enough steps in the clip. The deepest one mirrors 54 steps of 40 samples, so
clips below 2200 samples (138 ms) are extended with zeros to that. As upstream, a clip has T = floor(samples / 200) frames:
fewer than 200 samples at its end complete no frame.

A frame sees the 4634 samples (24 frames) before its first one and nothing behind its last one, so recordings above 30 s,
encoded in windows that overlap by twice 24 frames, keep their frames: what is mirrored where a window begins reaches only
frames that the window before it gives.

The quantiser is the one discontinuous step; see ``residual_quantizer``. Upstream's ``from_pretrained`` leaves the model in
training mode, where the quantiser would change its codebooks at every call; evaluation mode is meant here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipelines.encoders.base import Encoder, PaddedRepresentation
from pipelines.encoders.catalogue import EncoderSpec
from pipelines.encoders.causal import convolve, prepare, run_in_passes
from pipelines.encoders.padding import pad_batch, valid_mask
from pipelines.encoders.random_weights import gaussian_codebooks, initialise
from pipelines.encoders.residual_quantizer import quantize_residual
from pipelines.encoders.state_check import check_state, pretrained_info, random_info
from pipelines.encoders.weights import (
    Progress,
    WeightsInfo,
    find_file,
    load_pickle_free,
    random_initialisation,
)

__all__ = ["SoundStreamEncoder"]

_STRIDES = (2, 4, 5, 5)
_HOP = math.prod(_STRIDES)
_RATE_HZ = 16000
_KERNEL, _LAST_KERNEL = 7, 3
_DILATIONS = (1, 3, 9)
_RANDOM_LATENT_SCALE = 100.0
"""What random weights make of speech, roughly; random codebooks are drawn to that scale."""
_UNUSED = re.compile(r"decoder\.|quantizer\.layers\.\d+\._codebook\.(?!embed$)")


def _shortest_clip() -> int:
    """Samples below which some convolution would have to mirror more steps than the clip has."""
    deepest = (_KERNEL - 1) * _DILATIONS[-1] + 1
    return max(deepest * math.prod(_STRIDES[:-1]), _LAST_KERNEL * _HOP)


def _reach() -> int:
    """Samples that a latent frame sees before its own first one."""
    samples, hop = _KERNEL - 1, 1
    for stride in _STRIDES:
        samples += hop * (
            (_KERNEL - 1) * sum(_DILATIONS) + stride
        )  # a strided convolution has twice its stride as kernel
        hop *= stride
    return samples + hop * (_LAST_KERNEL - 1)


class _Causal(nn.Module):
    """One convolution; the names ``conv`` and ``layers`` here and below are the checkpoint's."""

    def __init__(self, channels: int, after: int, kernel: int, *, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels, after, kernel, stride=stride, dilation=dilation)

    def forward(self, maps: Tensor) -> Tensor:
        return convolve(maps, self.conv, mirror=True)


class _Unit(nn.Module):
    """Residual unit: dilated convolution, ELU, 1x1 convolution, ELU, added to the input."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.layers = nn.ModuleDict(
            {"0": _Causal(channels, channels, _KERNEL, dilation=dilation), "2": _Causal(channels, channels, 1)}
        )

    def forward(self, maps: Tensor) -> Tensor:
        inner = F.elu_(self.layers["0"](maps))
        return F.elu_(self.layers["2"](inner)).add_(maps)


class _Block(nn.Module):
    """Three residual units and a strided convolution that doubles the channels."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(_Unit(channels, dilation) for dilation in _DILATIONS),
            _Causal(channels, 2 * channels, 2 * stride, stride=stride),
        )

    def forward(self, maps: Tensor) -> Tensor:
        frames: Tensor = self.layers(maps)
        return frames


class _Encoder(nn.Module):
    """Waveforms [B, L] to latents [B, L // 200, D]."""

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            _Causal(1, channels, _KERNEL),
            *(_Block(channels << level, stride) for level, stride in enumerate(_STRIDES)),
            _Causal(channels << len(_STRIDES), dim, _LAST_KERNEL),
        )

    def forward(self, waveforms: Tensor) -> Tensor:
        latent: Tensor = self.layers(waveforms[:, :, None])
        return latent


def _code_name(index: int) -> str:
    return f"quantizer.layers.{index}._codebook.embed"


def _expected_state(spec: EncoderSpec) -> dict[str, Tensor]:
    """Names and shapes of the parameters used; torch's random state is not touched."""
    count, size = int(str(spec.settings["codebooks"])), int(str(spec.settings["codebook_size"]))
    with torch.device("meta"):
        encoder = _Encoder(int(str(spec.settings["channels"])), spec.dim)
        state = {f"encoder.{name}": value for name, value in encoder.state_dict().items()}
        return state | {_code_name(index): torch.empty(size, spec.dim) for index in range(count)}


def _random_state(spec: EncoderSpec) -> dict[str, Tensor]:
    count, size = int(str(spec.settings["codebooks"])), int(str(spec.settings["codebook_size"]))
    with random_initialisation(spec):
        encoder = _Encoder(int(str(spec.settings["channels"])), spec.dim)
        initialise(encoder)
        codebooks = gaussian_codebooks(count=count, size=size, dim=spec.dim, scale=_RANDOM_LATENT_SCALE)
    state = {f"encoder.{name}": value for name, value in encoder.state_dict().items()}
    return state | {_code_name(index): codebook for index, codebook in enumerate(codebooks)}


def _used(checkpoint: Mapping[str, object]) -> dict[str, object]:
    """The part of a checkpoint that is used; codebooks may carry a leading axis of one (heads, in some versions)."""
    found: dict[str, object] = {}
    for name, value in checkpoint.items():
        if _UNUSED.match(name):
            continue
        if name.endswith(".embed") and isinstance(value, Tensor) and value.ndim == 3 and value.shape[0] == 1:
            value = value[0]
        found[name] = value
    return found


class SoundStreamEncoder(Encoder):
    """SoundStream at 16 kHz; representations ``latent`` and ``quantized``, both [T, 256]."""

    min_samples = _shortest_clip()
    longest_s = 30.0
    context_s = -(-_reach() // _HOP) * _HOP / _RATE_HZ

    def __init__(
        self, *, spec: EncoderSpec, weights: WeightsInfo, device: torch.device, state: Mapping[str, Tensor]
    ) -> None:
        super().__init__(spec=spec, weights=weights, device=device)
        channels, count = int(str(spec.settings["channels"])), int(str(spec.settings["codebooks"]))
        with torch.device("meta"):
            self._encoder = _Encoder(channels, spec.dim)
        prefix = "encoder."
        parameters = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        self._encoder.load_state_dict(parameters, assign=True)
        prepare(self._encoder, device)
        self._codebooks = torch.stack([state[_code_name(index)] for index in range(count)]).to(device)
        self._bytes_per_sample = 4 * channels

    @classmethod
    def build(
        cls,
        *,
        spec: EncoderSpec,
        weights_kind: str,
        device: torch.device,
        weights_dir: Path | None = None,
        progress: Progress | None = None,
    ) -> SoundStreamEncoder:
        """Build the encoder; see ``catalogue.load_encoder``.

        Raises:
            WeightsError: the checkpoint is absent, damaged, or of another network.
        """
        if weights_kind == "random":
            state = _random_state(spec)
            return cls(spec=spec, weights=random_info(spec, state), device=device, state=state)
        path = find_file(spec, spec.files[0], weights_dir=weights_dir, progress=progress)
        state = check_state(_used(load_pickle_free(path)), _expected_state(spec), path=path, spec=spec)
        return cls(spec=spec, weights=pretrained_info(spec, [path], state), device=device, state=state)

    def num_frames(self, num_samples: int) -> int:
        """floor(samples / 200), at least 11."""
        return max(num_samples, self.min_samples) // _HOP

    @torch.inference_mode()
    def encode_padded(self, batch: Sequence[Tensor]) -> Iterator[PaddedRepresentation]:
        """Yield ``latent``, then ``quantized``; see the base class."""
        waveforms, lengths = pad_batch(batch, min_samples=self.min_samples, device=self.device)
        latent = run_in_passes(self._encoder, waveforms, lengths, bytes_per_sample=self._bytes_per_sample)
        num_frames = lengths // _HOP
        yield PaddedRepresentation(name="latent", frames=latent, num_frames=num_frames)
        valid = valid_mask(num_frames, latent.shape[1])
        quantized = torch.zeros_like(latent)
        quantized[valid] = quantize_residual(latent[valid], self._codebooks)
        yield PaddedRepresentation(name="quantized", frames=quantized, num_frames=num_frames)
