"""How loud speech is while somebody speaks.

*Level* is the root mean square (RMS) of samples, 1.0 being full scale. The level of speech counts the time in which somebody
speaks and leaves out the rest, by method B of ITU-T Recommendation P.56 (Objective measurement of active speech level): the
rectified signal is smoothed by two first-order filters of 30 ms; time counts as active from where that envelope reaches a
threshold until 200 ms after it was last there; and the threshold is the one that lies 15.9 dB below the level that it leads
to. The Recommendation tries thresholds a factor of two apart and interpolates; here the threshold is found exactly. Three things
are added, so that every recording has a level:

* a recording is measured as if silence followed it, so that its level does not depend on how much of the silence behind the
  last word was cut away;
* where no threshold is 15.9 dB below its level (a click in silence, a handful of samples) the one that comes nearest is taken;
* the envelope lags behind the signal by twice 30 ms, so the mask of active samples begins that much earlier.

All of it happens on a grid of 1 ms, so the result hardly depends on the sample rate, and not at all on the scale of the samples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["ActiveSpeech", "Samples", "active_speech", "rms"]

Samples = NDArray[np.float64]

MARGIN_DB = 15.9
_TIME_CONSTANT_S, _HANGOVER_S = 0.03, 0.2
_SILENCE_BEHIND_S = 0.6  # enough for the envelope to decay and for the hangover to pass
_GRID_HZ = 1000

_CHUNK = 2**20


@dataclass(frozen=True, eq=False)
class ActiveSpeech:
    """Where and how loud somebody speaks.

    Attributes:
        level: active speech level, RMS; 0 only if all samples are 0.
        mask: bool [samples], true while somebody speaks; at least one sample that is not 0 is among them, if there is one.
    """

    level: float
    mask: NDArray[np.bool_]


def rms(samples: NDArray[np.floating], where: NDArray[np.bool_] | None = None) -> float:
    """Root mean square, summed in float64; of some samples only, if a mask is given."""
    energy, count = 0.0, 0
    for start in range(0, len(samples), _CHUNK):  # a 2-hour recording needs no second copy of itself
        part = samples[start : start + _CHUNK]
        if where is not None:
            part = part[where[start : start + _CHUNK]]
        # Not a dot product: that one is split among threads, and rounds differently with their number.
        energy += float(np.sum(np.square(part, dtype=np.float64)))
        count += len(part)
    return float(np.sqrt(energy / count)) if count else 0.0


def active_speech(samples: NDArray[np.floating], rate_hz: int) -> ActiveSpeech:
    """Active speech level and the samples that are active, by ITU-T P.56 method B (see the module's text).

    Args:
        samples: [samples], at least one.
        rate_hz: sample rate.
    """
    from scipy.ndimage import maximum_filter1d
    from scipy.signal import lfilter

    num_cells = -(-len(samples) * _GRID_HZ // rate_hz)
    edges = np.minimum(np.arange(num_cells + 1) * rate_hz // _GRID_HZ, len(samples))
    cell = rate_hz / _GRID_HZ  # every cell counts as a whole one: the last is filled up with silence
    rectified = np.add.reduceat(np.abs(samples), edges[:-1], dtype=np.float64) / cell
    rectified = np.concatenate([rectified, np.zeros(round(_SILENCE_BEHIND_S * _GRID_HZ))])
    # Two first-order filters of one time constant, one after the other.
    pole = np.exp(-1.0 / (_GRID_HZ * _TIME_CONSTANT_S))
    envelope = lfilter([(1.0 - pole) ** 2], [1.0, -2.0 * pole, pole**2], rectified)
    past = round(_HANGOVER_S * _GRID_HZ)
    held = maximum_filter1d(envelope, past + 1, origin=past // 2, mode="constant")

    energy = rms(samples) ** 2 * len(samples) / cell
    if energy == 0.0:
        return ActiveSpeech(0.0, np.ones(len(samples), np.bool_))
    ordered = np.sort(held)[::-1]
    # Of the k loudest cells: level² / threshold², with the k-th as the threshold. It falls and then rises with k.
    counts = np.arange(1, len(ordered) + 1)
    explained = counts * np.square(ordered) / energy
    enough = np.flatnonzero(explained >= 10.0 ** (-MARGIN_DB / 10.0))
    threshold = ordered[enough[-1] if len(enough) else int(np.argmax(explained))]
    active = held >= threshold
    level = float(np.sqrt(energy / np.count_nonzero(active)))
    lead = round(2.0 * _TIME_CONSTANT_S * _GRID_HZ)
    early = maximum_filter1d(active.astype(np.uint8), lead + 1, origin=-(lead // 2), mode="constant")
    return ActiveSpeech(level, np.repeat(early[:num_cells].astype(np.bool_), np.diff(edges)))
