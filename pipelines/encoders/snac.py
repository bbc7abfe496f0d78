"""SNAC at 24 kHz (Siuzdak et al. 2024), from the checkpoint of the PyPI package ``snac``.

Input: mono 24 kHz in [-1, 1]. ``latent`` [T, 768] is the output of the encoder before quantisation, 46.875 frames per second;
``quantized`` [T, 768] is the sum of what its 3 codebooks of 4096 codes project back, at the rate of the latent: 0.98 kbps. A
code of the first codebook stands for 4 frames, of the second for 2, of the third for one. The network is our own
(:mod:`pipelines.encoders.snake_codec`, which also says what padding would do to the last frames upstream and how it is cured)
and reads the parameter names of the package, which is needed for tests only. Of the checkpoint, the decoder is not used; it is
there, not in the encoder, that noise is added.

A clip, alone or in a batch, is extended with zeros to whole groups of 4 frames (2048 samples), as the package does: a coarse
code then never stands for frames of two clips, or of a clip and its padding. The package, given one clip, returns the same
frames. A frame sees 10 frames on either side; recordings above 32 s are encoded in windows that begin at whole groups and
overlap by 24 frames, and keep their frames.

The quantiser is the one discontinuous step; see ``residual_quantizer``.

Not done here: the models at 32 and 44.1 kHz (their encoders attend over windows of 32 frames), decoding to audio.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipelines.encoders.base import Encoder, PaddedRepresentation
from pipelines.encoders.catalogue import EncoderSpec
from pipelines.encoders.causal import prepare
from pipelines.encoders.config_check import check_config
from pipelines.encoders.padding import extended_length, pad_batch
from pipelines.encoders.snake_codec import SnakeCodec, fold_weight_norm, initialise_codec, reach
from pipelines.encoders.state_check import check_state, checkpoint_info, random_info
from pipelines.encoders.weights import (
    Progress,
    WeightsInfo,
    find_checkpoint,
    load_pickle_free,
    random_initialisation,
)

__all__ = ["SNACEncoder"]

_STRIDES = (2, 4, 8, 8)
_HOP = math.prod(_STRIDES)
_LAST_KERNEL = 7
_CODEBOOK_STRIDES = (4, 2, 1)
_GROUP = max(_CODEBOOK_STRIDES)
_RATE_HZ = 24000
# Whole groups, so that the frames kept of a window have been quantised with the neighbours that they have in the recording.
_CONTEXT_FRAMES = -(-max(reach(_STRIDES, last_kernel=_LAST_KERNEL)) // (_HOP * _GROUP)) * _GROUP
_DEFAULTS: dict[str, Any] = {
    "sampling_rate": 44100,
    "encoder_dim": 64,
    "encoder_rates": [3, 3, 7, 7],
    "latent_dim": None,
    "attn_window_size": 32,
    "codebook_size": 4096,
    "codebook_dim": 8,
    "vq_strides": [8, 4, 2, 1],
    "depthwise": True,
}
"""What the package takes for settings that a ``config.json`` leaves out."""
_RANDOM_LATENT_SCALE = 0.5
"""What random weights make of speech, roughly; random codebooks are drawn to that scale."""


def _config(spec: EncoderSpec) -> dict[str, Any]:
    """What ``config.json`` must say."""
    return {
        "sampling_rate": _RATE_HZ,
        "encoder_rates": list(_STRIDES),
        "latent_dim": None,
        "attn_window_size": None,
        "vq_strides": list(_CODEBOOK_STRIDES),
        "depthwise": True,
        **spec.settings,
    }


def _codec(spec: EncoderSpec) -> SnakeCodec:
    config = _config(spec)
    return SnakeCodec(
        channels=config["encoder_dim"],
        strides=_STRIDES,
        last_kernel=_LAST_KERNEL,
        last_snake=False,
        depthwise=True,
        codebook_size=config["codebook_size"],
        codebook_dim=config["codebook_dim"],
        codebook_strides=_CODEBOOK_STRIDES,
    )


_IN_UNIT = {"snake1": 0, "conv1": 1, "snake2": 2, "conv2": 3}
_IN_BLOCK = {"snake1": 3, "conv1": 4}


def _package_name(name: str) -> str:
    """What the package calls a parameter of :class:`SnakeCodec`; its layers are numbered throughout."""
    if found := re.fullmatch(r"encoder\.block\.(\d+)\.res_unit(\d)\.(\w+)\.(\w+)", name):
        block, unit, layer, parameter = found.groups()
        return f"encoder.block.{int(block) + 1}.block.{int(unit) - 1}.block.{_IN_UNIT[layer]}.{parameter}"
    if found := re.fullmatch(r"encoder\.block\.(\d+)\.(\w+)\.(\w+)", name):
        block, layer, parameter = found.groups()
        return f"encoder.block.{int(block) + 1}.block.{_IN_BLOCK[layer]}.{parameter}"
    name = name.replace("encoder.conv1.", "encoder.block.0.")
    return name.replace("encoder.conv2.", f"encoder.block.{len(_STRIDES) + 1}.")


class SNACEncoder(Encoder):
    """SNAC at 24 kHz; representations ``latent`` and ``quantized``, both [T, 768]."""

    min_samples = _GROUP * _HOP
    longest_s = 32.0  # 1500 frames, whole groups
    context_s = _CONTEXT_FRAMES * _HOP / _RATE_HZ

    def __init__(self, *, spec: EncoderSpec, weights: WeightsInfo, device: torch.device, codec: SnakeCodec) -> None:
        super().__init__(spec=spec, weights=weights, device=device)
        prepare(codec, device)
        self._codec = codec

    @classmethod
    def build(
        cls,
        *,
        spec: EncoderSpec,
        weights_kind: str,
        device: torch.device,
        weights_dir: Path | None = None,
        progress: Progress | None = None,
    ) -> SNACEncoder:
        """Build the encoder; see ``catalogue.load_encoder``.

        Raises:
            WeightsError: the checkpoint is absent, damaged, or of another network.
        """
        if weights_kind == "random":
            with random_initialisation(spec):
                codec = _codec(spec)
                initialise_codec(codec, latent_scale=_RANDOM_LATENT_SCALE)
            return cls(spec=spec, weights=random_info(spec, codec.state_dict()), device=device, codec=codec)
        folder, revision = find_checkpoint(spec, weights_dir=weights_dir, progress=progress)
        check_config(spec, folder / "config.json", _config(spec), _DEFAULTS)
        path = folder / "pytorch_model.bin"
        found = {name: value for name, value in load_pickle_free(path).items() if not name.startswith("decoder.")}
        with torch.device("meta"):
            codec = _codec(spec)
        expected = {_package_name(name): value for name, value in codec.state_dict().items()}
        state = check_state(fold_weight_norm(found), expected, path=path, spec=spec)
        codec.load_state_dict({name: state[_package_name(name)].float() for name in codec.state_dict()}, assign=True)
        weights = checkpoint_info(spec, path, revision, found)
        return cls(spec=spec, weights=weights, device=device, codec=codec)

    def num_frames(self, num_samples: int) -> int:
        """4 ceil(samples / 2048)."""
        return extended_length(num_samples, multiple_of=_GROUP * _HOP) // _HOP

    @torch.inference_mode()
    def encode_padded(self, batch: Sequence[Tensor]) -> Iterator[PaddedRepresentation]:
        """Yield ``latent``, then ``quantized``; see the base class."""
        waveforms, lengths = pad_batch(batch, multiple_of=_GROUP * _HOP, device=self.device)
        latent = self._codec.latent(waveforms, lengths)  # [B, T, D]
        num_frames = lengths // _HOP
        yield PaddedRepresentation(name="latent", frames=latent, num_frames=num_frames)
        quantized = self._codec.quantized(latent, num_frames)
        yield PaddedRepresentation(name="quantized", frames=quantized, num_frames=num_frames)
