"""Acoustic descriptors by signal processing: an encoder without weights, in named groups of columns.

Two uses: what a layer of a network is compared with (``hyfuse study layers``), and a baseline that every network must beat. Input:
mono 16 kHz. A frame every 10 ms; frame t is centred at (t + ½) · 160 samples, a clip of L samples has ⌈L / 160⌉ of them, and beyond
its ends there are zeros. Computed in float64, handed out as float32. Columns are named ``group:name``:

========= ===================================================================================================================
group     columns
========= ===================================================================================================================
mfcc      c1 … c12: orthonormal DCT-II of ln(mel power + 1e-10), 40 triangles of height 1 from 20 to 8000 Hz on the HTK scale
          (Davis & Mermelstein 1980); c0 is left out, being loudness
f0        semitones: 12 log2(F0 / 150 Hz), straight lines (in time) where there is no voice, 0 where a clip has none at all;
          voiced: 1 or 0; periodicity: 1 − d′ at the best lag, between 0 and 1 (YIN's measure)
loudness  level_db: 10 log10(mean square + 1e-10); loudness: Σ over 26 mel bands (20 to 8000 Hz) of (E · power)^⅓, E the
          equal-loudness curve (Hermansky 1990, *Perceptual linear predictive analysis of speech*, eqs. 4 and 7)
spectral  centroid_khz and spread_khz: mean and deviation of frequency weighted by power; flatness: geometric over arithmetic
          mean of power, in dB; flux: |√p_t − √p_(t−1)| of spectra of sum 1; rolloff_khz: below it lie 85 % of the power;
          alpha_db: 10 log10 of power 50 to 1000 Hz over 1 to 5 kHz; hammarberg_db: strongest bin of 0 to 2 kHz over that of
          2 to 5 kHz; slope_low_db and slope_high_db: regression of the spectrum in dB on kHz, 0 to 500 and 500 to 1500 Hz
          (the last five after Eyben et al. 2016, *The Geneva Minimalistic Acoustic Parameter Set*)
========= ===================================================================================================================

Spectra are those of 25 ms under a periodic Hann window, 512 bins, as power over Σ window² (so that a level does not depend on the
window); 1e-10 is added to each bin of ``spectral``, about what 16 bits cannot say (quantisation alone gives 8e-11), so that digital
silence has finite descriptors that are the same everywhere.

**F0 is YIN** (de Cheveigné & Kawahara 2002): the difference function d(τ) = Σ_j (x_j − x_(j+τ))² over 25 ms, divided by its own
mean over shorter lags (d′), the first dip of d′ below 0.15, else its minimum, refined by a parabola; from 60 to 700 Hz. A frame is
voiced if d′ < 0.3 there and its level is above −60 dB. Why YIN: it works on 42 ms without training and without looking ahead, its
threshold is a measure of periodicity, it has no upper limit but the sample rate (shouting reaches 600 Hz), and it is a few FFTs per
frame. Not taken: pYIN (librosa), whose Viterbi pass over the whole clip needs numba and takes many times as long; CREPE and the
like, which are networks; RAPT and SWIPE, whose Python packages are C code to be compiled; autocorrelation (Boersma 1993), as good,
with one more threshold. What YIN lacks is a path over time: octave errors stay (on Emo-DB, 1.2 % of the frames that openSMILE
calls voiced as well are an octave from its F0; ``docs/layers.md``).

Why no library: librosa (ISC licence) would bring numba and llvmlite for a DCT and some sums; torchaudio's functions cannot be
relied on (see ``torchaudio_guard.py``); openSMILE's licence is not free (``egemaps.py``).

Nothing in a batch touches anything else: clips are gone through one by one. Recordings above 60 s go through windows, which changes
no frame but the straight lines of F0 across pauses above 2 s at a window's edge.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from pipelines.encoders.base import Encoder, PaddedRepresentation
from pipelines.encoders.byols import mel_triangles
from pipelines.encoders.catalogue import NO_WEIGHTS, EncoderSpec
from pipelines.encoders.weights import Progress, WeightsInfo

__all__ = ["DescriptorEncoder"]

_RATE_HZ = 16000
_HOP = 160
_WINDOW = 400
_FFT = 512
_FLOOR = 1e-10
_MFCC_BANDS, _MFCC_COUNT = 40, 12
_LOUDNESS_BANDS = 26
_LOWEST_HZ, _HIGHEST_HZ = 20.0, 8000.0
_ROLLOFF = 0.85
_F0_HZ = (60.0, 700.0)
_F0_DIP, _F0_VOICED = 0.15, 0.3
_F0_REFERENCE_HZ = 150.0
_VOICED_LEVEL_DB = -60.0
_FRAMES_PER_PASS = 1000  # 40 MB

_VERSION = 1
"""Goes up whenever a formula changes: it takes the place of the weights' digest."""


