"""Noise as long as an utterance: made up, or cut out of a recording; the same everywhere, at every sample rate.

A segment of recorded noise begins at a random place of a random recording. A recording (or a minute's piece of a long one) that
is shorter than the utterance is repeated from a random place on, its end cross-faded with its beginning at equal power. A segment
that is silent beside the rest of its recording (20 dB below it) would be amplified out of proportion: another place is tried
up to eight times, then the loudest one is taken.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from pipelines.audio.levels import Samples, rms
from pipelines.audio.recordings import RecordingSet
from pipelines.errors import AudioError

__all__ = ["SILENT_DB", "TRIES", "coloured_noise", "generator", "loudest", "mixed", "noise_segment", "on_grid"]

TRIES = 8
SILENT_DB = -20.0
LOOP_FADE_S = 0.05

NOISE_CELL_S = 0.02
LONGEST_NOISE_S = 3072 * NOISE_CELL_S  # about a minute; then it repeats, without a seam
_SIZES = (1, *sorted(mantissa * 2**power for mantissa in (2, 3) for power in range(11)))
PINK_FROM_HZ = 20.0


def generator(*key: object) -> np.random.Generator:
    """Random numbers that depend on a key and on nothing else: not on the process, the order of calls or a global seed."""
    digest = hashlib.sha256("\0".join(map(str, key)).encode("utf-8", "surrogateescape")).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "big")))


def coloured_noise(
    random: np.random.Generator, num_samples: int, rate_hz: int, *, exponent: float = 0.0, from_hz: float = 0.0
) -> Samples:
    """Gaussian noise whose power falls with frequency as 1 / f^exponent: 0 is white, 1 is pink.

    It is drawn as a spectrum, from low frequencies to high ones, over a time from a fixed list: at another rate the same noise
    comes out, as far as that rate reaches. After ``LONGEST_NOISE_S`` it repeats; the spectrum makes that seamless.

    Args:
        random: where the numbers come from.
        num_samples: length.
        rate_hz: sample rate.
        exponent: of the power spectrum.
        from_hz: nothing lies below this frequency.

    Returns:
        float64 [num_samples], of no particular level.
    """
    from scipy.fft import irfft

    # Cells are rounded up with an odd remainder: recordings of an even length in seconds lie well inside, at every rate.
    wanted = num_samples / rate_hz / NOISE_CELL_S + 0.37
    size = next((size for size in _SIZES if size >= wanted), _SIZES[-1])
    period = round(size * NOISE_CELL_S * rate_hz)
    pairs = random.standard_normal((period // 2 + 1, 2))
    spectrum = pairs[:, 0] + 1j * pairs[:, 1]
    frequency_hz = np.arange(len(spectrum)) / (size * NOISE_CELL_S)
    spectrum[frequency_hz < max(from_hz, 1e-9)] = 0.0
    if exponent:
        spectrum[1:] /= frequency_hz[1:] ** (exponent / 2.0)
    noise: Samples = irfft(spectrum, period) * np.sqrt(period)
    return np.resize(noise, num_samples)


def on_grid(time_s: float) -> float:
    """A time rounded down to whole cells, so that it falls on a sample at all usual rates."""
    return int(time_s / NOISE_CELL_S + 1e-6) * NOISE_CELL_S


def noise_segment(noise: RecordingSet, random: np.random.Generator, num_samples: int, rate_hz: int) -> Samples:
    """A segment of a random recording of a set (see the module's text).

    Args:
        noise: the recordings.
        random: where the choices come from.
        num_samples: length.
        rate_hz: sample rate.

    Returns:
        float64 [num_samples], at the level of the recording.

    Raises:
        DataRootError: the recording has gone or changed.
        AudioError: the recording is broken or silent; the message names it.
    """
    recording = noise.recordings[int(random.integers(len(noise.recordings)))]
    num_pieces = noise.num_pieces(recording)
    heard: NDArray[np.float32] | None = None  # the last piece that was not silent
    for _ in range(TRIES):
        piece, place = int(random.integers(num_pieces)), float(random.random())
        samples = noise.samples(recording, piece, rate_hz)
        loudness = rms(samples)
        if loudness > 0.0:
            heard = samples
            segment = _cut(samples, place, num_samples, rate_hz)
            if rms(segment) > loudness * 10.0 ** (SILENT_DB / 20.0):
                return segment
    for piece in range(num_pieces):
        if heard is None and rms(noise.samples(recording, piece, rate_hz)) > 0.0:
            heard = noise.samples(recording, piece, rate_hz)
    if heard is None:
        raise AudioError(f"The recording {noise.root}/{recording.name} is silent. Move it out of the folder.")
    return loudest(heard, num_samples) if len(heard) > num_samples else _cut(heard, 0.0, num_samples, rate_hz)


def mixed(speech: Samples, noise: Samples, snr_db: float) -> Samples:
    """Speech at an active level of 1 with noise at a signal-to-noise ratio below it; ``noise`` is used up.

    Raises:
        AudioError: the noise is silent.
    """
    loudness = rms(noise)
    if loudness == 0.0:
        raise AudioError("The noise is silent, so no signal-to-noise ratio can be reached.")
    noise *= 10.0 ** (-snr_db / 20.0) / loudness
    noise += speech
    return noise


def _cut(samples: NDArray[np.float32], place: float, num_samples: int, rate_hz: int) -> Samples:
    """A segment from a place between 0 (the earliest) and 1 (the latest)."""
    if len(samples) >= num_samples:
        first = round(on_grid(place * (len(samples) - num_samples) / rate_hz) * rate_hz)
        return samples[first : first + num_samples].astype(np.float64)
    loop = _loop(samples, rate_hz)
    return np.resize(np.roll(loop, -round(on_grid(place * len(loop) / rate_hz) * rate_hz)), num_samples)


def _loop(samples: NDArray[np.float32], rate_hz: int) -> Samples:
    """The recording without its end, which is cross-faded into its beginning: it can be repeated."""
    fade = min(round(LOOP_FADE_S * rate_hz), len(samples) // 2)
    loop = samples[: len(samples) - fade].astype(np.float64)
    angle = (np.arange(fade) + 0.5) / max(fade, 1) * (np.pi / 2.0)
    loop[:fade] = loop[:fade] * np.sin(angle) + samples[len(samples) - fade :] * np.cos(angle)
    return loop


def loudest(samples: NDArray[np.floating], num_samples: int) -> Samples:
    """The segment with the most energy of samples that are at least as long; float64 [num_samples]."""
    energy = np.concatenate([[0.0], np.cumsum(np.square(samples, dtype=np.float64))])
    first = int(np.argmax(energy[num_samples:] - energy[: len(energy) - num_samples]))
    return samples[first : first + num_samples].astype(np.float64)
