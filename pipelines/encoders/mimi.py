"""Mimi (Défossez et al. 2024, "Moshi: a speech-text foundation model for real-time dialogue"): 12.5 frames per second.

Our own network under the parameter names of kyutai/mimi, whose names transformers' ``MimiModel`` has kept while its own modules
changed between versions; tests compare with that class. Input: mono 24 kHz in [-1, 1]. ``latent`` [T, 512] is what upstream
quantises: a stack of strided convolutions (one step per 960 samples), a transformer, a convolution of stride 2. ``quantized``
[T, 512] is the sum of what a semantic codebook and 31 acoustic ones make of it, each group between two projections of its own:
all 32 codebooks of 11 bits, 4.4 kbps, as upstream's ``encode`` unless it is told otherwise (``settings["codebooks"]``; Moshi
itself uses the first 8, 1.1 kbps). The checkpoint's decoder is not used.

What would break "batched equals alone" upstream: the last frame of a clip is completed with zeros in the convolutions, but by
repeating the last step in the one of stride 2, so what follows the clip leaks into it. Cure: each clip, alone or in a
batch, is extended with zeros to whole frames (1920 samples) and then needs no completing. Everything else is causal: the
convolutions have zeros on their left (the last one the first step repeated), and a step attends to the 250 steps (10 s) that end
with itself. Upstream, given the clip so extended, returns the same frames.

Long recordings: the network runs over blocks of 10 s and takes along what the next block attends to, so memory hardly grows with
the length and the frames are those of the recording in one piece, up to 10 minutes. Windows of longer ones overlap by twice 81 s:
as every layer sees at most 10 s back, a frame depends on the last 80 s only. What is left is that upstream rounds the angles of
late positions (330 s in windows of 200 s, random weights: pooled mean of ``latent`` 8e-7, worst frame 5e-5; with 10 s of context
instead they would be 0.4 % and 19 %).

The quantiser is the one discontinuous step; see ``residual_quantizer``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipelines.encoders.base import Encoder, PaddedRepresentation
from pipelines.encoders.catalogue import EncoderSpec
from pipelines.encoders.causal import convolve, prepare, run_in_passes
from pipelines.encoders.config_check import check_config
from pipelines.encoders.cpu_linear import pack_linears
from pipelines.encoders.padding import extended_length, pad_batch, valid_mask
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
from pipelines.errors import ConfigError

__all__ = ["MimiEncoder"]

_STRIDES = (4, 5, 6, 8)
_STEP = 960
_HOP = 1920
_KERNEL, _RESIDUAL_KERNEL, _LAST_KERNEL = 7, 3, 3
_BLOCK_STEPS = 250
_PIECE_STEPS = 50
"""Steps per piece of the convolutions. 10 s of audio on one core of an AMD EPYC: 0.28 s in pieces of 50 steps, 0.33 s of 25 or
100, 0.36 s in one."""
_PUBLISHED: dict[str, Any] = {
    "model_type": "mimi",
    "sampling_rate": 24000,
    "audio_channels": 1,
    "hidden_size": 512,
    "num_filters": 64,
    "num_residual_layers": 1,
    "upsampling_ratios": [8, 6, 5, 4],
    "kernel_size": 7,
    "last_kernel_size": 3,
    "residual_kernel_size": 3,
    "compress": 2,
    "use_causal_conv": True,
    "pad_mode": "constant",
    "use_conv_shortcut": False,
    "num_hidden_layers": 8,
    "intermediate_size": 2048,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "hidden_act": "gelu",
    "norm_eps": 1e-5,
    "attention_bias": False,
    "sliding_window": 250,
    "rope_theta": 10000.0,
    "rope_parameters.rope_theta": 10000.0,
    "rope_parameters.rope_type": "default",
    "frame_rate": 12.5,
    "codebook_size": 2048,
    "codebook_dim": 256,
    "vector_quantization_hidden_dimension": 256,
    "num_quantizers": 32,
    "num_semantic_quantizers": 1,
}
"""The published model, in the words of its ``config.json``; what such a file leaves out has these values in transformers too."""
_UNUSED = re.compile(r"decoder\.|decoder_transformer\.|upsample\.|quantizer\..*\.codebook\.initialized$")
_RANDOM_LAYER_SCALE = 0.3
_RANDOM_LATENT_SCALE = 4.0
"""What random weights make of speech behind either projection, roughly; random codebooks are drawn to that scale."""


def _settings(spec: EncoderSpec) -> dict[str, Any]:
    """Architecture of a size, in the words of ``config.json``."""
    changed = {name: value for name, value in spec.settings.items() if name in _PUBLISHED}
    return {**_PUBLISHED, **changed, "hidden_size": spec.dim}


def _convolution(channels: int, after: int, kernel: int, *, stride: int = 1, bias: bool = True) -> nn.ModuleDict:
    """One convolution; the names ``conv``, ``block`` and ``layers`` here and below are the checkpoint's."""
    return nn.ModuleDict({"conv": nn.Conv1d(channels, after, kernel, stride=stride, bias=bias)})


