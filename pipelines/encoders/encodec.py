"""EnCodec 24 kHz (Défossez et al. 2022), through the ``encodec`` package.

Input: mono 24 kHz in [-1, 1]; this model does not normalise the loudness (the 48 kHz one does). ``latent`` [T, 128] is the
output of the encoder before quantisation, 75 frames per second; ``quantized`` [T, 128] is the sum of the code vectors at
``settings["bandwidth_kbps"]`` (6 kbps are 8 codebooks; the package's own default of 24 kbps would be 32, that of transformers
1.5 kbps, 2). The package builds the network, names its parameters and chooses the number of codebooks. The layers are then
run by :mod:`pipelines.encoders.causal`, with weight normalisation folded into the kernels: the same frames to 3e-6, in a
quarter of the package's time (CPU time of one thread: 43 times real time in batches of 16, 11 by the package one by one).

What would break "batched equals alone" upstream: the last frame of a clip is completed by mirroring, so what follows the clip
leaks into it. Cure: each clip, alone or in a batch, is extended with zeros to a multiple of the hop (320) and then needs no
completing; everything else is causal, the LSTM included. Mirroring on the left looks up to 6 frames ahead, so clips below 7
frames (2240 samples, 93 ms) are extended to that. Upstream, given the clip so extended, returns the same frames.

Long recordings: the convolutions run in pieces and the LSTM over the whole, so recordings up to 10 minutes are encoded in one
piece. Windows of longer ones overlap by twice ``context_s``, and what the LSTM remembers from before that is lost. With random
weights, whose LSTM forgets within half a second, that changes nothing (pooled mean of 130 s in windows of 60 s: 3e-8). An LSTM
made to forget slowly (3 added to the bias of its forget gates) would lose something: the pooled mean of ``latent`` changes by
0.2 % with 10 s of context, 0.6 % with 2 s. How long the trained one remembers is not known here.

The quantiser is the one discontinuous step; see ``residual_quantizer``.

Not done here: the 48 kHz model (its group normalisation runs over time), decoding to audio.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

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
from pipelines.encoders.torchaudio_guard import ensure_torchaudio_importable
from pipelines.encoders.weights import (
    Progress,
    WeightsInfo,
    find_file,
    load_pickle_free,
    random_initialisation,
)
from pipelines.errors import ConfigError

if TYPE_CHECKING:
    from encodec.model import EncodecModel

__all__ = ["EncodecEncoder"]

_HOP = 320
_CONTEXT_FRAMES = 2
"""Frames before a frame that the convolutions before the LSTM see, 478 samples, rounded up."""
_PIECE_FRAMES = 300
"""Frames per piece of these convolutions: the same bits, and 10 s of audio in 0.17 s instead of 0.24 s (one core of an AMD EPYC;
0.18 s in pieces of 75 or 150, 0.21 s of 50)."""
_BANDWIDTHS_KBPS = (1.5, 3.0, 6.0, 12.0, 24.0)
_RANDOM_LATENT_SCALE = 2.5
"""What random weights make of speech, roughly; random codebooks are drawn to that scale."""


def _build_model(spec: EncoderSpec) -> EncodecModel:
    """The package's model without its decoder: full size, or narrower where ``settings`` has ``filters``."""
    ensure_torchaudio_importable()
    from encodec.model import EncodecModel
    from encodec.modules.seanet import SEANetDecoder, SEANetEncoder
    from encodec.quantization.vq import ResidualVectorQuantizer

    filters = int(str(spec.settings.get("filters", 32)))
    bandwidth = float(str(spec.settings["bandwidth_kbps"]))
    if bandwidth not in _BANDWIDTHS_KBPS:
        raise ConfigError(
            f"EnCodec has no bandwidth of {bandwidth} kbps; expected one of {', '.join(map(str, _BANDWIDTHS_KBPS))}"
            f" (settings of {spec.name!r} in pipelines/encoders/catalogue.py)."
        )
    with warnings.catch_warnings():
        # encodec 0.1.1 uses the older of torch's two weight normalisations, which warns once per layer.
        warnings.simplefilter("ignore", FutureWarning)
        encoder = SEANetEncoder(dimension=spec.dim, n_filters=filters, norm="weight_norm", causal=True)
    codebooks = round(1000 * _BANDWIDTHS_KBPS[-1] * _HOP / spec.sample_rate_hz / 10)  # 10 bits each
    model = EncodecModel(
        encoder=encoder,
        decoder=cast(SEANetDecoder, nn.Identity()),
        quantizer=ResidualVectorQuantizer(dimension=spec.dim, n_q=codebooks, bins=1024),
        target_bandwidths=list(_BANDWIDTHS_KBPS),
        sample_rate=spec.sample_rate_hz,
        channels=1,
    )
    model.set_target_bandwidth(bandwidth)
    return model.eval()


