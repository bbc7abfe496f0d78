"""Why a model says what it says of one recording: the whole, its parts, its place on the map, and what either input is worth.

*What either input is worth.* The model judges the recording again with one input replaced by its mean over the training utterances:
standardised, zeros, which is what a head gets of an input that tells it nothing about this recording. How far that moves the answer
is what the input was worth here: for emotions, the change of the probability of the class that was named; for dimensions, the mean
of the absolute changes, each in standard deviations of the training values. It is a question to this model about this recording,
not a cause in the world, and where both inputs say the same, taking one of them away may change little.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipelines.audio.decode import decode
from pipelines.deployment.predict import EMOTION, Model, Prediction
from pipelines.errors import AudioError

__all__ = ["LONGEST_S", "SHORTEST_S", "Explanation", "Worth", "explain"]

SHORTEST_S = 0.3
"""Shorter recordings are not explained: that is half a syllable."""
LONGEST_S = 300.0
"""Longer ones are for ``hyfuse predict``, which does not keep anybody waiting in front of a page."""

_CLEAR = {True: 0.02, False: 0.05}  # differences of worth below that are none; of probabilities, of standard deviations


@dataclass(frozen=True)
class Worth:
    """What an input was worth.

    Attributes:
        encoder: of the input.
        without: float32 [C or K], the model's answer with the input replaced by its training mean.
        change: how far that moved the answer; of probabilities signed, positive where the input spoke for the class named.
    """

    encoder: str
    without: NDArray[np.float32]
    change: float


@dataclass(frozen=True)
class Explanation:
    """One recording, explained.

    Attributes:
        duration_s: of it.
        outputs: float32 [C or K].
        label: the class named; empty for dimensions.
        parts: predictions over time; none for a model that reads transcripts.
        point: float64 [2], where the first head puts it on its map.
        worths: one per input.
        driver: encoder that moved the answer most; empty where none did clearly more than the other, or there is only one.
    """

    duration_s: float
    outputs: NDArray[np.float32]
    label: str
    parts: tuple[Prediction, ...]
    point: NDArray[np.float64]
    worths: tuple[Worth, ...]
    driver: str


def explain(
    model: Model, path: Path, *, segment_s: float = 1.0, step_s: float | None = None, transcript: str | None = None
) -> Explanation:
    """Explain what a model makes of a recording.

    Args:
        model: that is asked.
        path: the recording.
        segment_s: seconds per part.
        step_s: seconds from one part to the next; half of ``segment_s`` unless given.
        transcript: of the recording, where the model reads text.

    Raises:
        AudioError: the recording cannot be used, or is too short or too long.
        ConfigError: lengths of parts that make no sense.
    """
    duration_s = decode(path, 16000, longest_s=3600.0).duration_s
    if duration_s < SHORTEST_S:
        raise AudioError(
            f"The recording lasts {duration_s:.2f} s, which is too short: speak for {SHORTEST_S:g} s or longer."
        )
    if duration_s > LONGEST_S:
        raise AudioError(
            f"The recording lasts {duration_s / 60:.0f} minutes. This page takes up to {LONGEST_S / 60:.0f}; longer ones go through"
            " `hyfuse predict MODEL FILE --segment 2`."
        )
    inside = model.look_inside(path, transcript=transcript)
    parts: Iterator[Prediction] = iter(())
    if not model.takes_text:
        parts = model.predict_segments(path, segment_s=segment_s, step_s=step_s or segment_s / 2)
    emotion = model.folder.target == EMOTION
    best = int(inside.outputs.argmax())
    worths = []
    for one, without in zip(model.folder.inputs, (inside.without_left, inside.without_right), strict=False):
        assert without is not None
        worths.append(Worth(one.encoder, without, _change(model, inside.outputs, without, best)))
    return Explanation(
        duration_s=duration_s,
        outputs=inside.outputs,
        label=model.folder.outputs[best] if emotion else "",
        parts=tuple(parts),
        point=inside.point,
        worths=tuple(worths),
        driver=_driver(worths, emotion),
    )


def _change(model: Model, outputs: NDArray[np.float32], without: NDArray[np.float32], best: int) -> float:
    if model.folder.target == EMOTION:
        return float(outputs[best] - without[best])
    scaler = model.folder.heads[0].target_scaler
    assert scaler is not None
    return float(np.abs((outputs - without) / scaler.std.numpy()).mean())


def _driver(worths: list[Worth], emotion: bool) -> str:
    if len(worths) < 2:
        return ""
    first, second = sorted(worths, key=lambda worth: -worth.change)
    clear = first.change - max(second.change, 0.0) >= _CLEAR[emotion] and math.isfinite(first.change)
    return first.encoder if clear else ""