class _Residual(nn.Module):
    """Two convolutions, each after ELU, added to the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        narrow = channels // 2
        self.block: Any = nn.ModuleDict(
            {"1": _convolution(channels, narrow, _RESIDUAL_KERNEL), "3": _convolution(narrow, channels, 1)}
        )

    def forward(self, maps: Tensor) -> Tensor:
        inner = F.elu_(convolve(maps, self.block["1"]["conv"], elu=True))
        return convolve(inner, self.block["3"]["conv"]).add_(maps)


class _Convolutions(nn.Module):
    """Waveforms [B, 960 * T] to steps [B, T, D]."""

    def __init__(self, filters: int, dim: int) -> None:
        super().__init__()
        layers: dict[str, nn.Module] = {"0": _convolution(1, filters, _KERNEL)}
        for level, stride in enumerate(_STRIDES):
            channels = filters << level
            layers[str(3 * level + 1)] = _Residual(channels)
            layers[str(3 * level + 3)] = _convolution(channels, 2 * channels, 2 * stride, stride=stride)
        layers[str(3 * len(_STRIDES) + 2)] = _convolution(filters << len(_STRIDES), dim, _LAST_KERNEL)
        self.layers: Any = nn.ModuleDict(layers)

    def forward(self, waveforms: Tensor) -> Tensor:
        maps = waveforms[:, :, None]
        for index, layer in enumerate(self.layers.values()):
            maps = layer(maps) if isinstance(layer, _Residual) else convolve(maps, layer["conv"], elu=index > 0)
        return maps


def _context_steps() -> int:
    """Steps before a step that the convolutions see, rounded up."""
    samples, step = _KERNEL - 1, 1
    for stride in _STRIDES:
        samples += step * (_RESIDUAL_KERNEL - 1 + stride)  # a strided convolution has twice its stride as kernel
        step *= stride
    return -(-(samples + step * (_LAST_KERNEL - 1)) // step)


def _rotate(heads: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotary position (Su et al. 2021, "RoFormer"): feature i is paired with i + head_dim / 2. Takes [B, heads, T, head_dim]."""
    first, second = heads.chunk(2, dim=-1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)


