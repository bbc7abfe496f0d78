"""A telephone line: 300 to 3400 Hz, sampled at 8 kHz, coded with 8 bits by the μ-law of ITU-T Recommendation G.711.

The signal is brought to 8 kHz by soxr, band-passed, coded and decoded, and brought back to its rate. The band-pass is a
linear-phase filter whose delay is taken out, so everything stays where it was in time; a real line's own delay and dispersion
are not imitated. It is 6 dB down at 300 and at 3400 Hz. Speech enters the coder 26 dB below overload, the usual level of ITU-T
tests of telephone speech (Recommendation P.830), so that the coding noise does not depend on how loud the corpus is; peaks
above full scale are clipped, as on a line. Transmission errors and low-bit-rate codecs are not imitated.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from pipelines.audio.levels import Samples

__all__ = ["LINE_HZ", "LINE_LEVEL_DB", "mu_law", "telephone"]

LINE_HZ = 8000
LINE_LEVEL_DB = -26.0
BAND_HZ = (300.0, 3400.0)

_TAPS, _KAISER_BETA = 257, 7.0
_PADDING_S = 0.05  # room for the filters to ring on behind the last sample

_FULL_SCALE, _BIAS, _LARGEST = 2**13, 33, 8158  # G.711, table 2: 14 bits, biased, virtual decision value 8159


def mu_law(samples: NDArray[np.floating]) -> Samples:
    """What is left of samples after coding and decoding by G.711 μ-law (8 bits), 1.0 being full scale."""
    magnitude = np.minimum(np.rint(np.abs(samples) * _FULL_SCALE), _LARGEST).astype(np.int64) + _BIAS
    shift = np.frexp(magnitude.astype(np.float64))[1] - 5  # segment + 1; frexp(33) gives an exponent of 6
    step = magnitude >> shift  # 16 … 31: the four bits of the step and a leading one
    decoded = ((2 * step + 1) << (shift - 1)) - _BIAS
    result: Samples = np.copysign(decoded / _FULL_SCALE, samples)
    return result


def telephone(samples: NDArray[np.floating], rate_hz: int) -> Samples:
    """Samples as they come out of a telephone line, as loud as they went in.

    Args:
        samples: [samples], at an active speech level of 1.
        rate_hz: sample rate.

    Returns:
        float64 [samples].
    """
    import soxr
    from scipy.signal import oaconvolve

    padding = np.zeros(-(-rate_hz // round(1 / _PADDING_S)))
    line_level = 10.0 ** (LINE_LEVEL_DB / 20.0)
    line = np.concatenate([samples * line_level, padding])
    line = soxr.resample(line, rate_hz, LINE_HZ, quality="VHQ")
    line = mu_law(oaconvolve(line, _band_pass(), mode="same"))
    back = soxr.resample(line, LINE_HZ, rate_hz, quality="VHQ")
    result: Samples = back[: len(samples)] / line_level
    return result


@cache
def _band_pass() -> Samples:
    from scipy.signal import firwin

    taps: Samples = firwin(_TAPS, BAND_HZ, window=("kaiser", _KAISER_BETA), pass_zero=False, fs=LINE_HZ)
    return taps
