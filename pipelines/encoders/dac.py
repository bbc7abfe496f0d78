"""DAC at 16 kHz (Kumar et al. 2023), from its checkpoint in transformers' format.

Input: mono 16 kHz in [-1, 1]. ``latent`` [T, 1024] is the output of the encoder before quantisation, 50 frames per second;
``quantized`` [T, 1024] is the sum of what its 12 codebooks of 1024 codes project back: 6 kbps, all the model has. The network
is that of :mod:`pipelines.encoders.snake_codec`, which also says what padding would do to the last frames upstream and how it
is cured. Of the checkpoint, the decoder is not used, nor is ``preprocessor_config.json``: its early versions give a hop of
512 instead of 320 (huggingface/transformers#39313).

A clip is extended with zeros to a multiple of the hop, as upstream's feature extractor does with the right hop; transformers'
``DacModel.encode``, given one clip so extended, returns the same frames. A frame sees 8 frames on either side, so recordings
above 30 s, encoded in windows that overlap by 16, keep their frames.

The quantiser is the one discontinuous step; see ``residual_quantizer``.

Not done here: other bitrates, the 24 and 44.1 kHz models, decoding to audio.
"""

from __future__ import annotations

import math
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

__all__ = ["DACEncoder"]

_STRIDES = (2, 4, 5, 8)
_HOP = math.prod(_STRIDES)
_LAST_KERNEL = 3
_RATE_HZ = 16000
_CONTEXT_FRAMES = -(-max(reach(_STRIDES, last_kernel=_LAST_KERNEL)) // _HOP)
_DEFAULTS: dict[str, Any] = {
    "encoder_hidden_size": 64,
    "downsampling_ratios": [2, 4, 8, 8],
    "n_codebooks": 9,
    "codebook_size": 1024,
    "codebook_dim": 8,
    "sampling_rate": _RATE_HZ,
}
"""What transformers' ``DacConfig`` takes for settings that a ``config.json`` leaves out."""
_RANDOM_LATENT_SCALE = 0.5
"""What random weights make of speech, roughly; random codebooks are drawn to that scale."""


def _config(spec: EncoderSpec) -> dict[str, Any]:
    """What ``config.json`` must say."""
    return {"model_type": "dac", "downsampling_ratios": list(_STRIDES), "sampling_rate": _RATE_HZ, **spec.settings}


def _codec(spec: EncoderSpec) -> SnakeCodec:
    config = _config(spec)
    return SnakeCodec(
        channels=config["encoder_hidden_size"],
        strides=_STRIDES,
        last_kernel=_LAST_KERNEL,
        last_snake=True,
        depthwise=False,
        codebook_size=config["codebook_size"],
        codebook_dim=config["codebook_dim"],
        codebook_strides=(1,) * config["n_codebooks"],
    )


class DACEncoder(Encoder):
    """DAC at 16 kHz; representations ``latent`` and ``quantized``, both [T, 1024]."""

    min_samples = _HOP
    longest_s = 30.0
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
    ) -> DACEncoder:
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
        names = [name for file in spec.files for name in file.name.split("|") if not name.endswith(".json")]
        path = next(folder / name for name in names if (folder / name).is_file())
        found = {name: value for name, value in load_pickle_free(path).items() if not name.startswith("decoder.")}
        with torch.device("meta"):
            codec = _codec(spec)
        state = check_state(fold_weight_norm(found), codec.state_dict(), path=path, spec=spec)
        codec.load_state_dict({name: value.float() for name, value in state.items()}, assign=True)
        weights = checkpoint_info(spec, path, revision, found)
        return cls(spec=spec, weights=weights, device=device, codec=codec)

    def num_frames(self, num_samples: int) -> int:
        """ceil(samples / 320)."""
        return extended_length(num_samples, multiple_of=_HOP) // _HOP

    @torch.inference_mode()
    def encode_padded(self, batch: Sequence[Tensor]) -> Iterator[PaddedRepresentation]:
        """Yield ``latent``, then ``quantized``; see the base class."""
        waveforms, lengths = pad_batch(batch, multiple_of=_HOP, device=self.device)
        latent = self._codec.latent(waveforms, lengths)  # [B, T, D]
        num_frames = lengths // _HOP
        yield PaddedRepresentation(name="latent", frames=latent, num_frames=num_frames)
        quantized = self._codec.quantized(latent, num_frames)
        yield PaddedRepresentation(name="quantized", frames=quantized, num_frames=num_frames)