class _Layer(nn.Module):
    """One layer of the transformer: attention and a feed-forward part, each behind a LayerNorm and scaled per feature."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        super().__init__()
        dim, inner = settings["hidden_size"], settings["num_attention_heads"] * settings["head_dim"]
        self.head_dim = int(settings["head_dim"])
        self.window = int(settings["sliding_window"])
        self.input_layernorm = nn.LayerNorm(dim, eps=settings["norm_eps"])
        self.post_attention_layernorm = nn.LayerNorm(dim, eps=settings["norm_eps"])
        self.self_attn = nn.ModuleDict(
            {name: nn.Linear(dim, inner, bias=False) for name in ("q_proj", "k_proj", "v_proj")}
        )
        self.self_attn["o_proj"] = nn.Linear(inner, dim, bias=False)
        wide = settings["intermediate_size"]
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(dim, wide, bias=False), "fc2": nn.Linear(wide, dim, bias=False)})
        self.self_attn_layer_scale = nn.ParameterDict({"scale": torch.ones(dim)})
        self.mlp_layer_scale = nn.ParameterDict({"scale": torch.ones(dim)})

    def forward(
        self, hidden: Tensor, position: tuple[Tensor, Tensor], mask: Tensor, past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Run over a block.

        Args:
            hidden: [B, T, D].
            position: cosine and sine of the block's positions, [T, head_dim / 2] each.
            mask: bool [T, P + T], which of the steps before and in the block each step attends to.
            past: keys and values of the P steps before the block, [B, heads, P, head_dim] each.

        Returns:
            [B, T, D], and what the next block needs as ``past``.
        """
        batch, steps, _ = hidden.shape
        normed = self.input_layernorm(hidden)
        query, key, value = (
            self.self_attn[name](normed).view(batch, steps, -1, self.head_dim).transpose(1, 2)
            for name in ("q_proj", "k_proj", "v_proj")
        )
        key = _rotate(key, *position)
        if past is not None:
            key, value = torch.cat([past[0], key], dim=2), torch.cat([past[1], value], dim=2)
        attended = F.scaled_dot_product_attention(_rotate(query, *position), key, value, attn_mask=mask)
        attended = self.self_attn["o_proj"](attended.transpose(1, 2).reshape(batch, steps, -1))
        hidden = torch.addcmul(hidden, self.self_attn_layer_scale["scale"], attended)
        fed = self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.post_attention_layernorm(hidden))))
        hidden = torch.addcmul(hidden, self.mlp_layer_scale["scale"], fed)
        begin = max(0, key.shape[2] - self.window + 1)
        return hidden, (key[:, :, begin:], value[:, :, begin:])