def _randomise(model: EncodecModel) -> None:
    """Redraw the convolutions and the codebooks; the LSTM keeps the package's own initialisation."""
    initialise(model.encoder)
    layers = model.quantizer.vq.layers
    size, dim = model.quantizer.bins, model.quantizer.dimension
    codebooks = gaussian_codebooks(count=len(layers), size=size, dim=dim, scale=_RANDOM_LATENT_SCALE)
    for layer, codebook in zip(layers, codebooks, strict=True):
        state = layer.get_submodule("_codebook").state_dict()  # shares its memory with the codebook
        state["embed"].copy_(codebook)
        state["embed_avg"].copy_(codebook)
        state["inited"].fill_(1.0)  # or the package would run k-means on the first batch


def _convolution(layer: nn.Module) -> nn.Conv1d:
    """The Conv1d inside one of the package's padding and normalising wrappers."""
    found = layer.get_submodule("conv.conv")
    assert isinstance(found, nn.Conv1d)
    return found


class _Network(nn.Module):
    """The layers of a package's model, run over feature maps [B, T, C]. Takes the model over: its weights are folded."""

    def __init__(self, model: EncodecModel) -> None:
        super().__init__()
        from encodec.modules.conv import SConv1d
        from encodec.modules.lstm import SLSTM
        from encodec.modules.seanet import SEANetResnetBlock

        self.encoder = model.encoder
        for layer in list(self.encoder.modules()):
            if hasattr(layer, "weight_g"):
                torch.nn.utils.remove_weight_norm(layer)
        self._front: list[nn.Conv1d | tuple[nn.Conv1d, nn.Conv1d, nn.Conv1d]] = []
        for layer in self.encoder.model:
            if isinstance(layer, SConv1d):
                self._front.append(_convolution(layer))
            elif isinstance(layer, SEANetResnetBlock):
                narrowing, widening = layer.block[1], layer.block[3]
                self._front.append((_convolution(narrowing), _convolution(widening), _convolution(layer.shortcut)))
            elif isinstance(layer, SLSTM):
                self.lstm = layer.lstm
        self._front.pop()
        self._last = _convolution(self.encoder.model[-1])
        self._bytes_per_sample = 4 * _convolution(self.encoder.model[0]).out_channels
        used = model.quantizer.get_num_quantizers_for_bandwidth(model.frame_rate, model.bandwidth)
        codebooks = [layer.get_buffer("_codebook.embed") for layer in model.quantizer.vq.layers]
        self.register_buffer("codebooks", torch.stack(codebooks[:used]))

    def convolutions(self, waveforms: Tensor, lengths: Tensor) -> Tensor:
        """Feature maps [B, T, C] before the LSTM, of waveforms [B, 320 * T]; on CPU in pieces, which stay in the cache.

        ``lengths`` are each clip's own, in samples.
        """
        total = waveforms.shape[1] // _HOP
        size = _PIECE_FRAMES if waveforms.device.type == "cpu" else total
        parts: list[Tensor] = []
        for first in range(0, total, size):
            begin, end = max(0, first - _CONTEXT_FRAMES), min(total, first + size)
            samples = waveforms[:, begin * _HOP : end * _HOP]
            # A clip that has ended gives something of no use; mirroring needs three frames of it all the same.
            own = (lengths - begin * _HOP).clamp(3 * _HOP, samples.shape[1])
            maps = run_in_passes(self._convolve, samples, own, bytes_per_sample=self._bytes_per_sample)
            parts.append(maps[:, first - begin :])
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def _convolve(self, waveforms: Tensor) -> Tensor:
        maps = waveforms[:, :, None]
        for index, layer in enumerate(self._front):
            if isinstance(layer, tuple):
                narrowing, widening, shortcut = layer
                inner = F.elu_(convolve(maps, narrowing, mirror=True, elu=True))
                maps = convolve(inner, widening).add_(convolve(maps, shortcut))
            else:
                maps = convolve(maps, layer, mirror=True, elu=index > 0)
        return maps

    def latent(self, maps: Tensor) -> Tensor:
        """Latents [B, T, D] of these feature maps."""
        recurrent, _ = self.lstm(maps.transpose(0, 1))
        return convolve(recurrent.transpose(0, 1) + maps, self._last, mirror=True, elu=True)