class DescriptorEncoder(Encoder):
    """Signal processing; representation ``descriptors``, its columns named in ``spec.columns``."""

    def __init__(self, *, spec: EncoderSpec, weights: WeightsInfo, device: torch.device) -> None:
        super().__init__(spec=spec, weights=weights, device=device)
        self._window = torch.hann_window(_WINDOW, periodic=True, dtype=torch.float64, device=device)
        self._bin_hz = torch.linspace(0.0, _RATE_HZ / 2, _FFT // 2 + 1, dtype=torch.float64, device=device)
        self._mel = self._filters(_MFCC_BANDS)
        self._loudness_mel = self._filters(_LOUDNESS_BANDS)
        self._equal_loudness = _equal_loudness(_centres_hz(_LOUDNESS_BANDS)).to(device)
        order = torch.arange(1, _MFCC_COUNT + 1, dtype=torch.float64)[:, None]
        band = torch.arange(_MFCC_BANDS, dtype=torch.float64) + 0.5
        self._dct = (math.sqrt(2 / _MFCC_BANDS) * torch.cos(math.pi / _MFCC_BANDS * order * band)).to(device)

    @classmethod
    def build(
        cls,
        *,
        spec: EncoderSpec,
        weights_kind: str,
        device: torch.device,
        weights_dir: Path | None = None,
        progress: Progress | None = None,
    ) -> DescriptorEncoder:
        """Build the encoder; see ``catalogue.load_encoder``. There are no weights to find."""
        assert weights_kind == NO_WEIGHTS
        formulas = json.dumps([spec.name, _VERSION, *spec.columns])
        info = WeightsInfo(
            kind=NO_WEIGHTS,
            source=f"signal processing, version {_VERSION}",
            revision="",
            digest=hashlib.sha256(formulas.encode()).hexdigest(),
            licence=spec.licence,
        )
        return cls(spec=spec, weights=info, device=device)

    def num_frames(self, num_samples: int) -> int:
        """Frames of 10 ms, the last one maybe cut short."""
        return -(-num_samples // _HOP)

    @torch.inference_mode()
    def encode_padded(self, batch: Sequence[Tensor]) -> Iterator[PaddedRepresentation]:
        """Yield ``descriptors``; see the base class."""
        clips = [self._describe(clip.to(self.device, torch.float64)) for clip in batch]
        yield PaddedRepresentation(
            name=self.spec.representations[0],
            frames=torch.nn.utils.rnn.pad_sequence(clips, batch_first=True).float(),
            num_frames=torch.tensor([len(clip) for clip in clips], device=self.device),
        )

    def _describe(self, clip: Tensor) -> Tensor:
        """Descriptors [T, D] of one clip [samples]."""
        frames = self.num_frames(len(clip))
        longest = _WINDOW + _longest_lag()
        margin = longest  # zeros beyond the ends, more than any frame reaches
        padded = torch.nn.functional.pad(clip, (margin, margin + _HOP))
        first = margin + _HOP // 2 - _WINDOW // 2  # where the 25 ms of frame 0 begin
        short = padded[first:].unfold(0, _WINDOW, _HOP)[:frames]
        long = padded[margin + _HOP // 2 - longest // 2 :].unfold(0, longest, _HOP)[:frames]
        parts, before = [], None
        for start in range(0, frames, _FRAMES_PER_PASS):
            rows = slice(start, start + _FRAMES_PER_PASS)
            power = torch.fft.rfft(short[rows] * self._window, n=_FFT).abs().square() / self._window.square().sum()
            level = 10 * torch.log10(short[rows].square().mean(dim=1, keepdim=True) + _FLOOR)
            spectral, before = self._spectral(power + _FLOOR, before)
            parts.append(
                torch.cat(
                    [self._mfcc(power), self._f0(long[rows], level), level, self._loudness(power), spectral], dim=1
                )
            )
        described = torch.cat(parts)  # [T, D]
        pitch, voiced = _MFCC_COUNT, _MFCC_COUNT + 1
        described[:, pitch] = _bridged(described[:, pitch], described[:, voiced] > 0)
        return described

    def _filters(self, bands: int) -> Tensor:
        found = mel_triangles(
            bands=bands, lowest_hz=_LOWEST_HZ, highest_hz=_HIGHEST_HZ, bins=_FFT // 2 + 1, highest_bin_hz=_RATE_HZ / 2
        )
        return found.double().to(self.device)

    def _mfcc(self, power: Tensor) -> Tensor:
        """c1 … c12, [T, 12], of power [T, bins]."""
        return torch.log(power @ self._mel + _FLOOR) @ self._dct.T

    def _loudness(self, power: Tensor) -> Tensor:
        """[T, 1] of power [T, bins]."""
        return (power @ self._loudness_mel * self._equal_loudness).pow(1 / 3).sum(dim=1, keepdim=True)

    def _spectral(self, power: Tensor, before: Tensor | None) -> tuple[Tensor, Tensor]:
        """Descriptors [T, 9] of power [T, bins], and the last spectrum, which the next pass needs for its flux.

        Args:
            power: positive.
            before: the spectrum before the first one, root of shares [bins]; None at the beginning of a clip.
        """
        khz = self._bin_hz / 1000
        decibel = 10 * torch.log10(power)
        share = power / power.sum(dim=1, keepdim=True)
        centroid = share @ khz
        spread = (share * (khz - centroid[:, None]).square()).sum(dim=1).sqrt()
        flatness = 10 * torch.log10(power.log().mean(dim=1).exp() / power.mean(dim=1))
        root = share.sqrt()
        earlier = torch.cat([root[:1] if before is None else before[None], root[:-1]])
        flux = torch.linalg.vector_norm(root - earlier, dim=1)
        rolloff = khz[(share.cumsum(dim=1) < _ROLLOFF).sum(dim=1).clamp(max=len(khz) - 1)]

        def band(low_hz: float, high_hz: float) -> Tensor:
            return (self._bin_hz >= low_hz) & (self._bin_hz < high_hz)

        def slope(bins: Tensor) -> Tensor:
            centred = khz[bins] - khz[bins].mean()
            found: Tensor = decibel[:, bins] @ centred / centred.square().sum()
            return found

        alpha = 10 * torch.log10(power[:, band(50, 1000)].sum(dim=1) / power[:, band(1000, 5000)].sum(dim=1))
        hammarberg = decibel[:, band(0, 2000)].amax(dim=1) - decibel[:, band(2000, 5000)].amax(dim=1)
        slopes = [slope(band(0, 500)), slope(band(500, 1500))]
        found = torch.stack([centroid, spread, flatness, flux, rolloff, alpha, hammarberg, *slopes], dim=1)
        return found, root[-1]

    def _f0(self, frames: Tensor, level: Tensor) -> Tensor:
        """Semitones (anything where there is no voice), voiced and periodicity: [T, 3].

        Args:
            frames: [T, 25 ms + longest lag].
            level: dB, [T, 1].
        """
        longest, shortest = _longest_lag(), _shortest_lag()
        frames = frames - frames.mean(dim=1, keepdim=True)
        size = 1 << (frames.shape[1] - 1).bit_length()
        spectrum = torch.fft.rfft(frames, n=size)
        head = torch.fft.rfft(frames[:, :_WINDOW], n=size)
        product = torch.fft.irfft(head.conj() * spectrum, n=size)[:, : longest + 1]  # Σ_j x_j x_(j+τ)
        sums = torch.nn.functional.pad(frames.square().cumsum(dim=1), (1, 0))
        energy = sums[:, _WINDOW : _WINDOW + longest + 1] - sums[:, : longest + 1]  # Σ_j x_(j+τ)²
        difference = (energy[:, :1] + energy - 2 * product).clamp_min(0.0)
        lags = torch.arange(longest + 1, device=frames.device)
        mean = difference[:, 1:].cumsum(dim=1) / lags[1:]
        # A frame of zeros has no period: d′ = 1, as for noise.
        relative = torch.where(mean > _FLOOR * _WINDOW, difference[:, 1:] / mean.clamp_min(1e-300), 1.0)
        relative = torch.nn.functional.pad(relative, (1, 0), value=1.0)  # [T, lags]; d′(0) = 1

        inner = slice(shortest, longest)
        here = relative[:, inner]
        dip = (here <= relative[:, shortest - 1 : longest - 1]) & (here < relative[:, shortest + 1 : longest + 1])
        good = dip & (here < _F0_DIP)
        first_good = good.to(torch.uint8).argmax(dim=1)  # the first of equal ones
        best = torch.where(good.any(dim=1), first_good, here.argmin(dim=1)) + shortest
        around = [relative.gather(1, (best + step)[:, None])[:, 0] for step in (-1, 0, 1)]
        curvature = around[0] - 2 * around[1] + around[2]
        shift = torch.where(curvature > 0, (around[0] - around[2]) / (2 * curvature.clamp_min(1e-300)), 0.0)
        lag = best + shift.clamp(-0.5, 0.5)
        semitones = 12 * torch.log2(_RATE_HZ / lag / _F0_REFERENCE_HZ)
        voiced = (around[1] < _F0_VOICED) & (level[:, 0] > _VOICED_LEVEL_DB)
        return torch.stack([semitones, voiced.to(semitones.dtype), 1 - around[1].clamp(0.0, 1.0)], dim=1)


def _shortest_lag() -> int:
    return int(_RATE_HZ / _F0_HZ[1])


def _longest_lag() -> int:
    return math.ceil(_RATE_HZ / _F0_HZ[0]) + 1


def _centres_hz(bands: int) -> Tensor:
    """Centres of mel bands, float64 [bands]."""
    ends = [2595.0 * math.log10(1.0 + edge / 700.0) for edge in (_LOWEST_HZ, _HIGHEST_HZ)]
    corners = torch.linspace(ends[0], ends[1], bands + 2, dtype=torch.float64)
    return (700.0 * (10.0 ** (corners / 2595.0) - 1.0))[1:-1]


def _equal_loudness(hz: Tensor) -> Tensor:
    """Hermansky's curve: sensitivity of the ear at about 40 dB, as a factor of power."""
    squared = (2 * math.pi * hz).square()
    return (squared + 56.8e6) * squared.square() / ((squared + 6.3e6).square() * (squared + 0.38e9))


def _bridged(values: Tensor, known: Tensor) -> Tensor:
    """Straight lines between known values, constant beyond the first and last; 0 if none is known. [T]"""
    at = torch.nonzero(known)[:, 0]
    if not len(at):
        return torch.zeros_like(values)
    position = torch.arange(len(values), device=values.device)
    after = torch.searchsorted(at, position).clamp(max=len(at) - 1)
    before = torch.searchsorted(at, position, right=True).sub(1).clamp(min=0)
    left, right = at[before], at[after]
    share = (position - left) / (right - left).clamp_min(1)
    return torch.where(known, values, values[left] + share.clamp(0.0, 1.0) * (values[right] - values[left]))
