"""BYOL-S/512: one vector per utterance from a small convolutional network over log-mel frames.

Input: mono 16 kHz. Features: power spectrogram (Hann window of 1024, hop 160, centred, reflected at the clip's own ends), 64
mel bands from 60 to 7800 Hz (HTK scale, triangles of height 1), natural log of (mel + 2^-23), then minus the mean and divided
by the (unbiased) standard deviation over all bands and frames of the clip. Network (Niizumi et al. 2021, "BYOL for Audio";
Elbanna et al. 2022, "BYOL-S"): three times [3x3 convolution, batch normalisation, ReLU, 2x2 max-pool], two linear layers with
ReLU per remaining time step (80 ms), and then the mean over time plus the maximum over time.

What would break "batched equals alone": the mean and deviation of the clip, the reflection at its end, the zeros a 3x3
convolution sees beyond the last frame, the max-pool that drops an odd last frame, and the mean and maximum over time. Cure:
the reflection is written at each clip's own end; statistics count valid frames only; after every stage the frames beyond
the clip's own floor(frames / 2^stage) are set to zero, which is what the convolution sees when the clip is alone.

A clip of digital silence has no deviation; it is divided by 0.001 instead (no recording comes near that), so its vector is
finite. Clips below 1120 samples (70 ms) would have no frame left after pooling and are extended to that.

Recordings above 300 s are windows side by side, whose vectors are averaged by length (``windows.py``). That is not the vector in
one piece: every window is standardised by itself, and the mean of maxima is less than the maximum. With the published weights,
150 s of one Emo-DB speaker in three windows lie 0.103 of the vector's length from the vector in one piece (single windows 0.13 to
0.14, another speaker's recording 0.185; ``tests/real/test_long_recordings.py``).

Not done here: the frame-level output before the last two steps; speech-free cropping.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipelines.encoders.base import Encoder, PaddedRepresentation
from pipelines.encoders.catalogue import EncoderSpec
from pipelines.encoders.cpu_linear import pack_linears
from pipelines.encoders.padding import extended_length, valid_mask
from pipelines.encoders.random_weights import initialise
from pipelines.encoders.state_check import check_state, pretrained_info, random_info
from pipelines.encoders.weights import (
    Progress,
    WeightsInfo,
    find_file,
    load_pickle_free,
    random_initialisation,
)

__all__ = ["BYOLSEncoder", "mel_triangles"]

_FFT = 1024
_HOP = 160
_MELS = 64
_LOWEST_HZ, _HIGHEST_HZ = 60.0, 7800.0
_LOG_FLOOR = 2.0**-23
"""Float32's machine epsilon; found from the reference vectors (any other power of ten misses them by 1e-3)."""
_SILENT_DEVIATION = 1e-3
_STAGES = 3
_CPU_FRAMES_PER_PASS = 1500
"""The first feature map takes 16 KiB per frame; 750 to 1500 frames at a time ran at 670 times real time on one thread of an
AMD EPYC, 3000 at 520: beyond 32 MiB glibc returns every block to the system, and fresh pages are slow to touch."""


def mel_triangles(*, bands: int, lowest_hz: float, highest_hz: float, bins: int, highest_bin_hz: float) -> Tensor:
    """Triangular mel filters of height 1 on the HTK scale, 2595 log10(1 + f / 700).

    Returns:
        float32 [bins, bands]; bin k lies at ``k * highest_bin_hz / (bins - 1)``.
    """
    bin_hz = torch.linspace(0.0, highest_bin_hz, bins)
    ends = [2595.0 * math.log10(1.0 + edge / 700.0) for edge in (lowest_hz, highest_hz)]
    corners = 700.0 * (10.0 ** (torch.linspace(ends[0], ends[1], bands + 2) / 2595.0) - 1.0)
    widths = corners.diff()
    distance = corners[None, :] - bin_hz[:, None]  # [bins, bands + 2]
    rising = -distance[:, :-2] / widths[:-1]
    falling = distance[:, 2:] / widths[1:]
    return torch.minimum(rising, falling).clamp_min(0.0)


