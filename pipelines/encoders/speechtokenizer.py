"""SpeechTokenizer (Zhang et al. 2024, "SpeechTokenizer: Unified Speech Tokenizer for Speech Language Models").

Our own network under the parameter names of fnlp/SpeechTokenizer (``speechtokenizer_hubert_avg``), because the PyPI package
``speechtokenizer`` imports its whole training code; tests compare with its model. Input: mono 16 kHz in [-1, 1]. ``latent``
[T, 1024] is the output of the encoder before quantisation, 50 frames per second: strided convolutions, a bidirectional LSTM of
two layers, a convolution. ``quantized`` [T, 1024] is the sum of the vectors of all 8 codebooks of 10 bits (4 kbps), ``semantic``
[T, 1024] the vector of the first one alone (RVQ-1), which was trained to follow HuBERT. Of the checkpoint, the decoder, the
projection to HuBERT's features and what trained the codebooks are not used.

What breaks "batched equals alone" upstream: every convolution looks to both sides and mirrors the clip at its ends, completing
the last window of a strided one likewise, and the LSTM's backward direction begins at the end. In a batch that end is the
rectangle's. Cure: every convolution mirrors each clip at its own end, and the backward direction begins at each clip's own last
step. The frames are then upstream's own for the clip as it is, T = ceil(samples / 320). Mirroring needs 4 frames, so clips below
961 samples (60 ms) are extended with zeros to that.

Long recordings: the convolutions run in pieces and the LSTM over the whole, so recordings up to 5 minutes are encoded in one
piece. Windows of longer ones overlap by twice ``context_s``, and what the LSTM remembers from beyond is lost. With random weights,
whose LSTM forgets within a second, that changes nothing (pooled mean of 130 s in windows of 60 s: 6e-8). An LSTM made to forget
slowly (3 added to the bias of its forget gates) would lose something: the pooled mean of ``latent`` changes by 0.04 % with 10 s of
context, 0.5 % with 2 s. How long the trained one remembers is not known here.

The quantiser is the one discontinuous step; see ``residual_quantizer``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipelines.encoders.base import Encoder, PaddedRepresentation
from pipelines.encoders.catalogue import EncoderSpec
from pipelines.encoders.causal import prepare
from pipelines.encoders.config_check import check_config
from pipelines.encoders.padding import pad_batch, valid_mask
from pipelines.encoders.random_weights import gaussian_codebooks, initialise
from pipelines.encoders.residual_quantizer import quantize_residual
from pipelines.encoders.state_check import check_state, checkpoint_info, random_info
from pipelines.encoders.weights import (
    Progress,
    WeightsInfo,
    find_checkpoint,
    load_pickle_free,
    random_initialisation,
)

__all__ = ["SpeechTokenizerEncoder"]

_STRIDES = (2, 4, 5, 8)
_HOP = math.prod(_STRIDES)
_KERNEL, _RESIDUAL_KERNEL = 7, 3
_PIECE_STEPS = 100
"""Steps per piece of the convolutions. 10 s of audio on one core of an AMD EPYC: 0.45 s in pieces of 100 steps, 0.53 s of 50,
0.60 s in one."""
_PUBLISHED: dict[str, Any] = {
    "sample_rate": 16000,
    "n_filters": 64,
    "strides": [8, 5, 4, 2],
    "dimension": 1024,
    "bidirectional": True,
    "lstm_layers": 2,
    "dilation_base": 2,
    "residual_kernel_size": 3,
    "n_residual_layers": 1,
    "activation": "ELU",
    "codebook_size": 1024,
    "n_q": 8,
}
"""The published model, in the words of its ``config.json``; the dilations are all 1, as there is one residual layer per stride."""
_UNUSED = re.compile(r"decoder\.|transform\.|quantizer\.vq\.layers\.\d+\._codebook\.(?!embed$)")
_RANDOM_LATENT_SCALE = 2.5
"""What random weights make of speech, roughly; random codebooks are drawn to that scale."""


def _settings(spec: EncoderSpec) -> dict[str, Any]:
    """Architecture of a size, in the words of ``config.json``."""
    return {**_PUBLISHED, **spec.settings, "dimension": spec.dim}


def _convolve(maps: Tensor, lengths: Tensor, layer: nn.Conv1d, *, elu: bool = False) -> tuple[Tensor, Tensor]:
    """Apply a convolution, each clip mirrored at its own two ends; see ``causal`` for the layout.

    Args:
        maps: float32 [B, T, C]; left unchanged.
        lengths: int64 [B], steps of each clip.
        layer: its kernel, bias and stride are used; its own padding is not.
        elu: apply ELU to the input first.

    Returns:
        float32 [B, ceil(T / stride), C'], finite beyond each clip's own steps, and the clips' own ceil(steps / stride).
    """
    (kernel,), (stride,) = layer.kernel_size, layer.stride
    batch, steps, channels = maps.shape
    right = (kernel - stride) // 2
    left = kernel - stride - right
    margin = right + stride - 1  # mirrored at the end: the kernel's overlap, and what completes the last window
    if left + margin:
        extended = maps.new_zeros(batch, left + steps + margin, channels)
        extended[:, left : left + steps] = maps
        extended[:, :left] = maps[:, 1 : left + 1].flip(1)
        row = torch.arange(batch, device=maps.device)[:, None]
        offset = torch.arange(margin, device=maps.device)
        end = lengths[:, None]
        extended[row, left + end + offset] = maps[row, end - 2 - offset]
        maps = F.elu_(extended) if elu else extended
    elif elu:
        maps = F.elu(maps)
    after = -(-steps // stride)
    image = maps[:, : (after - 1) * stride + kernel].transpose(1, 2)[:, :, None]  # [B, C, 1, left + T + ...]
    result = F.conv2d(image, layer.weight[:, :, None], layer.bias, (1, stride))
    return result[:, :, 0].transpose(1, 2), (lengths + stride - 1).div(stride, rounding_mode="floor")


class _Convolution(nn.Module):
    """One convolution; the names ``conv``, ``block``, ``shortcut`` and ``model`` here and below are the checkpoint's."""

    def __init__(self, channels: int, after: int, kernel: int, *, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.ModuleDict({"conv": nn.Conv1d(channels, after, kernel, stride=stride)})

    def forward(self, maps: Tensor, lengths: Tensor, *, elu: bool = False) -> tuple[Tensor, Tensor]:
        layer = self.conv["conv"]
        assert isinstance(layer, nn.Conv1d)
        return _convolve(maps, lengths, layer, elu=elu)


class _Residual(nn.Module):
    """Two convolutions, each after ELU, added to a convolution of one tap."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        narrow = channels // 2
        self.block = nn.ModuleDict(
            {"1": _Convolution(channels, narrow, _RESIDUAL_KERNEL), "3": _Convolution(narrow, channels, 1)}
        )
        self.shortcut = _Convolution(channels, channels, 1)

    def forward(self, maps: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        inner, _ = self.block["1"](maps, lengths, elu=True)
        inner, _ = self.block["3"](F.elu_(inner), lengths)
        direct, _ = self.shortcut(maps, lengths)
        return inner.add_(direct), lengths


class _Encoder(nn.Module):
    """Waveforms to latents, in two parts: convolutions, then what sees the whole clip."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        super().__init__()
        filters, dim = int(settings["n_filters"]), int(settings["dimension"])
        layers: dict[str, nn.Module] = {"0": _Convolution(1, filters, _KERNEL)}
        for level, stride in enumerate(_STRIDES):
            channels = filters << level
            layers[str(3 * level + 1)] = _Residual(channels)
            layers[str(3 * level + 3)] = _Convolution(channels, 2 * channels, 2 * stride, stride=stride)
        wide = filters << len(_STRIDES)
        lstm = nn.LSTM(wide, wide, int(settings["lstm_layers"]), batch_first=True, bidirectional=True)
        layers["13"] = nn.ModuleDict({"lstm": lstm})
        layers["15"] = _Convolution(2 * wide, dim, _KERNEL)
        self.model: Any = nn.ModuleDict(layers)

    def convolutions(self, waveforms: Tensor, lengths: Tensor) -> Tensor:
        """Steps [B, ceil(L / 320), C] of waveforms [B, L]; ``lengths`` are each clip's own, in samples."""
        maps: Tensor = waveforms[:, :, None]
        maps, own = self.model["0"](maps, lengths)
        for level in range(len(_STRIDES)):
            maps, own = self.model[str(3 * level + 1)](maps, own)
            maps, own = self.model[str(3 * level + 3)](maps, own, elu=True)
        return maps

    def latent(self, maps: Tensor, own: Tensor) -> Tensor:
        """Latents [B, T, D] of these steps; ``own`` are each clip's own, int64 [B]."""
        packed = nn.utils.rnn.pack_padded_sequence(maps, own.cpu(), batch_first=True, enforce_sorted=False)
        recurrent, _ = nn.utils.rnn.pad_packed_sequence(self.model["13"]["lstm"](packed)[0], batch_first=True)
        latent: Tensor
        latent, _ = self.model["15"](recurrent + maps.repeat(1, 1, 2), own, elu=True)
        return latent


def _context_steps() -> int:
    """Steps before or behind a step that the convolutions before the LSTM see, rounded up."""
    samples, step = _KERNEL - 1, 1
    for stride in _STRIDES:
        samples += step * (_RESIDUAL_KERNEL - 1 + stride)  # a strided convolution has twice its stride as kernel
        step *= stride
    return -(-samples // step)


def _shortest_clip() -> int:
    """Samples below which some convolution would have to mirror more steps than the clip has."""
    return _KERNEL // 2 * _HOP + 1


def _code_name(index: int) -> str:
    return f"quantizer.vq.layers.{index}._codebook.embed"


def _codebook_shape(settings: Mapping[str, Any]) -> tuple[int, int, int]:
    return int(settings["n_q"]), int(settings["codebook_size"]), int(settings["dimension"])


def _expected_state(spec: EncoderSpec) -> dict[str, Tensor]:
    """Names and shapes of the parameters used, as stored: kernels as magnitude and direction (weight normalisation)."""
    settings = _settings(spec)
    count, size, dim = _codebook_shape(settings)
    expected: dict[str, Tensor] = {}
    with torch.device("meta"):
        for name, value in _Encoder(settings).state_dict().items():
            if name.endswith(".weight"):
                expected[f"encoder.{name}_g"] = torch.empty(len(value), 1, 1)
                expected[f"encoder.{name}_v"] = value
            else:
                expected[f"encoder.{name}"] = value
        return expected | {_code_name(index): torch.empty(size, dim) for index in range(count)}


def _folded(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same parameters with plain kernels: magnitude times direction over its norm."""
    folded: dict[str, Tensor] = {}
    for name, value in state.items():
        if name.endswith(".weight_v"):
            magnitude = state[f"{name[:-1]}g"]
            folded[name[: -len("_v")]] = torch._weight_norm(value.float(), magnitude.float(), 0)
        elif not name.endswith(".weight_g"):
            folded[name] = value.float()
    return folded


def _random_state(spec: EncoderSpec) -> dict[str, Tensor]:
    """Random weights through which a signal passes, kernels plain; the LSTM keeps torch's own initialisation."""
    settings = _settings(spec)
    count, size, dim = _codebook_shape(settings)
    with random_initialisation(spec):
        encoder = _Encoder(settings)
        initialise(encoder)
        codebooks = gaussian_codebooks(count=count, size=size, dim=dim, scale=_RANDOM_LATENT_SCALE)
    state = {f"encoder.{name}": value for name, value in encoder.state_dict().items()}
    return state | {_code_name(index): codebook for index, codebook in enumerate(codebooks)}


class SpeechTokenizerEncoder(Encoder):
    """SpeechTokenizer at 16 kHz; representations ``latent``, ``quantized`` and ``semantic``, all [T, 1024]."""

    min_samples = _shortest_clip()
    longest_s = 300.0
    context_s = 10.0

    def __init__(
        self, *, spec: EncoderSpec, weights: WeightsInfo, device: torch.device, state: Mapping[str, Tensor]
    ) -> None:
        super().__init__(spec=spec, weights=weights, device=device)
        settings = _settings(spec)
        with torch.device("meta"):
            self._encoder = _Encoder(settings)
        prefix = "encoder."
        parameters = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        self._encoder.load_state_dict(parameters, assign=True)
        prepare(self._encoder, device)
        codebooks = [state[_code_name(index)] for index in range(int(settings["n_q"]))]
        self._codebooks = torch.stack(codebooks).to(device)

    @classmethod
    def build(
        cls,
        *,
        spec: EncoderSpec,
        weights_kind: str,
        device: torch.device,
        weights_dir: Path | None = None,
        progress: Progress | None = None,
    ) -> SpeechTokenizerEncoder:
        """Build the encoder; see ``catalogue.load_encoder``.

        Raises:
            WeightsError: the checkpoint is absent, damaged, or of another network.
        """
        if weights_kind == "random":
            state = _random_state(spec)
            return cls(spec=spec, weights=random_info(spec, state), device=device, state=state)
        folder, revision = find_checkpoint(spec, weights_dir=weights_dir, progress=progress)
        config, path = (_existing(folder, file.name.split("|")) for file in spec.files)
        check_config(spec, config, _settings(spec), defaults={})
        found = {name: value for name, value in load_pickle_free(path).items() if not _UNUSED.match(name)}
        state = check_state(found, _expected_state(spec), path=path, spec=spec)
        weights = checkpoint_info(spec, path, revision, state)
        return cls(spec=spec, weights=weights, device=device, state=_folded(state))

    def num_frames(self, num_samples: int) -> int:
        """ceil(samples / 320), at least 4."""
        return -(-max(num_samples, self.min_samples) // _HOP)

    @torch.inference_mode()
    def encode_padded(self, batch: Sequence[Tensor]) -> Iterator[PaddedRepresentation]:
        """Yield ``latent``, ``quantized`` and ``semantic``; see the base class."""
        waveforms, lengths = pad_batch(batch, min_samples=self.min_samples, device=self.device)
        num_frames = (lengths + _HOP - 1).div(_HOP, rounding_mode="floor")
        if self.device.type == "cpu":
            maps = self._clip_by_clip(waveforms, lengths)
        else:
            maps = self._encoder.convolutions(waveforms, lengths)
        # The LSTM reads all its weights at every step, so it takes the whole batch at once.
        latent = self._encoder.latent(maps, num_frames)  # [B, T, D]
        yield PaddedRepresentation(name="latent", frames=latent, num_frames=num_frames)
        valid = valid_mask(num_frames, latent.shape[1])
        for name, codebooks in (("quantized", self._codebooks), ("semantic", self._codebooks[:1])):
            frames = torch.zeros_like(latent)
            frames[valid] = quantize_residual(latent[valid], codebooks)
            yield PaddedRepresentation(name=name, frames=frames, num_frames=num_frames)

    def _clip_by_clip(self, waveforms: Tensor, lengths: Tensor) -> Tensor:
        """``_Encoder.convolutions`` one clip after another and in pieces of it, which stay in the processor's cache."""
        steps = -(-waveforms.shape[1] // _HOP)
        context = _context_steps()
        rows: list[Tensor] = []
        for waveform, samples in zip(waveforms, lengths.tolist(), strict=True):
            own = -(-samples // _HOP)
            parts: list[Tensor] = []
            for first in range(0, own, _PIECE_STEPS):
                begin, end = max(0, first - context), min(samples, (first + _PIECE_STEPS + context) * _HOP)
                piece = waveform[None, begin * _HOP : end]
                maps = self._encoder.convolutions(piece, torch.tensor([piece.shape[1]]))
                parts.append(maps[:, first - begin : first - begin + _PIECE_STEPS])
            rows.append(F.pad(torch.cat(parts, dim=1), (0, 0, 0, steps - own)))
        return torch.cat(rows)


def _existing(folder: Path, names: Sequence[str]) -> Path:
    """The file that ``find_checkpoint`` found under one of these names; for the Hub its folder is the innermost one."""
    paths = [path for name in names for path in (folder / name, folder / Path(name).name)]
    return next(path for path in paths if path.is_file())