class _Network(nn.Module):
    """Encoder and quantiser, under the checkpoint's names."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        super().__init__()
        dim, codebook_dim = int(settings["hidden_size"]), int(settings["codebook_dim"])
        self.head_dim, self.theta = int(settings["head_dim"]), float(settings["rope_theta"])
        self.window = int(settings["sliding_window"])
        self.bytes_per_sample = 4 * int(settings["num_filters"])
        self.encoder = _Convolutions(int(settings["num_filters"]), dim)
        layers = [_Layer(settings) for _ in range(int(settings["num_hidden_layers"]))]
        self.encoder_transformer: Any = nn.ModuleDict({"layers": nn.ModuleList(layers)})
        self.downsample: Any = _convolution(dim, dim, 4, stride=2, bias=False)
        codebooks = [int(settings["num_semantic_quantizers"]), int(settings["num_quantizers"])]
        self.quantizer: Any = nn.ModuleDict(
            {
                "semantic_residual_vector_quantizer": _quantizer(codebooks[0], dim, codebook_dim, settings),
                "acoustic_residual_vector_quantizer": _quantizer(
                    codebooks[1] - codebooks[0], dim, codebook_dim, settings
                ),
            }
        )

    def latent(self, waveforms: Tensor, lengths: Tensor) -> Tensor:
        """Latents [B, T, D] of waveforms [B, 1920 * T]; ``lengths`` are each clip's own, in samples."""
        total = waveforms.shape[1] // _STEP
        layers = list(self.encoder_transformer["layers"])
        past: list[tuple[Tensor, Tensor] | None] = [None] * len(layers)
        before: Tensor | None = None  # the two steps before the block, [B, 2, D]
        parts: list[Tensor] = []
        for start in range(0, total, _BLOCK_STEPS):
            stop = min(total, start + _BLOCK_STEPS)
            hidden = self._convolutions(waveforms, lengths, start, stop)
            position, mask = self._position(start, stop, hidden.device)
            for index, layer in enumerate(layers):
                hidden, past[index] = layer(hidden, position, mask, past[index])
            if before is None:
                before = hidden[:, :1].expand(-1, 2, -1)
            extended = torch.cat([before, hidden], dim=1).transpose(1, 2)
            before = hidden[:, -2:]
            parts.append(F.conv1d(extended, self.downsample["conv"].weight, stride=2).transpose(1, 2))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def _convolutions(self, waveforms: Tensor, lengths: Tensor, start: int, stop: int) -> Tensor:
        """Steps ``start:stop`` before the transformer, [B, stop - start, D]; on CPU in pieces, which stay in the cache."""
        parts: list[Tensor] = []
        size = _PIECE_STEPS if waveforms.device.type == "cpu" else stop - start
        for first in range(start, stop, size):
            begin, end = max(0, first - _context_steps()), min(stop, first + size)
            samples = waveforms[:, begin * _STEP : end * _STEP]
            own = (lengths - begin * _STEP).clamp(
                _STEP, samples.shape[1]
            )  # a clip that has ended: of no use, but not empty
            steps = run_in_passes(self.encoder, samples, own, bytes_per_sample=self.bytes_per_sample)
            parts.append(steps[:, first - begin :])
        return torch.cat(parts, dim=1)

    def _position(self, start: int, stop: int, device: torch.device) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """Rotation of steps ``start:stop``, and which of the steps that are kept each attends to."""
        steps = torch.arange(start, stop, device=device)
        # Rounded as upstream does: in float32 the angle of a late step is off by 6e-8 of its size.
        pairs = torch.arange(0, self.head_dim, 2, device=device).float()
        angles = steps[:, None].float() * (1.0 / self.theta ** (pairs / self.head_dim))
        kept = torch.arange(max(0, start - self.window + 1), stop, device=device)
        back = steps[:, None] - kept
        return (angles.cos(), angles.sin()), (back >= 0) & (back < self.window)

    def codebooks(self, group: str) -> Tensor:
        """Vectors [codebooks, entries, codebook_dim]; stored are sums and counts of what was assigned to them in training."""
        layers = self.quantizer[group]["layers"]
        return torch.stack(
            [
                layer["codebook"]["embed_sum"] / layer["codebook"]["cluster_usage"].clamp_min(1e-5)[:, None]
                for layer in layers
            ]
        )


def _quantizer(count: int, dim: int, codebook_dim: int, settings: Mapping[str, Any]) -> nn.ModuleDict:
    """Projections and codebooks of one group."""
    size = int(settings["codebook_size"])

    def codebook() -> nn.ModuleDict:
        stored = {"cluster_usage": torch.ones(size), "embed_sum": torch.zeros(size, codebook_dim)}
        return nn.ModuleDict({"codebook": nn.ParameterDict(stored)})

    return nn.ModuleDict(
        {
            "input_proj": nn.Conv1d(dim, codebook_dim, 1, bias=False),
            "output_proj": nn.Conv1d(codebook_dim, dim, 1, bias=False),
            "layers": nn.ModuleList([codebook() for _ in range(count)]),
        }
    )


def _random_network(spec: EncoderSpec) -> _Network:
    """Random weights through which a signal passes; layers of the transformer weigh like what they are added to."""
    settings = _settings(spec)
    with random_initialisation(spec), torch.no_grad():
        network = _Network(settings)
        initialise(network)
        for layer in network.encoder_transformer["layers"]:
            for scale in (layer.self_attn_layer_scale, layer.mlp_layer_scale):
                scale["scale"].fill_(_RANDOM_LAYER_SCALE)
        for group in network.quantizer.values():
            layers = group["layers"]
            codebooks = gaussian_codebooks(
                count=len(layers),
                size=int(settings["codebook_size"]),
                dim=int(settings["codebook_dim"]),
                scale=_RANDOM_LATENT_SCALE,
            )
            for layer, codebook in zip(layers, codebooks, strict=True):
                layer["codebook"]["embed_sum"].copy_(codebook)
    return network