class _Network(nn.Module):
    """The parameters under their upstream names; :class:`BYOLSEncoder` computes with a folded form of them."""

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__()
        channels, dim = int(str(spec.settings["channels"])), spec.dim
        stages: list[nn.Module] = []
        for stage in range(_STAGES):
            stages += [nn.Conv2d(channels if stage else 1, channels, 3, padding=1), nn.BatchNorm2d(channels)]
            stages += [nn.ReLU(), nn.MaxPool2d(2)]
        width = channels * (_MELS >> _STAGES)
        self.features = nn.Sequential(*stages)
        self.fc = nn.Sequential(nn.Linear(width, dim), nn.ReLU(), nn.Dropout(0.3), nn.Linear(dim, dim), nn.ReLU())


def _fold(convolution: nn.Conv2d, normalisation: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Convolution and the batch normalisation after it as one convolution, for input [B, 1 or C, time, mel].

    Upstream has mel before time, so the kernel is transposed; its memory is laid out channels-last.
    """
    assert convolution.bias is not None
    assert normalisation.running_mean is not None
    assert normalisation.running_var is not None
    scale = normalisation.weight.double() / (normalisation.running_var.double() + normalisation.eps).sqrt()
    weight = convolution.weight.double() * scale[:, None, None, None]
    bias = (convolution.bias.double() - normalisation.running_mean.double()) * scale + normalisation.bias.double()
    # [out, time, mel, in] in memory, so that torch sees channels-last also where there is one input channel.
    weight = weight.permute(0, 3, 2, 1).float().contiguous().permute(0, 3, 1, 2)
    return weight.detach(), bias.float().detach()


def _pool(maps: Tensor) -> Tensor:
    """2x2 max-pool with floor, then ReLU (they commute). Several times faster than max_pool2d on CPU."""
    times, mels = maps.shape[2] // 2 * 2, maps.shape[3] // 2 * 2
    maps = torch.maximum(maps[:, :, 0:times:2], maps[:, :, 1:times:2])
    return torch.maximum(maps[..., 0:mels:2], maps[..., 1:mels:2]).relu_()


class BYOLSEncoder(Encoder):
    """BYOL-S; representation ``embedding`` [1, 512] (fewer in the tiny size)."""

    longest_s = 300.0  # half a gigabyte: windows cost more here than elsewhere
    min_samples = ((1 << _STAGES) - 1) * _HOP

    def __init__(self, *, spec: EncoderSpec, weights: WeightsInfo, device: torch.device, network: nn.Module) -> None:
        super().__init__(spec=spec, weights=weights, device=device)
        assert isinstance(network, _Network)
        network = network.eval()
        with torch.no_grad():
            features = network.features
            self._convolutions = [
                tuple(
                    tensor.to(device)
                    for tensor in _fold(features[4 * stage], features[4 * stage + 1])  # type: ignore[arg-type]
                )
                for stage in range(_STAGES)
            ]
        filters = nn.Linear(_FFT // 2 + 1, _MELS, bias=False, device="meta")
        filters.weight = nn.Parameter(
            mel_triangles(
                bands=_MELS,
                lowest_hz=_LOWEST_HZ,
                highest_hz=_HIGHEST_HZ,
                bins=_FFT // 2 + 1,
                highest_bin_hz=spec.sample_rate_hz / 2,
            ).T.contiguous()
        )
        linears = nn.ModuleList([filters, network.fc[0], network.fc[3]]).to(device).requires_grad_(False)
        pack_linears(linears)
        self._filters, *self._linears = linears
        self._window = torch.hann_window(_FFT, periodic=True, device=device)

    @classmethod
    def build(
        cls,
        *,
        spec: EncoderSpec,
        weights_kind: str,
        device: torch.device,
        weights_dir: Path | None = None,
        progress: Progress | None = None,
    ) -> BYOLSEncoder:
        """Build the encoder; see ``catalogue.load_encoder``.

        Raises:
            WeightsError: the checkpoint is absent, damaged, or of another network.
        """
        if weights_kind == "random":
            with random_initialisation(spec):
                network = _Network(spec)
                initialise(network)
            return cls(spec=spec, weights=random_info(spec, network.state_dict()), device=device, network=network)
        path = find_file(spec, spec.files[0], weights_dir=weights_dir, progress=progress)
        with torch.device("meta"):  # shapes only: torch's random state is not touched
            network = _Network(spec)
        state = check_state(load_pickle_free(path), network.state_dict(), path=path, spec=spec)
        network.load_state_dict(state, assign=True)
        return cls(spec=spec, weights=pretrained_info(spec, [path], state), device=device, network=network)

    def num_frames(self, num_samples: int) -> int:
        """1: one vector per utterance."""
        return 1

    @torch.inference_mode()
    def encode_padded(self, batch: Sequence[Tensor]) -> Iterator[PaddedRepresentation]:
        """Yield ``embedding``; see the base class. The batch is taken in passes of a few clips on CPU."""
        embeddings = torch.cat([self._embed(clips) for clips in self._passes(batch)])  # [B, D]
        ones = torch.ones(len(batch), dtype=torch.int64, device=self.device)
        yield PaddedRepresentation(name="embedding", frames=embeddings[:, None], num_frames=ones)

    def _passes(self, batch: Sequence[Tensor]) -> Iterator[list[Tensor]]:
        """Cut the batch into runs of clips whose feature maps fit the memory that is fast to allocate."""
        limit = _CPU_FRAMES_PER_PASS if self.device.type == "cpu" else 64 * _CPU_FRAMES_PER_PASS
        clips: list[Tensor] = []
        longest = 0
        for clip in batch:
            frames = 1 + extended_length(clip.numel(), min_samples=self.min_samples) // _HOP
            if clips and max(longest, frames) * (len(clips) + 1) > limit:
                yield clips
                clips, longest = [], 0
            clips.append(clip)
            longest = max(longest, frames)
        yield clips

    def _embed(self, clips: Sequence[Tensor]) -> Tensor:
        """Embeddings [B, D] of a few clips."""
        maps, lengths = self._log_mel(clips)
        maps = maps[:, None]  # [B, 1, T, 64]; each stage gives [B, channels, T // 2, mel // 2]
        for weight, bias in self._convolutions:
            # One input channel makes the layout ambiguous; these strides say channels-last.
            if maps.shape[1] == 1:
                maps = maps[:, 0, :, :, None].permute(0, 3, 1, 2)
            maps = _pool(F.conv2d(maps, weight, bias, padding=1))
            lengths = lengths // 2
            if len(clips) > 1:
                maps.mul_(valid_mask(lengths, maps.shape[2])[:, None, :, None])
        steps = maps.permute(0, 2, 3, 1).flatten(2)  # [B, T', mel * channel], no copy in channels-last
        for linear in self._linears:
            steps = linear(steps).relu_()
        if len(clips) > 1:
            steps.mul_(valid_mask(lengths, steps.shape[1])[:, :, None])
        # Steps are never negative, so the zeros beyond the end cannot win the maximum.
        return steps.sum(1) / lengths[:, None] + steps.amax(1)

    def _log_mel(self, clips: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Standardised log-mel frames [B, T, 64], zero beyond each clip's own frames, and their numbers int64 [B]."""
        own = [extended_length(clip.numel(), min_samples=self.min_samples) for clip in clips]
        waveforms = torch.zeros(len(own), max(own) + _FFT)
        for row, (clip, length) in enumerate(zip(clips, own, strict=True)):
            extended = F.pad(clip, (0, length - clip.numel()))
            waveforms[row, : length + _FFT] = F.pad(extended[None], (_FFT // 2, _FFT // 2), mode="reflect")[0]
        frames = waveforms.to(self.device).unfold(1, _FFT, _HOP)  # [B, T, 1024]
        spectra = torch.view_as_real(torch.fft.rfft(frames * self._window))  # [B, T, 513, 2]
        energy = spectra[..., 0].square() + spectra[..., 1].square()
        log_mel = (self._filters(energy) + _LOG_FLOOR).log()  # [B, T, 64]
        lengths = torch.tensor(own, device=self.device) // _HOP + 1
        mask = valid_mask(lengths, log_mel.shape[1])[:, :, None]
        # Sums in float64: the number of threads and the padding must not show in the fifth digit of a long clip.
        count = (lengths * _MELS).double()[:, None, None]
        mean = log_mel.mul(mask).sum(dim=(1, 2), keepdim=True, dtype=torch.float64) / count
        centred = (log_mel - mean.float()).mul_(mask)
        variance = centred.square().sum(dim=(1, 2), keepdim=True, dtype=torch.float64) / (count - 1)
        deviation = variance.sqrt().clamp_min(_SILENT_DEVIATION).float()
        return centred / deviation, lengths