class EncodecEncoder(Encoder):
    """EnCodec 24 kHz; representations ``latent`` and ``quantized``, both [T, 128]."""

    min_samples = 7 * _HOP
    longest_s = 600.0
    context_s = 10.0

    def __init__(self, *, spec: EncoderSpec, weights: WeightsInfo, device: torch.device, model: EncodecModel) -> None:
        super().__init__(spec=spec, weights=weights, device=device)
        self._network = _Network(model)
        prepare(self._network, device)

    @classmethod
    def build(
        cls,
        *,
        spec: EncoderSpec,
        weights_kind: str,
        device: torch.device,
        weights_dir: Path | None = None,
        progress: Progress | None = None,
    ) -> EncodecEncoder:
        """Build the encoder; see ``catalogue.load_encoder``.

        Raises:
            WeightsError: the checkpoint is absent, damaged, or of another network.
            ConfigError: the catalogue asks for a bandwidth that the model does not have.
        """
        if weights_kind == "random":
            with random_initialisation(spec):
                model = _build_model(spec)
                _randomise(model)
            return cls(spec=spec, weights=random_info(spec, model.state_dict()), device=device, model=model)
        path = find_file(spec, spec.files[0], weights_dir=weights_dir, progress=progress)
        with torch.random.fork_rng(devices=[]):  # the package draws numbers that the checkpoint then replaces
            model = _build_model(spec)
        found = {name: value for name, value in load_pickle_free(path).items() if not name.startswith("decoder.")}
        state = check_state(found, model.state_dict(), path=path, spec=spec)
        model.load_state_dict(state)
        return cls(spec=spec, weights=pretrained_info(spec, [path], state), device=device, model=model)

    def num_frames(self, num_samples: int) -> int:
        """ceil(samples / 320), at least 7."""
        return extended_length(num_samples, multiple_of=_HOP, min_samples=self.min_samples) // _HOP

    @torch.inference_mode()
    def encode_padded(self, batch: Sequence[Tensor]) -> Iterator[PaddedRepresentation]:
        """Yield ``latent``, then ``quantized``; see the base class."""
        waveforms, lengths = pad_batch(batch, multiple_of=_HOP, min_samples=self.min_samples, device=self.device)
        # The LSTM reads all its weights at every step, so it takes the whole batch at once.
        maps = self._network.convolutions(waveforms, lengths)
        latent = self._network.latent(maps)  # [B, T, D]
        num_frames = lengths // _HOP
        yield PaddedRepresentation(name="latent", frames=latent, num_frames=num_frames)
        valid = valid_mask(num_frames, latent.shape[1])
        quantized = torch.zeros_like(latent)
        quantized[valid] = quantize_residual(latent[valid], self._network.get_buffer("codebooks"))
        yield PaddedRepresentation(name="quantized", frames=quantized, num_frames=num_frames)