class MimiEncoder(Encoder):
    """Mimi at 24 kHz; representations ``latent`` and ``quantized``, both [T, 512]."""

    min_samples = _HOP
    longest_s = 600.0
    context_s = 81.0

    def __init__(self, *, spec: EncoderSpec, weights: WeightsInfo, device: torch.device, network: _Network) -> None:
        super().__init__(spec=spec, weights=weights, device=device)
        available = int(_settings(spec)["num_quantizers"])
        count = int(str(spec.settings["codebooks"]))
        if not 1 <= count <= available:
            raise ConfigError(
                f"Mimi cannot quantise with {count} codebooks; expected 1 to {available} (settings of {spec.name!r} in"
                " pipelines/encoders/catalogue.py)."
            )
        self._network = network
        prepare(network, device)
        self._groups: list[tuple[Tensor, Tensor, Tensor]] = []
        for name, quantizer in network.quantizer.items():
            codebooks = network.codebooks(name)[:count]
            count -= len(codebooks)
            projections = [quantizer[side].weight[:, :, 0].contiguous() for side in ("input_proj", "output_proj")]
            self._groups.append((projections[0], codebooks, projections[1]))
        pack_linears(network)

    @classmethod
    def build(
        cls,
        *,
        spec: EncoderSpec,
        weights_kind: str,
        device: torch.device,
        weights_dir: Path | None = None,
        progress: Progress | None = None,
    ) -> MimiEncoder:
        """Build the encoder; see ``catalogue.load_encoder``.

        Raises:
            WeightsError: the checkpoint is absent, damaged, or of another network.
            ConfigError: the catalogue asks for codebooks that the model does not have.
        """
        if weights_kind == "random":
            network = _random_network(spec)
            return cls(spec=spec, weights=random_info(spec, network.state_dict()), device=device, network=network)
        folder, revision = find_checkpoint(spec, weights_dir=weights_dir, progress=progress)
        settings = _settings(spec)
        check_config(spec, folder / "config.json", settings, defaults=_PUBLISHED)
        path = folder / "model.safetensors"
        found = {name: value for name, value in load_pickle_free(path).items() if not _UNUSED.match(name)}
        with torch.device("meta"):
            network = _Network(settings)
        state = check_state(found, network.state_dict(), path=path, spec=spec)
        weights = checkpoint_info(spec, folder, revision, state)
        network.load_state_dict({name: value.float() for name, value in state.items()}, assign=True)
        return cls(spec=spec, weights=weights, device=device, network=network)

    def num_frames(self, num_samples: int) -> int:
        """ceil(samples / 1920)."""
        return extended_length(num_samples, multiple_of=_HOP) // _HOP

    @torch.inference_mode()
    def encode_padded(self, batch: Sequence[Tensor]) -> Iterator[PaddedRepresentation]:
        """Yield ``latent``, then ``quantized``; see the base class."""
        waveforms, lengths = pad_batch(batch, multiple_of=_HOP, device=self.device)
        latent = self._network.latent(waveforms, lengths)  # [B, T, D]
        num_frames = lengths // _HOP
        yield PaddedRepresentation(name="latent", frames=latent, num_frames=num_frames)
        valid = valid_mask(num_frames, latent.shape[1])
        quantized = torch.zeros_like(latent)
        quantized[valid] = self._quantize(latent[valid])
        yield PaddedRepresentation(name="quantized", frames=quantized, num_frames=num_frames)

    def _quantize(self, latent: Tensor) -> Tensor:
        """What both groups of codebooks make of latents [N, D]; unlike in one residual quantiser both see the whole latent."""
        total = torch.zeros_like(latent)
        for narrow, codebooks, widen in self._groups:
            total += F.linear(quantize_residual(F.linear(latent, narrow), codebooks), widen)
        return total
