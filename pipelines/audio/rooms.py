"""Reverberation: the impulse response of a room, made up or measured, and its convolution with speech.

A made-up response is the statistical model of late reverberation by Polack (1988, see also Moorer 1979): Gaussian noise under an
exponential that falls by 60 dB within the reverberation time RT60, here white, behind a direct path of one sample at time 0. The
*direct-to-reverberant ratio* is the energy of the direct path over that of all the rest; 0 dB is the ratio at a room's critical
distance, a metre or so from the speaker in a living room. The model has no single early reflections and one RT60 for
all frequencies. A measured response is the first channel of a recording, scaled to a main peak of 1.

Direct path or main peak come to lie at time 0, so that reverberant speech stays aligned with the clean one, and the result is cut
to the length of the speech: the reverberation of its last word is missing.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipelines.audio.levels import Samples
from pipelines.audio.noises import coloured_noise

__all__ = ["made_up_response", "reverberate"]

_CHUNK = 2**21  # samples convolved at a time: an hour-long recording must not need many times its own memory


def made_up_response(random: np.random.Generator, rt60_s: float, rate_hz: int, *, drr_db: float = 0.0) -> Samples:
    """Impulse response of a room by Polack's model.

    Args:
        random: where the noise comes from.
        rt60_s: time in which reverberation falls by 60 dB; the response is that long.
        rate_hz: sample rate.
        drr_db: direct-to-reverberant ratio.

    Returns:
        float64 [samples]; the first one is the direct path and is 1.
    """
    length = max(2, round(rt60_s * rate_hz))
    tail = coloured_noise(random, length, rate_hz) * 10.0 ** (-3.0 * np.arange(length) / (rt60_s * rate_hz))
    tail[0] = 0.0
    tail *= np.sqrt(10.0 ** (-drr_db / 10.0) / np.sum(np.square(tail)))
    tail[0] = 1.0
    return tail


def reverberate(samples: NDArray[np.floating], response: NDArray[np.floating]) -> Samples:
    """Convolve samples with an impulse response whose main peak becomes time 0 and 1; of the same length as the samples."""
    from scipy.signal import oaconvolve

    peak = int(np.argmax(np.abs(response)))
    scaled = np.asarray(response[: peak + len(samples)], np.float64) / response[peak]
    result = np.zeros(len(samples))
    for start in range(0, len(samples), _CHUNK):
        part = oaconvolve(np.asarray(samples[start : start + _CHUNK], np.float64), scaled)
        part = part[max(0, peak - start) :]  # its first sample belongs at start - peak
        first = max(0, start - peak)
        part = part[: len(result) - first]
        result[first : first + len(part)] += part
    return result
